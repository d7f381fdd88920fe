"""Files that are put in place in one step."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, content: str | bytes | Iterable[bytes] | Callable[[BinaryIO], None]) -> None:
    """Puts a file in place in one step: readers, and whoever comes after a crash, see all of it or the old one.

    One process at a time may write a file; what a killed one has left is overwritten by the next.

    **Arguments:** `content`: all of it, in pieces, or a function that writes it into a file that is open.

    **Raises:** OSError if it cannot be written; the old file is then untouched.
    """
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
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
