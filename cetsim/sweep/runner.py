"""The loop of a sweep: batch after batch, each from where it was left, so that nothing is lost when it ends halfway.

A batch is recorded when all its conditions are done; until then checkpoints hold it. Nothing that comes out depends on
when they were made, on the clock or on what else ran.
"""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from cetsim import checks
from cetsim.sweep import provenance
from cetsim.sweep.checkpoint import Checkpoints
from cetsim.sweep.files import SCHEMA, digest
from cetsim.sweep.grid import Batch
from cetsim.sweep.interrupts import Interrupts, graceful
from cetsim.sweep.progress import Reporter
from cetsim.sweep.records import Records

CHECKPOINTS = "checkpoints"  # folder, beside the records
GONE = ".gone"  # ending of a folder in it that is being removed
EVERY = 60.0  # seconds of training between two checkpoints, at least
SHARE = 50  # times as long as a checkpoint takes is trained before the next, at least


class Plan(NamedTuple):
    """What is trained, and how it is named and reported.

    **Fields:** all but the last two are functions of a condition.

    - `config`: all that its run depends on, as JSON; its digest names the run.
    - `columns`: what its rows share.
    - `describe`: it in words.
    - `outcome`: of its record instead, what is said when it is done.
    - `program`: of it and the width of a batch, what trains: see `cetsim.sweep.training.Trainer`.
    - `steps`: of a run, in the unit in which progress is counted.
    """

    config: Callable[[Any], dict]
    columns: Callable[[Any], dict]
    describe: Callable[[Any], str]
    outcome: Callable[[dict], str]
    program: Callable[[Any, int], Any]
    steps: int

    def key(self, condition) -> str:
        """The name of the condition's run."""
        return digest(self.config(condition))


class Interrupted(SystemExit):
    """A sweep stopped because SIGINT or SIGTERM came; all is written. **Attributes:** `code`: 130 or 143."""


class Infeasible(ValueError):
    """What was asked for cannot be trained at all, whichever condition it is: the sweep stops and says so."""


class _Failed(Exception):
    """Training failed for a reason of its own, not of the sweep's."""


class Runner:
    """Runs the batches of a plan into records.

    **Arguments:**

    - `records`: of a folder that is this process's, or its shards'.
    - `every`: seconds of training between two checkpoints at least; they are made between chunks, and as rarely as
      keeps their cost below 1/50.
    - `stage`: names the folder of checkpoints.
    """

    def __init__(self, plan: Plan, records: Records, every: float = EVERY, stage: str = "training"):
        checks.require_at_least("checkpoint_every", every, 0.0)
        self.plan, self.records, self.every = plan, records, every
        self.checkpoints = records.folder / CHECKPOINTS / stage  # of unfinished batches
        self._made: tuple = None, None  # the program compiled last, and for what

    def unfinished(self, batch: Batch) -> list:
        """The conditions that are not recorded yet, or whose training failed when it was last tried."""
        known = self.records.records
        return [c for c in batch.conditions if "error" in known.get(self.plan.key(c), {"error": "absent"})]

    def run(self, batches: list[Batch]) -> None:
        """Trains what is unfinished of the batches.

        **Raises:** Interrupted if the process was asked to end; OSError if a file cannot be written.
        """
        runs = sum(len(self.unfinished(batch)) for batch in batches)
        with Reporter(runs, self.plan.steps) as self._reporter, graceful() as asked:
            for batch in batches:
                todo = self.unfinished(batch)
                failed = bool(todo) and all(self.plan.key(condition) in self.records.records for condition in todo)
                for part in [[condition] for condition in todo] if failed else [todo] * bool(todo):
                    self._run(batch, part, failed or len(batch.conditions) == 1, asked)
                if not todo:  # who recorded them may have been killed before their checkpoints were removed
                    for slots in (batch.conditions, *zip(batch.conditions, strict=True)):
                        _remove(self._checkpoints_of(batch, list(slots))[1].folder)
                stop_if(asked)
        for folder in (self.checkpoints, self.checkpoints.parent):
            with suppress(OSError):  # others are using it, or it is not there
                folder.rmdir()

    def _checkpoints_of(self, batch: Batch, slots: list) -> tuple[list, Checkpoints]:
        """The slots with those that are left over filled, and the checkpoints of what is trained in them."""
        slots = slots + slots[:1] * (batch.width - len(slots))
        config = {"slots": [self.plan.config(condition) for condition in slots]}
        return slots, Checkpoints(self.checkpoints / digest(config), config)

    def _run(self, batch: Batch, todo: list, alone: bool, asked: Interrupts) -> None:
        """Trains conditions and records them; one by one if they fail together, since the fault may be of one.

        Unless one is trained `alone`, those that are done are too, so that numbers and checkpoints are the batch's.
        """
        slots, checkpoints = self._checkpoints_of(batch, todo if alone else list(batch.conditions))
        rows, seconds, error = [[] for _ in slots], 0.0, None
        try:
            rows, seconds = self._train(batch, todo, slots, checkpoints, asked)
        except _Failed as failure:
            error = str(failure)
        if error is None or alone:
            self._record(batch, todo, [rows[slots.index(each)] for each in todo], seconds, error)
        _remove(checkpoints.folder)
        if error is not None and not alone:
            for condition in todo:
                self._run(batch, [condition], True, asked)
                stop_if(asked)

    def _train(self, batch, todo, slots, checkpoints: Checkpoints, asked) -> tuple[list[list[dict]], float]:
        """The rows of each slot, and the seconds that training took, those before an interruption too."""
        more = f" and {len(todo) - 1} more" if len(todo) > 1 else ""
        what, work = self.plan.describe(todo[0]) + more, self.plan.steps * len(todo)
        self._reporter.working_on(what, len(todo))
        began, before = time.monotonic(), 0.0
        with _failing():
            if self._made[0] != (batch.group, batch.width):
                self._made = (batch.group, batch.width), self.plan.program(slots[0], batch.width)
            program = self._made[1]
            state = program.begin(slots)
            like, _ = program.save(state)
        rows, step, last = [[] for _ in slots], 0, program.ends[-1]
        if (found := checkpoints.latest(like)) is not None:
            with _failing():
                state = program.restore(found.tree, found.notes["program"])
            step, rows, before = found.step, found.notes["rows"], found.notes["seconds"]
            self._reporter.advance(work * step / last, timed=False)
        saved, cost = time.monotonic(), 0.0
        for start, end in itertools.pairwise((0, *program.ends)):
            if end <= step:
                continue
            asked.work = f"steps {start} to {end} of {what}"
            with _failing():
                state, new = program.advance(state, slots, start, end)
            rows = [old + added for old, added in zip(rows, new, strict=True)]
            self._reporter.advance(work * (end - start) / last, _latest(rows[0]))
            now = time.monotonic()
            if end < last and (now - saved >= max(self.every, SHARE * cost) or asked.requested is not None):
                with _failing():
                    tree, notes = program.save(state)
                checkpoints.save(end, tree, {"rows": rows, "seconds": before + now - began, "program": notes})
                saved = time.monotonic()
                cost = saved - now if self.every else 0.0
                stop_if(asked)
        return rows, before + time.monotonic() - began

    def _record(self, batch: Batch, todo: list, rows: list[list[dict]], seconds: float, error: str | None) -> None:
        plan, wall, records = self.plan, round(seconds / len(todo), 3), []
        together = {"width": batch.width, "of": [plan.key(condition) for condition in batch.conditions]}
        for condition, measured in zip(todo, rows, strict=True):
            step = next((row["step"] for row in reversed(measured) if "step" in row), 0)
            end = [{"metric": "wall_s", "step": step, "value": wall}]
            end += [] if error is None else [{"metric": "failed", "step": step, "value": 1.0}]
            record = {
                "schema": SCHEMA,
                "hash": plan.key(condition),
                "config": plan.config(condition),
                "wall_s": wall,
                "finished": provenance.now(),
                "batch": together | {"slot": batch.conditions.index(condition)},
                "columns": plan.columns(condition),
                "rows": measured + end,
            }
            records.append(record | ({} if error is None else {"error": error}) | self._described)
        self.records.add(records)
        told = [(plan.describe(c), plan.outcome(record)) for c, record in zip(todo, records, strict=True)]
        self._reporter.finished(len(todo), [f"{what}: {outcome}" for what, outcome in told if outcome])

    @functools.cached_property
    def _described(self) -> dict:
        return provenance.describe()


def _remove(folder: Path) -> None:
    """Removes a folder of checkpoints, at once: a part of them would be a batch left in the midst."""
    gone = folder.with_suffix(GONE)
    with suppress(OSError):  # there is none
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _failing() -> Iterator[None]:
    """Within it, whatever goes wrong is training's fault."""
    try:
        yield
    except Infeasible:
        raise
    except Exception as error:
        raise _Failed(f"{type(error).__name__}: {error}") from error


def stop_if(asked: Interrupts) -> None:
    """Raises Interrupted if the process was asked to end."""
    if asked.requested is not None:
        raise Interrupted(asked.status)


def _latest(rows: list[dict]) -> str:
    """The metric measured last, in words."""
    told = [row for row in rows if row["value"] is not None and row["metric"] != "diverged" and not row.get("layer")]
    return f"{told[-1]['metric'].replace('_', ' ')} {told[-1]['value']:.3g}" if told else ""
