"""Several processes on one sweep, on one machine or many, that know of each other through `jax.distributed`."""

import json
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from cetsim.sweep.records import Records

TASKS = "SLURM_NTASKS"


def initialize(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> str:
    """Joins the processes of a sweep, before anything else is done with JAX.

    **Arguments:** `coordinator`: address of the first process, `"host:port"`. `processes`: their number. `index`: of
    this one, from 0. Without any of them SLURM's variables tell, or, outside it, there is this process alone.

    **Returns:** `"i/n"`, the share of this process, as `shard` takes it.

    **Raises:** ValueError if some of the three are given and others not.
    """
    given = [value is not None for value in (coordinator, processes, index)]
    if any(given) and not all(given):
        told = f"got coordinator={coordinator!r}, processes={processes!r}, index={index!r}"
        raise ValueError(f"`coordinator`, `processes` and `index` must be given together or not at all, {told}")
    if all(given):
        jax.distributed.initialize(coordinator, processes, index)
    elif int(os.environ.get(TASKS, 1)) > 1:
        jax.distributed.initialize()
    return share_of_process()


def share_of_process() -> str:
    """`"i/n"` of this process among those that were joined."""
    return f"{jax.process_index() + 1}/{jax.process_count()}"


def exchange(records: Records, keys: list[str]) -> None:
    """Waits for all processes, and adds to `records` what others have recorded of `keys` in folders of their own."""
    if jax.process_count() == 1:
        return
    records.refresh()
    found = {key: records.records[key] for key in keys if key in records.records}
    told = [json.loads(part) for part in _gathered(json.dumps(list(found.values())).encode())]
    records.refresh()
    missing = {record["hash"]: record for part in told for record in part if record["hash"] not in records.records}
    if missing:
        records.append(list(missing.values()))


def _gathered(data: bytes) -> list[bytes]:
    """The data of every process, in every process."""
    sizes = multihost_utils.process_allgather(np.asarray([len(data)])).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
