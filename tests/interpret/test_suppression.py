"""Suppression against single edits, accuracies and ranks against loops, controls, and the retrained last layer."""

import inside_networks as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim import interpret
from cetsim.interpret import Clamp, Readout

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", ["mlp", "transformer", "cnn"])
def test_suppressed_latents_are_those_clamped_to_zero(kind):
    model, shape, state = networks.KINDS[kind]()
    model = networks.eqx.nn.inference_mode(model)
    site, axis, width, tokens = {
        "mlp": ("layers.1", None, 6, None),
        "transformer": ("blocks.0", None, 8, [1, 2]),
        "cnn": ("layers.1", -1, 3, None),
    }[kind]
    x, coder, states = networks.images(shape, 5), networks.coder(width), () if state is None else (state,)
    masks = np.array([[False] * 6, [True, False, True, False, False, False], [True] * 6])
    options = dict(axis=axis, tokens=tokens)
    found = interpret.suppress(model, site, coder, masks, x, *states, batch=2, **options)
    logits = []
    for mask in masks:
        edits = {site: Clamp(coder, np.flatnonzero(mask), 0.0, tokens, axis=axis)} if mask.any() else {}
        logits.append(np.asarray(networks.outputs(interpret.edited(model, edits), state, x)))
    np.testing.assert_array_equal(found, np.argmax(logits, -1))
    assert np.abs(logits[2] - logits[0]).max() > 1e-3


def test_the_effect_on_a_logit_is_that_of_a_literal_sum():
    """Values, not only classes: concepts whose order tells the logit to 1e-10."""
    model, shape, _ = networks.mlp()
    x, coder = networks.images(shape, 1), networks.coder(6)
    (h,) = np.tanh(np.asarray(x) @ np.asarray(model.layers[0].weight).T + np.asarray(model.layers[0].bias))
    f = np.maximum(np.asarray(coder.W_enc) @ h + np.asarray(coder.b), 0)
    left = h.copy()
    for k in (1, 4):
        left = left - f[k] * np.asarray(coder.W_dec)[k]
    z = np.tanh(np.asarray(model.layers[2].weight) @ left + np.asarray(model.layers[2].bias))
    z = np.asarray(model.layers[4].weight) @ z + np.asarray(model.layers[4].bias)
    mask = np.isin(np.arange(6), [1, 4])[None]
    for sign in (1, -1):  # which of z_0 + ε and z_1 is larger: the output layer is shifted to the very edge
        bias = model.layers[4].bias + jnp.asarray([z[1] - z[0] + sign * 1e-10, 0, -1e3])
        shifted = networks.eqx.tree_at(lambda m: m.layers[4].bias, model, bias)
        assert interpret.suppress(shifted, "layers.1", coder, mask, x)[0, 0] == (0 if sign > 0 else 1)


def test_accuracies_of_groups():
    labels, attributes = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
    before = np.array([0, 0, 1, 1, 1, 0])
    predicted = np.array([before, [0, 1, 0, 1, 1, 1]])
    found = interpret.group_accuracy(predicted, labels, attributes, before)
    np.testing.assert_array_equal(found.groups, [[0, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_allclose(found.by_group, [[1, 0, 1, 0.5], [0.5, 1, 1, 1]])
    np.testing.assert_allclose(found.worst, [0, 0.5])
    np.testing.assert_allclose(found.average, [4 / 6, 5 / 6])
    np.testing.assert_allclose(found.collateral, [0, 1 / 4])
    assert interpret.group_accuracy(before, labels, attributes).collateral is None


def test_differences_of_groups_of_equal_label():
    labels, attributes = RNG.integers(0, 3, 200), RNG.integers(0, 2, 200)
    labels[attributes == 1] = np.maximum(labels[attributes == 1], 1)  # label 0 has one group
    f = RNG.normal(size=(200, 5)) + np.outer(attributes, [0, 2, -1, 0, 0]) + np.outer(labels, [5, 0, 0, 0, 0])
    found = interpret.group_differences(f, labels, attributes)
    expected = np.zeros(5)
    for k in range(5):
        gaps = []
        for label in (1, 2):
            means = [f[(labels == label) & (attributes == a), k].mean() for a in (0, 1)]
            gaps.append(means[1] - means[0])
        expected[k] = abs(np.mean(gaps))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert set(np.argsort(-found)[:2]) == {1, 2}  # of the attribute, and not of the label
    by_position = np.stack([f - 1, f + 1], axis=1)
    np.testing.assert_allclose(interpret.group_differences(by_position, labels, attributes), found, atol=1e-12)
    many = RNG.integers(0, 4, 200)
    own = interpret.group_differences(np.eye(4)[many] * 3, np.zeros(200, int), many)
    np.testing.assert_allclose(own, 3.0)  # 3 on one attribute, 0 on the others, less their mean on both sides
    with pytest.raises(ValueError, match="at least two attributes"):
        interpret.group_differences(f, labels, labels)


def test_mean_activations_over_positions():
    model, shape, _ = networks.transformer()
    x, coder = networks.images(shape, 5), networks.coder(networks.WIDTH)
    vectors = np.asarray(networks.captured(interpret.capture(model, "blocks.0"), None, x)[1]["blocks.0"])
    f = np.array([[np.asarray(coder.encode(jnp.asarray(token))) for token in image] for image in vectors])
    mean, frequency = interpret.mean_activations(model, "blocks.0", coder, x, batch=2)
    np.testing.assert_allclose(mean, f.mean(1), rtol=1e-10)
    np.testing.assert_allclose(frequency, (f > 0).mean((0, 1)), rtol=1e-10)


def test_controls():
    frequency = np.linspace(0, 1, 40)
    chosen = np.array([3, 20, 39])
    found = interpret.frequency_matched(chosen, frequency, np.random.default_rng(1), nearest=4)
    assert len(set(found) | set(chosen)) == 6
    assert np.abs(frequency[found] - frequency[chosen]).max() < 5 / 39
    everything = interpret.frequency_matched(np.arange(20), frequency, np.random.default_rng(1))
    assert sorted(everything) == list(range(20, 40))
    masks = interpret.first_of([4, 2, 0], [0, 1, 3], 5)
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[], [4], [0, 2, 4]]


def test_the_retrained_last_layer_is_at_the_minimum_and_mends_the_worst_group():
    labels = RNG.integers(0, 2, 400)
    attributes = np.where(RNG.uniform(size=400) < 0.9, labels, 1 - labels)
    own = RNG.normal(size=(400, 3)) * 0.7
    own[:, 0], own[:, 1] = own[:, 0] + 2 * labels, own[:, 1] + 6 * attributes
    own[:, 2] = 1.5  # which says nothing
    model = cetsim.nn.mlp((3, 3, 2), lambda x: x, key=jax.random.key(0))
    model = networks.eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[0].bias), model, (jnp.eye(3), jnp.zeros(3)))
    found = interpret.retrained(model, "layers.2", own, labels, attributes, l2=1e-3)
    predicted = np.asarray(jax.vmap(found)(jnp.asarray(own)).argmax(-1))
    assert interpret.group_accuracy(predicted, labels, attributes).worst > 0.8
    mean, sd = own.mean(0), np.where(own.std(0) > 1e-9, own.std(0), 1)

    def loss(parameters):  # the same minimum, with one mean after the other, differentiated by jax
        w, b = parameters
        logits = (jnp.asarray(own) - mean) / sd @ w.T + b
        log = jax.nn.log_softmax(logits)[jnp.arange(400), labels]
        groups = [-log[(labels == y) & (attributes == a)].mean() for y in (0, 1) for a in (0, 1)]
        return sum(groups) / 4 + 1e-3 / 2 * (w**2).sum()

    w = np.asarray(found.layers[2].weight) * sd
    b = np.asarray(found.layers[2].bias) + np.asarray(found.layers[2].weight) @ mean
    slopes = jax.grad(loss)((jnp.asarray(w), jnp.asarray(b)))
    assert max(float(jnp.abs(own).max()) for own in slopes) < 1e-4
    np.testing.assert_array_equal(found.layers[0].weight, model.layers[0].weight)


def test_what_cannot_be_is_refused():
    model, shape, _ = networks.mlp()
    x, coder = networks.images(shape), networks.coder(6)
    refused = [
        (lambda: interpret.suppress(model, "layers.1", coder, np.zeros((1, 5), bool), x), r"booleans \[sets, 6\]"),
        (lambda: interpret.suppress(model, "layers.1", coder, np.zeros((1, 6)), x), "booleans"),
        (lambda: interpret.group_accuracy(np.zeros(3, int), np.zeros(4, int), np.zeros(4, int)), "of the labels"),
        (lambda: interpret.group_accuracy([0], [0], [0, 1]), "shapes"),
        (lambda: interpret.first_of([0, 0], [1], 3), "different ones"),
        (lambda: interpret.first_of([0, 1], [3], 3), "from 0 to the 2 latents"),
        (lambda: interpret.frequency_matched([0, 1], np.ones(3), RNG), "at most half"),
        (lambda: interpret.retrained(model, "layers.1", np.ones((2, 6)), [0, 1], [0, 1]), "eqx.nn.Linear"),
        (lambda: interpret.retrained(model, "layers.4", np.ones((2, 6)), [0, 1], [0, 1]), r"\[2, 5\]"),
        (lambda: interpret.retrained(model, "layers.4", np.ones((2, 5)), [0, 3], [0, 1]), "from 0 to 2"),
    ]
    for call, why in refused:
        with pytest.raises(ValueError, match=why):
            call()
    words = Readout(np.eye(3), 10.0)
    assert interpret.suppress(model, "layers.1", coder, np.zeros((1, 6), bool), x, readout=words).shape == (1, len(x))
