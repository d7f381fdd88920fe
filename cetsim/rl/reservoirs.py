"""Environments whose state is hidden in part, and fixed random networks that remember what was seen of it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.extras import require
from cetsim.rl.environments import Environment
from cetsim.spiking import LIF, LeakyIntegrator

RADIUS = 0.9  # of the largest eigenvalue of a reservoir's recurrent weights


def hidden(environment: Environment, seen: tuple[int, ...]) -> Environment:
    """The environment with the observations of these places alone, such as `(0, 2)` of CartPole, without velocities.

    **Raises:** ValueError for places that there are not.
    """
    places = _places(seen, environment.size)

    def reset(key):
        state, observation = environment.reset(key)
        return state, observation[places]

    def step(key, state, action):
        state, after = environment.step(key, state, action)
        return state, after._replace(observation=after.observation[places], final=after.final[places])

    return environment._replace(size=places.size, reset=reset, step=step, image=None)


class Reservoir(eqx.Module):
    """A fixed random recurrent network; what it holds after each step is what a policy sees.

        rate:     h ← α h + (1 - α) tanh(W x + U h)
        spiking:  LIF neurons of current W x + U z, z their spikes of the step before; h is z behind a leaky integrator

    **Arguments:**

    - `inputs`, `neurons`: numbers of them.
    - `kind`: `"rate"` or `"spiking"`.
    - `time_constant`: of a neuron, α = e^(-dt/τ), and of the integrator; in seconds, at least `dt`.
    - `dt`: length of a step, in seconds.
    - `gain`: standard deviation of W, one number or one for each input; U has a spectral radius of 0.9, or of 0.9 times
      the threshold between spikes.
    - `key`: of the weights.

    **Raises:** ValueError for an argument outside its range.
    """

    inside: Float[Array, "neurons inputs"]
    among: Float[Array, "neurons neurons"]
    neuron: LIF | LeakyIntegrator
    integrator: LeakyIntegrator
    kind: str = eqx.field(static=True)

    def __init__(self, inputs, neurons, kind="rate", *, time_constant=0.1, dt=0.02, gain=1.0, key: Array):
        inputs, neurons = checks.require_whole("inputs", inputs), checks.require_whole("neurons", neurons)
        checks.require_in("kind", kind, ("rate", "spiking"))
        gain = np.asarray(checks.require_above("gain", gain, 0.0), float)
        if gain.shape not in ((), (inputs,)):
            raise ValueError(f"`gain` must be one number or one for each of {inputs} inputs, got shape {gain.shape}")
        self.kind, self.integrator = kind, LeakyIntegrator(time_constant, dt)
        self.neuron = LIF(time_constant, 0.2, dt) if kind == "spiking" else self.integrator
        one, two = jax.random.split(key)
        self.inside = gain * jax.random.normal(one, (neurons, inputs))
        among = jax.random.normal(two, (neurons, neurons))
        # In NumPy: eigenvalues of what is not symmetric are computed on the host.
        self.among = among * (RADIUS / float(np.max(np.abs(np.linalg.eigvals(np.asarray(among))))))
        if kind == "spiking":
            self.among = self.among * self.neuron.threshold

    def init(self):
        """The reservoir at rest."""
        shape = self.inside.shape[:1]
        return self.neuron.init(shape, self.inside.dtype), jnp.zeros(shape, self.inside.dtype)

    def step(self, state, x: Float[Array, " inputs"]) -> tuple[Any, Float[Array, " neurons"]]:
        """One step: `(state, h)`."""
        neurons, h = state
        if self.kind == "rate":
            neurons, h = self.neuron.step(neurons, jnp.tanh(self.inside @ x + self.among @ h))
            return (neurons, h), h
        neurons, spikes = self.neuron.step(neurons, self.inside @ x + self.among @ neurons.spike)
        h = self.integrator.leaked(h, spikes)
        return (neurons, h), h


def remembered(environment: Environment, reservoir: Reservoir) -> Environment:
    """The environment seen through a reservoir, at rest before each episode: observations are what it holds.

    **Raises:** ValueError for a reservoir of another number of inputs.
    """
    if reservoir.inside.shape[1] != environment.size:
        raise ValueError(f"`reservoir` must take {environment.size} inputs, got {reservoir.inside.shape[1]}")

    def reset(key):
        state, observation = environment.reset(key)
        memory, h = reservoir.step(reservoir.init(), observation)
        return (state, memory), h

    def step(key, state, action):
        inner, memory = state
        inner, after = environment.step(key, inner, action)
        going_on, final = reservoir.step(memory, after.final)
        fresh, first = reservoir.step(reservoir.init(), after.observation)
        ended = after.terminated | after.truncated
        choose = lambda new, old: jnp.where(ended, new, old)  # noqa: E731
        memory = jax.tree.map(choose, fresh, going_on)
        return (inner, memory), after._replace(observation=choose(first, final), final=final)

    return environment._replace(size=len(reservoir.inside), reset=reset, step=step, image=None)


def wrapper(seen: tuple[int, ...], reservoir: Reservoir | None = None) -> Callable[[Any], Any]:
    """The same of an environment of Gymnasium: `from_gymnasium(name, wrap=wrapper((0, 2), reservoir))`.

    **Arguments:** `seen`: as of `hidden`. `reservoir`: as of `remembered`; None to observe those places alone.

    **Raises:** ValueError as `hidden` and `remembered`, when it is called; ImportError, with what to install.
    """
    gymnasium = require("gymnasium", extra="rl")

    class Remembered(gymnasium.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self._places = _places(seen, env.observation_space.shape[0])
            if reservoir is not None and reservoir.inside.shape[1] != len(seen):
                raise ValueError(f"`reservoir` must take {len(seen)} inputs, got {reservoir.inside.shape[1]}")
            size = len(seen) if reservoir is None else len(reservoir.inside)
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

        def reset(self, **how):
            self._step = (lambda x: x) if reservoir is None else _in_numpy(reservoir)
            return super().reset(**how)

        def observation(self, observation):
            return self._step(observation[self._places]).astype(np.float32)

    return Remembered


def _in_numpy(reservoir: Reservoir) -> Callable[[np.ndarray], np.ndarray]:
    """`step` of a reservoir, at rest at first: to call a compiled program would cost more than a simulator's step."""
    inside, among, alpha = (
        np.asarray(part) for part in (reservoir.inside, reservoir.among, reservoir.integrator.decay)
    )
    rate, threshold = reservoir.kind == "rate", 0.0 if reservoir.kind == "rate" else reservoir.neuron.threshold
    h, v, spikes = np.zeros((3, len(inside)))

    def step(x):
        nonlocal h, v, spikes
        if rate:
            h = alpha * h + (1 - alpha) * np.tanh(inside @ x + among @ h)
            return h
        v = alpha * v + (1 - alpha) * (inside @ x + among @ spikes) - threshold * spikes
        spikes = (v > threshold).astype(v.dtype)
        h = alpha * h + (1 - alpha) * spikes
        return h

    return step


def _places(seen: tuple[int, ...], size: int) -> np.ndarray:
    """Places of an observation of `size` numbers, checked."""
    places = np.asarray(seen)
    if places.ndim != 1 or places.size == 0 or not np.issubdtype(places.dtype, np.integer):
        raise ValueError(f"`seen` must be places of an observation, got {seen!r}")
    if np.any((places < 0) | (places >= size)):
        raise ValueError(f"`seen` must be places from 0 to {size - 1}, got {seen!r}")
    return places
