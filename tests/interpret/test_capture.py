"""Values that come out of a running model: which, in what shape, under which transformations, and at what cost."""

import functools

import equinox as eqx
import inside_networks as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim import interpret

KINDS = pytest.mark.parametrize("kind", networks.KINDS)
jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})


@KINDS
def test_outputs_are_those_of_the_plain_model_and_values_those_of_its_parts(kind):
    model, shape, state = networks.KINDS[kind]()
    x, plain = networks.images(shape), cetsim.detach(model)
    names = list(interpret.sites(model))
    output, values = jit(lambda x: networks.captured(interpret.capture(model, names), state, x))(x)
    np.testing.assert_allclose(output, jit(lambda x: networks.outputs(plain, state, x))(x), rtol=1e-10)
    assert values.keys() == set(names)
    assert all(len(value) == len(x) and np.all(np.isfinite(value)) for value in values.values())
    assert all(np.ptp(value, axis=0).max() > 0 for value in values.values())  # each example has values of its own
    np.testing.assert_allclose(values[names[-1]], output, rtol=1e-10)  # the last layer is the last of the tree


def test_values_of_a_chain_are_what_its_layers_return_one_after_the_other():
    model, shape, state = networks.cnn()
    x = networks.images(shape)
    names = list(interpret.sites(model))
    _, values = jit(lambda x: networks.captured(interpret.capture(model, names), state, x))(x)
    for i, name in enumerate(names):
        begun = eqx.nn.Sequential(model.layers[: i + 1])
        np.testing.assert_allclose(values[name], networks.outputs(begun, state, x), rtol=1e-9, atol=1e-12)


def test_values_of_tokens_are_stacked_in_their_order():
    model, shape, _ = networks.transformer()
    x = networks.images(shape)[0]
    block, start = model.blocks[0], model.blocks[1]
    _, values = interpret.capture(model, ["embed", "blocks.0", "blocks.0.mlp.layers.1", "blocks.1.attention.dropout"])(
        x
    )
    patches = np.stack([np.asarray(x)[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2)])
    embedded = patches @ np.asarray(model.embed.weight).T + np.asarray(model.embed.bias)
    np.testing.assert_allclose(values["embed"], embedded, rtol=1e-10)
    tokens = jnp.concatenate([model.cls[None], embedded]) + model.positions
    y = jax.vmap(block.norms[0])(tokens)
    tokens = tokens + block.attention(y, y, y)
    hidden = np.stack([np.tanh(block.mlp.layers[0](block.norms[1](token))) for token in tokens])
    np.testing.assert_allclose(values["blocks.0.mlp.layers.1"], hidden, rtol=1e-10)
    y = np.stack([start.norms[0](token) for token in values["blocks.0"]])
    query, key = (np.asarray(y @ part.weight.T).reshape(5, 2, 4) for part in (
        start.attention.query_proj, start.attention.key_proj
    ))  # fmt: skip
    scores = np.exp(np.einsum("qhd,khd->hqk", query, key) / 2)
    patterns = scores / scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(values["blocks.1.attention.dropout"], patterns, rtol=1e-10)


class Nested(eqx.Module):
    """A layer inside two maps, the outer of which is jitted; beside one whose value the maps do not change."""

    layer: eqx.nn.Linear
    constant: eqx.nn.Linear

    def __init__(self):
        self.layer, self.constant = (eqx.nn.Linear(3, 2, key=jax.random.key(i)) for i in range(2))

    def __call__(self, x):  # [a, b, 3]
        row = jax.vmap(lambda x: self.layer(x) * self.constant(jnp.ones(3)), out_axes=1)
        return jax.vmap(jax.jit(jax.checkpoint(row)))(x)


def test_axes_of_inner_maps_stand_in_front_the_outermost_first():
    model, x = Nested(), networks.images((4, 5, 3))
    for transform in (lambda f: f, jax.jit):
        output, values = transform(interpret.capture(model, ["layer", "constant"]))(x[0])
        np.testing.assert_allclose(output, model(x[0]), rtol=1e-10)
        np.testing.assert_allclose(values["layer"], x[0] @ model.layer.weight.T + model.layer.bias, rtol=1e-10)
        np.testing.assert_allclose(values["constant"], model.constant(jnp.ones(3)), rtol=1e-10)
    _, values = jax.jit(jax.vmap(interpret.capture(model, "layer")))(x)
    np.testing.assert_allclose(values["layer"], x @ model.layer.weight.T + model.layer.bias, rtol=1e-10)


def test_values_are_differentiable_twice_in_inputs_and_weights():
    model, shape, _ = networks.transformer()
    x, name = networks.images(shape)[0], "blocks.0.mlp.layers.1"
    begun = lambda model, x: jnp.sum(interpret.capture(model, name)(x)[1][name] ** 2)  # noqa: E731

    def by_hand(model, x):
        patches = x.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        tokens = jnp.concatenate([model.cls[None], jax.vmap(model.embed)(patches)]) + model.positions
        y, block = jax.vmap(model.blocks[0].norms[0])(tokens), model.blocks[0]
        tokens = jax.vmap(block.norms[1])(tokens + block.attention(y, y, y))
        return jnp.sum(jnp.tanh(jax.vmap(block.mlp.layers[0])(tokens)) ** 2)

    slope = lambda f: jax.grad(functools.partial(f, model))  # noqa: E731
    for function in (slope, lambda f: jax.grad(lambda x: jnp.sum(slope(f)(x) ** 2))):
        got, want = (jax.jit(function(each))(x) for each in (begun, by_hand))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    got, want = (eqx.filter_jit(eqx.filter_grad(each))(model, x).embed.weight for each in (begun, by_hand))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_state_stays_good():
    model, shape, state = networks.cnn()
    function = interpret.capture(eqx.nn.inference_mode(model), "layers.1")
    x = networks.images(shape)[0]
    (first, after), _ = function(x, state)
    (again, _), _ = function(x, state)
    assert isinstance(after, eqx.nn.State)
    np.testing.assert_array_equal(first, again)


class Loops(eqx.Module):
    """A layer in a scan, one behind a stop of gradients, and one in a branch."""

    looped: eqx.nn.Linear
    stopped: eqx.nn.Linear
    branch: eqx.nn.Linear

    def __init__(self):
        self.looped, self.stopped, self.branch = (eqx.nn.Linear(4, 4, key=jax.random.key(i)) for i in range(3))

    def __call__(self, x):
        x, _ = jax.lax.scan(lambda carry, _: (self.looped(carry), None), x, length=3)
        x = jax.lax.stop_gradient(self.stopped(x)) + x
        return jax.lax.cond(x[0] > 1e6, lambda x: self.branch(x), lambda x: x, x)


@pytest.mark.parametrize("name", ["looped", "stopped", "branch"])
@pytest.mark.parametrize("jitted", [False, True])
def test_loops_and_values_that_do_not_come_out_are_refused_by_name(name, jitted):
    call = interpret.capture(Loops(), name)
    with pytest.raises(Exception, match=f"site '{name}' must run exactly once in a call of the model"):
        jax.block_until_ready((jax.jit(call) if jitted else call)(jnp.ones(4)))


def test_edits_act_before_a_stop_of_gradients_and_are_refused_in_a_loop():
    x, add = jnp.ones(4), interpret.Add(1.0)
    np.testing.assert_allclose(interpret.edited(Loops(), {"stopped": add})(x), Loops()(x) + 1, rtol=1e-12)
    with pytest.raises(ValueError, match="site 'looped' must run exactly once"):
        interpret.edited(Loops(), {"looped": add})(x)


def test_a_multilayer_perceptron_that_scans_over_its_layers_is_refused_by_name():
    model = eqx.nn.MLP(4, 3, width_size=5, depth=3, scan=True, key=jax.random.key(0))
    looped = next(name for name in interpret.sites(model) if "1" in name)
    with pytest.raises(Exception, match=rf"site '{looped}' must run exactly once"):
        jax.block_until_ready(interpret.capture(model, looped)(jnp.ones(4)))


def flops(function, *shapes):
    lowered = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, float) for shape in shapes))
    return lowered.compile({"xla_backend_optimization_level": 0}).cost_analysis()["flops"]


def big_cnn():
    model, state = eqx.nn.make_with_state(cetsim.nn.cnn)((3, 16, 16), (8, 16), 32, key=jax.random.key(0))
    return model, (3, 16, 16), state


@pytest.mark.parametrize(
    ("make", "names", "stop"),
    [
        (lambda: (cetsim.nn.mlp((64, 48, 32, 10), key=jax.random.key(0)), (64,), None), (0, 1, 2, 3), 1),
        (big_cnn, (1, 3, 5, 7), 3),
    ],
    ids=["mlp", "cnn"],
)
def test_four_sites_cost_at_most_a_twentieth_and_stopping_leaves_out_what_lies_behind(make, names, stop):
    model, shape, state = make()
    names = [f"layers.{i}" for i in names]
    batch = (16, *shape)
    plain = flops(lambda x: networks.outputs(model, state, x), batch)
    assert flops(lambda x: networks.captured(interpret.capture(model, names), state, x), batch) <= 1.05 * plain
    begun = flops(lambda x: networks.outputs(eqx.nn.Sequential(model.layers[: stop + 1]), state, x), batch)
    stopped = interpret.capture(model, (), stop_at=f"layers.{stop}")
    assert begun < 0.8 * plain
    assert flops(lambda x: networks.captured(stopped, state, x)[0], batch) <= 1.001 * begun


def test_the_value_at_which_is_stopped_is_the_output():
    model, shape, _ = networks.mlp()
    x = networks.images(shape)[0]
    output, values = interpret.capture(model, "layers.1", stop_at="layers.3")(x)
    np.testing.assert_allclose(output, eqx.nn.Sequential(model.layers[:4])(x), rtol=1e-12)
    assert list(values) == ["layers.1"]


def test_what_is_captured_in_float32_is_float32():
    model, shape, _ = networks.mlp()
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if eqx.is_array(leaf) else leaf, model)
    x = networks.images(shape)[0].astype(jnp.float32)
    output, values = interpret.capture(model, "layers.1", {"layers.1": interpret.Add(np.ones(6))})(x)
    assert output.dtype == values["layers.1"].dtype == jnp.float32
