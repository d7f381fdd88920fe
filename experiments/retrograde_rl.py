"""Control learned from signals that take minutes from layer to layer."""

from functools import partial

from experiments import rl_report, rl_study
from experiments.options.retrograde_rl import RetrogradeRL
from experiments.rl_conditions import UNDELAYED, RLCondition, traces_of


def conditions(options: RetrogradeRL) -> list[RLCondition]:
    """Every trace with delays that stack, and signals without delay."""
    delays = {trace: 0.0 if trace == UNDELAYED else options.delay for trace in traces_of(options)}
    return [RLCondition(*trace, delay, retrograde=delay > 0) for trace, delay in delays.items()]


STUDY = rl_study.Study(conditions, rl_report.report)
prepare, run, redraw = (partial(step, STUDY) for step in (rl_study.prepare, rl_study.run, rl_study.redraw))
