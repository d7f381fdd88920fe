"""Environments as pure functions, so that rollouts compile together with learning and can be vmapped."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cetsim import checks
from cetsim.extras import require
from cetsim.rl import policies
from cetsim.rl.policies import Categorical, Gaussian

STICKY = 0.1  # odds that MinAtar repeats the last action


class Step(NamedTuple):
    """What follows an action.

    **Fields:**

    - `observation`: of the state after it, the first of a new episode where one ended.
    - `reward`: of the step.
    - `terminated`: whether the episode ended by its own rules.
    - `truncated`: whether it was broken off at a limit of time.
    - `final`: the observation before any reset, which values are bootstrapped from.
    """

    observation: Float[Array, " size"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final: Float[Array, " size"]


class Environment(NamedTuple):
    """One environment, which begins a new episode by itself where one ends.

    **Fields:**

    - `name`.
    - `size`: of an observation, a vector.
    - `policy`: what its actions are drawn from.
    - `reset`: of a key, gives `(state, observation)`.
    - `step`: of a key, a state and an action, gives `(state, Step)`.
    - `image`: shape of the image, `(height, width, channels)`, that an observation holds row by row, or None.
    """

    name: str
    size: int
    policy: Categorical | Gaussian
    reset: Callable[[Array], tuple[Any, Array]]
    step: Callable[[Array, Any, Array], tuple[Any, Step]]
    image: tuple[int, int, int] | None = None


def scaled_rewards(environment: Environment, factor: float) -> Environment:
    """The environment with every reward multiplied by a factor above 0; returns are then in other units, too.

    A critic learns values far from 1 slowly, since Adam's steps do not grow with them.

    **Raises:** ValueError for a factor that is not a number above 0, known before tracing.
    """
    factor = checks.require_static("factor", factor)
    checks.require_above("factor", factor, 0.0)

    def step(key, state, action):
        state, after = environment.step(key, state, action)
        return state, after._replace(reward=factor * after.reward)

    return environment._replace(step=step)


def split_signs(environment: Environment) -> Environment:
    """The environment with every observation x split into its positive and negative parts, max(x, 0) and max(-x, 0)."""
    split = lambda x: jnp.concatenate([jnp.maximum(x, 0), jnp.maximum(-x, 0)])  # noqa: E731

    def reset(key):
        state, observation = environment.reset(key)
        return state, split(observation)

    def step(key, state, action):
        state, transition = environment.step(key, state, action)
        return state, transition._replace(observation=split(transition.observation), final=split(transition.final))

    return environment._replace(size=2 * environment.size, reset=reset, step=step, image=None)


def cartpole() -> Environment:
    """CartPole-v1: broken off after 500 steps.

    **Raises:** ImportError, with what to install.
    """
    return from_gymnax("CartPole-v1")


def space_invaders(sticky: float = STICKY, max_steps: int = 10**9) -> Environment:
    """MinAtar SpaceInvaders as in the paper: all six actions, sticky ones, and no limit of time.

    **Raises:** ImportError, with what to install.
    """
    gymnax = _gymnax()
    inner = gymnax.environments.minatar.space_invaders.MinSpaceInvaders(use_minimal_action_set=False)
    wrapped = gymnax.wrappers.purerl.StickyActionWrapper(inner, sticky)
    parameters = inner.default_params.replace(max_steps_in_episode=max_steps)
    return _wrap("SpaceInvaders-MinAtar", wrapped, parameters, inner.action_space(parameters))


def from_gymnax(name: str) -> Environment:
    """An environment of gymnax by its name.

    **Raises:** ImportError, with what to install; ValueError for actions that no policy has (see `cetsim.rl.policies`).
    """
    environment, parameters = _gymnax().make(name)
    return _wrap(name, environment, parameters, environment.action_space(parameters))


def _wrap(name: str, environment, parameters, actions) -> Environment:
    policy = policies.of_space(name, actions)

    def reset(key):
        observation, state = environment.reset(key, parameters)
        return state, jnp.ravel(observation).astype(float)

    def step(key, state, action):
        observation, state, reward, terminated, truncated, info = environment.step(key, state, action, parameters)
        flat = lambda array: jnp.ravel(array).astype(float)  # noqa: E731
        final = flat(info["final_observation"])
        return state, Step(flat(observation), jnp.asarray(reward, float), terminated, truncated, final)

    observation, _ = jax.eval_shape(environment.reset, jax.random.key(0), parameters)
    image = observation.shape if observation.ndim == 3 else None
    return Environment(name, observation.size, policy, reset, step, image)


def _gymnax() -> ModuleType:
    require("gymnax.wrappers.purerl", extra="rl")
    return require("gymnax", extra="rl")
