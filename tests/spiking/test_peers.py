"""Held against other simulators: the arrays in peers/ were made by the scripts beside this file."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay, spiking

PEERS = Path(__file__).parent / "peers"
DT = 0.001
AT_ONCE = dict(trace=DelayLine(0.0, dt=DT), delay=FixedDelay(0.0, DT))


def load(name):
    with np.load(PEERS / f"{name}.npz") as arrays:
        return dict(arrays)


def layer(neuron, inputs, recurrent=None, **options):
    """A layer with these weights."""
    late = None if recurrent is None else DT
    made = spiking.SpikingLayer(
        *inputs.shape[::-1], neuron, use_bias=False, recurrent_delay=late, key=jax.random.key(0), **options
    )
    made = eqx.tree_at(lambda m: m.inputs.weight, made, jnp.asarray(inputs))
    return made if late is None else eqx.tree_at(lambda m: m.recurrent.weight, made, jnp.asarray(recurrent))


def run(model, x, signal, **rule):
    """Outputs, and the gradient of Σ signal · output, with traces if a rule is given."""

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        model = cetsim.attach(model, **rule) if rule else model
        outputs = jax.vmap(model, axis_name="time")(x)
        return jnp.sum(signal * outputs), outputs

    (_, outputs), grads = loss(model)
    return outputs, cetsim.detach(grads) if rule else grads


def test_snntorch_has_the_same_spikes_potentials_and_gradients():
    peer = {name: array.astype(float) for name, array in load("snntorch").items()}  # float32 there, float64 here
    surrogate = spiking.FastSigmoid(float(peer["slope"]))
    neurons = [spiking.LIF(-DT / np.log(beta), float(peer["threshold"]), DT, 0.0, surrogate) for beta in peer["beta"]]
    model = eqx.nn.Sequential([layer(neuron, peer[f"weight_{i}"]) for i, neuron in enumerate(neurons)])
    x = peer["x"]
    for i, neuron in enumerate(neurons):
        currents = jnp.asarray(x @ peer[f"weight_{i}"].T)
        _, (v, spikes) = jax.lax.scan(
            lambda state, now, neuron=neuron: (lambda s, z: (s, (s.v, z)))(*neuron.step(state, now)),
            neuron.init(currents.shape[1:]),
            currents,
        )
        np.testing.assert_allclose(v, peer[f"v_{i}"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(spikes, peer[f"spikes_{i}"])
        assert 0.02 < np.mean(spikes) < 0.9
        x = peer[f"spikes_{i}"]
    for rule in ({}, AT_ONCE):
        outputs, grads = run(model, jnp.asarray(peer["x"]), peer["signal"], **rule)
        np.testing.assert_array_equal(outputs, peer["spikes_1"])
        for i in (0, 1):
            np.testing.assert_allclose(grads.layers[i].inputs.weight, peer[f"gradient_{i}"], rtol=1e-5, atol=2e-6)


def test_braintrace_has_the_same_eligibility_online():
    """Its D_RTRL of recurrent LIF neurons is e-prop's eligibility; EProp filters it as an exponential trace does.

    What EProp filters is x̂, and ψ it takes when the signal comes: the form "preactivation".
    """
    peer = load("braintrace")
    inputs = peer["x"].shape[1]
    inside, outside = peer["weight"][:, :inputs], peer["weight"][:, inputs:]
    tau = -DT / np.log(float(peer["decay"]))
    surrogate = spiking.FastSigmoid(float(peer["steepness"]))
    model = layer(spiking.LIF(tau, float(peer["threshold"]), DT, 0.0, surrogate), inside, outside)
    trace = ExponentialTrace.from_decay(float(peer["kappa"]), DT, read="after", normalization="peak")
    for name, rule in (("recurrent", AT_ONCE), ("eprop", AT_ONCE | dict(trace=trace, form="preactivation"))):
        outputs, grads = run(model, jnp.asarray(peer["x"]), peer["signal"], **rule)
        np.testing.assert_array_equal(outputs, peer[f"{name}_outputs"])
        both = np.concatenate([grads.inputs.weight, grads.recurrent.weight], axis=1)
        np.testing.assert_allclose(both, peer[f"{name}_gradient"], rtol=1e-9, atol=1e-11)
    model = layer(spiking.LeakyIntegrator(tau, DT), inside)
    outputs, grads = run(model, jnp.asarray(peer["x"]), peer["signal"], trace=trace, delay=FixedDelay(0.0, DT))
    np.testing.assert_allclose(outputs, peer["filtered_outputs"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads.inputs.weight, peer["filtered_gradient"], rtol=1e-9, atol=1e-11)


def test_steps_converge_to_brian2s_equations_at_the_claimed_order():
    """Inputs are held at the middle of a step, order 2 for v and x̂; e at its value at the step's end, order 1."""
    peer, errors = load("brian2"), []
    tau, every = float(peer["tau"]), float(peer["every"])
    surrogate = spiking.FastSigmoid(float(peer["steepness"]))
    grains, orders = (1, 2, 4, 8, 16), (2, 3, 6, 10)
    for grain in grains:
        dt = every / grain
        middle = (np.arange(grain * (len(peer["v"]) - 1)) + 0.5) * dt
        current, x = 0.9 + 0.8 * np.sin(2 * np.pi * 6 * middle), 0.5 + 0.5 * np.cos(2 * np.pi * 4 * middle)
        membrane = spiking.LeakyIntegrator(tau, dt)
        traces = [CascadingTrace.from_rate(float(peer["rate"]), order, dt=dt, read="after") for order in orders]

        def body(state, now, membrane=membrane, traces=traces):
            neuron, filtered, cascades = state
            neuron, v = membrane.step(neuron, now[0])
            filtered, x = membrane.step(filtered, now[1])
            eligibility = surrogate.slope(v - float(peer["threshold"])) * x
            steps = [trace.step(cascade, eligibility) for trace, cascade in zip(traces, cascades, strict=True)]
            cascades, h = zip(*steps, strict=True)
            return (neuron, filtered, cascades), (v, x, *h)

        start = membrane.init(()), membrane.init(()), tuple(trace.init(()) for trace in traces)
        _, rows = jax.lax.scan(body, start, np.stack([current, x], axis=1))
        rows = [np.asarray(row)[grain - 1 :: grain] for row in rows]
        wanted = [peer[name][1:] for name in ("v", "filtered", *(f"h{order}" for order in orders))]
        errors.append([np.max(np.abs(row - want)) for row, want in zip(rows, wanted, strict=True)])
    slopes = np.log2(np.array(errors)[:-1] / np.array(errors)[1:])
    np.testing.assert_allclose(slopes[:, :2], 2.0, atol=0.1)
    np.testing.assert_allclose(slopes[-2:, 2:], 1.0, atol=0.1)


def spiking_at(peer, dt):
    """Times of spikes, and x̂ and the cascade's last stage at every step, of the network of `make_brian2_spikes.py`."""
    steps = round(float(peer["every"]) * (len(peer["h3"]) - 1) / dt)
    charge, theta, tau = (float(peer[name]) for name in ("charge", "threshold", "tau"))
    x = np.zeros(steps)
    x[np.round(peer["sent"] / dt).astype(int)] = charge / dt  # an impulse's charge, held over the step that it begins
    surrogate = spiking.FastSigmoid(float(peer["steepness"]))
    neuron, membrane = spiking.LIF(tau, theta, dt, surrogate=surrogate), spiking.LeakyIntegrator(tau, dt)
    trace = CascadingTrace.from_rate(float(peer["rate"]), 3, dt=dt, read="after")

    def body(state, x):
        neurons, filtered, cascade = state
        neurons, spike, slope = neuron.respond(neurons, float(peer["drive"]) + float(peer["weight"]) * x)
        filtered, left = membrane.step(filtered, x)
        cascade, h = trace.step(cascade, slope * left)
        return (neurons, filtered, cascade), (spike, left, h)

    start = neuron.init(()), membrane.init(()), trace.init(())
    spikes, left, h = map(np.asarray, jax.lax.scan(body, start, x)[1])
    return (np.flatnonzero(spikes) + 1) * dt, left, h


def test_spikes_and_the_cascade_at_a_synapse_converge_to_brian2s_at_first_order():
    """A spike is seen at the end of its step and resets with the next, which is what makes the order 1."""
    peer, errors = load("brian2_spikes"), []
    every = float(peer["every"])
    assert len(peer["spikes"]) == 7
    dts = [every / grain for grain in (16, 32, 64, 128)]
    for dt in dts:
        times, left, h = spiking_at(peer, dt)
        assert len(times) == len(peer["spikes"])
        at = round(every / dt)
        rows = (times, peer["spikes"]), (left[at - 1 :: at], peer["filtered"][1:]), (h[at - 1 :: at], peer["h3"][1:])
        errors.append([np.sqrt(np.mean((row - want) ** 2)) for row, want in rows])
    slopes = np.polyfit(np.log(dts), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, 1.0, atol=0.2)
    assert np.all(np.array(errors[-1]) < (6 * dts[-1], 1e-4, 1e-4))


def times_of_spikes(peer, i, dt):
    """When the i-th neuron of `make_brian2_adapting.py` spikes, at steps of dt with the sine at their middle."""
    common = dict(time_constant=float(peer["tau"]), threshold=float(peer["threshold"]), dt=dt)
    common["refractory"] = float(peer["refractory"][i])
    adaptation, slow = float(peer["adaptation"][i]), float(peer["slow"])
    if adaptation:
        neuron = spiking.ALIF(**common, adaptation=adaptation, adaptation_time_constant=slow)
    else:
        neuron = spiking.LIF(**common)
    middle = (np.arange(round(float(peer["end"]) / dt)) + 0.5) * dt
    current = float(peer["mean"]) + float(peer["swing"]) * np.sin(2 * np.pi * float(peer["frequency"]) * middle)
    _, spikes = jax.lax.scan(neuron.step, neuron.init(()), current)
    return (np.flatnonzero(spikes) + 1) * dt


def test_refractory_and_adapting_neurons_spike_when_brian2s_do():
    """To first order: a reset comes with the next step, and ours rest for a step more."""
    peer, dts = load("brian2_adapting"), [0.004 / grain for grain in (128, 256, 512, 1024)]
    wanted = [peer[f"spikes_{i}"] for i in range(3)]
    assert [len(times) for times in wanted] == [22, 8, 6]
    rest = peer["refractory"]
    assert np.min(np.diff(wanted[0])) < 1.1 * rest[0]
    assert np.min(np.diff(wanted[1])) < rest[2] < 0.1
    np.testing.assert_allclose(np.min(np.diff(wanted[2])), rest[2])
    for i, times in enumerate(wanted):
        found = [times_of_spikes(peer, i, dt) for dt in dts]
        assert [len(row) for row in found] == [len(times)] * len(dts)
        errors = [np.sqrt(np.mean((row - times) ** 2)) for row in found]
        np.testing.assert_allclose(np.polyfit(np.log(dts), np.log(errors), 1)[0], 1.0, atol=0.25)
        assert errors[-1] < 20 * dts[-1]  # a step a spike before it, and the last one comes as v only just gets there
