"""How conditions are trained, resumed and chosen, whatever is trained: what experiments on images and control share.

For each group of candidates, which mostly is one condition with several learning rates, the best is chosen by trials of
a seed of their own; the runs reported then are its, for every seed.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from experiments import provenance
from experiments.options.common import parse_shard
from experiments.progress import Reporter, format_seconds
from experiments.records import SCHEMA, Journal, config_hash

POLL = 5.0  # seconds between two looks at what other shards have done


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
    """Trains this shard's share of the conditions, as far as they are not finished, and records each batch."""
    origin, trainer, of = provenance.describe() if unfinished(stage, conditions, journal) else {}, None, None
    for program, batch, width in _share(work, stage, conditions):
        todo = unfinished(stage, batch, journal)
        if not todo:
            continue
        if program != of:
            trainer, of = work.trainer(stage, todo[0], width), program
        more = f" and {len(todo) - 1} more" if len(todo) > 1 else ""
        reporter.working_on(f"{work.describe(stage, todo[0])}{more}")
        results = trainer.train(todo, reporter.advance)
        records = [_record(stage, c, result) | origin for c, result in zip(todo, results, strict=True)]
        journal.append(records)
        reporter.finished(len(todo), _summary(work, stage, todo, records))


def _share(work: Work, stage, conditions: list) -> list[tuple[tuple, list, int]]:
    """This shard's batches, each with its program and the width of it; they depend on the conditions alone."""
    index, count = parse_shard(stage.options.shard)
    programs: dict[tuple, list] = {}
    for condition in hashes(stage, conditions).values():
        programs.setdefault(work.program_of(stage, condition), []).append(condition)
    batches = []
    for program, alike in programs.items():
        width = min(stage.options.batch_conditions, len(alike))
        batches += [(program, alike[start : start + width], width) for start in range(0, len(alike), width)]
    return batches[index - 1 :: count]


def own_unfinished(work: Work, stage, conditions: list, journal: Journal) -> list:
    """The conditions of this shard that are not recorded yet."""
    own = [condition for _, batch, _ in _share(work, stage, conditions) for condition in batch]
    return unfinished(stage, own, journal)


def _wait(stage, conditions: list, journal: Journal) -> None:
    """Waits until the other shards have recorded theirs."""
    journal.refresh()
    left = unfinished(stage, conditions, journal)
    if left:
        print(f"waiting for {len(left)} runs of other shards", flush=True)
    while left:
        time.sleep(POLL)
        journal.refresh()
        left = unfinished(stage, left, journal)


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
    """Runs the trials that choose and the runs to report, as far as they are not finished.

    **Returns:** the hashes of the runs to report; none from shards that leave the report to the first.
    """
    selection, reported = stages
    (index, count), seeds = parse_shard(reported.options.shard), reported.options.seeds
    trials = [trial for group in groups if len(group) > 1 for trial in group]
    with Reporter() as reporter:
        reporter.expect("selection", own_unfinished(work, selection, trials, journal), selection.steps)
        reporter.expect("training", [None] * (len(groups) * seeds // count), reported.steps)
        train(work, selection, trials, journal, reporter)
        _wait(selection, trials, journal)
        runs = choose(work, selection, groups, seeds, journal)
        reporter.expect("training", own_unfinished(work, reported, runs, journal), reported.steps)
        train(work, reported, runs, journal, reporter)
    if index > 1:
        print(f"shard {index} of {count} is done; the first reports")
        return []
    _wait(reported, runs, journal)
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
