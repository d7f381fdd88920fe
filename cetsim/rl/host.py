"""The actor-critic in simulators on the host, such as Gymnasium's: the same agent, learning by the same program.

An agent's state stays pure. A world on the host does not: it can only go on, and a new one comes to the same moment
by replaying the episodes under way.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks
from cetsim.rl.a2c import Progress, count_returns
from cetsim.rl.agent import AgentState, Hyperparameters, Learner, Networks, Rollout, Settings
from cetsim.rl.environments import EXTRA


class HostStep(NamedTuple):
    """What follows the actions in all environments, led by environments; fields as in `environments.Step`."""

    observation: Shaped[np.ndarray, "environments size"]
    reward: Shaped[np.ndarray, " environments"]
    terminated: Shaped[np.ndarray, " environments"]
    truncated: Shaped[np.ndarray, " environments"]
    final: Shaped[np.ndarray, "environments size"]


class Remembered:
    """An environment of Gymnasium that remembers how it came to where it is in its episode, and no earlier episode.

    Stands in the place of `env`, where everything else is looked up.

    **Attributes:** `seen`: the last observation.
    """

    def __init__(self, env):
        self.env, self.seen = env, None
        self._seed = self._random = None
        self._actions, self._earned = [], 0.0

    def __getattr__(self, name: str):
        return getattr(self.env, name)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begins an episode, with `seed` or from the random state that the last one left."""
        if seed is None:
            self._random = self.env.unwrapped.np_random.bit_generator.state
        else:
            self._seed, self._random = seed, None
        self._actions, self._earned = [], 0.0
        self.seen, info = self.env.reset(seed=seed, options=options)
        return self.seen, info

    def step(self, action):
        """Goes on by one step."""
        self._actions.append(action)
        after = self.env.step(action)
        self.seen = after[0]
        self._earned += after[1]
        return after

    def record(self) -> dict:
        """What `replay` needs: the seed, the random state before an episode that began without one, and the actions.

        The digest, of the last observation and the sum of rewards, says whether a replay came to the same.
        """
        random = json.loads(json.dumps(self._random, default=np.ndarray.tolist))
        actions = [int(action) for action in self._actions]
        return {"seed": self._seed, "random": random, "actions": actions, "digest": self._digest()}

    def replay(self, record: dict) -> bool:
        """Comes to where the environment was that gave `record`; whether this one came to the same."""
        self.reset(seed=record["seed"])  # also for a later episode: environments may set themselves up only then
        if record["random"] is not None:
            self.env.unwrapped.np_random.bit_generator.state = record["random"]
            self.reset()
        for action in record["actions"]:
            _, _, terminated, truncated, _ = self.step(np.int64(action))
            if terminated or truncated:
                return False
        return self._digest() == record["digest"]

    def _digest(self) -> str:
        return hashlib.sha256(np.asarray(self.seen).tobytes() + np.float64(self._earned).tobytes()).hexdigest()


class World:
    """Environments side by side on the host, which begin new episodes by themselves.

    **Arguments:** `name`: of the environment. `vector`: a vector environment of Gymnasium, of `Remembered`, that resets
    in the step in which an episode ends. `split`: whether observations come as positive and negative parts.

    **Attributes:** `seconds`: spent in the simulator so far. `steps`: made so far.
    """

    def __init__(self, name: str, vector, split: bool):
        self.seconds, self.steps = 0.0, 0
        self._name, self._vector, self._split = name, vector, split

    def reset(self, key: Array) -> Shaped[np.ndarray, "environments size"]:
        """First observations; `key` sets all that is random in the world until the next reset."""
        seeds = jax.random.bits(key, (self._vector.num_envs,), "uint32")
        return self._seen(self._timed(lambda: self._vector.reset(seed=[int(seed) for seed in seeds])[0]))

    def step(self, actions: Shaped[np.ndarray, " environments"]) -> HostStep:
        """One step of every environment."""
        self.steps += 1
        observation, reward, terminated, truncated, info = self._timed(lambda: self._vector.step(actions))
        observation = final = self._seen(observation)
        if "final_obs" in info:
            final = observation.copy()
            for i in np.flatnonzero(info["_final_obs"]):
                final[i] = self._seen(info["final_obs"][i][None])[0]
        return HostStep(observation, reward, terminated, truncated, final)

    def record(self) -> dict:
        """Where the world is, in JSON values: what happened in the episodes under way, for `replay`."""
        episodes = [environment.record() for environment in self._vector.envs]
        return {"environment": self._name, "steps": self.steps, "episodes": episodes}

    def replay(self, record: dict) -> Shaped[np.ndarray, "environments size"]:
        """Brings a world just opened to where another was when it gave `record`; what was last observed there.

        **Raises:** ValueError if `record` is of other environments, or they do not repeat themselves.
        """
        environments, episodes = self._vector.envs, record["episodes"]
        if record["environment"] != self._name:
            raise ValueError(f"`record` must be of {self._name}, got one of {record['environment']}")
        if len(episodes) != len(environments):
            raise ValueError(f"`record` must be of {len(environments)} environments, got {len(episodes)}")
        for i, (environment, episode) in enumerate(zip(environments, episodes, strict=True)):
            if not self._timed(lambda each=environment, past=episode: each.replay(past)):
                raise ValueError(
                    f"{self._name} must repeat itself from the same random state and actions to be resumed, but "
                    f"environment {i} came to something else within {len(episode['actions'])} steps: start the run anew"
                )
        self.steps = record["steps"]
        dtype = self._vector.single_observation_space.dtype
        return self._seen(np.stack([environment.seen for environment in environments], dtype=dtype))

    def close(self):
        """Ends the simulators."""
        self._vector.close()

    def _timed(self, call):
        start = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - start
        return result

    def _seen(self, observations):
        flat = observations.reshape(len(observations), -1).astype(jax.dtypes.canonicalize_dtype(float))
        return np.maximum(np.concatenate([flat, -flat], axis=1), 0) if self._split else flat


class HostEnvironment(NamedTuple):
    """An environment on the host, with discrete actions.

    **Fields:** `name`. `size`: of an observation, a vector. `actions`: their number. `open`: of a number of
    environments, gives a `World` of them.
    """

    name: str
    size: int
    actions: int
    open: Callable[[int], World]


def from_gymnasium(name: str, split: bool = False, **options) -> HostEnvironment:
    """An environment of Gymnasium by its name; observations of any shape become vectors.

    **Arguments:** `split`: whether every observation x comes as its positive and negative parts, max(x, 0) and
    max(-x, 0). `options`: of `gymnasium.make`.

    **Raises:** ImportError, with what to install; ValueError for actions that are not discrete, or observations that
    are no arrays.
    """
    gymnasium = _gymnasium()
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    make = functools.partial(gymnasium.make, name, **options)

    def open_world(environments: int) -> World:
        checks.require_at_least("environments", environments, 1.0)
        makers = [lambda: Remembered(make())] * environments
        return World(name, gymnasium.vector.SyncVectorEnv(makers, copy=False, autoreset_mode=mode), split)

    try:
        one = make()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{name} needs more than Gymnasium: {EXTRA} ({error})") from error
    actions, observations = one.action_space, one.observation_space
    one.close()
    if not isinstance(actions, gymnasium.spaces.Discrete) or actions.start != 0:
        raise ValueError(f"{name} must have discrete actions that count from 0, got {actions}")
    if not isinstance(observations, gymnasium.spaces.Box):
        raise ValueError(f"{name} must have observations in a Box, got {observations}")
    return HostEnvironment(name, int(np.prod(observations.shape)) * (1 + split), int(actions.n), open_world)


class HostState(NamedTuple):
    """All that a run on the host is at one moment.

    **Fields:** `agent`: see `cetsim.rl.agent`. `world`: goes on with the run, so that only the latest state of a run
    can be advanced. `steps`: of the world, at this moment. `observation`: the last. `episode`: return of each so far.
    `key`.
    """

    agent: AgentState
    world: World
    steps: int
    observation: Shaped[np.ndarray, "environments size"]
    episode: Float[Array, " environments"]
    key: Array


class HostTree(NamedTuple):
    """What can be saved of a `HostState` as arrays and keys. **Fields:** see there."""

    agent: AgentState
    observation: Shaped[np.ndarray, "environments size"]
    episode: Float[Array, " environments"]
    key: Array


class HostProgress(Progress):
    """What an update tells. **Fields:** those of `Progress`. `simulator_s`: seconds spent in the simulator."""

    simulator_s: Float[Array, ""]


class HostRun:
    """Training of an actor and a critic in one environment on the host, as `ActorCriticRun` does in JAX.

    **Arguments:** `environment`: of `from_gymnasium`. `settings`: what is compiled in.
    """

    def __init__(self, environment: HostEnvironment, settings: Settings):
        self.environment, self.settings = environment, settings
        self.learner = Learner(environment.size, environment.actions, settings)
        self._update = jax.jit(self._learn)

    def init(self, hyper: Hyperparameters, key: Array) -> HostState:
        """The run before its first update; `key` sets weights, actions and what happens in the environments."""
        key, agent_key, world_key = jax.random.split(key, 3)
        agent = self.learner.init(hyper, agent_key)
        world = self.environment.open(self.settings.environments)
        observation = world.reset(world_key)
        return HostState(agent, world, world.steps, observation, jnp.zeros(self.settings.environments), key)

    def advance(self, state: HostState, updates: int) -> tuple[HostState, HostProgress]:
        """Makes `updates` updates; returns the state after them and what each told, `[updates]`.

        **Raises:** ValueError for a state whose world has gone on since.
        """
        checks.require_at_least("updates", updates, 1.0)
        told = []
        for _ in range(updates):
            before, (key, own) = state.world.seconds, _split(state.key)
            state, happened = self._play(state, own)
            spent = state.world.seconds - before
            agent, episode, progress = self._update(state.agent, state.episode, happened, spent)
            told.append(progress)
            state = state._replace(agent=agent, episode=episode, key=key)
        return state, jax.tree.map(lambda *rows: jnp.stack(rows), *told)

    def save(self, state: HostState) -> tuple[HostTree, dict]:
        """What `restore` makes the state again from: a tree of arrays and keys, and notes of its world, JSON values.

        **Raises:** ValueError for a state whose world has gone on since.
        """
        _require_latest(state)
        return HostTree(state.agent, state.observation, state.episode, state.key), state.world.record()

    def restore(self, tree: HostTree, notes: dict) -> HostState:
        """The state that was saved, in a new world that replays the episodes under way.

        **Raises:** ValueError if the notes are another run's or another moment's, or the simulators do not repeat
        themselves.
        """
        world = self.environment.open(self.settings.environments)
        try:
            observation = world.replay(notes)
            if not np.array_equal(observation, tree.observation, equal_nan=True):
                raise ValueError(
                    f"`notes` must be those that were saved with `tree`, got a world at step {world.steps} where "
                    f"{observation} is observed, not {tree.observation}"
                )
        except Exception:
            world.close()
            raise
        return HostState(tree.agent, world, world.steps, observation, tree.episode, tree.key)

    def evaluate(self, state: HostState, key: Array, episodes: int = 100) -> Float[Array, " episodes"]:
        """Return of as many episodes in a world of their own, with actions drawn from the policy.

        They are played as many at a time as in training. Which episodes are played is settled before they begin, so
        that short ones count no more than long ones.
        """
        checks.require_at_least("episodes", episodes, 1.0)
        act_key, world_key = jax.random.split(key)
        width = self.settings.environments
        world, act = self.environment.open(width), self.policy(state.agent.params, act_key)
        observation = world.reset(world_key)
        left = episodes // width + (np.arange(width) < episodes % width)
        episode, returns = np.zeros(width), [[] for _ in range(width)]
        while left.any():
            after = world.step(act(observation))
            observation, episode = after.observation, episode + after.reward
            for i in np.flatnonzero(after.terminated | after.truncated):
                if left[i]:
                    returns[i].append(episode[i])
                left[i], episode[i] = max(left[i] - 1, 0), 0.0
        world.close()
        return jnp.asarray(np.concatenate(returns), float)

    def roll_out(self, state: HostState, key: Array) -> tuple[HostState, Rollout]:
        """A rollout with weights held: the state with its world after it, and what happened."""
        state, happened = self._play(state, key)
        return state, Rollout(*map(jnp.asarray, happened))

    def _play(self, state: HostState, key: Array) -> tuple[HostState, tuple[np.ndarray, ...]]:
        """The same with the fields of the `Rollout` in NumPy, which a program takes up faster when it is called."""
        _require_latest(state)
        world, observation = state.world, state.observation
        act, rows = self.policy(state.agent.params, key), []
        for _ in range(self.settings.rollout):
            actions = act(observation)
            after = world.step(actions)
            rows.append((observation, actions, after.reward, after.terminated, after.truncated, after.final))
            observation = after.observation
        # `np.stack` would take each of these many small arrays apart.
        happened = (np.concatenate(column).reshape(len(rows), *column[0].shape) for column in zip(*rows, strict=True))
        return state._replace(steps=world.steps, observation=observation), tuple(happened)

    def policy(self, params: Networks, key: Array):
        """Actions drawn from the policy, of observations, step by step.

        In NumPy: to call a compiled program costs about as much as a step of the simulators. Gumbel noise on the logits
        makes the largest of them a draw from the policy.
        """
        linear = [layer for layer in params.actor.layers if isinstance(layer, eqx.nn.Linear)]
        *hidden, last = (np.asarray(layer.weight).T for layer in linear)
        noise = self._noise(key)

        def act(observations):
            for weight in hidden:
                observations = np.maximum(observations.dot(weight), 0)
            return (observations.dot(last) + next(noise)).argmax(axis=1)

        return act

    def _noise(self, key: Array):
        """Gumbel noise step by step, drawn a rollout at a time."""
        shape = (self.settings.rollout, self.settings.environments, self.environment.actions)
        while True:
            key, noise = _draw(key, shape)
            yield from np.asarray(noise)

    def _learn(self, agent: AgentState, episode, happened, simulator_s):
        rollout = Rollout(*happened)
        agent, measured = self.learner.learn(agent, rollout)
        episode, finished, returns = count_returns(episode, rollout)
        return agent, episode, HostProgress(finished, returns, measured.entropy, measured.value_loss, simulator_s)


@jax.jit
def _split(key: Array) -> tuple[Array, Array]:
    """Two keys in one call; taken apart outside a program they would cost three."""
    first, second = jax.random.split(key)
    return first, second


@functools.partial(jax.jit, static_argnames="shape")
def _draw(key: Array, shape: tuple[int, ...]) -> tuple[Array, Float[Array, "..."]]:
    """The next key, and Gumbel noise."""
    key, own = jax.random.split(key)
    return key, jax.random.gumbel(own, shape)


def _require_latest(state: HostState) -> None:
    if state.steps != state.world.steps:
        raise ValueError(f"`state` must be the latest of its run, step {state.world.steps}, got step {state.steps}")


def _gymnasium():
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(f"this environment needs Gymnasium: {EXTRA} ({error})") from error
    return gymnasium
