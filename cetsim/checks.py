"""Checks of arguments on the host: one place for what every public constructor refuses, and in which words.

A number may be a Python number, a NumPy or jax scalar or array, a list, a pandas column, or anything else that NumPy
makes an array of numbers of. Strings, booleans and masked entries are no numbers. What is traced has no values yet:
its dtype and shape are checked and nothing else.
"""

import contextlib
import operator

import jax
import jax.numpy as jnp
import numpy as np

_SHOWN = 100  # characters of a value in a message
_FEW = 8  # entries of an array that a message shows all of
_ROUNDING = 1e-7  # relative; of float32, in which a dt may have been computed


def is_traced(value) -> bool:
    """Whether `value` is an abstract value inside `jit`, `vmap` or `grad`, which no host check can read."""
    return isinstance(value, jax.core.Tracer)


def once(*trees):
    """A context in which what depends on `trees` alone is computed while a program is traced, if they are known then.

    It is a constant of the program, computed once and not every time the program runs.
    """
    traced = any(map(is_traced, jax.tree.leaves(trees)))
    return contextlib.nullcontext() if traced else jax.ensure_compile_time_eval()


def shown(value) -> str:
    """The value in one short line, for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def require_numbers(name: str, value, booleans: bool = False):
    """The value as a NumPy array, or itself if it is traced.

    **Raises:** ValueError unless it holds real numbers alone (or booleans, if they are allowed), none of them masked.
    """
    array = value if is_traced(value) else _as_array(name, value)
    if array is None or not _are_numbers(array.dtype, booleans):
        raise ValueError(f"`{name}` must be a number or an array of numbers, got {shown(value)}")
    return array


def require_finite(name: str, value, booleans: bool = False):
    """`require_numbers`, and ValueError unless every entry of a concrete value is finite in the precision of jax."""
    array = require_numbers(name, value, booleans)
    if is_traced(array) or array.size == 0 or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        # The extremes tell of all entries, without another array as large as the images.
        extremes = np.stack([array.min(), array.max()]).astype(jnp.result_type(float))
        if not np.all(np.isfinite(extremes)):
            _refuse(name, value, array, np.isfinite(array.astype(jnp.result_type(float))), "finite")
    return array


def require_above(name: str, value, bound, why: str = ""):
    """`require_finite`, and ValueError unless every entry of a concrete `value` is above `bound`."""
    return _require_each(name, value, lambda array: array > bound, f"above {bound:g}{why}")


def require_at_least(name: str, value, bound: float):
    """`require_finite`, and ValueError unless every entry of a concrete `value` is at least `bound`."""
    return _require_each(name, value, lambda array: array >= bound, f"at least {bound:g}")


def require_within(name: str, value, interval: str):
    """`require_finite`, and ValueError unless every entry of a concrete `value` is in an interval like `"(0, 1]"`."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def inside(array):
        above = array > low if interval[0] == "(" else array >= low
        return above & (array < high if interval[-1] == ")" else array <= high)

    return _require_each(name, value, inside, f"in {interval}")


def require_one_number(name: str, value) -> None:
    """Raises ValueError unless `value` is a single number, traced or not."""
    shape = jnp.shape(require_numbers(name, value))
    if shape != ():
        raise ValueError(f"`{name}` must be one number (map over several with jax.vmap), got shape {shape}")


def require_static(name: str, value) -> float:
    """The value as a Python float; raises ValueError unless it is one finite number, known before tracing."""
    if is_traced(value):
        raise ValueError(f"`{name}` must be a number known before tracing, got a traced value")
    array = require_finite(name, value)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be one number, got shape {array.shape}")
    return float(array)


def require_whole(name: str, value, least: int | None = 1) -> int:
    """The value as a Python integer; raises ValueError unless it is an integer of at least `least` (None: any).

    10.0 is refused as 10.5 is: a float where something is counted is a mistake somewhere else.
    """
    if is_traced(value):
        raise ValueError(f"`{name}` must be a whole number known before tracing, got a traced value")
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a whole number, got {shown(value)}")
    if least is not None and number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {number}")
    return number


def require_flag(name: str, value) -> bool:
    """The value as a Python bool; raises ValueError unless it is one (the string "false" would count as true)."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False, got {shown(value)}")
    return bool(value)


def require_in(name: str, value, allowed: tuple) -> None:
    """Raises ValueError unless `value` is one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")


def require_instance(name: str, value, kinds, described: str) -> None:
    """Raises ValueError unless `value` is of one of `kinds`, which are `described` to the user."""
    if not isinstance(value, kinds):
        raise ValueError(f"`{name}` must be {described}, got {shown(value)}")


def require_dt(dt) -> None:
    """Raises ValueError unless `dt` is a static number of seconds above 0."""
    if is_traced(dt):
        raise ValueError("`dt` must be a Python number known before tracing, got a traced value")
    require_above("dt", dt, 0.0, " s")
    if np.ndim(dt) != 0:
        raise ValueError(f"`dt` must be one number for the whole trace, got shape {np.shape(dt)}")


def same_dt(one: float, other: float) -> bool:
    """Whether two lengths of a step differ by no more than the rounding of float32 (0.1 * 3 and 0.3 are one)."""
    return abs(one - other) <= _ROUNDING * max(abs(one), abs(other))


def require_same_dt(described: str, *steps: float) -> None:
    """Raises ValueError, with all digits, unless all `steps` are the same dt; `described` says whose they are."""
    for other in steps[1:]:
        if not same_dt(steps[0], other):
            raise ValueError(f"{described} must have one dt, got {steps[0]!r} s and {other!r} s")


def require_whole_steps(name: str, seconds, dt) -> None:
    """Raises ValueError unless a concrete time is a whole number of steps, |T/dt - round| < 1e-3."""
    require_at_least(name, seconds, 0.0)
    if is_traced(seconds):
        return
    steps = np.asarray(seconds, dtype=float) / dt
    if np.any(np.abs(steps - np.round(steps)) >= 1e-3):
        raise ValueError(f"`{name}` must be a multiple of dt = {dt:g} s, got {shown(seconds)}")


def require_examples(x, fetch: bool = True):
    """Examples `[examples, ...]` as an array of jax.

    **Arguments:** `fetch`: whether what lies on a device is checked too, for which it is copied to the host.

    **Raises:** ValueError unless they are finite numbers or booleans.
    """
    unchecked = isinstance(x, jax.Array) and not fetch
    array = x if unchecked else require_finite("x", x, booleans=True)
    if array.ndim == 0:
        raise ValueError(f"`x` must be [examples, ...], got one number, {shown(x)}")
    return x if isinstance(x, jax.Array) else jnp.asarray(array)


def require_labels(labels, examples: int, classes: int | None = None):
    """The labels as int32 `[examples]`.

    **Arguments:** `classes`: outputs of the model, which labels number from 0; None where they are not known yet, and
    labels of no class are not found.

    **Raises:** ValueError unless there is one class number for each of the `examples`, an integer in the model's range.
    """
    array = require_numbers("labels", labels, booleans=True)
    if array.ndim != 1:
        what = "; take labels.argmax(axis=1) of one-hot rows" if array.ndim == 2 and array.shape[1] > 1 else ""
        raise ValueError(f"`labels` must be [examples], one class number each, got shape {array.shape}{what}")
    if len(array) != examples:
        raise ValueError(f"`x` and `labels` must have one length, got {examples} and {len(array)}")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"`labels` must be class numbers of an integer dtype, got {array.dtype}")
    if classes is not None and not is_traced(array):
        inside = (array >= 0) & (array < classes)
        if not np.all(inside):
            first, last = int(np.argmin(inside)), classes - 1
            raise ValueError(
                f"`labels` must be class numbers from 0 to {last}, the model having {classes} outputs, "
                f"got {array[first]} of example {first}"
            )
    return jnp.asarray(array.astype(np.int32))


def _as_array(name: str, value) -> np.ndarray | None:
    """The value as an array, None if NumPy makes none of it."""
    if np.ma.is_masked(value):
        raise ValueError(f"`{name}` must have no masked entries, got {np.ma.count_masked(value)} of them")
    try:
        array = np.asarray(value)
        # Columns of Python numbers, as pandas makes them of mixed tables.
        return np.asarray(array.tolist()) if array.dtype.kind == "O" else array
    except (TypeError, ValueError, RuntimeError):  # ragged lists, lists of traced values, keys, tensors elsewhere
        return None


def _are_numbers(dtype, booleans: bool) -> bool:
    if jnp.issubdtype(dtype, jnp.bool_):
        return booleans
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return real and not jnp.issubdtype(dtype, np.timedelta64)  # which NumPy counts among the integers


def _require_each(name: str, value, is_right, constraint: str):
    array = require_finite(name, value)
    if is_traced(array):
        return array
    if array.size == 0:
        raise ValueError(f"`{name}` must be a number or an array of numbers, got none in {shown(value)}")
    if not np.all(is_right(array)):
        _refuse(name, value, array, is_right(array), constraint)
    return array


def _refuse(name: str, value, array: np.ndarray, right, constraint: str) -> None:
    """Raises ValueError with the value, or, of an array, with the first entry that is not right."""
    if array.size <= _FEW:
        raise ValueError(f"`{name}` must be {constraint}, got {shown(value)}")
    first = np.unravel_index(np.argmin(right), array.shape)
    raise ValueError(f"`{name}` must be {constraint}, got {array[first]} at index {tuple(map(int, first))}")
