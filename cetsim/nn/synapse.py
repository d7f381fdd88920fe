"""Where backpropagation is replaced by the three-factor rule: one function whose derivative is the trace's update."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import credit, streams
from cetsim.delays import AbstractDelay
from cetsim.streams import StreamState
from cetsim.traces import AbstractTrace


class Synapses(eqx.Module):
    """The rule that one layer's synapses obey.

    **Fields:** `trace`: what they remember. `delay`: when signals arrive. `error_gate`: activity enters the trace only
    where ‖∂ℓ/∂a‖² is above it (0 is off). `signal`: stands in for ∂ℓ/∂a if given, `[time]` or `[time, *out]`.
    `form`: of the rule. `window`: steps that a stream remembers; None for stretches that start empty. `pool`: a map,
    linear in each step, behind the activation; the signal is filtered behind it, where it is smallest.
    """

    trace: AbstractTrace
    delay: AbstractDelay
    error_gate: Float[Array, ""]
    signal: Float[Array, "time ..."] | None
    form: str = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    pool: Callable | None = eqx.field(static=True, default=None)

    def unpool(self, like, rows):
        """The transpose of the pool, from rows behind it, `[time, *pooled]`, to rows of the shape of `like`."""
        if self.pool is None:
            return rows
        one = jax.linear_transpose(self.pool, jax.ShapeDtypeStruct(like.shape[1:], like.dtype))
        return jax.vmap(lambda row: one(row)[0])(rows)


def _over_time(synapses: Synapses, derivative, error, x, state: StreamState | None):
    """Credit of a stretch: cotangents of the pre-activations, `[time, *out]`, and what is carried on."""
    steps = error.shape[0]
    if synapses.signal is not None:
        handed = jnp.asarray(synapses.signal, error.dtype)
        if handed.shape not in (error.shape, (steps,)):
            raise ValueError(f"`signal` must have shape {error.shape} or {(steps,)}, got {handed.shape}")
        error = jnp.broadcast_to(handed.reshape(handed.shape + (1,) * (error.ndim - handed.ndim)), error.shape)
    unpool = lambda rows: synapses.unpool(derivative, rows)  # noqa: E731
    gain, signal = credit.synaptic_factors(synapses.form, derivative, unpool(error), synapses.error_gate)
    if synapses.pool is not None:  # only where L is the error itself: the pool and the filter then commute
        signal = error
    if state is not None:
        past, present, state = streams.carry(synapses.trace, synapses.delay, state, x, gain, signal, unpool)
        return present, past, state
    now = jnp.arange(steps, dtype=error.dtype)
    horizon = None if synapses.delay.keep_late else steps
    arrivals, regular = synapses.delay.arrivals(now), synapses.delay.regular
    matrix = credit.credit_matrix(synapses.trace, arrivals, now, horizon, regular)
    return gain * unpool(credit.remember(matrix, signal)), None, None


@jax.custom_batching.custom_vmap
def _credit(synapses, derivative, error, x, state):
    """Outside any vmap a step is a stretch of its own."""
    if synapses.signal is not None and synapses.signal.shape not in ((1,), (1, *error.shape)):
        # jax traces this body for its shapes under a vmap too, so that it cannot refuse a signal of many steps: used
        # outside of one, it gives a gradient of nan instead.
        synapses, error = dataclasses.replace(synapses, signal=None), jnp.full_like(error, jnp.nan)
    add = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)  # noqa: E731
    present, past, state = _over_time(synapses, add(derivative), add(error), add(x), state)
    return present[0], past, state


@_credit.def_vmap
def _credit_vmap(steps, batched, synapses, derivative, error, x, state):
    """The innermost vmapped axis is time: the credit of a step depends on the whole stretch."""
    if any(jax.tree.leaves((batched[0], batched[4]))):
        raise ValueError(
            "the innermost vmapped axis of a traced model is time, but its traces or its carried state vary along it: "
            "map over conditions outside the map over time"
        )
    spread = lambda leaf, is_batched: leaf if is_batched else jnp.broadcast_to(leaf, (steps, *leaf.shape))  # noqa: E731
    rows = jax.tree.map(spread, (derivative, error, x), tuple(batched[1:4]))
    result = _over_time(synapses, *rows, state)
    return result, (True, *jax.tree.map(lambda _: False, result[1:]))


@jax.custom_vjp
def learn_from_traces(z, past_z, activity, derivative, x, state, synapses):
    """Returns `activity`, and on the way back gives every write the credit that its trace earns.

    `activity` gets the plain cotangent, so that errors travel down undelayed, and `z` (which carries the weights'
    derivative and nothing else) gets gain ∘ λ. In a stream, `past_z` gets the credit of the steps remembered, and
    the cotangent of `state` is the state after the stretch, the one way out of a backward pass.
    """
    return activity


def _forward(z, past_z, activity, derivative, x, state, synapses):
    return activity, (derivative, x if state is not None else None, state, synapses)


def _backward(residuals, error):
    derivative, x, state, synapses = residuals
    present, past, state = _credit(synapses, derivative, error, x, state)
    return present, past, error, None, None, state, None


learn_from_traces.defvjp(_forward, _backward)
