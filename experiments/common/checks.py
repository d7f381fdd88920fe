"""Checks of options: each raises UserError that names the option as it is given."""

import math
from collections.abc import Callable

DT = 0.2  # seconds an image is seen
STRETCH = 128  # images in a stretch of time


class UserError(Exception):
    """What can only be put right by whoever gave the command: one line, no traceback."""


def require(name: str, holds: bool, constraint: str, value) -> None:
    """Raises UserError that names the option unless it holds."""
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} must be {constraint}, got {value}")


def counts(options, *names: str) -> None:
    """Raises UserError for a number of things below 1."""
    for name in names:
        require(name, getattr(options, name) >= 1, "at least 1", getattr(options, name))


def each(name: str, values: tuple, holds: Callable, constraint: str, distinct: bool = True) -> None:
    """Raises UserError unless there is at least one value, and all are finite, hold, and are distinct if so wanted."""
    require(name, bool(values), "at least one", "none")
    for value in values:
        require(name, math.isfinite(value) and holds(value), constraint, f"{value:g}")
    once = not distinct or len(set(values)) == len(values)
    require(name, once, "different from each other", " ".join(map(str, values)))


def names(name: str, values: tuple[str, ...]) -> None:
    """Raises UserError unless there is at least one word, and none twice."""
    require(name, bool(values), "at least one", "none")
    require(name, len(set(values)) == len(values), "different from each other", " ".join(values))


def orders(orders: tuple) -> None:
    """Raises UserError for an order that no cascade has."""
    each("orders", orders, lambda v: 2 <= v <= 64, "2 to 64 (one stage is ET, always there)")


def readouts(balanced: tuple, contrasts: tuple) -> None:
    """Raises UserError for an order that no readout of a cascade has."""
    for name, orders, least in (("balanced", balanced, 3), ("contrasts", contrasts, 2)):
        if orders:
            each(name, orders, lambda v, least=least: least <= v <= 64, f"{least} to 64")


def gate(name: str, gates: tuple) -> None:
    """Raises UserError for squared error norms that are none."""
    each(name, gates, lambda v: v >= 0, "at least 0")


def whole_steps(seconds: float, dt: float = DT) -> bool:
    """Whether a time is a whole number of steps."""
    return abs(seconds / dt - round(seconds / dt)) < 1e-3


def delays(name: str, delays: tuple, mode: str) -> None:
    """Raises UserError unless delays are whole steps, and in stretches that start empty shorter than a stretch."""
    each(name, delays, lambda v: v > 0, "above 0")
    each(name, delays, whole_steps, f"multiples of the {DT:g} s of an image")
    longest = (STRETCH - 1) * DT
    if mode == "reset":
        lost = f"at most {longest:g} s: signals later than the stretch of {STRETCH} x {DT:g} s are lost"
        each(name, delays, lambda v: v < longest + DT / 2, lost)


def selection_delay(options, mode: str) -> None:
    """Raises UserError for a delay of selection that cannot be."""
    if options.selection_delay is not None:
        delays("selection_delay", (options.selection_delay,), mode)


def peaks(name: str, multiples: tuple, delays: tuple, mode: str) -> None:
    """Raises UserError unless cascades can peak there, and in stretches that start empty within a stretch.

    **Arguments:**

    - `name`: of the option.
    - `multiples`: peaks in units of the delay.
    - `delays`: seconds.
    - `mode`: `"reset"` or `"carry"`.
    """
    each(name, multiples, lambda v: v > 0, "above 0")
    longest = (STRETCH - 1) * DT
    for delay in delays:
        for multiple in multiples:
            peak = multiple * delay
            got = f"{multiple:g}, a peak at {peak:g} s where the delay is {delay:g} s"
            require(name, peak > DT / 2, f"large enough for peaks above {DT / 2:g} s, half an image", got)
            if mode == "reset":
                within = f"small enough for peaks up to {longest:g} s, within a stretch of {STRETCH} x {DT:g} s"
                require(name, peak < longest + DT / 2, within, got)


def steps_above_zero(name: str, delays: tuple, dt: float) -> None:
    """Raises UserError unless there is at least one delay and all are whole steps of at least one."""
    each(name, delays, lambda v: v > 0 and whole_steps(v, dt), f"above 0 and a multiple of {dt:g} s")
