"""Cosine between a trace's update and the true gradient, per layer, against delay, order and training time.

All traces are measured at the same weights, along a run of backprop: networks trained with different traces are at
different places, where the same trace would be aligned differently (that is what behavioral-vision draws).
"""

from functools import partial

from experiments import alignment_report, vision_study
from experiments.options.alignment import Alignment
from experiments.vision_conditions import Condition, backprop_condition, base_condition, delayed_traces


def groups(options: Alignment) -> list[list[Condition]]:
    """Backprop, which all traces watch."""
    return [[backprop_condition(options)]]


def onlookers(options: Alignment) -> list[Condition]:
    """Every trace at every delay."""
    return [
        base_condition(options, trace, order, delay, error_gate=options.error_gate)
        for delay in options.delays
        for trace, order in delayed_traces(options.orders)
    ]


STUDY = vision_study.Study(groups, alignment_report.report, onlookers)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
