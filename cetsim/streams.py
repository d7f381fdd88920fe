"""What a layer carries from one segment of time to the next: past activity, and signals still under way."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cetsim.checks import is_traced, once
from cetsim.credit import credit_matrix, remember
from cetsim.delays import AbstractDelay
from cetsim.events import Events
from cetsim.steps import wider
from cetsim.traces import AbstractTrace

BLOCKS, FEWEST = 8, 32  # parts of a segment in which signals meet writes, at most, and writes of each, at least


class StreamState(eqx.Module):
    """The factors of the last `window` steps and the signals of the last `pending` ones, oldest first.

    In a stream of events these are the last events instead, in their places, with the steps at which they happened. All
    are floats, since the state after a segment leaves a backward pass as the cotangent of the one before.

    **Fields:**

    - `x`: presynaptic activity, `[window, *in]`. `gain`: the post-synaptic factor of e, `[window, *out]`.
    - `signal`: learning signals by the step they belong to, `[pending, *out]`, smaller where a pool stands behind.
    - `runs`: 1; a layer that ran twice in a segment, or not at all, gives it back as another number.
    - `written`, `sent`: steps to which factors and signals belong, counted from the start of the coming segment and so
      negative, `[window]` and `[pending]`; None where every step has its own.
    - `axes`: how many axes stand in front of all these, one for each map over which a layer has many streams.
    """

    x: Float[Array, "..."]
    gain: Float[Array, "..."]
    signal: Float[Array, "..."]
    runs: Float[Array, "..."]
    written: Float[Array, "..."] | None = None
    sent: Float[Array, "..."] | None = None
    axes: int = eqx.field(static=True, default=0)


def init_state(
    delay: AbstractDelay,
    window: int,
    x_shape: tuple,
    out_shape: tuple,
    signal_shape: tuple,
    dtype=float,
    events: Events | None = None,
    batch: tuple[int, ...] = (),
) -> StreamState:
    """A layer with no past.

    **Arguments:**

    - `window`: lags that the kernel reaches back, in steps.
    - `events`: of a segment, if few.
    - `batch`: sizes of the maps over which the layer has streams of its own, the outermost first.

    **Raises:** ValueError where steps of events, kept as floats, could not be told apart.
    """
    pending, times = delay.max_steps, (None, None)
    if events is not None:  # room for those of every segment that window and delay reach back into
        exact, reach = wider(dtype, jnp.result_type(float)), max(window, pending) + events.steps
        if reach > 2 ** (jnp.finfo(exact).nmant + 1):
            raise ValueError(
                f"a stream of events reaches back {reach} steps, too many to count in {exact}: use float64"
            )
        window, pending = (-(-steps // events.steps) * events.times.shape[0] for steps in (window, pending))
        times = -jnp.ones((*batch, window), exact), -jnp.ones((*batch, pending), exact)
    shapes = (window, *x_shape), (window, *out_shape), (pending, *signal_shape)
    rows = (jnp.zeros((*batch, *shape), dtype) for shape in shapes)
    return StreamState(*rows, jnp.ones(batch, dtype), *times, axes=len(batch))


def carry(
    trace: AbstractTrace,
    delay: AbstractDelay,
    state: StreamState,
    x,
    gain,
    signal,
    unpool=lambda rows: rows,
    events: Events | None = None,
    length: Int[Array, ""] | None = None,
):
    """Credit of every remembered write from the signals that arrive in this segment, and the state after it.

    **Arguments:**

    - `x`: `[time, *in]`.
    - `gain`, `signal`: `[time, *out]`, the factors of this segment's own steps.
    - `unpool`: takes rows of the signal's shape to rows of the gain's, where a pool stands between.
    - `events`: the steps that the rows belong to, where these are not all.
    - `length`: steps of the segment, where padding follows.

    **Returns:** `(past, present, state)`: gain ∘ λ for the steps held in `state`, `[window, *out]`, and for this
    segment's, `[time, *out]`; the gradient of an affine layer is its weight-vjp at both.
    """
    if not delay.placed:
        raise ValueError("a stream of random delays needs its place in time: attach `delay.at(step)` for each segment")
    window, pending, rows = state.gain.shape[0], state.signal.shape[0], gain.shape[0]
    if events is None:
        steps, regular = rows if length is None else length, delay.regular
        with once(delay):
            written, sent = (jnp.arange(-past, rows) for past in (window, pending))
            arrivals = delay.arrivals(sent)
    else:
        steps, regular = events.steps, False
        written, sent = (
            jnp.concatenate([past.astype(events.times.dtype), events.times]) for past in (state.written, state.sent)
        )
        arrivals = delay.arrivals(sent)
    matrix = credit_matrix(trace, arrivals, written, horizon=steps, regular=regular)
    xs, gains, signals = (
        jnp.concatenate([old, new.astype(old.dtype)])
        for old, new in ((state.x, x), (state.gain, gain), (state.signal, signal))
    )
    first = -arrivals[0] - window if regular else None
    past = _earned(trace, matrix[:, :window], signals, state.gain, unpool, first)
    first = first + window if regular else None
    present = _earned(trace, matrix[:, window:], signals, gain.astype(gains.dtype), unpool, first)
    last = lambda values, size: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        values, rows if length is None else length, size
    )
    times = (None, None)
    if events is not None:
        times = ((written[rows:] - steps).astype(state.written.dtype), (sent[rows:] - steps).astype(state.sent.dtype))
    kept = last(xs, window), last(gains, window), last(signals, pending)
    new_state = StreamState(*kept, state.runs, *times, state.axes)
    return past, present, new_state


def nothing(*tree) -> Int[Array, ""]:
    """Zero, but along every axis along which one of the arrays is mapped."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    leaves = [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, keys, strict=True)]
    return sum((0 * jnp.ravel(leaf)[0].astype(jnp.int32) for leaf in leaves), jnp.zeros((), jnp.int32))


def _earned(trace: AbstractTrace, matrix, signals, gain, unpool, first):
    """gain ∘ λ, where write s meets the signals from `first` + s on, and of these only so many.

    Writes go in blocks, each with the signals that one of them meets: a product with all others is one with zeros. What
    lies beyond the trace's window of a tail as small as rounding counts as 0.

    **Arguments:** `matrix`: M, `[signals, writes, *post]`. `signals`: L, `[signals, *out]`. `first`: may be traced;
    None where signals are in no order.

    **Returns:** `[writes, *out]`.
    """
    earned = lambda matrix, signals, gain: gain * unpool(remember(matrix, signals))  # noqa: E731
    count, writes = matrix.shape[:2]
    size, dtype = max(FEWEST, -(-writes // BLOCKS)), wider(matrix.dtype, signals.dtype)
    if first is None or writes <= size or any(map(is_traced, jax.tree.leaves(trace))):
        return earned(matrix, signals, gain)
    width = size + trace.window(max(float(jnp.finfo(dtype).eps), 1e-14))
    if 4 * width > 3 * count:  # little would be left out
        return earned(matrix, signals, gain)
    zero = nothing(signals).astype(matrix.dtype)

    def block(i, credit):
        start = jnp.minimum(i * size, writes - size)
        at = jnp.clip(first + start, 0, count - width)
        of_block = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        near, met = (jax.lax.dynamic_slice_in_dim(rows, at, width) for rows in (matrix, signals))
        # A block of M for each stream of a batch: else XLA transposes all their signals, for one large product.
        own = earned(of_block(near, axis=1) + zero, met, of_block(gain))
        return jax.lax.dynamic_update_slice_in_dim(credit, own, start, 0)

    return jax.lax.fori_loop(0, -(-writes // size), block, jnp.zeros(gain.shape, jnp.result_type(gain, dtype)))
