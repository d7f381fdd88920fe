"""Where backpropagation is replaced by the three-factor rule: one function whose derivative is the trace's update.

Time is the axis of the map that is named "time"; the layer's forward pass takes its place along that axis, m, and hands
it on to the backward pass, so that the rule knows which of the mapped axes is time: the one along which m varies.
All others (batches, tokens, conditions, ensembles) are mapped over, inside and outside of time.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cetsim import checks, credit, streams
from cetsim.delays import AbstractDelay
from cetsim.events import Events
from cetsim.streams import StreamState, nothing
from cetsim.traces import AbstractTrace

DERIVATIVES = ("ideal", "cascade")
TIME = "time"


class NonTrainable:
    """Keeps a value out of the tree of arrays, where an optimiser would find it and decay its delays."""

    def __init__(self, value):
        self.value = value

    def __jax_array__(self):
        """Raises ValueError: Equinox saves what has this method, and without it would drop a trace without a word."""
        raise ValueError("a trace is no array: save an attached model by `cetsim.save`, or `detach` it first")

    def __array__(self, *args, **options):
        """Raises ValueError, as `__jax_array__`."""
        return self.__jax_array__()


class _Constant(eqx.Module):
    """An array whose values are known while a program is traced, kept from becoming an argument of its parts."""

    kept: NonTrainable = eqx.field(static=True)


class Synapses(eqx.Module):
    """The rule that one layer's synapses obey: what `attach` says of all layers, or `overrides` of one.

    **Fields:**

    - `trace`: what they remember. `delay`: when signals arrive.
    - `error_gate`: activity enters the trace only at steps where ‖∂ℓ/∂a‖² is above it; 0 is off. Where the activation
      is not known, a is what the layer itself returns.
    - `signal`: stands in for ∂ℓ/∂a, with its sign and by the steps that it belongs to: `[time]`, or `[time, *out]` of
      one layer. The gradient is then Σ_t signal(t) · trace, a sum over steps and over whatever else is mapped.
    - `form`: `"activation"`, `"preactivation"` or `"authors_linear"` (see `credit.synaptic_factors`); `attach` knows
      `"authors"` too, `"authors_linear"` for Linear and `"activation"` for other layers, as in the authors' code. Only
      `"preactivation"` does without the activation, which cannot be seen where a module's own code calls it.
    - `window`: steps that a stream remembers, by default those outside which 1e-6 of the kernel's area lies; None for
      segments that start empty.
    - `pool`: a map, linear in each step, behind the activation; the signal is filtered behind it, where it is smallest.
    - `derivative`: how f'(z), which errors pass on their way down, waits for them: `"ideal"`, as it was, or in a
      `"cascade"`, the layer's trace, at the soma (with `boundary="reset"`, since what a stream sends down at once
      cannot wait).
    - `events`: the steps that the rows of a segment belong to; None for all.
    - `length`: steps of the segment that are real, where padding follows; None for all.
    - `name`: of the layer, for errors.

    **Notes:** `attach` takes a `reward`, a scalar third factor `[time]` such as dopamine, in the place of a signal: by
    the steps that earned it, `delay` later seen by all post-neurons alike. Weights change along +Σ_t reward(t) · trace
    (the gradient is minus that), whatever the loss; a sum over steps and over batches, so divide it for a mean. Rewards
    given by the steps at which they come take `FixedDelay(0.0)`. The loss must read the model's outputs (their sum will
    do), or jax never asks for a gradient.
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
    length: Int[Array, ""] | None = None
    name: str = eqx.field(static=True, default="")

    def with_constants(self) -> "Synapses":
        """The same with all of trace and time that is known by now a constant, from which others are computed.

        The gate stays an argument: by it a `lax.cond` along time, which copies its arguments, is seen and refused.
        """
        constant = lambda leaf: leaf if checks.is_traced(leaf) else _Constant(NonTrainable(leaf))  # noqa: E731
        when = lambda synapses: (synapses.trace, synapses.delay, synapses.events, synapses.length)  # noqa: E731
        none = lambda node: node is None  # noqa: E731
        return eqx.tree_at(when, self, jax.tree.map(constant, when(self)), is_leaf=none)

    def whole(self) -> "Synapses":
        """The same with its constants back in their places."""
        constant = lambda node: isinstance(node, _Constant)  # noqa: E731
        return jax.tree.map(lambda node: node.kept.value if constant(node) else node, self, is_leaf=constant)

    def unpool(self, like, rows):
        """The transpose of the pool, from rows behind it, `[time, *pooled]`, to rows of the shape of `like`."""
        if self.pool is None:
            return rows
        one = jax.linear_transpose(self.pool, jax.ShapeDtypeStruct(like.shape[1:], rows.dtype))
        return jax.vmap(lambda row: one(row)[0])(rows)

    def real(self, rows):
        """Rows of a segment with those of padding, and of places in which no event happened, set to 0."""
        if self.events is not None:
            rows = self.events.only(rows)
        if self.length is None:
            return rows
        now = jnp.arange(rows.shape[0]) if self.events is None else self.events.times
        return jnp.where((now < self.length).reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros_like(rows))

    def handed(self, error):
        """The learning signal: the one handed in, in the shape of the error that it stands in for, or the error."""
        if self.signal is None:
            return error
        if self.signal.shape not in (error.shape, error.shape[:1]):
            shapes = f"{error.shape} or {error.shape[:1]}"
            raise ValueError(f"layer {self.name!r}: `signal` must have shape {shapes}, got {self.signal.shape}")
        spread = self.signal.reshape(self.signal.shape + (1,) * (error.ndim - self.signal.ndim))
        return jnp.broadcast_to(spread, error.shape).astype(error.dtype)


def place_in_time(name: str) -> Int[Array, ""]:
    """m, the layer's place along the axis of time.

    **Raises:** ValueError where no map named "time" is around it.
    """
    try:
        return jax.lax.axis_index(TIME)
    except NameError:
        raise ValueError(
            f"layer {name!r} has a trace and must know which axis is time: map the model over the steps of a segment "
            'by `jax.vmap(model, axis_name="time")(x)`, x [time, ...], inside the loss; any other vmap is a batch. A '
            "loop, `lax.scan` or `lax.map` over steps cannot do it, since what a step's activity earns is known only "
            "when later signals come: map over steps, or cut time into segments with boundary='carry'. To evaluate "
            "without learning, `cetsim.detach` the model."
        ) from None


def _over_time(synapses: Synapses, derivative, error, x, state: StreamState | None):
    """Credit of a segment, cotangents of the pre-activations, `[time, *out]`; what errors pass; what is carried on."""
    synapses = synapses.whole()
    rows, events, delay = error.shape[0], synapses.events, synapses.delay
    if events is not None and events.times.shape[0] != rows:
        many = f"over {rows} steps, but there are {events.times.shape[0]} events"
        raise ValueError(f"layer {synapses.name!r}: the model is mapped {many}")
    with checks.once(delay, events):
        now, steps = (jnp.arange(rows), rows) if events is None else (events.times, events.steps)
        arrivals = delay.arrivals(now) if state is None else None
    end = steps if synapses.length is None else synapses.length
    from_above, error = synapses.real(error), synapses.real(synapses.handed(error))
    cascades = synapses.derivative == "cascade" and derivative is not None
    matrix, passed = None, derivative
    if state is None:
        horizon, regular = None if delay.keep_late else end, delay.regular and events is None
        matrix = credit.credit_matrix(synapses.trace, arrivals, now, horizon, regular)
        _warn_of_lost_signals(synapses.name, error, matrix)
        if cascades:
            passed = credit.recall(matrix, synapses.real(derivative)).astype(derivative.dtype)
    unpool = lambda rows: synapses.unpool(derivative, rows)  # noqa: E731
    gain, signal = credit.synaptic_factors(synapses.form, derivative, unpool(error), synapses.error_gate, passed)
    gain = synapses.real(gain)
    if synapses.pool is not None:  # only where L is the error itself: the pool and the filter then commute
        signal = error
    if state is not None:
        past, present, state = streams.carry(
            synapses.trace, delay, state, x, gain, signal, unpool, events, synapses.length
        )
        # A sum over a map that the state does not have must show: JAX adds up what varies along it, and nothing else.
        runs = state.runs + nothing(from_above, x).astype(state.runs.dtype)
        return present, None, past, dataclasses.replace(state, runs=runs)
    down = passed * unpool(from_above) if cascades else None
    return gain * unpool(credit.remember(matrix, signal)), down, None, None


NOTHING_ARRIVES = (
    "so that its weights do not learn: make segments longer than the delay, read signals that come after the end "
    "(`keep_late=True`), or let time go on from segment to segment (boundary='carry')"
)


def why_nothing_arrives(synapses: Synapses, rows: int) -> str:
    """What to tell a user whose delay, as far as known before tracing, is as long as the segment; else nothing."""
    steps = rows if synapses.events is None else synapses.events.steps
    if synapses.window is not None or synapses.delay.keep_late or synapses.delay.min_steps < steps:
        return ""
    late = f"they come {synapses.delay.min_steps} steps late in a segment of {steps}"
    return f"no learning signal reaches layer {synapses.name!r}: {late}, {NOTHING_ARRIVES}"


def _warn_of_lost_signals(name: str, error, matrix) -> None:
    """Warns where there are learning signals, but none that arrives; seen outside of jit alone."""
    if any(map(checks.is_traced, (error, matrix))):
        return
    sent = np.any(np.asarray(error) != 0, axis=tuple(range(1, error.ndim)))
    if np.any(sent) and not np.any(np.asarray(matrix)[sent]):
        lost = "those of all steps whose error is not 0 would come after the end of the segment"
        warnings.warn(f"no learning signal reaches layer {name!r}: {lost}, {NOTHING_ARRIVES}", stacklevel=2)


class _Axis(NamedTuple):
    """An axis that a map put in front of the arguments of the rule.

    **Fields:**

    - `is_time`: whether m varies along it.
    - `along`: which leaves of the arguments have it.
    - `carried`: whether it is an axis of the stream's state, which has an entry for each of its own.
    """

    is_time: bool
    along: tuple[bool, ...]
    carried: bool


def _mapped_over_time(axes: tuple[_Axis, ...], arguments):
    """`_over_time` under the maps of all `axes`, the innermost first."""
    leaves, structure = jax.tree.flatten(arguments)

    def strip(axes, in_time, *leaves):
        if not axes:
            return _over_time(*jax.tree.unflatten(structure, leaves))
        *inside, axis = axes
        if axis.is_time:
            return strip(inside, axis.along, *leaves)
        behind = in_time or (False,) * len(leaves)  # time stays in front of the axes inside of it
        places = tuple(int(timed) if has else None for has, timed in zip(axis.along, behind, strict=True))
        at = 0 if in_time is None else 1
        return jax.vmap(lambda *leaves: strip(inside, in_time, *leaves), places, (at, at, 0, 0))(*leaves)

    return strip(axes, None, *leaves)


def _credit(axes: tuple[_Axis, ...] = ()):
    """The rule under the maps of `axes`: a function of `(m, arguments)`, the arguments those of `_over_time`.

    Every map that it meets adds an axis. Once time is among them it is evaluated, and maps outside see plain
    operations; unless a stream's state has an entry for each of a map outside, which then must be met first.
    """

    @jax.custom_batching.custom_vmap
    def rule(m, arguments):
        # Traced for its shapes alone, or run where an axis named "time" is no map's.
        synapses, derivative, error, _, state = arguments
        unknown = jnp.full_like(error if derivative is None else derivative, jnp.nan)
        cascades = synapses.derivative == "cascade" and derivative is not None and state is None
        past = None
        if state is not None:
            past = jnp.full_like(state.gain, jnp.nan)
            state = dataclasses.replace(state, runs=jnp.full_like(state.runs, jnp.nan))
        return unknown, unknown if cascades else None, past, state

    @rule.def_vmap
    def mapped(size, batched, m, arguments):
        is_time, along = bool(batched[0]), batched[1]
        arguments, along, carried = _with_axis(size, is_time, along, arguments, axes)
        within = (*axes, _Axis(is_time, tuple(jax.tree.leaves(along)), carried))
        left = 0 if arguments[4] is None else arguments[4].axes - sum(axis.carried for axis in within)
        evaluated = any(axis.is_time for axis in within) and left == 0
        result = _mapped_over_time(within, arguments) if evaluated else _credit(within)(m, arguments)
        has = (True, True, not (is_time or carried), not (is_time or carried))
        return result, tuple(
            jax.tree.map(lambda _, flag=flag: flag, tree) for tree, flag in zip(result, has, strict=True)
        )

    return rule


def _with_axis(size: int, is_time: bool, along, arguments, axes):
    """The arguments with a new axis in front of all that must have it; which leaves have it; whether the state does."""
    synapses, *rows, state = arguments
    spread = lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (size, *leaf.shape))  # noqa: E731
    every = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
    rows = jax.tree.map(spread, rows, list(along[1:4]))
    varies = any(jax.tree.leaves(along[4]))
    if is_time and (varies or any(jax.tree.leaves(along[0]))):
        raise ValueError(
            f"layer {synapses.name!r}: its trace, its delay or its stream's state varies along time, as all does that "
            "stands in a `lax.cond` or `lax.switch` whose predicate varies along it: use `jnp.where` on outputs instead"
        )
    carried = state is not None and not (is_time or varies) and sum(axis.carried for axis in axes) < state.axes
    if state is not None and not (is_time or varies or carried):
        raise ValueError(
            f"layer {synapses.name!r} runs {size} times a step, in a map inside the one over time, but its stream has "
            "one state: `streaming_init(model, example, batch=...)` makes one for each"
        )
    state = jax.tree.map(spread, state, along[4]) if varies else state
    return (synapses, *rows, state), (along[0], *every(rows), jax.tree.map(lambda _: varies or carried, state)), carried


@functools.partial(jax.custom_jvp)
def _at_first_order(arrays):
    """The arrays themselves, whose derivative is refused: those of a derivative that is no derivative."""
    return arrays


@functools.partial(_at_first_order.defjvp, symbolic_zeros=True)
def _refuse(primals, tangents):
    zero = jax.custom_derivatives.SymbolicZero
    if all(isinstance(tangent, zero) for tangent in jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, zero))):
        return primals[0], tangents[0]
    raise ValueError(
        "second derivatives through the weights or inputs of a model with traces are not defined: its gradient is the "
        "update that synapses make, not the gradient of a function (derivatives in delays and rates are)"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def learn_from_traces(warning: str, z, past_z, activity, below, derivative, x, state, synapses, m):
    """Returns `activity`, and on the way back gives every write the credit that its trace earns.

    `activity` gets the plain cotangent, so that errors travel down undelayed, and `z` (which carries the weights'
    derivative and nothing else) gets gain ∘ λ. Where the derivative is remembered by a cascade, errors travel down
    through `below` instead, pre-activations that are differentiable in the input alone. In a stream, `past_z` gets the
    credit of the steps remembered, and the cotangent of `state` is the state after the segment, the one way out of a
    backward pass. The output varies along every axis along which the rule does, time first of all, so that its
    cotangent does too and is not summed over one. A `warning` is given where the model is to learn.
    """
    return activity + nothing(m, synapses, state).astype(activity.dtype)


def _forward(warning, z, past_z, activity, below, derivative, x, state, synapses, m):
    if warning:
        warnings.warn(warning, stacklevel=2)
    z, activity = _at_first_order((z, activity))
    kept = (derivative, x if state is not None else None, state, synapses, m, jnp.zeros((), z.dtype))
    return activity + nothing(m, synapses, state).astype(activity.dtype), kept


def _backward(warning, residuals, error):
    derivative, x, state, synapses, m, like = residuals
    present, down, past, state = _credit()(m, (synapses, derivative, error, x, state))
    present, down, past = jax.tree.map(lambda rows: rows.astype(like.dtype), (present, down, past))
    return present, past, error, down, None, None, state, None, None


learn_from_traces.defvjp(_forward, _backward)
