"""What actors do on the host: actions drawn from the policy, of observations, step by step."""

import equinox as eqx
import numpy as np

from cetsim.rl.agent import Networks


class Layers:
    """An actor of ReLU, in NumPy: to call a compiled program costs about as much as a step of the simulators.

    **Arguments:** `params`: of the networks. `pick`: actions of outputs and noise. `noise`: gives that of each step.

    **Attributes:** `memory`: None, as it holds nothing.
    """

    memory = None

    def __init__(self, params: Networks, pick, noise):
        linear = [layer for layer in params.actor.layers if isinstance(layer, eqx.nn.Linear)]
        *self._hidden, self._last = (np.asarray(layer.weight).T for layer in linear)
        self._pick, self._noise = pick, noise

    def __call__(self, observations):
        """Actions of these observations, led by environments."""
        for weight in self._hidden:
            observations = np.maximum(observations.dot(weight), 0)
        return self._pick(observations.dot(self._last), next(self._noise))

    def forget(self, ended):
        """Nothing, as nothing is held."""


class Neurons:
    """An actor of spiking neurons, a compiled program.

    **Arguments:**

    - `respond`: of a memory and observations, gives the memory after a step and outputs.
    - `forget`: of a memory and ends of episodes, gives the memory at rest where one has ended.
    - `pick`, `noise`: as of `Layers`.
    - `memory`: what the neurons hold.

    **Attributes:** `memory`: what they hold now.
    """

    def __init__(self, respond, forget, pick, noise, memory):
        self._respond, self._forget, self._pick, self._noise = respond, forget, pick, noise
        self.memory = memory

    def __call__(self, observations):
        """Actions of these observations, led by environments."""
        self.memory, outputs = self._respond(self.memory, observations)
        return self._pick(np.asarray(outputs), next(self._noise))

    def forget(self, ended):
        """Takes the neurons to rest where an episode has ended."""
        if ended.any():
            self.memory = self._forget(self.memory, ended)
