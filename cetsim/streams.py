"""What a layer carries from one stretch of time to the next: past activity, and signals still under way."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim.credit import credit_matrix, remember
from cetsim.delays import AbstractDelay
from cetsim.events import Events
from cetsim.traces import AbstractTrace


class StreamState(eqx.Module):
    """The factors of the last `window` steps and the signals of the last `pending` ones, oldest first.

    In a stream of events these are the last events instead, in their places, with the steps at which they happened.

    **Fields:** `x`: presynaptic activity, `[window, *in]`. `gain`: the post-synaptic factor of e, `[window, *out]`.
    `signal`: learning signals by the step they belong to, `[pending, *out]`, smaller where a pool stands behind.
    `written`, `sent`: steps to which factors and signals belong, counted from the start of the coming stretch and so
    negative, `[window]` and `[pending]`; None where every step has its own.
    """

    x: Float[Array, "window ..."]
    gain: Float[Array, "window ..."]
    signal: Float[Array, "pending ..."]
    written: Float[Array, " window"] | None = None
    sent: Float[Array, " pending"] | None = None


def init_state(
    delay: AbstractDelay,
    window: int,
    x_shape: tuple,
    out_shape: tuple,
    signal_shape: tuple,
    dtype=float,
    events: Events | None = None,
) -> StreamState:
    """A layer with no past. `window`: lags that the kernel reaches back, in steps. `events`: of a stretch, if few."""
    pending, times = delay.max_steps, (None, None)
    if events is not None:  # room for those of every stretch that window and delay reach back into
        window, pending = (-(-steps // events.steps) * events.times.shape[0] for steps in (window, pending))
        times = -jnp.ones(window, events.times.dtype), -jnp.ones(pending, events.times.dtype)
    shapes = (window, *x_shape), (window, *out_shape), (pending, *signal_shape)
    return StreamState(*(jnp.zeros(shape, dtype) for shape in shapes), *times)


def carry(
    trace: AbstractTrace,
    delay: AbstractDelay,
    state: StreamState,
    x,
    gain,
    signal,
    unpool=lambda rows: rows,
    events: Events | None = None,
):
    """Credit of every remembered write from the signals that arrive in this stretch, and the state after it.

    **Arguments:** `x`: `[time, *in]`. `gain`, `signal`: `[time, *out]`, the factors of this stretch's own steps.
    `unpool`: takes rows of the signal's shape to rows of the gain's, where a pool stands between. `events`: the steps
    that the rows belong to, where these are not all.

    **Returns:** `(past, present, state)`: gain ∘ λ for the steps held in `state`, `[window, *out]`, and for this
    stretch's, `[time, *out]`; the gradient of an affine layer is its weight-vjp at both.
    """
    if not delay.placed:
        raise ValueError("a stream of random delays needs its place in time: attach `delay.at(step)` for each stretch")
    window, pending, rows = state.gain.shape[0], state.signal.shape[0], gain.shape[0]
    if events is None:
        steps, regular = rows, delay.regular
        written, sent = (jnp.arange(-past, steps, dtype=gain.dtype) for past in (window, pending))
    else:
        steps, regular = events.steps, False
        written, sent = (jnp.concatenate([past, events.times]) for past in (state.written, state.sent))
    matrix = credit_matrix(trace, delay.arrivals(sent), written, horizon=steps, regular=regular)
    xs, gains, signals = (
        jnp.concatenate([old, new]) for old, new in ((state.x, x), (state.gain, gain), (state.signal, signal))
    )
    credit = gains * unpool(remember(matrix, signals))
    times = (None, None) if events is None else (written[rows:] - steps, sent[rows:] - steps)
    return credit[:window], credit[window:], StreamState(xs[rows:], gains[rows:], signals[rows:], *times)
