"""How conditions are trained, resumed and chosen, whatever is trained: what experiments on images and control share.

For each group of candidates, which mostly is one condition with several learning rates, the best is chosen by trials of
a seed of their own; the runs reported then are its, for every seed.
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from cetsim.sweep import provenance
from cetsim.sweep.batches import Batch, config_hash, in_batches, parse_shard, share
from cetsim.sweep.progress import Reporter, format_seconds
from cetsim.sweep.runner import Plan, Program, Runner, failures
from experiments.records import Journal

POLL = 5.0  # seconds between two looks at what other shards have done


class Work(NamedTuple):
    """How the conditions of one kind are trained.

    A stage, of runs of one length, has `steps`, `lanes`, the conditions trained at once at most, `options`,
    `measured_on` (`"validation"` where it chooses, else `"test"`), `config(condition)`, all that a run depends on, and
    `columns(condition)`, what its rows share.

    **Fields:** `program_of`: of stage and condition, what is compiled; those of equal programs are trained at once.
    `trainer`: of stage, a condition and a width. `describe`: of stage and condition, in words. `outcome`: of stage and
    final values, in words. `score`: of a record, what a trial is chosen by.
    """

    program_of: Callable[[Any, Any], tuple]
    trainer: Callable[[Any, Any, int], Program]
    describe: Callable[[Any, Any], str]
    outcome: Callable[[Any, dict], str]
    score: Callable[[dict], tuple]

    def plan(self, stage) -> Plan:
        """A stage as the runner of sweeps sees it."""
        of_stage = partial(self.trainer, stage), partial(self.describe, stage), partial(_lines, self, stage)
        return Plan(stage.config, stage.columns, *of_stage, stage.steps)

    def batches(self, stage, conditions: list) -> list[Batch]:
        """All batches of a stage; they depend on the conditions alone."""
        distinct, devices = hashes(stage, conditions).values(), _devices() if stage.lanes > 1 else 1
        return in_batches(distinct, partial(self.program_of, stage), stage.lanes, devices)


def _devices() -> int:
    import jax

    return jax.local_device_count()


def hashes(stage, conditions: list) -> dict[str, Any]:
    """The conditions by the hash of their config."""
    return {config_hash(stage.config(condition)): condition for condition in conditions}


def train(work: Work, stage, conditions: list, runner: Runner, name: str = "training") -> None:
    """Trains this shard's share of the conditions, as far as they are not finished."""
    plan, batches = work.plan(stage), share(work.batches(stage, conditions), stage.options.shard)
    runs = sum(len(runner.unfinished(plan, batch.conditions)) for batch in batches)
    runner.reporter.expect(name, runs, stage.steps)
    runner.run(plan, batches)


def wait(stage, conditions: list, journal: Journal, failed: dict[str, dict]) -> None:
    """Waits until the other shards have recorded theirs, those which had `failed` before once more."""
    keys = hashes(stage, conditions)
    waiting = lambda: sum(journal.records.get(key) == failed.get(key) for key in keys)  # noqa: E731
    journal.refresh()
    if waiting():
        print(f"waiting for {waiting()} runs of other shards", flush=True)
    while waiting():
        time.sleep(POLL)
        journal.refresh()


def failed_before(journal: Journal) -> dict[str, dict]:
    """The records of runs that failed and are tried again."""
    return {key: record for key, record in journal.records.items() if "error" in record}


def choose(work: Work, selection, groups: list[dict], seeds: int, journal: Journal) -> list:
    """The runs to report, seed by seed: of each group the candidate whose trial was best.

    **Arguments:** `groups`: trials that were recorded by `selection`, with the condition that each stands for; one
    trial is no choice and need not have been run.
    """
    best = [_best(work, selection, trials, journal) for trials in groups]
    return [replace(condition, seed=seed) for seed in range(seeds) for condition in best]


def _best(work: Work, selection, trials: dict, journal: Journal):
    if len(trials) == 1:
        return next(iter(trials.values()))
    records = {trial: journal.records[key] for key, trial in hashes(selection, trials).items()}
    scores = {trial: work.score(record) for trial, record in records.items() if "error" not in record}
    return trials[max(scores, key=scores.get, default=next(iter(trials)))]


def complete(work: Work, stages: tuple, groups: list[dict], journal: Journal) -> list[str]:
    """Runs the trials that choose and the runs to report, as far as they are not finished.

    **Returns:** the hashes of the runs to report; none from shards that leave the report to the first.
    """
    selection, reported = stages
    (index, count), seeds = parse_shard(reported.options.shard), reported.options.seeds
    trials = [trial for group in groups if len(group) > 1 for trial in group]
    failed = failed_before(journal)
    with Reporter() as reporter:
        runner = Runner(journal, reporter)
        reporter.expect("training", len(groups) * seeds // count, reported.steps)
        train(work, selection, trials, runner, "selection")
        wait(selection, trials, journal, failed)
        runs = choose(work, selection, groups, seeds, journal)
        train(work, reported, runs, runner)
    if index > 1:
        print(f"shard {index} of {count} is done; the first reports")
        return []
    wait(reported, runs, journal, failed)
    journal.write_results()
    return finished(hashes(reported, runs), journal)


def finished(keys: Iterable[str], journal: Journal) -> list[str]:
    """The runs that have ended well, and a word on the others; on different states of the code too.

    **Raises:** SystemExit if none has.
    """
    keys = list(keys)
    failed = failures(journal, keys)
    if failed:
        told = "\n".join(failed)
        print(
            f"error: {len(failed)} of {len(keys)} runs failed; they are tried again next time\n{told}", file=sys.stderr
        )
    keys = [key for key in keys if "error" not in journal.records[key]]
    if failed and not keys:
        raise SystemExit(1)
    states = provenance.revisions([journal.records[key] for key in keys])
    if len(states) > 1:
        print(f"note: these runs were made by different states of the code: {', '.join(states)}")
    return keys


def _lines(work: Work, stage, group: list, records: list[dict]) -> list[str]:
    """A line a run; for a group that chooses, one for all and one for each that diverged."""
    lines = [
        f"{work.describe(stage, c)}: {_outcome(work, stage, record)}" for c, record in zip(group, records, strict=True)
    ]
    if stage.measured_on == "test" or len(group) == 1:
        return lines
    diverged = [line for line in lines if "diverged" in line or "failed" in line]
    return [f"{len(group)} runs to choose learning rates, up to {work.describe(stage, group[-1])}", *diverged]


def _outcome(work: Work, stage, record: dict) -> str:
    if "error" in record:
        return f"failed: {record['error']}"
    values = {row["metric"]: row["value"] for row in record["rows"]}
    if values["diverged"]:
        lost = [row["step"] for row in record["rows"] if row["metric"].endswith("loss") and row["value"] is None]
        return "diverged" + (f" by step {lost[0]}" if lost else "") + "; recorded as such"
    return f"{work.outcome(stage, values)} ({format_seconds(record['wall_s'])})"
