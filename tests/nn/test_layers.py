"""Every kind of layer that takes a trace, against its update written out in numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import layer_oracles
import numpy as np
import pytest
import rule_oracles as oracles
from networks import DELAY, DT, STEPS, TRACE, assert_different, assert_same, default, gradients, half_square, jit

import cetsim
from cetsim import CascadingTrace, DelayLine, FixedDelay

KEYS = jax.random.split(jax.random.key(0), 8)
TANH = eqx.nn.Lambda(jnp.tanh)
LAYERS = {
    "conv1d": (lambda key: eqx.nn.Conv1d(2, 4, 3, 2, padding=1, groups=2, key=key), layer_oracles.conv, (2, 5)),
    "dilated": (
        lambda key: eqx.nn.Conv1d(2, 2, 2, dilation=2, padding=((1, 2),), use_bias=False, key=key),
        layer_oracles.conv,
        (2, 4),
    ),
    "circular": (
        lambda key: eqx.nn.Conv1d(1, 2, 3, padding=1, padding_mode="CIRCULAR", key=key),
        layer_oracles.conv,
        (1, 4),
    ),
    "conv2d": (lambda key: eqx.nn.Conv2d(2, 2, (1, 2), (2, 1), groups=2, key=key), layer_oracles.conv, (2, 3, 3)),
    "conv3d": (lambda key: eqx.nn.Conv3d(1, 2, 2, key=key), layer_oracles.conv, (1, 2, 3, 2)),
    "transposed1d": (
        lambda key: eqx.nn.ConvTranspose1d(2, 4, 3, 2, padding=1, output_padding=1, groups=2, key=key),
        layer_oracles.transposed,
        (2, 3),
    ),
    "transposed2d": (
        lambda key: eqx.nn.ConvTranspose2d(1, 2, 2, (2, 1), dilation=(1, 2), use_bias=False, key=key),
        layer_oracles.transposed,
        (1, 2, 2),
    ),
    "transposed3d": (lambda key: eqx.nn.ConvTranspose3d(1, 1, 2, key=key), layer_oracles.transposed, (1, 1, 2, 2)),
    "scalar": (lambda key: eqx.nn.Linear("scalar", "scalar", key=key), layer_oracles.linear, ()),
    "to a vector": (lambda key: eqx.nn.Linear("scalar", 3, key=key), layer_oracles.linear, ()),
}


def segment(layer, shape, seed=1):
    """Inputs, and targets of the shape of what the layer makes of them."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(STEPS, *shape)))
    return x, jnp.asarray(rng.normal(size=jax.eval_shape(jax.vmap(layer), x).shape))


@pytest.mark.parametrize("kind", LAYERS)
def test_every_affine_layer_learns_by_the_rule(kind):
    make, apply, shape = LAYERS[kind]
    layer = make(KEYS[0])
    model, (x, target) = eqx.nn.Sequential([layer, TANH]), segment(layer, shape)
    assert cetsim.layer_names(model) == ["layers.0"]
    grads, down = gradients(model, x, target, default)
    wanted = layer_oracles.update(layer, apply, np.asarray(x), target, TRACE, 3)
    assert_same([grads.layers[0].weight, grads.layers[0].bias, down], wanted)


@pytest.mark.parametrize("form", ["activation", "preactivation"])
def test_embeddings_learn_by_the_rule(form):
    table = eqx.nn.Embedding(5, 3, key=KEYS[0])
    model, rng = eqx.nn.Sequential([table, TANH]), np.random.default_rng(2)
    tokens, target = jnp.asarray(rng.integers(0, 5, STEPS)), jnp.asarray(rng.normal(size=(STEPS, 3)))
    grads = jit(eqx.filter_grad(lambda m: half_square(default(m, form=form), tokens, target)))(model)
    wanted, *_ = layer_oracles.update(table, layer_oracles.embedding, tokens, target, TRACE, 3, form)
    assert_same(grads.layers[0].weight, wanted)


@pytest.mark.parametrize("cut", [STEPS, 4])
def test_streams_of_embeddings_equal_one_segment(cut):
    """With weights held, wherever the stream is cut."""
    model = eqx.nn.Sequential([eqx.nn.Embedding(5, 3, key=KEYS[0]), TANH, eqx.nn.Linear(3, 2, key=KEYS[1])])
    rng = np.random.default_rng(2)
    tokens, target = jnp.asarray(rng.integers(0, 5, STEPS)), jnp.asarray(rng.normal(size=(STEPS, 2)))
    whole = jit(eqx.filter_grad(lambda m: half_square(default(m), tokens, target)))(model)
    carried = default(model, boundary="carry", window=STEPS)
    state, total = cetsim.streaming_init(carried, tokens[0]), None
    for rows in (slice(0, cut), slice(cut, STEPS)):
        if rows.start < rows.stop:
            step = jit(cetsim.streaming_value_and_grad(half_square))
            _, grads, state = step(carried, state, tokens[rows], target[rows])
            grads = cetsim.detach(grads)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert_same(total, whole)


def test_a_stream_of_more_places_than_its_dtype_tells_apart_is_refused():
    table = eqx.nn.Embedding(2**8 + 1, 1, dtype=jnp.bfloat16, key=KEYS[0])
    assert default(eqx.nn.Sequential([table, TANH])) is not None
    with pytest.raises(ValueError, match=r"'layers.0': a stream remembers places in the table as bfloat16"):
        default(eqx.nn.Sequential([table, TANH]), boundary="carry")


def test_weights_of_a_weight_norm_learn_what_their_layer_would():
    """Its direction and its length get the chain rule of W = g v / ‖v‖ at the layer's own update."""
    layer = eqx.nn.Linear(4, 3, key=KEYS[0])
    model, (x, target) = eqx.nn.Sequential([eqx.nn.WeightNorm(layer), TANH]), segment(layer, (4,))
    model = eqx.tree_at(lambda m: m.layers[0].g, model, model.layers[0].g * 1.5)
    v, g = np.asarray(layer.weight), np.asarray(model.layers[0].g)
    size = np.linalg.norm(v, axis=1, keepdims=True)
    scaled = eqx.tree_at(lambda layer: layer.weight, layer, g * v / size)
    weight, bias, _ = layer_oracles.update(scaled, layer_oracles.linear, np.asarray(x), target, TRACE, 3)
    along = np.sum(weight * v, axis=1, keepdims=True) / size
    grads, _ = gradients(model, x, target, default)
    wanted = along, g / size * (weight - along * v / size), bias
    assert_same([grads.layers[0].g, grads.layers[0].layer.weight, grads.layers[0].layer.bias], wanted)
    assert eqx.tree_equal(cetsim.detach(default(model)), model)


def test_kernels_per_post_neuron_and_feedback_weights():
    own = CascadingTrace(3, jnp.linspace(0.3, 0.9, 4), DT)
    conv = eqx.nn.Conv1d(2, 4, 3, key=KEYS[0])
    model = eqx.nn.Sequential([conv, TANH])
    assert cetsim.attach(model, own, DELAY).layers[0].synapses.trace.shape == (4,)
    with pytest.raises(ValueError, match=r"'layers.0': a trace must be shared or have shape \(4,\), got \(3,\)"):
        cetsim.attach(model, CascadingTrace(3, jnp.ones(3), DT), DELAY)
    normed = eqx.nn.Sequential([eqx.nn.WeightNorm(eqx.nn.Linear(4, 4, key=KEYS[0]))])
    with pytest.raises(ValueError, match=r"'layers.0': `feedback` does not go with an eqx.nn.WeightNorm"):
        default(normed, overrides={"layers.0": {"feedback": jnp.ones((4, 4))}})
    table = eqx.nn.Sequential([eqx.nn.Embedding(5, 3, key=KEYS[0])])
    with pytest.raises(ValueError, match=r"'layers.0': `feedback` is for layers that errors pass"):
        default(table, overrides={"layers.0": {"feedback": jnp.ones((5, 3))}})


# Attention, whose linear layers are mapped over tokens.

TOKENS, SIZE = 3, 4


class Attention(eqx.Module):
    """Attention and a readout of the first token, as a user would write it."""

    attend: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    read: eqx.nn.Linear

    def __init__(self):
        self.attend = eqx.nn.MultiheadAttention(2, SIZE, use_query_bias=True, use_output_bias=True, key=KEYS[0])
        self.norm, self.read = eqx.nn.LayerNorm(SIZE), eqx.nn.Linear(SIZE, 2, key=KEYS[1])

    def __call__(self, x):
        return self.read(jax.vmap(self.norm)(x + self.attend(x, x, x))[0])


def written_out(model, x, nudges):
    """Attention by matrices; `nudges` are added to what each projection makes, `[time, token, out]`."""
    query, key, value, output = (getattr(model.attend, f"{name}_proj") for name in ("query", "key", "value", "output"))
    heads = [
        (rows @ layer.weight.T + (0 if layer.bias is None else layer.bias) + nudge).reshape(STEPS, TOKENS, 2, -1)
        for layer, rows, nudge in ((query, x, nudges[0]), (key, x, nudges[1]), (value, x, nudges[2]))
    ]
    weights = jax.nn.softmax(jnp.einsum("tqhc,tkhc->thqk", heads[0], heads[1]) / np.sqrt(SIZE // 2), axis=-1)
    mixed = jnp.einsum("thqk,tkhc->tqhc", weights, heads[2]).reshape(STEPS, TOKENS, SIZE)
    out = x + mixed @ output.weight.T + output.bias + nudges[3]
    centred = out - out.mean(-1, keepdims=True)
    first = (centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))[:, 0]
    return first @ model.read.weight.T + model.read.bias + nudges[4], (x, x, x, mixed, first)


def attention_factors(model, x, target):
    """Output, and what the synapses of the four projections and of the readout see: x and ∂ℓ/∂z, per token."""
    nudges = [jnp.zeros((STEPS, TOKENS, SIZE))] * 4 + [jnp.zeros((STEPS, 2))]

    def loss(nudges):
        out, seen = written_out(model, x, nudges)
        return 0.5 * jnp.sum((out - target) ** 2), (out, seen)

    errors, (out, seen) = jit(jax.grad(loss, has_aux=True))(nudges)
    rows = lambda a: np.asarray(a).reshape(STEPS, -1, a.shape[-1])  # noqa: E731
    return out, [oracles.Factors(rows(x), np.ones_like(rows(e)), rows(e)) for x, e in zip(seen, errors, strict=True)]


def test_attention_learns_token_by_token():
    model, rng = Attention(), np.random.default_rng(3)
    x, target = jnp.asarray(rng.normal(size=(STEPS, TOKENS, SIZE))), jnp.asarray(rng.normal(size=(STEPS, 2)))
    out, factors = attention_factors(model, x, target)
    np.testing.assert_allclose(jit(lambda model, x: jax.vmap(model)(x))(model, x), out, atol=1e-12)
    attach = lambda m: default(m, form="preactivation", overrides={"norm": None})  # noqa: E731
    grads, _ = gradients(model, x, target, attach)
    attend = grads.attend
    layers = [attend.query_proj, attend.key_proj, attend.value_proj, attend.output_proj, grads.read]
    for layer, seen in zip(layers, factors, strict=True):
        wanted = oracles.update(TRACE, 3, seen, form="preactivation")
        assert_same([layer.weight, layer.bias], wanted if layer.bias is not None else wanted[:1])


# The cases of layers that were left out or crashed.


def test_a_conv1d_is_not_left_to_backprop():
    net = eqx.nn.Sequential(
        [eqx.nn.Conv1d(1, 2, 3, padding=1, key=KEYS[0]), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Lambda(jnp.ravel),
         eqx.nn.Linear(10, 3, key=KEYS[1])]
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(1), (40, 1, 5))
    loss = lambda n: jnp.sin(jax.vmap(n, axis_name="time")(x)).sum()  # noqa: E731
    traced = jit(eqx.filter_grad(lambda n: loss(cetsim.attach(n, CascadingTrace(4, 2.0), FixedDelay(2.0)))))(net)
    assert_different(traced.layers[0].weight, jit(eqx.filter_grad(loss))(net).layers[0].weight)


class Tied(eqx.Module):
    """Two layers with one weight."""

    shared: eqx.nn.Shared

    def __init__(self):
        layers = eqx.nn.Linear(4, 4, key=KEYS[0]), eqx.nn.Linear(4, 4, key=KEYS[1])
        self.shared = eqx.nn.Shared(layers, lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, x):
        first, second = self.shared()
        return second(jnp.tanh(first(x)))


class Spectral(eqx.Module):
    """A layer whose weights are divided by their largest singular value."""

    norm: eqx.nn.SpectralNorm
    read: eqx.nn.Linear

    def __init__(self):
        self.norm = eqx.nn.SpectralNorm(eqx.nn.Linear(4, 4, key=KEYS[0]), "weight", key=KEYS[1])
        self.read = eqx.nn.Linear(4, 2, key=KEYS[2])


@pytest.mark.parametrize(("make", "name", "kind"), [(Tied, "shared", "Shared"), (Spectral, "norm", "SpectralNorm")])
def test_layers_that_others_reach_into_are_refused_by_name_or_left(make, name, kind):
    with pytest.raises(ValueError, match=rf"'{name}' is an eqx.nn.{kind}, .* overrides=\{{'{name}': None\}} leaves it"):
        default(make(), form="preactivation")
    plain = make()
    model = default(plain, form="preactivation", overrides={name: None})
    assert eqx.tree_equal(getattr(model, name), getattr(plain, name))


def test_layers_in_a_weight_norm_take_a_trace_anywhere():
    x = jnp.ones((20, 4))
    loss = lambda m: jax.vmap(m, axis_name="time")(x).sum()  # noqa: E731
    late = lambda m: cetsim.attach(m, DelayLine(1.0), FixedDelay(1.0), form="preactivation")  # noqa: E731
    model = eqx.nn.WeightNorm(eqx.nn.Linear(4, 4, key=KEYS[0]))
    grads = jit(eqx.filter_grad(lambda m: loss(late(m))))(model)
    plain = jit(eqx.filter_grad(loss))(model)
    assert_same(jax.tree.map(lambda leaf: leaf * 15 / 20, plain), grads)  # 5 of 20 signals come too late
