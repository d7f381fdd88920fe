"""Actor-critic training in a JAX environment: `init`, `advance` and `evaluate`, pure in (hyperparameters, key).

Rollouts and updates compile together; seeds and hyperparameters are vmapped.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cetsim.rl.agent import AgentState, Hyperparameters, Learner, Networks, Rollout, Settings
from cetsim.rl.environments import Environment


class TrainState(eqx.Module):
    """All that a run is at one moment.

    **Fields:** `agent`: see `cetsim.rl.agent`. `world`: states of the environments, with what was last observed there.
    `episode`: return of each so far. `key`.
    """

    agent: AgentState
    world: tuple
    episode: Float[Array, " environments"]
    key: Array


class Progress(eqx.Module):
    """What an update tells. **Fields:** `finished`: episodes; `returns`: their sum. `entropy`, `value_loss`: means."""

    finished: Int[Array, ""]
    returns: Float[Array, ""]
    entropy: Float[Array, ""]
    value_loss: Float[Array, ""]


class ActorCriticRun(eqx.Module):
    """Training of an actor and a critic in one environment, many times side by side.

    **Arguments:** `environment`: see `cetsim.rl.environments`. `settings`: what is compiled in.
    """

    environment: Environment = eqx.field(static=True)
    settings: Settings = eqx.field(static=True)

    @property
    def learner(self) -> Learner:
        """What learns from the rollouts."""
        return Learner(self.environment.size, self.environment.actions, self.settings)

    def init(self, hyper: Hyperparameters, key: Array) -> TrainState:
        """The run before its first update; `key` sets weights, actions and what happens in the environments."""
        key, agent_key, world_key = jax.random.split(key, 3)
        world = jax.vmap(self.environment.reset)(jax.random.split(world_key, self.settings.environments))
        return TrainState(self.learner.init(hyper, agent_key), world, jnp.zeros(self.settings.environments), key)

    def advance(self, state: TrainState, updates: int) -> tuple[TrainState, Progress]:
        """Makes `updates` (static) updates; returns the state after them and what each told, `[updates]`."""
        return jax.lax.scan(lambda state, _: self._update(state), state, length=updates)

    def evaluate(
        self, state: TrainState, key: Array, episodes: int = 100, max_steps: int = 10_000
    ) -> Float[Array, " episodes"]:
        """Return of as many episodes, side by side, with actions drawn from the policy; at most `max_steps` of each."""
        key, reset_key = jax.random.split(key)
        world = jax.vmap(self.environment.reset)(jax.random.split(reset_key, episodes))

        def go_on(carry):
            _, _, running, _, step = carry
            return jnp.any(running) & (step < max_steps)

        def step(carry):
            key, world, running, returns, count = carry
            key, own = jax.random.split(key)
            world, _, after = self._act(state.agent.params, world, own)
            returns = returns + jnp.where(running, after.reward, 0.0)
            return key, world, running & ~(after.terminated | after.truncated), returns, count + 1

        start = (key, world, jnp.ones(episodes, bool), jnp.zeros(episodes), jnp.zeros((), int))
        return jax.lax.while_loop(go_on, step, start)[3]

    def roll_out(self, params: Networks, world, key: Array) -> tuple[tuple, Rollout]:
        """A rollout with weights held: the world after it, and what happened."""

        def step(world, key):
            observation = world[1]
            world, action, after = self._act(params, world, key)
            return world, Rollout(observation, action, after.reward, after.terminated, after.truncated, after.final)

        return jax.lax.scan(step, world, jax.random.split(key, self.settings.rollout))

    def _act(self, params: Networks, world, key: Array):
        """One step of every environment: the world after it, the actions and what followed."""
        states, observations = world
        action_key, world_key = jax.random.split(key)
        actions = self.learner.act(params, observations, action_key)
        keys = jax.random.split(world_key, observations.shape[0])
        states, after = jax.vmap(self.environment.step)(keys, states, actions)
        return (states, after.observation), actions, after

    def _update(self, state: TrainState) -> tuple[TrainState, Progress]:
        key, own = jax.random.split(state.key)
        world, rollout = self.roll_out(state.agent.params, state.world, own)
        agent, measured = self.learner.learn(state.agent, rollout)
        episode, finished, returns = count_returns(state.episode, rollout)
        progress = Progress(finished, returns, measured.entropy, measured.value_loss)
        return TrainState(agent, world, episode, key), progress


def count_returns(episode: Float[Array, " environments"], rollout: Rollout):
    """Returns so far of the episodes under way, and the number and the sum of the returns of those that ended."""

    def step(episode, now):
        reward, alive = now
        episode = episode + reward
        ended = 1.0 - alive
        return episode * alive, (jnp.sum(ended), jnp.sum(episode * ended))

    episode, (finished, returns) = jax.lax.scan(step, episode, (rollout.reward, rollout.alive))
    return episode, jnp.sum(finished).astype(int), jnp.sum(returns)
