"""How every experiment on images runs: learning rates are chosen, conditions trained, recorded and reported.

For each group of candidates, which mostly is one condition, the candidate and its learning rate are chosen by accuracy
on images held out of the training set, in runs with a seed of their own; the runs reported then use the whole
training set. Runs of one seed begin from the same weights and see the images in the same order.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cetsim import data
from experiments import figures
from experiments.options.vision import Vision
from experiments.records import Journal, claimed, read_results, require_writable
from experiments.study import Work, complete
from experiments.vision_conditions import Condition, RetrogradeCondition, Stage, trials_of
from experiments.vision_training import Trainer, hyperparameters, program_of


class Study(NamedTuple):
    """What one experiment on images is.

    **Fields:** `groups`: of options, the groups of candidates, each ending in one condition reported. `report`: of the
    tidy rows of the runs reported and the options; prints a table and returns the paths of the figures it wrote.
    `onlookers`: of options, conditions whose alignment is measured at the weights of every run reported.
    """

    groups: Callable[[Vision], list[list[Condition]]]
    report: Callable[[list[dict], Vision], list[Path]]
    onlookers: Callable[[Vision], list[Condition]] = lambda options: []


def prepare(study: Study, options: Vision) -> tuple[Vision, data.Dataset]:
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
    held_out = data.split_validation(dataset, options.validation, options.selection_seed)
    if len(held_out.train_y) < options.stretch:
        kept, needed = len(held_out.train_y), options.stretch
        raise ValueError(f"at least {needed} training images must be left after holding some out, got {kept}")
    stage = Stage("test", options, dataset, options.steps)
    for candidates in study.groups(options):
        labels = (held_out if len(trials_of(candidates, options)) > 1 else dataset).train_y
        for condition in candidates:
            hyperparameters(replace(condition, learning_rate=options.learning_rates[0]))
            stage.settings(condition).shown.check(labels, condition.update_every)
    return options, dataset


def run(study: Study, prepared: tuple[Vision, data.Dataset]) -> None:
    """Chooses learning rates, trains what is not finished, writes records, table and figures."""
    options, dataset = prepared
    held_out = data.split_validation(dataset, options.validation, options.selection_seed)
    selection = Stage("validation", options, held_out, options.selection_steps)
    reported = Stage("test", options, dataset, options.steps, tuple(study.onlookers(options)))
    groups = [trials_of(candidates, options) for candidates in study.groups(options)]
    with claimed(options.folder, options.fresh, options.shard != "1/1") as journal:
        keys = complete(WORK, (selection, reported), groups, journal)
        if keys:
            _report(study, journal.rows(keys), options)


def redraw(study: Study, options: Vision) -> None:
    """Draws the figures again from results.csv.

    **Raises:** ValueError, OSError.
    """
    rows = read_results(options.folder / "results.csv")
    require_writable(options.folder)
    wanted = [row for row in rows if (row["dataset"], row["form"]) == (options.dataset, options.form)]
    _report(study, _reported(wanted or rows), options)


def _reported(rows: list[dict]) -> list[dict]:
    """Rows of the runs that were measured on the test set."""
    run = lambda row: row.get("run", row["seed"])  # tables of version 0.1.0 do not name runs, but seeds  # noqa: E731
    tested = {run(row) for row in rows if row["metric"] == "test_accuracy"}
    if not tested:
        raise ValueError("there are no rows of test_accuracy to draw: the experiment has not finished any run")
    return [row for row in rows if run(row) in tested]


def _report(study: Study, rows: list[dict], options: Vision) -> None:
    paths = study.report(rows, options)
    print(f"\nresults: {options.folder / 'results.csv'}")
    print("\n".join(f"figure:  {path}" for path in paths))


def _score(record: dict) -> tuple[float, float]:
    """What a condition is chosen by: accuracy on held-out images, then their loss; diverged is worst."""
    values = {row["metric"]: row["value"] for row in record["rows"]}
    if values["diverged"] or None in (values["validation_accuracy"], values["validation_loss"]):
        return -1.0, 0.0
    return values["validation_accuracy"], -values["validation_loss"]


def _describe(stage: Stage, condition: Condition) -> str:
    where = figures.label(condition.trace, condition.order)
    if condition.trace != "backprop":
        where += f" at {condition.delay_s:g} s, {figures.gate_name(condition.error_gate)}"
    for name, plain in (("peak_s", condition.delay_s), ("spread_s", 0.0), ("run_length", 1), ("interpolation", 1)):
        value = getattr(condition, name)
        where += f", {name.removesuffix('_s').replace('_', ' ')} {value:g}" if value != plain else ""
    where += f" ({condition.distribution})" if condition.distribution else ""
    where += f", {condition.events}" if isinstance(condition, RetrogradeCondition) else ""
    where += f", carried, update every {condition.update_every}" if condition.mode == "carry" else ""
    if stage.measured_on == "validation":
        return f"{where}, learning rate {condition.learning_rate:g}"
    return f"{where}, seed {condition.seed}"


def _outcome(stage: Stage, values: dict) -> str:
    metric = f"{stage.measured_on}_accuracy"
    return f"{metric.replace('_', ' ')} {values[metric]:.4f}"


WORK = Work(program_of, Trainer, _describe, _outcome, _score)
