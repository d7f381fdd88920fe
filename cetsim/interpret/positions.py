"""Where a token is: sine waves, rotations, and learned tables that are stretched to another grid."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks

RESAMPLINGS = ("bicubic", "antialiased", "dino")
BASE = 10_000.0


def sincos(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed positions of a grid of patches, `[patches, width]`: sines and cosines of the column, then of the row.

    **Raises:** ValueError for a width that is no multiple of 4, or a grid of other than two axes.

    **Reference:** He et al., Masked autoencoders are scalable vision learners (2021), appendix and code.
    """
    if width % 4 or len(grid) != 2:
        raise ValueError(f"sin-cos positions need a width divisible by 4 and two axes, got {width} and {grid}")
    rows, columns = np.indices(grid).reshape(2, -1)
    frequencies = BASE ** (-np.arange(width // 4) / (width / 4))
    angles = [place[:, None] * frequencies for place in (columns, rows)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], 1)


def rotations(grid: tuple[int, ...], prefix: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines by which queries and keys are turned, `[tokens, width]` each, as in V-JEPA 2.

    Each axis of the grid turns a share of a head's `width` numbers, in neighbouring pairs; what is left over, and the
    `prefix` tokens in front of the patches, stay as they are. Angles are tiled over an axis's share, as there, not
    repeated for both of a pair.

    **Raises:** ValueError for heads too narrow for a pair an axis.

    **Reference:** Assran et al., V-JEPA 2 (2025); Su et al., RoFormer (2021).
    """
    share = 2 * (width // len(grid) // 2)
    if share == 0:
        raise ValueError(f"rotary positions need heads of at least {2 * len(grid)} numbers, got {width}")
    frequencies = BASE ** (-np.arange(share // 2) / (share / 2))
    angles = np.zeros((prefix + math.prod(grid), width))
    for axis, place in enumerate(np.indices(grid).reshape(len(grid), -1)):
        angles[prefix:, axis * share : (axis + 1) * share] = np.tile(place[:, None] * frequencies, (1, 2))
    return np.cos(angles), np.sin(angles)


def rotated(x: Float[Array, "tokens heads width"], cosines, sines) -> Float[Array, "tokens heads width"]:
    """Queries or keys, each pair of neighbours turned by its angle; numbers left over have the angle 0."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([-odd, even], -1).reshape(x.shape)
    return x * jnp.asarray(cosines, x.dtype)[:, None] + turned * jnp.asarray(sines, x.dtype)[:, None]


def resampled(
    table: Float[np.ndarray, "patches width"], old: tuple[int, ...], new: tuple[int, ...], how: str
) -> np.ndarray:
    """Learned positions of a grid, stretched to another grid by PyTorch's bicubic interpolation.

    **Arguments:** `old`, `new`: rows and columns of patches. `how`: `"bicubic"`; `"antialiased"`, which weighs more
    neighbours where the new grid is smaller, by another kernel (a = -0.5, as Pillow); or `"dino"`, whose coordinates
    belong to a grid 0.1 larger than the new one.

    **Raises:** ValueError for another `how`, or tables and grids that do not match.
    """
    checks.require_in("how", how, RESAMPLINGS)
    if tuple(old) == tuple(new):
        return table
    if len(old) != 2 or len(new) != 2 or math.prod(old) != len(table):
        raise ValueError(f"positions {table.shape} of a grid {old} cannot be stretched to {new}: it takes two axes")
    rows, columns = (_weights(a, b, how) for a, b in zip(old, new, strict=True))
    grown = np.einsum("ia,jb,abw->ijw", rows, columns, table.reshape(*old, -1).astype(float), optimize=True)
    return grown.reshape(math.prod(new), -1).astype(table.dtype)


def _weights(old: int, new: int, how: str) -> np.ndarray:
    """What each new place takes from each old one, `[new, old]`; what lies beyond the edge is taken at the edge."""
    step = old / (new + 0.1) if how == "dino" else old / new
    centres = (np.arange(new) + 0.5) * step - 0.5
    weights = np.zeros((new, old))
    if how == "antialiased":
        # Outside the table nothing is taken, and what is left is scaled to a sum of 1.
        weights = _cubic((np.arange(old) - centres[:, None]) / max(step, 1.0), -0.5)
        return weights / weights.sum(1, keepdims=True)
    first = np.floor(centres).astype(int)
    for offset in range(-1, 3):
        at = np.clip(first + offset, 0, old - 1)
        np.add.at(weights, (np.arange(new), at), _cubic(first + offset - centres, -0.75))
    return weights


def _cubic(x, a: float):
    """Keys's cubic convolution kernel."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
