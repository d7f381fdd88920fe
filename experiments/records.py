"""Records of runs: a line of JSON for every finished condition, and the tidy table made from them.

`runs.jsonl` is what an experiment is resumed from and holds everything; `results.csv` is regenerated from it
and holds one value a row. Where only the table is there, as in a repository, an experiment goes on from that. Both are
replaced atomically: neither a reader nor an interruption meets half a file.
"""

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

SCHEMA = 1
COLUMNS = (
    *("experiment", "scenario", "dataset", "network", "trace", "order", "delay_s", "form", "mode"),
    *("learning_rate", "seed", "layer", "step", "metric", "value", "error_gate"),
)
_NUMBERS = ("order", "delay_s", "learning_rate", "seed", "step", "value", "error_gate")
_MORE_NUMBERS = (  # of experiments on images; older tables lack them
    *("peak_s", "rise_s", "ratio", "spread_s", "update_every", "run_length", "interpolation", "fraction", "threshold"),
    *("beta", "critic_rate"),
)
_OF_A_ROW = ("layer", "step", "metric", "value")  # what differs between the rows of one run


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


def require_writable(folder: Path) -> None:
    """Makes `folder` and writes a file there once, so that an unwritable one is found before any training.

    **Raises:** OSError if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"the output folder {folder} cannot be written: {error.strerror or error}") from error


def remove_outputs(folder: Path) -> None:
    """Removes what an experiment wrote."""
    for pattern in ("runs.jsonl", "results.csv", "*.png", "*.pdf"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path):
    """Keeps other processes from writing here meanwhile: between a read and a write nothing is lost."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def config_hash(config: dict) -> str:
    """16 digits of the SHA-256 of `config` as JSON (sorted keys, no spaces): equal configs, equal hash."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def number(value) -> float | None:
    """`value` as a float that JSON can hold: None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


class Journal:
    """The finished conditions of one experiment in `folder`, by the hash of their config.

    A record is a dict with at least `hash`, `columns` (what all its rows share) and `rows`.

    **Raises:** ValueError where a file cannot be read, or holds rows that would be lost.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs_path, self.results_path = folder / "runs.jsonl", folder / "results.csv"
        self.records = self._read()

    def append(self, records: list[dict]) -> None:
        """Adds finished conditions and rewrites both files; what another process added meanwhile is kept."""
        with _locked(self.folder):
            self.records = self._read() | {record["hash"]: record for record in records}
            lines = (json.dumps(record, allow_nan=False) + "\n" for record in self.records.values())
            write_atomic(self.runs_path, "".join(lines))
            self.write_results()

    def refresh(self) -> None:
        """Takes in what other processes have added."""
        self.records = self._read() | self.records

    def _read(self) -> dict[str, dict]:
        if self.runs_path.exists() or not self.results_path.exists():
            return read_runs(self.runs_path)
        rows = read_results(self.results_path)
        if not all(row.get("run") for row in rows):
            raise ValueError(
                f"{self.results_path} has rows that do not say of which `run` they are, as older versions wrote them, "
                "and would be replaced: start over with --fresh, or choose another folder with --out"
            )
        return records_of(rows)

    def write_results(self) -> None:
        """Regenerates results.csv from the records."""
        write_atomic(self.results_path, to_csv(self.rows()))

    def rows(self, hashes=None) -> list[dict]:
        """Tidy rows of the conditions named by `hashes`, of all by default."""
        hashes = self.records if hashes is None else hashes
        return [self.records[h]["columns"] | row | {"run": h} for h in hashes for row in self.records[h]["rows"]]


def read_runs(path: Path) -> dict[str, dict]:
    """Records of `runs.jsonl` by hash; none if it does not exist.

    A last line cut short by a killed writer is dropped with a warning on stderr.

    **Raises:** ValueError if any other line is not a record.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    records = {}
    for index, line in enumerate(lines):
        if not line:
            continue
        try:
            record = json.loads(line)
            _require_record(record)
        except ValueError as error:  # of which JSONDecodeError is one
            if index == len(lines) - 1:  # every whole line ends in a newline, after which an empty one is last
                print(f"warning: dropped the last line of {path}, which was cut short", file=sys.stderr)
                break
            raise ValueError(
                f"line {index + 1} of {path} is not a record of a run; mend or remove that line, "
                "or start over with --fresh"
            ) from error
        records[record["hash"]] = record
    return records


def _require_record(record) -> None:
    if not (isinstance(record, dict) and {"hash", "columns", "rows"} <= record.keys()):
        raise ValueError("not a record")


def records_of(rows: list[dict]) -> dict[str, dict]:
    """What a table, each row of which names its `run`, can tell of the records it was made from, by hash."""
    runs: dict[str, list[dict]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    return {name: _record_of(name, own) for name, own in runs.items()}


def _record_of(name: str, rows: list[dict]) -> dict:
    """One run's record: what is the same in all its rows is the run's, empty cells too, so that a table stays as is."""
    own = {*_OF_A_ROW, "run"}
    columns = {n: v for n, v in rows[0].items() if n not in own and all(row[n] == v for row in rows)}
    differs = lambda n, v: n not in columns and n != "run" and (n == "value" or v not in (None, ""))  # noqa: E731
    rows = [{n: v for n, v in row.items() if differs(n, v)} for row in rows]
    return {"hash": name, "columns": columns, "rows": rows}


def to_csv(rows: list[dict]) -> str:
    """Rows as CSV: the common columns, any the experiment adds, and last the run; missing values empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    extra = [name for name in names if name not in (*COLUMNS, "run")]
    run = ["run"] if "run" in names else []
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, *extra, *run], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_results(path: Path) -> list[dict]:
    """Rows of a results.csv, numbers as floats (None where empty); columns it does not know stay text.

    **Raises:** ValueError if the file is missing, lacks a column or holds text where a number belongs.
    """
    if not path.exists():
        raise ValueError(f"there is no {path} to draw from: run the experiment first, without --plot-only")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
        return [_parse(row, path, reader.line_num) for row in reader]


def _parse(row: dict, path: Path, line: int) -> dict:
    try:
        names = [*_NUMBERS, *(name for name in _MORE_NUMBERS if name in row)]
        return row | {name: _number(row[name]) for name in names}
    except ValueError as error:
        raise ValueError(f"line {line} of {path}: {error}") from error


def _number(text: str) -> int | float | None:
    """The number written, whole ones as integers where they were written so."""
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
