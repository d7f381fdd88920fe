"""Cosine between a trace's update and the true gradient, all traces at the same weights, along a run of backprop."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from experiments.common import alignment, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import CIFAR10, MNIST, Delays, Gate, Orders, Vision


@dataclass(frozen=True)
class Options(Delays, Orders, Gate, Vision):
    """Cosine between a trace's update and the true gradient, per layer, against delay, order and training time.

    The true gradient is that of the loss of the images whose learning signals arrive within the segment, so that the
    delay line reaches 1 whatever the delay, unless the error gate keeps activity out: of images learned well it does,
    and where nothing is left of a segment the cosine counts as 0. Compared are the exponential trace (ET), cascading
    traces of several orders (CET) and the delay line, each set to the delay, all at the same weights: those of a
    network trained by backprop, before, during and after training. Networks trained with different traces are at
    different places, where the same trace would be aligned differently: that is what behavioral-vision draws.
    """

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, quick: MNIST, each in a minute; cifar10: three epochs, in a quarter of an hour."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace, 1e-8 in the paper; 0 turns the gate
    off, so that what is seen is of the traces alone."""


PRESETS = {
    "demo": Options(
        delays=(0.2, 2.0, 6.0, 10.0), orders=(2, 6, 10, 20), seeds=2, learning_rates=(3e-3,), batch_conditions=1
    ),
    "quick": Options(
        delays=(0.2, 1.0, 4.0, 10.0), orders=(2, 4, 6, 10, 20), learning_rates=(1e-3,), steps=1404, **MNIST
    ),
    "cifar10": Options(seeds=1, delays=(0.2, 2.0, 10.0), learning_rates=(1e-3,), steps=1170, **CIFAR10),
}


def conditions(options: Options) -> list[list[Condition]]:
    """Backprop, which all traces watch."""
    return [[set_to_delay(options, "backprop")]]


def probes(options: Options) -> list[Condition]:
    """Every trace at every delay, which looks on."""
    return [set_to_delay(options, *trace, delay) for delay in options.delays for trace in options.delayed_traces]


run, report = partial(vision.run, conditions, probes=probes), alignment.report
