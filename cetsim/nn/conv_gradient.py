"""The weight gradient of a convolution, by the fastest way known on CPU (docs/cost.md has what was measured).

XLA's own is a convolution over all images at once, fast with jax 0.10.2 where the kernel moves by one pixel. Strided it
takes up to eight times as long as a product of matrices for each place of the kernel. There `x` is padded once and read
at every place: slices without the border took longer. Of few channels it is one product, with patches.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim.nn.conv import Conv2d, few_channels, patches


def learnable(layer, x):
    """What the layer makes of `x`, differentiable in reverse in its weights alone, by the fastest way known for it."""
    if not _is_plain(layer):
        return layer(jax.lax.stop_gradient(x))
    channels_last = isinstance(layer, Conv2d) and layer.layout == "channels_last"
    geometry = tuple(layer.stride), tuple(map(tuple, layer.padding)), channels_last
    return _weighed(geometry, layer.weight, layer.bias, *jax.lax.stop_gradient((x, layer(x))))


def _is_plain(layer) -> bool:
    """Whether the layer is a convolution of images, in one group, without holes, with zeros around, on CPU."""
    if not isinstance(layer, eqx.nn.Conv2d) or jax.default_backend() != "cpu" or layer.weight is None:
        return False
    known = not isinstance(layer.padding, str) and layer.padding_mode == "ZEROS"
    return known and layer.groups == 1 and set(layer.dilation) == {1}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighed(geometry, weight, bias, x, z):
    """z, the layer's output, which on the way back gives its weights what they are due."""
    return z


def _forward(geometry, weight, bias, x, z):
    return z, (weight, bias, x)


def _backward(geometry, kept, error):
    weight, bias, x = kept
    of_weight = _gradient(geometry)(weight, x, error)
    of_bias = None if bias is None else error.sum((0, 1) if geometry[2] else (1, 2)).reshape(bias.shape)
    return of_weight, of_bias, None, None


_weighed.defvjp(_forward, _backward)


def _gradient(geometry):
    """The gradient, a function of `(weight, x, error)`, the latter two led by any axes of examples that share weights.

    A map over examples becomes one axis more of the products that are summed over; only one over weights is a map.
    """

    stride, padding, channels_last = geometry

    def of_rows(weight, x, error):
        if not channels_last:
            x, error = jnp.moveaxis(x, -3, -1), jnp.moveaxis(error, -3, -1)
        if few_channels(weight.shape[1], stride):
            return _product(padding, weight, x, error)
        return (_products if max(stride) > 1 else _convolution)((stride, padding), weight, x, error)

    gradient = jax.custom_batching.custom_vmap(of_rows)

    @gradient.def_vmap
    def mapped(size, batched, weight, x, error):
        if batched[0]:
            return jax.vmap(of_rows, [0 if has else None for has in batched])(weight, x, error), True
        spread = lambda rows, has: rows if has else jnp.broadcast_to(rows, (size, *rows.shape))  # noqa: E731
        return gradient(weight, spread(x, batched[1]), spread(error, batched[2])), False

    return gradient


def _product(padding, weight, x, error):
    """ΔW by one product of all patches with all errors."""
    out, inputs, height, width = weight.shape
    seen = patches(x, (height, width), padding).reshape(-1, height * width * inputs)
    return (seen.T @ error.reshape(-1, out)).reshape(height, width, inputs, out).transpose(3, 2, 0, 1)


def _convolution(geometry, weight, x, error):
    """ΔW by XLA's own convolution."""
    x, error = (rows.reshape(-1, *rows.shape[-3:]) for rows in (x, error))
    axes = ("NHWC", "OIHW", "NHWC")
    convolve = lambda weight: jax.lax.conv_general_dilated(x, weight, *geometry, dimension_numbers=axes)  # noqa: E731
    return jax.linear_transpose(convolve, weight)(error)[0]


def _products(geometry, weight, x, error):
    """ΔW[o, c, i, j] = Σ error[.., o] x[.., c] over examples and pixels, x shifted by (i, j) and strided."""
    (down, right), ((top, bottom), (left, far)) = geometry
    out, inputs, height, width = weight.shape
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(top, bottom), (left, far), (0, 0)])
    rows, columns = error.shape[-3:-1]
    flat = error.reshape(-1, out)

    def shifted(i, j):
        below, beside = i + down * (rows - 1) + 1, j + right * (columns - 1) + 1
        return x[..., i:below:down, j:beside:right, :].reshape(-1, inputs)

    places = [shifted(i, j).T @ flat for i in range(height) for j in range(width)]  # each [in, out]
    return jnp.stack(places).reshape(height, width, inputs, out).transpose(3, 2, 0, 1)
