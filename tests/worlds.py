"""A small world that needs no simulator."""

import jax
import jax.numpy as jnp

from cetsim.rl.environments import Environment, Step
from cetsim.rl.policies import Categorical

LENGTH = 7


def corridor() -> Environment:
    """Episodes of at most 7 steps; action 1 earns the place one is at, action 0 a noise, and place 3 is an end."""

    def observe(state):
        place, time = state
        return jnp.stack([jnp.sin(1.0 * place), jnp.cos(1.0 * place), time / LENGTH])

    def reset(key):
        state = (jnp.zeros((), int), jnp.zeros((), int))
        return state, observe(state)

    def step(key, state, action):
        place, time = state
        moved = jnp.where(jax.random.bernoulli(key, 0.3), place - 1, place + 1), time + 1
        terminated, truncated = moved[0] == 3, moved[1] >= LENGTH
        reward = jnp.where(action == 1, 1.0 * moved[0], 0.3)
        ended = terminated | truncated
        after = jax.tree.map(lambda first, on: jnp.where(ended, first, on), reset(key)[0], moved)
        return after, Step(observe(after), reward, terminated, truncated & ~terminated, observe(moved))

    return Environment("corridor", 3, Categorical(2), reset, step)
