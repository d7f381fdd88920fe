"""The agent in simulators on the host: what its rollouts say, and that it learns from them as in JAX environments."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit

from cetsim import CascadingTrace, DelayLine, FixedDelay
from cetsim.rl import ActorCriticRun, Hyperparameters, Settings, policy_alignment, without_delay
from cetsim.rl.environments import Environment
from cetsim.rl.host import HostRun
from cetsim.rl.policies import Categorical
from cetsim.rl.vector_env import from_gymnasium
from cetsim.spiking import LIF, FastSigmoid

gymnasium = pytest.importorskip("gymnasium", reason="needs Gymnasium: pip install 'cetsim[rl]'")

END, LIMIT = 2, 7
SCALE = np.asarray([4, 8, 64])
SETTINGS = Settings(updates=200, environments=3, rollout=11, hidden=(6,))


class Corridor(gymnasium.Env):
    """Observes place, time and number of the episode; action 1 moves right, 0 left, and place 2 is an end."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time, self.episode = int(self.np_random.integers(-1, 2)), 0, self.episode + 1
        return self.observe(), {}

    def step(self, action):
        self.place, self.time = self.place + (1 if action == 1 else -1), self.time + 1
        return self.observe(), 0.1 + self.place, self.place == END, False, {}

    def observe(self):
        return (np.asarray([self.place, self.time, self.episode]) / SCALE).astype(np.float32)


class Continuous(Corridor):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))


class Numbered(Corridor):
    observation_space = gymnasium.spaces.Discrete(9)


class FromOne(Corridor):
    action_space = gymnasium.spaces.Discrete(2, start=1)


def lacking():
    raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")


for each in (Corridor, Continuous, Numbered, FromOne):
    gymnasium.register(f"{each.__name__}-v0", each, max_episode_steps=LIMIT, disable_env_checker=True)
gymnasium.register("Lacking-v0", lacking)
IN_JAX = Environment("corridor", 3, Categorical(2), lambda key: None, lambda *arguments: None)
RUN = HostRun(from_gymnasium("Corridor-v0"), SETTINGS)
PATHS = [(1, 2), (1, 0), (-1, 0), (-1, -2)]  # places after one and two steps, from the first


def same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def close(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def late(rate=1e-2):
    return Hyperparameters(rate, CascadingTrace(3, 1.0, 0.2), FixedDelay(1.0, 0.2))


def test_a_rollout_tells_what_happened():
    state, rollout = RUN.roll_out(RUN.init(late(), jax.random.key(0)), jax.random.key(1))
    _, more = RUN.roll_out(state, jax.random.key(2))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), rollout, more)
    seen, final = whole.observation * SCALE, whole.final * SCALE
    place, time, episode = np.moveaxis(seen, -1, 0)
    moved = place + 2 * whole.action - 1
    np.testing.assert_array_equal(final, np.stack([moved, time + 1, episode], axis=-1))
    np.testing.assert_allclose(whole.reward, 0.1 + moved)
    np.testing.assert_array_equal(whole.terminated, moved == END)
    np.testing.assert_array_equal(whole.truncated, time + 1 == LIMIT)
    ended = (whole.terminated | whole.truncated)[:-1]
    assert (whole.terminated & ~whole.truncated).any()
    assert (whole.truncated & ~whole.terminated).any()
    np.testing.assert_array_equal(seen[1:][~ended], final[:-1][~ended])
    np.testing.assert_array_equal(seen[1:][ended][:, 1], 0)
    np.testing.assert_array_equal(seen[1:][ended][:, 2], final[:-1][ended][:, 2] + 1)
    assert np.unique(place[time == 0]).size > 1


def test_it_learns_from_a_rollout_what_the_jax_run_does():
    twin = ActorCriticRun(IN_JAX, SETTINGS)
    assert twin.learner == RUN.learner
    state = RUN.init(late(), jax.random.key(3))
    first = state.agent
    _, rollout = RUN.roll_out(state, jax.random.split(state.key)[1])
    agent, measured = jit(twin.learner.learn)(first, rollout)
    expected = agent, measured.entropy, measured.value_loss
    after, told = RUN.advance(RUN.init(late(), jax.random.key(3)), 1)
    found = after.agent, told.entropy[0], told.value_loss[0]
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
    assert int(told.finished[0]) == int((rollout.terminated | rollout.truncated).sum())
    np.testing.assert_allclose(told.returns[0] + after.episode.sum(), rollout.reward.sum())


def test_the_same_key_gives_the_same_numbers():
    def play(seed, *pieces):
        state, told = RUN.init(late(), jax.random.key(seed)), []
        for updates in pieces:
            state, progress = RUN.advance(state, updates)
            told.append((progress.finished, progress.returns, progress.entropy, progress.value_loss))
            assert bool((progress.simulator_s > 0).all())
        evaluated = RUN.evaluate(state, jax.random.key(9), 4)
        return state.agent, state.observation, evaluated, jax.tree.map(lambda *rows: jnp.concatenate(rows), *told)

    same(play(4, 3), play(4, 1, 2))
    assert not np.array_equal(play(4, 3)[1], play(5, 3)[1])


def test_evaluation_breaks_long_episodes_off():
    """In 2 steps from place -1, 0 or 1, unless they end before."""
    state = RUN.init(late(), jax.random.key(7))
    sums = {0.1 + END, *(0.2 + 2 * start + step + more for start in (-1, 0, 1) for step, more in PATHS)}
    returns = RUN.evaluate(state, jax.random.key(8), 40, max_steps=2)
    assert returns.shape == (40,)
    assert {round(float(each), 6) for each in returns} <= {round(each, 6) for each in sums}
    ones = RUN.evaluate(state, jax.random.key(8), 40, max_steps=1)
    assert {round(float(each), 6) for each in ones} <= {round(0.1 + place, 6) for place in range(-2, 3)}


def test_a_simulator_that_fails_in_an_evaluation_is_closed(monkeypatch):
    state, closed = RUN.init(late(), jax.random.key(7)), []
    kind = type(state.vector_env)
    monkeypatch.setattr(kind, "step", lambda self, actions: 1 / 0)
    monkeypatch.setattr(kind, "close", lambda self, close=kind.close: closed.append(self) or close(self))
    with pytest.raises(ZeroDivisionError):
        RUN.evaluate(state, jax.random.key(8), 3)
    assert len(closed) == 1
    assert closed[0] is not state.vector_env


def test_evaluation_leaves_the_run_as_it_was():
    state = RUN.init(late(), jax.random.key(6))
    RUN.evaluate(state, jax.random.key(0), 5)
    after, _ = RUN.advance(state, 1)
    same(after.agent, RUN.advance(RUN.init(late(), jax.random.key(6)), 1)[0].agent)


@pytest.mark.parametrize("episodes", [1, 5, 30])
def test_evaluation_plays_one_episode_each(episodes):
    """A return is the sum over the places of one walk, from -1, 0 or 1 to the end or for 7 steps."""
    walks = set()
    for start in (-1, 0, 1):
        for moves in np.ndindex(*(2,) * LIMIT):
            places = start + np.cumsum(2 * np.asarray(moves) - 1)
            length = int(np.argmax(places == END)) + 1 if (places == END).any() else LIMIT
            walks.add(round(float(places[:length].sum() + 0.1 * length), 6))
    returns = RUN.evaluate(RUN.init(late(), jax.random.key(7)), jax.random.key(8), episodes)
    assert returns.shape == (episodes,)
    assert {round(float(each), 6) for each in returns} <= walks


def test_actions_are_drawn_from_the_policy():
    many = 20_000
    run = HostRun(RUN.environment, Settings(1, environments=many, rollout=1, hidden=(6,)))
    params = jax.tree.map(lambda leaf: leaf + 0.1, RUN.init(late(), jax.random.key(10)).agent.params)
    observation = np.asarray([0.5, 0.25, 0.1])
    odds = jax.nn.softmax(RUN.learner.networks(params).actor(jnp.asarray(observation)))
    act = run.policy(params, jax.random.key(11))
    first, second = (act(np.tile(observation, (many, 1))) for _ in range(2))
    deviation = float(jnp.sqrt(odds[1] * odds[0] / many))
    assert 0.05 < float(odds[1]) < 0.95
    for drawn in (first, second):
        assert abs(drawn.mean() - float(odds[1])) < 4 * deviation
    assert (first != second).any()


def test_it_learns():
    """Places to the right are worth more; the end is best put off."""
    state = RUN.init(late(2e-2), jax.random.key(12))
    before = RUN.evaluate(state, jax.random.key(13), 60).mean()
    state, _ = RUN.advance(state, 200)
    assert RUN.evaluate(state, jax.random.key(13), 60).mean() > before + 2.0


def alignment(hyper, rollouts):
    run = HostRun(RUN.environment, dataclasses.replace(SETTINGS, center_td=None))
    return policy_alignment(run, run.init(hyper, jax.random.key(3)), jax.random.key(4), rollouts)


def test_updates_are_compared_with_the_policy_gradient():
    blurred, signal = CascadingTrace(3, 2.2, 0.2), FixedDelay(2.2, 0.2, 2.2)
    exact = Hyperparameters(1e-2, DelayLine(2.2, 0.2, 2.2), signal)
    np.testing.assert_allclose(alignment(without_delay(1e-2), 2), 1.0, rtol=1e-12)
    np.testing.assert_allclose(alignment(exact, 3), 1.0, atol=1e-10)
    cosines = alignment(Hyperparameters(1e-2, blurred, signal), 12)
    assert cosines.shape == (2,)
    assert ((cosines > 0.9) & (cosines < 0.998)).all()


def test_alignment_leaves_the_run_as_it_was(monkeypatch):
    opened, closed = [], []
    state, other = (RUN.init(late(), jax.random.key(6)) for _ in range(2))
    kind = type(state.vector_env)
    monkeypatch.setattr(kind, "reset", lambda self, key, reset=kind.reset: opened.append(self) or reset(self, key))
    monkeypatch.setattr(kind, "close", lambda self, close=kind.close: closed.append(self) or close(self))
    cosines = policy_alignment(RUN, state, jax.random.key(4), 2)
    assert len(opened) == 1
    assert closed == opened
    assert state.vector_env not in opened
    same(RUN.advance(state, 1)[0].agent, RUN.advance(other, 1)[0].agent)
    same(policy_alignment(RUN, RUN.init(late(), jax.random.key(6)), jax.random.key(4), 2), cosines)
    assert not np.array_equal(policy_alignment(RUN, RUN.init(late(), jax.random.key(6)), jax.random.key(5), 2), cosines)


SPIKING = HostRun(
    RUN.environment, dataclasses.replace(SETTINGS, neuron=LIF(0.5, 0.1, 0.2, surrogate=FastSigmoid(10.0)))
)


def test_neurons_go_on_from_rollout_to_rollout_and_are_at_rest_after_an_episode():
    state = SPIKING.init(late(), jax.random.key(3))
    actor, learner = SPIKING.learner.networks(state.agent.params).actor, SPIKING.learner
    memory, spiked = learner.rest(state.agent.params, SETTINGS.environments), 0.0
    for number in range(2):
        state, rollout = SPIKING.roll_out(state, jax.random.key(number))
        close(rollout.memory, memory)
        (response, readout), ended = actor.respond(rollout), rollout.terminated | rollout.truncated
        assert ended.any()
        for t in range(SETTINGS.rollout):
            memory, outputs = actor.step(memory, rollout.observation[t])
            np.testing.assert_allclose(outputs, readout.output[t], atol=1e-12)
            spiked += float(memory[0].neuron.spike.mean()) / SETTINGS.rollout / 2
            np.testing.assert_array_equal(memory[0].neuron.spike, response.output[t])
            memory = jax.tree.map(lambda leaf: leaf * (1 - ended[t][:, None]), memory)  # noqa: B023
    close(state.memory, memory)
    assert 0.05 < spiked < 0.95


def test_spiking_neurons_learn():
    state = SPIKING.init(late(2e-2), jax.random.key(12))
    before = SPIKING.evaluate(state, jax.random.key(13), 60).mean()
    state, _ = SPIKING.advance(state, 200)
    assert SPIKING.evaluate(state, jax.random.key(13), 60).mean() > before + 2.0


def test_observations_split_by_sign():
    environments = [from_gymnasium("Corridor-v0", split=split) for split in (False, True)]
    assert [environment.size for environment in environments] == [3, 6]
    plain, split = (environment.open(2) for environment in environments)
    parts = lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)  # noqa: E731
    np.testing.assert_array_equal(split.reset(jax.random.key(1)), parts(plain.reset(jax.random.key(1))))
    for _ in range(2 * LIMIT):
        whole, halves = (vector_env.step(np.asarray([0, 1])) for vector_env in (plain, split))
        np.testing.assert_array_equal(halves.observation, parts(whole.observation))
        np.testing.assert_array_equal(halves.final, parts(whole.final))
    assert whole.final.min() < 0


def test_lunar_lander_is_the_same_for_the_same_key():
    pytest.importorskip("Box2D", reason="needs Box2D: pip install 'cetsim[rl]'")
    environment = from_gymnasium("LunarLander-v3", max_episode_steps=60)
    assert (environment.size, environment.policy) == (8, Categorical(4))
    actions, runs = np.random.default_rng(0).integers(0, 4, (150, 2)), []
    for _ in range(2):
        vector_env = environment.open(2)
        runs.append([vector_env.reset(jax.random.key(3)), *(vector_env.step(each) for each in actions)])
        vector_env.close()
    same(*runs)
    assert sum(after.truncated.sum() for after in runs[0][1:]) >= 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: from_gymnasium("Continuous-v0"),
            ValueError,
            "Continuous-v0 must have discrete actions that count fro.* between finite bounds, got Box",
        ),
        (
            lambda: from_gymnasium("FromOne-v0"),
            ValueError,
            r"discrete actions that count from 0, .*, got Discrete\(2, star",
        ),
        (lambda: from_gymnasium("Numbered-v0"), ValueError, r"must have observations in a Box, got Discrete\(9\)"),
        (
            lambda: HostRun(IN_JAX, SETTINGS),
            ValueError,
            "`environment` must be of `from_gymnasium`, got Environment corridor",
        ),
        (
            lambda: ActorCriticRun(RUN.environment, SETTINGS),
            ValueError,
            "got HostEnvironment Corridor-v0: Gymnasium's are opened by `from_gymnasium` and trained by HostRun",
        ),
        (lambda: RUN.environment.open(0), ValueError, "`environments` must be at least 1, got 0"),
        (lambda: RUN.advance(RUN.init(late(), jax.random.key(0)), 0), ValueError, "`updates` must be at least 1, got"),
        (
            lambda: RUN.evaluate(RUN.init(late(), jax.random.key(0)), jax.random.key(0), 0),
            ValueError,
            "`episodes` must be at least 1, got 0",
        ),
        (
            lambda: RUN.evaluate(RUN.init(late(), jax.random.key(0)), jax.random.key(0), 1, 0),
            ValueError,
            "`max_steps` must be at least 1, got 0",
        ),
        (
            lambda: from_gymnasium("Lacking-v0"),
            ImportError,
            r"Lacking-v0 needs more .* pip install 'cetsim\[rl\]' \(Box",
        ),
    ],
)
def test_mistakes(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_state_whose_world_has_gone_on_is_refused():
    state = RUN.init(late(), jax.random.key(0))
    RUN.advance(state, 1)
    with pytest.raises(ValueError, match="`state` must be the latest of its run, step 11, got step 0"):
        RUN.advance(state, 1)


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"needs gymnasium: pip install 'cetsim\[rl\]'"):
        from_gymnasium("Corridor-v0")
