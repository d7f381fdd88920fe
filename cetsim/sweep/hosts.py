"""Several processes on one sweep, on one machine or many, that know of each other through `jax.distributed`."""

import json
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from cetsim.sweep.records import Records


def initialize(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> str:
    """Joins the processes of a sweep, before anything else is done with JAX.

    **Arguments:** all three, or none, where SLURM's variables tell, or there is this process alone.

    - `coordinator`: address of the first process, `"host:port"`.
    - `processes`: their number.
    - `index`: of this one, from 0.

    **Returns:** `"i/n"`, the share of this process, as `shard` takes it.

    **Raises:** ValueError if some of the three are given and others not, or for a SLURM job of several tasks in a
    process that `srun` did not start.
    """
    given = [value is not None for value in (coordinator, processes, index)]
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    if all(given):
        jax.distributed.initialize(coordinator, processes, index)
    elif any(given):
        values = f"got coordinator={coordinator!r}, processes={processes!r}, index={index!r}"
        raise ValueError(f"`coordinator`, `processes` and `index` must be given together or not at all, {values}")
    elif tasks > 1 and "SLURM_STEP_NODELIST" not in os.environ:
        raise ValueError(
            f"this SLURM job has {tasks} tasks, but srun did not start this process as one of them: start it with "
            f"`srun python ...` for all {tasks}, or ask for --ntasks=1 to run it alone"
        )
    elif tasks > 1:
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
    data = json.dumps([records.records[key] for key in keys if key in records.records]).encode()
    sizes = multihost_utils.process_allgather(np.asarray([len(data)])).reshape(-1)
    padded = np.frombuffer(data.ljust(int(sizes.max())), np.uint8)
    everyones = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    records.refresh()
    found = {record["hash"]: record for one in everyones for record in json.loads(one.tobytes())}
    if missing := [record for key, record in found.items() if key not in records.records]:
        records.add(missing)
