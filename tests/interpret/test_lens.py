"""The logit lens, direct logits and attention patterns against the NumPy network."""

import equinox as eqx
import inside_networks as networks
import inside_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import interpret

MODEL, SHAPE, _ = networks.transformer()
# Norms whose weights and biases are not those they begin with.
MODEL = eqx.tree_at(
    lambda model: (model.norm.weight, model.norm.bias), MODEL, tuple(np.random.default_rng(0).normal(size=(2, 8)))
)
MODEL = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, MODEL)
IMAGE = networks.images(SHAPE)[0]
VALUES = oracles.values_of(MODEL, IMAGE)


def test_the_lens_applies_the_final_norm_and_ends_at_the_logits():
    streams = {name: jnp.asarray(VALUES[name]) for name in ("blocks.0", "blocks.1")}
    got = interpret.logit_lens(streams, MODEL.head, norm=MODEL.norm)
    for name, value in streams.items():
        centred = np.asarray(value) - np.asarray(value).mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + MODEL.norm.eps)
        normed = scaled * np.asarray(MODEL.norm.weight) + np.asarray(MODEL.norm.bias)
        want = normed @ np.asarray(MODEL.head.weight).T + np.asarray(MODEL.head.bias)
        np.testing.assert_allclose(got[name], want, rtol=1e-10)
    np.testing.assert_allclose(got["blocks.1"][0], oracles.forward(MODEL, IMAGE), rtol=1e-10)
    bare = interpret.logit_lens({"norm": jnp.asarray(VALUES["norm"])}, MODEL.head, norm=None)
    np.testing.assert_allclose(bare["norm"], oracles.forward(MODEL, IMAGE), rtol=1e-10)


def test_direct_logits_are_shares_of_the_frozen_norm_and_sum_to_the_logits():
    names = ("blocks.0.attention", "blocks.0.mlp", "blocks.1.attention", "blocks.1.mlp")
    residual = jnp.asarray(VALUES["blocks.1"][0])
    parts = {name: jnp.asarray(VALUES[name][0]) for name in names}
    got = jax.jit(lambda: interpret.direct_logits(parts, residual, MODEL.head, norm=MODEL.norm))()
    np.testing.assert_allclose(sum(got.values()), oracles.forward(MODEL, IMAGE), rtol=1e-10)
    sigma = np.sqrt(np.var(residual) + MODEL.norm.eps)
    weight, gamma = np.asarray(MODEL.head.weight), np.asarray(MODEL.norm.weight)
    start = np.asarray(MODEL.cls) + np.asarray(MODEL.positions[0])
    for name, part in [*parts.items(), ("rest", start)]:
        want = weight @ (gamma * (np.asarray(part) - np.mean(part)) / sigma)
        np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-12)
    want = weight @ np.asarray(MODEL.norm.bias) + np.asarray(MODEL.head.bias)
    np.testing.assert_allclose(got["bias"], want, rtol=1e-10)


@pytest.mark.parametrize("use_weight", [True, False])
def test_direct_logits_of_a_root_mean_square_norm_and_of_none_sum_too(use_weight):
    rng = np.random.default_rng(1)
    parts = {name: jnp.asarray(rng.normal(size=8)) for name in "ab"}
    residual = parts["a"] + parts["b"] + 0.5
    norm = eqx.nn.RMSNorm(8, use_weight=use_weight, use_bias=use_weight)
    got = interpret.direct_logits(parts, residual, MODEL.head, norm=norm)
    np.testing.assert_allclose(sum(got.values()), MODEL.head(norm(residual)), rtol=1e-10)
    scale = np.sqrt(np.mean(np.asarray(residual) ** 2) + norm.eps)
    np.testing.assert_allclose(got["a"], np.asarray(MODEL.head.weight) @ np.asarray(parts["a"]) / scale, rtol=1e-10)
    bare = interpret.direct_logits(parts, residual, MODEL.head.weight, norm=None)
    np.testing.assert_allclose(bare["b"], np.asarray(MODEL.head.weight) @ np.asarray(parts["b"]), rtol=1e-10)
    np.testing.assert_allclose(sum(bare.values()), MODEL.head.weight @ residual, rtol=1e-10)


def test_attention_patterns_are_softmaxes_of_queries_and_keys():
    got = jax.jit(interpret.attention_patterns(MODEL))(IMAGE)
    assert list(got) == ["blocks.0.attention", "blocks.1.attention"]
    for name, pattern in got.items():
        assert pattern.shape == (2, 5, 5)
        np.testing.assert_allclose(pattern, VALUES[f"{name}.dropout"], rtol=1e-10)
        np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-12)
    one = interpret.attention_patterns(MODEL, ["blocks.1.attention"])
    assert list(jax.vmap(one)(IMAGE[None])) == ["blocks.1.attention"]


class Own(eqx.Module):
    """An attention of one's own, whose weights pass a module called `pattern`."""

    pattern: eqx.nn.Identity

    def __call__(self, x):
        return self.pattern(jax.nn.softmax(x @ x.T)[None])[0] @ x


def test_a_module_called_pattern_is_an_attention():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    model = eqx.nn.Sequential([Own(eqx.nn.Identity()), eqx.nn.Lambda(lambda x: x)])

    class Around(eqx.Module):
        own: Own

        def __call__(self, x):
            return self.own(x)

    got = interpret.attention_patterns(Around(model.layers[0]))(x)
    np.testing.assert_allclose(got["own"][0], jax.nn.softmax(x @ x.T), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lens(jnp.ones((5, 6))), r"site 'a': norm and head do not take \[5, 6\]: "),
        (lambda: direct({"rest": jnp.ones(8)}), "component 'rest' must have the residual's shape"),
        (lambda: direct({"a": jnp.ones(7)}), r"component 'a' must have the residual's shape, \(8,\)"),
        (lambda: direct({}, residual=jnp.ones(7)), r"`residual` must be \[d\] and the head \[classes, d\], got"),
        (
            lambda: direct({}, norm=eqx.nn.LayerNorm(7)),
            r"`norm` must be an eqx.nn.LayerNorm or RMSNorm of shape \(8,\)",
        ),
        (lambda: direct({}, norm=jnp.tanh), r"or None, got PjitFunction"),
        (lambda: interpret.attention_patterns(networks.mlp()[0]), "the model has no attention"),
        (lambda: interpret.attention_patterns(MODEL, ["blocks.0"]), "`names` must be one of 'blocks.0.attention', "),
    ],
)
def test_what_has_no_logits_or_patterns_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def lens(value):
    return interpret.logit_lens({"a": value}, MODEL.head, norm=MODEL.norm)


def direct(components, residual=None, norm=None):
    return interpret.direct_logits(components, jnp.ones(8) if residual is None else residual, MODEL.head, norm=norm)
