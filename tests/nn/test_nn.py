"""Traced models: their gradients are the updates of a network simulated by loops, and the authors' arrays."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rule_oracles as oracles
from networks import (
    ACTIVATIONS,
    DELAY,
    DT,
    FORMS,
    GATES,
    NETWORKS,
    STEPS,
    TRACE,
    affine_gradients,
    assert_different,
    assert_same,
    default,
    gradients,
    half_square,
    mlp,
    mlp_oracle,
    segment,
    simulate,
)

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FIRTrace, FixedDelay, credit

GOLDEN = Path(__file__).parents[1] / "golden"


# The gradient is the traces' update.


@FORMS
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("network", "activation"), [("mlp", "tanh"), ("mlp", "softplus"), ("convnet", "relu")])
def test_gradient_is_what_the_loops_give(network, activation, form, gated):
    """On each layer's recorded factors, and the input's gradient is backprop's, without delay."""
    error_gate = gated * GATES[network]
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make(activation), segment(shape)
    grads, input_grad = gradients(model, x, target, lambda m: default(m, form=form, error_gate=error_gate))
    expected, input_error = simulate(oracle(model, activation), x, target, form=form, error_gate=error_gate)
    assert_same(affine_gradients(grads), expected)
    assert_same(input_grad.reshape(STEPS, -1), input_error)


@FORMS
def test_gradient_is_what_the_literal_form_gives(form):
    """The other oracle, `credit.literal`, and a kernel for each post-neuron of the first layer."""
    model, (x, target) = mlp(), segment()
    own = ExponentialTrace(jnp.linspace(0.3, 2.0, 5), DT)
    grads, _ = gradients(model, x, target, lambda m: default(m, form=form, overrides={"layers.0": {"trace": own}}))
    output, _ = oracles.forward(mlp_oracle(model), np.asarray(x))
    factors, _ = oracles.backward(mlp_oracle(model), np.asarray(x), output - np.asarray(target))
    for layer, trace, (seen, derivative, error) in zip(
        grads.layers[::2], (own, TRACE, TRACE), jax.tree.map(lambda rows: jnp.asarray(rows[:, 0]), factors), strict=True
    ):
        gain, signal = credit.synaptic_factors(form, derivative, error)
        update = credit.literal(trace, seen, gain, signal, jnp.arange(STEPS) + 3.0, horizon=STEPS)
        assert_same((layer.weight, layer.bias), tuple(update))


@pytest.mark.parametrize("network", NETWORKS)
def test_float32_twin(network):
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make(), segment(shape)
    expected, _ = simulate(oracle(model), x, target)
    with jax.enable_x64(False):
        single = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32) if eqx.is_array(leaf) else leaf  # noqa: E731
        model, x, target, trace, delay = jax.tree.map(single, (model, x, target, TRACE, DELAY))
        grads, _ = gradients(model, x, target, lambda m: cetsim.attach(m, trace, delay))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
        assert_same(affine_gradients(grads), expected, 1e-5)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["linear_identity", "linear_relu", "conv_relu"])
def test_golden_arrays(kind, index):
    """The authors' layers: weight gradient in the form of each, input gradient, output."""
    with np.load(GOLDEN / f"{kind}_{index}.npz") as arrays:
        golden = dict(arrays)
    x, weight, cotangent = (jnp.asarray(golden[key]) for key in ("x", "weight", "cotangent"))
    key, form = jax.random.key(0), "activation" if kind == "conv_relu" else "authors_linear"
    if kind == "conv_relu":
        layer, bias = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key), jnp.asarray(golden["bias"]).reshape(4, 1, 1)
    else:
        layer, bias = eqx.nn.Linear(7, 5, key=key), jnp.asarray(golden["bias"][0])
    layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
    activation = [] if kind == "linear_identity" else [eqx.nn.Lambda(jax.nn.relu)]
    model = eqx.nn.Sequential([layer, *activation])
    trace, delay = FIRTrace(golden["kernel"], dt=1.0), FixedDelay(float(golden["delay"]), dt=1.0)

    def attach(model):
        return cetsim.attach(model, trace, delay, form=form)

    loss = lambda model, x, cotangent: jnp.sum(jax.vmap(model, axis_name="time")(x) * cotangent)  # noqa: E731
    grads, input_grad = gradients(model, x, cotangent, attach, loss)
    np.testing.assert_allclose(jax.vmap(attach(model), axis_name="time")(x), golden["output"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads.layers[0].weight, golden["weight_grad"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(input_grad, golden["input_grad"], rtol=1e-10, atol=1e-12)


@FORMS
@pytest.mark.parametrize("network", NETWORKS)
def test_without_delay_a_delay_line_gives_plain_autodiff(network, form):
    """For any smooth activation in the first two forms; the authors' form has f' twice."""
    make, _, shape = NETWORKS[network]
    model, (x, target) = make("tanh"), segment(shape)
    traced = gradients(model, x, target, lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0), form=form))
    plain = gradients(model, x, target, lambda m: m)
    if form == "authors_linear":
        assert_different(traced[0].layers[0], plain[0].layers[0])
    else:
        assert_same(traced, plain, 1e-14)


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_are_unchanged(network):
    make, _, shape = NETWORKS[network]
    for activation in ACTIVATIONS:
        model, (x, _) = make(activation), segment(shape)
        np.testing.assert_array_equal(
            jax.vmap(default(model), axis_name="time")(x), jax.vmap(model, axis_name="time")(x)
        )


def test_signals_after_the_end_are_read_on_request():
    model, (x, target) = mlp(), segment()
    late = FixedDelay(0.6, DT, keep_late=True)
    grads, _ = gradients(model, x, target, lambda m: cetsim.attach(m, TRACE, late))
    assert_same(affine_gradients(grads), simulate(mlp_oracle(model), x, target, horizon=np.inf)[0])
    assert_different(grads, gradients(model, x, target, default)[0])


# Axes: maps outside of time (test_time_axis.py has all others).


def test_independent_streams_are_mapped_outside():
    model = mlp()
    x, target = (jnp.stack(arrays) for arrays in zip(*(segment(seed=seed) for seed in (1, 2, 3)), strict=True))
    together = lambda m, x, target: jnp.sum(jax.vmap(half_square, (None, 0, 0))(m, x, target))  # noqa: E731
    grads, _ = gradients(model, x, target, default, together)
    separate = [gradients(model, x[i], target[i], default)[0] for i in range(3)]
    assert_same(grads, jax.tree.map(lambda *leaves: sum(leaves), *separate), 1e-13)


def test_seeds_delays_and_kinds_of_trace_are_mapped_together():
    x, target = segment()
    kinds = [CascadingTrace(2, 0.6), CascadingTrace(6, 1.0), ExponentialTrace(0.5), DelayLine(0.6)]
    delays, seeds = np.array([0.6, 1.0, 0.6, 0.2]), np.arange(4)

    @jax.jit
    def weights(trace, delay, seed):
        model = cetsim.nn.mlp((4, 5, 2), key=jax.random.key(seed))
        loss = lambda m: half_square(cetsim.attach(m, trace, FixedDelay(delay)), x, target)  # noqa: E731
        return eqx.filter_grad(loss)(model).layers[0].weight

    tables = [trace.tabulate(STEPS) for trace in kinds]
    mapped = jax.jit(jax.vmap(weights))(jax.tree.map(lambda *taps: jnp.stack(taps), *tables), delays, seeds)
    for i in range(4):
        np.testing.assert_allclose(mapped[i], weights(tables[i], delays[i], seeds[i]), rtol=1e-10, atol=1e-12)
        model = cetsim.nn.mlp((4, 5, 2), key=jax.random.key(i))
        itself, _ = gradients(model, x, target, lambda m, i=i: cetsim.attach(m, kinds[i], FixedDelay(float(delays[i]))))
        np.testing.assert_allclose(mapped[i], itself.layers[0].weight, rtol=1e-10, atol=1e-12)


# Parameters are numbers like others.


def test_nothing_is_compiled_anew_when_a_number_changes():
    model, (x, target) = mlp(), segment()
    traced = []

    @eqx.filter_jit
    def update(model, trace, delay, error_gate):
        traced.append(1)
        return eqx.filter_grad(lambda m: half_square(cetsim.attach(m, trace, delay, error_gate=error_gate), x, target))(
            model
        )

    results = [
        update(model, CascadingTrace(3, seconds), FixedDelay(late), jnp.asarray(gate)).layers[0].weight
        for seconds, late, gate in ((0.6, 0.6, 0.0), (1.0, 0.6, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 0.3))
    ]
    assert len(traced) == 1
    for i in range(3):
        assert_different(results[i], results[i + 1])


@FORMS
def test_alignment_is_differentiable_in_the_delay_through_the_update(form):
    model, (x, target) = mlp(), segment()
    plain, _ = gradients(model, x, target, lambda m: m)

    @jax.jit
    def alignment(seconds):
        loss = lambda m: half_square(cetsim.attach(m, CascadingTrace(3, seconds), DELAY, form=form), x, target)  # noqa: E731
        return cetsim.metrics.alignment(eqx.filter_grad(loss)(model), plain)["layers.2"]

    step = 1e-5
    slope = (alignment(0.8 + step) - alignment(0.8 - step)) / (2 * step)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(jax.grad(alignment)(0.8), slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(alignment)(0.8), slope, rtol=1e-6)


# Optimisers and plain models.


def adamw_steps(model, x, target, attach, steps=100):
    """The model after `steps` of AdamW with a strong weight decay."""
    adamw = optax.adamw(1e-2, weight_decay=0.1)

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: half_square(attach(m), x, target))(model)
        updates, state = adamw.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    state = adamw.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(steps):
        model, state = step(model, state)
    return model


def test_an_optimiser_leaves_every_trace_bit_equal():
    """Attached outside the loss too, where AdamW sees the whole model: weight decay alone would move a delay."""
    model, (x, target) = mlp(), segment()
    own = ExponentialTrace(jnp.linspace(0.3, 2.0, 5), DT)
    outside = default(model, overrides={"layers.0": {"trace": own}})
    before = [jax.tree.leaves(block.synapses) for block in (outside.layers[0], outside.layers[2], outside.layers[4])]
    before = jax.tree.map(np.array, before)
    trained = adamw_steps(outside, x, target, lambda m: m)
    after = [jax.tree.leaves(block.synapses) for block in (trained.layers[0], trained.layers[2], trained.layers[4])]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)
    assert_different(trained.layers[0].affine.weight, model.layers[0].weight)
    inside = adamw_steps(
        model, x, target, lambda m: cetsim.attach(m, TRACE, DELAY, overrides={"layers.0": {"trace": own}})
    )
    assert_same(
        jax.tree.leaves(eqx.filter(cetsim.detach(trained), eqx.is_array)),
        jax.tree.leaves(eqx.filter(inside, eqx.is_array)),
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_detach_gives_the_plain_model_and_its_gradient_back(network):
    make, _, shape = NETWORKS[network]
    model, (x, target) = make(), segment(shape)
    attached = default(model)
    assert eqx.tree_equal(cetsim.detach(attached), model)
    inside, _ = gradients(model, x, target, default)
    outside = cetsim.detach(eqx.filter_grad(half_square)(attached, x, target))
    assert jax.tree.structure(outside) == jax.tree.structure(inside)
    assert_same(outside, inside, 1e-13)
