"""What is made of records: arrays and data frames to analyse, TensorBoard's logs, runs at Weights & Biases.

```
table = load("results/behavioral-vision")
rates, seeds = table.column("learning_rate"), table.column("seed")  # a value a run
steps, losses = table.curve(table.hashes[0], "train_loss")
```

TensorBoard and Weights & Biases are fed from the same records, afterwards or while a sweep runs:

```
python -c "from cetsim.sweep.writers import *; to_tensorboard('results/behavioral-vision', 'logs', follow=True)"
```
"""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cetsim.extras import require
from cetsim.sweep.records import OF_A_ROW, RUNS, Records, parse_number, records_of

__all__ = ["Table", "load", "to_tensorboard", "to_wandb"]
TABLE = "results.csv"


def load(path: str | Path) -> "Table":
    """The runs recorded in a folder, or in one file of records (`runs.jsonl`) or rows (`results.csv`).

    **Raises:** ValueError if there are none, or if they cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / (TABLE if (path / TABLE).exists() and not (path / RUNS).exists() else RUNS)
    if not path.exists():
        raise ValueError(f"there are no records of runs at {path}")
    if path.suffix != ".csv":
        return Table(Records(path.parent, path.name).records)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{n: text if n == "run" else _cell(text) for n, text in row.items()} for row in csv.DictReader(file)]
    if not all(row.get("run") and "metric" in row and "value" in row for row in rows):
        raise ValueError(f"each row of {path} must have a metric, a value and the run that it is of, and some do not")
    return Table(records_of(rows))


def _cell(text: str | None) -> int | float | str | None:
    try:
        return parse_number(text or "")
    except ValueError:
        return text


class Table:
    """Runs, each with its settings, curves and final values; those of different seeds are different runs.

    **Attributes:** `records`: by hash. `hashes`: one a run, in the order of all other arrays.
    """

    def __init__(self, records: dict[str, dict]):
        self.records = records
        self.hashes = list(records)

    def __len__(self) -> int:
        return len(self.hashes)

    def column(self, name: str) -> np.ndarray:
        """A setting of every run: a column, or a part of the config (`"settings.batch"`), or `"wall_s"`.

        **Returns:** [runs], integers or floats (nan where a run lacks it) where all are numbers, else objects.

        **Raises:** ValueError if no run has it.
        """
        settings = [_settings(record) for record in self.records.values()]
        if not any(name in own for own in settings):
            known = dict.fromkeys(name for own in settings for name in own)
            if any(name in row for record in self.records.values() for row in record.get("rows") or ()):
                raise ValueError(f"{name!r} differs between rows of one run, and is no column of runs: see dataframe()")
            raise ValueError(f"the column must be one of {', '.join(known)}, got {name!r}")
        return _array([own.get(name) for own in settings])

    def final(self, metric: str, layer: str | None = None, **where: Any) -> np.ndarray:
        """The last value of a metric in every run, [runs]; nan where there is none or it was not finite.

        **Arguments:** as of `curve`.
        """
        found = [_select(record, metric, layer, where) for record in self.records.values()]
        return np.array([_float(points[-1]["value"]) if points else math.nan for points in found])

    def metrics(self, run: str) -> list[tuple[str, str | None]]:
        """What was measured in the run of this hash: metrics with their layers."""
        return list(dict.fromkeys((point["metric"], point["layer"]) for point in _points(self._record(run))))

    def curve(self, run: str, metric: str, layer: str | None = None, **where: Any) -> tuple[np.ndarray, np.ndarray]:
        """A metric of the run of this hash along its training.

        **Arguments:** `where`: more that its rows must have, such as `trace="CET"` of what was measured of other
        traces in the same run.

        **Returns:** steps and values, [points] each; values that were not finite are nan.

        **Raises:** ValueError if there is no such run, or it has no such metric.
        """
        points = _select(self._record(run), metric, layer, where)
        if not points:
            asked = (metric, layer, *([where] if where else []))
            raise ValueError(f"metric and layer must be one of {self.metrics(run)}, got {asked}")
        return _array([point["step"] for point in points]), np.array([_float(point["value"]) for point in points])

    def dataframe(self):
        """All that was measured as a pandas DataFrame, a row a value, with the columns of its run and its `run`.

        **Raises:** ImportError if pandas is not installed.
        """
        pandas = require("pandas", extra="sweep")
        return pandas.DataFrame(
            _columns(record) | {"run": run} | point | {"value": _float(point["value"])}
            for run, record in self.records.items()
            for point in _points(record)
        )

    def _record(self, run: str) -> dict:
        if run not in self.records:
            raise ValueError(f"the run must be one of the {len(self)} hashes of this table, got {run!r}")
        return self.records[run]


def _points(record: dict) -> Iterator[dict[str, Any]]:
    """All that was measured, as rows; final values where there is no curve that has them."""
    blank, along = {"layer": None, "step": None}, set()
    for row in record.get("rows") or ():
        along.add(row["metric"])
        yield blank | row
    for metric, curve in (record.get("curves") or {}).items():
        along.add(metric)
        for step, value in zip(curve["steps"], curve["values"], strict=True):
            yield blank | {"metric": metric, "step": step, "value": value}
    for metric, value in (record.get("final") or {}).items():
        if metric not in along:
            yield blank | {"metric": metric, "value": value}


def _select(record: dict, metric: str, layer: str | None, where: dict) -> list[dict]:
    shared, wanted = _columns(record), {"metric": metric, "layer": layer} | where
    found = (point for point in _points(record) if point["metric"] == metric)
    found = [point for point in found if wanted.items() <= (shared | point).items()]
    kinds = list(dict.fromkeys(_tag(point) for point in found))
    if len(kinds) > 1:
        raise ValueError(f"rows of one kind must be chosen by what they have besides layer and step, got {kinds}")
    return found


def _columns(record: dict) -> dict[str, Any]:
    return record.get("columns") or _flat(record.get("config") or {})


def _settings(record: dict) -> dict[str, Any]:
    more = {name: record[name] for name in ("hash", "wall_s", "finished") if name in record}
    return more | _flat(record.get("config") or {}) | _columns(record)


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _float(value) -> float:
    return math.nan if value is None else float(value)


def _array(values: list) -> np.ndarray:
    if all(isinstance(value, int) for value in values):  # truth values too
        return np.array(values)
    if all(value is None or isinstance(value, int | float) for value in values):
        return np.array([_float(value) for value in values])
    array = np.empty(len(values), object)
    array[:] = values  # np.array would make lists of one length a matrix
    return array


# Feeding others.


def to_tensorboard(
    folder: str | Path, logdir: str | Path, *, named_by: Sequence[str] = (), follow: bool = False, poll: float = 10.0
) -> int:
    """Writes the runs of `folder` as logs that TensorBoard shows; those written before are not written again.

    **Arguments:** `named_by`: settings to name runs by (as of `Table.column`), before their hash. `follow`: goes on
    while a sweep holds the folder, looking every `poll` seconds.

    **Returns:** how many runs were written.

    **Raises:** ImportError without tensorboardX, ValueError if there is nothing to write.
    """
    tensorboard, logdir = require("tensorboardX", extra="log"), Path(logdir)

    def write(record: dict, _: str) -> None:
        place = logdir / _name(record, named_by)
        if place.exists():  # from a writer that was killed, or of a record that was made anew
            shutil.rmtree(place)
        writer = tensorboard.SummaryWriter(logdir=str(place))
        try:
            writer.add_text("config", f"```\n{json.dumps(record.get('config') or _columns(record), indent=1)}\n```")
            for point in _points(record):
                writer.add_scalar(_tag(point), _float(point["value"]), int(point["step"] or 0))
        finally:
            writer.close()

    return _feed(folder, logdir / ".written", write, follow, poll)


def to_wandb(
    folder: str | Path,
    project: str,
    *,
    named_by: Sequence[str] = (),
    follow: bool = False,
    poll: float = 10.0,
    **options: Any,
) -> int:
    """Writes the runs of `folder` to a project at Weights & Biases; those written before are not written again.

    What was written is remembered in `folder`, by entity and project. A run recorded anew becomes a new run there.

    **Arguments:** as of `to_tensorboard`; `options` go to `wandb.init`, such as `entity`, `group`, `mode="offline"`.

    **Returns:** how many runs were written.

    **Raises:** ImportError without wandb, ValueError if there is nothing to write.
    """
    wandb = require("wandb", extra="log")

    def write(record: dict, digest: str) -> None:
        # The same record has the same name there, so that one cut short is gone on with.
        told = {"project": project, "id": f"{_safe(record['hash'])}-{digest[:8]}", "name": _name(record, named_by)}
        run = wandb.init(**told, config=record.get("config") or _columns(record), resume="allow", **options)
        try:
            by_step: dict[int, dict[str, float]] = {}
            for point in _points(record):
                if point["step"] is None:
                    run.summary[_tag(point)] = _float(point["value"])
                else:
                    by_step.setdefault(int(point["step"]), {})[_tag(point)] = _float(point["value"])
            for step in sorted(by_step):  # steps that go back are dropped there
                run.log(by_step[step], step=step)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()

    where = "-".join(_safe(str(part)) for part in (options.get("entity"), project) if part)
    return _feed(folder, Path(folder) / f".wandb-{where}", write, follow, poll)


def _feed(folder: str | Path, written: Path, write: Callable[[dict, str], None], follow: bool, poll: float) -> int:
    """Hands records with their digests to `write`, but for those that the file `written` names."""
    source = Records(folder)
    if not source.path.exists() and not (follow and source.in_use()):
        source.records = load(folder).records
    known = set(written.read_text().splitlines()) if written.exists() else set()
    seen: dict[str, dict] = {}
    count = 0
    while True:
        goes_on = follow and source.in_use()  # asked first: what is recorded between this and the look is seen
        source.refresh()
        for key, record in source.records.items():
            if seen.get(key) is record:
                continue
            digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
            if f"{key} {digest}" not in known:
                write(record, digest)
                _remember(written, f"{key} {digest}")
                known.add(f"{key} {digest}")
                count += 1
            seen[key] = record
        if not goes_on:
            return count
        time.sleep(poll)


def _remember(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{line}\n")  # begun anew, since the last may have been cut short
        file.flush()
        os.fsync(file.fileno())


def _tag(point: dict) -> str:
    """Metric, layer, and what else sets the row apart in its run."""
    more = ",".join(f"{name}={value}" for name, value in point.items() if name not in OF_A_ROW and value is not None)
    return "/".join(filter(None, (point["metric"], point["layer"], more)))


def _name(record: dict, named_by: Sequence[str]) -> str:
    settings = _settings(record)
    unknown = [name for name in named_by if name not in settings]
    if unknown:
        raise ValueError(f"named_by must name settings of every run ({', '.join(settings)}), got {', '.join(unknown)}")
    return ",".join(
        [*(re.sub(r"[^\w.=+-]", "_", f"{name}={settings[name]}") for name in named_by), _safe(record["hash"])]
    )


def _safe(name: str) -> str:
    """`name` where it can be a file's, else a digest of it."""
    return name if re.fullmatch(r"[\w-]+", name) else hashlib.sha256(name.encode()).hexdigest()[:16]
