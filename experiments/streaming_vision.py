"""Test accuracy where time goes on without end, and where images do not come in random order."""

from functools import partial

from experiments import streaming_report, vision_study
from experiments.options.common import STRETCH
from experiments.options.streaming_vision import StreamingVision
from experiments.vision_conditions import Condition, backprop_condition, base_condition, delayed_traces


def groups(options: StreamingVision) -> list[list[Condition]]:
    """Every trace at every delay in every mode; at one delay the same for all that is varied there; and backprop."""
    conditions, delay = [], options.order_delay
    for mode in options.modes:
        for each in options.delays:
            conditions += _compared(options, mode, each)
        for length in options.run_lengths:
            conditions += _compared(options, mode, delay, run_length=length)
        for steps in options.interpolations:
            conditions += _compared(options, mode, delay, interpolation=steps)
    for images in options.update_everys if "carry" in options.modes else ():
        conditions += _compared(options, "carry", delay, update_every=images)
    return [[condition] for condition in dict.fromkeys(conditions)]


def _compared(options: StreamingVision, mode: str, delay: float, **varied) -> list[Condition]:
    """Backprop and every trace."""
    # The gate compares errors of the mean over an update: scaled, it closes on the same images in all of them.
    gate = options.error_gate * (STRETCH / varied.get("update_every", STRETCH)) ** 2
    # Backprop has nothing to carry: its modes are one unless batch norm tells them apart.
    of_backprop = "reset" if options.network == "mlp" else mode
    traces = delayed_traces(options.orders)
    return [
        backprop_condition(options, mode=of_backprop, **varied),
        *(base_condition(options, *trace, delay, mode=mode, error_gate=gate, **varied) for trace in traces),
    ]


STUDY = vision_study.Study(groups, streaming_report.report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
