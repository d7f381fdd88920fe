"""Steering against networks in NumPy that are edited by hand, its measures, its nulls, and that it is one program."""

import inside_networks as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim import interpret
from cetsim.interpret import Neurons, RandomDirections, Readout

RNG = np.random.default_rng(0)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def edited_by_hand(coder, vector, k, strength):
    """Enc, set one latent, Dec, and the error added back, of one vector."""
    f = np.asarray(coder.encode(jnp.asarray(vector)))
    error = vector - np.asarray(coder.decode(jnp.asarray(f)))
    f = f.copy()
    f[k] = strength
    return np.asarray(coder.decode(jnp.asarray(f))) + error


def deltas_by_hand(vectors, rest, coder, features, strengths, logits=lambda z: z, tokens=None):
    """Δp, an image, a token, a feature and a strength at a time; `rest` is the network behind the site."""
    found = np.zeros((*np.shape(strengths), len(logits(rest(vectors[0])))))
    for place in np.ndindex(*np.shape(strengths)):
        for value in vectors:
            moved = np.array(value)
            for token in np.ndindex(*value.shape[:-1]):
                if tokens is None or tokens[token]:
                    moved[token] = edited_by_hand(coder, value[token], features[place[0]], strengths[place])
            found[place] += softmax(logits(rest(moved))) - softmax(logits(rest(value)))
    return found / len(vectors)


def test_latents_of_a_chain():
    model, shape, _ = networks.mlp()
    x, coder = networks.images(shape, 7), networks.coder(6)
    features, strengths = np.array([4, 0, 4]), RNG.uniform(0, 5, (3, 2))
    weights = [(np.asarray(model.layers[i].weight), np.asarray(model.layers[i].bias)) for i in (0, 2, 4)]
    vectors = np.tanh(np.asarray(x) @ weights[0][0].T + weights[0][1])

    def rest(h):
        return weights[2][0] @ np.tanh(weights[1][0] @ h + weights[1][1]) + weights[2][1]

    expected = deltas_by_hand(vectors, rest, coder, features, strengths)
    for batch, side_by_side in ((7, 16), (3, 1), (100, 4)):
        own = dict(readout=Readout(scale=1.0), batch=batch, side_by_side=side_by_side)
        found = interpret.steer(model, "layers.1", coder, features, strengths, x, **own)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    assert np.abs(expected).max() > 0.01
    words = RNG.normal(size=(9, 3))
    cosines = lambda z: 20 * (words / np.linalg.norm(words, axis=1)[:, None]) @ (z / np.linalg.norm(z))  # noqa: E731
    found = interpret.steer(model, "layers.1", coder, features, strengths, x, readout=Readout(words, 20.0))
    expected = deltas_by_hand(vectors, rest, coder, features, strengths, cosines)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tokens", [None, [0], [True, False, True, False, False]])
def test_latents_of_tokens(tokens):
    model, shape, _ = networks.transformer()
    x, coder = networks.images(shape, 3), networks.coder(networks.WIDTH)
    vectors = np.asarray(networks.captured(interpret.capture(model, "blocks.0"), None, x)[1]["blocks.0"])
    rest = lambda tokens: np.asarray(model.head(model.norm(model.blocks[1](jnp.asarray(tokens))[0])))  # noqa: E731
    mask = None if tokens is None else np.isin(np.arange(5), tokens) if tokens == [0] else np.array(tokens)
    expected = deltas_by_hand(vectors, rest, coder, [2, 5], np.array([3.0, 1.0]), tokens=mask)
    own = dict(readout=Readout(scale=1.0), tokens=tokens)
    found = interpret.steer(model, "blocks.0", coder, [2, 5], [3.0, 1.0], x, **own)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_vectors_along_any_axis_of_a_model_with_a_state():
    model, shape, state = networks.cnn("channels_first")
    model = networks.eqx.nn.inference_mode(model)
    x, coder = networks.images(shape, 2), networks.coder(3)
    site = "layers.1"
    values = np.asarray(networks.captured(interpret.capture(model, site), state, x)[1][site])  # [images, 3, 8, 8]
    rest = networks.eqx.nn.Sequential(model.layers[2:])
    behind = lambda v: np.asarray(networks.outputs(rest, state, jnp.asarray(np.moveaxis(v, -1, 0))[None])[0])  # noqa: E731
    expected = deltas_by_hand(np.moveaxis(values, 1, -1), behind, coder, [1], np.array([[2.0]]))
    for axis in (0, -3):
        own = dict(readout=Readout(scale=1.0), axis=axis)
        found = interpret.steer(model, site, coder, [1], [[2.0]], x, state, **own)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="`axis` must say along which axis"):
        interpret.steer(model, site, coder, [1], [2.0], x, state)


def test_neurons_and_random_directions():
    model, shape, _ = networks.mlp()
    x, coder, key = networks.images(shape, 4), networks.coder(6), jax.random.key(3)
    vectors = np.asarray(networks.captured(interpret.capture(model, "layers.1"), None, x)[1]["layers.1"])
    rest = lambda h: np.asarray(model.layers[4](jnp.tanh(model.layers[2](jnp.asarray(h)))))  # noqa: E731
    own = dict(readout=Readout(scale=1.0))
    found = interpret.steer(model, "layers.1", Neurons(6), [1, 3], [0.5, -2.0], x, **own)
    expected = np.zeros((2, 3))
    for n, (k, strength) in enumerate([(1, 0.5), (3, -2.0)]):
        for vector in vectors:
            moved = vector.copy()
            moved[k] = strength
            expected[n] += (softmax(rest(moved)) - softmax(rest(vector))) / len(vectors)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    random = RandomDirections(coder, key)
    rows = np.asarray(random.W_dec)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(coder.W_dec, axis=1))
    assert abs(np.sum(rows[0] * rows[1])) < 0.99 * np.linalg.norm(rows[0]) * np.linalg.norm(rows[1])
    found = interpret.steer(model, "layers.1", random, [2], [3.0], x, **own)
    expected = np.zeros(3)
    for vector in vectors:
        gap = 3.0 - float(coder.encode(jnp.asarray(vector))[2])
        expected += (softmax(rest(vector + gap * rows[2])) - softmax(rest(vector))) / len(vectors)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-13)


def test_a_hundred_latents_over_a_hundred_images_are_one_program():
    traced = []

    def activation(x):
        traced.append(x.shape)
        return jnp.tanh(x)

    model = cetsim.nn.mlp((4, 6, 5, 3), activation, key=jax.random.key(0))
    coder, x = networks.coder(6, latents=120), networks.images((4,), 250)
    own = dict(readout=Readout(scale=1.0), batch=100, side_by_side=16)
    before = interpret.steer(model, "layers.1", coder, np.arange(100), np.ones(100), x, **own)
    first = len(traced)
    after = interpret.steer(model, "layers.1", coder, np.arange(20, 120), np.ones(100), x + 1, **own)
    assert len(traced) == first
    assert before.shape == after.shape == (100, 3)
    assert first < 40  # not one trace a latent


def test_measures():
    delta = np.array([[0.3, -0.1, -0.2], [0.0, 0.0, 0.0]])
    found = interpret.steerability(delta)
    np.testing.assert_allclose(found.score, [0.09 + 0.01 + 0.04, 0])
    np.testing.assert_allclose(found.power, [0.3, 0])
    np.testing.assert_allclose(found.specificity, [0.14 / 0.3, np.nan])
    np.testing.assert_allclose(found.directional, [0.09 - 0.01 - 0.04, 0])
    assert found.top[0] == 0
    assert found.polysemanticity is None
    assert found.steerable().tolist() == [True, False]
    assert found.steerable(0.2).tolist() == [False, False]
    words = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    t = np.array([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]])
    mean = np.array([1 + 0.5**0.5] * 2)
    mean /= np.linalg.norm(mean)
    expected = [np.linalg.norm(0.3 * t[0] - 0.1 * t[1] - 0.2 * t[2] - mean), 1.0]
    np.testing.assert_allclose(interpret.steerability(delta, words).polysemanticity, expected)
    # Forcing one of C classes that come equally often.
    forced = np.full(10, -0.1) + np.eye(10)[3]
    assert interpret.steerability(forced).score == pytest.approx(1 - 1 / 10)


def test_the_calibrated_threshold_is_passed_by_few_random_directions():
    deltas = RNG.normal(size=(1000, 3)) * 0.3
    null = interpret.steerability(deltas)
    threshold = interpret.calibrated(null, 0.9)
    assert null.steerable(threshold).mean() == pytest.approx(0.1)


def test_percentiles_are_of_vectors_on_which_a_latent_is_active():
    coder, vectors = networks.coder(6), RNG.normal(size=(50, 6))
    f = np.asarray(jax.vmap(coder.encode)(jnp.asarray(vectors)))
    expected = [np.percentile(own[own > 0], 90) for own in f.T]
    np.testing.assert_allclose(interpret.percentiles(coder, vectors, 90, batch=7), expected)
    dead = networks.eqx.tree_at(lambda c: c.b, coder, coder.b.at[1].set(-1e3))
    assert interpret.percentiles(dead, vectors)[1] == 0


def test_directions_at_an_equal_change_of_the_target():
    strengths = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    delta = np.array([[[0.1, -0.1], [0.5, -0.5], [0.2, -0.2]], [[0.0, 0.0], [0.05, -0.05], [0.1, -0.1]]])
    at, found = interpret.at_target_change(strengths, delta, 0, 0.3)
    np.testing.assert_allclose(at, [1.5, np.nan])
    np.testing.assert_allclose(found, [[0.3, -0.3], [np.nan, np.nan]])
    np.testing.assert_allclose(interpret.at_target_change(strengths, delta, 0, 0.05)[0], [0.5, 2.0])
    np.testing.assert_allclose(interpret.at_target_change(strengths, delta, 1, -0.3)[0], [1.5, np.nan])
    score = interpret.disentanglement([[0.3, -0.2, -0.1], [0.3, -0.3, 0.0]], 0, stay=[2])
    np.testing.assert_allclose(score, [0.75, 1.0])
    assert interpret.disentanglement([0.3, -0.2, -0.1], 0) == pytest.approx(0.5)


def test_what_cannot_be_is_refused():
    model, shape, _ = networks.mlp()
    x, coder = networks.images(shape), networks.coder(6)
    for features, strengths, why in (
        ([6], [1.0], r"\[0, 5\]"), ([0.5], [1.0], "whole numbers"), ([0, 1], [1.0], "`strengths` must be"),
        ([0], [np.nan], "finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            interpret.steer(model, "layers.1", coder, features, strengths, x)
    small = networks.eqx.tree_at(lambda m: m.layers[4].weight, model, jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match="as cosines do"):
        interpret.steer(small, "layers.1", coder, [0], [1.0], x)
    with pytest.raises(ValueError, match="vectors of 6, got 5"):
        interpret.steer(model, "layers.3", coder, [0], [1.0], x)
    with pytest.raises(ValueError, match="no site"):
        interpret.steer(model, "layers.9", coder, [0], [1.0], x)
    transcoder = interpret.Coder(6, 6, 8, interpret.TopK(2), key=jax.random.key(0), sites=("layers.0", "layers.1"))
    with pytest.raises(ValueError, match=r"read and write site 'layers.1'"):
        interpret.steer(model, "layers.1", RandomDirections(transcoder, jax.random.key(1)), [0], [1.0], x)
    with pytest.raises(ValueError, match="`scale` must be given"):
        Readout(np.ones((2, 3)))
    with pytest.raises(ValueError, match="as many as `delta`"):
        interpret.steerability(np.zeros((2, 3)), np.ones((2, 5)))
    with pytest.raises(ValueError, match="`stay`"):
        interpret.disentanglement(np.ones(3), 0, stay=[0])
    with pytest.raises(ValueError, match="at least one"):
        interpret.percentiles(coder, np.zeros((0, 6)))
