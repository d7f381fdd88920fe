"""How runs are chosen, trained and recorded: trials with a seed of their own choose what every seed is then run of."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cetsim import sweep
from experiments.common import tables
from experiments.common.checks import UserError
from experiments.common.conditions import RECORDED, WITHOUT_DELAY, Condition, changed, from_record, recorded
from experiments.common.options import Sweep


class Course:
    """Runs of one length, measured on `"validation"` to choose, or on `"test"` to be reported.

    Those of images and of control have besides:

    - `static`: fields of a condition that are compiled in; `network`: its name.
    - `training(**static)`: how conditions that agree there are trained, and what is measured of them.
    - `config()`: a dataclass of all that runs depend on besides their conditions.
    - `score(values)`: what a trial is chosen by, of its final values by metric: the larger the better.
    """

    static: tuple[str, ...] = ()
    network = ""

    def __init__(self, options: Sweep, measured_on: str):
        self.options, self.measured_on = options, measured_on

    def columns(self, condition: Condition) -> dict:
        """What rows of a run say besides its condition."""
        scenario = "retrograde" if condition.layers else "behavioral"
        named = {"scenario": "none" if condition.trace in WITHOUT_DELAY else scenario, "network": self.network}
        options = self.options
        return named | {"experiment": options.name, "dataset": options.dataset, "form": options.form}


def complete(courses: Mapping[str, Course], groups: Sequence[Sequence[Condition]]) -> pd.DataFrame | None:
    """Runs the trials that choose and the runs to report, as far as they are not finished.

    **Arguments:** `courses`: by what runs are measured on, `"validation"` and `"test"`. `groups`: candidates, of each
    group of which the best is reported; one candidate is no choice and has no trial.

    **Returns:** the tidy rows of the runs to report; None in shards that leave the report to the first.

    **Raises:** UserError for a folder that others use, or that holds unfinished runs of other options. SystemExit of
    status 1 if no run has ended well, of 130 or 143 when interrupted.
    """
    options = courses["test"].options
    shared, first = dict(batch=options.batch_conditions, shard=options.shard), options.shard.startswith("1/")
    standing = [[at_selection_delay(options, one) for one in group] for group in groups]
    tried = [[replace(one, seed=options.selection_seed) for one in group] for group in standing]
    trials, best = list(dict.fromkeys(one for group in tried if len(group) > 1 for one in group)), [0] * len(groups)
    if trials:
        choosing = dict(stage="selection", wait=True, fresh=options.fresh)
        records = train(courses["validation"], trials, **choosing, **shared).records
        # A table leaves defaults out, so that records which are read from one are told their conditions again.
        pairs = zip(records.items(), trials, strict=True)
        whole = {run: record | {"columns": asdict(trial)} for (run, record), trial in pairs}
        best = sweep.choose(sweep.Table(whole), tried, courses["validation"].score)
    chosen = [group[i] for group, i in zip(groups, best, strict=True)]
    runs = list(dict.fromkeys(replace(one, seed=seed) for seed in range(options.seeds) for one in chosen))
    table = train(courses["test"], runs, wait=first, fresh=options.fresh and not trials, **shared)
    if not first:
        print(f"shard {options.shard.replace('/', ' of ')} is done; the first reports")
        return None
    return reported(table, options)


def train(course: Course, runs: Sequence[Condition], folder: Path | None = None, **how) -> sweep.Table:
    """A sweep of runs of a course, in the folder of its experiment; the rest as of `sweep.run`."""

    def training(**static):
        made = course.training(**{name: static[RECORDED.get(name, name)] for name in course.static})
        return made._replace(hyperparameters=lambda columns: made.hyperparameters(from_record(columns)))

    how |= dict(config=course.config(), defaults=recorded(Condition()))
    how |= dict(static=[RECORDED.get(name, name) for name in course.static])
    how |= dict(columns=lambda columns: course.columns(from_record(columns)))
    how |= dict(describe=lambda columns: describe(from_record(columns)))
    with users_errors():
        return sweep.run(folder or course.options.folder, map(recorded, runs), training, **how)


def at_selection_delay(options: Sweep, condition: Condition) -> Condition:
    """The condition at the delay at which it is chosen, its trace in proportion."""
    delay = getattr(options, "selection_delay", None)
    if delay is None or condition.trace in WITHOUT_DELAY:
        return condition
    return replace(condition, delay_s=delay, peak_s=round(condition.peak_s * delay / condition.delay_s, 9))


def describe(condition: Condition) -> str:
    """A condition in words: its trace, delay, all that is special, and its learning rate and seed."""
    special = changed(replace(condition, peak_s=0.0) if condition.peak_s == condition.delay_s else condition)
    late = f" at {condition.delay_s:g} s" if condition.delay_s else ""
    names = [name for name in special if name not in ("trace", "order", "delay_s", "seed", "learning_rate", "layers")]
    words = [f"{name.removesuffix('_s').replace('_', ' ')} {special[name]}" for name in names]
    words += [f"learning rate {condition.learning_rate:g}", f"seed {condition.seed}"]
    return ", ".join([tables.label(condition.trace, condition.order) + late, *words])


def reported(table: sweep.Table, options: Any) -> pd.DataFrame:
    """Writes the table of an experiment; tidy rows of these runs, and a word where the code has changed in between.

    **Raises:** SystemExit if none has ended well.
    """
    tables.write(options.folder)
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
