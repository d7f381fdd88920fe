"""Distributions of actions: their scores and entropies against autodiff and scipy, and agents that act by them."""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from scipy import stats

from cetsim import CascadingTrace, DelayLine, FixedDelay, rl
from cetsim.rl.environments import Environment, Step
from cetsim.rl.policies import LOG_SD, Categorical, Gaussian, of_space

RNG = np.random.default_rng(0)
POLICIES = {
    "categorical": (Categorical(3), RNG.normal(size=(9, 3)), RNG.integers(0, 3, 9)),
    "gaussian": (Gaussian((-2.0, 0.0), (2.0, 3.0)), 2 * RNG.normal(size=(9, 4)), RNG.normal(size=(9, 2))),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_score_is_the_derivative_of_the_log_probability(name):
    policy, outputs, actions = POLICIES[name]
    outputs, actions = jnp.asarray(outputs), jnp.asarray(actions)
    expected = jax.vmap(jax.grad(policy.log_probability))(outputs, actions)
    np.testing.assert_allclose(policy.score(outputs, actions), expected, rtol=1e-12, atol=1e-14)
    assert policy.score(outputs, actions).shape == (9, policy.outputs)


def test_log_probabilities_and_entropies_are_scipys():
    policy, outputs, actions = POLICIES["categorical"]
    odds = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    np.testing.assert_allclose(policy.log_probability(jnp.asarray(outputs), jnp.asarray(actions)),
                               np.log(odds[np.arange(9), actions]), rtol=1e-12)  # fmt: skip
    np.testing.assert_allclose(policy.entropy(jnp.asarray(outputs)), stats.entropy(odds, axis=1), rtol=1e-12)
    policy, outputs, actions = POLICIES["gaussian"]
    low, high = LOG_SD
    sd = np.exp(low + (high - low) / 2 * (np.tanh(outputs[:, 2:]) + 1))
    expected = stats.norm.logpdf(actions, outputs[:, :2], sd).sum(1)
    np.testing.assert_allclose(policy.log_probability(jnp.asarray(outputs), jnp.asarray(actions)), expected, rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(jnp.asarray(outputs)), stats.norm.entropy(scale=sd).sum(1), rtol=1e-12)


@pytest.mark.parametrize("where", ["jax", "host"])
@pytest.mark.parametrize("name", POLICIES)
def test_draws_have_the_moments_of_the_policy(name, where):
    policy, outputs, _ = POLICIES[name]
    many, key = np.broadcast_to(outputs[0], (20_000, policy.outputs)), jax.random.key(0)
    if where == "jax":
        drawn = np.asarray(policy.draw(key, jnp.asarray(many)))
    else:
        drawn = policy.pick(many, np.asarray(policy.noise(key, (20_000,))))
    sigmas = 6 / np.sqrt(20_000)
    if name == "categorical":
        odds = np.exp(outputs[0]) / np.exp(outputs[0]).sum()
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, odds, atol=sigmas / 2)
    else:
        low, high = LOG_SD
        sd = np.exp(low + (high - low) / 2 * (np.tanh(outputs[0, 2:]) + 1))
        np.testing.assert_allclose(drawn.mean(0), outputs[0, :2], atol=sigmas * sd.max())
        np.testing.assert_allclose(drawn.std(0), sd, rtol=sigmas)


def test_an_environment_is_given_clipped_actions_in_its_own_units():
    policy = Gaussian((-2.0, 0.0), (2.0, 3.0))
    given = np.array([[0.0, 0.0], [1.0, -1.0], [-7.0, 9.0], [0.5, 0.5]])
    expected = [[0.0, 1.5], [2.0, 0.0], [-2.0, 3.0], [1.0, 2.25]]
    np.testing.assert_allclose(policy.applied(given), expected)
    np.testing.assert_allclose(policy.applied(jnp.asarray(given)), expected)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(2, start=1),
        gymnasium.spaces.MultiDiscrete([2, 3]),
        gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
        gymnasium.spaces.Box(0, 1, (2, 2)),
    ],
    ids=str,
)
def test_other_actions_are_refused(space):
    with pytest.raises(
        ValueError, match="Odd-v0 must have discrete actions that count from 0, or a vector of real ones"
    ):
        of_space("Odd-v0", space)


def target(moves: float = 0.4) -> Environment:
    """One number is seen, and what is earned falls with the square of how far the action is from a half of it."""

    def observe(state):
        return jnp.stack([state[0], -state[0], jnp.ones(())])

    def reset(key):
        state = jax.random.uniform(key, (), minval=-1, maxval=1), jnp.zeros((), int)
        return state, observe(state)

    def step(key, state, action):
        seen, time = state
        reward = -jnp.square(action[0] - seen)
        moved = jnp.clip(seen + moves * jax.random.normal(key), -1, 1), time + 1
        truncated = moved[1] >= 20
        following = jax.tree.map(lambda first, on: jnp.where(truncated, first, on), reset(key)[0], moved)
        return following, Step(observe(following), reward, jnp.zeros((), bool), truncated, observe(moved))

    return Environment("target", 3, Gaussian((-2.0,), (2.0,)), reset, step)


@pytest.mark.parametrize("late", [0.0, 0.6])
def test_an_agent_learns_real_actions_from_credit_that_is_late(late):
    run = rl.ActorCriticRun(target(), rl.Settings(updates=150, environments=8, rollout=32, hidden=(16,)))
    trace, delay = DelayLine(late, 0.2), FixedDelay(late, 0.2)
    hyper = rl.Hyperparameters(5e-3, trace, delay, discount=0.5, entropy=0.0)
    advance = jit(lambda state: run.advance(state, 150))
    state, progress = advance(run.init(hyper, jax.random.key(0)))
    returns = np.asarray(progress.returns / np.maximum(progress.finished, 1))[np.asarray(progress.finished) > 0]
    assert returns[-10:].mean() > -3.0
    assert returns[:10].mean() < -9.0
    seen = jnp.array([[0.8, -0.8, 1.0], [-0.8, 0.8, 1.0]])
    mean = rl.policy_of(run, state).outputs(seen)[:, 0]
    np.testing.assert_allclose(2 * mean, [0.8, -0.8], atol=0.35)


def test_late_real_actions_are_the_literal_gradient():
    """With a delay line and λ = 0, the gradient is that of TD error times log-probability, by autodiff."""
    run = rl.ActorCriticRun(target(), rl.Settings(1, 2, 9, (5,)))
    hyper = rl.Hyperparameters(1e-2, DelayLine(0.4, 0.2), FixedDelay(0.4, 0.2), lam=0.0)
    state = run.init(hyper, jax.random.key(1))
    _, rollout = run.roll_out(state.agent.params, state.vector_env, jax.random.key(2))
    td_error = jax.random.normal(jax.random.key(3), (9, 2))
    _, found = run.learner.late_gradient(hyper, state.agent.params, state.agent.layers, rollout, td_error)

    def loss(actor):
        outputs = jax.vmap(jax.vmap(actor))(rollout.observation)
        log = run.environment.policy.log_probability(outputs, rollout.action)
        return -jnp.sum((log * td_error)[:7]) / (9 * 2)  # the last two steps' signals come after the rollout

    expected = jax.grad(lambda weights: loss(with_weights(run, state, weights)))(weights_of(state.agent.params.actor))
    for a, b in zip(weights_of(found.actor), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def weights_of(actor):
    return [layer.weight for layer in actor.layers if hasattr(layer, "weight")]


def with_weights(run, state, weights):
    return eqx.tree_at(weights_of, run.learner.networks(state.agent.params).actor, weights)


def test_gymnasiums_real_actions_are_resumed_and_saved(tmp_path):
    environment = rl.from_gymnasium("Pendulum-v1")
    assert environment.policy == Gaussian((-2.0,), (2.0,))
    run = rl.HostRun(environment, rl.Settings(updates=4, environments=2, rollout=8, hidden=(6,)))
    hyper = rl.Hyperparameters(1e-3, CascadingTrace(3, 0.4, 0.2), FixedDelay(0.4, 0.2))
    state, _ = run.advance(run.init(hyper, jax.random.key(0)), 2)
    resumed = run.restore(*run.save(state))
    ends = [run.advance(each, 2)[0] for each in (state, resumed)]
    for a, b in zip(*(jax.tree.leaves(end.agent) for end in ends), strict=True):
        np.testing.assert_array_equal(a, b)
    policy = rl.policy_of(run, ends[0])
    rl.save_policy(tmp_path / "policy", policy)
    again = rl.load_policy(tmp_path / "policy")
    assert again.kind == environment.policy
    actions = again.act(jnp.asarray(ends[0].observation), jax.random.key(4))
    np.testing.assert_array_equal(actions, policy.act(jnp.asarray(ends[0].observation), jax.random.key(4)))
    assert actions.shape == (2, 1)
    assert np.abs(actions).max() <= 2
    assert run.evaluate(ends[0], jax.random.key(5), 2, max_steps=20).shape == (2,)
