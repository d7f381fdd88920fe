"""The loop of a sweep: batch after batch, each from where it was left, so that nothing is lost when it ends halfway.

A batch is recorded when all its conditions are done; until then checkpoints hold it. Nothing that comes out depends on
when they were made, on the clock or on what else ran.
"""

import contextlib
import gc
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax

from cetsim import checks
from cetsim.sweep import checkpoint, provenance
from cetsim.sweep.grid import Run, digest
from cetsim.sweep.interrupts import graceful
from cetsim.sweep.progress import Reporter, format_seconds
from cetsim.sweep.records import CHECKPOINTS, SCHEMA, Records
from cetsim.sweep.table import final_values

EVERY = 60.0  # seconds of training between two checkpoints, at least
MAPS = 20_000  # pieces of memory mapped: a process may have 65,530 on Linux, and a program of control takes up to 2,000
SHARE = 50  # times as long as a checkpoint takes is trained before the next, at least


class Infeasible(ValueError):
    """What was asked for cannot be trained at all, whichever condition it is: the sweep stops and says so."""


class _Failed(Exception):
    """Training failed for a reason of its own, not of the sweep's."""


class Runner:
    """Trains batches into records.

    **Arguments:**

    - `program`: of a run and the width of a batch, what trains it: see `cetsim.sweep.training.Trainer`.
    - `records`: of a folder that is this process's, or its shards'.
    - `every`: seconds of training between two checkpoints at least, which are as rare as keeps their cost below 1/50.
    - `stage`: names the folder of checkpoints.
    """

    def __init__(self, program: Callable, records: Records, every: float = EVERY, stage: str = "training"):
        checks.require_at_least("checkpoint_every", every, 0.0)
        self.program, self.records, self.every = program, records, every
        self.checkpoints = records.folder / CHECKPOINTS / stage  # of unfinished batches
        self._made: tuple = None, None  # the program compiled last, and for what

    def unfinished(self, runs: list[Run]) -> list[Run]:
        """The runs that are not recorded yet, or whose training failed when it was last tried."""
        return [run for run in runs if "error" in self.records.records.get(run.key, {"error": "absent"})]

    def run(self, batches: list[tuple[list[Run], int]]) -> None:
        """Trains what is unfinished of batches, each of so many slots.

        **Raises:** Interrupted if the process was asked to end; OSError if a file cannot be written.
        """
        todo, self._provenance = self.unfinished([run for runs, _ in batches for run in runs]), provenance.describe()
        with Reporter(len(todo), sum(run.training.steps for run in todo)) as self._reporter, graceful() as self._asked:
            for runs, width in batches:
                self._finish(runs, width)
                self._asked.stop_if_requested()
        for folder in (self.checkpoints, self.checkpoints.parent):
            with contextlib.suppress(OSError):  # others are using it, or it is not there
                folder.rmdir()

    def _finish(self, runs: list[Run], width: int) -> None:
        """Trains and records what is unfinished: together, or one by one if that failed, since the fault may be of one.

        In the slots of those that are done they are trained too, so that numbers and checkpoints are the batch's.
        """
        todo, batch = self.unfinished(runs), {"width": width, "of": [run.key for run in runs]}
        if len(runs) > 1 and any(run.key not in self.records.records for run in todo):
            with contextlib.suppress(_Failed):
                self._record(batch, todo, *self._train(todo, runs, width))
                todo = []
        for run in todo:
            try:
                self._record(batch, [run], *self._train([run], [run], width))
            except _Failed as failure:
                self._record(batch, [run], [[]], 0.0, str(failure))
            self._asked.stop_if_requested()
        for together in (runs, *([run] for run in runs)):
            shutil.rmtree(self._slots(together, width)[1], ignore_errors=True)

    def _slots(self, runs: list[Run], width: int) -> tuple[list[Run], Path]:
        """The runs, the first in all slots that are left over, and the folder of their checkpoints."""
        slots = runs + runs[:1] * (width - len(runs))
        return slots, self.checkpoints / digest({"slots": [run.config for run in slots]})

    def _train(self, todo: list[Run], runs: list[Run], width: int) -> tuple[list[list[dict]], float]:
        """The rows of what is to be done, and the seconds that training took, those before an interruption too."""
        slots, folder = self._slots(runs, width)
        what = todo[0].words + (f" and {len(todo) - 1} more" if len(todo) > 1 else "")
        self._reporter.working_on(what, len(todo))
        began, before, step, rows = time.monotonic(), 0.0, 0, [[] for _ in slots]
        if self._made[0] != (slots[0].group, width):
            self._made = None, None
            free_programs()
            self._made = (slots[0].group, width), _attempt(self.program, slots[0], width)
        program = self._made[1]
        state = _attempt(program.begin, [run.condition for run in slots])
        like, _ = _attempt(program.save, state)
        if (found := checkpoint.latest(folder, like)) is not None:
            step, tree, notes = found
            rows, before = notes["rows"], notes["seconds"]
            state = _attempt(program.restore, tree, notes["program"])
            self._reporter.working_on(what, len(todo), step * len(todo))
        saved, cost = time.monotonic(), 0.0
        for start, end in itertools.pairwise((0, *program.ends)):
            if end <= step:
                continue
            self._asked.work = f"steps {start} to {end} of {what}"
            state, new = _attempt(program.advance, state, start, end)
            rows = [old + added for old, added in zip(rows, new, strict=True)]
            self._reporter.advance((end - start) * len(todo), f"{what}, {_in_words(rows[0])}")
            now = time.monotonic()
            due = now - saved >= (max(self.every, SHARE * cost) if self.every else 0.0)
            if end < program.ends[-1] and (due or self._asked.requested is not None):
                tree, notes = _attempt(program.save, state)
                notes = {"rows": rows, "seconds": before + now - began, "program": notes}
                checkpoint.save(folder, end, tree, notes | {"slots": [run.config for run in slots]})
                saved = time.monotonic()
                cost = saved - now
                self._asked.stop_if_requested()
        keys = [run.key for run in slots]
        return [rows[keys.index(run.key)] for run in todo], before + time.monotonic() - began

    def _record(self, batch: dict, todo: list[Run], rows: list[list[dict]], seconds: float, error=None) -> None:
        wall, records = round(seconds / len(todo), 3), []
        for run, measured in zip(todo, rows, strict=True):
            step = next((row["step"] for row in reversed(measured) if "step" in row), 0)
            end = {"wall_s": wall} | ({} if error is None else {"failed": 1.0})
            record = {"schema": SCHEMA, "hash": run.key, "config": run.config, "wall_s": wall, "columns": run.columns}
            record |= {"finished": provenance.now(), "batch": batch | {"slot": batch["of"].index(run.key)}}
            record["rows"] = measured + [{"metric": n, "step": step, "value": value} for n, value in end.items()]
            records.append(record | ({} if error is None else {"error": error}) | self._provenance)
        self.records.add(records)
        ends = [f"failed: {error}" if error else f"{_in_words(measured)} ({format_seconds(wall)})" for measured in rows]
        self._reporter.finished([f"{run.words}: {end}" for run, end in zip(todo, ends, strict=True)])


def free_programs() -> None:
    """Frees compiled programs, all of which jax keeps, before the process maps more than Linux allows."""
    with contextlib.suppress(OSError):  # without such a file no limit is known
        if Path("/proc/self/maps").read_bytes().count(b"\n") > MAPS:
            jax.clear_caches()
            gc.collect()


def _attempt(function: Callable, *arguments):
    """Calls what is training's: whatever goes wrong in it is its fault."""
    try:
        return function(*arguments)
    except Infeasible:
        raise
    except Exception as error:
        raise _Failed(f"{type(error).__name__}: {error}") from error


def _in_words(rows: list[dict]) -> str:
    """The last values of the first metrics, or that there are none."""
    last = final_values(rows)
    if last.pop("diverged", None):
        return "diverged; recorded as such"
    shown = [f"{name} {value:.4g}" for name, value in last.items() if value is not None]
    return ", ".join(shown[:4]) or "nothing measured"
