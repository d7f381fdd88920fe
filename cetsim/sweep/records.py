"""Records of runs: a JSON file for each in `FOLDER/runs`, which any number of processes may write side by side.

A record is a dict with at least `schema`, `hash` (which names the run), `columns` (what all its rows share) and `rows`
(dicts of `metric`, `value` and where it applies `step` and `layer`). Values that are not finite are None. Folders of
earlier versions, with all runs in `runs.jsonl` or only in the table `results.csv`, are read and never written.
"""

import csv
import json
import os
import sys
from pathlib import Path

from cetsim.files import write_atomic
from cetsim.sweep.files import SCHEMA, explained

RUNS, OLD_RUNS, TABLE = "runs", "runs.jsonl", "results.csv"
OF_A_ROW = ("layer", "step", "metric", "value")  # what differs between the rows of one run


class Records:
    """The runs recorded in `folder`.

    **Attributes:** `records`: by hash, in the order in which they were recorded, as last read.

    **Raises:** ValueError where a file does not hold what it should, or is of a newer version.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._seen, self._damaged = Path(folder), {}, set()
        self.records: dict[str, dict] = read_table(self.folder / TABLE) | read_lines(self.folder / OLD_RUNS)
        self.refresh()

    def refresh(self) -> None:
        """Takes in what was recorded since the last time; what is known of a file that is gone is kept."""
        for path in self.folder.glob(f"{RUNS}/*.json"):
            status = path.stat()
            seen = status.st_ino, status.st_size, status.st_mtime_ns  # another if the file was replaced
            if self._seen.get(path) == seen:
                continue
            try:
                record = json.loads(path.read_bytes())
            except ValueError:
                self._damaged.add(path)
                print(f"warning: {path} is damaged and passed over: its run is trained again", file=sys.stderr)
            else:
                require_record(record, str(path))
                self.records[record["hash"]] = record
            self._seen[path] = seen
        self.records = dict(sorted(self.records.items(), key=lambda item: item[1].get("order", 0)))

    def add(self, records: list[dict]) -> None:
        """Records runs, each in one step, replacing what was known of them; they are on the disk then.

        **Raises:** OSError if they cannot be written, ValueError or TypeError if they are not records; what was
        recorded before stays as it is.
        """
        self.refresh()
        order = max((record.get("order", 0) for record in self.records.values()), default=0) + 1
        files = {}
        for index, record in enumerate(records):
            require_record(record, f"what is to be recorded, {record},")
            try:
                text = json.dumps({"order": order + index} | record, allow_nan=False)
            except (ValueError, TypeError) as error:
                message = f"the record of run {record['hash']} must be plain JSON, with None where a number is not"
                raise type(error)(f"{message} finite: {error}") from error
            files[self.folder / RUNS / f"{record['hash']}.json"] = text + "\n"
        for path, text in files.items():
            with explained(f"{path} cannot be written"):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path in self._damaged:
                    os.replace(path, path.with_suffix(".damaged"))
                    self._damaged.remove(path)
                write_atomic(path, text)
        self.refresh()


def require_record(record, where: str) -> None:
    """Raises ValueError unless it is a record that this version can read."""
    schema = record.get("schema", SCHEMA) if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(
            f"{where} is of schema {schema}, and this version of cetsim knows up to {SCHEMA}: update cetsim "
            "(pip install --upgrade cetsim), or choose another folder; nothing was changed"
        )
    if schema is None or not {"hash", "columns", "rows"} <= record.keys():
        raise ValueError(f"{where} is not a record of a run, with hash, columns and rows: mend it, or start over")


def read_lines(path: Path) -> dict[str, dict]:
    """The records of a `runs.jsonl`, by hash; none if it is not there.

    **Raises:** ValueError where a line is not a record, unless it is the last and was cut short.
    """
    records, lines = {}, path.read_bytes().rstrip().split(b"\n") if path.exists() else []
    for index, line in enumerate(lines):
        where = f"line {index + 1} of {path}"
        try:
            record = json.loads(line or b"{}")
        except ValueError as error:
            if index < len(lines) - 1:
                raise ValueError(f"{where} is not a record of a run: mend or remove it") from error
            print(f"warning: passed over the last line of {path}, which was cut short or damaged", file=sys.stderr)
            break
        if line:
            require_record(record, where)
            records[record["hash"]] = record
    return records


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
            cells = {name: text if name == "run" else parse_cell(text) for name, text in row.items()}
            runs.setdefault(row["run"], []).append(cells)
    return {name: _record_of(name, rows) for name, rows in runs.items()}


def parse_cell(text: str | None) -> int | float | str | None:
    """The number or the text written; None if there is nothing."""
    if not text:
        return None
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        return text


def _record_of(name: str, rows: list[dict]) -> dict:
    """One run's record: what is the same in all its rows is the run's."""
    columns = {n: v for n, v in rows[0].items() if n not in (*OF_A_ROW, "run") and all(row[n] == v for row in rows)}
    kept = lambda n, v: n not in columns and n != "run" and (n == "value" or v is not None)  # noqa: E731
    rows = [{n: v for n, v in row.items() if kept(n, v)} for row in rows]
    failed = {"error": "not told by the table"} if any(row["metric"] == "failed" for row in rows) else {}
    return {"schema": SCHEMA, "hash": name, "config": None, "columns": columns, "rows": rows} | failed
