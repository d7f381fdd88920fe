"""What an actor's outputs mean: the distribution that its actions are drawn from."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LOG_SD = -3.0, 0.5  # between which the logarithm of a Gaussian policy's standard deviation stays


class Categorical(NamedTuple):
    """One of `actions` discrete actions, counted from 0; outputs are logits."""

    actions: int

    @property
    def outputs(self) -> int:
        """Number of the actor's outputs."""
        return self.actions

    def draw(self, key: Array, outputs: Float[Array, "*many outputs"]) -> Int[Array, "*many"]:
        """Actions drawn from the policy."""
        return jax.random.categorical(key, outputs)

    def noise(self, key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """What `pick` needs to be a draw: Gumbel noise, `[*shape, actions]`."""
        return jax.random.gumbel(key, (*shape, self.actions))

    def pick(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions on the host, in NumPy: the largest of logits and Gumbel noise."""
        return (outputs + noise).argmax(axis=-1)

    def applied(self, actions):
        """What the environment is given for the actions."""
        return actions

    def log_probability(self, outputs: Float[Array, "*many outputs"], actions: Int[Array, "*many"]):
        """Logarithm of the probability of actions, `[*many]`."""
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), actions[..., None], axis=-1)[..., 0]

    def score(self, outputs: Float[Array, "*many outputs"], actions: Int[Array, "*many"]):
        """Derivative of the log-probability by the outputs, `[*many, outputs]`."""
        return jax.nn.one_hot(actions, self.actions, dtype=outputs.dtype) - jax.nn.softmax(outputs)

    def entropy(self, outputs: Float[Array, "*many outputs"]) -> Float[Array, "*many"]:
        """Entropy of the policy, in nats."""
        return -jnp.sum(jax.nn.softmax(outputs) * jax.nn.log_softmax(outputs), axis=-1)


class Gaussian(NamedTuple):
    """Real actions, one normal distribution each; outputs are all means, then what sets the standard deviations.

    Actions are counted in units in which the environment's bounds are -1 and 1. They are drawn without bounds, and
    clipped where the environment is given them. The logarithm of a standard deviation is a tanh of its output, between
    -3 and 0.5, so that it has a gradient everywhere. Both are learned from late credit like everything else.

    **Fields:** `low`, `high`: the environment's bounds, one a number of the action.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def outputs(self) -> int:
        """Number of the actor's outputs."""
        return 2 * len(self.low)

    def draw(self, key: Array, outputs: Float[Array, "*many outputs"]) -> Float[Array, "*many numbers"]:
        """Actions drawn from the policy."""
        return self._draw(outputs, self.noise(key, outputs.shape[:-1]).astype(outputs.dtype), jnp)

    def noise(self, key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """What `pick` needs to be a draw: normal noise, `[*shape, numbers]`."""
        return jax.random.normal(key, (*shape, len(self.low)))

    def pick(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions on the host, in NumPy."""
        return self._draw(outputs, noise, np)

    def applied(self, actions):
        """What the environment is given for the actions: clipped, and in its own units."""
        low, high = (np.asarray(bound, np.float32) for bound in (self.low, self.high))
        return ((low + high) / 2 + (high - low) / 2 * actions.clip(-1, 1)).astype(actions.dtype)

    def log_probability(self, outputs: Float[Array, "*many outputs"], actions: Float[Array, "*many numbers"]):
        """Logarithm of the density of actions, in their units, `[*many]`."""
        mean, log_sd = self._moments(outputs, jnp)
        log_density = -0.5 * ((actions - mean) * jnp.exp(-log_sd)) ** 2 - log_sd - 0.5 * math.log(2 * math.pi)
        return jnp.sum(log_density, axis=-1)

    def score(self, outputs: Float[Array, "*many outputs"], actions: Float[Array, "*many numbers"]):
        """Derivative of the log-density by the outputs, `[*many, outputs]`."""
        log = lambda outputs: jnp.sum(self.log_probability(outputs, actions))  # noqa: E731
        return jax.grad(log)(outputs)

    def entropy(self, outputs: Float[Array, "*many outputs"]) -> Float[Array, "*many"]:
        """Entropy of the policy before clipping, in nats."""
        _, log_sd = self._moments(outputs, jnp)
        return jnp.sum(log_sd + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def _moments(self, outputs, xp):
        mean, raw = outputs[..., : len(self.low)], outputs[..., len(self.low) :]
        low, high = LOG_SD
        return mean, low + (high - low) / 2 * (xp.tanh(raw) + 1)

    def _draw(self, outputs, noise, xp):
        mean, log_sd = self._moments(outputs, xp)
        return mean + xp.exp(log_sd) * noise


def of_space(name: str, space) -> Categorical | Gaussian:
    """The policy for an action space of Gymnasium or gymnax.

    **Raises:** ValueError for a space that is neither `Discrete`, counting from 0, nor a `Box` of finite bounds.
    """
    if type(space).__name__ == "Discrete" and getattr(space, "start", 0) == 0:
        return Categorical(int(space.n))
    if type(space).__name__ == "Box":
        shape = tuple(space.shape)
        low, high = (np.broadcast_to(np.asarray(bound, float), shape) for bound in (space.low, space.high))
        if len(shape) == 1 and np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low < high):
            return Gaussian(tuple(low.tolist()), tuple(high.tolist()))
    wanted = "discrete actions that count from 0, or a vector of real ones between finite bounds"
    raise ValueError(f"{name} must have {wanted}, got {space if hasattr(space, 'dtype') else type(space).__name__}")
