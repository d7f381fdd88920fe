"""Checks that the options of several experiments share."""

import math

DT = 0.2  # seconds an image is seen
STRETCH = 128  # images in a stretch of time


def whole_steps(seconds: float, dt: float = DT) -> bool:
    """Whether a time is a whole number of steps."""
    return abs(seconds / dt - round(seconds / dt)) < 1e-3


def require(name: str, holds: bool, constraint: str, value) -> None:
    """Raises ValueError that names the option unless it holds."""
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {constraint}, got {value}")


def require_each(name: str, values: tuple, holds, constraint: str, distinct: bool = True) -> None:
    """Raises ValueError unless there is at least one value, and all are finite, hold, and are distinct if so wanted."""
    require(name, bool(values), "at least one", "none")
    for value in values:
        require(name, math.isfinite(value) and holds(value), constraint, f"{value:g}")
    if distinct and len(set(values)) < len(values):
        raise ValueError(f"--{name.replace('_', '-')} must not repeat a value, got {' '.join(map(str, values))}")


def require_delays(name: str, delays: tuple, mode: str) -> None:
    """Raises ValueError unless delays are whole steps, and in stretches that start empty shorter than a stretch."""
    require_each(name, delays, lambda v: v > 0, "above 0")
    require_each(name, delays, whole_steps, f"multiples of the {DT:g} s of an image")
    longest = (STRETCH - 1) * DT
    if mode == "reset":
        lost = f"at most {longest:g} s: signals later than the stretch of {STRETCH} x {DT:g} s are lost"
        require_each(name, delays, lambda v: v < longest + DT / 2, lost)


def require_orders(orders: tuple) -> None:
    """Raises ValueError for an order that no cascade has."""
    require_each("orders", orders, lambda v: 2 <= v <= 64, "2 to 64 (one stage is ET, always there)")


def require_run_flags(plot_only: bool, fresh: bool, shard: str = "1/1") -> None:
    """Raises ValueError for flags that exclude each other, or a shard that there is not."""
    from cetsim.sweep.batches import parse_shard  # JAX is not needed to read options

    if plot_only and fresh:
        raise ValueError("--plot-only redraws what --fresh would remove: give one of them")
    if fresh and parse_shard(shard)[1] > 1:
        raise ValueError("--fresh would remove what other shards do: start over in a new folder with --out")
    parse_shard(shard)
