"""A sweep: conditions declared, trained in batches, recorded, and taken up again where it was left."""

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cetsim import checks
from cetsim.sweep import hosts
from cetsim.sweep.batches import Batch, config_hash, in_batches, parse_shard, share
from cetsim.sweep.checkpoint import Checkpoints
from cetsim.sweep.progress import Reporter, format_seconds
from cetsim.sweep.records import RUNS, Records
from cetsim.sweep.runner import CHECKPOINTS, EVERY, Interrupted, Plan, Runner, failures
from cetsim.sweep.training import Mapped, Training
from cetsim.sweep.writers import Table


def run(
    folder: str | Path,
    conditions: Iterable[dict[str, Any]],
    training: Training | Callable[..., Training],
    *,
    static: Sequence[str] = (),
    config: dict | None = None,
    batch: int = 16,
    shard: str = "1/1",
    checkpoint_every: float = EVERY,
    devices: Sequence[jax.Device] | None = None,
    fresh: bool = False,
) -> Table:
    """Trains every condition that is not recorded in `folder` yet, and returns the records of all.

    Started again after an interruption, whatever it was, it goes on from the last checkpoint, and the numbers are those
    of a sweep that was not interrupted.

    **Arguments:**

    - `folder`: of this sweep: `runs.jsonl` holds what is finished, `checkpoints` what is not.
    - `conditions`: such as `grid(...)` gives: dicts of one set of names. `seed`, 0 if there is none, gives the key.
    - `training`: what is done with each; a function of the `static` axes, by name, that returns it where there are any.
    - `static`: names of axes that are compiled in, such as widths: conditions that differ there share no batch.
    - `config`: JSON values that results depend on besides, such as the data; they are part of what names a run.
    - `batch`: conditions trained side by side at most. They are batched by the conditions and this alone.
    - `shard`: `"i/n"` to be the i-th of n processes that share the folder and the work. Processes joined by
      `initialize` share it by themselves.
    - `checkpoint_every`: seconds between two checkpoints, at least.
    - `devices`: over which lanes are spread; all of this process by default.
    - `fresh`: remove first what was recorded in the folder.

    **Raises:** ValueError for conditions or a batch that cannot be, or a folder with an unfinished sweep of another
    config. BlockingIOError if another process has the folder, OSError if it cannot be written. `Interrupted`, a
    SystemExit of status 130 or 143, when SIGINT or SIGTERM came.
    """
    shared = _shared(shard, fresh)
    own = _Sweep(conditions, training, tuple(static), config or {}, batch, devices)
    with Records(folder, read=False).exclusive(parse_shard(shared)[1] > 1):
        if fresh:
            for path in (Path(folder) / RUNS, Path(folder) / f"{RUNS}.damaged"):
                path.unlink(missing_ok=True)
            shutil.rmtree(Path(folder) / CHECKPOINTS, ignore_errors=True)
        records = Records(folder)
        own.require_no_other(Runner(records, Reporter()))
        with Reporter() as reporter, _telling(folder):
            runner, plan, mine = Runner(records, reporter, checkpoint_every), own.plan, share(own.batches, shared)
            left = sum(len(runner.unfinished(plan, each.conditions)) for each in mine)
            reporter.expect("training", left, plan.steps)
            runner.run(plan, mine)
        hosts.exchange(records, own.keys)
    failed = failures(records, [key for key in own.keys if key in records.records])
    if failed:
        print(f"error: {len(failed)} runs failed; they are tried again next time", *failed, sep="\n", file=sys.stderr)
    return Table({key: records.records[key] for key in own.keys if key in records.records})


class _Sweep:
    """The conditions with what is done with each; arguments as of `run`."""

    def __init__(self, conditions, training, static, config, batch, devices):
        checks.require_whole("batch", batch)
        self.conditions, self.static, self.config, self.batch = _plain(conditions), static, config, batch
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        absent = [name for name in static if name not in self.conditions[0]]
        if absent:
            raise ValueError(f"`static` must name axes of the conditions, {list(self.conditions[0])}, got {absent}")
        self._made: dict[tuple, Training] = {}
        self._make = training if static else lambda: training
        steps = max(self.training_of(condition).steps for condition in self.conditions)
        self.plan = Plan(self.config_of, dict, self._program, _words, _lines, steps)
        self.batches: list[Batch] = in_batches(self.conditions, self._group_of, batch, len(self.devices))
        self.keys = [self.plan.key(condition) for condition in self.conditions]

    def training_of(self, condition: dict) -> Training:
        """The condition's training; one for all that agree in what is static."""
        fixed = tuple(json.dumps(condition[name]) for name in self.static)
        if fixed not in self._made:
            made = self._make(**{name: condition[name] for name in self.static})
            if not isinstance(made, Training):
                wanted = "return a Training" if self.static else "be a Training where no axis is static"
                raise ValueError(f"`training` must {wanted}, got {made!r}")
            made.check()
            self._made[fixed] = made
        return self._made[fixed]

    def config_of(self, condition: dict) -> dict:
        """All that the condition's run depends on, as far as it is known here."""
        training = self.training_of(condition)
        return {"condition": condition, "steps": training.steps, "looks": training.ends[0], "settings": self.config}

    def _group_of(self, condition: dict) -> tuple:
        training = self.training_of(condition)
        try:
            return tuple(json.dumps(condition[name]) for name in self.static), training.shape_of(condition)
        except Exception:  # it fails again where it is trained, and is recorded then
            return "alone", config_hash(condition)

    def _program(self, condition: dict, width: int) -> Mapped:
        return Mapped(self.training_of(condition), width, self.devices)

    def require_no_other(self, runner: Runner) -> None:
        """Raises ValueError if the folder holds unfinished batches that are not of this sweep."""
        runner.tidy()
        known = [({self.plan.key(each) for each in batch.conditions}, batch.width) for batch in self.batches]
        for folder in sorted(runner.checkpoints.glob("*")):
            lanes = [config_hash(lane) for lane in _lanes(folder)]
            if lanes and not any(own.issuperset(lanes) and width == len(lanes) for own, width in known):
                raise ValueError(
                    f"{runner.records.folder} holds an unfinished batch of another config, {self._difference(folder)}: "
                    "finish that sweep as it was declared, choose another folder, or start over with fresh=True"
                )

    def _difference(self, folder: Path) -> str:
        """What differs between a batch that was left in a folder and this sweep, in words."""
        lanes = _lanes(folder)
        own = {config_hash(condition): self.config_of(condition) for condition in self.conditions}
        for lane in lanes:
            now = own.get(config_hash(lane.get("condition", {})))
            if now is None:
                return f"with the condition {_words(lane.get('condition', {}))}, which is none of this sweep"
            differ = [
                f"`{name}` was {lane.get(name)} and is {now[name]}" for name in now if lane.get(name) != now[name]
            ]
            if differ:
                return ", ".join(differ)
        return f"with {len(lanes)} lanes, where `batch` is now {self.batch} on {len(self.devices)} devices"


def _lanes(folder: Path) -> list[dict]:
    """The configs of the lanes of a batch that was left in a folder; none if there is nothing to go on from."""
    return (Checkpoints(folder, {}).saved_config() or {}).get("lanes", [])


def _shared(shard: str, fresh: bool) -> str:
    """The share of this process, by its own word or as one of several that were joined."""
    parse_shard(shard)
    joined = hosts.share_of_process()
    if joined != "1/1" and shard != "1/1":
        raise ValueError(f"`shard` must be 1/1 in processes that were joined, which share by themselves, got {shard}")
    shared = shard if joined == "1/1" else joined
    if fresh and shared != "1/1":
        raise ValueError(f"`fresh` must be False where processes share a folder, which others use, got {shared}")
    return shared


def _plain(conditions) -> list[dict]:
    """The conditions with JSON values alone.

    **Raises:** ValueError unless there are some, of one set of names, and all are different.
    """
    plain = [{name: _value(name, value) for name, value in condition.items()} for condition in conditions]
    if not plain:
        raise ValueError("`conditions` must be at least one, got none")
    for condition in plain:
        if condition.keys() != plain[0].keys():
            raise ValueError(f"conditions must have one set of names, {list(plain[0])}, got {list(condition)}")
    seen = set()
    for condition in plain:
        if (key := config_hash(condition)) in seen:
            raise ValueError(f"conditions must differ, got {_words(condition)} twice")
        seen.add(key)
    return plain


def _value(name: str, value):
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = value.tolist()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a JSON value, got {value!r}") from error


def _words(condition: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in condition.items())


def _lines(conditions: list[dict], records: list[dict]) -> list[str]:
    return [f"{_words(condition)}: {_outcome(record)}" for condition, record in zip(conditions, records, strict=True)]


def _outcome(record: dict) -> str:
    if "error" in record:
        return f"failed: {record['error']}"
    last = {row["metric"]: row["value"] for row in record["rows"]}
    if last["diverged"]:
        return "diverged; recorded as such"
    shown = itertools.islice((n for n in last if n not in ("diverged", "wall_s")), 4)
    return ", ".join(f"{name} {last[name]:.4g}" for name in shown) + f" ({format_seconds(record['wall_s'])})"


@contextmanager
def _telling(folder: str | Path):
    """Says how a sweep goes on that is interrupted."""
    try:
        yield
    except Interrupted:
        command = " ".join(sys.orig_argv)
        print(f"\ninterrupted; what was done is kept in {folder}\nto go on: {command}", file=sys.stderr)
        raise
