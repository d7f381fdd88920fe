"""A sweep: conditions declared, trained in batches, recorded, and taken up again where it was left."""

import itertools
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from cetsim import checks
from cetsim.sweep import hosts
from cetsim.sweep.files import digest
from cetsim.sweep.grid import entries, in_batches, naming, parse_shard, plain, share, words
from cetsim.sweep.interrupts import graceful
from cetsim.sweep.locks import claimed
from cetsim.sweep.progress import format_seconds
from cetsim.sweep.records import OLD_RUNS, RUNS, TABLE, Records
from cetsim.sweep.runner import CHECKPOINTS, EVERY, Interrupted, Plan, Runner, stop_if
from cetsim.sweep.table import Table, final_values
from cetsim.sweep.training import Trainer, Training

POLL = 0.5  # seconds between two looks at what other shards have recorded


def run(
    folder: str | Path,
    conditions: Iterable,
    training: Training | Callable[..., Training],
    *,
    static: Sequence[str] = (),
    config: Any = None,
    defaults: dict[str, Any] | None = None,
    columns: dict[str, Any] | Callable[[Any], dict] | None = None,
    describe: Callable[[Any], str] = words,
    stage: str = "training",
    batch: int = 16,
    shard: str = "1/1",
    wait: bool = False,
    checkpoint_every: float = EVERY,
    devices: Sequence[jax.Device] | None = None,
    fresh: bool = False,
) -> Table:
    """Trains every condition that is not recorded in `folder` yet, and returns the records of all.

    Started again after an interruption, whatever it was, it goes on from the last checkpoint, and the numbers are those
    of a sweep that was not interrupted.

    **Arguments:**

    - `folder`: of the sweep: `runs` holds what is finished, `checkpoints` what is not.
    - `conditions`: dicts of one set of names, such as `grid(...)` gives, or dataclasses of one kind. `seed`, 0 if there
      is none, gives the key.
    - `training`: what is done with each; a function of the `static` names that returns it where there are any.
    - `static`: names that are compiled in, such as widths: conditions that differ there share no batch.
    - `config`: a dict or dataclass of what results depend on besides, such as the data; it is part of what names a run.
    - `defaults`: values in dicts that do not name a run, as defaults of a dataclass do not.
    - `columns`: what rows of a run have beside its condition, or a function of the condition that gives it.
    - `describe`: of a condition, in words.
    - `stage`: names this part of a folder's work, such as choosing hyperparameters.
    - `batch`: conditions trained side by side at most. They are batched by the conditions and this alone.
    - `shard`: `"i/n"` to be the i-th of n processes that share the folder and the work. Processes joined by
      `initialize` share it by themselves.
    - `wait`: wait for what other shards train, so that the table has all runs.
    - `checkpoint_every`: seconds between two checkpoints, at least.
    - `devices`: over which slots are spread; all of this process by default.
    - `fresh`: remove first what was recorded in the folder, tables of it too.

    **Raises:** ValueError for conditions or a batch that cannot be. BlockingIOError if another process has the folder,
    OSError if it cannot be written. `Interrupted`, a SystemExit of status 130 or 143, when SIGINT or SIGTERM came.
    """
    parse_shard(shard)
    if (joined := hosts.share_of_process()) != "1/1" and shard != "1/1":
        raise ValueError(f"`shard` must be 1/1 in processes that were joined, which share by themselves, got {shard}")
    shard = shard if joined == "1/1" else joined
    if fresh and shard != "1/1":
        raise ValueError(f"`fresh` must be False where processes share a folder, which others use, got {shard}")
    checks.require_whole("batch", batch)
    conditions, folder = list(conditions), Path(folder)
    devices = tuple(jax.local_devices() if devices is None else devices)
    declared = _Declared(conditions, training, tuple(static), config, defaults, columns)
    program = lambda condition, width: Trainer(declared.training(condition), width, devices)  # noqa: E731
    steps = max(declared.training(condition).steps for condition in conditions)
    plan = Plan(declared.config, declared.columns, describe, _outcome, program, steps)
    size, multiple = (1, 1) if declared.training(conditions[0]).on_host else (batch, len(devices))
    batches = share(in_batches(conditions, declared.group, size, multiple), shard)
    with _explaining_interruption(folder), claimed(folder, shard):
        if fresh:
            for name in (RUNS, CHECKPOINTS, OLD_RUNS, f"{OLD_RUNS}.damaged", TABLE):
                shutil.rmtree(folder / name, ignore_errors=True)
                (folder / name).unlink(missing_ok=True)
        records = Records(folder)
        failed = {key: record for key, record in records.records.items() if "error" in record}
        runner, keys = Runner(plan, records, checkpoint_every, stage), [plan.key(condition) for condition in conditions]
        runner.run(batches)
        if shard == "1/1" and (others := len(list(runner.checkpoints.glob("*")))):
            which = (
                "batch that was declared otherwise is" if others == 1 else "batches that were declared otherwise are"
            )
            print(f"note: {others} unfinished {which} left alone", file=sys.stderr)
        hosts.exchange(records, keys)
        if wait:
            _wait(records, keys, failed)
    records.refresh()
    table = Table({key: records.records[key] for key in keys if key in records.records})
    errors = [f"{key}: {record['error']}" for key, record in table.records.items() if "error" in record]
    if errors:
        print(f"error: {len(errors)} runs failed; they are tried again next time", *errors, sep="\n", file=sys.stderr)
    return table


class _Declared:
    """What is trained under each condition, and how that is named; arguments as of `run`.

    **Raises:** ValueError unless there are conditions, of one set of names, with JSON values, and all are different.
    """

    def __init__(self, conditions: list, training, static: tuple[str, ...], config, defaults, columns):
        self._static, self._make, self._made = static, training if static else lambda: training, {}
        self._columns = columns if callable(columns) else lambda condition: columns or {}
        self._config = naming({} if config is None else config, defaults)
        if not conditions:
            raise ValueError("`conditions` must be at least one, got none")
        seen, names, self._named = set(), list(entries(conditions[0])), {}
        for condition in conditions:
            if sorted(entries(condition)) != sorted(names):
                raise ValueError(f"conditions must have one set of names, {names}, got {list(entries(condition))}")
            named = self._named[id(condition)] = naming(condition, defaults)  # asked for often
            if (key := digest(named)) in seen:
                raise ValueError(f"conditions must differ, got {words(condition)} twice")
            seen.add(key)
        if absent := [name for name in static if name not in names]:
            raise ValueError(f"`static` must name axes of the conditions, {names}, got {absent}")

    def training(self, condition) -> Training:
        """One for all conditions that agree in what is static. Raises ValueError if it is none."""
        fixed = self._fixed(condition)
        if fixed not in self._made:
            made = self._make(**{name: entries(condition)[name] for name in self._static})
            if not isinstance(made, Training):
                wanted = "return a Training" if self._static else "be a Training where no axis is static"
                raise ValueError(f"`training` must {wanted}, got {made!r}")
            made.check()
            self._made[fixed] = made
        return self._made[fixed]

    def _fixed(self, condition) -> tuple:
        return tuple(json.dumps(plain(entries(condition)[name], name)) for name in self._static)

    def group(self, condition) -> tuple:
        """What is compiled for the condition."""
        try:
            return self._fixed(condition), self.training(condition).shape_of(condition)
        except Exception:  # it fails again where it is trained, and is recorded then
            return "alone", digest(plain(entries(condition)))

    def config(self, condition) -> dict:
        """What names the condition's run: all that it depends on and that is not a default."""
        training, named = self.training(condition), {"condition": self._named[id(condition)]}
        every = {} if training.every is None else {"every": plain(training.every)}
        return named | {"config": self._config, "steps": training.steps} | every

    def columns(self, condition) -> dict:
        """What rows of the condition's run share."""
        return plain(self._columns(condition), "columns") | plain(entries(condition), "conditions")


def _outcome(record: dict) -> str:
    if "error" in record:
        return f"failed: {record['error']}"
    last = final_values(record)
    if last.get("diverged"):
        return "diverged; recorded as such"
    shown = [(name, value) for name, value in last.items() if name not in ("diverged", "wall_s") and value is not None]
    text = ", ".join(f"{name} {value:.4g}" for name, value in itertools.islice(shown, 4))
    return f"{text} ({format_seconds(record['wall_s'])})"


def _wait(records: Records, keys: list[str], failed: dict[str, dict]) -> None:
    """Waits until the other shards have recorded theirs, those which had `failed` before once more."""
    waiting = lambda: sum(records.records.get(key) == failed.get(key) for key in keys)  # noqa: E731
    records.refresh()
    if waiting():
        print(f"waiting for {waiting()} runs of other shards", flush=True)
    with graceful() as asked:
        asked.work = "nothing: what is waited for is of other shards"
        while waiting():
            time.sleep(POLL)
            stop_if(asked)
            records.refresh()


@contextmanager
def _explaining_interruption(folder: str | Path):
    """Says how a sweep goes on that is interrupted."""
    try:
        yield
    except Interrupted:
        command = shlex.join(argument for argument in sys.orig_argv if argument != "--fresh")
        print(f"\ninterrupted; what was done is kept in {folder}\nto go on: {command}", file=sys.stderr)
        raise
