"""Time is the axis named "time"; every other map is a batch, tokens, conditions or an ensemble, in any order.

Updates are compared with the sum of the definition, written by hand in NumPy float64: over all signals r and writes s,
w(a_r - t_s) times signal times activity, from the factors of a plain network with an extra input at each layer.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_same, jit
from time_oracles import DELAY, DT, RNG, SIZES, TRACE, T, attach, by_hand, linear, met, time

import cetsim
from cetsim import CascadingTrace, DelayLine, FixedDelay

ORDERS = [("time",), ("a", "time"), ("time", "a"), ("a", "time", "b"), ("time", "a", "b"), ("a", "b", "time")]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_time_is_found_wherever_it_is_mapped(order):
    """The axes of `order`, the outermost first."""
    shape, now = [SIZES[name] for name in order], order.index("time")
    x, cotangent = (jnp.asarray(RNG.normal(size=(*shape, size))) for size in (4, 3))

    def loss(layer):
        function = attach(layer)
        for name in reversed(order):
            function = time(function) if name == "time" else jax.vmap(function)
        return jnp.sum(cotangent * function(x))

    grads, eager = jit(jax.grad(loss))(linear()), jax.grad(loss)(linear())
    expected = by_hand(np.moveaxis(x, now, 0), np.moveaxis(cotangent, now, 0))
    for found in (grads, eager):
        assert_same(found.weight, expected)
    bias = by_hand(np.ones((*np.moveaxis(x, now, 0).shape[:-1], 1)), np.moveaxis(cotangent, now, 0))
    assert_same(grads.bias, bias[:, 0])


def test_convolutions_and_their_pools_are_mapped_over_tokens_too():
    """Inside of time, in the form of activations, each image with a gate of its own: as many models, each alone."""
    layers = [
        eqx.nn.Conv2d(2, 3, 3, padding=1, key=jax.random.key(0)),
        eqx.nn.Lambda(jnp.tanh),
        eqx.nn.AvgPool2d(2, 2),
    ]
    model, x = eqx.nn.Sequential(layers), jnp.asarray(RNG.normal(size=(T, 3, 2, 4, 4)))
    cotangent = jnp.asarray(RNG.normal(size=(T, 3, 3, 2, 2)))
    gated = lambda m: cetsim.attach(m, TRACE, DELAY, error_gate=2.0)  # noqa: E731
    inside = jit(eqx.filter_grad(lambda m: jnp.sum(cotangent * time(jax.vmap(gated(m)))(x))))(model)
    alone = jit(eqx.filter_grad(lambda m, x, c: jnp.sum(c * time(gated(m))(x))))
    each = [alone(model, x[:, k], cotangent[:, k]) for k in range(3)]
    assert_same(jax.tree.leaves(inside), jax.tree.leaves(jax.tree.map(lambda *leaves: sum(leaves), *each)), 1e-12)


def test_conditions_may_be_mapped_inside_of_time_or_outside():
    """Traces that differ between the entries of an axis, along which activity does not vary."""
    x, cotangent, seconds = RNG.normal(size=(T, 4)), RNG.normal(size=(T, 2, 3)), jnp.array([0.6, 1.0])
    x, cotangent = jnp.asarray(x), jnp.asarray(cotangent)

    def loss(layer):
        at = lambda seconds, x: cetsim.attach(  # noqa: E731
            layer, CascadingTrace(3, seconds, DT), DELAY, form="preactivation"
        )(x)
        return jnp.sum(cotangent * time(lambda x: jax.vmap(at, (0, None))(seconds, x))(x))

    def outside(layer):
        run = lambda seconds, c: jnp.sum(  # noqa: E731
            c * time(cetsim.attach(layer, CascadingTrace(3, seconds, DT), DELAY, form="preactivation"))(x)
        )
        return jnp.sum(jax.vmap(run)(seconds, jnp.moveaxis(cotangent, 1, 0)))

    def copies(layer):
        """The same loss of every condition: no cotangent of its own tells them apart."""
        run = lambda seconds: jnp.sum(  # noqa: E731
            cotangent[:, 0] * time(cetsim.attach(layer, CascadingTrace(3, seconds, DT), DELAY, form="preactivation"))(x)
        )
        return jnp.sum(jnp.array([1.0, -2.0]) * jax.vmap(run)(seconds))

    each = [met(trace=CascadingTrace(3, float(late), DT)) for late in seconds]
    expected = sum(by_hand(x, cotangent[:, i], each[i]) for i in range(2))
    assert_same(jit(jax.grad(loss))(linear()).weight, expected)
    assert_same(jit(jax.grad(outside))(linear()).weight, expected)
    expected = by_hand(x, cotangent[:, 0], each[0]) - 2 * by_hand(x, cotangent[:, 0], each[1])
    assert_same(jit(jax.grad(copies))(linear()).weight, expected)


def test_a_layer_whose_input_is_the_same_at_every_step():
    """Its activity is remembered all the same: Σ over writes."""
    x, cotangent = jnp.asarray(RNG.normal(size=4)), jnp.asarray(RNG.normal(size=(T, 3)))

    def loss(layer):
        model = attach(layer)
        return jnp.sum(cotangent * time(lambda c: model(x))(jnp.arange(T)))

    assert_same(jit(jax.grad(loss))(linear()).weight, by_hand(np.broadcast_to(x, (T, 4)), cotangent))


def test_gradients_of_each_step_add_up_to_the_update():
    """`jax.grad` inside the map over time: what each step's activity earns."""
    x, cotangent = (jnp.asarray(RNG.normal(size=(T, size))) for size in (4, 3))
    step = lambda layer, x, c: jnp.sum(c * attach(layer)(x))  # noqa: E731
    each = jit(jax.vmap(jax.grad(step), (None, 0, 0), axis_name="time"))(linear(), x, cotangent).weight
    expected = np.einsum("rs,ro,si->soi", met(), cotangent, x)
    np.testing.assert_allclose(each, expected, atol=1e-12)


@pytest.mark.parametrize("inside", [True, False])
def test_an_ensemble_is_mapped_inside_or_outside_of_time(inside):
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(keys)
    x, cotangent = jnp.asarray(RNG.normal(size=(T, 4))), jnp.asarray(RNG.normal(size=(3, T, 3)))

    def loss(ensemble):
        members = attach(ensemble)
        each = eqx.filter_vmap(lambda m, x: m(x), in_axes=(eqx.if_array(0), None))
        if inside:
            return jnp.sum(jnp.moveaxis(cotangent, 0, 1) * time(lambda x: each(members, x))(x))
        run = eqx.filter_vmap(lambda m, x: time(m)(x), in_axes=(eqx.if_array(0), None))
        return jnp.sum(cotangent * run(members, x))

    grads = jit(jax.grad(loss))(ensemble)
    for i in range(3):
        assert_same(grads.weight[i], by_hand(x, cotangent[i]))


# Whole networks: what each layer sees is recorded in a plain twin, which adds a zero to every pre-activation.


class Mixed(eqx.Module):
    """Per-token layers with normalisation, dropout and attention between them, and a layer that is used twice."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    query: eqx.nn.Linear
    drop: eqx.nn.Dropout
    twice: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(1), 3)
        self.embed, self.query, self.twice = (
            eqx.nn.Linear(*s, key=k) for s, k in zip(((4, 6), (6, 6), (6, 6)), keys, strict=True)
        )
        self.norm, self.drop = eqx.nn.LayerNorm(6), eqx.nn.Dropout(0.3)

    def __call__(self, tokens, key, apply=lambda layer, name, x: jax.vmap(layer)(x)):
        """[tokens, 4] to [tokens, 6]."""
        h = jnp.tanh(apply(self.embed, "embed", tokens))
        q = apply(self.query, "query", jax.vmap(self.norm)(h))
        h = h + jax.nn.softmax(q @ q.T / 6**0.5) @ h
        h = self.drop(jnp.tanh(apply(self.twice, "first", h)), key=key)
        return apply(self.twice, "second", h)


USES = {"embed": ("embed",), "query": ("query",), "twice": ("first", "second")}


def recorded(model, x, keys, loss):
    """Input and cotangent of the pre-activation of each use of a layer, `[time, tokens, ...]`, by a plain network."""
    zeros = {name: jnp.zeros((*x.shape[:2], 6)) for uses in USES.values() for name in uses}

    def run(zeros):
        def step(tokens, key, zeros):
            seen = {}

            def apply(layer, name, x):
                seen[name] = x
                return jax.vmap(layer)(x) + zeros[name]

            return model(tokens, key, apply), seen

        out, seen = jax.vmap(step)(x, keys, zeros)
        return loss(out), seen

    cotangents, seen = jit(jax.grad(run, has_aux=True))(zeros)
    return seen, cotangents


@pytest.mark.parametrize("how", ["plain", "remat", "scan inside", "jit inside"])
def test_a_network_of_tokens(how):
    model, keys = Mixed(), jax.random.split(jax.random.key(2), T)
    x = jnp.asarray(RNG.normal(size=(T, 5, 4)))
    loss = lambda out: jnp.sum(jnp.sin(out))  # noqa: E731

    def traced(model):
        attached = attach(model, overrides={"norm": None})
        call = lambda tokens, key: attached(tokens, key)  # noqa: E731
        if how == "remat":
            call = jax.checkpoint(call)
        if how == "jit inside":
            call = jax.jit(call)
        if how == "scan inside":
            inner = call
            call = lambda tokens, key: jax.lax.scan(lambda c, _: (c, inner(tokens, key)), 0, None, length=1)[1][0]  # noqa: E731
        return loss(time(call)(x, keys))

    grads = jit(eqx.filter_grad(traced))(model)
    seen, cotangents = recorded(model, x, keys, loss)
    for layer, uses in USES.items():
        expected = sum(by_hand(seen[name], cotangents[name]) for name in uses)
        assert_same(getattr(grads, layer).weight, expected)
    plain = jit(eqx.filter_grad(lambda m: loss(jax.vmap(lambda t, k: m(t, k))(x, keys))))(model)
    assert_same(grads.norm.weight, plain.norm.weight)  # no synapse: undelayed backprop


def test_multihead_attention_of_equinox():
    """Each of its four layers, per frame of five tokens, against the sum by hand."""
    block = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(3))
    x = jnp.asarray(RNG.normal(size=(T, 5, 6)))
    names = ("query_proj", "key_proj", "value_proj", "output_proj")

    def plain(zeros):
        """The same attention, written out."""

        def heads(name):
            z = x @ getattr(block, name).weight.T + zeros[name]
            return z.reshape(T, 5, 2, 3)

        q, k, v = (heads(name) for name in names[:3])
        pattern = jax.nn.softmax(jnp.einsum("tqhd,tkhd->thqk", q, k) / 3**0.5, axis=-1)
        mixed = jnp.einsum("thqk,tkhd->tqhd", pattern, v).reshape(T, 5, 6)
        return jnp.sum(jnp.sin(mixed @ block.output_proj.weight.T + zeros["output_proj"])), mixed

    zeros = {name: jnp.zeros((T, 5, 6)) for name in names}
    cotangents, mixed = jax.grad(plain, has_aux=True)(zeros)
    loss = lambda m: jnp.sum(jnp.sin(time(lambda tokens: attach(m)(tokens, tokens, tokens))(x)))  # noqa: E731
    grads = jit(eqx.filter_grad(loss))(block)
    for name in names:
        seen = mixed if name == "output_proj" else x
        assert_same(getattr(grads, name).weight, by_hand(seen, cotangents[name]))


def test_frozen_layers_stay_and_tied_ones_add_up():
    class Tied(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    one = linear(4, 4)
    x, cotangent = jnp.asarray(RNG.normal(size=(T, 4))), jnp.asarray(RNG.normal(size=(T, 4)))
    tied = lambda layer: jnp.sum(cotangent * time(attach(Tied(layer, layer)))(x))  # noqa: E731
    h = np.tanh(np.asarray(x) @ np.asarray(one.weight).T + np.asarray(one.bias))
    below = (np.asarray(cotangent) @ np.asarray(one.weight)) * (1 - h**2)
    assert_same(jit(jax.grad(tied))(one).weight, by_hand(h, cotangent) + by_hand(x, below))
    frozen = lambda layer: jnp.sum(  # noqa: E731
        cotangent * time(attach(Tied(layer, jax.lax.stop_gradient(one))))(x)
    )
    assert_same(jit(jax.grad(frozen))(one).weight, by_hand(x, below))


# What is refused.


class Loop(eqx.Module):
    layer: eqx.Module

    def __call__(self, x):
        return jnp.stack([self.layer(row) for row in x])


WAYS = {
    "plain call": lambda model, x: model(x[0]),
    "unnamed map": lambda model, x: jax.vmap(model)(x),
    "map of another name": lambda model, x: jax.vmap(model, axis_name="batch")(x),
    "scan": lambda model, x: jax.lax.scan(lambda c, row: (c, model(row)), 0, x)[1],
    "lax.map": lambda model, x: jax.lax.map(model, x),
    "lax.map in batches": lambda model, x: jax.lax.map(model, x, batch_size=4),
    "loop": lambda model, x: Loop(model)(x),
    "leading axis": lambda model, x: model(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_without_a_map_over_time_a_traced_model_says_how(way):
    x = jnp.ones((T, 4))
    run = lambda layer: jnp.sum(WAYS[way](attach(layer), x))  # noqa: E731
    for transformed in (run, jax.jit(run), jax.grad(run), jax.jit(jax.grad(run))):
        with pytest.raises(ValueError, match=r"has a trace and must know which axis is time.*axis_name=\"time\""):
            transformed(linear())


def test_traces_that_vary_along_time_are_refused():
    x = jnp.ones((T, 4))
    one = lambda layer, seconds, x: cetsim.attach(  # noqa: E731
        layer, CascadingTrace(3, seconds, DT), DELAY, form="preactivation"
    )(x)
    loss = lambda layer: jnp.sum(jax.vmap(one, (None, 0, 0), axis_name="time")(layer, 0.6 + jnp.arange(T), x))  # noqa: E731
    with pytest.raises(ValueError, match=r"its trace, its delay or its stream's state varies along time"):
        jax.grad(loss)(linear())


def test_a_layer_that_runs_at_some_steps_only_is_refused():
    """JAX runs both branches of a `lax.cond` whose predicate is mapped, on copies of all that they use."""
    x = jnp.ones((T, 4))
    sometimes = lambda m: lambda x: jax.lax.cond(x[0] > 0, lambda x: m(x), lambda x: jnp.zeros(3), x)  # noqa: E731
    with pytest.raises(ValueError, match="whose predicate varies along it"):
        jax.grad(lambda layer: jnp.sum(time(sometimes(attach(layer)))(x)))(linear())


@pytest.mark.parametrize("second", ["hessian", "jvp of grad", "through training"])
def test_second_derivatives_through_weights_are_refused(second):
    """They would be zeros: those of a gradient that is no gradient. Those in delays are tested in test_nn.py."""
    x = jnp.asarray(RNG.normal(size=(T, 4)))
    layer = linear()

    def gradient(weight, seconds=0.6):
        m = eqx.tree_at(lambda layer: layer.weight, layer, weight)
        loss = lambda m: jnp.sum(  # noqa: E731
            jnp.sin(time(cetsim.attach(m, CascadingTrace(3, seconds, DT), DELAY, form="preactivation"))(x))
        )
        return jax.grad(loss)(m).weight

    def trained(seconds):
        weight = layer.weight - 0.1 * gradient(layer.weight, seconds)
        return jnp.sum(gradient(weight, seconds))

    ways = {
        "hessian": lambda: jax.jacrev(gradient)(layer.weight),
        "jvp of grad": lambda: jax.jvp(gradient, (layer.weight,), (layer.weight,)),
        "through training": lambda: jax.grad(trained)(0.6),
    }
    with pytest.raises(ValueError, match="second derivatives through the weights or inputs of a model with traces"):
        ways[second]()


def test_a_delay_line_at_no_delay_is_backprop_for_tokens():
    """In float32 too."""
    x = jnp.asarray(RNG.normal(size=(T, 5, 4)), jnp.float32)
    layer = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), linear())
    line = lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0), form="preactivation")  # noqa: E731
    loss = lambda m: jnp.sum(jnp.sin(time(jax.vmap(m))(x)))  # noqa: E731
    found, plain = jit(jax.grad(lambda m: loss(line(m))))(layer), jit(jax.grad(loss))(layer)
    assert found.weight.dtype == jnp.float32
    assert_same(found.weight, plain.weight, 1e-5)
