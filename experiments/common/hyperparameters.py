"""What distinguishes one run on images from another, as arrays: its trace, delay, gates and rate."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp

from cetsim import gates
from cetsim.delays import FixedDelay, LayerwiseDelay, RandomDelay
from cetsim.supervised import Hyperparameters
from cetsim.traces import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace
from experiments.common.checks import DT, SEGMENT
from experiments.common.conditions import Condition

WEIGHT_DECAY = 0.01
TAIL = 1e-3  # area of the kernel that a stream may forget
COMMON_DELAY = 1200  # steps per layer up to which retrograde runs share one program
RHOS = {"balanced": None, "sharp": 0.0}  # None: as the library has it
THRESHOLD_ROOM = 0.1  # of a segment, for images above a fixed threshold


def make_trace(condition: Condition):
    """The condition's trace; see `Condition` for where it is set."""
    order, peak = condition.order, condition.peak_s
    match condition.trace:
        case "ET":
            return ExponentialTrace(peak, DT)
        case "CET":
            return CascadingTrace(order, peak, DT)
        case "balanced" | "sharp" | "CET - ET":
            return readout(condition.trace, order, peak, DT)
        case "double exponential":
            return DoubleExponentialTrace(peak, condition.rise_s, condition.ratio, DT)
        case _:  # backprop is a delay line without delay
            return DelayLine(peak, DT)


def readout(trace: str, order: int, peak_s: float, dt: float, **options):
    """A cascade of which all stages are read, its largest weight at its peak from order 6 on; or CET less ET."""
    if trace in RHOS:
        how = dict(readout="balanced", rho=RHOS[trace], peaked=order >= 6)
        return CascadingTrace(order, peak_s, dt, **how, **options)
    return CascadingTrace(order, peak_s, dt, **options) - ExponentialTrace(peak_s, dt, **options)


def make_delay(condition: Condition):
    """When the condition's credit comes; draws of a run differ with its seed."""
    if not condition.distribution:
        return FixedDelay(condition.delay_s, DT, max_delay=condition.delay_s if condition.boundary == "carry" else None)
    key, longest = jax.random.key(condition.seed + 7919), None
    # Room for uniform delays, and for gamma distributed ones up to 7 sd above the mean.
    if condition.boundary == "carry":
        above = condition.spread_s * (0.5 if condition.distribution == "uniform" else 2.0)
        longest = DT * math.ceil((condition.delay_s + above) / DT - 1e-3)
    return RandomDelay(condition.delay_s, condition.spread_s, DT, condition.distribution, key, max_delay=longest)


def hyperparameters(condition: Condition) -> Hyperparameters:
    """What distinguishes the condition's training run, as arrays."""
    reset = condition.boundary == "reset"
    if condition.layers:
        # A trace for each layer, set to its own delay; the top layer's signal is at hand.
        peaks = [layer * condition.peak_s for layer in range(condition.layers)]
        traces = [make_trace(replace(condition, peak_s=peak)) if peak else DelayLine(0.0, DT) for peak in peaks]
        # Every lag that a segment can ask for, of the longest delays usually compared.
        longest = (condition.layers - 1) * max(round(condition.delay_s / DT), COMMON_DELAY)
        lags = condition.segment + longest if reset else None
        trace, gate = tuple(one.tabulate(lags or one.window(TAIL)) for one in traces), make_gate(condition)
        delay = LayerwiseDelay.stacked(condition.delay_s, condition.layers, DT, condition.delay_s, keep_late=reset)
    else:
        trace, delay, gate = make_trace(condition), make_delay(condition), None
        trace = trace.tabulate(SEGMENT if reset else trace.window(TAIL))
    numbers = condition.learning_rate or 1.0, condition.error_gate, WEIGHT_DECAY  # that of a probe is of no account
    rate, error_gate, decay = map(jnp.asarray, numbers)
    return Hyperparameters(rate, trace, delay, error_gate, decay, gate)


def make_gate(condition: Condition) -> gates.AbstractGate:
    """What picks the images that are learned from."""
    placement = condition.placement
    if condition.gate == "threshold":
        return gates.ThresholdGate(condition.threshold, THRESHOLD_ROOM, placement)
    kinds = {"quantile": gates.QuantileGate, "random": gates.RandomGate, "running": gates.RunningGate}
    kind = kinds.get(condition.gate)
    return gates.NoGate(placement) if kind is None else kind(condition.fraction, placement=placement)
