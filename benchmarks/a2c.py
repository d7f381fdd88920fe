"""A plain A2C as one would write it in one file with optax and gymnax, for control's speed to be measured beside."""

from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

ENVIRONMENTS, STEPS, HIDDEN = 4, 128, 256
GAMMA, LAMBDA, ENTROPY, VALUE, CLIP, EPS = 0.99, 0.95, 0.01, 0.5, 0.5, 1e-5


class Transition(NamedTuple):
    """One step of all environments."""

    observation: Array
    action: Array
    reward: Array
    done: Array
    value: Array


class State(NamedTuple):
    """All that a run is at one moment."""

    params: dict
    optimizer: optax.OptState
    environments: tuple
    observation: Array
    key: Array


def plain_a2c(learning_rate: float):
    """CartPole, hidden 256-256: `init(key)` and `advance(state, updates)`, which gives the state and mean rewards."""
    environment, settings = gymnax.make("CartPole-v1")
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(learning_rate, eps=EPS))
    reset = jax.vmap(lambda key: environment.reset(key, settings))
    step = jax.vmap(lambda key, state, action: environment.step(key, state, action, settings)[:5])

    def init(key: Array) -> State:
        key, actor_key, critic_key, env_key = jax.random.split(key, 4)
        params = {"actor": _mlp(actor_key, (8, HIDDEN, HIDDEN, 2)), "critic": _mlp(critic_key, (8, HIDDEN, HIDDEN, 1))}
        observation, environments = reset(jax.random.split(env_key, ENVIRONMENTS))
        return State(params, optimizer.init(params), environments, _split(observation), key)

    def act(carry, _):
        params, environments, observation, key = carry
        key, action_key, env_key = jax.random.split(key, 3)
        action = jax.random.categorical(action_key, _forward(params["actor"], observation))
        value = _forward(params["critic"], observation)[..., 0]
        keys = jax.random.split(env_key, ENVIRONMENTS)
        following, environments, reward, terminated, truncated = step(keys, environments, action)
        done = (terminated | truncated).astype(reward.dtype)
        seen = Transition(observation, action, reward, done, value)
        return (params, environments, _split(following), key), seen

    def update(state: State, _):
        carry = state.params, state.environments, state.observation, state.key
        (params, environments, observation, key), seen = jax.lax.scan(act, carry, length=STEPS)
        last = _forward(params["critic"], observation)[..., 0]
        advantage = _advantage(seen, last)
        grads = jax.grad(_loss)(params, seen, advantage, advantage + seen.value)
        changes, optimizer_state = optimizer.update(grads, state.optimizer, params)
        params = optax.apply_updates(params, changes)
        return State(params, optimizer_state, environments, observation, key), seen.reward.mean()

    return init, lambda state, updates: jax.lax.scan(update, state, length=updates)


def _mlp(key: Array, sizes: tuple[int, ...]) -> list[dict]:
    draw = jax.nn.initializers.orthogonal(2**0.5)
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [{"w": draw(key, (inputs, out)), "b": jnp.zeros(out)} for key, inputs, out in shapes]


def _forward(layers: list[dict], x: Array) -> Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def _split(x: Array) -> Array:
    return jnp.concatenate([jnp.maximum(x, 0), jnp.maximum(-x, 0)], axis=-1)


def _advantage(seen: Transition, last: Array) -> Array:
    def back(carry, now):
        advantage, following = carry
        alive = 1 - now.done
        td_error = now.reward + GAMMA * alive * following - now.value
        advantage = td_error + GAMMA * LAMBDA * alive * advantage
        return (advantage, now.value), advantage

    return jax.lax.scan(back, (jnp.zeros_like(last), last), seen, reverse=True)[1]


def _loss(params: dict, seen: Transition, advantage: Array, target: Array) -> Array:
    log_policy = jax.nn.log_softmax(_forward(params["actor"], seen.observation))
    chosen = jnp.take_along_axis(log_policy, seen.action[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1).mean()
    value = _forward(params["critic"], seen.observation)[..., 0]
    return -jnp.mean(advantage * chosen) + VALUE * 0.5 * jnp.mean((value - target) ** 2) - ENTROPY * entropy
