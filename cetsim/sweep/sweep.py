"""A sweep: conditions declared, trained in batches, recorded, and taken up again where it was left."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from cetsim import checks
from cetsim.sweep.grid import Run, digest, entries, in_batches, naming, parse_shard, plain, words
from cetsim.sweep.hosts import claimed, exchange
from cetsim.sweep.interrupts import Interrupted, graceful
from cetsim.sweep.records import Records
from cetsim.sweep.runner import EVERY, Runner
from cetsim.sweep.table import Table
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

    Started again after any interruption, it goes on from the last checkpoint, to the same numbers as without one.

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
    - `shard`: `"i/n"`, the i-th of n processes that share folder and work; those joined by `initialize` do anyhow.
    - `wait`: wait for what other shards train, so that the table has all runs.
    - `checkpoint_every`: seconds between two checkpoints, at least.
    - `devices`: over which slots are spread; all of this process by default.
    - `fresh`: remove first what was recorded in the folder, tables of it too.

    **Raises:** ValueError for conditions or a batch that cannot be. BlockingIOError if another process has the folder,
    OSError if it cannot be written. `Interrupted`, a SystemExit of status 130 or 143, when SIGINT or SIGTERM came.
    """
    index, count = _share(shard, fresh)
    checks.require_whole("batch", batch)
    folder, devices = Path(folder), tuple(jax.local_devices() if devices is None else devices)
    runs = _declared(list(conditions), training, static, config, defaults, columns, describe)
    size, multiple = (1, 1) if runs[0].training.on_host else (batch, len(devices))
    batches, keys = in_batches(runs, size, multiple)[index - 1 :: count], [run.key for run in runs]
    try:
        with claimed(folder, f"{index}/{count}"):
            records = Records(folder, fresh)
            runner = Runner(lambda run, width: Trainer(run.training, width, devices), records, checkpoint_every, stage)
            return _finished(runner, batches, keys, count == 1, wait)
    except Interrupted:
        command = shlex.join(argument for argument in sys.orig_argv if argument != "--fresh")
        print(f"\ninterrupted; what was done is kept in {folder}\nto go on: {command}", file=sys.stderr)
        raise


def _share(shard: str, fresh: bool) -> tuple[int, int]:
    """Which of how many processes this one is, from 1."""
    index, count = parse_shard(shard)
    if (joined := jax.process_count()) > 1:
        if count > 1:
            raise ValueError(f"`shard` must be 1/1 in joined processes, which share by themselves, got {shard}")
        index, count = jax.process_index() + 1, joined
    if fresh and count > 1:
        raise ValueError(f"`fresh` must be False where processes share a folder, which others use, got {index}/{count}")
    return index, count


def _finished(runner: Runner, batches: list, keys: list[str], alone: bool, wait: bool) -> Table:
    """The runs, these batches of them trained here, and if so wanted the others waited for; says which failed."""
    records = runner.records
    failed = {key: record for key, record in records.records.items() if "error" in record}
    runner.run(batches)
    if alone and (others := len(list(runner.checkpoints.glob("*")))):
        print(f"note: unfinished batches, declared otherwise, that are left alone: {others}", file=sys.stderr)
    exchange(records, keys)
    records.refresh()
    # What failed before is waited for once more.
    waiting = lambda: wait and sum(records.records.get(key) == failed.get(key) for key in keys)  # noqa: E731
    if left := waiting():
        print(f"waiting for {left} runs of other shards", flush=True)
        with graceful() as asked:
            asked.work = "nothing: what is waited for is of other shards"
            while waiting():
                time.sleep(POLL)
                asked.stop_if_requested()
                records.refresh()
    table = Table({key: records.records[key] for key in keys if key in records.records})
    errors = [f"{key}: {record['error']}" for key, record in table.records.items() if "error" in record]
    if errors:
        print(f"error: {len(errors)} runs failed; they are tried again next time", *errors, sep="\n", file=sys.stderr)
    return table


def _declared(conditions: list, training, static, config, defaults, columns, describe) -> list[Run]:
    """The run of each condition; arguments as of `run`.

    **Raises:** ValueError unless there are conditions, of one set of names, with JSON values, and all are different.
    """
    if not conditions:
        raise ValueError("`conditions` must be at least one, got none")
    names = list(entries(conditions[0]))
    if absent := [name for name in static if name not in names]:
        raise ValueError(f"`static` must name axes of the conditions, {names}, got {absent}")
    runs, trainings, common = {}, {}, naming({} if config is None else config, defaults)
    for condition in conditions:
        values = entries(condition)
        if sorted(values) != sorted(names):
            raise ValueError(f"conditions must have one set of names, {names}, got {list(values)}")
        fixed = tuple(json.dumps(plain(values[name], name)) for name in static)
        if (made := trainings.get(fixed)) is None:  # one for all conditions that agree in what is static
            made = trainings[fixed] = training(**{name: values[name] for name in static}) if static else training
            if not isinstance(made, Training):
                wanted = "return a Training" if static else "be a Training where no axis is static"
                raise ValueError(f"`training` must {wanted}, got {made!r}")
            made.check()
        every = {} if made.every is None else {"every": plain(made.every)}
        named = {"condition": naming(condition, defaults), "config": common, "steps": made.steps} | every
        if (key := digest(named)) in runs:
            raise ValueError(f"conditions must differ, got {words(condition)} twice")
        try:
            group = fixed, made.shape_of(condition)
        except Exception:  # it fails again where it is trained, and is recorded then
            group = "alone", key
        more = plain(columns(condition) if callable(columns) else columns or {}, "columns")
        runs[key] = Run(condition, made, group, named, key, more | plain(values, "conditions"), describe(condition))
    return list(runs.values())
