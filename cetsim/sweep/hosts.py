"""Several processes, on one machine or many: those that know of each other, and those that meet in one folder."""

import errno
import json
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from cetsim.extras import require
from cetsim.sweep.grid import parse_shard
from cetsim.sweep.provenance import now
from cetsim.sweep.records import Records, write


def initialize(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> str:
    """Joins the processes of a sweep, before anything else is done with JAX.

    **Arguments:** all three, or none where SLURM's variables tell, or there is this process alone.

    - `coordinator`: address of the first process, `"host:port"`.
    - `processes`: their number.
    - `index`: of this one, from 0.

    **Returns:** `"i/n"`, the share of this process, as `shard` takes it.

    **Raises:** ValueError (of JAX) if some of the three are missing, or for a SLURM job of several tasks in a process
    that `srun` did not start.
    """
    given = any(value is not None for value in (coordinator, processes, index))
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    if not given and tasks > 1 and "SLURM_STEP_NODELIST" not in os.environ:
        raise ValueError(
            f"this SLURM job has {tasks} tasks, but srun did not start this process as one of them: start it with "
            f"`srun python ...` for all {tasks}, or ask for --ntasks=1 to run it alone"
        )
    if given or tasks > 1:
        jax.distributed.initialize(coordinator, processes, index)
    return f"{jax.process_index() + 1}/{jax.process_count()}"


def exchange(records: Records, keys: list[str]) -> None:
    """Waits for all joined processes, and adds to `records` what others have recorded of `keys` in other folders."""
    if jax.process_count() == 1:
        return
    records.refresh()
    data = json.dumps([records.records[key] for key in keys if key in records.records]).encode()
    sizes = multihost_utils.process_allgather(np.asarray([len(data)])).reshape(-1)
    padded = np.frombuffer(data.ljust(int(sizes.max())), np.uint8)
    everyones = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    records.refresh()
    found = {record["hash"]: record for one in everyones for record in json.loads(one.tobytes())}
    records.add([record for key, record in found.items() if key not in records.records])


@contextmanager
def claimed(folder: str | Path, shard: str = "1/1") -> Iterator[None]:
    """Keeps the folder to this process, or to the shards of one number, for as long as it is entered or lives.

    **Raises:** BlockingIOError if another process has it, which says what to do; OSError if it can't be written.
    """
    filelock, locks, name = require("filelock", extra="sweep"), Path(folder, ".locks"), shard.replace("/", "-of-")
    lock, friends = filelock.FileLock(locks / f"{name}.lock", timeout=0), f"-of-{parse_shard(shard)[1]}.lock"
    locks.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.callback(lock.release)
        try:
            with filelock.FileLock(locks / "claims"):  # one claims at a time
                for path in locks.glob("*.lock"):
                    if not path.name.endswith(friends):
                        filelock.FileLock(path, timeout=0).acquire().lock.release()  # nobody has it
                lock.acquire()
                write(locks / f"{name}.holder", f"process {os.getpid()} on {platform.node()} since {now()}")
        except filelock.Timeout as taken:
            holder = Path(taken.lock_file).with_suffix(".holder").read_text()
            raise BlockingIOError(
                f"the folder {folder} is in use by {holder}: wait for it to end, stop it or choose another folder "
                "(processes that share one must all be different shards of one number)"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            warnings.warn("this file system has no locks: let only one process at a time use a folder", stacklevel=3)
        yield
