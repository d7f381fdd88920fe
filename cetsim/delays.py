"""When credit arrives: arrival times of learning signals, and nothing else.

A signal that belongs to the activity written at step t arrives at `arrivals(t)`. Steps are counted from the start of
a stretch and are negative for what was carried over from before it.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks


class FixedDelay(eqx.Module):
    """Every learning signal arrives the same time late.

    **Arguments:**

    - `delay`: in seconds, at least 0, a multiple of `dt`; an array leaf, shared by all signals of a layer.
    - `dt`: length of a step, in seconds.
    - `max_delay`: longest delay that streams make room for; needed only where the delay is traced.
    - `keep_late`: whether signals that arrive after a stretch's last step are still read (as if the stretch went on in
      silence) instead of dropped.

    **Raises:** ValueError for a delay that is negative, above `max_delay` or no multiple of `dt`.
    """

    delay: Float[Array, ""]
    dt: float = eqx.field(static=True)
    max_delay: float | None = eqx.field(static=True)
    keep_late: bool = eqx.field(static=True)

    def __init__(self, delay=4.0, dt=0.2, max_delay=None, keep_late=False):
        checks.require_dt(dt)
        checks.require_whole_steps("delay", delay, dt)
        if np.ndim(delay) != 0:
            raise ValueError(f"`delay` must be one number (map over delays with jax.vmap), got shape {np.shape(delay)}")
        if max_delay is not None:
            checks.require_whole_steps("max_delay", max_delay, dt)
            if not checks.is_traced(delay) and delay > max_delay:
                raise ValueError(f"`delay` must be at most max_delay = {max_delay:g} s, got {delay!r}")
        self.delay = jnp.asarray(delay, dtype=float)
        self.dt, self.keep_late = float(dt), bool(keep_late)
        self.max_delay = None if max_delay is None else float(max_delay)

    @property
    def steps(self) -> Float[Array, ""]:
        """The delay in whole steps."""
        return jnp.round(self.delay / self.dt)

    @property
    def max_steps(self) -> int:
        """Longest delay in steps, known before tracing."""
        longest = self.max_delay if self.max_delay is not None else self.delay
        if checks.is_traced(longest):
            raise ValueError("a stream with a traced delay needs `max_delay`, in seconds, to make room for signals")
        return int(np.round(float(longest) / self.dt))

    def arrivals(self, write_steps: Float[Array, " signals"]) -> Float[Array, " signals"]:
        """Steps at which the signals that belong to activity at `write_steps` arrive."""
        return write_steps + self.steps

    def arrived(self, steps: int) -> Float[Array, " steps"]:
        """1 for each step of a stretch of `steps` whose signal arrives within it, else 0."""
        if self.keep_late:
            return jnp.ones(steps)
        return jnp.where(self.arrivals(jnp.arange(steps, dtype=self.delay.dtype)) < steps, 1.0, 0.0)
