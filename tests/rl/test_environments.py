"""Environments in JAX against the simulators that they stand for, step by step."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from worlds import corridor

from cetsim.rl.environments import STICKY, cartpole, from_gymnax, scaled_rewards, space_invaders, split_signs
from cetsim.rl.policies import Categorical, Gaussian

pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")

LEFT, UP, RIGHT, FIRE = 1, 2, 3, 5


@jit
def play(step, state, *rows):
    """Steps with the actions that `step`, of a key, a state and a row each, takes; what it tells of each."""
    keys = jax.random.split(jax.random.key(0), len(rows[0]))
    return jax.lax.scan(lambda state, now: step(now[0], state, *now[1:]), state, (keys, *rows))[1]


def balanced(observation):
    """The action that keeps a pole up for as long as one likes."""
    return (observation @ jnp.asarray([0.02, 0.05, 1.0, 0.5]) > 0).astype(int)


def test_cartpole_is_gymnasiums():
    """600 random steps, and then some by a controller that never lets the pole fall."""
    gymnasium = pytest.importorskip("gymnasium", reason="needs Gymnasium: pip install 'cetsim[rl]'")
    environment = cartpole()
    random = jnp.asarray(np.random.default_rng(0).integers(0, 2, 600))
    wanted = jnp.concatenate([random, jnp.full(1100, -1)])

    def step(key, carry, wanted):
        state, observation = carry
        action = jnp.where(wanted < 0, balanced(observation), wanted)
        state, after = environment.step(key, state, action)
        return (state, after.observation), (action, after)

    first = environment.reset(jax.random.key(1))
    actions, steps = play(step, first, wanted)
    twin = gymnasium.make("CartPole-v1")
    twin.reset(seed=0)
    twin.unwrapped.state = np.asarray(first[1], np.float64)
    for t, action in enumerate(np.asarray(actions)):
        _, reward, terminated, truncated, _ = twin.step(int(action))
        np.testing.assert_allclose(steps.final[t], twin.unwrapped.state, rtol=0, atol=1e-12)
        told = float(steps.reward[t]), bool(steps.terminated[t]), bool(steps.truncated[t])
        assert told == (reward, terminated, truncated)
        if terminated or truncated:
            assert np.abs(steps.observation[t]).max() <= 0.05
            twin.reset()
        else:
            np.testing.assert_array_equal(steps.observation[t], steps.final[t])
        # A pole on end makes much of the last digit, so that the twin is set anew at every step.
        twin.unwrapped.state = np.asarray(steps.observation[t], np.float64)
    assert steps.terminated.sum() > 10
    assert steps.truncated.sum() == 2


def aimed(screen, rng):
    """An action that mostly dodges bullets and shoots the nearest alien."""
    if rng.uniform() < 0.1:
        return int(rng.integers(6))
    cannon, falling = int(np.argmax(screen[9, :, 0])), screen[5:, :, 5].any(axis=0)
    columns = np.flatnonzero(screen[:, :, 1].any(axis=0))
    aim = int(np.sign(columns[np.argmin(np.abs(columns - cannon))] - cannon))
    for move in (aim, 0, -1, 1):
        if 0 <= cannon + move <= 9 and not falling[cannon + move]:
            return (LEFT, FIRE, RIGHT)[move + 1]
    return FIRE


@pytest.mark.parametrize("player", ["random", "aimed"])
def test_space_invaders_is_minatars(player):
    """Without sticky actions nothing in it is random; the one who aims clears a wave and more."""
    minatar = pytest.importorskip("minatar", reason="needs MinAtar: pip install 'cetsim[test]'")
    rng, twin = np.random.default_rng(1), minatar.Environment("space_invaders", sticky_action_prob=0.0)
    rows = []
    for _ in range(2000):
        screen = twin.state()
        action = int(rng.integers(6)) if player == "random" else aimed(screen, rng)
        reward, over = twin.act(action)
        rows.append((action, screen, reward, over, twin.state()))
        if over:
            twin.reset()
    actions, screens, rewards, ends, finals = (np.asarray(column) for column in zip(*rows, strict=True))
    environment = space_invaders(sticky=0.0)
    state, first = environment.reset(jax.random.key(2))
    steps = play(environment.step, state, jnp.asarray(actions))
    seen = np.concatenate([first[None], steps.observation[:-1]])
    np.testing.assert_array_equal(seen.reshape(-1, 10, 10, 6), screens)
    np.testing.assert_array_equal(steps.final.reshape(-1, 10, 10, 6), finals)
    np.testing.assert_array_equal(steps.reward, rewards)
    np.testing.assert_array_equal(steps.terminated, ends)
    assert not steps.truncated.any()
    assert ends.sum() >= 5
    scores = [part.sum() for part in np.split(rewards, np.flatnonzero(ends) + 1)]
    assert player == "random" or max(scores) > 24


def test_space_invaders_as_in_the_paper():
    environment = space_invaders()
    assert (environment.size, environment.policy) == (10 * 10 * 6, Categorical(6))
    state, first = environment.reset(jax.random.key(3))
    assert set(np.unique(first)) == {0.0, 1.0}
    old = state.replace(env_state=state.env_state.replace(time=state.env_state.time + 10**8))
    assert not play(environment.step, old, jnp.zeros(1, int)).truncated.any()
    limited = space_invaders(max_steps=10)
    ends = play(limited.step, limited.reset(jax.random.key(4))[0], jnp.full(30, UP)).truncated
    np.testing.assert_array_equal(np.flatnonzero(ends), [9, 19, 29])


def test_actions_stick_one_time_in_ten():
    """Each step asks for another action than the last one done, so that a repetition shows."""
    environment, many = space_invaders(), 6000

    def step(key, state, _):
        wanted = (state.last_action + 1) % environment.policy.actions
        after, told = environment.step(key, state, wanted)
        return after, (after.last_action == state.last_action, after.last_action == wanted, told.terminated)

    repeated, obeyed, ends = play(step, environment.reset(jax.random.key(5))[0], jnp.zeros(many))
    assert (repeated ^ obeyed).all()
    assert ends.any()
    assert abs(repeated.mean() - STICKY) < 4 * np.sqrt(STICKY * (1 - STICKY) / many)


def test_real_actions_have_a_gaussian_policy():
    environment = from_gymnax("Pendulum-v1")
    assert (environment.size, environment.policy) == (3, Gaussian((-2.0,), (2.0,)))


def test_without_gymnax_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    for make in (cartpole, space_invaders):
        with pytest.raises(ImportError, match=r"needs gymnax: pip install 'cetsim\[rl\]'"):
            make()


def test_scaled_rewards_are_multiplied_and_nothing_else():
    plain, scaled = corridor(), scaled_rewards(corridor(), 0.1)
    key = jax.random.key(0)
    state, _ = plain.reset(key)
    for action in (1, 1, 0, 1, 1):
        (after, told), (same, other) = plain.step(key, state, action), scaled.step(key, state, action)
        np.testing.assert_allclose(other.reward, 0.1 * told.reward)
        for name in ("observation", "terminated", "truncated", "final"):
            np.testing.assert_array_equal(getattr(other, name), getattr(told, name))
        jax.tree.map(np.testing.assert_array_equal, after, same)
        state = after
    assert (scaled.size, scaled.policy) == (plain.size, plain.policy)
    with pytest.raises(ValueError, match="`factor` must be above 0, got -1"):
        scaled_rewards(corridor(), -1.0)


def test_observations_split_by_sign():
    split = split_signs(corridor())
    _, observation = split.reset(jax.random.key(0))
    _, plain = corridor().reset(jax.random.key(0))
    np.testing.assert_allclose(observation[:3] - observation[3:], plain)
    assert observation.min() >= 0
    assert split.size == 6
