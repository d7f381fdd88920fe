"""Slopes that a cascade at the soma remembers until errors come: against loops over time, and against exact memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from worlds import corridor

from cetsim import CascadingTrace, DelayLine, FixedDelay, LayerwiseDelay
from cetsim.rl import ActorCriticRun, Hyperparameters, Settings, actors, networks, policy_alignment
from cetsim.spiking import LIF, FastSigmoid

DT, STEPS, ENVIRONMENTS, DECAY = 0.2, 11, 3, 0.99 * 0.95
SETTINGS = Settings(1, ENVIRONMENTS, STEPS, (6, 5), derivative="cascade")
SPIKING = LIF(0.4, 0.2, DT, surrogate=FastSigmoid(5.0))
STACKED = LayerwiseDelay.stacked(0.6, 3, DT)
LATES = {"stacked": (0, 3, 6), "alike": (3, 3, 3)}  # steps, from the top down


def hyper(delays, kind=lambda delay: CascadingTrace(3, delay, DT)):
    traces = tuple(DelayLine(0.0, DT, 0.0) if late == 0 else kind(late * DT) for late in LATES[delays])
    return Hyperparameters(1e-2, traces, STACKED if delays == "stacked" else FixedDelay(0.6, DT))


@jit
def two_rollouts(run, state):
    """Two rollouts at the first weights: what happened, the factors of each layer, and what is learned in each."""
    agent, learner, held, layers, found = state.agent, run.learner, state.vector_env, state.agent.layers, []
    model = learner.networks(agent.params)
    for number in range(2):
        held, rollout = run.roll_out(agent.params, held, jax.random.key(5 + number))
        td_error = jax.random.normal(jax.random.key(7 + number), rollout.reward.shape)
        layers, late = learner.late_gradient(agent.hyper, agent.params, layers, rollout, td_error)
        factors = actors.factors_of_policy(model.actor, learner.policy, rollout)
        seen = [(one.x, jnp.ones_like(one.error) if one.derivative is None else one.derivative) for one in factors]
        values = [networks.Factors(*one) for one in networks.factors_of_value(model.critic, rollout.observation)]
        seen += [(one.x, jnp.ones_like(one.error) if one.derivative is None else one.derivative) for one in values]
        found.append(((rollout.alive, td_error, seen, factors[-1].error), late))
    return found


def literal(weights, seen, top, td_error, alive, kernels, lates, form, reset):
    """-td e of every step and layer of one environment, from the bottom up: all stepped through time."""
    depth, steps = len(weights), len(top)
    held, before = [0.0] * depth, [1.0] * depth
    sent = np.zeros((depth, steps), object)  # what was sent to each layer, from the bottom up, at each step
    found = [[] for _ in weights]
    for t in range(steps):
        first = max((s + 1 for s in range(t) if reset and alive[s] == 0), default=0)
        sent[depth - 1, t] = top[t]
        for i in reversed(range(depth)):
            above = lates[i + 1] if i + 1 < depth else 0
            at = t - (lates[i] - above)
            x, slope = seen[i]
            error = sent[i, at] if at >= 0 else np.zeros(slope.shape[1])
            past = range(first, t + 1)
            remembered = sum(kernels[i][t - s] * slope[s] for s in past) if i < depth - 1 else 1.0
            gain = 1.0 if form == "preactivation" else slope
            trace = sum(kernels[i][t - s] * np.outer((gain * np.ones_like(slope))[s], x[s]) for s in past)
            signal = error if form == "activation" else remembered * error
            held[i] = DECAY * before[i] * held[i] + signal[:, None] * trace
            arrived = t - lates[i]
            found[i].append(-(td_error[arrived] if arrived >= 0 else 0.0) * held[i])
            before[i] = alive[arrived] if arrived >= 0 else 1.0
            if i > 0:
                sent[i - 1, t] = (remembered * error) @ weights[i]
    return [np.stack(rows) for rows in found]


@pytest.mark.parametrize(
    ("delays", "options"),
    [
        ("stacked", {}),
        ("alike", {}),
        ("alike", {"form": "authors_linear"}),
        ("stacked", {"form": "preactivation"}),
        ("alike", {"reset_cascade": True}),
        ("alike", {"neuron": SPIKING}),
        ("stacked", {"window": 2 * STEPS}),
        ("alike", {"late_critic": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "activation",
)
def test_it_is_the_literal_rule(delays, options):
    settings = dataclasses.replace(SETTINGS, **options)
    run = ActorCriticRun(corridor(), settings)
    state = run.init(hyper(delays), jax.random.key(2))
    found, lates = two_rollouts(run, state), LATES[delays][::-1]
    join = lambda of: np.concatenate([np.asarray(of(one[0])) for one in found])  # noqa: E731
    alive, td_error, top = join(lambda one: one[0]), join(lambda one: one[1]), join(lambda one: one[3])
    assert 0 < alive.mean() < 1
    lags = jnp.arange(2 * STEPS)
    kernels = [np.asarray(trace.weights(lags)) for trace in state.agent.hyper.trace[::-1]]
    parts = [("actor", 0, top, 1.0)]
    if settings.late_critic:
        parts.append(("critic", 3, np.ones((2 * STEPS, ENVIRONMENTS, 1)), 0.5))
    for name, start, error, scale in parts:
        model = getattr(state.agent.params, name)
        linear = [layer for layer in model.layers if hasattr(layer, "weight")]
        weights, totals = [np.asarray(layer.weight) for layer in linear], [[0.0] * 3, [0.0] * 3]
        for env in range(ENVIRONMENTS):
            seen = [[join(lambda one: one[2][start + i][j])[:, env] for j in range(2)] for i in range(3)]  # noqa: B023
            rows = literal(weights, seen, error[:, env], td_error[:, env], alive[:, env], kernels, lates,
                           settings.form, settings.reset_cascade)  # fmt: skip
            for number in range(2):
                for i in range(3):
                    part = rows[i][number * STEPS : (number + 1) * STEPS].sum(axis=0)
                    totals[number][i] = totals[number][i] + scale * part / STEPS / ENVIRONMENTS
        for (_, late), total in zip(found, totals, strict=True):
            expected = networks.gradient_like(model, [jnp.asarray(update) for update in total])
            for a, b in zip(jax.tree.leaves(getattr(late, name)), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("neuron", [None, SPIKING], ids=["ReLU", "LIF"])
@pytest.mark.parametrize("delays", LATES)
def test_a_cascade_that_forgets_nothing_is_exact(delays, neuron):
    lines = hyper(delays, lambda delay: DelayLine(delay, DT))
    gradients = []
    for derivative in ("cascade", "ideal"):
        run = ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, derivative=derivative, neuron=neuron))
        gradients.append([late for _, late in two_rollouts(run, run.init(lines, jax.random.key(2)))])
    for a, b in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(gradients[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_slopes_that_are_remembered_by_a_cascade_cost_alignment_of_lower_layers_alone():
    cosines = {}
    for derivative in ("cascade", "ideal"):
        run = ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, derivative=derivative))
        state = run.init(hyper("alike"), jax.random.key(3))
        cosines[derivative] = np.asarray(jit(lambda key: policy_alignment(run, state, key, 6))(jax.random.key(4)))  # noqa: B023
    np.testing.assert_allclose(cosines["cascade"][1:], cosines["ideal"][1:], rtol=1e-10)
    assert abs(cosines["cascade"][0] - cosines["ideal"][0]) > 1e-4


def test_delays_that_fall_are_refused():
    run = ActorCriticRun(corridor(), SETTINGS)
    falling = LayerwiseDelay(tuple(FixedDelay(late, DT) for late in (0.6, 0.4, 0.6)))
    with pytest.raises(
        ValueError, match="`delay` must not fall from the top layer down where `derivative` is 'cascade'"
    ):
        run.init(Hyperparameters(1e-2, CascadingTrace(3, 0.6, DT), falling), jax.random.key(0))
    with pytest.raises(ValueError, match="`derivative` must be one of 'ideal', 'cascade', got 'exact'"):
        Settings(1, derivative="exact")
