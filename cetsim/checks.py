"""Checks of parameters on the host: one place for what every public constructor refuses."""

import jax
import numpy as np


def is_traced(value) -> bool:
    """Whether `value` is an abstract value inside `jit`, `vmap` or `grad`, which no host check can read."""
    return isinstance(value, jax.core.Tracer)


def require_finite(name: str, value) -> None:
    """Raises ValueError unless every entry of a concrete `value` is finite. Traced values pass."""
    if is_traced(value):
        return
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a number or an array of numbers, got {value!r}") from None
    if not np.all(np.isfinite(array)):
        raise ValueError(f"`{name}` must be finite, got {value!r}")


def require_above(name: str, value, bound, why: str = "") -> None:
    """Raises ValueError unless every entry of a concrete `value` is finite and above `bound`."""
    require_finite(name, value)
    if not is_traced(value) and not np.all(np.asarray(value) > bound):
        raise ValueError(f"`{name}` must be above {bound:g}{why}, got {value!r}")


def require_at_least(name: str, value, bound: float) -> None:
    """Raises ValueError unless every entry of a concrete `value` is finite and at least `bound`."""
    require_finite(name, value)
    if not is_traced(value) and not np.all(np.asarray(value) >= bound):
        raise ValueError(f"`{name}` must be at least {bound:g}, got {value!r}")


def require_in(name: str, value, allowed: tuple) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require_dt(dt) -> None:
    """Raises ValueError unless `dt` is a static number of seconds above 0."""
    if is_traced(dt):
        raise ValueError("`dt` must be a Python number known before tracing, got a traced value")
    require_above("dt", dt, 0.0, " s")
    if np.ndim(dt) != 0:
        raise ValueError(f"`dt` must be one number for the whole trace, got shape {np.shape(dt)}")


def require_whole_steps(name: str, seconds, dt) -> None:
    """Raises ValueError unless a concrete time is a whole number of steps, |T/dt - round| < 1e-3."""
    require_at_least(name, seconds, 0.0)
    if is_traced(seconds):
        return
    steps = np.asarray(seconds, dtype=float) / dt
    if np.any(np.abs(steps - np.round(steps)) >= 1e-3):
        raise ValueError(f"`{name}` must be a multiple of dt = {dt:g} s, got {seconds!r}")
