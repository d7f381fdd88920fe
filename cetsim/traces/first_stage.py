"""The cascade as the authors' reinforcement learning steps it."""

import jax.numpy as jnp

from cetsim import kernels, state_space
from cetsim.traces.base import AbstractTrace
from cetsim.traces.cascade import CascadingTrace


class FirstStageCascade(CascadingTrace):
    """A cascade whose held input enters the first stage alone, as in the authors' reinforcement learning.

    Within a step input reaches the later stages too; leaving that out samples the impulse response at the ends of steps
    instead of integrating it over them. It then comes half a step later: with a `delay` of D steps the largest weight
    is at D or D + 1. Only comparisons with the authors' results need it.

    **Arguments:** as in `CascadingTrace`, but the last stage is what is read.

    **Reference:** arXiv:2506.14598, the authors' code.
    """

    def __init__(self, order=10, delay=4.0, dt=0.2, read="before", normalization="area"):
        super().__init__(order, delay, dt, read, normalization)

    peak = AbstractTrace.peak

    def _gain(self):
        if self.normalization == "area":
            system = self._unit_system()
            return 1 / jnp.linalg.solve(-system.increment, system.input)[-1]
        continuous = (self.order - 1) / self._rate_per_step() + kernels.first_lag(self.read)
        return 1 / kernels.largest(self._unit_weights(jnp.floor(continuous) + jnp.arange(2.0, dtype=continuous.dtype)))

    def _unit_weights(self, lags):
        """c Φ^j Γ with Γ in the first stage: the chances of n - 1 events in j steps."""
        since, rate = lags - kernels.first_lag(self.read), self._rate_per_step()
        weights = -jnp.expm1(-rate) * kernels.poisson(self.order - 1, rate * jnp.maximum(since, 0.0))
        return jnp.where(since >= 0, weights, 0.0)

    def _weights(self, lags):
        return self._gain() * self._unit_weights(lags)

    def _unit_system(self):
        return state_space.cascade_system(self.order, self._rate_per_step(), first_only=True)

    def _system(self):
        return state_space.cascade_system(self.order, self._rate_per_step(), self._gain(), first_only=True)
