"""Where backpropagation is replaced by the three-factor rule: one function whose derivative is the trace's update."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import credit, streams
from cetsim.delays import AbstractDelay
from cetsim.events import Events
from cetsim.streams import StreamState
from cetsim.traces import AbstractTrace

DERIVATIVES = ("ideal", "cascade")


class Synapses(eqx.Module):
    """The rule that one layer's synapses obey.

    **Fields:** `trace`: what they remember. `delay`: when signals arrive. `error_gate`: activity enters the trace only
    where ‖∂ℓ/∂a‖² is above it (0 is off). `signal`: stands in for ∂ℓ/∂a if given, `[time]` or `[time, *out]`.
    `form`: of the rule. `window`: steps that a stream remembers; None for stretches that start empty. `pool`: a map,
    linear in each step, behind the activation; the signal is filtered behind it, where it is smallest. `derivative`:
    how f'(z), which errors pass on their way down, waits for them: `"ideal"`, as it was, or in a `"cascade"`, the
    layer's trace, at the soma. `events`: the steps that the rows of a stretch belong to; None for all.
    """

    trace: AbstractTrace
    delay: AbstractDelay
    error_gate: Float[Array, ""]
    signal: Float[Array, "time ..."] | None
    form: str = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    pool: Callable | None = eqx.field(static=True, default=None)
    derivative: str = eqx.field(static=True, default="ideal")
    events: Events | None = None

    def unpool(self, like, rows):
        """The transpose of the pool, from rows behind it, `[time, *pooled]`, to rows of the shape of `like`."""
        if self.pool is None:
            return rows
        one = jax.linear_transpose(self.pool, jax.ShapeDtypeStruct(like.shape[1:], like.dtype))
        return jax.vmap(lambda row: one(row)[0])(rows)


def _over_time(synapses: Synapses, derivative, error, x, state: StreamState | None):
    """Credit of a stretch, cotangents of the pre-activations, `[time, *out]`; what errors pass; what is carried on."""
    rows, events, delay = error.shape[0], synapses.events, synapses.delay
    if events is not None and events.times.shape[0] != rows:
        raise ValueError(f"the model is mapped over {rows} steps, but there are {events.times.shape[0]} events")
    from_above = error if events is None else events.only(error)
    if synapses.signal is not None:
        handed = jnp.asarray(synapses.signal, error.dtype)
        if handed.shape not in (error.shape, (rows,)):
            raise ValueError(f"`signal` must have shape {error.shape} or {(rows,)}, got {handed.shape}")
        error = jnp.broadcast_to(handed.reshape(handed.shape + (1,) * (error.ndim - handed.ndim)), error.shape)
    if events is not None:
        error = events.only(error)
    now, steps = (jnp.arange(rows, dtype=error.dtype), rows) if events is None else (events.times, events.steps)
    cascades = synapses.derivative == "cascade" and derivative is not None
    matrix, passed = None, derivative
    if state is None:
        horizon = None if delay.keep_late else steps
        regular = delay.regular and events is None
        matrix = credit.credit_matrix(synapses.trace, delay.arrivals(now), now, horizon, regular)
        if cascades:
            passed = credit.recall(matrix, derivative if events is None else events.only(derivative))
    unpool = lambda rows: synapses.unpool(derivative, rows)  # noqa: E731
    gain, signal = credit.synaptic_factors(synapses.form, derivative, unpool(error), synapses.error_gate, passed)
    gain = gain if events is None else events.only(gain)
    if synapses.pool is not None:  # only where L is the error itself: the pool and the filter then commute
        signal = error
    if state is not None:
        past, present, state = streams.carry(synapses.trace, delay, state, x, gain, signal, unpool, events)
        return present, None, past, state
    down = passed * unpool(from_above) if cascades else None
    return gain * unpool(credit.remember(matrix, signal)), down, None, None


@jax.custom_batching.custom_vmap
def _credit(synapses, derivative, error, x, state):
    """Outside any vmap a step is a stretch of its own."""
    many_signals = synapses.signal is not None and synapses.signal.shape not in ((1,), (1, *error.shape))
    many_events = synapses.events is not None and synapses.events.times.shape != (1,)
    if many_signals or many_events:
        # jax traces this body for its shapes under a vmap too, so that it cannot refuse a signal of many steps: used
        # outside of one, it gives a gradient of nan instead.
        synapses, error = dataclasses.replace(synapses, signal=None), jnp.full_like(error, jnp.nan)
        events = synapses.events if not many_events else Events(synapses.events.times[:1], synapses.events.steps)
        synapses = dataclasses.replace(synapses, events=events)
    add = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)  # noqa: E731
    present, down, past, state = _over_time(synapses, add(derivative), add(error), add(x), state)
    return present[0], None if down is None else down[0], past, state


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
    along_time = (True, result[1] is not None or None, *jax.tree.map(lambda _: False, result[2:]))
    return result, along_time


@jax.custom_vjp
def learn_from_traces(z, past_z, activity, below, derivative, x, state, synapses):
    """Returns `activity`, and on the way back gives every write the credit that its trace earns.

    `activity` gets the plain cotangent, so that errors travel down undelayed, and `z` (which carries the weights'
    derivative and nothing else) gets gain ∘ λ. Where the derivative is remembered by a cascade, errors travel down
    through `below` instead, pre-activations that are differentiable in the input alone. In a stream, `past_z` gets the
    credit of the steps remembered, and the cotangent of `state` is the state after the stretch, the one way out of a
    backward pass.
    """
    return activity


def _forward(z, past_z, activity, below, derivative, x, state, synapses):
    return activity, (derivative, x if state is not None else None, state, synapses)


def _backward(residuals, error):
    derivative, x, state, synapses = residuals
    present, down, past, state = _credit(synapses, derivative, error, x, state)
    return present, past, error, down, None, None, state, None


learn_from_traces.defvjp(_forward, _backward)
