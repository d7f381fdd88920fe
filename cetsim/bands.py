"""Credit over consecutive steps as products with the blocks of a band, where a kernel is short beside a segment.

A kernel that is known before a program is traced reaches back a number of lags that is known too: beyond them lies
less than rounding. The matrix M[r, s] = w(a_r - t_s) then has a diagonal band, alike for every write, and all else of
it is never multiplied. What is left out is below rounding, so that results are those of the whole matrix.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from cetsim import checks, steps
from cetsim.traces import AbstractTrace

BLOCKS = 3  # of the signals that a block of writes meets, beside the first: few large products, little beyond the band
LEAST = 16  # writes in a block
WORTH = 0.75  # share of the whole matrix up to which its band is cheaper
ROUNDING = 1 / 16  # share of the precision that what is left out may come to, as area of |w|


class Band(eqx.Module):
    """What `remember` needs of a credit matrix over consecutive arrivals and writes, without what is 0.

    **Fields:**

    - `blocks`: weights that block b of the writes meets block b + k of the signals by, `[k, signals, writes]`.
    - `met`: signals that are met here at all.
    - `first`: lag between the first arrival and the first write. `writes`: their number.
    """

    blocks: Float[Array, "k size size"]
    met: Bool[Array, " signals"]
    first: int = eqx.field(static=True)
    writes: int = eqx.field(static=True)

    def remember(self, signal: Shaped[Array, "signals *out"]) -> Float[Array, "writes *out"]:
        """λ = Mᵀ L."""
        dtype = steps.wider(self.blocks.dtype, signal.dtype)
        met = self.met.reshape(-1, *(1,) * (signal.ndim - 1))
        signal = jnp.where(met, signal, jnp.zeros_like(signal)).astype(dtype)
        many, size, _ = self.blocks.shape
        groups = -(-self.writes // size)
        length = (groups + many - 1) * size  # signals that any write meets, the first at the first write's own step
        signal = signal[max(-self.first, 0) :]
        behind = length - max(self.first, 0) - len(signal)
        around = [(max(self.first, 0), max(behind, 0))] + [(0, 0)] * (signal.ndim - 1)
        rows = jnp.pad(signal, around)[:length].reshape(groups + many - 1, size, *signal.shape[1:])
        credit = sum(
            jnp.einsum("gr...,rw->gw...", rows[k : k + groups], block.astype(dtype), precision="highest")
            for k, block in enumerate(self.blocks)
        )
        return credit.reshape(groups * size, *signal.shape[1:])[: self.writes]


def of(trace: AbstractTrace, arrival_steps, write_steps, horizon) -> Band | None:
    """The band of a credit matrix over consecutive steps, or None where it is not known or the whole is cheaper."""
    leaves = (*jax.tree.leaves(trace), arrival_steps, write_steps)
    if trace.shape or any(map(checks.is_traced, leaves)) or not (len(arrival_steps) and len(write_steps)):
        return None
    signals, writes = len(arrival_steps), len(write_steps)
    with checks.once(trace):
        weights = np.asarray(trace.weights(jnp.arange(signals + writes)))
    reach = _reach(weights)
    size = max(-(-(reach - 1) // BLOCKS), LEAST)
    many = -(-(reach - 1) // size) + 1
    if many * size > WORTH * signals or size > writes:
        return None
    lags = size * np.arange(many)[:, None, None] + np.arange(size)[:, None] - np.arange(size)
    blocks = np.where((lags >= 0) & (lags < reach), weights[np.clip(lags, 0, reach - 1)], 0)
    met = arrival_steps >= 0
    if horizon is not None:
        met &= arrival_steps < horizon
    first = int(np.asarray(arrival_steps)[0] - np.asarray(write_steps)[0])
    return Band(jnp.asarray(blocks, weights.dtype), met, first, writes)


def _reach(weights: np.ndarray) -> int:
    """Number of lags behind which less than rounding lies."""
    beyond = np.cumsum(np.abs(weights)[::-1])[::-1]
    left_out = beyond <= ROUNDING * np.finfo(weights.dtype).eps * beyond[0]
    return max(int(np.argmax(left_out)) if left_out.any() else len(weights), 1)
