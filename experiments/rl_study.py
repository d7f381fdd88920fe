"""How the experiments on reinforcement learning run: settings are chosen, conditions trained, recorded and reported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from experiments import figures
from experiments.options.rl import ReinforcementLearning
from experiments.records import Journal, claimed, read_results, require_writable
from experiments.rl_conditions import NAMES, RLCondition, Stage, candidates, open_environment
from experiments.rl_training import Trainer, program_of
from experiments.study import Work, complete


class Study(NamedTuple):
    """What one experiment on reinforcement learning is.

    **Fields:** `conditions`: of options, what is compared. `report`: of the tidy rows of the runs reported and the
    options; prints a table and returns the paths of the figures it wrote. `trial`: of a condition and options, the
    condition in which its settings are chosen, such as one of another delay.
    """

    conditions: Callable[[ReinforcementLearning], list[RLCondition]]
    report: Callable[[list[dict], ReinforcementLearning], list[Path]]
    trial: Callable[[RLCondition, ReinforcementLearning], RLCondition] = lambda condition, options: condition


def prepare(study: Study, options: ReinforcementLearning) -> ReinforcementLearning:
    """Checks on the host everything that can fail for a user's reason.

    **Raises:** ValueError, OSError.
    """
    require_writable(options.folder)
    if not options.fresh:
        Journal(options.folder)
    try:
        open_environment(options)
    except ImportError as error:
        raise ValueError(str(error)) from error
    stage = Stage("test", options, options.frames)
    for condition in study.conditions(options):
        for candidate in candidates(options, condition):
            stage.hyperparameters(candidate)
    return options


def run(study: Study, options: ReinforcementLearning) -> None:
    """Chooses settings, trains what is not finished, writes records, table and figures."""
    selection = Stage("validation", options, options.selection_frames)
    groups = [_trials(study, condition, options) for condition in study.conditions(options)]
    with claimed(options.folder, options.fresh, options.shard != "1/1") as journal:
        keys = complete(WORK, (selection, Stage("test", options, options.frames)), groups, journal)
        if keys:
            _report(study, journal.rows(keys), options)


def redraw(study: Study, options: ReinforcementLearning) -> None:
    """Draws the figures again from results.csv.

    **Raises:** ValueError, OSError.
    """
    rows = read_results(options.folder / "results.csv")
    require_writable(options.folder)
    tested = {row["run"] for row in rows if row["metric"] == "test_return"}
    rows = [row for row in rows if row["run"] in tested]
    for name, value in (("dataset", NAMES[options.environment]), ("variant", options.variant)):
        rows = [row for row in rows if (row.get(name) or "") == value] or rows
    if not rows:
        raise ValueError("there are no rows to draw: the experiment has not finished any run")
    _report(study, rows, options)


def _report(study: Study, rows: list[dict], options: ReinforcementLearning) -> None:
    paths = study.report(rows, options)
    print(f"\nresults: {options.folder / 'results.csv'}")
    print("\n".join(f"figure:  {path}" for path in paths))


def _trials(study: Study, condition: RLCondition, options: ReinforcementLearning) -> dict[RLCondition, RLCondition]:
    """The runs by which the learning rate and β are chosen: trial -> condition it stands for."""
    chosen = candidates(options, condition)
    return {replace(study.trial(each, options), seed=options.selection_seed): each for each in chosen}


def _score(record: dict) -> tuple[float]:
    """What a condition is chosen by: its mean return after training; diverged is worst."""
    values = {row["metric"]: row["value"] for row in record["rows"]}
    value = values["validation_return"]
    return (float("-inf") if values["diverged"] or value is None else value,)


def _describe(stage: Stage, condition: RLCondition) -> str:
    where = figures.label(condition.trace, condition.order)
    where += f" at {condition.delay_s:g} s" if condition.delay_s else ""
    where += f", β {condition.beta:g}" if condition.beta else ""
    if stage.measured_on == "validation":
        return f"{where}, learning rate {condition.learning_rate:g}"
    return f"{where}, seed {condition.seed}"


def _outcome(stage: Stage, values: dict) -> str:
    name = f"{stage.measured_on}_return"
    return f"return {values[name]:.1f} ± {values[f'{name}_sd']:.1f}"


WORK = Work(program_of, Trainer, _describe, _outcome, _score)
