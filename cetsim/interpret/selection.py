"""The k largest of many numbers, exactly, for a k that may be traced.

Sorting, or `jax.lax.top_k`, is far slower on CPU than what is done here: floats that are not negative are ordered as
their bits are, so that the k-th largest is found by bisection over whole numbers, and what is not smaller is kept.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BITS = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}  # by bytes of a float


def largest_of_rows(scores: Float[Array, "batch latents"], k) -> Float[Array, "batch 1"]:
    """The k-th largest score of each row, or the smallest above 0 where fewer than k are above 0.

    **Arguments:** `scores`: at least 0. `k`: at least 1, a whole number that may be traced.
    """
    return _bisected(scores, k, _counted)


def above_others_of_rows(scores: Float[Array, "batch latents"], k) -> Float[Array, "batch 1"]:
    """A bound that exactly the k largest scores of each row reach; where others equal the k-th, the k-th itself.

    Found sooner than the k-th largest: a row is done when so many reach a bound.

    **Arguments:** as of `largest_of_rows`.
    """
    return _bisected(scores, k, _counted, any_bound=True)


def largest_of_all(scores: Float[Array, "batch latents"], k) -> Float[Array, "1 1"]:
    """The k-th largest of all scores, or the smallest above 0 where fewer than k are above 0.

    **Arguments:** as of `largest_of_rows`.
    """
    # First along rows: a sum to a single number is not spread over cores.
    return _bisected(scores, k, lambda enough: _counted(enough).sum(dtype=jnp.int32)[None, None])


def _counted(enough):
    """How many of each row are true, `[rows, 1]`.

    XLA vectorises sums over any axis but the last, and bytes fill its vectors best, here of sums up to 16: three times
    as fast as a sum along rows.
    """
    parts = 16 if enough.shape[1] % 16 == 0 else 1
    by_lane = enough.reshape(len(enough), parts, -1).sum(axis=1, dtype=jnp.int8)
    return by_lane.sum(axis=1, keepdims=True, dtype=jnp.int32)


def _bisected(scores, k, count, any_bound: bool = False):
    # What is left is that `low` has at least k above or at it (or is the smallest there is), and `high` fewer.
    kind = _BITS[scores.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(scores, kind)
    low = jnp.ones_like(count(bits > 0), kind)
    high = jnp.broadcast_to(bits.max().astype(kind) + 1, low.shape)

    def halved(bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        reach = count(bits >= middle).astype(jnp.asarray(k).dtype)
        enough = reach >= k
        top = jnp.where(reach == k, middle + 1, high) if any_bound else high
        return jnp.where(enough, middle, low), jnp.where(enough, top, middle)

    low, _ = jax.lax.while_loop(lambda bounds: jnp.any(bounds[1] - bounds[0] > 1), halved, (low, high))
    return jax.lax.bitcast_convert_type(low, scores.dtype)
