"""Test accuracy against the delay of credit: ET, CET, the ideal delay line, and backprop without delay."""

from functools import partial
from pathlib import Path

from experiments import alignment_report, vision_report, vision_study
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


def report(rows: list[dict], options: BehavioralVision) -> list[Path]:
    """Prints the table and writes the figures of accuracy and of gradient alignment."""
    return vision_report.report(rows, options) + alignment_report.draw(rows, options.folder)


STUDY = vision_study.Study(groups, report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
