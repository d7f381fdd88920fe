"""The peak of a cascade, learned from the task while the network learns: started wrong, does it end at the delay?"""

from dataclasses import asdict, dataclass, replace
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from cetsim import data
from cetsim.sweep.batches import parse_shard
from cetsim.sweep.devices import over_lanes, place
from cetsim.sweep.progress import Reporter
from cetsim.sweep.runner import Runner
from experiments import delay_learning, learned_delay_report, study, vision_study
from experiments.delay_learning import Rule
from experiments.options.learned_delay import LearnedDelay
from experiments.records import claimed
from experiments.vision_conditions import Condition, Stage, base_condition
from experiments.vision_training import Trainer, program_of


@dataclass(frozen=True)
class LearnedCondition(Condition):
    """A run whose peak starts at `peak_s` and is learned by `method`, or stays there if that is `"held"`."""

    method: str = "held"
    learn_every: int = 0
    step_size: float = 0.0
    stretches: int = 0
    horizon: int = 0
    perturbation: float = 0.0

    @property
    def rule(self) -> Rule | None:
        """How the peak is learned."""
        if self.method == "held":
            return None
        return Rule(self.method, self.order, self.step_size, self.stretches, self.horizon, self.perturbation)


def groups(options: LearnedDelay) -> list[list[LearnedCondition]]:
    """The peak held right, and for each start the peak held there and learned from there by every method."""
    held = LearnedCondition(
        **asdict(base_condition(options, "CET", options.order, options.delay, error_gate=options.error_gate))
    )
    conditions = [held]
    for start in options.starts:
        wrong = replace(held, peak_s=round(start * options.delay, 9))
        conditions += [wrong, *(_learned(wrong, method, options) for method in options.methods)]
    return [[condition] for condition in conditions]


def _learned(start: LearnedCondition, method: str, options: LearnedDelay) -> LearnedCondition:
    """The condition that learns from there; what its method does not use is left at 0, and does not name its runs."""
    names = (
        "learn_every",
        "step_size",
        "stretches",
        *(("horizon", "perturbation") if method == "perturbation" else ()),
    )
    return replace(start, method=method, **{name: getattr(options, name) for name in names})


class DelayTrainer(Trainer):
    """Trains conditions of one rule as its parent does, moving the peak of their traces on the way.

    Its state is that of the parent and what is learned of the peaks. Rows of the peak, from before it moves each time,
    are added to the parent's.
    """

    def __init__(self, stage: Stage, like: LearnedCondition, width: int):
        super().__init__(stage, like, width)
        self.rule, self.every = like.rule, like.learn_every

    def begin(self, lanes: list[LearnedCondition]):
        """The runs before their first update."""
        peaks = jnp.asarray([condition.peak_s for condition in lanes])
        learner = delay_learning.begin(peaks if self.mapped else peaks[0])
        return super().begin(lanes), place(learner) if self.mapped else learner

    def advance(self, state, lanes: list[LearnedCondition], start: int, end: int):
        """The runs after the updates from `start` to `end`, and what was measured of each."""
        self._path: list[tuple[int, np.ndarray]] = []
        (state, learner), steps = state, self.settings.steps
        self._learner, self._updates = learner, start
        state, rows = super().advance(state, lanes, start, end)
        at_end = [(steps, self._learner.log_peak)] if end == steps else []
        for step, log_peak in [*self._path, *at_end]:
            self._add(rows, "learned_peak_s", step, np.exp(log_peak))
        if at_end:
            moves = 0 if self.rule is None else -(-steps // self.every) * self.rule.cost
            self._add(rows, "extra_stretches", steps, np.full(len(lanes), moves))
        return (state, self._learner), rows

    def _advance(self, state, steps: int):
        """The state after `steps` updates, between which the peak moves, and their mean loss."""
        if self.rule is None:
            return super()._advance(state, steps)
        total, end = 0.0, self._updates + steps
        while self._updates < end:
            since = self._updates % self.every
            state = state if since else self._move(state)
            length = min(self.every - since, end - self._updates)
            state, loss = super()._advance(state, length)
            total, self._updates = total + length * loss, self._updates + length
        return state, total / steps

    def _move(self, state):
        self._path.append((self._updates, np.asarray(self._learner.log_peak)))
        state, self._learner = _learn(self.run, self.rule, state, self._learner, self.mapped)
        return state


@eqx.filter_jit
def _learn(run, rule, state, learner, mapped):
    one = lambda state, learner: delay_learning.learn(run, rule, state, learner)  # noqa: E731
    return (over_lanes(one) if mapped else one)(state, learner)


def run(prepared: tuple[LearnedDelay, data.Dataset]) -> None:
    """Trains what is not finished, writes records, table and figure."""
    options, dataset = prepared
    stage = Stage("test", options, dataset, options.steps)
    rate = options.learning_rates[0]
    runs = [
        replace(only, learning_rate=rate, seed=seed) for seed in range(options.seeds) for (only,) in groups(options)
    ]
    with claimed(options.folder, options.fresh, options.shard != "1/1") as journal:
        failed = study.failed_before(journal)
        with Reporter() as reporter:
            study.train(WORK, stage, runs, Runner(journal, reporter))
        if parse_shard(options.shard)[0] > 1:
            return
        study.wait(stage, runs, journal, failed)
        journal.write_results()
        rows = journal.rows(study.finished(study.hashes(stage, runs), journal))
    paths = learned_delay_report.report(rows, options)
    print(f"\nresults: {options.folder / 'results.csv'}")
    print("\n".join(f"figure:  {path}" for path in paths))


def _program_of(stage: Stage, condition: LearnedCondition) -> tuple:
    return *program_of(stage, condition), condition.rule, condition.learn_every


def _describe(stage: Stage, condition: LearnedCondition) -> str:
    way = "held at" if condition.rule is None else f"{condition.method} from"
    return f"{way} {condition.peak_s:g} s, seed {condition.seed}"


def _outcome(stage: Stage, values: dict) -> str:
    return f"peak {values['learned_peak_s']:.3g} s, test accuracy {values['test_accuracy']:.4f}"


WORK = study.Work(_program_of, DelayTrainer, _describe, _outcome, lambda record: ())
STUDY = vision_study.Study(groups, learned_delay_report.report)
prepare, redraw = partial(vision_study.prepare, STUDY), partial(vision_study.redraw, STUDY)
