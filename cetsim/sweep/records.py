"""Records of runs: a JSON file for each in `FOLDER/runs`, which any number of processes may write side by side.

A record is a dict with at least `schema`, `hash` (which names the run), `columns` (what all its rows share) and `rows`
(dicts of `metric`, `value` and where it applies `step` and `layer`). Values that are not finite are None. Folders of
earlier versions, with all runs in `runs.jsonl` or only in the table `results.csv`, are read and never written.
"""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

from cetsim.files import write_atomic
from cetsim.sweep.grid import plain

SCHEMA = 2  # of all that a sweep writes; in 1 all records were one file
RUNS, OLD_RUNS, TABLE, CHECKPOINTS = "runs", "runs.jsonl", "results.csv", "checkpoints"
OF_A_ROW = ("layer", "step", "metric", "value")  # what differs between the rows of one run


class Records:
    """The runs recorded in `folder`, from which all that a sweep keeps there is removed first if `fresh`.

    **Attributes:** `records`: by hash, in the order in which they were recorded, as last read.

    **Raises:** ValueError where a file does not hold what it should, or is of a newer version.
    """

    def __init__(self, folder: str | Path, fresh: bool = False):
        self.folder, self._seen = Path(folder), {}
        for name in (RUNS, CHECKPOINTS, OLD_RUNS, f"{OLD_RUNS}.damaged", TABLE) if fresh else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).unlink(missing_ok=True)
        self.records: dict[str, dict] = read_table(self.folder / TABLE)
        lines = (self.folder / OLD_RUNS).read_bytes().splitlines() if (self.folder / OLD_RUNS).exists() else []
        for number, line in enumerate(lines, 1):
            self.records |= _read(line, f"line {number} of {self.folder / OLD_RUNS}") if line else {}
        self.refresh()

    def refresh(self) -> None:
        """Takes in what was recorded since the last time; what is known of a file that is gone is kept."""
        for path in self.folder.glob(f"{RUNS}/*.json"):
            seen = (status := path.stat()).st_ino, status.st_size, status.st_mtime_ns  # another if it was replaced
            if self._seen.get(path) != seen:
                self.records |= _read(path.read_bytes(), str(path))
                self._seen[path] = seen
        self.records = dict(sorted(self.records.items(), key=lambda item: item[1].get("order", 0)))

    def add(self, records: list[dict]) -> None:
        """Records runs, each in one step, replacing what was known of them; they are on the disk then.

        **Raises:** OSError if they cannot be written, ValueError if they are not records; what was recorded before
        stays as it is.
        """
        self.refresh()
        order = max((record.get("order", 0) for record in self.records.values()), default=0) + 1
        texts = {}
        for index, record in enumerate(records):
            key = _checked(record, f"what is to be recorded, {record},")["hash"]
            texts[key] = json.dumps(plain({"order": order + index} | record, f"the record of run {key}"))
        for key, text in texts.items():
            path = self.folder / RUNS / f"{key}.json"
            if path.exists() and key not in self.records:  # it is damaged, and perhaps of use to somebody
                os.replace(path, path.with_suffix(".damaged"))
            write(path, text + "\n")
        self.refresh()


def write(path: Path, content: str | list[bytes]) -> None:
    """Puts a file in place in one step, in a folder that is made if need be. Raises OSError that names the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error


def _read(text: bytes, where: str) -> dict[str, dict]:
    """The record in a file or line, by hash; none, and a warning, if it is damaged."""
    try:
        record = json.loads(text)
    except ValueError:
        print(f"warning: {where} is damaged and passed over: its run is trained again", file=sys.stderr)
        return {}
    return {_checked(record, where)["hash"]: record}


def _checked(record, where: str) -> dict:
    """The record. Raises ValueError unless it is one that this version can read."""
    held = record if isinstance(record, dict) else {}
    require_known(held.get("schema", SCHEMA), where)
    if not {"hash", "columns", "rows"} <= held.keys():
        raise ValueError(f"{where} is not a record of a run, with hash, columns and rows: mend it, or start over")
    return record


def require_known(schema: int, where: str) -> None:
    """Raises ValueError if a newer version wrote what is there."""
    if schema > SCHEMA:
        raise ValueError(
            f"{where} is of schema {schema}, and this version of cetsim knows up to {SCHEMA}: update cetsim "
            "(pip install --upgrade cetsim), or choose another folder; nothing was changed"
        )


def read_table(path: Path) -> dict[str, dict]:
    """What a table of rows, such as `results.csv`, can tell of the records it was made from, by hash.

    Nothing if it is not there, or is no such table at all, without a metric or a value.

    **Raises:** ValueError if its rows do not say of which `run` they are.
    """
    runs: dict[str, list[dict]] = {}
    with path.open(newline="", encoding="utf-8") if path.exists() else open(os.devnull) as file:
        reader = csv.DictReader(file)
        for row in reader if {"metric", "value"} <= set(reader.fieldnames or ()) else ():
            if not row.get("run"):
                raise ValueError(
                    f"line {reader.line_num} of {path} does not say of which `run` it is, as in tables of version "
                    "0.1.0, which would be replaced: choose another folder, or start over with --fresh"
                )
            runs.setdefault(row.pop("run"), []).append({name: parse_cell(text) for name, text in row.items()})
    records = {}
    for key, rows in runs.items():  # what is the same in all rows of a run is the run's
        columns = {n: v for n, v in rows[0].items() if n not in OF_A_ROW and all(row[n] == v for row in rows)}
        rows = [{n: v for n, v in row.items() if n not in columns and (n == "value" or v is not None)} for row in rows]
        error = {"error": "not in the table"} if any(row["metric"] == "failed" for row in rows) else {}
        records[key] = {"schema": SCHEMA, "hash": key, "config": None, "columns": columns, "rows": rows} | error
    return records


def parse_cell(text: str | None) -> int | float | str | None:
    """The number or the text written; None if there is nothing."""
    if not text:
        return None
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        return text
