"""Batch norm: over a segment as numpy has it, over the past as a loop over images has it, however time is cut."""

import itertools
import math

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim.nn import BatchNorm
from cetsim.nn.batch_norm import STATISTICS
from cetsim.nn.conv import LAYOUTS

STEPS, CHANNELS, SIDE = 8, 3, (2, 4)
MEMORY, EPS = 5.0, 1e-5
EITHER_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
EITHER_STATISTICS = pytest.mark.parametrize("statistics", STATISTICS)


def make(statistics, layout, memory=MEMORY):
    return eqx.nn.make_with_state(BatchNorm)(CHANNELS, statistics, layout=layout, memory=memory)


def images(layout="channels_first", steps=STEPS, mean=0.0, dtype=np.float64):
    """Images whose channels differ in mean and spread, and drift."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, CHANNELS, *SIDE)) * np.array([0.5, 1.0, 3.0]).reshape(-1, 1, 1)
    x = (x + mean + np.linspace(-1, 1, steps).reshape(-1, 1, 1, 1)).astype(dtype)
    return x if layout == "channels_first" else np.moveaxis(x, 1, -1)


def axes(layout):
    """Height and width in one image."""
    return (1, 2) if layout == "channels_first" else (0, 1)


def by_channel(values, layout):
    return np.reshape(values, (-1, 1, 1) if layout == "channels_first" else (1, 1, -1))


@eqx.filter_jit
def over_time(norm, state, x):
    return jax.vmap(norm, in_axes=(0, None), out_axes=(0, None), axis_name="time")(x, state)


@eqx.filter_jit
def input_gradient(norm, state, x, cotangent):
    return jax.vjp(lambda x: over_time(norm, state, x)[0], x)[1](cotangent)[0]


def moments(norm, state):
    return [np.asarray(values) for values in state.get(norm.moments)]


def literal(x, layout, memory=MEMORY):
    """Image by image: outputs, and the moments (mean, variance) after each, from the averages of x and x²."""
    decay = math.exp(-1 / memory)
    mean, square, outputs, after = np.zeros(CHANNELS), np.ones(CHANNELS), [], []
    for image in np.asarray(x, dtype=np.float64):
        scale = 1 / np.sqrt(square - mean**2 + EPS)
        outputs.append((image - by_channel(mean, layout)) * by_channel(scale, layout))
        mean = decay * mean + (1 - decay) * image.mean(axes(layout))
        square = decay * square + (1 - decay) * (image**2).mean(axes(layout))
        after.append((mean, square - mean**2))
    return np.stack(outputs), after


def whole_segment(x, layout, library=np):
    """Normalised by the mean and variance of every pixel of every image."""
    every = (0, *(axis + 1 for axis in axes(layout)))
    mean, variance = x.mean(every, keepdims=True), x.var(every, keepdims=True)
    return (x - mean) / library.sqrt(variance + EPS)


@EITHER_LAYOUT
def test_segment_is_numpy_s_and_so_is_its_derivative(layout):
    norm, state = make("segment", layout)
    x = images(layout)
    out, _ = over_time(norm, state, x)
    np.testing.assert_allclose(out, whole_segment(x, layout), rtol=1e-10, atol=1e-12)
    cotangent = np.cos(np.arange(x.size)).reshape(x.shape)
    found = input_gradient(norm, state, x, cotangent)
    wanted = jax.vjp(lambda x: whole_segment(x, layout, jnp), x)[1](cotangent)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    step = np.zeros(x.shape)
    step[2, 1, 1, 2] = 1e-5
    ahead, behind = (np.sum(cotangent * whole_segment(x + sign * step, layout)) for sign in (1, -1))
    np.testing.assert_allclose(found[2, 1, 1, 2], (ahead - behind) / 2e-5, rtol=1e-6)


@EITHER_LAYOUT
def test_running_is_a_loop_over_images_and_constant_in_the_derivative(layout):
    norm, state = make("running", layout)
    x = images(layout)
    out, after = over_time(norm, state, x)
    wanted, by_image = literal(x, layout)
    np.testing.assert_allclose(out, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments(norm, after), by_image[-1], rtol=1e-10)
    cotangent = np.cos(np.arange(x.size)).reshape(x.shape)
    before = [(0, 1), *by_image[:-1]]
    scale = np.stack([by_channel(np.ones(CHANNELS) / np.sqrt(variance + EPS), layout) for _, variance in before])
    np.testing.assert_allclose(input_gradient(norm, state, x, cotangent), scale * cotangent, rtol=1e-10, atol=1e-12)


@EITHER_LAYOUT
def test_moments_do_not_depend_on_which_are_used(layout):
    x = images(layout)
    norm, state = make("segment", layout)
    np.testing.assert_allclose(moments(norm, over_time(norm, state, x)[1]), literal(x, layout)[1][-1], rtol=1e-10)


def test_the_default_forgets_a_tenth_in_128_images():
    norm, state = eqx.nn.make_with_state(BatchNorm)(CHANNELS, layout="channels_first")
    assert norm.statistics == "segment"
    _, after = over_time(norm, state, np.ones((128, CHANNELS, *SIDE)))
    mean, variance = moments(norm, after)
    np.testing.assert_allclose(mean, 0.1, rtol=1e-10)  # of ones, having begun at 0
    np.testing.assert_allclose(variance, 0.9 + 0.1 - 0.1**2, rtol=1e-10)  # E[x²] - E[x]², having begun at 1


@hypothesis.settings(max_examples=8)
@hypothesis.given(st.lists(st.integers(1, STEPS - 1), max_size=4))
def test_a_stream_is_the_same_wherever_it_is_cut(cuts):
    norm, start = make("running", "channels_first")
    x = images()
    whole, end = over_time(norm, start, x)
    state, pieces = start, []
    for first, last in itertools.pairwise([0, *sorted(set(cuts)), STEPS]):
        out, state = over_time(norm, state, x[first:last])
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments(norm, state), moments(norm, end), rtol=1e-10)


@EITHER_LAYOUT
@EITHER_STATISTICS
def test_inference_uses_the_running_moments_and_leaves_them(statistics, layout):
    norm, state = make(statistics, layout)
    x = images(layout)
    _, state = over_time(norm, state, x)
    mean, variance = (by_channel(values, layout) for values in moments(norm, state))
    out, after = eqx.nn.inference_mode(norm)(jnp.asarray(2 * x[3]), state)  # outside of any map over time
    np.testing.assert_allclose(out, (2 * x[3] - mean) / np.sqrt(variance + EPS), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(moments(norm, after), moments(norm, state))


@EITHER_STATISTICS
def test_independent_streams_are_mapped_outside(statistics):
    norm, state = make(statistics, "channels_first")
    xs = np.stack([images(), 1 + images() ** 2])
    out, after = eqx.filter_vmap(over_time, in_axes=(None, None, 0))(norm, state, xs)
    for i in range(2):
        alone, end = over_time(norm, state, xs[i])
        np.testing.assert_allclose(out[i], alone, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose([m[i] for m in moments(norm, after)], moments(norm, end), rtol=1e-10)


@pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
@EITHER_STATISTICS
def test_float32_holds_where_the_mean_is_large(statistics, mean):
    """A variance taken as E[x²] - E[x]² would be off by 0.5 % at a mean of 100 spreads, and lost at 1000."""
    x = images(mean=mean, steps=40, dtype=np.float32)
    norm, state = make(statistics, "channels_first")
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)
    out, after = over_time(norm, state, x)
    assert out.dtype == np.float32
    assert all(values.dtype == np.float32 for values in moments(norm, after))
    exact = x.astype(np.float64)
    wanted, by_image = literal(exact, "channels_first")
    wanted = whole_segment(exact, "channels_first") if statistics == "segment" else wanted
    tolerance = 1e-6 * max(1.0, 2 * mean)  # a channel's spread is 0.5 at least
    np.testing.assert_allclose(out[20:], wanted[20:], rtol=0, atol=tolerance)
    np.testing.assert_allclose(moments(norm, after)[0], by_image[-1][0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments(norm, after)[1], by_image[-1][1], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "batch"}, "`statistics` must be one of 'segment', 'running', got 'batch'"),
        ({"layout": "CHW"}, "`layout` must be one of 'channels_first', 'channels_last', got 'CHW'"),
        ({"memory": 0.0}, "`memory` must be above 0 images, got 0.0"),
        ({"memory": float("inf")}, "`memory` must be finite, got inf"),
        ({"eps": 0.0}, "`eps` must be above 0, got 0.0"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(CHANNELS, **{"layout": "channels_first"} | options)


def test_a_map_over_time_is_needed():
    norm, state = make("running", "channels_first")
    with pytest.raises(NameError, match="time"):
        norm(jnp.asarray(images()[0]), state)
