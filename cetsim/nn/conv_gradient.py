"""A convolution as it is best differentiated in its weights on CPU (docs/cost.md has what was measured).

Its value is that of the layer and is not used: XLA leaves it out. What counts is the order of its products, since that
of their derivative follows. Batches and steps are maps around it, so that jax sums over them where weights are shared.

XLA's own weight gradient is fast with jax 0.10.2 where the kernel moves by one pixel. Strided it takes
up to eight times as long as a product of matrices for each place of the kernel. There `x` is padded once and read at
every place: slices without the border took longer. Of few channels it is one product, with patches.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim.nn.conv import Conv2d, few_channels, patches

AXES = ("NHWC", "OIHW", "NHWC")


def learnable(layer, x):
    """What the layer makes of `x`, differentiable in its weights alone, by the fastest way known for it."""
    x = jax.lax.stop_gradient(x)
    if not _is_plain(layer):
        return layer(x)
    channels_last = isinstance(layer, Conv2d) and layer.layout == "channels_last"
    x = x if channels_last else jnp.moveaxis(x, 0, -1)
    padding = tuple(map(tuple, layer.padding))
    if few_channels(layer.weight.shape[1], layer.stride):
        z = _of_patches(layer.weight, padding, x)
    elif max(layer.stride) > 1:
        z = _of_places(layer.weight, padding, layer.stride, x)
    else:
        z = jax.lax.conv_general_dilated(x[None], layer.weight, (1, 1), padding, dimension_numbers=AXES)[0]
    z = z if layer.bias is None else z + layer.bias.reshape(-1)
    return z if channels_last else jnp.moveaxis(z, -1, 0)


def _is_plain(layer) -> bool:
    """Whether the layer is a convolution of images, in one group, without holes, with zeros around, on CPU."""
    if not isinstance(layer, eqx.nn.Conv2d) or jax.default_backend() != "cpu" or layer.weight is None:
        return False
    known = not isinstance(layer.padding, str) and layer.padding_mode == "ZEROS"
    return known and layer.groups == 1 and set(layer.dilation) == {1}


def _of_patches(weight, padding, x):
    """The convolution as one product with all patches."""
    out, _, height, width = weight.shape
    return patches(x, (height, width), padding) @ weight.transpose(2, 3, 1, 0).reshape(-1, out)


def _of_places(weight, padding, stride, x):
    """z[.., o] = Σ x[.., c] W[o, c, i, j] over channels and places of the kernel, x shifted by (i, j) and strided."""
    (top, bottom), (left, far) = padding
    height, width = weight.shape[2:]
    x = jnp.pad(x, [(top, bottom), (left, far), (0, 0)])
    rows, columns = (x.shape[0] - height) // stride[0] + 1, (x.shape[1] - width) // stride[1] + 1

    def seen(i, j):
        below, beside = i + stride[0] * (rows - 1) + 1, j + stride[1] * (columns - 1) + 1
        return x[i : below : stride[0], j : beside : stride[1]]

    return sum(seen(i, j) @ weight[:, :, i, j].T for i in range(height) for j in range(width))
