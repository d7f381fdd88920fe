"""The loop of a sweep: batch after batch, each from where it was left, so that nothing is lost when it ends halfway.

What is trained is a `Program`; how conditions are named, recorded and told of is a `Plan`. A batch is recorded when all
its conditions are done; until then checkpoints hold it. Nothing that comes out depends on when they were made, on the
clock or on what else ran.
"""

import abc
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

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


class Program(abc.ABC):
    """Trains the conditions of a batch side by side, a slot each.

    **Attributes:** `ends`: steps after which the host evaluates, ascending; the last is the end of the run.
    """

    ends: Sequence[int]

    @abc.abstractmethod
    def begin(self, slots: list) -> Any:
        """The state before the first step, of a condition in each slot; several slots may have the same."""

    @abc.abstractmethod
    def advance(self, state: Any, slots: list, start: int, end: int) -> tuple[Any, list[list[dict]]]:
        """The state after the steps from `start` to `end`, and for each slot the rows of what was measured.

        A row is a dict of `metric`, `step`, `value`, a number or None, and what else sets it apart.
        """

    def save(self, state: Any) -> tuple[PyTree, dict]:
        """The state as a tree of arrays and keys, and as JSON what does not fit one."""
        return state, {}

    def restore(self, tree: PyTree, notes: dict) -> Any:
        """The state that was saved."""
        return tree


class Plan(NamedTuple):
    """What is trained, and how it is named and reported.

    **Fields:**

    - `config`: of a condition, all that its run depends on, as JSON; its digest names the run.
    - `columns`: of a condition, what its rows share.
    - `program`: of a condition of the batch and a width.
    - `describe`: of a condition, in words.
    - `lines`: of conditions and their records, what is said when they are done.
    - `steps`: of a run, in the unit in which progress is counted.
    """

    config: Callable[[Any], dict]
    columns: Callable[[Any], dict]
    program: Callable[[Any, int], Program]
    describe: Callable[[Any], str]
    lines: Callable[[list, list[dict]], list[str]]
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
    """Runs batches into the records of a folder.

    **Arguments:**

    - `records`: of a folder that is this process's, or its shards'.
    - `reporter`: of progress.
    - `every`: seconds of training between two checkpoints at least; they are made between chunks, and as rarely as
      keeps their cost below 1/50.
    - `stage`: names the folder of checkpoints.
    """

    def __init__(self, records: Records, reporter: Reporter, every: float = EVERY, stage: str = "training"):
        checks.require_at_least("checkpoint_every", every, 0.0)
        self.records, self.reporter, self.every = records, reporter, every
        self.checkpoints = records.folder / CHECKPOINTS / stage  # of unfinished batches
        self._made: tuple = None, None  # the program compiled last, and for what

    def unfinished(self, plan: Plan, conditions: Sequence) -> list:
        """The conditions that are not recorded yet, or whose training failed when it was last tried."""
        return [c for c in conditions if "error" in self.records.records.get(plan.key(c), {"error": "absent"})]

    def run(self, plan: Plan, batches: list[Batch]) -> None:
        """Trains what is unfinished of the batches.

        **Raises:** Interrupted if the process was asked to end; OSError if a file cannot be written.
        """
        self.tidy()
        with graceful() as asked:
            for batch in batches:
                todo = self.unfinished(plan, batch.conditions)
                failed = todo and all(plan.key(condition) in self.records.records for condition in todo)
                for part in [[condition] for condition in todo] if failed else [todo] * bool(todo):
                    self._run(Job(plan, batch, part, alone=bool(failed)), asked)
                stop_if(asked)
        self.tidy()
        for folder in (self.checkpoints, self.checkpoints.parent):
            with suppress(OSError):  # others are using it, or it is not there
                folder.rmdir()

    def _run(self, job: "Job", asked: Interrupts) -> None:
        """Trains conditions and records them; one by one if they fail together, since the fault may be of one."""
        checkpoints = Checkpoints(self.checkpoints / digest(job.config), job.config)
        rows, seconds, error = [[]], 0.0, None
        try:
            rows, seconds = self._train(job, checkpoints, asked)
        except _Failed as failure:
            error = str(failure)
        alone = job.alone or len(job.batch.conditions) == 1
        if error is None or alone:
            self._record(job, rows, seconds, error)
        self._remove(checkpoints.folder)
        if error is not None and not alone:
            for condition in job.todo:
                self._run(job._replace(todo=[condition], alone=True), asked)
                stop_if(asked)

    def tidy(self) -> None:
        """Removes checkpoints whose runs are all recorded: who recorded them was killed before it did, or meanwhile."""
        for folder in sorted(self.checkpoints.glob("*")):
            with suppress(OSError, ValueError):  # others are using it, or a newer cetsim wrote it
                slots = (Checkpoints(folder, {}).saved_config() or {"slots": []})["slots"]
                found = [self.records.records.get(digest(config), {"error": "absent"}) for config in slots]
                if folder.suffix == GONE or (found and not any("error" in record for record in found)):
                    self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Removes a folder of checkpoints, at once: a part of them would be a batch left in the midst."""
        gone = folder.with_suffix(GONE)
        with suppress(OSError):  # there is none
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _train(self, job: "Job", checkpoints: Checkpoints, asked: Interrupts) -> tuple[list[list[dict]], float]:
        """The rows of each condition, and the seconds that training took, those before an interruption too."""
        slots, before, began = job.slots, 0.0, time.monotonic()
        self.reporter.working_on(job.description, len(job.todo))
        with _failing():
            program = self._program(job)
            state = program.begin(slots)
            like, _ = program.save(state)
        rows: list[list[dict]] = [[] for _ in slots]
        found, step = checkpoints.latest(like), 0
        if found is not None:
            with _failing():
                state = program.restore(found.tree, found.notes["program"])
            step, rows, before = found.step, found.notes["rows"], found.notes["seconds"]
            self.reporter.skip(job.progress(step / program.ends[-1]))
        pace = _Pace(self.every)
        for start, end in itertools.pairwise((0, *program.ends)):
            if end <= step:
                continue
            asked.work = f"steps {start} to {end} of {job.description}"
            with _failing():
                state, new = program.advance(state, slots, start, end)
            rows = [old + added for old, added in zip(rows, new, strict=True)]
            self.reporter.advance(job.progress((end - start) / program.ends[-1]), _latest(rows[0]))
            if end < program.ends[-1] and (pace.is_due() or asked.requested is not None):
                with pace.saving():
                    with _failing():
                        tree, notes = program.save(state)
                    seconds = before + time.monotonic() - began
                    checkpoints.save(end, tree, {"rows": rows, "seconds": seconds, "program": notes})
                stop_if(asked)
        return [rows[slots.index(each)] for each in job.todo], before + time.monotonic() - began

    def _program(self, job: "Job") -> Program:
        """The batch's program, that of the batch before if it is the same."""
        made_for, program = self._made
        wanted = job.plan, job.batch.group, job.batch.width
        if made_for != wanted:
            program = job.plan.program(job.slots[0], job.batch.width)
            self._made = wanted, program
        return program

    def _record(self, job: "Job", rows: list[list[dict]], seconds: float, error: str | None) -> None:
        plan, batch, wall, origin = job.plan, job.batch, round(seconds / len(job.todo), 3), self._described
        together = {"width": batch.width, "of": [plan.key(condition) for condition in batch.conditions]}
        records = []
        for condition, measured in zip(job.todo, rows, strict=True):
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
            records.append(record | ({} if error is None else {"error": error}) | origin)
        self.records.add(records)
        self.reporter.finished(len(job.todo), plan.lines(job.todo, records))

    @functools.cached_property
    def _described(self) -> dict:
        return provenance.describe()


class Job(NamedTuple):
    """What is still to be trained of a batch."""

    plan: Plan
    batch: Batch
    todo: list
    alone: bool  # a single condition, whose neighbours may have failed

    @property
    def slots(self) -> list:
        """A condition for each slot, those that are done too, so that numbers and checkpoints are the batch's."""
        slots = self.todo if self.alone else list(self.batch.conditions)
        return slots + slots[:1] * (self.batch.width - len(slots))

    @property
    def config(self) -> dict:
        """All that the numbers depend on."""
        return {"slots": [self.plan.config(condition) for condition in self.slots]}

    @property
    def description(self) -> str:
        """What is trained, in words."""
        more = f" and {len(self.todo) - 1} more" if len(self.todo) > 1 else ""
        return self.plan.describe(self.todo[0]) + more

    def progress(self, part: float) -> float:
        """Steps of training that a part of it is."""
        return part * self.plan.steps * len(self.todo)


class _Pace:
    """When the next checkpoint is due."""

    def __init__(self, every: float):
        self._every, self._cost, self._last = every, 0.0, time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._last >= max(self._every, SHARE * self._cost)

    @contextmanager
    def saving(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - began if self._every else 0.0


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
    for row in reversed(rows):
        if row["value"] is not None and row["metric"] != "diverged" and not row.get("layer"):
            return f"{row['metric'].replace('_', ' ')} {row['value']:.3g}"
    return ""
