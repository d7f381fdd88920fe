"""Checks of options: each raises UserError that names the option as it is given."""

import math
from collections.abc import Callable
from typing import NamedTuple

DT = 0.2  # seconds an image is seen
SEGMENT = 128  # images in a segment of time
LONGEST = (SEGMENT - 1) * DT  # delay of a signal that still arrives in its segment


class UserError(Exception):
    """What can only be put right by whoever gave the command: one line, no traceback."""


class Rule(NamedTuple):
    """What every value of an option must be; written in its type, as `Annotated[int, COUNT]`, and kept by subclasses.

    Where that depends on other options a function of them stands there, which gives rules: `Annotated[float, delays]`.

    **Fields:** `constraint`: in words. `holds`: of a number. `empty`, `repeated`: whether a tuple may be so.
    """

    constraint: str = ""
    holds: Callable = bool
    empty: bool = False
    repeated: bool = False


COUNT, ABOVE_ZERO = Rule("at least 1", lambda v: v >= 1), Rule("above 0", lambda v: v > 0)
NOT_NEGATIVE, SHARE = Rule("at least 0", lambda v: v >= 0), Rule("above 0 and at most 1", lambda v: 0 < v <= 1)
INSIDE = Rule("above 0 and below 1", lambda v: 0 < v < 1)
WORDS, OPTIONAL = Rule(), Rule(empty=True)
SIZES = COUNT._replace(repeated=True)
ORDERS = Rule("2 to 64 (one stage is ET, always there)", lambda v: 2 <= v <= 64)
ORDER, BALANCED = ORDERS._replace(constraint="2 to 64", empty=True), Rule("3 to 64", lambda v: 3 <= v <= 64, empty=True)


def rules(options) -> None:
    """Raises UserError for an option that breaks a rule of its type, in whichever of its classes."""
    kinds = reversed(type(options).__mro__)  # what others rest on comes first
    for name, type_ in (item for kind in kinds for item in vars(kind).get("__annotations__", {}).items()):
        given = getattr(options, name)
        values, entries = given if isinstance(given, tuple) else (given,), getattr(type_, "__metadata__", ())
        found = [rule for entry in entries for rule in (entry(options) if callable(entry) else [entry])]
        if given is not None and (values or not any(rule.empty for rule in found)):
            for rule in found:
                each(name, values, rule.holds, rule.constraint, not rule.repeated)


def require(name: str, holds: bool, constraint: str, value) -> None:
    """Raises UserError that names the option unless it holds."""
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} must be {constraint}, got {value}")


def each(name: str, values: tuple, holds: Callable, constraint: str, distinct: bool = True) -> None:
    """Raises UserError unless there is at least one value, and all are finite, hold, and are distinct if so wanted."""
    require(name, bool(values), "at least one", "none")
    for value in values:
        word = isinstance(value, str)
        require(name, word or (math.isfinite(value) and holds(value)), constraint, value if word else f"{value:g}")
    once = not distinct or len(set(values)) == len(values)
    require(name, once, "different from each other", " ".join(map(str, values)))


def whole_steps(seconds: float, dt: float = DT) -> bool:
    """Whether a time is a whole number of steps."""
    return abs(seconds / dt - round(seconds / dt)) < 1e-3


def steps(options) -> list[Rule]:
    """Rules of delays: whole steps of the options' `dt`, at least one."""
    dt = getattr(options, "dt", DT)
    return [Rule(f"above 0 and a multiple of {dt:g} s", lambda v: v > 0 and whole_steps(v, dt))]


def delays(options) -> list[Rule]:
    """Rules of delays of images: whole steps, and in segments that start empty shorter than a segment."""
    found = [ABOVE_ZERO, Rule(f"multiples of the {DT:g} s of an image", whole_steps)]
    if getattr(options, "boundary", "reset") == "reset":
        lost = f"at most {LONGEST:g} s: signals later than the segment of {SEGMENT} x {DT:g} s are lost"
        found.append(Rule(lost, lambda v: v < LONGEST + DT / 2))
    return found


def divisors(options) -> list[Rule]:
    """Rules of images between two updates: divisors of those of a run, and of one that chooses if there is a choice."""
    runs = {options.steps, *([options.selection_steps] if len(options.learning_rates) > 1 else [])}
    images = sorted(SEGMENT * steps for steps in runs)
    return [Rule(f"a divisor of the {n} images of a run", lambda v, n=n: n % v == 0) for n in images]


def segment(options) -> list[Rule]:
    """Rules of images between two updates, where there is one number of them and one boundary."""
    whole = f"{SEGMENT} with --boundary reset, where a segment is an update"
    return [Rule(whole, lambda v: v == SEGMENT or options.boundary == "carry"), *divisors(options)]


def peaks(options) -> list[Rule]:
    """Rules of multiples of delays at which cascades can peak: in segments that start empty, within."""
    early, late = f"above {DT / 2:g} s, half an image", f"up to {LONGEST:g} s, within a segment of {SEGMENT} x {DT:g} s"
    found, one = [ABOVE_ZERO], [getattr(options, name, None) for name in ("delay", "selection_delay")]
    for delay in filter(None, (*getattr(options, "delays", ()), *one)):
        there = f"where the delay is {delay:g} s"
        found.append(Rule(f"large enough for peaks {early}, {there}", lambda v, t=delay: v * t > DT / 2))
        if getattr(options, "boundary", "reset") == "reset":
            found.append(Rule(f"small enough for peaks {late}, {there}", lambda v, t=delay: v * t < LONGEST + DT / 2))
    return found
