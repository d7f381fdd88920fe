"""Records of runs: a line of JSON for every finished condition, and the tidy table made from them.

`runs.jsonl` is what an experiment is resumed from and holds everything; `results.csv` is regenerated from it
and holds one value a row. Where only the table is there, as in a repository, an experiment goes on from that. Records
are only ever added (`cetsim.sweep.records`), the table is replaced atomically: neither a reader nor an interruption
meets half a file.
"""

import csv
import io
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cetsim.sweep.records import SCHEMA, Records, parse_number, records_of, write_atomic
from cetsim.sweep.runner import CHECKPOINTS

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "Journal",
    "claimed",
    "number",
    "read_results",
    "remove_outputs",
    "require_writable",
    "to_csv",
    "write_atomic",
]
COLUMNS = (
    *("experiment", "scenario", "dataset", "network", "trace", "order", "delay_s", "form", "mode"),
    *("learning_rate", "seed", "layer", "step", "metric", "value", "error_gate"),
)
_NUMBERS = ("order", "delay_s", "learning_rate", "seed", "step", "value", "error_gate")
_MORE_NUMBERS = (  # of experiments on images; older tables lack them
    *("peak_s", "rise_s", "ratio", "spread_s", "update_every", "run_length", "interpolation", "fraction", "threshold"),
    *("beta", "critic_rate"),
)


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
    for pattern in ("runs.jsonl", "runs.jsonl.damaged", "results.csv", "*.png", "*.pdf"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def number(value) -> float | None:
    """`value` as a float that JSON can hold: None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


class _Rendered:
    """The rows of one record as CSV, rendered again where the columns change."""

    def __init__(self, record: dict, rows: list[dict]):
        self.record, self.names = record, dict.fromkeys(name for row in rows for name in row)
        self._rows, self._of, self._text = rows, None, ""

    def text(self, names: list[str]) -> str:
        if names != self._of:
            self._of, self._text = names, _lines(self._rows, names)
        return self._text


class Journal(Records):
    """The finished conditions of one experiment in `folder`, by the hash of their config, and the table of them.

    A record is a dict with at least `hash`, `columns` (what all its rows share) and `rows`.

    **Raises:** ValueError where a file cannot be read, or holds rows that would be lost.
    """

    required = ("columns", "rows")

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.results_path = self.folder / "results.csv"
        self._rendered: dict[str, _Rendered] = {}
        if not self.path.exists() and self.results_path.exists():
            self.records = self._from_table()

    def _from_table(self) -> dict[str, dict]:
        rows = read_results(self.results_path)
        if not all(row.get("run") for row in rows):
            raise ValueError(
                f"{self.results_path} has rows that do not say of which `run` they are, as older versions wrote them, "
                "and would be replaced: start over with --fresh, or choose another folder with --out"
            )
        return records_of(rows)

    def append(self, records: list[dict]) -> None:
        """Adds finished conditions and regenerates results.csv; what other processes add meanwhile is kept."""
        super().append(records)
        self.write_results()

    def write_results(self) -> None:
        """Regenerates results.csv from all that is recorded, by other processes too."""
        with self.locked():
            self.refresh()
            write_atomic(self.results_path, self._table())

    def _table(self) -> str:
        """The table, of which only what is new is rendered: it is written anew after every few runs."""
        for key, record in self.records.items():
            if key not in self._rendered or self._rendered[key].record is not record:
                self._rendered[key] = _Rendered(record, self.rows([key]))
        parts = [self._rendered[key] for key in self.records]
        names = _header(name for part in parts for name in part.names)
        return _lines([dict(zip(names, names, strict=True))], names) + "".join(part.text(names) for part in parts)

    def rows(self, hashes=None) -> list[dict]:
        """Tidy rows of the conditions named by `hashes`, of all by default."""
        hashes = self.records if hashes is None else hashes
        return [self.records[h]["columns"] | row | {"run": h} for h in hashes for row in self.records[h]["rows"]]


@contextmanager
def claimed(folder: Path, fresh: bool = False, shared: bool = False) -> Iterator[Journal]:
    """The journal of a folder that is this process's, or its shards', meanwhile; begun anew if `fresh`.

    **Raises:** BlockingIOError if another process has the folder.
    """
    with Records(folder, read=False).exclusive(shared):
        if fresh:
            remove_outputs(folder)
        yield Journal(folder)


def to_csv(rows: list[dict]) -> str:
    """Rows as CSV: the common columns, any the experiment adds, and last the run; missing values empty."""
    names = _header(name for row in rows for name in row)
    return _lines([dict(zip(names, names, strict=True)), *rows], names)


def _header(names: Iterable[str]) -> list[str]:
    names = dict.fromkeys(names)
    extra = [name for name in names if name not in (*COLUMNS, "run")]
    return [*COLUMNS, *extra, *(["run"] if "run" in names else [])]


def _lines(rows: list[dict], names: list[str]) -> str:
    out = io.StringIO()
    csv.DictWriter(out, names, restval="", lineterminator="\n").writerows(rows)
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
        return row | {name: parse_number(row[name]) for name in names}
    except ValueError as error:
        raise ValueError(f"line {line} of {path}: {error}") from error
