"""ResNet-20: against a forward pass in numpy, in both layouts, and its gradients through traces.

Twenty layers take long to compile, so that the tests share a few programs, which XLA need not make fast.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cetsim
from cetsim import DelayLine, FixedDelay
from cetsim.nn.conv import LAYOUTS
from cetsim.nn.resnet import BasicBlock, resnet20

DT, STEPS, CLASSES = 0.2, 16, 4
EITHER_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
EITHER_STATISTICS = pytest.mark.parametrize(
    ("statistics", "layout"), [("segment", "channels_first"), ("running", "channels_last")]
)


jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def small(statistics="segment", layout="channels_first"):
    make = eqx.nn.make_with_state(resnet20)
    return make(CLASSES, (3, 4, 6), statistics=statistics, layout=layout, key=jax.random.key(0))


def over_time(model, state, x):
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="time")(x, state)


@functools.cache
def images():
    """Stripes in noise, upright, lying, and of two pixels' width: `[STEPS, 3, 8, 8]`, and their classes."""
    rng = np.random.default_rng(1)
    one, two = (np.broadcast_to(np.resize(row, 8), (8, 8)) for row in ([1.0, -1.0], [1.0, 1.0, -1.0, -1.0]))
    labels = rng.integers(0, CLASSES, STEPS)
    clean = np.stack([one, one.T, two, two.T])[labels]
    return jnp.asarray(clean[:, None] + 0.3 * rng.normal(size=(STEPS, 3, 8, 8))), jnp.asarray(labels)


@jit
def learn(model, state, batch, trace=None, delay=None):
    """Loss, logits, state after the segment and gradient, by backprop or through traces attached inside the loss."""
    x, labels = batch

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        if trace is not None:
            model = cetsim.attach(model, trace, delay, form="preactivation")
        logits, after = over_time(model, state, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, after)

    (value, (logits, after)), grads = loss(model)
    return value, logits, after, grads


def late(delay):
    """Trace and signal late by the same time, in seconds; one program for all times."""
    return DelayLine(delay, DT, max_delay=1.0), FixedDelay(delay, DT, max_delay=1.0)


def parameters(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def assert_same(tree, other, tolerance=1e-10):
    for array, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


# What it computes


def oracle(model, x):
    """Logits of one image in inference with batch norm's first moments, mean 0 and variance 1, in numpy."""

    def convolve(x, conv, stride):
        weight, padded = np.asarray(conv.weight), np.pad(x, [(0, 0), (1, 1), (1, 1)])
        out = np.zeros((len(weight), -(-x.shape[1] // stride), -(-x.shape[2] // stride)))
        for row in range(out.shape[1]):
            for column in range(out.shape[2]):
                patch = padded[:, stride * row : stride * row + 3, stride * column : stride * column + 3]
                out[:, row, column] = np.tensordot(weight, patch, axes=3)
        return out / np.sqrt(1 + 1e-5)

    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    x = relu(convolve(np.asarray(x), model.stem, 1))
    for block, stride in zip(model.blocks, (1, 1, 1, 2, 1, 1, 2, 1, 1), strict=True):
        first, second = block.convs
        y = convolve(relu(convolve(x, first, stride)), second, 1)
        y[: len(x)] += x[:, ::stride, ::stride]
        x = relu(y)
    return np.asarray(model.head.weight) @ x.mean((1, 2)) + np.asarray(model.head.bias)


@pytest.mark.parametrize(
    ("layout", "size", "dtype"),
    [
        ("channels_first", (8, 8), np.float64),
        ("channels_last", (7, 10), np.float64),
        ("channels_last", (8, 8), np.float32),
    ],
)
def test_forward_pass(layout, size, dtype):
    model, state = small(layout=layout)
    model = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model)
    model = eqx.nn.inference_mode(model)
    x = np.random.default_rng(4).normal(size=(2, 3, *size)).astype(dtype)
    logits, after = jit(over_time)(model, state, x)
    assert logits.dtype == dtype
    wanted = np.stack([oracle(model, image) for image in x])
    assert_same(logits, wanted, 1e-10 if dtype == np.float64 else 1e-5)
    assert_same(after, state)  # inference leaves it


@pytest.mark.parametrize(("classes", "count"), [(10, 268_346), (200, 280_696)])
def test_number_of_parameters(classes, count):
    """269,722 is the customary number for 10 classes; 1,376 of them are the affine parameters of batch norm."""
    make = eqx.nn.make_with_state(resnet20)
    model, _ = eqx.filter_eval_shape(lambda: make(classes, key=jax.random.key(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size")]
    assert sum(sizes) == count
    assert len(sizes) == 19 + 2
    assert len(cetsim.nn.layer_names(model)) == 20


@EITHER_LAYOUT
def test_default_sizes(layout):
    make = eqx.nn.make_with_state(resnet20)
    model, state = eqx.filter_eval_shape(lambda: make(layout=layout, key=jax.random.key(0)))
    logits, after = eqx.filter_eval_shape(over_time, model, state, jax.ShapeDtypeStruct((2, 3, 64, 64), float))
    assert logits.shape == (2, 200)
    assert [leaf.shape for leaf in jax.tree.leaves(after)] == [leaf.shape for leaf in jax.tree.leaves(state)]


def test_default_layout_is_one_of_both():
    make = eqx.nn.make_with_state(resnet20)
    assert eqx.filter_eval_shape(lambda: make(key=jax.random.key(0)))[0].layout in LAYOUTS


def test_layouts_agree():
    first, last = (small(layout=layout) for layout in LAYOUTS)
    assert_same(parameters(first[0]), parameters(last[0]), 0)
    assert_same(jit(over_time)(*first, images()[0]), jit(over_time)(*last, images()[0]))


@EITHER_LAYOUT
def test_shortcut_has_no_parameters(layout):
    options = dict(statistics="segment", layout=layout, key=jax.random.key(0))
    block, state = eqx.nn.make_with_state(BasicBlock)(3, 4, 2, **options)
    block = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, block)
    x = images()[0][:, :, :7]
    channel = 1 if layout == "channels_first" else 3
    y, _ = over_time(block, state, jnp.moveaxis(x, 1, channel))
    y = jnp.moveaxis(y, channel, 1)
    assert y.shape == (STEPS, 4, 4, 4)
    np.testing.assert_array_equal(y[:, :3], np.maximum(x[:, :, ::2, ::2], 0))
    assert not y[:, 3:].any()


def test_weights_are_xavier_uniform():
    model, _ = small()
    weights = [conv.weight for block in model.blocks for conv in block.convs] + [model.stem.weight]
    pairs = [(weight, 9 * sum(weight.shape[:2])) for weight in weights]
    pairs += [(model.head.weight, 6 + CLASSES), (model.head.bias, 1 + CLASSES)]
    assert len(pairs) == len(parameters(model))
    scaled = np.concatenate([np.ravel(weight) / np.sqrt(6 / fans) for weight, fans in pairs])
    assert len(np.unique(scaled)) == len(scaled)  # a key for each
    assert np.abs(scaled).max() <= 1
    # The variance of n uniform numbers has a relative standard deviation of sqrt(0.8 / n).
    assert np.var(scaled) == pytest.approx(1 / 3, rel=6 * np.sqrt(0.8 / len(scaled)))


# Batch norm


@EITHER_STATISTICS
def test_segment_statistics_mix_images_and_running_ones_do_not(statistics, layout):
    model, state = small(statistics, layout)
    x, labels = images()
    first, second = (learn(model, state, (rows, labels))[1][:-1] for rows in (x, x.at[-1].set(-x[-1])))
    assert np.allclose(first, second, rtol=0, atol=1e-12) == (statistics == "running")


@EITHER_STATISTICS
def test_every_batch_norm_keeps_its_state(statistics, layout):
    model, state = small(statistics, layout)
    _, _, after, _ = learn(model, state, images())
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True))
    assert len(pairs) == 2 * 19
    assert all(not np.allclose(before, later, rtol=0, atol=1e-6) for before, later in pairs)


# Learning


@EITHER_STATISTICS
def test_delay_line_without_delay_is_backprop(statistics, layout):
    model, state = small(statistics, layout)
    *outputs, grads = learn(model, state, images(), *late(0.0))
    *plain_outputs, plain_grads = learn(model, state, images())
    assert_same(outputs, plain_outputs)
    assert_same(parameters(grads), parameters(plain_grads))
    assert all(np.abs(leaf).max() > 0 for leaf in parameters(plain_grads))


def test_late_credit_changes_every_weight_and_no_output():
    model, state = small()
    *outputs, grads = learn(model, state, images(), *late(0.4))
    *plain_outputs, plain_grads = learn(model, state, images())
    assert_same(outputs, plain_outputs)
    for leaf, plain in zip(parameters(grads), parameters(plain_grads), strict=True):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf - plain).max() > 1e-3 * np.abs(plain).max()


@EITHER_STATISTICS
def test_training_with_late_credit_lowers_the_loss(statistics, layout):
    model, state = small(statistics, layout)
    optimiser = optax.adam(1e-2)
    memory, values = optimiser.init(eqx.filter(model, eqx.is_inexact_array)), []
    update = eqx.filter_jit(optimiser.update)
    for _ in range(12):
        value, _, state, grads = learn(model, state, images(), *late(0.4))
        updates, memory = update(grads, memory)
        model = eqx.apply_updates(model, updates)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


# Bad input


@pytest.mark.parametrize("channels", [(16, 32), (16, 32, 64, 128), (0, 1, 2), (16, 8, 32)])
def test_bad_channels(channels):
    with pytest.raises(ValueError, match=r"`channels` must be three numbers above 0, none smaller .*, got \("):
        resnet20(channels=channels, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "`classes` must be at least 1, got 0"),
        ({"in_channels": 0}, "`in_channels` must be at least 1, got 0"),
        ({"layout": "NHWC"}, "`layout` must be one of 'channels_first', 'channels_last', got 'NHWC'"),
        ({"statistics": "batch"}, "`statistics` must be one of 'segment', 'running', got 'batch'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        resnet20(**options, key=jax.random.key(0))


def test_other_forms_need_to_know_the_activation():
    model, _ = small()
    with pytest.raises(
        ValueError, match=r"its activation is unknown, but form='activation' has to know.*use form='preactivation'"
    ):
        cetsim.attach(model, DelayLine(0.0, DT), FixedDelay(0.0, DT))
