"""The actor-critic in simulators on the host, such as Gymnasium's: the same agent, learning by the same program.

An agent's state stays pure. A world on the host does not: it can only go on.
"""

import functools
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


class World:
    """Environments side by side on the host, which begin new episodes by themselves.

    **Arguments:** `vector`: a vector environment of Gymnasium that resets in the step in which an episode ends.
    `split`: whether observations come as positive and negative parts.

    **Attributes:** `seconds`: spent in the simulator so far. `steps`: made so far.
    """

    def __init__(self, vector, split: bool):
        self.seconds, self.steps = 0.0, 0
        self._vector, self._split = vector, split

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
        return np.concatenate([np.maximum(flat, 0), np.maximum(-flat, 0)], axis=1) if self._split else flat


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
        return World(gymnasium.vector.SyncVectorEnv([make] * environments, copy=False, autoreset_mode=mode), split)

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
        self._update = eqx.filter_jit(self._learn)

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
            before, (key, own) = state.world.seconds, jax.random.split(state.key)
            state, rollout = self.roll_out(state, own)
            agent, episode, progress = self._update(state.agent, state.episode, rollout)
            spent = jnp.asarray(state.world.seconds - before)
            told.append(HostProgress(*progress, simulator_s=spent))
            state = state._replace(agent=agent, episode=episode, key=key)
        return state, jax.tree.map(lambda *rows: jnp.stack(rows), *told)

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
        world, observation = state.world, state.observation
        if state.steps != world.steps:
            raise ValueError(f"`state` must be the latest of its run, step {world.steps}, got step {state.steps}")
        act, rows = self.policy(state.agent.params, key), []
        for _ in range(self.settings.rollout):
            actions = act(observation)
            after = world.step(actions)
            rows.append((observation, actions, after.reward, after.terminated, after.truncated, after.final))
            observation = after.observation
        seen, actions, reward, *ends, final = (np.stack(column) for column in zip(*rows, strict=True))
        columns = jnp.asarray(seen), jnp.asarray(actions), jnp.asarray(reward, float), *map(jnp.asarray, ends)
        rollout = Rollout(*columns, jnp.asarray(final))
        return state._replace(steps=world.steps, observation=observation), rollout

    def policy(self, params: Networks, key: Array):
        """Actions drawn from the policy, of observations, step by step.

        In NumPy: to call a compiled program costs about as much as a step of the simulators. Gumbel noise on the logits
        makes the largest of them a draw from the policy.
        """
        weights = [np.asarray(layer.weight).T for layer in params.actor.layers if isinstance(layer, eqx.nn.Linear)]
        noise = self._noise(key)

        def act(observations):
            for weight in weights[:-1]:
                observations = np.maximum(observations @ weight, 0)
            return np.argmax(observations @ weights[-1] + next(noise), axis=1)

        return act

    def _noise(self, key: Array):
        """Gumbel noise step by step, drawn a rollout at a time."""
        shape = (self.settings.rollout, self.settings.environments, self.environment.actions)
        while True:
            key, own = jax.random.split(key)
            yield from np.asarray(jax.random.gumbel(own, shape))

    def _learn(self, agent: AgentState, episode, rollout: Rollout):
        agent, measured = self.learner.learn(agent, rollout)
        episode, finished, returns = count_returns(episode, rollout)
        return agent, episode, (finished, returns, measured.entropy, measured.value_loss)


def _gymnasium():
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(f"this environment needs Gymnasium: {EXTRA} ({error})") from error
    return gymnasium
