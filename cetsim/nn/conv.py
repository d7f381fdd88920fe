"""Convolution and average pooling in either layout of the axes.

On CPU XLA turns a channels-first convolution into a channels-last one between two transpositions: a step of the CNN on
one core took 204 ms channels-first and 165 ms channels-last, on two cores 183 and 151 ms. On GPU XLA chooses by itself.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks

LAYOUTS = ("channels_first", "channels_last")
FEW_CHANNELS = 8  # of an input, below which a product with its patches is faster


def fastest_layout() -> str:
    """The faster layout of the default backend, as measured (CPU), or the one XLA rearranges by itself (others)."""
    return "channels_last" if jax.default_backend() == "cpu" else "channels_first"


class Conv2d(eqx.nn.Conv2d):
    """`eqx.nn.Conv2d` with zero padding of half a kernel, in either layout; weights `[out, in, height, width]` in both.

    **Arguments:** `layout`: `"channels_first"` acts on `[in, height, width]`, `"channels_last"` on
    `[height, width, in]`. The others as in equinox.

    **Raises:** ValueError for an unknown layout or a number below 1.
    """

    layout: str = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        use_bias: bool = True,
        *,
        layout: str,
        key: Array,
    ):
        checks.require_in("layout", layout, LAYOUTS)
        sizes = dict(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        in_channels, out_channels, kernel_size, stride = (
            checks.require_whole(name, value) for name, value in sizes.items()
        )
        self.layout = layout
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, use_bias=use_bias, key=key)

    def __call__(self, x: Float[Array, "..."], *, key=None) -> Float[Array, "..."]:
        """The convolution of one example; `key` is not used."""
        if self.layout == "channels_first":
            return super().__call__(x)
        if x.ndim != 3:
            raise ValueError(f"the input of a Conv2d must be [height, width, channels], got {x.shape}")
        # With weights in another order than this one XLA's convolution takes half as long again on CPU.
        weight = self.weight.transpose(2, 3, 1, 0)
        if few_channels(weight.shape[2], self.stride):
            out = patches(x, weight.shape[:2], self.padding) @ weight.reshape(-1, weight.shape[3])
        else:
            axes = ("NHWC", "HWIO", "NHWC")
            out = jax.lax.conv_general_dilated(x[None], weight, self.stride, self.padding, dimension_numbers=axes)[0]
        return out if self.bias is None else out + self.bias.reshape(-1)


def few_channels(inputs: int, stride: tuple[int, ...]) -> bool:
    """Whether a product with an image's patches is faster than XLA's convolution: on CPU, of few channels."""
    return jax.default_backend() == "cpu" and inputs < FEW_CHANNELS and max(stride) == 1


def patches(x: Float[Array, "*many height width channels"], kernel: tuple[int, int], padding) -> Float[Array, "..."]:
    """What a kernel that moves by one pixel sees at every place, `[*many, height, width, kernel · channels]`.

    Cut along one axis after the other: all slices at once take five times as long.
    """
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [*padding, (0, 0)])
    rows, columns = (size - length + 1 for size, length in zip(x.shape[-3:-1], kernel, strict=True))
    x = jnp.concatenate([x[..., j : j + columns, :] for j in range(kernel[1])], -1)
    return jnp.concatenate([x[..., i : i + rows, :, :] for i in range(kernel[0])], -1)


class AvgPool2d(eqx.Module):
    """Mean over windows of `size` x `size` that do not overlap.

    **Raises:** ValueError for a size below 1, or where the image is not a whole number of windows.
    """

    size: int = eqx.field(static=True)
    layout: str = eqx.field(static=True)

    def __init__(self, size: int = 2, *, layout: str):
        checks.require_in("layout", layout, LAYOUTS)
        self.size, self.layout = checks.require_whole("size", size), layout

    def __call__(self, x: Float[Array, "..."], *, key=None) -> Float[Array, "..."]:
        """The pooled image of one example; `key` is not used."""
        first = 1 if self.layout == "channels_first" else 0
        height, width = x.shape[first : first + 2]
        if height % self.size or width % self.size:
            raise ValueError(f"height and width must be multiples of {self.size} to be pooled, got {height} x {width}")
        split = (height // self.size, self.size, width // self.size, self.size)
        return x.reshape(*x.shape[:first], *split, *x.shape[first + 2 :]).mean((first + 1, first + 3))
