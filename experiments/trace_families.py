"""Families of traces and their members: what tuned-traces chooses from, and what it compares the choice with."""

import math

from experiments.options.common import DT
from experiments.options.tuned_traces import TunedTraces
from experiments.vision_conditions import Condition, backprop_condition, base_condition

FAMILIES = ("ET", "double exponential", "CET")
REFERENCES = ("delay line", "backprop")  # nothing in them to tune but the learning rate
UNTUNED_ORDER = 10
UNTUNED_RISE = 0.5


def candidates(options: TunedTraces, family: str, delay: float) -> list[Condition]:
    """The members of a family to choose from, as many of each family."""
    match family:
        case "ET":
            return [exponential(options, delay, share) for share in options.time_constants]
        case "CET":
            return [cascade(options, delay, n, share) for n in options.orders for share in options.peaks]
        case _:
            shapes = [(rise, depression) for rise in options.rises for depression in options.depressions]
            return [two_exponentials(options, delay, share, *shape) for shape in shapes for share in options.peaks]


def untuned(options: TunedTraces, family: str, delay: float) -> Condition:
    """The member of a family that is set by the delay alone: ET's time constant is the delay, the others peak there."""
    match family:
        case "ET":
            return exponential(options, delay, 1.0)
        case "CET":
            return cascade(options, delay, UNTUNED_ORDER, 1.0)
        case "double exponential":
            return two_exponentials(options, delay, 1.0, UNTUNED_RISE, 0.0)
        case "delay line":
            return base_condition(options, family, 0, delay, error_gate=options.error_gate)
        case _:
            return backprop_condition(options)


def exponential(options: TunedTraces, delay: float, share: float) -> Condition:
    """ET with its time constant at a share of the delay."""
    return base_condition(options, "ET", 1, delay, peak_s=round(share * delay, 9), error_gate=options.error_gate)


def cascade(options: TunedTraces, delay: float, order: int, share: float) -> Condition:
    """CET that peaks at a share of the delay."""
    return base_condition(options, "CET", order, delay, peak_s=round(share * delay, 9), error_gate=options.error_gate)


def two_exponentials(options: TunedTraces, delay: float, share: float, rise: float, depression: float) -> Condition:
    """e^(-t/τ1) - ρ e^(-t/τ2), which peaks at T, a share of the delay.

        τ2 = rise τ1,    ρ = 1 + depression (τ1/τ2 - 1),    T - dt/2 = ln(ρ τ1/τ2) τ1 τ2/(τ1 - τ2)

    T - dt/2 is the middle of the step that the weight at lag T is of, as for cascades. The area that LTP leaves
    is (1 - depression) (τ1 - τ2).
    """
    ratio = 1 + depression * (1 / rise - 1)
    decay = (share * delay - DT / 2) * (1 - rise) / (rise * math.log(ratio / rise))
    shape = {"peak_s": round(decay, 9), "rise_s": round(rise * decay, 9), "ratio": round(ratio, 9)}
    return base_condition(options, "double exponential", 2, delay, error_gate=options.error_gate, **shape)
