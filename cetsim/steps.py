"""Time in steps: the one place where seconds become steps, and the numbers that steps are counted in.

Steps are integers wherever they can be. In floats, of whatever activity is kept in, they would run together: from 257
on in bfloat16, from 2,049 in float16, from 2^24 + 1 (28 minutes at 0.1 ms) in float32.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from cetsim import checks

LARGEST = 2**31 - 1  # of an int32


def wider(*dtypes):
    """The dtype that holds them all, also where jax is told to promote none by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def constant(value, dtype=float) -> Array:
    """The value as an array, which stays known in a program that is being traced if it is known now."""
    with checks.once(value):
        return jnp.asarray(value, dtype=dtype)


def count(steps) -> Real[Array, "..."]:
    """Steps as integers of at least 32 bits or, where they lie between steps, as floats of at least 32 bits."""
    steps = jnp.asarray(steps)
    least = jnp.float32 if jnp.issubdtype(steps.dtype, jnp.floating) else jnp.int32
    return steps.astype(wider(steps.dtype, least))


def largest(dtype) -> int:
    """The number of steps up to which seconds of `dtype`, divided by dt, can be rounded to the right step."""
    return min(2 ** (jnp.finfo(dtype).nmant - 1), LARGEST)


def from_seconds(name: str, seconds, dt: float | int) -> Int[Array, "..."]:
    """Seconds in whole steps, exact for numbers known on the host; `name` is said in errors.

    **Raises:** ValueError for more than 2^31 - 1 steps. A traced time is rounded in its own dtype; see `exact`.
    """
    if checks.is_traced(seconds):
        return jnp.round(exact(name, seconds, dt) / dt).astype(jnp.int32)
    steps = np.round(np.asarray(seconds, dtype=float) / dt)
    if np.any(steps > LARGEST):
        raise ValueError(f"`{name}` must be at most 2^31 - 1 steps of {dt:g} s, got {seconds!r}")
    return constant(steps, jnp.int32)


def exact(name: str, seconds, dt: float | int) -> Float[Array, "..."]:
    """The time as an array of jax's default float, in which it is rounded to the right step, or refused.

    **Raises:** ValueError beyond 2^22 steps in float32; where the time is traced, an error when the program runs.
    """
    dtype = jnp.result_type(seconds) if checks.is_traced(seconds) else jnp.result_type(float)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    limit = largest(dtype)
    wrong = f"`{name}` must be at most {limit:,} steps of {dt:g} s in {dtype}"
    if checks.is_traced(seconds):
        seconds = jnp.asarray(seconds, dtype)
        return eqx.error_if(seconds, seconds > limit * dt, f"{wrong}: set jax_enable_x64")
    if np.any(np.asarray(seconds, dtype=float) / dt > limit):
        raise ValueError(f"{wrong}, got {seconds!r}: set jax_enable_x64")
    return constant(seconds)
