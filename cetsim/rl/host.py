"""The actor-critic in simulators on the host, such as Gymnasium's: the same agent, learning by the same program.

An agent's state stays pure. The vector environment of a run does not (see `cetsim.rl.vector_env`), so that
only its latest state goes on.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks
from cetsim.rl import actors
from cetsim.rl.a2c import Progress, count_returns
from cetsim.rl.agent import AgentState, Learner, Networks, Rollout
from cetsim.rl.environments import Environment
from cetsim.rl.host_policy import Layers, Neurons
from cetsim.rl.policies import Categorical, Gaussian
from cetsim.rl.settings import Hyperparameters, Settings
from cetsim.rl.vector_env import HostEnvironment, VectorEnv


class HostState(NamedTuple):
    """All that a run on the host is at one moment.

    **Fields:**

    - `agent`: see `cetsim.rl.agent`.
    - `vector_env`: goes on with the run, so that only the latest state of a run can be advanced.
    - `steps`: of the vector environment, at this moment.
    - `observation`: the last.
    - `episode`: return of each so far.
    - `key`: of what is drawn next.
    - `memory`: what the actor's neurons hold, None if nothing.
    """

    agent: AgentState
    vector_env: VectorEnv
    steps: int
    observation: Shaped[np.ndarray, "environments size"]
    episode: Float[Array, " environments"]
    key: Array
    memory: Any = None


class HostTree(NamedTuple):
    """What can be saved of a `HostState` as arrays and keys. **Fields:** see there."""

    agent: AgentState
    observation: Shaped[np.ndarray, "environments size"]
    episode: Float[Array, " environments"]
    key: Array
    memory: Any = None


class HostProgress(Progress):
    """Metrics of an update. **Fields:** those of `Progress`. `simulator_s`: seconds spent in the simulator."""

    simulator_s: Float[Array, ""]


class HostRun:
    """Training of an actor and a critic in one environment on the host, as `ActorCriticRun` does in JAX.

    **Arguments:** `environment`: of `from_gymnasium`. `settings`: what is compiled in.

    **Raises:** ValueError for another kind of environment.
    """

    def __init__(self, environment: HostEnvironment | Environment, settings: Settings):
        if not isinstance(environment, HostEnvironment):
            raise ValueError(
                f"`environment` must be of `from_gymnasium`, got {_named(environment)}: those in JAX are trained by "
                "ActorCriticRun"
            )
        self.environment, self.settings = environment, settings
        self.learner = Learner(environment.size, environment.policy, settings, environment.image)
        self._update, self._forget = jax.jit(self._learn), jax.jit(actors.forget)
        self._respond = jax.jit(lambda params, *seen: actors.step(self.learner.networks(params).actor, *seen))

    def init(self, hyper: Hyperparameters, key: Array) -> HostState:
        """The run before its first update; `key` sets weights, actions and what happens in the environments."""
        key, agent_key, env_key = jax.random.split(key, 3)
        agent = self.learner.init(hyper, agent_key)
        environments = self.settings.environments
        vector_env, memory = self.environment.open(environments), self.learner.rest(agent.params, environments)
        observation, episode = vector_env.reset(env_key), jnp.zeros(environments)
        return HostState(agent, vector_env, vector_env.steps, observation, episode, key, memory)

    def advance(self, state: HostState, updates: int) -> tuple[HostState, HostProgress]:
        """Makes `updates` updates; returns the state after them and the metrics of each, `[updates]`.

        **Raises:** ValueError for a state whose vector environment has gone on since.
        """
        checks.require_whole("updates", updates)
        metrics = []
        for _ in range(updates):
            before, (key, rollout_key) = state.vector_env.seconds, _split(state.key)
            state, happened = self._play(state, rollout_key)
            spent = state.vector_env.seconds - before
            agent, episode, progress = self._update(state.agent, state.episode, happened, spent)
            metrics.append(progress)
            state = state._replace(agent=agent, episode=episode, key=key)
        return state, jax.tree.map(lambda *rows: jnp.stack(rows), *metrics)

    def save(self, state: HostState) -> tuple[HostTree, dict]:
        """What `restore` makes the state again from: a tree of arrays and keys, and JSON values about its
        vector environment.

        **Raises:** ValueError for a state whose vector environment has gone on since.
        """
        _require_latest(state)
        tree = HostTree(state.agent, state.observation, state.episode, state.key, state.memory)
        return tree, state.vector_env.record()

    def restore(self, tree: HostTree, notes: dict) -> HostState:
        """The state that was saved, in a new vector environment that replays the episodes under way.

        **Raises:** ValueError if the notes are another run's or another moment's, or the simulators do not repeat
        themselves.
        """
        vector_env = self.environment.open(self.settings.environments)
        try:
            observation = vector_env.replay(notes)
            if not np.array_equal(observation, tree.observation, equal_nan=True):
                raise ValueError(
                    f"`notes` must be those that were saved with `tree`, got a vector environment at step "
                    f"{vector_env.steps} where {observation} is observed, not {tree.observation}"
                )
        except Exception:
            vector_env.close()
            raise
        return HostState(tree.agent, vector_env, vector_env.steps, observation, *tree[2:])

    def evaluate(
        self, state: HostState, key: Array, episodes: int = 100, max_steps: int = 10_000
    ) -> Float[Array, " episodes"]:
        """Return of as many episodes in a vector environment of their own, with actions drawn from the policy.

        They are played as many at a time as in training. Which episodes are played is settled before they begin, so
        that short ones count no more than long ones. Each is broken off after `max_steps`.
        """
        checks.require_whole("episodes", episodes)
        checks.require_whole("max_steps", max_steps)
        act_key, env_key = jax.random.split(key)
        width = self.settings.environments
        params, vector_env = state.agent.params, self.environment.open(width, max_steps)
        act = self.policy(params, act_key, self.learner.rest(params, width))
        left = episodes // width + (np.arange(width) < episodes % width)
        episode, returns = np.zeros(width), [[] for _ in range(width)]
        try:
            observation = vector_env.reset(env_key)
            while left.any():
                step = vector_env.step(self.learner.policy.applied(act(observation)))
                act.forget(step.terminated | step.truncated)
                observation, episode = step.observation, episode + step.reward
                for i in np.flatnonzero(step.terminated | step.truncated):
                    if left[i]:
                        returns[i].append(episode[i])
                    left[i], episode[i] = max(left[i] - 1, 0), 0.0
        finally:
            vector_env.close()
        return jnp.asarray(np.concatenate(returns), float)

    def roll_out(self, state: HostState, key: Array) -> tuple[HostState, Rollout]:
        """A rollout with weights held: the state with its vector environment after it, and what happened."""
        state, happened = self._play(state, key)
        return state, Rollout(*jax.tree.map(jnp.asarray, happened))

    def _play(self, state: HostState, key: Array) -> tuple[HostState, tuple]:
        """The same with the fields of the `Rollout` in NumPy, which a program takes up faster when it is called."""
        _require_latest(state)
        vector_env, observation = state.vector_env, state.observation
        act, rows = self.policy(state.agent.params, key, state.memory), []
        for _ in range(self.settings.rollout):
            actions = act(observation)
            transitions = vector_env.step(self.learner.policy.applied(actions))
            act.forget(transitions.terminated | transitions.truncated)
            ends = transitions.terminated, transitions.truncated, transitions.final
            rows.append((observation, actions, transitions.reward, *ends))
            observation = transitions.observation
        # `np.stack` would take each of these many small arrays apart.
        happened = (np.concatenate(column).reshape(len(rows), *column[0].shape) for column in zip(*rows, strict=True))
        after = dict(steps=vector_env.steps, observation=observation, memory=act.memory)
        return state._replace(**after), (*happened, state.memory)

    def policy(self, params: Networks, key: Array, memory=None) -> Layers | Neurons:
        """Actions drawn from the policy, of observations, step by step; `memory` is what the actor's neurons hold."""
        pick, noise = self.learner.policy.pick, self._noise(key)
        if memory is None:
            return Layers(params, pick, noise)
        return Neurons(functools.partial(self._respond, params), self._forget, pick, noise, memory)

    def _noise(self, key: Array):
        """Noise of the policy step by step, drawn a rollout at a time."""
        shape = (self.settings.rollout, self.settings.environments)
        while True:
            key, noise = _draw(key, self.learner.policy, shape)
            yield from np.asarray(noise)

    def _learn(self, agent: AgentState, episode, happened, simulator_s):
        rollout = Rollout(*happened)
        agent, metrics = self.learner.learn(agent, rollout)
        episode, finished, returns = count_returns(episode, rollout)
        return agent, episode, HostProgress(finished, returns, metrics.entropy, metrics.value_loss, simulator_s)


@jax.jit
def _split(key: Array) -> tuple[Array, Array]:
    """Two keys in one call; taken apart outside a program they would cost three."""
    first, second = jax.random.split(key)
    return first, second


@functools.partial(jax.jit, static_argnames=("policy", "shape"))
def _draw(key: Array, policy: Categorical | Gaussian, shape: tuple[int, ...]) -> tuple[Array, Float[Array, "..."]]:
    """The next key, and the policy's noise."""
    key, act_key = jax.random.split(key)
    return key, policy.noise(act_key, shape)


def _named(environment) -> str:
    return f"{type(environment).__name__} {getattr(environment, 'name', environment)}"


def _require_latest(state: HostState) -> None:
    if state.steps != state.vector_env.steps:
        latest = state.vector_env.steps
        raise ValueError(f"`state` must be the latest of its run, step {latest}, got step {state.steps}")
