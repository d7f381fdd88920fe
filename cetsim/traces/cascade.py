"""The cascading eligibility trace."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from cetsim import checks, kernels, state_space
from cetsim.traces.base import AbstractTrace, check_options


class CascadingTrace(AbstractTrace):
    """Cascading eligibility trace (CET): activity passed through n equal leaky stages; its peak is at `delay`.

        dh1/dt = -α h1 + e,    dhk/dt = -α hk + h(k-1),    trace = hn

    **Arguments:**

    - `order`: number of stages, 2 to 64 (one stage is `ExponentialTrace`).
    - `delay`: lag of the largest weight, in seconds; above dt/2 if read `"before"`, at least 0 if `"after"`.
    - `dt`: length of a step, in seconds.
    - `read`: whether the trace is read `"before"` or `"after"` the step's own activity enters.
    - `normalization`: `"area"` (weights sum to 1) or `"peak"` (the largest weight is 1).

    **Raises:** ValueError for an argument outside its range.

    **Reference:** arXiv:2506.14598.
    """

    delay: Float[Array, "..."]
    order: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    normalization: str = eqx.field(static=True)

    def __init__(self, order=10, delay=4.0, dt=0.2, read="before", normalization="area"):
        check_options(read, normalization, dt)
        order = _checked_order(order)
        if read == "before":
            checks.require_above("delay", delay, dt / 2, " s (dt/2, for a trace read before its input)")
        else:
            checks.require_at_least("delay", delay, 0.0)
        self.delay = jnp.asarray(delay, dtype=float)
        self.order, self.dt, self.read, self.normalization = order, float(dt), read, normalization

    @classmethod
    def from_rate(cls, rate, order=10, dt=0.2, read="before", normalization="area"):
        """The cascade whose stages decay at `rate` α (per second), with its peak where that puts it."""
        check_options(read, normalization, dt)
        order = _checked_order(order)
        checks.require_above("rate", rate, 0.0, " per second")
        shift = dt / 2 if read == "before" else -dt / 2
        return cls(order, (order - 1) / jnp.asarray(rate, dtype=float) + shift, dt, read, normalization)

    @property
    def rate(self) -> Float[Array, "..."]:
        """Rate α of every stage, per second: (n - 1)/(delay ∓ dt/2)."""
        return self._rate_per_step() / self.dt

    def _rate_per_step(self):
        return kernels.cascade_rate(self.delay / self.dt, self.order, self.read)

    def _gain(self):
        if self.normalization == "area":
            return 1.0
        below = jnp.floor(self.delay / self.dt)
        around = jnp.stack([below, below + 1])  # a delay between two lags has its largest weight at one of them
        return 1 / kernels.largest(kernels.cascade_weights(around, self.order, self._rate_per_step(), self.read))

    def _weights(self, lags):
        return self._gain() * kernels.cascade_weights(lags, self.order, self._rate_per_step(), self.read)

    def _system(self):
        return state_space.cascade_system(self.order, self._rate_per_step(), self._gain())

    def _stages(self):
        return self.order

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the area lies. Needs concrete parameters."""
        (delay,) = self._concrete(tail)
        rate = kernels.cascade_rate(delay / self.dt, self.order, self.read)
        return int(np.max(np.ceil(scipy.special.gammainccinv(self.order, tail) / rate))) + 1

    def mean(self) -> Float[Array, "..."]:
        """Mean n/α of the continuous impulse response, in seconds."""
        return self.order / self.rate

    def variance(self) -> Float[Array, "..."]:
        """Variance n/α² of the continuous impulse response, in seconds squared."""
        return self.order / self.rate**2

    def laplace(self, s):
        """Laplace transform (α/(s + α))^n of the area-normalised impulse response, s per second."""
        return kernels.cascade_laplace(s, self.order, self.rate)


def _checked_order(order) -> int:
    """The number of stages; raises ValueError unless it is a whole number from 2 to 64."""
    order = checks.require_whole("order", order, least=None)
    if order == 1:
        raise ValueError("`order` must be 2 to 64, got 1: a cascade of one stage is ExponentialTrace(time_constant)")
    if not 2 <= order <= 64:
        raise ValueError(f"`order` must be 2 to 64, got {order}")
    return order
