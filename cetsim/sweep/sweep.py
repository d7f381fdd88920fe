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
from cetsim.sweep.grid import Batch, entries, in_batches, naming, parse_shard, plain, share, words
from cetsim.sweep.interrupts import graceful
from cetsim.sweep.locks import claimed
from cetsim.sweep.progress import Reporter, format_seconds
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

    **Raises:** ValueError for conditions or a batch that cannot be, or a folder with an unfinished sweep of another
    config. BlockingIOError if another process has the folder, OSError if it cannot be written. `Interrupted`, a
    SystemExit of status 130 or 143, when SIGINT or SIGTERM came.
    """
    shard = _shared(shard, fresh)
    sweep = _Sweep(list(conditions), training, tuple(static), config, defaults, columns, describe, batch, devices)
    checks.require_at_least("checkpoint_every", checkpoint_every, 0.0)
    with _explaining_interruption(folder), claimed(folder, shard):
        if fresh:
            for name in (OLD_RUNS, f"{OLD_RUNS}.damaged", TABLE):
                (Path(folder) / name).unlink(missing_ok=True)
            for name in (RUNS, CHECKPOINTS):
                shutil.rmtree(Path(folder) / name, ignore_errors=True)
        records = Records(folder)
        failed = {key: record for key, record in records.records.items() if "error" in record}
        with Reporter() as reporter:
            runner, mine = Runner(records, reporter, checkpoint_every, stage), share(sweep.batches, shard)
            left = sum(len(runner.unfinished(sweep.plan, each.conditions)) for each in mine)
            reporter.expect(stage, left, sweep.plan.steps)
            runner.run(sweep.plan, mine)
            others = len(list(runner.checkpoints.glob("*")))
        if others and shard == "1/1":
            print(f"note: {others} unfinished batch{'es' * (others > 1)} of other configs left alone", file=sys.stderr)
        hosts.exchange(records, sweep.keys)
        if wait:
            _wait(records, sweep.keys, failed)
    records.refresh()
    table = Table({key: records.records[key] for key in sweep.keys if key in records.records})
    errors = [f"{key}: {record['error']}" for key, record in table.records.items() if "error" in record]
    if errors:
        print(f"error: {len(errors)} runs failed; they are tried again next time", *errors, sep="\n", file=sys.stderr)
    return table


class _Sweep:
    """The conditions with what is done with each; arguments as of `run`."""

    def __init__(self, conditions, training, static, config, defaults, columns, describe, batch, devices):
        checks.require_at_least("batch", batch, 1.0)
        _require_distinct(conditions)
        self.conditions, self.static, self.batch, self.defaults = conditions, static, batch, defaults
        self.config = naming({} if config is None else config, defaults)
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        absent = [name for name in static if name not in entries(conditions[0])]
        if absent:
            raise ValueError(f"`static` must name axes of the conditions, {list(entries(conditions[0]))}, got {absent}")
        self._made: dict[tuple, Training] = {}
        self._make = training if static else lambda: training
        trainings = [self.training_of(condition) for condition in conditions]
        on_host, steps = trainings[0].on_host, max(each.steps for each in trainings)
        more = columns if callable(columns) else lambda condition: columns or {}
        self.plan = Plan(
            self.config_of,
            lambda condition: plain(more(condition), "columns") | plain(entries(condition), "conditions"),
            lambda condition, width: Trainer(self.training_of(condition), width, self.devices),
            describe,
            self._lines,
            steps,
        )
        size, devices = (1, 1) if on_host else (batch, len(self.devices))
        self.batches: list[Batch] = in_batches(conditions, self._group_of, size, devices)
        self.keys = [self.plan.key(condition) for condition in conditions]

    def _fixed(self, condition) -> tuple:
        return tuple(json.dumps(plain(entries(condition)[name], name)) for name in self.static)

    def training_of(self, condition) -> Training:
        """The condition's training; one for all that agree in what is static."""
        fixed = self._fixed(condition)
        if fixed not in self._made:
            made = self._make(**{name: entries(condition)[name] for name in self.static})
            if not isinstance(made, Training):
                wanted = "return a Training" if self.static else "be a Training where no axis is static"
                raise ValueError(f"`training` must {wanted}, got {made!r}")
            made.check()
            self._made[fixed] = made
        return self._made[fixed]

    def config_of(self, condition) -> dict:
        """What names the condition's run: all that it depends on and that is not a default."""
        training, named = self.training_of(condition), naming(condition, self.defaults)
        every = {} if training.every is None else {"every": plain(training.every)}
        return {"condition": named, "config": self.config, "steps": training.steps} | every

    def _group_of(self, condition) -> tuple:
        try:
            return self._fixed(condition), self.training_of(condition).shape_of(condition)
        except Exception:  # it fails again where it is trained, and is recorded then
            return "alone", digest(self.config_of(condition))

    def _lines(self, conditions: list, records: list[dict]) -> list[str]:
        return [f"{self.plan.describe(c)}: {_outcome(record)}" for c, record in zip(conditions, records, strict=True)]


def _shared(shard: str, fresh: bool) -> str:
    """The share of this process, by its own word or as one of several that were joined."""
    parse_shard(shard)
    joined = hosts.share_of_process()
    if joined != "1/1" and shard != "1/1":
        raise ValueError(f"`shard` must be 1/1 in processes that were joined, which share by themselves, got {shard}")
    shard = shard if joined == "1/1" else joined
    if fresh and parse_shard(shard)[1] > 1:
        raise ValueError(f"`fresh` must be False where processes share a folder, which others use, got {shard}")
    return shard


def _require_distinct(conditions: list) -> None:
    """Raises ValueError unless there are conditions, of one set of names, with JSON values, and all are different."""
    if not conditions:
        raise ValueError("`conditions` must be at least one, got none")
    seen, names = set(), list(entries(conditions[0]))
    for condition in conditions:
        if sorted(entries(condition)) != sorted(names):
            raise ValueError(f"conditions must have one set of names, {names}, got {list(entries(condition))}")
        if (key := digest({name: plain(value, name) for name, value in entries(condition).items()})) in seen:
            raise ValueError(f"conditions must differ, got {words(condition)} twice")
        seen.add(key)


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
