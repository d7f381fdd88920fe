"""Traces of one and of two exponentials."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks, kernels, state_space, steps
from cetsim.traces.base import AbstractTrace
from cetsim.traces.filters import check_options
from cetsim.traces.readout import spread


class ExponentialTrace(AbstractTrace):
    """Classic eligibility trace (ET): one leaky stage, weights e^(-j dt/τ) from its first lag.

    **Arguments:** `time_constant`: τ, in seconds, above 0. `dt`, `read`, `normalization`: as in `CascadingTrace`.

    **Raises:** ValueError for an argument outside its range.
    """

    time_constant: Float[Array, "..."]
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    normalization: str = eqx.field(static=True)

    def __init__(self, time_constant=4.0, dt=0.2, read="before", normalization="area"):
        check_options(read, normalization, dt)
        checks.require_above("time_constant", time_constant, 0.0, " s")
        self.time_constant = steps.constant(time_constant)
        self.dt, self.read, self.normalization = float(dt), read, normalization

    @classmethod
    def from_decay(cls, decay, dt=0.2, read="before", normalization="area"):
        """The trace that keeps the share `decay` of itself in a step, above 0 and below 1."""
        check_options(read, normalization, dt)
        checks.require_within("decay", decay, "(0, 1)")
        return cls(-dt / jnp.log(jnp.asarray(decay, dtype=float)), dt, read, normalization)

    def _rate_per_step(self):
        return self.dt / self.time_constant

    def _gain(self):
        return 1.0 if self.normalization == "area" else 1 / -jnp.expm1(-self._rate_per_step())

    def _weights(self, lags):
        return self._gain() * kernels.exponential_weights(lags, self._rate_per_step(), self.read)

    def _system(self):
        return state_space.cascade_system(1, self._rate_per_step(), self._gain())

    def _stages(self):
        return 1

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the area lies. Needs concrete parameters."""
        (time_constant,) = self._concrete(tail)
        return int(np.max(np.ceil(-math.log(tail) * time_constant / self.dt))) + 1

    def mean(self) -> Float[Array, "..."]:
        """Mean τ of the continuous impulse response, in seconds."""
        return self.time_constant

    def variance(self) -> Float[Array, "..."]:
        """Variance τ² of the continuous impulse response, in seconds squared."""
        return self.time_constant**2

    def laplace(self, s):
        """Laplace transform 1/(1 + sτ) of the area-normalised impulse response, s per second."""
        return kernels.cascade_laplace(s, 1, 1 / self.time_constant)


class DoubleExponentialTrace(AbstractTrace):
    """Difference of two exponentials, e^(-t/τ1) - ρ e^(-t/τ2), as in models of separate LTP and LTD traces.

    With ρ = 1 it rises from 0 with τ2 and decays with τ1; other ratios give it two phases or a jump at 0.

    **Arguments:**

    - `decay`: τ1, and `rise`: τ2, in seconds, above 0 and different.
    - `ratio`: ρ ≥ 0.
    - `dt`, `read`, `normalization`: as in `CascadingTrace`; `"peak"` makes the largest absolute weight 1.

    **Raises:** ValueError for an argument outside its range, or for area normalisation of a kernel whose area,
    τ1 - ρ τ2, is below 1e-3 of the area of its absolute value.
    """

    decay: Float[Array, "..."]
    rise: Float[Array, "..."]
    ratio: Float[Array, "..."]
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    normalization: str = eqx.field(static=True)

    def __init__(self, decay=4.0, rise=2.0, ratio=1.0, dt=0.2, read="before", normalization="area"):
        check_options(read, normalization, dt)
        decay = checks.require_above("decay", decay, 0.0, " s")
        rise = checks.require_above("rise", rise, 0.0, " s")
        ratio = checks.require_at_least("ratio", ratio, 0.0)
        if not any(map(checks.is_traced, (decay, rise, ratio))):
            _check_double_exponential(*np.broadcast_arrays(decay, rise, ratio), normalization)
        shape = jnp.broadcast_shapes(*map(jnp.shape, (decay, rise, ratio)))
        self.decay, self.rise, self.ratio = (spread(value, shape) for value in (decay, rise, ratio))
        self.dt, self.read, self.normalization = float(dt), read, normalization

    def _amplitudes(self):
        """Areas of the two parts after normalisation."""
        slow, fast = self.decay, self.ratio * self.rise
        if self.normalization == "area":
            return slow / (slow - fast), fast / (slow - fast)
        # The largest |weight| is at the first lag or beside the one stationary point, where the two slopes are equal.
        p, q = self.dt / self.decay, self.dt / self.rise
        first = jnp.log(fast * -jnp.expm1(-q) * q / (slow * -jnp.expm1(-p) * p)) / (q - p)
        first = jnp.floor(jnp.clip(jnp.where(jnp.isfinite(first), first, 0.0), 0.0, 1e9))
        candidates = jnp.stack([jnp.zeros_like(first), first, first + 1]) + kernels.first_lag(self.read)
        peak = kernels.largest(jnp.abs(self._sum(candidates, slow, fast)))
        return slow / peak, fast / peak

    def _sum(self, lags, slow, fast):
        slow_part = slow * kernels.exponential_weights(lags, self.dt / self.decay, self.read)
        return slow_part - fast * kernels.exponential_weights(lags, self.dt / self.rise, self.read)

    def _weights(self, lags):
        return self._sum(lags, *self._amplitudes())

    def _system(self):
        rates = self.dt / jnp.stack([self.decay, self.rise])
        slow, fast = self._amplitudes()
        return state_space.parallel_system(rates, jnp.stack([slow, -fast]))

    def _stages(self):
        return 2

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the absolute area lies. Needs concrete parameters."""
        decay, rise, ratio = self._concrete(tail)
        _, absolute = _areas(decay, rise, ratio)
        with np.errstate(divide="ignore"):  # at a ratio of 0 the second part is nowhere
            ends = [
                time_constant * np.log(2 * part / (tail * absolute))  # half of the tail for each part
                for time_constant, part in ((decay, decay), (rise, ratio * rise))
            ]
        return int(np.max(np.ceil(np.maximum(*ends) / self.dt))) + 1

    def mean(self) -> Float[Array, "..."]:
        """Mean (τ1² - ρ τ2²)/(τ1 - ρ τ2) of the continuous impulse response, in seconds; infinite at zero area."""
        return (self.decay**2 - self.ratio * self.rise**2) / (self.decay - self.ratio * self.rise)

    def variance(self) -> Float[Array, "..."]:
        """Variance of the continuous impulse response, in seconds squared; negative where two phases make it so."""
        second = 2 * (self.decay**3 - self.ratio * self.rise**3) / (self.decay - self.ratio * self.rise)
        return second - self.mean() ** 2


def _areas(decay, rise, ratio):
    """Area of the kernel and of its absolute value, in seconds, on the host."""
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.log(ratio) / (1 / rise - 1 / decay)  # where the kernel changes sign, if it does
    t = np.where(np.isfinite(crossing) & (crossing > 0), crossing, 0.0)
    before = decay * -np.expm1(-t / decay) - ratio * rise * -np.expm1(-t / rise)
    area = decay - ratio * rise
    return area, np.abs(before) + np.abs(area - before)


def _check_double_exponential(decay, rise, ratio, normalization: str) -> None:
    if np.any(decay == rise):
        raise ValueError(f"`decay` and `rise` must differ, got {decay} and {rise}")
    if normalization == "peak":
        return
    area, absolute = _areas(decay, rise, ratio)
    refused = np.abs(area) < 1e-3 * absolute
    if np.any(refused):
        raise ValueError(
            "area normalisation needs |decay - ratio * rise| of at least 1e-3 of the kernel's absolute area, "
            f"got an area of {area[refused][0]:g} s of {absolute[refused][0]:g} s: use normalization='peak'"
        )
