"""What a layer carries from one stretch of time to the next: past activity, and signals still under way."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim.credit import credit_matrix, remember
from cetsim.delays import AbstractDelay
from cetsim.traces import AbstractTrace


class StreamState(eqx.Module):
    """The factors of the last `window` steps and the signals of the last `pending` ones, oldest first.

    **Fields:** `x`: presynaptic activity, `[window, *in]`. `gain`: the post-synaptic factor of e, `[window, *out]`.
    `signal`: learning signals by the step they belong to, `[pending, *out]`, smaller where a pool stands behind.
    """

    x: Float[Array, "window ..."]
    gain: Float[Array, "window ..."]
    signal: Float[Array, "pending ..."]


def init_state(
    delay: AbstractDelay, window: int, x_shape: tuple, out_shape: tuple, signal_shape: tuple, dtype=float
) -> StreamState:
    """A layer with no past. `window`: lags that the kernel reaches back, in steps."""
    past, pending = (window, *out_shape), (delay.max_steps, *signal_shape)
    return StreamState(jnp.zeros((window, *x_shape), dtype), jnp.zeros(past, dtype), jnp.zeros(pending, dtype))


def carry(trace: AbstractTrace, delay: AbstractDelay, state: StreamState, x, gain, signal, unpool=lambda rows: rows):
    """Credit of every remembered write from the signals that arrive in this stretch, and the state after it.

    **Arguments:** `x`: `[time, *in]`. `gain`, `signal`: `[time, *out]`, the factors of this stretch's own steps.
    `unpool`: takes rows of the signal's shape to rows of the gain's, where a pool stands between.

    **Returns:** `(past, present, state)`: gain ∘ λ for the steps held in `state`, `[window, *out]`, and for this
    stretch's, `[time, *out]`; the gradient of an affine layer is its weight-vjp at both.
    """
    if not delay.placed:
        raise ValueError("a stream of random delays needs its place in time: attach `delay.at(step)` for each stretch")
    window, pending, steps = state.gain.shape[0], state.signal.shape[0], gain.shape[0]
    arrivals = delay.arrivals(jnp.arange(-pending, steps, dtype=gain.dtype))
    writes = jnp.arange(-window, steps, dtype=gain.dtype)
    matrix = credit_matrix(trace, arrivals, writes, horizon=steps, regular=delay.regular)
    xs, gains, signals = (
        jnp.concatenate([old, new]) for old, new in ((state.x, x), (state.gain, gain), (state.signal, signal))
    )
    credit = gains * unpool(remember(matrix, signals))
    return credit[:window], credit[window:], StreamState(xs[steps:], gains[steps:], signals[steps:])
