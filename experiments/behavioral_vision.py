"""Test accuracy against the delay of credit: ET, CET, the ideal delay line, and backprop without delay."""

from functools import partial

from experiments import vision_report, vision_study
from experiments.options.behavioral_vision import BehavioralVision
from experiments.vision_conditions import Condition, backprop_condition, base_condition, delayed_traces


def groups(options: BehavioralVision) -> list[list[Condition]]:
    """Every trace at every delay under every gate, and backprop once."""
    delayed = [
        [base_condition(options, trace, order, delay, error_gate=gate)]
        for gate in options.error_gates
        for delay in options.delays
        for trace, order in delayed_traces(options.orders)
    ]
    return [[backprop_condition(options)], *delayed]


STUDY = vision_study.Study(groups, vision_report.report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
