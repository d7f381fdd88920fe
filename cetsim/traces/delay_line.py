"""The ideal delay line."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks, state_space, steps
from cetsim.traces.base import AbstractTrace


class DelayLine(AbstractTrace):
    """Ideal memory of what happened exactly `delay` ago: weight 1 at that lag, 0 elsewhere.

    It holds the step's own input (lag 0), so that a delay of 0 is no trace at all; there is no `read` to choose.

    **Arguments:** `delay`: in seconds, at least 0, a multiple of `dt`. `max_delay`: longest delay that `init` makes
    room for; needed only to step a line whose delay is traced.

    **Raises:** ValueError for a delay that is negative or no multiple of `dt`.
    """

    delay: Float[Array, "..."]
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    max_delay: float | None = eqx.field(static=True)
    _rounds: ClassVar[bool] = False

    def __init__(self, delay=4.0, dt=0.2, max_delay=None):
        checks.require_dt(dt)
        checks.require_whole_steps("delay", delay, dt)
        if max_delay is not None:
            max_delay = checks.require_static("max_delay", max_delay)
            checks.require_whole_steps("max_delay", max_delay, dt)
            if not checks.is_traced(delay) and np.max(np.asarray(delay)) > max_delay:
                raise ValueError(f"`delay` must be at most max_delay = {max_delay:g} s, got {checks.shown(delay)}")
        self.delay = steps.exact("delay", delay, dt)
        self.dt, self.read = float(dt), "after"
        self.max_delay = max_delay

    def _settled(self):
        known = self.max_delay is None and not checks.is_traced(self.delay)
        return DelayLine(self.delay, self.dt, float(np.max(np.asarray(self.delay)))) if known else self

    def _weights(self, lags):
        late = jnp.round(self.delay / self.dt)
        met = jnp.round(lags).astype(jnp.int32) == late.astype(jnp.int32)
        return met.astype(self.delay.dtype)

    def _system(self):
        return state_space.shift_system(self._weights(jnp.arange(self._stages())))

    def _step(self, state, e):
        state = jnp.concatenate([e[None].astype(state.dtype), state[:-1]])
        return state, state[jnp.round(self.delay / self.dt).astype(int)]

    def _stages(self):
        longest = self.max_delay if self.max_delay is not None else self.delay
        if checks.is_traced(longest):
            raise ValueError("to step a delay line with a traced delay, `max_delay` is needed, in seconds")
        return int(np.round(np.max(np.asarray(longest)) / self.dt)) + 1

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, up to the delay itself."""
        return self._stages()

    def peak(self) -> np.ndarray:
        """The delay in seconds, on the host."""
        return np.asarray(self.delay)

    def mean(self) -> Float[Array, "..."]:
        """The delay, in seconds."""
        return self.delay

    def variance(self) -> Float[Array, "..."]:
        """Zero: nothing is blurred."""
        return jnp.zeros_like(self.delay)

    def laplace(self, s):
        """Laplace transform e^(-sT), s per second."""
        return jnp.exp(-s * self.delay)
