"""A convolutional critic for small images, with convolutions as patches times weights.

XLA's convolutions are tens of times slower inside a compiled loop on a CPU; matrix products are not.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHANNELS, SIDE, DENSE = (16, 32, 32), 3, 512  # of the paper's critic; patches are 3 x 3


class AsImage(eqx.Module):
    """Observations, vectors, as images of `shape`, `(height, width, channels)`."""

    shape: tuple[int, int, int] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*many size"], *, key=None) -> Float[Array, "*many height width channels"]:
        """The same numbers as images."""
        return x.reshape(*x.shape[:-1], *self.shape)


class AsVector(eqx.Module):
    """Images as vectors."""

    def __call__(self, x: Float[Array, "*many height width channels"], *, key=None) -> Float[Array, "*many size"]:
        """The same numbers as vectors."""
        return x.reshape(*x.shape[:-3], -1)


class PatchConv(eqx.Module):
    """A convolution of 3 x 3 patches, stride 1, without padding, on one image or many.

    **Fields:** `weight`: `[out, 3 * 3 * channels]`, patches by rows, then columns, then channels. `bias`: `[out]`.
    """

    weight: Float[Array, "out patch"]
    bias: Float[Array, " out"]

    def __init__(self, channels: int, out: int, *, key: Array):
        draw = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
        self.weight, self.bias = draw(key, (out, SIDE * SIDE * channels)), jnp.zeros(out)

    def __call__(self, x: Float[Array, "*many height width channels"], *, key=None) -> Float[Array, "*many h w out"]:
        """The convolution of `x`."""
        height, width = (length - SIDE + 1 for length in x.shape[-3:-1])
        shifted = [x[..., i : i + height, j : j + width, :] for i in range(SIDE) for j in range(SIDE)]
        return jnp.concatenate(shifted, axis=-1) @ self.weight.T + self.bias


def critic(shape: tuple[int, int, int], *, key: Array) -> eqx.nn.Sequential:
    """From an image, as a vector, to its value: convolutions of 16, 32 and 32 channels, 512 units, ReLU behind each.

    Weights are Kaiming-normal, biases 0. The paper names no padding: here there is none.

    **Raises:** ValueError for images of less than 7 x 7.

    **Reference:** arXiv:2506.14598, reinforcement learning.
    """
    sides = [length - len(CHANNELS) * (SIDE - 1) for length in shape[:2]]
    if min(sides) < 1:
        raise ValueError(f"a convolutional critic needs images of at least 7 x 7, got {shape[0]} x {shape[1]}")
    *conv_keys, dense_key, last_key = jax.random.split(key, len(CHANNELS) + 2)
    layers = [AsImage(shape)]
    for channels, out, conv_key in zip((shape[2], *CHANNELS[:-1]), CHANNELS, conv_keys, strict=True):
        layers += [PatchConv(channels, out, key=conv_key), eqx.nn.Lambda(jax.nn.relu)]
    size = sides[0] * sides[1] * CHANNELS[-1]
    dense = [_dense(size, DENSE, dense_key), eqx.nn.Lambda(jax.nn.relu), _dense(DENSE, 1, last_key)]
    return eqx.nn.Sequential([*layers, AsVector(), *dense])


def _dense(inputs: int, out: int, key: Array) -> eqx.nn.Linear:
    layer, draw = eqx.nn.Linear(inputs, out, key=key), jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
    where = lambda layer: (layer.weight, layer.bias)  # noqa: E731
    return eqx.tree_at(where, layer, (draw(key, (out, inputs)), jnp.zeros(out)))
