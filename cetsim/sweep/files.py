"""What records, checkpoints and tables share: files in one step, and names of configs."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

SCHEMA = 2  # of all that is written; in 1 all records of a sweep were one file


def write_atomic(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Puts a file in place in one step: readers, and whoever comes after a crash, see all of it or the old one.

    One process at a time may write a file; what a killed one has left is overwritten by the next.

    **Raises:** OSError if it cannot be written; the old file is then untouched.
    """
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Makes a new name last: after a power cut the folder would still have the old one."""
    if os.name == "nt":  # Windows does not open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # from file systems that do not sync folders
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(what: str):
    """Turns an OSError into one of the same kind and number that says `what` failed, and why."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # has been explained
            raise
        clearer = type(error)(f"{what}: {error.strerror or error}")
        clearer.errno = error.errno
        raise clearer from error


def digest(config: dict) -> str:
    """16 digits of the SHA-256 of `config` as JSON (sorted keys, no spaces): equal configs, equal digests."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(config: dict, prefix: str = "") -> dict:
    """Values of nested dicts by dotted name."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
