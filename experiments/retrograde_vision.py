"""Learning from credit that takes minutes from layer to layer, and from the few images that are salient."""

from functools import partial

from experiments import retrograde_report, vision_study
from experiments.options.retrograde_vision import RetrogradeVision
from experiments.vision_conditions import Condition, RetrogradeCondition, delayed_traces

CNN_LAYERS = 5


def groups(options: RetrogradeVision) -> list[list[Condition]]:
    """Every trace and backprop on the same salient images; then each again with one thing changed at a time."""
    conditions = _compared(options)
    for delay in options.delays:
        conditions += _compared(options, delay_s=delay)
    for fraction in options.fractions:
        conditions += _compared(options, fraction=fraction)
    for name, field in (("gates", "gate"), ("derivatives", "derivative"), ("placements", "placement")):
        for value in getattr(options, name):
            conditions += _compared(options, **{field: value})
    return [[condition] for condition in dict.fromkeys(conditions)]


def _compared(options: RetrogradeVision, **varied) -> list[RetrogradeCondition]:
    """Backprop and every trace on the images that the gate picks."""
    return [_condition(options, *trace, **varied) for trace in [("backprop", 0), *delayed_traces(options.orders)]]


def _condition(options: RetrogradeVision, trace: str, order: int, **varied) -> RetrogradeCondition:
    usual = {"delay_s": options.delay, "gate": options.gates[0], "fraction": options.fraction}
    usual |= {"derivative": options.derivatives[0], "placement": options.placements[0]}
    setting = usual | varied
    if trace == "backprop":  # nothing waits
        setting |= {"delay_s": 0.0, "derivative": "ideal", "placement": "shown"}
    # What the gate does not look at is the same for all.
    setting |= {"fraction": 1.0} if setting["gate"] in ("none", "threshold") else {}
    return RetrogradeCondition(
        trace,
        order,
        error_gate=0.0 if trace == "backprop" else options.error_gate,
        peak_s=setting["delay_s"],
        mode="reset" if trace == "backprop" and options.network == "mlp" else options.mode,
        update_every=options.stretch,
        layers=CNN_LAYERS if options.network == "cnn" else len(options.hidden) + 1,
        threshold=options.threshold if setting["gate"] == "threshold" else 0.0,
        **setting,
    )


STUDY = vision_study.Study(groups, retrograde_report.report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
