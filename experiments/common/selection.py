"""How runs are chosen, trained and recorded: trials with a seed of their own choose what every seed is then run of."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Protocol

import pandas as pd

from cetsim import sweep
from experiments.common import tables
from experiments.common.checks import UserError
from experiments.common.conditions import Condition
from experiments.common.options import Sweep


class Course(Protocol):
    """Runs of one length, measured on `"validation"` to choose, or on `"test"` to be reported."""

    def training(self, **static) -> sweep.Training:
        """How conditions that agree in what is compiled in are trained, and what is measured of them."""

    def config(self) -> Any:
        """A dataclass of all that runs depend on besides their conditions."""

    def columns(self, condition: Condition) -> dict:
        """What rows of a run say besides its condition."""


def complete(
    options: Sweep,
    groups: Sequence[Sequence[Condition]],
    courses: Mapping[str, Course],
    *,
    static: tuple[str, ...],
    score: Callable[[dict], Any],
    describe: Callable[[Condition], str],
    trial: Callable[[Condition], Condition] = lambda condition: condition,
) -> pd.DataFrame | None:
    """Runs the trials that choose and the runs to report, as far as they are not finished.

    **Arguments:**

    - `options`: of the experiment.
    - `groups`: candidates, of each group of which the best is reported; one candidate is no choice and has no trial.
    - `courses`: by what runs are measured on, `"validation"` and `"test"`.
    - `static`: fields of a condition that are compiled in.
    - `score`: of final values by metric, what a trial is chosen by: the larger the better.
    - `describe`: of a condition, in words.
    - `trial`: of a condition, the one whose run stands for it in the choice, such as one of another delay.

    **Returns:** the tidy rows of the runs to report; None in shards that leave the report to the first.

    **Raises:** UserError for a folder that others use, or that holds unfinished runs of other options. SystemExit of
    status 1 if no run has ended well, of 130 or 143 when interrupted.
    """

    def train(runs, measured_on, **how):
        course, chooses = courses[measured_on], measured_on == "validation"
        which = lambda one: f"learning rate {one.learning_rate:g}" if chooses else f"seed {one.seed}"  # noqa: E731
        how |= dict(batch=options.batch_conditions, shard=options.shard, static=static)
        how |= dict(config=course.config(), columns=course.columns, stage="selection" if chooses else "training")
        with users_errors():
            words = lambda one: f"{describe(one)}, {which(one)}"  # noqa: E731
            return sweep.run(options.folder, runs, course.training, describe=words, **how)

    index, count = map(int, options.shard.split("/"))
    standing = lambda candidate: replace(trial(candidate), seed=options.selection_seed)  # noqa: E731
    tried = [[standing(candidate) for candidate in group] for group in groups]
    trials, best = list(dict.fromkeys(one for group in tried if len(group) > 1 for one in group)), [0] * len(groups)
    if trials:
        records = train(trials, "validation", wait=True, fresh=options.fresh).records
        # A table leaves defaults out, so that records which are read from one are told their conditions again.
        pairs = zip(records.items(), trials, strict=True)
        told = {run: record | {"columns": asdict(trial)} for (run, record), trial in pairs}
        best = sweep.choose(sweep.Table(told), tried, score)
    chosen = [group[i] for group, i in zip(groups, best, strict=True)]
    runs = list(dict.fromkeys(replace(one, seed=seed) for seed in range(options.seeds) for one in chosen))
    table = train(runs, "test", wait=index == 1, fresh=options.fresh and not trials)
    if index > 1:
        print(f"shard {index} of {count} is done; the first reports")
        return None
    tables.write(options.folder)
    return reported(table)


def reported(table: sweep.Table) -> pd.DataFrame:
    """Tidy rows of the runs that have ended well, and a word where the code has changed in between.

    **Raises:** SystemExit if none has.
    """
    records = {run: record for run, record in table.records.items() if "error" not in record}
    if not records:
        raise SystemExit(1)
    states = [record.get("git") or {"revision": "unknown", "dirty": False} for record in records.values()]
    states = {state["revision"][:10] + (" with changes" if state["dirty"] else ""): None for state in states}
    if len(states) > 1:
        print(f"note: these runs were made by different states of the code: {', '.join(states)}")
    rows = tables.tidy(table.rows)
    return rows[rows["run"].isin(records)]


@contextmanager
def users_errors() -> Iterator[None]:
    """What the library refuses here is the user's to put right; what it warns of is printed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        except (ValueError, ImportError, BlockingIOError) as error:
            raise UserError(str(error)) from error
        finally:
            for warning in caught:
                print(f"warning: {warning.message}", file=sys.stderr)
