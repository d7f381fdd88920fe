"""Actor-critic training in a JAX environment: `init`, `advance` and `evaluate`, pure in (hyperparameters, key).

Rollouts and updates compile together; seeds and hyperparameters are vmapped.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cetsim.rl import actors
from cetsim.rl.agent import AgentState, Learner, Networks, Rollout
from cetsim.rl.environments import Environment
from cetsim.rl.settings import Hyperparameters, Settings
from cetsim.rl.vector_env import HostEnvironment


class TrainState(eqx.Module):
    """All that a run is at one moment.

    **Fields:**

    - `agent`: see `cetsim.rl.agent`.
    - `vector_env`: states of the environments, what was last observed there, and what the actor's neurons hold there,
      None if they hold nothing.
    - `episode`: return of each so far.
    - `key`: of what is drawn next.
    """

    agent: AgentState
    vector_env: tuple
    episode: Float[Array, " environments"]
    key: Array


class Progress(eqx.Module):
    """Metrics of an update. **Fields:** `finished`: episodes; `returns`: their sum. `entropy`, `value_loss`: means."""

    finished: Int[Array, ""]
    returns: Float[Array, ""]
    entropy: Float[Array, ""]
    value_loss: Float[Array, ""]


class ActorCriticRun(eqx.Module):
    """Training of an actor and a critic in one environment, many times side by side.

    **Arguments:** `environment`: see `cetsim.rl.environments`. `settings`: what is compiled in.

    **Raises:** ValueError for another kind of environment.
    """

    environment: Environment | HostEnvironment = eqx.field(static=True)
    settings: Settings = eqx.field(static=True)

    def __check_init__(self):
        environment = self.environment
        if not isinstance(environment, Environment):
            name = f"{type(environment).__name__} {getattr(environment, 'name', environment)}"
            raise ValueError(
                f"`environment` must be one of `cetsim.rl.environments`, got {name}: Gymnasium's are opened by "
                "`from_gymnasium` and trained by HostRun"
            )

    @property
    def learner(self) -> Learner:
        """What learns from the rollouts."""
        return Learner(self.environment.size, self.environment.policy, self.settings, self.environment.image)

    def init(self, hyper: Hyperparameters, key: Array) -> TrainState:
        """The run before its first update; `key` sets weights, actions and what happens in the environments."""
        key, agent_key, env_key = jax.random.split(key, 3)
        agent = self.learner.init(hyper, agent_key)
        vector_env = self._reset(agent.params, env_key, self.settings.environments)
        return TrainState(agent, vector_env, jnp.zeros(self.settings.environments), key)

    def advance(self, state: TrainState, updates: int) -> tuple[TrainState, Progress]:
        """Makes `updates` (static) updates; returns the state after them and the metrics of each, `[updates]`."""
        known = state.agent.hyper  # not a part of the loop, in which nothing would be a constant

        def update(state, _):
            return self._update(eqx.tree_at(lambda state: state.agent.hyper, state, known))

        return jax.lax.scan(update, state, length=updates)

    def evaluate(
        self, state: TrainState, key: Array, episodes: int = 100, max_steps: int = 10_000
    ) -> Float[Array, " episodes"]:
        """Return of as many episodes, side by side, with actions drawn from the policy; at most `max_steps` of each."""
        key, reset_key = jax.random.split(key)
        vector_env = self._reset(state.agent.params, reset_key, episodes)

        def go_on(carry):
            _, _, running, _, step = carry
            return jnp.any(running) & (step < max_steps)

        def step(carry):
            key, vector_env, running, returns, count = carry
            key, act_key = jax.random.split(key)
            vector_env, _, transitions = self._act(state.agent.params, vector_env, act_key)
            returns = returns + jnp.where(running, transitions.reward, 0.0)
            return key, vector_env, running & ~(transitions.terminated | transitions.truncated), returns, count + 1

        start = (key, vector_env, jnp.ones(episodes, bool), jnp.zeros(episodes), jnp.zeros((), int))
        return jax.lax.while_loop(go_on, step, start)[3]

    def roll_out(self, params: Networks, vector_env, key: Array) -> tuple[tuple, Rollout]:
        """A rollout with weights held: the vector environment after it, and what happened."""

        def act(vector_env, key):
            observation = vector_env[1]
            vector_env, action, step = self._act(params, vector_env, key)
            return vector_env, Rollout(observation, action, step.reward, step.terminated, step.truncated, step.final)

        after, rollout = jax.lax.scan(act, vector_env, jax.random.split(key, self.settings.rollout))
        return after, dataclasses.replace(rollout, memory=vector_env[2])

    def _reset(self, params: Networks, key: Array, environments: int) -> tuple:
        """So many environments at the start of an episode."""
        states, observations = jax.vmap(self.environment.reset)(jax.random.split(key, environments))
        return states, observations, self.learner.rest(params, environments)

    def _act(self, params: Networks, vector_env, key: Array):
        """One step of every environment: the vector environment after it, the actions and what followed."""
        states, observations, memory = vector_env
        action_key, env_key = jax.random.split(key)
        memory, actions = self.learner.act(params, memory, observations, action_key)
        keys = jax.random.split(env_key, observations.shape[0])
        states, transitions = jax.vmap(self.environment.step)(keys, states, self.environment.policy.applied(actions))
        memory = actors.forget(memory, transitions.terminated | transitions.truncated)
        return (states, transitions.observation, memory), actions, transitions

    def _update(self, state: TrainState) -> tuple[TrainState, Progress]:
        key, rollout_key = jax.random.split(state.key)
        vector_env, rollout = self.roll_out(state.agent.params, state.vector_env, rollout_key)
        agent, metrics = self.learner.learn(state.agent, rollout)
        episode, finished, returns = count_returns(state.episode, rollout)
        progress = Progress(finished, returns, metrics.entropy, metrics.value_loss)
        return TrainState(agent, vector_env, episode, key), progress


def count_returns(episode: Float[Array, " environments"], rollout: Rollout):
    """Returns so far of the episodes under way, and the number and the sum of the returns of those that ended."""

    def step(episode, now):
        reward, alive = now
        episode = episode + reward
        ended = 1.0 - alive
        return episode * alive, (jnp.sum(ended), jnp.sum(episode * ended))

    episode, (finished, returns) = jax.lax.scan(step, episode, (rollout.reward, rollout.alive))
    return episode, jnp.sum(finished).astype(int), jnp.sum(returns)
