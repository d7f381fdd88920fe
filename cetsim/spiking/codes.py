"""From numbers to spikes and back: rate and latency codes, firing rates."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks


def rate_code(values: Shaped[Array | np.ndarray, "*shape"], steps: int, *, most: float = 1.0, key: Array) -> Array:
    """Random spikes, as many as the values are large.

    **Arguments:**

    - `values`: in [0, 1].
    - `steps`: of time.
    - `most`: probability, above 0 and at most 1, of a spike of the value 1 at each step.
    - `key`: of the draws.

    **Returns:** booleans `[steps, *shape]`.

    **Raises:** ValueError for an argument outside its range.
    """
    checks.require_within("values", values, "[0, 1]")
    checks.require_within("most", most, "(0, 1]")
    values = jnp.asarray(values, float) * most
    return jax.random.bernoulli(key, values, (checks.require_whole("steps", steps), *values.shape))


def latency_code(values: Shaped[Array | np.ndarray, "*shape"], steps: int) -> Array:
    """One spike each, the sooner the larger the value: 1 at step 0, values near 0 at the last, none for 0.

    **Arguments:** `values`: in [0, 1]. `steps`: of time.

    **Returns:** booleans `[steps, *shape]`.

    **Raises:** ValueError for an argument outside its range.
    """
    checks.require_within("values", values, "[0, 1]")
    values = jnp.asarray(values, float)
    steps = checks.require_whole("steps", steps)
    at = jnp.round((1 - values) * (steps - 1)).astype(int)
    now = jnp.arange(steps).reshape(-1, *(1,) * values.ndim)
    return (now == at) & (values > 0)


def firing_rate(spikes: Shaped[Array | np.ndarray, "..."], dt: float) -> Float[Array, "..."]:
    """Spikes a second, `[*shape]`.

    **Arguments:** `spikes`: `[time, *shape]`, each 0 or 1. `dt`: length of a step, in seconds.

    **Raises:** ValueError for anything that is no spike, such as membrane potentials or sums of spikes.
    """
    checks.require_dt(dt)
    checks.require_numbers("spikes", spikes, booleans=True)
    if jnp.ndim(spikes) == 0 or len(spikes) == 0:
        raise ValueError(f"`spikes` must be [time, ...] with at least one step, got shape {jnp.shape(spikes)}")
    if not checks.is_traced(spikes):
        wrong = ~np.isin(np.asarray(spikes), (0, 1))
        if np.any(wrong):
            raise ValueError(f"`spikes` must be 0 or 1, got {np.asarray(spikes)[wrong][0]}")
    return jnp.mean(jnp.asarray(spikes, float), axis=0) / dt
