"""A run on the host goes on from its checkpoint as if it had not stopped, or says that it cannot."""

import dataclasses
import functools
import json
import random

import jax
import numpy as np
import pytest

from cetsim import CascadingTrace, FixedDelay
from cetsim.rl import HostRun, Hyperparameters, Settings, policy_alignment
from cetsim.rl.vector_env import from_gymnasium
from cetsim.spiking import LIF, FastSigmoid
from cetsim.sweep import checkpoint

gymnasium = pytest.importorskip("gymnasium", reason="needs Gymnasium: pip install 'cetsim[rl]'")

UPDATES, SETTINGS = 6, Settings(updates=8, environments=3, rollout=11, hidden=(6,))
LIMITS = {"CartPole-v1": 17, "LunarLander-v3": 31}  # steps of an episode, so that some are broken off
NAMES = pytest.mark.parametrize("name", LIMITS)


class Still(gymnasium.Env):
    """Observes the time and earns nothing."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        return self.observe(), self.earn(), False, False, {}

    def observe(self):
        return np.asarray([self.time], np.float32)

    def earn(self):
        return 0.0


class Wayward(Still):
    """Draws what it observes from a generator that is not its own."""

    def observe(self):
        return np.asarray([random.random()], np.float32)


class Fickle(Still):
    """Draws what it pays from a generator that is not its own."""

    def earn(self):
        return random.random()


class Counting(Still):
    """Observes how many episodes there were."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed)

    def observe(self):
        return np.asarray([self.episodes], np.float32)


class Mortal(Still):
    """Ends its episodes at a time that is set elsewhere."""

    end = 9

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.time == self.end, truncated, info


class Twister(Still):
    """Draws from a generator of another kind than Gymnasium's."""

    def reset(self, *, seed=None, options=None):
        super().reset()
        if seed is not None:
            self.np_random = np.random.Generator(np.random.MT19937(seed))
        self.time = 0
        return self.observe(), {}

    def observe(self):
        return self.np_random.random(1, np.float32)


for each in (Still, Wayward, Fickle, Counting, Mortal, Twister):
    gymnasium.register(f"{each.__name__}-v0", each, max_episode_steps=LIMITS["CartPole-v1"], disable_env_checker=True)


def made(name):
    if name.startswith("Lunar"):
        pytest.importorskip("Box2D", reason="needs Box2D: pip install 'cetsim[rl]'")
    return from_gymnasium(name, **({"max_episode_steps": LIMITS[name]} if name in LIMITS else {}))


@functools.cache
def run_in(name):
    return HostRun(made(name), SETTINGS)


def start(name):
    run = run_in(name)
    return run, run.init(Hyperparameters(1e-2, CascadingTrace(3, 1.0, 0.2), FixedDelay(1.0, 0.2)), jax.random.key(3))


def written(notes):
    return json.loads(json.dumps(notes))


def same(left, right):
    """Bit for bit."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = (jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())


def whole(state):
    return state.agent, state.observation, state.episode, state.key


def without_seconds(told):
    return told.finished, told.returns, told.entropy, told.value_loss


@NAMES
def test_a_run_goes_on_bit_for_bit(name):
    run, state = start(name)
    saved, told = [], []
    for _ in range(UPDATES):
        saved.append(run.save(state))
        state, progress = run.advance(state, 1)
        told.append(without_seconds(progress))
    finished = np.concatenate([each[0] for each in told])
    assert (finished[: UPDATES // 2].sum() > 0, finished[UPDATES // 2 :].sum() > 0) == (True, True)
    anew = HostRun(made(name), SETTINGS)
    for k, (tree, notes) in enumerate(saved):
        restored = anew.restore(tree, written(notes))
        same(whole(restored), tree)
        after, rest = anew.advance(restored, UPDATES - k)
        same(whole(after), whole(state))
        same(without_seconds(rest), jax.tree.map(lambda *rows: np.concatenate(rows), *told[k:]))
        same(anew.save(after)[0], run.save(state)[0])
        assert anew.save(after)[1] == run.save(state)[1]


def test_spiking_neurons_go_on_where_they_were_saved():
    settings = dataclasses.replace(SETTINGS, neuron=LIF(0.5, 0.1, 0.2, surrogate=FastSigmoid(10.0)))
    run = HostRun(made("CartPole-v1"), settings)
    late = Hyperparameters(1e-2, CascadingTrace(3, 1.0, 0.2), FixedDelay(1.0, 0.2))
    state, _ = run.advance(run.init(late, jax.random.key(4)), 1)
    tree, notes = run.save(state)
    assert all(layer.filtered.any() for layer in tree.memory)
    after, _ = run.advance(state, 2)
    again, _ = run.advance(run.restore(tree, written(notes)), 2)
    same((whole(again), again.memory), (whole(after), after.memory))
    same(run.evaluate(again, jax.random.key(9), 4), run.evaluate(after, jax.random.key(9), 4))
    cosines = policy_alignment(run, again, jax.random.key(4), 2)
    assert ((cosines > -1) & (cosines < 1)).all()


@NAMES
def test_a_world_is_replayed_at_every_step(name):
    """In an episode that began with a seed or by itself, just begun or about to be broken off."""
    environment, actions = made(name), np.random.default_rng(0).integers(0, 2, (80, 2))
    vector_env = environment.open(2)
    seen, records, after = [vector_env.reset(jax.random.key(1))], [], []
    for own in actions:
        records.append(vector_env.record())
        after.append(vector_env.step(own))
        seen.append(after[-1].observation)
    assert sum(each.truncated.sum() for each in after) >= 2
    lengths = [len(episode["actions"]) for record in records for episode in record["episodes"]]
    assert max(lengths) <= LIMITS[name] - 1
    assert sum(length == 0 for length in lengths) > 2
    for t in range(0, 70, 3):
        again = environment.open(2)
        np.testing.assert_array_equal(again.replay(written(records[t])), seen[t])
        assert again.record() == records[t]
        assert again.steps == t
        same([again.step(own) for own in actions[t : t + 10]], after[t : t + 10])
        again.close()
    vector_env.close()


def test_a_checkpoint_of_it_is_a_checkpoint(tmp_path):
    run, state = start("CartPole-v1")
    state, _ = run.advance(state, 2)
    tree, notes = run.save(state)
    checkpoint.save(tmp_path, 2, tree)
    like = run.save(run.init(state.agent.hyper, jax.random.key(8)))[0]
    same(whole(run.restore(checkpoint.latest(tmp_path, like)[1], notes)), whole(state))


@pytest.mark.parametrize("name", ["CartPole-v1", "Twister-v0"])
def test_a_record_is_plain_json(name):
    run, state = start(name)
    for _ in range(4):
        state, _ = run.advance(state, 1)
        notes = state.vector_env.record()
        assert written(notes) == notes
    assert notes["steps"] == 4 * SETTINGS.rollout
    restored = run.restore(run.save(state)[0], written(notes))
    same(run.advance(restored, 1)[0].agent, run.advance(state, 1)[0].agent)


def test_the_world_that_was_recorded_goes_on_as_it_would_have():
    run, state = start("CartPole-v1")
    run.save(state)
    straight, _ = run.advance(state, 2)
    _, other = start("CartPole-v1")
    same(whole(straight), whole(run.advance(other, 2)[0]))


@pytest.mark.parametrize("name", ["Wayward-v0", "Fickle-v0", "Counting-v0", "Mortal-v0"])
def test_a_simulator_that_does_not_repeat_itself_is_refused(name, monkeypatch):
    run, state = start(name)
    for _ in range(4):
        state, _ = run.roll_out(state, jax.random.key(0))
    monkeypatch.setattr(Mortal, "end", 3)
    message = rf"{name} must repeat itself .* environment \d came to something else within \d+ steps.* start the run"
    with pytest.raises(ValueError, match=message):
        run.restore(*run.save(state))


def test_notes_of_another_run_are_refused():
    run, state = start("CartPole-v1")
    tree, notes = run.save(state)
    other, own = start("Still-v0")
    with pytest.raises(ValueError, match="`record` must be of CartPole-v1, got one of Still-v0"):
        run.restore(tree, other.save(own)[1])
    with pytest.raises(ValueError, match="`record` must be of 3 environments, got 2"):
        run.restore(tree, notes | {"episodes": notes["episodes"][:2]})
    later, _ = run.advance(state, 1)
    with pytest.raises(ValueError, match=r"`notes` must be those .* got a vector environment at step 11"):
        run.restore(tree, run.save(later)[1])


def test_a_state_whose_world_has_gone_on_cannot_be_saved():
    run, state = start("CartPole-v1")
    run.advance(state, 1)
    with pytest.raises(ValueError, match="`state` must be the latest of its run, step 11, got step 0"):
        run.save(state)
