"""How runs are chosen, trained and recorded: trials with a seed of their own choose what every seed is then run of."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from cetsim import sweep
from cetsim.sweep import provenance
from experiments.common import tables
from experiments.common.checks import UserError
from experiments.common.conditions import Condition
from experiments.common.options import Sweep


class Stage(NamedTuple):
    """Runs of one length: those that choose, or those reported.

    **Fields:**

    - `training`: what `sweep.run` takes, a function of what is compiled in.
    - `config`: a dataclass of all that runs depend on besides their conditions.
    """

    training: Callable[..., sweep.Training]
    config: Any


class Kind(NamedTuple):
    """How all runs of one kind of experiment are trained and told apart.

    **Fields:**

    - `stage`: of `"validation"` or `"test"`, on which runs are measured.
    - `static`: fields of a condition that are compiled in.
    - `score`: of final values by metric, what a trial is chosen by: the larger the better.
    - `columns`: of a condition, what its rows say besides.
    - `describe`: of a condition, in words.
    - `trial`: of a condition, the one whose run stands for it in the choice, such as one of another delay.
    """

    stage: Callable[[str], Stage]
    static: tuple[str, ...]
    score: Callable[[dict], Any]
    columns: Callable[[Condition], dict]
    describe: Callable[[Condition], str]
    trial: Callable[[Condition], Condition] = lambda condition: condition


def complete(options: Sweep, groups: Sequence[Sequence[Condition]], kind: Kind) -> pd.DataFrame | None:
    """Runs the trials that choose and the runs to report, as far as they are not finished.

    **Arguments:**

    - `options`: of the experiment.
    - `groups`: candidates, of each group of which the best is reported; one candidate is no choice and has no trial.
    - `kind`: see there.

    **Returns:** the tidy rows of the runs to report; None in shards that leave the report to the first.

    **Raises:** UserError for a folder that others use, or that holds unfinished runs of other options. SystemExit of
    status 1 if no run has ended well, of 130 or 143 when interrupted.
    """
    index, count = map(int, options.shard.split("/"))
    trial = lambda candidate: replace(kind.trial(candidate), seed=options.selection_seed)  # noqa: E731
    pairs = [[(trial(candidate), candidate) for candidate in group] for group in groups]
    trials = list(dict.fromkeys(trial for group in pairs if len(group) > 1 for trial, _ in group))
    tried = _sweep(options, trials, kind, "validation", wait=True, fresh=options.fresh) if trials else None
    best = sweep.choose(tried, [[trial for trial, _ in group] for group in pairs], kind.score) if trials else None
    chosen = [group[i][1] for group, i in zip(pairs, best or [0] * len(pairs), strict=True)]
    runs = list(dict.fromkeys(replace(one, seed=seed) for seed in range(options.seeds) for one in chosen))
    table = _sweep(options, runs, kind, "test", wait=index == 1, fresh=options.fresh and not trials)
    if index > 1:
        print(f"shard {index} of {count} is done; the first reports")
        return None
    tables.write(options.folder)
    return reported(table)


def reported(table: sweep.Table) -> pd.DataFrame:
    """Tidy rows of the runs that have ended well, and a word where the code has changed in between.

    **Raises:** SystemExit if none has.
    """
    records = [record for record in table.records.values() if "error" not in record]
    if not records:
        raise SystemExit(1)
    if len(states := provenance.revisions(records)) > 1:
        print(f"note: these runs were made by different states of the code: {', '.join(states)}")
    rows = tables.tidy(table.rows)
    return rows[rows["metric"].notna()]


def _sweep(options: Sweep, runs: list[Condition], kind: Kind, measured_on: str, **how) -> sweep.Table:
    stage, chooses = kind.stage(measured_on), measured_on == "validation"
    which = lambda one: f"learning rate {one.learning_rate:g}" if chooses else f"seed {one.seed}"  # noqa: E731
    with users_errors():
        return sweep.run(
            options.folder,
            runs,
            stage.training,
            static=kind.static,
            config=stage.config,
            columns=kind.columns,
            describe=lambda one: f"{kind.describe(one)}, {which(one)}",
            stage="selection" if chooses else "training",
            batch=options.batch_conditions,
            shard=options.shard,
            **how,
        )


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
