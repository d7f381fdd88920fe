"""In which order a data set is gone through: exact shuffles that need no memory, whatever the size.

The i-th row of an epoch is π(i), π a keyed permutation of the rows that is computed for each i alone: a Feistel network
over the next power of 4, followed until it comes back into range (cycle walking). So any batch of any epoch is known
at once, on the host as in a program, and a run that is taken up again goes on in the same order.

**Reference:** Black and Rogaway (2002), "Ciphers with Arbitrary Finite Domains"; the mixing is MurmurHash3's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

ROUNDS = 10


def batch_rows(key: Array, step, batch: int, rows: int) -> Int[Array, " batch"]:
    """The rows of a batch, `step` counted from 0; every row comes once in each epoch.

    **Arguments:** `key`: of the order. `batch`: at most `rows`; one may hold the end of an epoch and the start of the
    next. `rows`: of the data set.
    """
    position = step * batch + jnp.arange(batch)
    epoch, within = position // rows, position % rows
    first = epoch[0]
    bits = [jax.random.bits(jax.random.fold_in(key, e), (ROUNDS,), jnp.uint32) for e in (first, first + 1)]
    permuted = [permutation(within, of_epoch, rows) for of_epoch in bits]
    return jnp.where(epoch == first, *permuted)


def permutation(index: Int[Array, " n"], bits: Array, rows: int) -> Int[Array, " n"]:
    """π of indices from 0 to `rows` - 1, which `bits` `[rounds]` say; exact for up to 2³⁰ rows."""
    half = max(1, -(-(rows - 1).bit_length() // 2))
    low = jnp.uint32(2**half - 1)

    def network(x):
        left, right = x >> half, x & low
        for key in bits:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        return (left << half) | right

    x = network(index.astype(jnp.uint32))
    walk = lambda x: jnp.where(x < rows, x, network(x))  # noqa: E731
    return jax.lax.while_loop(lambda x: jnp.any(x >= rows), walk, x).astype(index.dtype)


def _mixed(x):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
