"""Records of runs: an append-only file of JSON lines for each sweep, which any number of processes may add to.

A record is a dict with at least `schema`, `hash` (which names the run) and `config`. What is measured stands in any of
`rows` (dicts of `metric`, `value` and where it applies `step` and `layer`), `curves` (`{metric: {"steps": [...],
"values": [...]}}`) and `final` (`{metric: value}`); `columns` is what sets the run apart, the config where there are
none. Values that are not finite are None. Nothing here depends on the clock.
"""

import errno
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SCHEMA = 1
RUNS, LOCK, SWEEP_LOCK = "runs.jsonl", ".lock", ".sweep.lock"
OF_A_ROW = ("layer", "step", "metric", "value")  # what differs between the rows of one run
_KEPT_OF_THE_END = 256  # bytes before the place reached, by which a file that was replaced is told
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none


class Records:
    """The runs recorded in `folder`, by hash; of several records of one hash the last counts.

    Nothing that was written is ever rewritten: a line that a killed writer or a full disk cut short is set apart in
    `runs.jsonl.damaged` before the next is added.

    **Arguments:** `name`: of the file in `folder`. `read`: whether to read it now, or at the next `refresh`.

    **Attributes:** `records`: by hash, in the order of the file, as last read.

    **Raises:** ValueError where a line is not a record, unless it is the last and cut short, or is of a newer version.
    """

    required: tuple[str, ...] = ()  # of every record, besides what all must have

    def __init__(self, folder: str | Path, name: str = RUNS, read: bool = True):
        self.folder = Path(folder)
        self.path = self.folder / name
        self.records: dict[str, dict] = {}
        self._forget_place()
        if read:
            self.refresh()

    def _forget_place(self) -> None:
        self._file, self._end, self._lines, self._before, self._warned = None, 0, 0, b"", -1

    def refresh(self) -> None:
        """Takes in what was added since it was last read; all anew if the file was replaced or is shorter.

        What is known of a file that is gone is kept, and written with the next records.
        """
        if self._read() or self._warned == self._end:
            return
        with (
            suppress(OSError),
            self.locked(),
        ):  # it may be in the midst of being written; a reader's folder has no locks
            if self._read():
                return
        self._warned = self._end  # once, however often it is read
        print(f"warning: dropped the last line of {self.path}, which was cut short or damaged", file=sys.stderr)

    def _read(self) -> bool:
        """Takes in what was added; whether all lines were whole."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget_place()
            return True
        with file:
            if self._end and not self._is_the_same(file):
                self._forget_place()
                self.records = {}
            status = os.fstat(file.fileno())
            self._file = (status.st_dev, status.st_ino)
            file.seek(self._end)
            return self._take(file.read())

    def _is_the_same(self, file) -> bool:
        """Whether what was read of the file is still there; numbers of removed files are used again for new ones."""
        status = os.fstat(file.fileno())
        file.seek(self._end - len(self._before))
        return (status.st_dev, status.st_ino) == self._file and file.read(len(self._before)) == self._before

    def _take(self, data: bytes) -> bool:
        """Takes in lines up to the end, or up to a last one that is not whole; whether it came to the end."""
        lines = _split(data)
        new, reached, count = {}, 0, 0
        for index, line in enumerate(lines):
            if line.strip():
                where = f"line {self._lines + count + 1} of {self.path}"
                try:
                    record = json.loads(line.decode())
                except ValueError as error:
                    if index < len(lines) - 1:
                        raise ValueError(_broken(where)) from error
                    break
                self._require_record(record, where)
                new[record["hash"]] = record
            reached, count = reached + len(line), count + line.endswith(b"\n")
        self.records |= new
        self._end, self._lines = self._end + reached, self._lines + count
        self._before = (self._before + data[:reached])[-_KEPT_OF_THE_END:]
        return reached == len(data)

    def _require_record(self, record, where: str) -> None:
        schema = record.get("schema", SCHEMA) if isinstance(record, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise ValueError(
                f"{where} is of schema {schema}, and this version of cetsim knows up to {SCHEMA}: update cetsim "
                "(pip install --upgrade cetsim), or choose another folder; nothing was changed"
            )
        if schema is None or not {"hash", *self.required} <= record.keys() or not isinstance(record["hash"], str):
            raise ValueError(_broken(where))

    def append(self, records: list[dict]) -> None:
        """Adds records, all or none of them, whatever other processes add meanwhile; they are on the disk then.

        **Raises:** OSError if they cannot be written, ValueError or TypeError if they are not records; what was
        recorded before stays as it is.
        """
        data = b"".join(map(self._line, records))
        with self.locked(), _explained(f"{self.path} cannot be added to"):
            self._read()
            fresh = not self.path.exists()
            if fresh and self.records:  # known from elsewhere: in one step, since a part could pass for all of it
                write_atomic(self.path, b"".join(map(_encoded, self.records.values())))
                self._read()
            handle = self._open(self.path.name)
            try:
                self._set_damage_apart(handle)
                newline = b"\n" if self._end and not self._before.endswith(b"\n") else b""
                _write_all(handle, newline + data)
            finally:
                os.close(handle)
            if fresh:
                _sync_folder(self.folder)
            self._read()

    def _line(self, record: dict) -> bytes:
        needed = ("schema", "hash", "config", *self.required)
        missing = [name for name in needed if name not in record]
        if missing:
            raise ValueError(f"a record must have {', '.join(needed)}, got one without {', '.join(missing)}")
        try:
            return _encoded(record)
        except (ValueError, TypeError) as error:
            message = f"the record of run {record['hash']} must be plain JSON, with None where a number is not finite"
            raise type(error)(f"{message}: {error}") from error

    def _set_damage_apart(self, handle: int) -> None:
        """Moves what lies behind the last whole line, of which no writer is left while the folder is locked."""
        size = os.fstat(handle).st_size
        if size <= self._end:
            return
        os.lseek(handle, self._end, os.SEEK_SET)
        apart = self.folder / f"{self.path.name}.damaged"
        with apart.open("ab") as file:
            file.write(os.read(handle, size - self._end).rstrip(b"\n") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(handle, self._end)
        print(f"warning: the last line of {self.path} was cut short and is now in {apart.name}", file=sys.stderr)

    def _open(self, name: str) -> int:
        with _explained(f"the folder {self.folder} cannot be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from recording here meanwhile. Not to be entered twice."""
        handle = self._open(LOCK)
        try:
            _lock(handle)
            yield
        finally:
            _unlock(handle)

    @contextmanager
    def exclusive(self, shared: bool = False) -> Iterator[None]:
        """Keeps the folder to this run of a sweep for as long as it is entered.

        **Arguments:** `shared`: with others that say so too, the shards of one sweep.

        **Raises:** BlockingIOError if another process has it, which says what to do; OSError if it can't be written.
        """
        handle = self._open(SWEEP_LOCK)
        try:
            self._claim(handle, shared)
            yield
        finally:
            _unlock(handle)

    def _claim(self, handle: int, shared: bool) -> None:
        with self.locked():  # one at a time
            alone = _lock(handle, wait=False)
            if not alone and not (shared and _lock(handle, wait=False, shared=True)):
                raise BlockingIOError(_refusal(self.folder, shared))
            with _explained(f"the folder {self.folder} cannot be written"):
                if alone:  # what is written there is of processes that have ended
                    os.ftruncate(handle, 0)
                here = {"pid": os.getpid(), "host": socket.gethostname(), "shared": shared}
                since = datetime.now(UTC).isoformat(timespec="seconds")
                os.write(handle, (json.dumps(here | {"since": since}) + "\n").encode())
            if alone and shared:
                _lock(handle, shared=True)

    def in_use(self) -> bool:
        """Whether a run of a sweep keeps the folder now (`exclusive`)."""
        path = self.folder / SWEEP_LOCK
        if not path.exists():
            return False
        with self.locked(), path.open("rb+") as file:
            return not _lock(file.fileno(), wait=False)


def _encoded(record: dict) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _broken(where: str) -> str:
    return f"{where} is not a record of a run; mend or remove that line, or start over with --fresh"


def _split(data: bytes) -> list[bytes]:
    """Lines with their newlines; other line ends are no part of the format."""
    *whole, last = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([last] if last else [])


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns an OSError that has its error number into one that says `what` failed and why."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # has been explained
            raise
        told = type(error)(f"{what}: {error.strerror}")
        told.errno = error.errno
        raise told from error


def _write_all(handle: int, data: bytes) -> None:
    """Adds `data` at the end of the file and has it on the disk, or leaves the file as it was."""
    size, written = os.fstat(handle).st_size, 0
    try:
        while written < len(data):
            written += os.write(handle, data[written:])
        os.fsync(handle)
    except BaseException:
        with suppress(OSError):  # then the next to add sets it apart
            os.ftruncate(handle, size)
        raise


def _sync_folder(folder: Path) -> None:
    """Has the names of new files on the disk, where the system can."""
    with suppress(OSError):  # Windows does not open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces the file at `path` by `content` in one step: other processes see the old file or the new one.

    **Raises:** OSError if the folder cannot be written; the old file is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private, results should not be
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Locks.

_told: set[str] = set()


def _lock(handle: int, wait: bool = True, shared: bool = False) -> bool:
    """Locks an open file until it is closed; whether it could. Where there are no locks it says so, and it could."""
    if fcntl is None:
        return _without_locks("this platform")
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return _without_locks("this file system")
    return True


def _unlock(handle: int) -> None:
    """Frees the lock and closes the file; the end of a process does the same, however it ends."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would leave it to processes forked meanwhile
    os.close(handle)


def _without_locks(where: str) -> bool:
    if where not in _told:
        _told.add(where)
        print(f"warning: {where} has no file locks: let only one process at a time use a folder", file=sys.stderr)
    return True


def _refusal(folder: Path, shared: bool) -> str:
    holders = _holders(folder / SWEEP_LOCK)
    who = ", ".join(f"process {h['pid']} on {h['host']} since {h['since']}" for h in holders) or "another process"
    if shared:
        sharing = "it does not share: start every process of a sweep as a shard of the same number"
    elif any(h["shared"] for h in holders):
        sharing = "those are shards of a sweep: start this process as one of them"
    else:
        sharing = "processes that share a sweep must all be started as shards of it"
    return f"the folder {folder} is in use by {who}: wait for it to end, stop it or choose another folder ({sharing})"


def _holders(path: Path) -> list[dict]:
    """Who has said to hold the lock and may still: only of this host's processes is it known that they have ended."""
    holders = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            holder = json.loads(line)
        except ValueError:  # its disk was full
            continue
        if holder["host"] != socket.gethostname() or _is_running(holder["pid"]):
            holders.append(holder)
    return holders


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


# Tables, as far as records can be told from them.


def parse_number(text: str) -> int | float | None:
    """The number written, whole ones as integers where they were written so; None if there is nothing."""
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def records_of(rows: list[dict]) -> dict[str, dict]:
    """What a table, each row of which names its `run`, can tell of the records it was made from, by hash."""
    runs: dict[str, list[dict]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    return {name: _record_of(name, own) for name, own in runs.items()}


def _record_of(name: str, rows: list[dict]) -> dict:
    """One run's record: what is the same in all its rows is the run's, empty cells too, so that a table stays as is."""
    own = {*OF_A_ROW, "run"}
    columns = {n: v for n, v in rows[0].items() if n not in own and all(row[n] == v for row in rows)}
    differs = lambda n, v: n not in columns and n != "run" and (n == "value" or v not in (None, ""))  # noqa: E731
    rows = [{n: v for n, v in row.items() if differs(n, v)} for row in rows]
    failed = {"error": "not told by the table"} if any(row["metric"] == "failed" for row in rows) else {}
    return {"schema": SCHEMA, "hash": name, "config": None, "columns": columns, "rows": rows} | failed
