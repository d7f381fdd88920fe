"""Actors of spiking neurons: against loops over the definition, e-prop of `cetsim.spiking`, and runs in pieces."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from worlds import corridor

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay
from cetsim.rl import (
    ActorCriticRun,
    Hyperparameters,
    Settings,
    actors,
    policy_alignment,
    policy_of,
    without_delay,
)
from cetsim.spiking import ALIF, LIF, FastSigmoid, SpikingLayer

DT, STEPS, ENVIRONMENTS = 0.2, 11, 3
NEURONS = {
    "LIF": LIF(0.5, 0.3, DT, surrogate=FastSigmoid(2.0)),
    "refractory": LIF(0.5, 0.2, DT, refractory=0.4, surrogate=FastSigmoid(2.0)),
    "ALIF": ALIF(0.5, 0.2, DT, surrogate=FastSigmoid(2.0), adaptation_time_constant=1.0, adaptation=0.3),
}
TRACES = {
    "CET": CascadingTrace(3, 0.6, DT),
    "ET": ExponentialTrace(0.6, DT, read="after"),
    "delay line": DelayLine(0.6, DT),
}
SETTINGS = Settings(4, ENVIRONMENTS, STEPS, (6, 5), center_td=None, neuron=NEURONS["LIF"])
RUN = ActorCriticRun(corridor(), SETTINGS)


def run_of(neuron):
    return ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, neuron=NEURONS[neuron]))


def hyper(trace="CET", **options):
    return Hyperparameters(1e-2, TRACES[trace], FixedDelay(0.6, DT), **options)


@jit
def two_rollouts(run, state):
    """Two rollouts at the first weights, what is learned of TD errors in each, and what is held after them."""
    agent, learner, held, layers, found = state.agent, run.learner, state.vector_env, state.agent.layers, []
    for number in range(2):
        held, rollout = run.roll_out(agent.params, held, jax.random.key(5 + number))
        td_error = jax.random.normal(jax.random.key(7 + number), rollout.reward.shape)
        layers, late = learner.late_gradient(agent.hyper, agent.params, layers, rollout, td_error)
        found.append((rollout, td_error, late.actor))
    return found, held[2]


def simulated(weights, neuron, x, alive):
    """From the equations, of one environment: x̂, outputs and slopes of every layer, and its v and x̂ after the steps."""
    alpha, theta, found = np.exp(-DT / float(neuron.time_constant)), neuron.threshold, []
    rho, beta = (neuron.adaptation_decay, neuron.adaptation) if isinstance(neuron, ALIF) else (0.0, 0.0)
    for depth, w in enumerate(weights):
        last = depth == len(weights) - 1
        v = z = silent = a = np.zeros(len(w))
        filtered, rows = np.zeros(w.shape[1]), []
        for now, goes_on in zip(x, alive, strict=True):
            filtered = alpha * filtered + (1 - alpha) * now
            v = alpha * v + (1 - alpha) * w @ now - (0.0 if last else theta * z)
            a = rho * a + z
            u = v - theta - beta * a
            ready = silent == 0
            z = v if last else (ready & (u > 0)) * 1.0
            slope = np.ones(len(w)) if last else ready / (1 + 2.0 * np.abs(u)) ** 2
            silent = np.where((z > 0) & (not last), neuron.refractory_steps, np.maximum(silent - 1, 0))
            rows.append((filtered, z, slope))
            v, z, silent, a, filtered = (held * goes_on for held in (v, z, silent, a, filtered))
        found.append((*map(np.stack, zip(*rows, strict=True)), v, filtered))
        x = found[-1][1]
    return found


def eligibility(weights, layers, error):
    """What every synapse has at each step, e = ψ x̂ and L, by a loop down the layers: of each two `[time, out, in]`."""
    found = []
    for w, (filtered, _, slope, *_) in zip(weights[::-1], layers[::-1], strict=True):
        found.insert(0, (np.einsum("to,ti->toi", slope, filtered), np.repeat(error[:, :, None], w.shape[1], axis=2)))
        error = (slope * error) @ w
    return found


def late_updates(kernel, e, signal, td_error, alive, late, decay):
    """-td e∘trace of every step, every synapse's trace a sum over its past, all that arrives `late` steps late."""
    held, found, before = np.zeros(e.shape[1:]), [], 1.0
    for t in range(len(e)):
        trace = sum(kernel[t - s] * e[s] for s in range(t + 1))
        arrived = t >= late
        held = decay * before * held + (signal[t - late] * trace if arrived else 0.0)
        found.append(-(td_error[t - late] if arrived else 0.0) * held)
        before = alive[t - late] if arrived else 1.0
    return np.stack(found)


@pytest.mark.parametrize(
    ("neuron", "trace"), [("LIF", "CET"), ("LIF", "ET"), ("LIF", "delay line"), ("refractory", "CET"), ("ALIF", "CET")]
)
def test_late_credit_is_the_literal_rule(neuron, trace):
    """Neurons, eligibility and trace of every synapse stepped through two rollouts; episodes end within them."""
    run = run_of(neuron)
    state = run.init(hyper(trace), jax.random.key(2))
    found, held = two_rollouts(run, state)
    weights = [np.asarray(layer.weight) for layer in state.agent.params.actor.layers]
    kernel, totals = np.asarray(TRACES[trace].weights(jnp.arange(2 * STEPS))), [[0.0] * 3, [0.0] * 3]
    both = lambda of: np.concatenate([np.asarray(of(one)) for one in found])  # noqa: E731
    observed, action = both(lambda one: one[0].observation), both(lambda one: one[0].action)
    alive, td_error = both(lambda one: one[0].alive), both(lambda one: one[1])
    assert 0 < alive.mean() < 1
    for env in range(ENVIRONMENTS):
        layers = simulated(weights, NEURONS[neuron], observed[:, env], alive[:, env])
        assert 0.02 < layers[0][1].mean() < 0.9
        logits = layers[-1][1]
        error = np.eye(2)[action[:, env]] - np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        for depth, (e, signal) in enumerate(eligibility(weights, layers, error)):
            updates = late_updates(kernel, e, signal, td_error[:, env], alive[:, env], 3, 0.99 * 0.95)
            for number in range(2):
                part = updates[number * STEPS : (number + 1) * STEPS].sum(axis=0)
                totals[number][depth] = totals[number][depth] + part / STEPS / ENVIRONMENTS
        for (*_, v, filtered), memory in zip(layers, held, strict=True):
            np.testing.assert_allclose(memory.neuron.v[env], v, atol=1e-12)
            np.testing.assert_allclose(memory.filtered[env], filtered, atol=1e-12)
    for (_, _, late), expected in zip(found, totals, strict=True):
        for layer, total in zip(late.layers, expected, strict=True):
            np.testing.assert_allclose(layer.weight, total, rtol=1e-10, atol=1e-12)


def test_without_delay_it_is_e_prop_of_spiking_layers():
    """`cetsim.attach` to layers of the same weights, errors instant; and the entropy bonus learns so too."""
    state = RUN.init(without_delay(1e-2), jax.random.key(3))
    rollout = jit(RUN.roll_out)(state.agent.params, state.vector_env, jax.random.key(1))[1]
    going_on = jnp.zeros_like(rollout.terminated)
    rollout = dataclasses.replace(rollout, terminated=going_on, truncated=going_on)
    actor, handed = RUN.learner.networks(state.agent.params).actor, jax.random.normal(jax.random.key(2), (STEPS, 3, 2))
    parts = []
    for layer, neuron in zip(actor.layers, actor.neurons, strict=True):
        out, inputs = layer.weight.shape
        made = SpikingLayer(inputs, out, neuron, use_bias=False, errors="instant", key=jax.random.key(0))
        parts.append(eqx.tree_at(lambda part: part.inputs.weight, made, layer.weight))

    def of_attached(parts):
        traced = cetsim.attach(eqx.nn.Sequential(parts), DelayLine(0.0, DT), FixedDelay(0.0, DT))
        outputs = jax.vmap(jax.vmap(traced, axis_name="time"), in_axes=1, out_axes=1)(rollout.observation)
        return jnp.sum(handed * outputs)

    def of_actor(actor):
        return jnp.sum(handed * actors.outputs(actor, rollout))

    (value, grads), (same, expected) = (
        jit(eqx.filter_value_and_grad(one))(model) for one, model in ((of_actor, actor), (of_attached, tuple(parts)))
    )
    np.testing.assert_allclose(value, same, rtol=1e-10)
    for layer, part in zip(grads.layers, cetsim.detach(expected), strict=True):
        np.testing.assert_allclose(layer.weight, part.inputs.weight, rtol=1e-10, atol=1e-12)


def test_the_gradient_at_once_is_that_of_the_outputs():
    """Policy gradient, entropy bonus and critic together: autodiff of one loss through e-prop's outputs."""
    state = RUN.init(without_delay(1e-2, DT, entropy=0.02), jax.random.key(3))
    agent, learner = state.agent, RUN.learner
    rollout = jit(RUN.roll_out)(agent.params, state.vector_env, jax.random.key(1))[1]
    model = learner.networks(agent.params)
    td_error, _ = learner.td_errors(agent.hyper, model.critic, rollout)
    weights, later = np.zeros(td_error.shape), 0.0
    for t in reversed(range(STEPS)):
        weights[t] = later = td_error[t] + 0.99 * 0.95 * np.asarray(rollout.alive)[t] * later

    @jit
    @eqx.filter_grad
    def of(actor):
        outputs = actors.outputs(actor, rollout)
        log_policy = learner.policy.log_probability(outputs, rollout.action)
        return -jnp.mean(weights * log_policy) - 0.02 * jnp.mean(learner.policy.entropy(outputs))

    _, grads, _ = jit(learner.gradient)(agent, rollout)
    for found, expected in zip(grads.actor.layers, of(model.actor).layers, strict=True):
        np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-10, atol=1e-12)


def test_what_is_remembered_exactly_points_along_the_gradient_at_once():
    state = RUN.init(hyper("delay line"), jax.random.key(3))
    cosines = jit(lambda key: policy_alignment(RUN, state, key, 3))(jax.random.key(4))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-10)


def test_a_run_that_is_cut_is_the_same_run_bit_for_bit():
    advance, state = jit(lambda state, updates: RUN.advance(state, updates)), RUN.init(hyper(), jax.random.key(3))
    whole, pieces = advance(state, 2)[0], advance(advance(state, 1)[0], 1)[0]
    for left, right in zip(jax.tree.leaves(whole.vector_env[1:]), jax.tree.leaves(pieces.vector_env[1:]), strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(jax.tree.leaves(whole.agent), jax.tree.leaves(pieces.agent), strict=True):
        np.testing.assert_array_equal(left, right)


def test_it_learns():
    """Action 0 is better at places up to 0, action 1 beyond."""
    run = ActorCriticRun(corridor(), Settings(150, 8, 32, (16,), neuron=LIF(DT, 0.2, DT, surrogate=FastSigmoid(5.0))))
    state = run.init(without_delay(5e-3), jax.random.key(4))
    before = jit(run.evaluate)(state, jax.random.key(6), 200).mean()
    after = jit(run.evaluate)(jit(lambda state: run.advance(state, 150)[0])(state), jax.random.key(6), 200).mean()
    assert after > before + 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(1, neuron=LIF(0.2, dt=DT, learn_time_constant=True)), "one time constant that is not"),
        (lambda: Settings(1, neuron=LIF((0.2, 0.4), dt=DT)), "one time constant that is not learned, got 2 of them"),
        (
            lambda: ActorCriticRun(corridor(), Settings(1, neuron=LIF(0.2, dt=0.1))).init(hyper(), jax.random.key(0)),
            "`Settings.neuron` and `trace` must have one dt, got 0.1 s and 0.2 s",
        ),
        (lambda: policy_of(RUN, RUN.init(hyper(), jax.random.key(0))), "an actor without state over time"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
