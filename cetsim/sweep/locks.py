"""Who has a folder: one process alone, or different shards of one number. The end of a process, however, frees it."""

import errno
import json
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cetsim.extras import require
from cetsim.files import write_atomic
from cetsim.sweep.files import explained
from cetsim.sweep.grid import parse_shard
from cetsim.sweep.provenance import now

LOCKS = ".locks"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none


@contextmanager
def claimed(folder: str | Path, shard: str = "1/1") -> Iterator[None]:
    """Keeps the folder to this process, or to the shards of one number, for as long as it is entered.

    **Raises:** BlockingIOError if another process has it, which says what to do; OSError if it can't be written.
    """
    number = parse_shard(shard)[1]
    name = "alone" if number == 1 else shard.replace("/", "-of-")
    folder, locks = Path(folder), Path(folder) / LOCKS
    with ExitStack() as held:
        with explained(f"the folder {folder} cannot be written"):
            locks.mkdir(parents=True, exist_ok=True)
            with _lock(locks / "claims", wait=True):  # one claims at a time
                others = sorted(path for path in locks.glob("*.lock") if name == "alone" or path.stem == name
                                or not path.stem.endswith(f"-of-{number}"))  # fmt: skip
                if holders := [_holder(path) for path in others if not _is_free(path)]:
                    raise BlockingIOError(
                        f"the folder {folder} is in use by {', '.join(holders)}: wait for it to end, stop it or choose "
                        "another folder (processes that share one must all be different shards of one number)"
                    )
                held.enter_context(_lock(locks / f"{name}.lock"))
                here = {"pid": os.getpid(), "host": platform.node(), "since": now()}
                write_atomic(locks / f"{name}.json", json.dumps(here))
        yield


@contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Locks a file; where there are no locks it says so and goes on. Raises filelock.Timeout if another has it."""
    lock = require("filelock", extra="sweep").FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn("this file system has no locks: let only one process at a time use a folder", stacklevel=2)
    try:
        yield
    finally:
        lock.release()


def _is_free(path: Path) -> bool:
    try:
        with _lock(path):
            return True
    except require("filelock", extra="sweep").Timeout:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.with_suffix(".json").read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError):  # it has just got the lock, or its disk was full
        return "another process"
