"""Optimisers in coordinates of centred inputs: steps of a network that computes W (x - m) + b'; means of any maps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cetsim
from cetsim import nn

STEPS = 12


def network():
    model = nn.mlp((5, 6, 3), key=jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, jnp.asarray(2 + rng.normal(size=(STEPS, 5))), jnp.asarray(rng.integers(0, 3, STEPS))


def loss(model, x, labels):
    logits = jax.vmap(model, axis_name="time")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def over_time(x):
    return lambda model: jax.vmap(model, axis_name="time")(x)


def inputs_of_layers(model, x):
    seen = {}
    for i, layer in enumerate(model.layers):
        if isinstance(layer, eqx.nn.Linear):
            seen[f"layers.{i}"] = np.asarray(x)
        x = jax.vmap(layer)(x)
    return seen


def test_means_are_those_of_what_each_layer_gets():
    model, x, _ = network()
    means = nn.mean_inputs(over_time(x), model)
    expected = {name: seen.mean(axis=0) for name, seen in inputs_of_layers(model, x).items()}
    assert means.keys() == expected.keys()
    for name, mean in expected.items():
        np.testing.assert_allclose(means[name], mean, rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.adam(1e-2), optax.chain(optax.clip(1e-3), optax.adam(0.1))]
)
def test_steps_are_those_of_a_network_of_centred_inputs(optimizer):
    """Whose weights and biases b' are made, stepped by the same optimiser and turned back each time, means held."""
    model, x, labels = network()
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    late, trace = cetsim.FixedDelay(0.4), cetsim.CascadingTrace(3, 0.4)

    def update(params):
        return jax.grad(lambda params: loss(cetsim.attach(eqx.combine(params, rest), trace, late), x, labels))(params)

    ours = nn.centered(optimizer)
    state, literal, literal_state = ours.init(params), params, optimizer.init(params)
    for _ in range(4):
        means = nn.mean_inputs(over_time(x), eqx.combine(params, rest))
        updates, state = ours.update(update(params), state, params, means=means)
        params = optax.apply_updates(params, updates)
        literal, literal_state = literal_step(optimizer, literal, literal_state, update(literal), means)
        for found, expected in zip(jax.tree.leaves(params), jax.tree.leaves(literal), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


def literal_step(optimizer, params, state, grads, means):
    """By way of a network of W and b' = b + W m. The rule is linear in activity: that of x - m gives G_W - G_b m."""
    where = lambda tree: [leaf for i in (0, 2) for leaf in (tree.layers[i].weight, tree.layers[i].bias)]  # noqa: E731
    centred, of_centred, back = [], [], []
    for i in (0, 2):
        m, layer, grad = np.asarray(means[f"layers.{i}"]), params.layers[i], grads.layers[i]
        centred += [layer.weight, layer.bias + layer.weight @ m]
        of_centred += [grad.weight - np.outer(grad.bias, m), grad.bias]
    params = eqx.tree_at(where, params, centred)
    steps, state = optimizer.update(eqx.tree_at(where, grads, of_centred), state, params)
    params = optax.apply_updates(params, steps)
    for i in (0, 2):
        layer = params.layers[i]
        back += [layer.weight, layer.bias - layer.weight @ np.asarray(means[f"layers.{i}"])]
    return eqx.tree_at(where, params, back), state


def test_the_update_is_that_of_traces_that_see_the_mean_taken_off():
    """G_W - G_b m equals the update of a network whose first layer sees x - m, and whose bias makes up for it."""
    model, x, labels = network()
    late, trace = cetsim.FixedDelay(0.4), cetsim.CascadingTrace(3, 0.4)
    gradient = lambda model, x: nn.center(  # noqa: E731
        eqx.filter_grad(lambda model: loss(cetsim.attach(model, trace, late), x, labels))(model), means
    )
    means = nn.mean_inputs(over_time(x), model)
    m = means["layers.0"]
    shifted = eqx.tree_at(lambda model: model.layers[0].bias, model, model.layers[0].bias + model.layers[0].weight @ m)
    plain = eqx.filter_grad(lambda model: loss(cetsim.attach(model, trace, late), x - m, labels))(shifted)
    np.testing.assert_allclose(gradient(model, x).layers[0].weight, plain.layers[0].weight, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(gradient(model, x).layers[0].bias, plain.layers[0].bias, rtol=1e-9, atol=1e-14)


@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.sampled_from(["channels_first", "channels_last", "eqx"])
)
@settings(max_examples=8, deadline=None)
def test_convolutions_are_centred_behind_their_padding(groups, stride, size, layout):
    """Where every tap sees exactly the mean, as inside of a constant image, a step that follows moves nothing."""
    key, rng = jax.random.key(1), np.random.default_rng(groups + stride)
    if layout == "eqx":
        layer = eqx.nn.Conv2d(4, 6, size, stride, padding=1, groups=groups, key=key)
    else:
        layer = nn.Conv2d(4, 6, size, stride, layout=layout, key=key)
    shape = (6, 5, 4) if layout == "channels_last" else (4, 6, 5)
    x = jnp.asarray(1 + rng.normal(size=(3, *shape)))
    means = nn.mean_inputs(lambda layer: jax.vmap(layer)(x), layer)
    channel = -1 if layout == "channels_last" else 1
    expected = np.moveaxis(np.asarray(x), channel, -1).reshape(-1, 4).mean(axis=0)
    np.testing.assert_allclose(means[""], expected, rtol=1e-12)
    step = eqx.tree_at(
        lambda layer: (layer.weight, layer.bias), layer,
        (jnp.asarray(rng.normal(size=layer.weight.shape)), jnp.zeros_like(layer.bias)),
    )  # fmt: skip
    moved = eqx.apply_updates(layer, eqx.filter(nn.follow(step, means), eqx.is_inexact_array))
    spread = means[""] if layout == "channels_last" else means[""][:, None, None]
    constant = jnp.broadcast_to(spread, shape)
    change = np.moveaxis(np.asarray(moved(constant) - layer(constant)), channel if channel < 0 else 0, -1)
    inner = change[1:-1, 1:-1]
    assert inner.size
    np.testing.assert_allclose(inner, 0, atol=1e-12)


@pytest.mark.parametrize("where", ["outside", "inside", "tokens", "scan"])
def test_means_are_over_whatever_is_mapped(where):
    model, x, _ = network()
    batch = jnp.stack([x, 3 * x, x - 1])  # [batch, time, features]
    if where == "outside":
        call = lambda model: jax.vmap(jax.vmap(model, axis_name="time"))(batch)  # noqa: E731
    elif where == "inside":
        call = lambda model: jax.vmap(jax.vmap(model), in_axes=1, axis_name="time")(batch)  # noqa: E731
    elif where == "tokens":
        call = lambda model: jax.vmap(lambda rows: jax.vmap(model)(rows).sum(0), axis_name="time")(batch)  # noqa: E731
    else:
        call = lambda model: jax.lax.scan(lambda c, rows: (c, jax.vmap(model)(rows)), 0.0, batch)[1]  # noqa: E731
    expected = {name: seen.mean(axis=0) for name, seen in inputs_of_layers(model, batch.reshape(-1, 5)).items()}
    for name, mean in nn.mean_inputs(call, model).items():
        np.testing.assert_allclose(mean, expected[name], rtol=1e-12)


def test_a_running_mean_is_that_of_updates_so_far_and_corrected_for_its_start():
    model, x, labels = network()
    params = eqx.filter(model, eqx.is_inexact_array)
    means = [nn.mean_inputs(over_time(scale * x), model) for scale in (1.0, 2.0, -1.0)]
    grads = eqx.filter_grad(loss)(model, x, labels)
    ours, weights = nn.centered(optax.sgd(1.0), decay=0.9), np.asarray([0.81, 0.9, 1.0])
    state = ours.init(params)
    for some in means:
        updates, state = ours.update(grads, state, params, means=some)
    m = sum(w * np.asarray(some["layers.0"]) for w, some in zip(weights, means, strict=True)) / weights.sum()
    expected = -(np.asarray(grads.layers[0].weight) - np.outer(grads.layers[0].bias, m))
    np.testing.assert_allclose(updates.layers[0].weight, expected, rtol=1e-12)
    np.testing.assert_allclose(updates.layers[0].bias, -grads.layers[0].bias - expected @ m, rtol=1e-11)


def test_layers_without_a_bias_are_left_as_they_are():
    first = eqx.nn.Linear(5, 4, use_bias=False, key=jax.random.key(0))
    model = eqx.nn.Sequential([first, eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(4, 3, key=jax.random.key(1))])
    _, x, labels = network()
    means = nn.mean_inputs(over_time(x), model)
    assert list(means) == ["layers.2"]
    params, grads = eqx.filter(model, eqx.is_inexact_array), eqx.filter_grad(loss)(model, x, labels)
    ours = nn.centered(optax.sgd(0.1))
    updates, _ = ours.update(grads, ours.init(params), params, means=means)
    np.testing.assert_array_equal(updates.layers[0].weight, -0.1 * grads.layers[0].weight)
    with pytest.raises(ValueError, match="has no Linear or Conv layer with a bias"):
        nn.mean_inputs(lambda model: jax.vmap(model)(x), first)


def test_a_forward_pass_is_not_made_twice():
    model, x, labels = network()
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    trace, late = cetsim.CascadingTrace(3, 0.4), cetsim.FixedDelay(0.4)

    def gradient(params, x, measured):
        model = eqx.combine(params, rest)
        grads = jax.grad(lambda p: loss(cetsim.attach(eqx.combine(p, rest), trace, late), x, labels))(params)
        return (grads, nn.mean_inputs(over_time(x), model)) if measured else grads

    flops = [jax.jit(gradient, static_argnums=2).lower(params, x, m).compile().cost_analysis()["flops"] for m in (0, 1)]
    assert flops[1] < 1.1 * flops[0]  # the sums; a second pass would be a third more


def test_wrong_use_is_refused():
    model, x, labels = network()
    params, grads = eqx.filter(model, eqx.is_inexact_array), eqx.filter_grad(loss)(model, x, labels)
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), got 1"):
        nn.centered(optax.sgd(0.1), decay=1.0)
    ours = nn.centered(optax.sgd(0.1))
    state, means = ours.init(params), nn.mean_inputs(over_time(x), model)
    with pytest.raises(ValueError, match="needs `params` and `means`"):
        ours.update(grads, state, params)
    with pytest.raises(ValueError, match="`means` must be of the layers"):
        ours.update(grads, state, params, means={"layers.0": means["layers.0"]})
    attached = cetsim.attach(model, cetsim.CascadingTrace(3, 0.4), cetsim.FixedDelay(0.4))
    with pytest.raises(ValueError, match="has a trace: means are of the model without"):
        nn.mean_inputs(over_time(x), attached)
