"""Accuracy and alignment against numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim import metrics


def test_accuracy_is_the_share_of_largest_logits():
    logits = jnp.array([[0.0, 2.0, 1.0], [3.0, 1.0, 2.0], [0.0, 0.0, 1.0], [5.0, 6.0, 7.0]])
    assert metrics.accuracy(logits, jnp.array([1, 2, 2, 2])) == 0.75


def test_cosine_is_numpys_and_zero_for_a_zero_vector():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(metrics.cosine(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-12)
    assert metrics.cosine(jnp.asarray(a), jnp.zeros((3, 4))) == 0
    assert np.all(np.isfinite(jax.grad(metrics.cosine)(jnp.zeros((3, 4)), jnp.asarray(b))))


def test_alignment_takes_weights_alone_and_names_layers():
    model = cetsim.nn.mlp((4, 3, 2), key=jax.random.key(0))
    gradient = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_array))
    opposite_bias = eqx.tree_at(lambda m: m.layers[0].bias, gradient, -jnp.ones(3))
    assert set(metrics.alignment(opposite_bias, gradient)) == {"layers.0", "layers.2"}
    np.testing.assert_allclose(list(metrics.alignment(opposite_bias, gradient).values()), 1.0, rtol=1e-12)
    half = eqx.tree_at(lambda m: m.layers[2].weight, gradient, jnp.array([[1.0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(metrics.alignment(half, gradient)["layers.2"], 1 / np.sqrt(6), rtol=1e-12)


def test_trees_that_do_not_match_or_have_no_weights_are_refused():
    model = eqx.filter(cetsim.nn.mlp((4, 3, 2), key=jax.random.key(0)), eqx.is_array)
    attached = eqx.filter(cetsim.attach(model, cetsim.DelayLine(0.0), cetsim.FixedDelay(0.0)), eqx.is_array)
    with pytest.raises(ValueError, match="one structure"):
        metrics.alignment(attached, model)
    with pytest.raises(ValueError, match="no layer with a `weight`"):
        metrics.alignment({"a": jnp.ones(3)}, {"a": jnp.ones(3)})
