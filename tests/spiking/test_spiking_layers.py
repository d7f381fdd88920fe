"""Layers of spiking neurons: forward against loops, and what traces make of their gradient against every synapse's own
cascade of e-prop's eligibility.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spiking_oracles as oracles
from networks import jit

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay, credit, spiking

DT, STEPS, IN, OUT = 0.01, 24, 4, 3
TRACE, LATE = CascadingTrace(3, 0.05, DT), FixedDelay(0.06, DT)
NEURONS = {
    "LIF": spiking.LIF(0.03, 0.3, DT, surrogate=spiking.FastSigmoid(2.0)),
    "refractory": spiking.LIF(0.03, 0.3, DT, refractory=0.02, surrogate=spiking.ArcTan()),
    "ALIF": spiking.ALIF(0.03, 0.3, DT, adaptation_time_constant=0.1, adaptation=0.2, surrogate=spiking.Gaussian()),
    "readout": spiking.LeakyIntegrator(0.03, DT),
    "each its own": spiking.LIF([0.02, 0.03, 0.05], 0.3, DT, surrogate=spiking.Boxcar(1.0)),
}


def make(neuron="LIF", seed=0, shape=(IN, OUT), **options):
    neuron = NEURONS[neuron] if isinstance(neuron, str) else neuron
    layer = spiking.SpikingLayer(*shape, neuron, key=jax.random.key(seed), **options)
    weights = lambda layer: (layer.inputs, layer.recurrent)  # noqa: E731
    return eqx.tree_at(weights, layer, jax.tree.map(lambda leaf: 2.0 * leaf, weights(layer)), is_leaf=_is_none)


def _is_none(node):
    return node is None


def segment(seed=1, steps=STEPS, shape=(IN,)):
    rng = np.random.default_rng(seed)
    return jnp.asarray((rng.random((steps, *shape)) < 0.5) * 1.0), jnp.asarray(rng.normal(size=(steps, OUT)))


def over_time(model):
    return jax.vmap(model, axis_name="time")


def gradient(model, x, target, attach=None):
    """Gradients of model and input under Σ target · output; `target` is then L."""

    @jit
    @eqx.filter_grad
    def grad(model_and_x):
        model, x = model_and_x
        return jnp.sum(target * over_time(model if attach is None else attach(model))(x))

    grads, input_grad = grad((model, x))
    return cetsim.detach(grads) if attach is not None else grads, input_grad


def attached(**options):
    return lambda model: cetsim.attach(model, **({"trace": TRACE, "delay": LATE} | options))


def with_bias(synapses):
    return np.concatenate([synapses.weight, np.asarray(synapses.bias)[:, None]], axis=1)


def assert_close(actual, expected, rtol=1e-10):
    scale = max(float(np.max(np.abs(expected))), 1e-300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)
    assert scale > 1e-6


# Forward.


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("late", [None, 3 * DT])
def test_forward_is_the_loop_stepped_and_mapped(neuron, late):
    layer, (x, _) = make(neuron, recurrent_delay=late), segment()
    expected = oracles.simulate(layer, np.asarray(x)).spikes
    assert_close(jit(lambda layer, x: over_time(layer)(x))(layer, x), expected, 1e-12)
    stepped = jax.lax.scan(lambda state, now: layer.step(state, now), layer.init(), x)[1]
    np.testing.assert_allclose(stepped, expected, atol=1e-12)


def test_traces_leave_outputs_alone_and_other_maps_are_batches():
    layer = make("ALIF", recurrent_delay=DT)
    x = jnp.stack([segment(seed)[0] for seed in (1, 2)])
    expected = np.stack([oracles.simulate(layer, np.asarray(row)).spikes for row in x])
    for model in (layer, attached()(layer)):
        outside = jax.vmap(over_time(model))(x)
        inside = jax.vmap(jax.vmap(model), axis_name="time", in_axes=1, out_axes=1)(x)
        np.testing.assert_array_equal(outside, expected)
        np.testing.assert_array_equal(inside, expected)


def test_plain_gradient_is_backprop_through_the_unrolled_neurons():
    layer, (x, target) = make("ALIF", recurrent_delay=2 * DT), segment(steps=9)

    @jit
    @eqx.filter_grad
    def unrolled(layer):
        state, total = layer.init(), 0.0
        for now, weight in zip(x, target, strict=True):
            state, output = layer.step(state, now)
            total += jnp.sum(weight * output)
        return total

    plain, _ = gradient(layer, x, target)
    expected = unrolled(layer)
    assert_close(plain.inputs.weight, expected.inputs.weight)
    assert_close(plain.recurrent.weight, expected.recurrent.weight)
    assert_close(plain.inputs.bias, expected.inputs.bias)


# The rule.


@pytest.mark.parametrize(("neuron", "factor"), [*((name, "exact") for name in NEURONS), ("ALIF", "approximate")])
@pytest.mark.parametrize("late", [None, 2 * DT])
def test_update_is_every_synapses_own_cascade_of_its_eligibility(neuron, late, factor):
    layer, (x, target) = make(neuron, recurrent_delay=late, adaptation_factor=factor), segment()
    grads, _ = gradient(layer, x, target, attached())
    run = oracles.simulate(layer, np.asarray(x), factor)
    assert_close(with_bias(grads.inputs), oracles.cascade(TRACE, run.inputs, np.asarray(target), 6))
    if late is not None:
        assert_close(grads.recurrent.weight, oracles.cascade(TRACE, run.recurrent, np.asarray(target), 6))


def test_literal_adjoint_and_chunked_agree_on_filtered_inputs():
    layer, (x, target) = make(), segment()
    grads, _ = gradient(layer, x, target, attached())
    slopes = oracles.simulate(layer, np.asarray(x)).slopes
    filtered = oracles.simulate(make("readout"), np.asarray(x)).inputs[:, 0]  # the same membrane, of slope 1
    for evaluate in (credit.literal, credit.adjoint, credit.chunked):
        update = jit(evaluate)(TRACE, filtered, slopes, target, jnp.arange(STEPS) + 6, horizon=STEPS)
        assert_close(with_bias(grads.inputs), update.weight)


def test_in_float32():
    layer, (x, target) = make("ALIF", recurrent_delay=DT), segment()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), layer)
    grads, _ = gradient(narrow, x.astype(jnp.float32), target.astype(jnp.float32), attached())
    wide, _ = gradient(layer, x, target, attached())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wide), strict=True):
        assert_close(one, other, 2e-5)


class Stack(eqx.Module):
    """Two layers and a leaky readout, called by code of a user's own."""

    layers: list[spiking.SpikingLayer]

    def __init__(self, neuron, errors="unrolled", tau=0.04, learn=False):
        neuron = NEURONS[neuron] if isinstance(neuron, str) else neuron
        readout = spiking.LeakyIntegrator(tau, DT, learn_time_constant=learn)
        kinds, sizes = (neuron, neuron, readout), ((IN, 5), (5, 4), (4, OUT))
        layers = [make(k, i, s, errors=errors) for i, (k, s) in enumerate(zip(kinds, sizes, strict=True))]
        weights = lambda layers: [layer.inputs for layer in layers]  # noqa: E731
        self.layers = eqx.tree_at(weights, layers, jax.tree.map(lambda leaf: 2.0 * leaf, weights(layers)))

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("neuron", ["LIF", "refractory", "ALIF"])
def test_delay_line_at_delay_0_is_autodiff_through_unrolled_neurons(neuron):
    model, (x, target) = Stack(neuron), segment()
    plain = gradient(model, x, target)
    traced = gradient(model, x, target, attached(trace=DelayLine(0.0, dt=DT), delay=FixedDelay(0.0, DT)))
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(plain), strict=True):
        assert_close(one, other)


def test_learned_time_constants_learn_as_without_traces():
    neuron = spiking.ALIF(0.03, 0.3, DT, surrogate=spiking.FastSigmoid(2.0), learn_time_constant=True)
    model, (x, target) = Stack(neuron, learn=True), segment()
    untraced = {f"layers.{i}.neuron": None for i in range(3)}
    line = dict(trace=DelayLine(0.0, dt=DT), delay=FixedDelay(0.0, DT))
    plain = gradient(model, x, target)
    traced = gradient(model, x, target, attached(**line, overrides=untraced))
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(plain), strict=True):
        assert_close(one, other)
    with pytest.warns(UserWarning, match=r"no trace: layers.0.neuron"):
        attached(**line)(model)


def test_exponential_trace_of_the_readouts_time_constant_is_eprop():
    """Bellec et al.: Σ_t L(t) F_κ(e)(t), L the readout's errors through its weights; here also the true gradient."""
    tau = 0.04
    hidden = make("refractory", errors="instant")
    readout = make(spiking.LeakyIntegrator(tau, DT), 5, (OUT, OUT), errors="instant")
    model, (x, target) = eqx.nn.Sequential([hidden, readout]), segment()
    traces = {"layers.0": ExponentialTrace(tau, DT, read="after"), "layers.1": DelayLine(0.0, dt=DT)}
    rule = attached(trace=traces, delay=FixedDelay(0.0, DT))
    grads, _ = gradient(model, x, target, rule)
    run, kappa = oracles.simulate(hidden, np.asarray(x)), np.exp(-DT / tau)
    signal = np.asarray(target) @ np.asarray(readout.inputs.weight)
    filtered, total = 0.0, 0.0
    for now in range(STEPS):
        filtered = kappa * filtered + (1 - kappa) * run.inputs[now]
        total = total + signal[now][:, None] * filtered
    assert_close(with_bias(grads.layers[0].inputs), total)
    plain, _ = gradient(model, x, target)
    for i in (0, 1):
        assert_close(with_bias(grads.layers[i].inputs), with_bias(plain.layers[i].inputs))


# Signals.


def test_a_scalar_reward_meets_the_eligibility():
    layer, (x, target) = make(recurrent_delay=DT), segment()
    reward = np.random.default_rng(4).normal(size=STEPS)
    grads, _ = gradient(layer, x, target, attached(reward=jnp.asarray(reward)))
    run, signal = oracles.simulate(layer, np.asarray(x)), np.repeat(-reward[:, None], OUT, axis=1)
    assert_close(with_bias(grads.inputs), oracles.cascade(TRACE, run.inputs, signal, 6))
    assert_close(grads.recurrent.weight, oracles.cascade(TRACE, run.recurrent, signal, 6))


def test_errors_go_down_at_once_through_feedback_weights():
    lower, upper = make(errors="instant"), make("LIF", 3, (OUT, OUT), errors="instant")
    model, (x, target) = eqx.nn.Sequential([lower, upper]), segment()
    back = np.random.default_rng(5).normal(size=(OUT, OUT))
    for feedback in (None, back):
        overrides = {} if feedback is None else {"layers.1.inputs": {"feedback": jnp.asarray(feedback)}}
        grads, _ = gradient(model, x, target, attached(overrides=overrides))
        run = oracles.simulate(lower, np.asarray(x))
        above = oracles.simulate(upper, run.spikes)
        down = np.asarray(upper.inputs.weight) if feedback is None else feedback
        signal = (np.asarray(target) * above.slopes) @ down
        assert_close(with_bias(grads.layers[0].inputs), oracles.cascade(TRACE, run.inputs, signal, 6))
        assert_close(with_bias(grads.layers[1].inputs), oracles.cascade(TRACE, above.inputs, np.asarray(target), 6))


def test_the_error_gate_closes_on_steps_of_small_errors():
    layer, (x, target) = make(), segment()
    gate = float(np.median(np.sum(np.asarray(target) ** 2, axis=1)))
    grads, _ = gradient(layer, x, target, attached(error_gate=gate))
    run = oracles.simulate(layer, np.asarray(x))
    opened = np.sum(np.asarray(target) ** 2, axis=1) > gate
    assert_close(with_bias(grads.inputs), oracles.cascade(TRACE, run.inputs * opened[:, None, None], target, 6))


def test_padding_does_not_count():
    model, (x, target) = Stack("ALIF"), segment()
    grads, input_grad = gradient(model, x, target, attached(length=17))
    expected, expected_input = gradient(model, x[:17], target[:17], attached())
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert_close(one, other)
    assert_close(input_grad[:17], expected_input)
    assert not np.any(input_grad[17:])


def test_a_batch_inside_or_outside_of_time_adds_up():
    layer, rows = make("ALIF", recurrent_delay=DT), [segment(seed) for seed in (1, 2)]
    x, target = (jnp.stack(arrays) for arrays in zip(*rows, strict=True))
    outside = lambda model: jnp.sum(target * jax.vmap(over_time(model))(x))  # noqa: E731
    inside = jax.vmap(lambda model, x: jax.vmap(model)(x), (None, 1), 1, axis_name="time")
    losses = (outside, lambda model: jnp.sum(target * inside(model, x)))
    found = [jit(eqx.filter_grad(lambda layer, loss=loss: loss(attached()(layer))))(layer) for loss in losses]
    expected = jax.tree.map(jnp.add, *(gradient(layer, *row, attached())[0] for row in rows))
    for grads in found:
        for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            assert_close(one, other)


def test_attached_layers_are_listed_saved_and_taken_off_again(tmp_path):
    layer = make("ALIF", recurrent_delay=DT)
    model = attached()(layer)
    assert cetsim.layer_names(layer) == ["inputs", "recurrent"]
    assert [row.layer for row in cetsim.summary(model)] == ["inputs", "recurrent"]
    cetsim.save(tmp_path / "model", model)
    other = attached()(make("ALIF", seed=9, recurrent_delay=DT))
    for found in (cetsim.load(tmp_path / "model", other), model):
        for one, wanted in zip(jax.tree.leaves(cetsim.detach(found)), jax.tree.leaves(layer), strict=True):
            np.testing.assert_array_equal(one, wanted)


# Streams.


class Streamed(eqx.Module):
    """Two layers whose neurons go on."""

    first: spiking.SpikingLayer
    second: spiking.SpikingLayer

    def __call__(self, x, states):
        x, one = self.first.run(x, states[0])
        x, other = self.second.run(x, states[1])
        return x, (one, other)


def streamed(batch, cuts, x, target):
    """Sum of the gradients over segments that end at `cuts`."""
    options = dict(errors="instant", adaptation_factor="approximate")
    model = Streamed(make("ALIF", recurrent_delay=2 * DT, **options), make("LIF", 3, (OUT, OUT), **options))
    model = cetsim.attach(model, TRACE, LATE, boundary="carry", window=STEPS)
    neurons = (model.first.init(), model.second.init())
    state = cetsim.streaming_init(model, x.reshape(-1, IN)[0], neurons, batch=batch)
    run = jax.vmap(Streamed.__call__, axis_name="time", in_axes=(None, 0, None), out_axes=(0, None))
    if batch:
        neurons = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*batch, *leaf.shape)), neurons)
        run = jax.vmap(run, in_axes=(None, 0, 0))

    def loss(model, x, target, neurons):
        outputs, neurons = run(model, x, neurons)
        return jnp.sum(target * outputs), neurons

    advance, total, at = jit(cetsim.streaming_value_and_grad(loss, has_aux=True)), 0.0, 0
    for end in cuts:
        now = (slice(None),) * len(batch) + (slice(at, end),)
        (_, neurons), grads, state = advance(model, state, x[now], target[now], neurons)
        grads = cetsim.detach(grads)
        total = jax.tree.map(jnp.add, total, grads) if at else grads
        at = end
    return total


def test_cutting_a_stream_differently_changes_nothing():
    x, target = segment()
    whole, cut = streamed((), [STEPS], x, target), streamed((), [7, 14, 21, STEPS], x, target)
    for one, other in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        assert_close(one, other)
    run = oracles.simulate(make("ALIF", recurrent_delay=2 * DT), np.asarray(x), "approximate")
    upper = make("LIF", 3, (OUT, OUT))
    above = oracles.simulate(upper, run.spikes)
    signal = (np.asarray(target) * above.slopes) @ np.asarray(upper.inputs.weight)
    assert_close(with_bias(whole.first.inputs), oracles.cascade(TRACE, run.inputs, signal, 6))
    assert_close(whole.first.recurrent.weight, oracles.cascade(TRACE, run.recurrent, signal, 6))
    assert_close(with_bias(whole.second.inputs), oracles.cascade(TRACE, above.inputs, np.asarray(target), 6))


def test_streams_of_a_batch_add_up():
    rows = [segment(seed) for seed in (1, 2)]
    x, target = (jnp.stack(arrays) for arrays in zip(*rows, strict=True))
    together = streamed((2,), [7, 14, 21, STEPS], x, target)
    alone = [streamed((), [7, 14, 21, STEPS], *row) for row in rows]
    expected = jax.tree.map(jnp.add, *alone)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
        assert_close(one, other)


# What is refused.


def learn(boundary="reset", **options):
    """Gradient of a layer with traces that is called without a state."""
    kinds = {name: options.pop(name) for name in ("events", "length", "overrides") if name in options}
    layer, (x, target) = make(**options), segment()
    return gradient(layer, x, target, attached(boundary=boundary, **kinds))


def run_on(layer, **rule):
    """The attached layer over a segment, from the state of the plain one."""
    run = lambda x: cetsim.attach(layer, TRACE, LATE, **rule).run(x, layer.init())  # noqa: E731
    return jax.vmap(run, axis_name="time", out_axes=(0, None))(segment()[0])


EVENTS = cetsim.Events(jnp.arange(STEPS), 2 * STEPS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(recurrent_delay=0.0), "`recurrent_delay` must be above 0 s.*got 0.0"),
        (lambda: make(recurrent_delay=1.5 * DT), "`recurrent_delay` must be a multiple of dt"),
        (lambda: make(errors="late"), "`errors` must be one of 'unrolled', 'instant', got 'late'"),
        (lambda: make(adaptation_factor="none"), "`adaptation_factor` must be one of"),
        (lambda: make(jnp.tanh), "`neuron` must be a neuron"),
        (lambda: make(spiking.LIF([0.02, 0.03])), "`neuron` must have one time constant or 3, got shape"),
        (lambda: make()(jnp.zeros(IN)), "must know which axis is time"),
        (lambda: over_time(make())(jnp.zeros((STEPS, 2))), "`x` must be .4. at each step, got shape .2,."),
        (lambda: learn("carry", errors="instant"), "call `output, state = layer.run"),
        (lambda: run_on(make(), boundary="carry"), "boundary='carry' needs errors='instant'"),
        (lambda: run_on(make(errors="instant"), boundary="carry"), "its state must come from `init` of the attached"),
        (lambda: run_on(make(), length=5), "`length` leaves the state after padding unknown"),
        (lambda: learn(events=EVENTS), "so `events`, which leaves steps out, must be None"),
        (lambda: learn(neuron="ALIF", errors="instant"), "needs adaptation_factor='approximate'"),
        (lambda: learn(neuron="each its own", errors="instant"), "needs one time constant"),
        (
            lambda: learn(recurrent_delay=DT, overrides={"recurrent": {"feedback": jnp.ones((OUT, OUT))}}),
            "no errors pass recurrent weights",
        ),
        (lambda: learn(neuron=spiking.LIF(0.03, dt=0.005)), "neurons and trace must have one dt, got 0.005 s and 0.01"),
    ],
)
def test_what_would_be_wrong_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
