"""Control learned from rewards that come seconds to minutes late."""

from dataclasses import replace
from functools import partial

from experiments import rl_report, rl_study
from experiments.options.behavioral_rl import BehavioralRL
from experiments.rl_conditions import UNDELAYED, RLCondition, traces_of


def conditions(options: BehavioralRL) -> list[RLCondition]:
    """Every trace at every delay, and signals without delay."""
    traces = [trace for trace in traces_of(options) if trace != UNDELAYED]
    late = [RLCondition(*trace, delay) for delay in options.delays for trace in traces]
    return [RLCondition(*UNDELAYED, 0.0), *late]


def trial(condition: RLCondition, options: BehavioralRL) -> RLCondition:
    """The condition at the delay at which settings are chosen."""
    return replace(condition, delay_s=options.selection_delay if condition.delay_s else 0.0)


STUDY = rl_study.Study(conditions, rl_report.report, trial)
prepare, run, redraw = (partial(step, STUDY) for step in (rl_study.prepare, rl_study.run, rl_study.redraw))
