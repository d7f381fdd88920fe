"""The update of spiking layers against the engine's three evaluations, for all kinds of traces, delays and signals.

Where the eligibility is ψ(v) x̂, the gain is ψ and the activity x̂, so that a linear layer's rule must give the same.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spiking_oracles as oracles
from networks import jit
from test_spiking_layers import DT, LATE, OUT, STEPS, TRACE, assert_close, attached, gradient, make, segment, with_bias

import cetsim
from cetsim import CascadingTrace, ExponentialTrace, FixedDelay, RandomDelay, credit

TRACES = {
    "cascade": TRACE,
    "balanced": CascadingTrace(6, 0.06, DT, readout="balanced", peaked=True),
    "own readout": CascadingTrace(3, 0.05, DT, readout=jnp.array([0.5, -1.0, 2.0])),
    "exponential": ExponentialTrace(0.04, DT),
    "double exponential": cetsim.DoubleExponentialTrace(0.02, 0.05, dt=DT),
    "delay line": cetsim.DelayLine(0.06, dt=DT, max_delay=0.06),
    "Legendre": cetsim.LegendreTrace(4, 0.06, DT),
    "taps": cetsim.FIRTrace(jnp.array([0.0, 1.0, -0.5, 0.2]), DT),
    "difference": 2.0 * TRACE - ExponentialTrace(0.03, DT),
}
DELAYS = {"fixed": LATE, "random": RandomDelay(0.06, 0.08, DT), "gamma": RandomDelay(0.06, 0.05, DT, "gamma")}
EVALUATIONS = (credit.literal, credit.adjoint, credit.chunked)


def filtered(decay, rows):
    """x̂ of all steps."""
    left, found = np.zeros(rows.shape[1]), []
    for row in rows:
        left = decay * left + (1 - decay) * row
        found.append(left)
    return np.stack(found)


def factors(layer, x, factor="exact"):
    """ψ, x̂ of what comes in with the bias last, and x̂ of a recurrent layer's own spikes."""
    run, decay = oracles.simulate(layer, np.asarray(x), factor), np.exp(-DT / float(layer.neuron.time_constant))
    own = np.zeros_like(run.spikes)
    if layer.recurrent is not None:
        own[layer.delay_steps :] = run.spikes[: -layer.delay_steps]
    with_ones = np.concatenate([x, np.ones((STEPS, 1))], axis=1)
    return run.slopes, filtered(decay, with_ones), filtered(decay, own)


def assert_all_evaluations(trace, delay, synapses, slopes, x, signal, bias=True):
    """Of a layer's gradient, the bias being an activity that is last in `x`."""
    for evaluate in EVALUATIONS:
        given = trace, x[:, :-1] if bias else x, slopes, signal, delay.arrivals(jnp.arange(STEPS))
        update = jit(evaluate)(*given, horizon=STEPS)
        if bias:  # the engine's own bias has activity 1, ours is filtered as what comes in is
            ones = jit(evaluate)(trace, x[:, -1:], *given[2:], horizon=STEPS)
            assert_close(with_bias(synapses), np.concatenate([update.weight, ones.weight], axis=1))
        else:
            assert_close(synapses.weight, update.weight)


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("delay", DELAYS)
def test_every_trace_with_every_delay_in_a_recurrent_layer(trace, delay):
    trace, delay, layer, (x, target) = TRACES[trace], DELAYS[delay], make(recurrent_delay=2 * DT), segment()
    grads, _ = gradient(layer, x, target, attached(trace=trace, delay=delay))
    slopes, seen, own = factors(layer, x)
    assert_all_evaluations(trace, delay, grads.inputs, slopes, seen, target)
    assert_all_evaluations(trace, delay, grads.recurrent, slopes, own, target, bias=False)


@pytest.mark.parametrize("neuron", ["refractory", "ALIF"])
def test_a_delay_for_each_kind_of_synapse(neuron):
    options = dict(recurrent_delay=DT, adaptation_factor="approximate")
    layer, (x, target) = make(neuron, **options), segment()
    each = {"inputs": FixedDelay(0.02, DT), "recurrent": RandomDelay(0.06, 0.04, DT)}
    grads, _ = gradient(layer, x, target, attached(delay=cetsim.LayerwiseDelay(each)))
    slopes, seen, own = factors(layer, x, "approximate")
    assert_all_evaluations(TRACE, each["inputs"], grads.inputs, slopes, seen, target)
    assert_all_evaluations(TRACE, each["recurrent"], grads.recurrent, slopes, own, target, bias=False)


@pytest.mark.parametrize("delay", DELAYS)
def test_a_reward_and_errors_through_feedback_weights(delay):
    delay, rng = DELAYS[delay], np.random.default_rng(6)
    lower, upper = make(errors="instant", recurrent_delay=DT), make("LIF", 3, (OUT, OUT), errors="instant")
    model, (x, target) = eqx.nn.Sequential([lower, upper]), segment()
    slopes, seen, own = factors(lower, x)
    spikes = jnp.asarray(oracles.simulate(lower, np.asarray(x)).spikes)
    above, below, _ = factors(upper, spikes)
    reward, back = jnp.asarray(rng.normal(size=STEPS)), jnp.asarray(rng.normal(size=(OUT, OUT)))
    rule = attached(delay=delay, overrides={"layers.1.inputs": {"feedback": back}})
    grads, _ = gradient(model, x, target, rule)
    down = (target * above) @ back
    assert_all_evaluations(TRACE, delay, grads.layers[1].inputs, above, below, target)
    assert_all_evaluations(TRACE, delay, grads.layers[0].inputs, slopes, seen, down)
    assert_all_evaluations(TRACE, delay, grads.layers[0].recurrent, slopes, own, down, bias=False)
    grads, _ = gradient(model, x, target, attached(delay=delay, reward=reward))
    assert_all_evaluations(TRACE, delay, grads.layers[0].inputs, slopes, seen, -reward)
    assert_all_evaluations(TRACE, delay, grads.layers[0].recurrent, slopes, own, -reward, bias=False)


class Running(eqx.Module):
    """A layer whose neurons go on."""

    layer: eqx.Module

    def __call__(self, x, state):
        return self.layer.run(x, state)


def test_a_stream_of_random_delays_is_the_whole_segment():
    layer, (x, target) = make(errors="instant", recurrent_delay=DT), segment()
    delay = DELAYS["random"]
    run = jax.vmap(Running.__call__, (None, 0, None), (0, None), axis_name="time")

    def loss(model, x, target, neurons):
        outputs, neurons = run(model, x, neurons)
        return jnp.sum(target * outputs), neurons

    @jit
    def advance(start, state, x, target, neurons):
        model = attached(delay=delay.at(start), boundary="carry", window=STEPS)(Running(layer))
        return cetsim.streaming_value_and_grad(loss, has_aux=True)(model, state, x, target, neurons)

    model, total = attached(delay=delay, boundary="carry", window=STEPS)(Running(layer)), 0.0
    neurons = model.layer.init()
    state = cetsim.streaming_init(model, x[0], neurons)
    for start in range(0, STEPS, 8):
        now = slice(start, start + 8)
        (_, neurons), grads, state = advance(jnp.asarray(start), state, x[now], target[now], neurons)
        total = total + with_bias(cetsim.detach(grads).layer.inputs)
    expected, _ = gradient(layer, x, target, attached(delay=delay))
    assert_close(total, with_bias(expected.inputs))
