"""Sparse time: a few steps of a segment at which something salient happened, and silence between them."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from cetsim import checks
from cetsim import steps as counting


class Events(eqx.Module):
    """When the rows that a model is mapped over happened, in a segment of `steps` steps.

    A traced model that is given events is mapped over them instead of over every step: what it costs grows with their
    number, not with the time between them nor with the delay of credit.

    **Arguments:**

    - `times`: steps of the events, `[events]`, whole, ascending, from 0 to `steps` - 1; kept as integers.
    - `steps`: length of the segment, at most 2^31 - 1.
    - `happened`: which of the places for events are filled, `[events]`; all if None. Empty places leave no trace and
      send no signal, whatever their time says.

    **Raises:** ValueError for times out of order, repeated, between steps or outside the segment, where they are not
    traced.
    """

    times: Int[Array, " events"]
    happened: Bool[Array, " events"]
    steps: int = eqx.field(static=True)

    def __init__(self, times, steps: int, happened=None):
        steps = checks.require_whole("steps", steps)
        checks.require_finite("times", times)
        if jnp.ndim(times) != 1 or jnp.size(times) < 1:
            raise ValueError(f"`times` must be [events], at least one, got shape {jnp.shape(times)}")
        if happened is not None and jnp.shape(happened) != jnp.shape(times):
            raise ValueError(f"`happened` must have shape {jnp.shape(times)}, got {jnp.shape(happened)}")
        if steps > counting.LARGEST:
            raise ValueError(f"`steps` must be at most 2^31 - 1, got {steps}")
        times = times if checks.is_traced(times) else np.asarray(times)
        if jnp.issubdtype(times.dtype, jnp.floating):
            # Floats of few bits have run together before they came here, where this can no longer be seen.
            limit = 2 ** (jnp.finfo(times.dtype).nmant + 1)
            if steps > limit:
                raise ValueError(f"`times` must be integers where `steps` is above {limit}, got {times.dtype}")
            times = jnp.round(times) if checks.is_traced(times) else times.astype(float)
        if not checks.is_traced(times) and (happened is None or not checks.is_traced(happened)):
            _check_times(times, steps, True if happened is None else np.asarray(happened))
        self.times = jnp.asarray(times, dtype=jnp.int32)
        self.happened = jnp.ones(self.times.shape, bool) if happened is None else jnp.asarray(happened, dtype=bool)
        self.steps = steps

    def only(self, rows: Shaped[Array, "events ..."]) -> Shaped[Array, "events ..."]:
        """Rows, one an event, with those of empty places set to 0."""
        return jnp.where(self.happened.reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros_like(rows))

    def shares(self) -> Float[Array, " events"]:
        """Weights, one an event, that make a mean over the places of events one over those that happened."""
        return self.only(jnp.ones(self.times.shape)) * (self.times.shape[0] / jnp.maximum(1, self.happened.sum()))


def _check_times(times: np.ndarray, steps: int, happened) -> None:
    times = times[np.broadcast_to(happened, times.shape)]
    if not np.all(times == np.round(times)):
        raise ValueError(f"`times` must be whole steps, got {times[times != np.round(times)][0]}")
    if np.any(times < 0) or np.any(times >= steps):
        outside = times[(times < 0) | (times >= steps)][0]
        raise ValueError(f"`times` must be from 0 to steps - 1 = {steps - 1}, got {outside:.15g}")
    for before, after in itertools.pairwise(times):
        if after <= before:
            fault = "repeat no step" if after == before else "ascend"
            raise ValueError(f"`times` must {fault}, got {before:.15g} and then {after:.15g}")
