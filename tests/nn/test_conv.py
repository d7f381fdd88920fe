"""Convolution and pooling: in both layouts what equinox's own layers give, values and derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim.nn import AvgPool2d, Conv2d
from cetsim.nn.conv import LAYOUTS, fastest_layout

IN, OUT = 2, 3
EITHER_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def image(height, width, channels=IN):
    return jnp.asarray(np.random.default_rng(0).normal(size=(channels, height, width)))


def laid_out(x, layout):
    """An image `[channels, height, width]` in a layout."""
    return x if layout == "channels_first" else jnp.moveaxis(x, 0, -1)


def channels_first(x, layout):
    return x if layout == "channels_first" else jnp.moveaxis(x, -1, 0)


@jax.jit
def with_derivatives(layer, x, cotangent):
    """Output, and the gradients of layer and input at a cotangent of the output."""
    out, pull = jax.vjp(lambda layer, x: layer(x), layer, x)
    return out, *pull(cotangent)


def assert_close(a, b):
    assert len(jax.tree.leaves(a)) == len(jax.tree.leaves(b)) > 0
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


@EITHER_LAYOUT
@pytest.mark.parametrize(
    ("kernel_size", "stride", "use_bias", "size"),
    [
        (3, 1, True, (4, 6)),
        (3, 2, True, (5, 6)),  # an odd and an even side, which a stride meets differently
        (3, 2, False, (4, 7)),
        (1, 1, True, (4, 4)),
        (5, 3, False, (3, 8)),  # wider than the image
        (2, 1, True, (4, 5)),  # an even kernel makes the image larger by one
    ],
)
def test_convolution_is_equinox_s(layout, kernel_size, stride, use_bias, size):
    key = jax.random.key(1)
    conv = Conv2d(IN, OUT, kernel_size, stride, use_bias, layout=layout, key=key)
    other = eqx.nn.Conv2d(IN, OUT, kernel_size, stride, kernel_size // 2, use_bias=use_bias, key=key)
    assert conv.weight.shape == (OUT, IN, kernel_size, kernel_size)
    assert (conv.bias is not None) == conv.use_bias == use_bias
    assert_close(eqx.filter(conv, eqx.is_array), eqx.filter(other, eqx.is_array))
    x = image(*size)
    shape = eqx.filter_eval_shape(other, x).shape
    cotangent = jnp.asarray(np.random.default_rng(2).normal(size=shape))
    out, grads, input_grad = with_derivatives(conv, laid_out(x, layout), laid_out(cotangent, layout))
    found = channels_first(out, layout), jax.tree.leaves(grads), channels_first(input_grad, layout)
    out, grads, input_grad = with_derivatives(other, x, cotangent)
    assert_close(found, (out, jax.tree.leaves(grads), input_grad))


@EITHER_LAYOUT
@pytest.mark.parametrize(("window", "size"), [(2, (4, 6)), (3, (9, 3)), (1, (2, 3))])
def test_pool_is_equinox_s(layout, window, size):
    x, pool, other = image(*size), AvgPool2d(window, layout=layout), eqx.nn.AvgPool2d(window, window)
    out, pull = jax.vjp(pool, laid_out(x, layout))
    wanted, wanted_pull = jax.vjp(other, x)
    assert_close(channels_first(out, layout), wanted)
    cotangent = jnp.cos(jnp.arange(wanted.size)).reshape(wanted.shape)
    assert_close(channels_first(pull(laid_out(cotangent, layout))[0], layout), wanted_pull(cotangent)[0])


@EITHER_LAYOUT
def test_float32_stays_float32(layout):
    conv = Conv2d(IN, OUT, layout=layout, key=jax.random.key(0))
    conv = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), conv)
    x = laid_out(image(4, 4), layout)
    out = AvgPool2d(layout=layout)(conv(x.astype(jnp.float32)))
    assert out.dtype == jnp.float32
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), conv)(x)
    np.testing.assert_allclose(out, AvgPool2d(layout=layout)(exact), rtol=1e-5, atol=1e-6)


@EITHER_LAYOUT
def test_independent_images_are_mapped(layout):
    conv = Conv2d(IN, OUT, layout=layout, key=jax.random.key(0))
    images = jnp.stack([laid_out(image(4, 4), layout), laid_out(image(4, 4) ** 2, layout)])
    assert_close(jax.vmap(conv)(images), jnp.stack([conv(one) for one in images]))


def test_fastest_layout_is_one_of_both():
    assert fastest_layout() in LAYOUTS
    if jax.default_backend() == "cpu":
        assert fastest_layout() == "channels_last"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "NHWC"}, "`layout` must be one of 'channels_first', 'channels_last', got 'NHWC'"),
        ({"kernel_size": 0}, "`kernel_size` must be at least 1, got 0"),
        ({"stride": 0}, "`stride` must be at least 1, got 0"),
        ({"in_channels": 0}, "`in_channels` must be at least 1, got 0"),
        ({"out_channels": -1}, "`out_channels` must be at least 1, got -1"),
    ],
)
def test_convolutions_that_are_refused(options, message):
    plain = {"in_channels": IN, "out_channels": OUT, "layout": "channels_last"}
    with pytest.raises(ValueError, match=message):
        Conv2d(**plain | options, key=jax.random.key(0))


@EITHER_LAYOUT
def test_an_input_of_another_rank_is_refused(layout):
    conv = Conv2d(IN, OUT, layout=layout, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 2\)|rank 3"):
        conv(jnp.ones((2, 4, 4, 2)))


@EITHER_LAYOUT
def test_pools_that_are_refused(layout):
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        AvgPool2d(0, layout=layout)
    with pytest.raises(ValueError, match=r"`layout` must be one of .*, got 'CHW'"):
        AvgPool2d(layout="CHW")
    with pytest.raises(ValueError, match="height and width must be multiples of 2 to be pooled, got 4 x 5"):
        AvgPool2d(layout=layout)(laid_out(image(4, 5), layout))
