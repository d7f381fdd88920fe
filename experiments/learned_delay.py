"""The peak of a cascade, learned from the task while the network learns: started wrong, does it end at the delay?"""

from dataclasses import asdict, dataclass, replace
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from cetsim import data
from experiments import delay_learning, learned_delay_report, provenance, vision_study
from experiments.delay_learning import Rule
from experiments.options.learned_delay import LearnedDelay
from experiments.progress import Reporter, format_seconds
from experiments.records import SCHEMA, Journal, claimed, config_hash
from experiments.study import hashes, unfinished
from experiments.vision_conditions import Condition, Stage, base_condition
from experiments.vision_training import Trainer


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
    """Trains conditions as its parent does, moving the peak of their traces on the way; arguments as the parent's."""

    def train(self, conditions: list[LearnedCondition], on_progress) -> list[tuple[list[dict], bool, float]]:
        """Trains conditions of one rule from scratch; rows of the peak along the way are added to the parent's."""
        padded = conditions + [conditions[-1]] * (self.width - len(conditions))
        peaks = jnp.asarray([condition.peak_s for condition in padded])
        self.learner = delay_learning.begin(peaks if self.mapped else peaks[0])
        self.rule, self.every = conditions[0].rule, conditions[0].learn_every
        self.updates, self.path = 0, []
        results = super().train(conditions, on_progress)
        rows, steps = [own for own, _, _ in results], self.settings.steps
        for step, log_peak in [*self.path, (steps, self.learner.log_peak)]:
            self._add(rows, "learned_peak_s", step, np.exp(log_peak))
        extra = len(self.path) * self.rule.cost if self.rule else 0
        self._add(rows, "extra_stretches", steps, np.full(self.width, extra))
        return results

    def _advance(self, state, steps: int):
        """The state after `steps` updates, between which the peak moves, and their mean loss."""
        if self.rule is None:
            return super()._advance(state, steps)
        total, end = 0.0, self.updates + steps
        while self.updates < end:
            since = self.updates % self.every
            state = state if since else self._move(state)
            length = min(self.every - since, end - self.updates)
            state, loss = super()._advance(state, length)
            total, self.updates = total + length * loss, self.updates + length
        return state, total / steps

    def _move(self, state):
        self.path.append((self.updates, self.learner.log_peak))
        state, self.learner = _learn(self.run, self.rule, state, self.learner, self.mapped)
        return state


@eqx.filter_jit
def _learn(run, rule, state, learner, mapped):
    one = lambda state, learner: delay_learning.learn(run, rule, state, learner)  # noqa: E731
    return (eqx.filter_vmap(one) if mapped else one)(state, learner)


def run(prepared: tuple[LearnedDelay, data.Dataset]) -> None:
    """Trains what is not finished, writes records, table and figure."""
    options, dataset = prepared
    stage = Stage("test", options, dataset, options.steps)
    rate = options.learning_rates[0]
    runs = [
        replace(only, learning_rate=rate, seed=seed) for seed in range(options.seeds) for (only,) in groups(options)
    ]
    with claimed(options.folder, options.fresh) as journal, Reporter() as reporter:
        _train(stage, runs, journal, reporter)
        journal.write_results()
        rows = journal.rows(hashes(stage, runs))
    paths = learned_delay_report.report(rows, options)
    print(f"\nresults: {options.folder / 'results.csv'}")
    print("\n".join(f"figure:  {path}" for path in paths))


def _train(stage: Stage, runs: list[LearnedCondition], journal: Journal, reporter: Reporter) -> None:
    """Trains the runs that are not finished, those of one rule a group at a time, and records each group."""
    todo = unfinished(stage, runs, journal)
    if not todo:
        return
    reporter.expect("training", todo, stage.steps)
    alike = _alike(todo, stage.options.batch_conditions)
    trainer = DelayTrainer(stage, todo[0], max(map(len, alike)))  # one for all: what they share is compiled once
    origin = provenance.describe()
    for group in alike:
        reporter.working_on(_describe(group[0]))
        results = trainer.train(group, reporter.advance)
        records = [
            _record(stage, condition, rows, seconds) | origin
            for condition, (rows, _, seconds) in zip(group, results, strict=True)
        ]
        journal.append(records)
        reporter.finished(len(group), [_outcome(c, record) for c, record in zip(group, records, strict=True)])


def _alike(conditions: list[LearnedCondition], most: int) -> list[list[LearnedCondition]]:
    """The conditions in groups of one rule, of at most so many each."""
    by_rule: dict[Rule | None, list[LearnedCondition]] = {}
    for condition in conditions:
        by_rule.setdefault(condition.rule, []).append(condition)
    return [own[start : start + most] for own in by_rule.values() for start in range(0, len(own), most)]


def _record(stage: Stage, condition: LearnedCondition, rows: list[dict], seconds: float) -> dict:
    config, seconds = stage.config(condition), round(seconds, 3)
    return {
        "schema": SCHEMA,
        "hash": config_hash(config),
        "config": config,
        "wall_s": seconds,
        "finished": provenance.now(),
        "columns": stage.columns(condition),
        "rows": [*rows, {"metric": "wall_s", "step": stage.steps, "value": seconds}],
    }


def _describe(condition: LearnedCondition) -> str:
    way = "held at" if condition.rule is None else f"{condition.method} from"
    return f"{way} {condition.peak_s:g} s, seed {condition.seed}"


def _outcome(condition: LearnedCondition, record: dict) -> str:
    values = {row["metric"]: row["value"] for row in record["rows"]}  # the last of each
    if values["diverged"]:
        return f"{_describe(condition)}: diverged; recorded as such"
    end = f"peak {values['learned_peak_s']:.3g} s, test accuracy {values['test_accuracy']:.4f}"
    return f"{_describe(condition)}: {end} ({format_seconds(record['wall_s'])})"


STUDY = vision_study.Study(groups, learned_delay_report.report)
prepare, redraw = partial(vision_study.prepare, STUDY), partial(vision_study.redraw, STUDY)
