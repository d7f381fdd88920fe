"""Where coders start: biases at geometric medians, weights of those that keep their k largest near the data.

Random directions are nearly orthogonal to data that fill few dimensions of their space. So the few latents that happen
to point along the data are chosen again and again, and the others are dead before they have learned. Here each latent
starts between a random direction and that of a vector of its own. Such latents overlap: k of them together say far too
much at first, and later, when they have parted, too little. A gain that all share takes that up while it is trained
beside the weights; otherwise those that are chosen would grow alone and leave the others behind.
"""

from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim.interpret.coder import Coder, unit_rows, with_fields
from cetsim.interpret.crosscoder import Crosscoder

NEAR = 0.8  # nearer, BatchTopK explains less with few latents; farther, more latents are dead


def near_data(coder: Coder | Crosscoder, rows: tuple, batch: tuple) -> tuple[Coder | Crosscoder, Float[Array, ""]]:
    """The coder with rows about half-way to vectors, and the gain with which the error on a batch is least.

    A latent reads and writes u + 0.8 (x - b)/‖x - b‖, made to have norm 1, where u is its random direction and x its
    vector; in a transcoder it reads an example's input and writes the same example's output, in a crosscoder x is of
    all sites.
    The gain is <ŷ, y - b>/<ŷ, ŷ>, where ŷ is what the coder says less its bias.

    **Arguments:** `coder`: with random rows of norm 1, `b_enc` of 0 and its other biases set. `rows`: a vector for each
    latent, `[latents, width]`, one array for each of the run's roles. `batch`: `[batch, width]`, likewise.
    """
    joint = isinstance(coder, Crosscoder)
    if joint:
        written = _towards(jnp.concatenate(coder.W_dec, axis=1), jnp.concatenate(_less(rows, coder.b_dec), axis=1))
        ends = list(accumulate(len(b) for b in coder.b_dec))[:-1]
        W_dec = tuple(jnp.split(written, ends, axis=1))
        coder = with_fields(coder, W_dec=W_dec, W_enc=tuple(w.T for w in W_dec))
    else:
        W_dec = _towards(coder.W_dec, rows[-1] - coder.b_dec)
        W_enc = W_dec.T if coder.b_in is None else _towards(coder.W_enc.T, rows[0] - coder.b_in).T
        coder = with_fields(coder, W_dec=W_dec, W_enc=W_enc)
    read, target, bias = (batch, batch, coder.b_dec) if joint else (batch[0], batch[-1], coder.b_dec)
    norms = coder.norms if joint else 1.0
    f = coder.sparsity.train(coder.preactivation(read), coder.b_enc, coder.learned, norms).latents
    said, wanted = jax.tree.leaves(coder.predict(f, read)), jax.tree.leaves(_less(target, bias))
    along, square = (sum(jnp.sum(a * b) for a, b in zip(said, other, strict=True)) for other in (wanted, said))
    return coder, jnp.where(along > 0, along / jnp.where(square > 0, square, 1), 1)


def geometric_median(x: Float[Array, "n width"], steps: int = 50) -> Float[Array, " width"]:
    """The point whose summed distance from all others is smallest, by Weiszfeld's iteration from the mean."""

    def closer(median, _):
        near = 1 / jnp.maximum(jnp.linalg.norm(x - median, axis=1), jnp.finfo(x.dtype).eps)
        return (near / near.sum()) @ x, None

    return jax.lax.scan(closer, x.mean(0), length=steps)[0]


def _towards(rows, data):
    """Rows of norm 1 between random ones and those of the data."""
    return unit_rows(rows + NEAR * unit_rows(data).astype(rows.dtype))


def _less(x, b):
    return jax.tree.map(jnp.subtract, x, b)
