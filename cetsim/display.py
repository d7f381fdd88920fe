"""How traces, delays and attached models are shown: by their values, in seconds where they are times."""

import dataclasses

import equinox as eqx
import numpy as np

from cetsim import checks

_SECONDS = ("delay", "dt", "max_delay", "time_constant", "decay", "rise", "mean", "spread")
_SHOWN = 6  # numbers of an array; of a longer one, the range


def describe(module: eqx.Module) -> str:
    """`Kind(field=value, ...)` of a trace or a delay, and its remarks; a sum as it is written.

    Fields that are None are left out.
    """
    if hasattr(module, "_shown"):
        return module._shown()
    fields = [_field(module, field.name) for field in dataclasses.fields(module)]
    shown = [f"{name}={value_text(name, value)}" for name, value in fields if value is not None]
    remarks = module._remarks() if hasattr(module, "_remarks") else []
    return f"{type(module).__name__}({', '.join([*shown, *remarks])})"


def _field(module, name: str) -> tuple:
    value = getattr(module, name, None)
    if name != "steps" or value is None:
        return name, value
    # A delay that is kept in steps; 3 steps of 0.2 s are 0.6 s, which floats make 0.6000000000000001.
    return "delay", value if checks.is_traced(value) else round(float(value) * module.dt, 9)


def value_text(name: str, value) -> str:
    """The value of a field, as `4.0 s`, with all its digits; the range of a long array; `traced` where it has none."""
    unit = " s" if name in _SECONDS else ""
    if isinstance(value, str | bool | int) or value is None:
        return repr(value)
    if checks.is_traced(value):
        return f"traced {value.dtype}[{', '.join(map(str, value.shape))}]"
    if not isinstance(value, float | np.ndarray | np.generic) and not eqx.is_inexact_array(value):
        return eqx.tree_pformat(value)
    array = np.asarray(value)
    if array.ndim == 0:
        return f"{array[()]!s}{unit}"
    if array.ndim == 1 and array.size <= _SHOWN:
        return f"[{', '.join(map(str, array))}]{unit}"
    shape = ", ".join(map(str, array.shape))
    return f"{array.dtype}[{shape}] of {array.min()} to {array.max()}{unit}"
