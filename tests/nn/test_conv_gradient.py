"""The weight gradient of convolutions in both of its ways, against plain differentiation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim.nn import Conv2d
from cetsim.nn.conv_gradient import learnable

RNG = np.random.default_rng(0)
LAYERS = {
    "first": lambda key: Conv2d(2, 3, layout="channels_first", key=key),
    "last": lambda key: Conv2d(2, 3, layout="channels_last", key=key),
    "strided": lambda key: Conv2d(2, 3, 3, 2, layout="channels_last", key=key),
    "5 x 5": lambda key: Conv2d(2, 3, 5, 3, False, layout="channels_last", key=key),
    "1 x 1": lambda key: Conv2d(2, 3, 1, layout="channels_first", key=key),
    "many channels, first": lambda key: Conv2d(9, 3, layout="channels_first", key=key),
    "many channels, last": lambda key: Conv2d(9, 3, layout="channels_last", key=key),
    "equinox, many channels": lambda key: eqx.nn.Conv2d(8, 3, (3, 2), 1, ((1, 0), (0, 2)), key=key),
    "equinox": lambda key: eqx.nn.Conv2d(2, 3, (3, 2), (1, 2), ((1, 0), (0, 2)), key=key),
    "equinox, same": lambda key: eqx.nn.Conv2d(2, 3, 3, padding="SAME", key=key),
    "groups": lambda key: eqx.nn.Conv2d(2, 4, 3, groups=2, key=key),
    "dilated": lambda key: eqx.nn.Conv2d(2, 3, 2, dilation=2, key=key),
    "reflecting": lambda key: eqx.nn.Conv2d(2, 3, 3, padding=1, padding_mode="REFLECT", key=key),
}


def images(layer, *many):
    last = isinstance(layer, Conv2d) and layer.layout == "channels_last"
    channels = layer.in_channels
    return jnp.asarray(RNG.normal(size=(*many, 7, 6, channels) if last else (*many, channels, 7, 6)))


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_xlas_for_one_image_and_for_many(name):
    layer = LAYERS[name](jax.random.key(0))
    for x in (images(layer), images(layer, 4)):
        (a, found), (b, expected) = (_gradient(call, layer, x) for call in (learnable, lambda layer, x: layer(x)))
        np.testing.assert_allclose(a, b, rtol=1e-12)
        same(found, expected)


def _gradient(call, layer, x):
    """The sum of sines of the outputs and its gradient by the weights, of one image or many."""

    def loss(layer):
        one = lambda x: call(layer, x)  # noqa: E731
        return jnp.sum(jnp.sin(jax.vmap(one)(x) if x.ndim == 4 else one(x)))

    return eqx.filter_jit(eqx.filter_value_and_grad(loss))(layer)


@pytest.mark.parametrize("name", ["last", "equinox", "many channels, last"])
def test_maps_over_weights_and_images_in_any_order(name):
    """An ensemble whose members see images of their own, the same ones, or one image."""
    keys = jax.random.split(jax.random.key(1), 3)
    layers = eqx.filter_vmap(LAYERS[name])(keys)
    one = LAYERS[name](keys[0])
    for x, axes in ((images(one, 3, 4), 0), (images(one, 4), None)):

        def grads(call, layers=layers, x=x, axes=axes):
            loss = lambda layer, x: jnp.sum(jax.vmap(lambda x: call(layer, x))(x) ** 2)  # noqa: E731
            return eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(eqx.if_array(0), axes))(layers, x)

        same(grads(learnable), grads(lambda layer, x: layer(x)))


@pytest.mark.parametrize("name", ["last", "strided", "many channels, last", "equinox"])
def test_each_example_has_a_gradient_of_its_own(name):
    """`vmap` around `grad` is no sum, unlike `grad` around `vmap`; also of a traced layer, over time."""
    layer = LAYERS[name](jax.random.key(0))
    x = images(layer, 3, 5)
    traced = cetsim.attach(layer, cetsim.CascadingTrace(2, 0.4), cetsim.FixedDelay(0.4), form="preactivation")

    def of_examples(call, model):
        loss = lambda model, x: jnp.sum(jax.vmap(lambda x: call(model, x), axis_name="time")(x) ** 2)  # noqa: E731
        each = [eqx.filter_grad(loss)(model, own) for own in x]
        many = eqx.filter_jit(eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0)))(model, x)
        arrays = [eqx.filter(cetsim.detach(grads), eqx.is_inexact_array) for grads in (*each, many)]
        same(arrays[-1], jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays[:-1]))
        assert np.any(np.asarray(arrays[-1].weight[0]) != np.asarray(arrays[-1].weight[1]))

    of_examples(learnable, layer)
    of_examples(lambda model, x: model(x), traced)


def test_the_input_gets_nothing_and_half_precision_stays():
    layer = LAYERS["last"](jax.random.key(0))
    x = images(layer, 4)
    assert not np.any(jax.grad(lambda x: jnp.sum(jax.vmap(lambda x: learnable(layer, x))(x) ** 2))(x))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer)
    grad = eqx.filter_grad(lambda layer: jnp.sum(jax.vmap(lambda x: learnable(layer, x))(x.astype(jnp.bfloat16))))(half)
    assert grad.weight.dtype == jnp.bfloat16


def test_traced_layers_learn_by_it():
    """Its nine matrix products stand in the program of a traced, strided convolution."""
    layer = eqx.nn.Conv2d(2, 3, 3, 2, padding=1, key=jax.random.key(0))
    trace, delay = cetsim.CascadingTrace(3, 0.6), cetsim.FixedDelay(0.6)
    x = images(layer, 9)

    def loss(layer):
        return jnp.sum(jax.vmap(cetsim.attach(layer, trace, delay, form="preactivation"), axis_name="time")(x) ** 2)

    program = eqx.filter_jit(eqx.filter_grad(loss)).lower(layer).as_text()
    assert program.count("dot_general") >= 9
    plain = lambda layer: jnp.sum(jax.vmap(layer)(x) ** 2)  # noqa: E731
    assert "dot_general" not in eqx.filter_jit(eqx.filter_grad(plain)).lower(layer).as_text()
