"""How conditions are trained, resumed and chosen, whatever is trained: what experiments on images and control share.

For each group of candidates, which mostly is one condition with several learning rates, the best is chosen by trials of
a seed of their own; the runs reported then are its, for every seed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from experiments import provenance
from experiments.progress import Reporter, format_seconds
from experiments.records import SCHEMA, Journal, config_hash


class Work(NamedTuple):
    """How the conditions of one kind are trained.

    A stage, of runs of one length, has `steps`, `options`, `measured_on` (`"validation"` where it chooses, else
    `"test"`), `config(condition)`, all that a run depends on, and `columns(condition)`, what its rows share.

    **Fields:** `program_of`: of stage and condition, what is compiled; those of equal programs are trained at once.
    `trainer`: of stage, a condition and a width, has `train(conditions, on_progress)`. `describe`: of stage and
    condition, in words. `outcome`: of stage and record, in words. `score`: of a record, what a trial is chosen by.
    """

    program_of: Callable[[Any, Any], tuple]
    trainer: Callable[[Any, Any, int], Any]
    describe: Callable[[Any, Any], str]
    outcome: Callable[[Any, dict], str]
    score: Callable[[dict], tuple]


def hashes(stage, conditions: list) -> dict[str, Any]:
    """The conditions by the hash of their config."""
    return {config_hash(stage.config(condition)): condition for condition in conditions}


def unfinished(stage, conditions: list, journal: Journal) -> list:
    """The conditions that are not recorded yet."""
    return [condition for key, condition in hashes(stage, conditions).items() if key not in journal.records]


def train(work: Work, stage, conditions: list, journal: Journal, reporter: Reporter) -> None:
    """Trains the conditions that are not finished, those of one program a group at a time, and records each group."""
    todo = unfinished(stage, conditions, journal)
    programs: dict[tuple, list] = {}
    for condition in todo:
        programs.setdefault(work.program_of(stage, condition), []).append(condition)
    origin = provenance.describe() if todo else {}
    for alike in programs.values():
        width = min(stage.options.batch_conditions, len(alike))
        trainer = work.trainer(stage, alike[0], width)
        for start in range(0, len(alike), width):
            group = alike[start : start + width]
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            reporter.working_on(f"{work.describe(stage, group[0])}{more}")
            results = trainer.train(group, reporter.advance)
            records = [_record(stage, c, result) | origin for c, result in zip(group, results, strict=True)]
            journal.append(records)
            reporter.finished(len(group), _summary(work, stage, group, records))


def choose(work: Work, selection, groups: list[dict], seeds: int, journal: Journal) -> list:
    """The runs to report, seed by seed: of each group the candidate whose trial was best.

    **Arguments:** `groups`: trials that were recorded by `selection`, with the condition that each stands for; one
    trial is no choice and need not have been run.
    """
    best = []
    for trials in groups:
        score = lambda trial: work.score(journal.records[config_hash(selection.config(trial))])  # noqa: E731
        best.append(trials[max(trials, key=score)] if len(trials) > 1 else next(iter(trials.values())))
    return [replace(condition, seed=seed) for seed in range(seeds) for condition in best]


def complete(work: Work, stages: tuple, groups: list[dict], journal: Journal) -> list[str]:
    """Runs the trials that choose and the runs to report, as far as they are not finished; the hashes of the latter."""
    selection, reported = stages
    seeds = reported.options.seeds
    trials = [trial for group in groups if len(group) > 1 for trial in group]
    with Reporter() as reporter:
        reporter.expect("selection", unfinished(selection, trials, journal), selection.steps)
        reporter.expect("training", [None] * (len(groups) * seeds), reported.steps)
        train(work, selection, trials, journal, reporter)
        runs = choose(work, selection, groups, seeds, journal)
        reporter.expect("training", unfinished(reported, runs, journal), reported.steps)
        train(work, reported, runs, journal, reporter)
    journal.write_results()
    keys = list(hashes(reported, runs))
    states = provenance.revisions([journal.records[key] for key in keys])
    if len(states) > 1:
        print(f"note: these runs were made by different states of the code: {', '.join(states)}")
    return keys


def _record(stage, condition, result: tuple[list[dict], bool, float]) -> dict:
    rows, _, seconds = result
    config = stage.config(condition)
    seconds = round(seconds, 3)
    return {
        "schema": SCHEMA,
        "hash": config_hash(config),
        "config": config,
        "wall_s": seconds,
        "finished": provenance.now(),
        "columns": stage.columns(condition),
        "rows": [*rows, {"metric": "wall_s", "step": stage.steps, "value": seconds}],
    }


def _summary(work: Work, stage, group: list, records: list[dict]) -> list[str]:
    """A line a run; for a group that chooses, one for all and one for each that diverged."""
    lines = [
        f"{work.describe(stage, c)}: {_outcome(work, stage, record)}" for c, record in zip(group, records, strict=True)
    ]
    if stage.measured_on == "test" or len(group) == 1:
        return lines
    diverged = [line for line in lines if "diverged" in line]
    return [f"{len(group)} runs to choose learning rates, up to {work.describe(stage, group[-1])}", *diverged]


def _outcome(work: Work, stage, record: dict) -> str:
    values = {row["metric"]: row["value"] for row in record["rows"]}
    if values["diverged"]:
        lost = [row["step"] for row in record["rows"] if row["metric"].endswith("loss") and row["value"] is None]
        return "diverged" + (f" by step {lost[0]}" if lost else "") + "; recorded as such"
    return f"{work.outcome(stage, values)} ({format_seconds(record['wall_s'])})"
