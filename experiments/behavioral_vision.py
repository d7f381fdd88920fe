"""Test accuracy against the delay of credit: ET, CET, the ideal delay line, and backprop without delay.

For each trace, delay and error gate the learning rate is chosen by accuracy on images held out of the
training set, in shorter runs with a seed of their own; the runs reported then use the whole training set.
Runs of one seed begin from the same weights and see the images in the same order.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

from cetsim import data
from experiments import figures, provenance, vision_report
from experiments.options import STRETCH, BehavioralVision
from experiments.progress import Reporter, format_seconds
from experiments.records import SCHEMA, Journal, config_hash, require_writable
from experiments.vision_conditions import NAME, Condition, Stage, conditions_of, trials_of
from experiments.vision_training import Trainer, hyperparameters


def prepare(options: BehavioralVision) -> tuple[BehavioralVision, data.Dataset]:
    """Checks on the host everything that can fail for a user's reason, and reads the data.

    **Raises:** ValueError, OSError.
    """
    require_writable(options.folder)
    if not options.fresh:
        Journal(options.folder)
    with warnings.catch_warnings(record=True) as caught:
        dataset = data.load(options.dataset, options.data_dir)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    kept = len(data.split_validation(dataset, options.validation, options.selection_seed).train_y)
    if kept < STRETCH:
        raise ValueError(f"at least {STRETCH} training images must be left after holding some out, got {kept}")
    for condition in conditions_of(options):
        hyperparameters(replace(condition, learning_rate=options.learning_rates[0]))
    return options, dataset


def run(prepared: tuple[BehavioralVision, data.Dataset]) -> None:
    """Chooses learning rates, trains what is not finished, writes records, table and figure."""
    options, dataset = prepared
    if options.fresh:
        remove_outputs(options.folder)
    journal = Journal(options.folder)
    held_out = data.split_validation(dataset, options.validation, options.selection_seed)
    selection = Stage("validation", options, held_out, options.selection_steps)
    reported = Stage("test", options, dataset, options.steps)
    trials = [trial for condition in conditions_of(options) for trial in trials_of(condition, options)]
    trials = trials if len(options.learning_rates) > 1 else []
    with Reporter() as reporter:
        reporter.expect("selection", _unfinished(selection, trials, journal), selection.steps)
        reporter.expect("training", _expected(reported, journal), reported.steps)
        _train(selection, trials, journal, reporter)
        runs = _choose_learning_rates(selection, journal)
        reporter.expect("training", _unfinished(reported, runs, journal), reported.steps)
        _train(reported, runs, journal, reporter)
    journal.write_results()
    keys = reported.hashes(runs)
    states = provenance.revisions([journal.records[key] for key in keys])
    if len(states) > 1:
        print(f"note: these runs were made by different states of the code: {', '.join(states)}")
    vision_report.report(journal.rows(keys), options.folder)


def redraw(options: BehavioralVision) -> None:
    """Draws the figure again from results.csv.

    **Raises:** ValueError, OSError.
    """
    vision_report.redraw(options.folder, options.dataset, options.form)


def remove_outputs(folder: Path) -> None:
    """Removes what this experiment wrote."""
    for name in ("runs.jsonl", "results.csv", f"{NAME}.png", f"{NAME}.pdf"):
        (folder / name).unlink(missing_ok=True)


def _unfinished(stage: Stage, conditions: list[Condition], journal: Journal) -> list[Condition]:
    return [condition for key, condition in stage.hashes(conditions).items() if key not in journal.records]


def _expected(stage: Stage, journal: Journal) -> list[Condition]:
    """Runs still to be reported, as far as can be known before their learning rates are."""
    options = stage.options
    return [
        condition
        for seed in range(options.seeds)
        for condition in conditions_of(options)
        if not any(
            config_hash(stage.config(replace(condition, learning_rate=rate, seed=seed))) in journal.records
            for rate in options.learning_rates
        )
    ]


def _choose_learning_rates(selection: Stage, journal: Journal) -> list[Condition]:
    """The runs to report: each condition with its best learning rate, for every seed, seed by seed."""
    options = selection.options

    def score(trial):
        return _score(journal.records[config_hash(selection.config(trial))])

    best = []
    for condition in conditions_of(options):
        grid = trials_of(condition, options)
        best.append(max(grid, key=score) if len(grid) > 1 else grid[0])
    return [replace(condition, seed=seed) for seed in range(options.seeds) for condition in best]


def _score(record: dict) -> tuple[float, float]:
    """What a learning rate is chosen by: accuracy on held-out images, then their loss; diverged is worst."""
    values = {row["metric"]: row["value"] for row in record["rows"]}
    if record["diverged"] or None in (values["validation_accuracy"], values["validation_loss"]):
        return -1.0, 0.0
    return values["validation_accuracy"], -values["validation_loss"]


def _train(stage: Stage, conditions: list[Condition], journal: Journal, reporter: Reporter) -> None:
    """Trains the conditions that are not finished, a group at a time, and records each group."""
    todo = _unfinished(stage, conditions, journal)
    if not todo:
        return
    width = min(stage.options.batch_conditions, len(todo))
    trainer = Trainer(stage.dataset, stage.sizes, stage.settings, width, stage.measured_on)
    origin = provenance.describe()
    for start in range(0, len(todo), width):
        group = todo[start : start + width]
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        reporter.working_on(f"{_describe(stage, group[0])}{more}")
        results = trainer.train(group, reporter.advance)
        records = [_record(stage, c, result) | origin for c, result in zip(group, results, strict=True)]
        journal.append(records)
        reporter.finished(len(group), _summary(stage, group, records))


def _record(stage: Stage, condition: Condition, result: tuple[list[dict], bool, float]) -> dict:
    rows, diverged, seconds = result
    config = stage.config(condition)
    seconds = round(seconds, 3)
    return {
        "schema": SCHEMA,
        "hash": config_hash(config),
        "config": config,
        "wall_s": seconds,
        "diverged": diverged,
        "finished": provenance.now(),
        "columns": stage.columns(condition),
        "rows": [*rows, {"metric": "wall_s", "step": stage.steps, "value": seconds}],
    }


def _summary(stage: Stage, group: list[Condition], records: list[dict]) -> list[str]:
    """A line a run; for a group that chooses learning rates, one for all and one for each that diverged."""
    lines = [f"{_describe(stage, c)}: {_outcome(record)}" for c, record in zip(group, records, strict=True)]
    if stage.measured_on == "test" or len(group) == 1:
        return lines
    diverged = [line for line, record in zip(lines, records, strict=True) if record["diverged"]]
    return [f"{len(group)} runs to choose learning rates, up to {_describe(stage, group[-1])}", *diverged]


def _describe(stage: Stage, condition: Condition) -> str:
    where = figures.label(condition.trace, condition.order)
    if condition.trace != "backprop":
        where += f" at {condition.delay_s:g} s, {figures.gate_name(condition.error_gate)}"
    if stage.measured_on == "validation":
        return f"{where}, learning rate {condition.learning_rate:g}"
    return f"{where}, seed {condition.seed}"


def _outcome(record: dict) -> str:
    metric = f"{record['config']['measured_on']}_accuracy"
    accuracy = [row["value"] for row in record["rows"] if row["metric"] == metric][-1]
    lost = [row["step"] for row in record["rows"] if row["metric"] == "train_loss" and row["value"] is None]
    if record["diverged"]:
        return "diverged" + (f" by step {lost[0]}" if lost else "") + "; recorded as such"
    return f"{metric.replace('_', ' ')} {accuracy:.4f} ({format_seconds(record['wall_s'])})"
