"""What was recorded, to analyse: arrays, and data frames of pandas.

```
table = load("results/behavioral-vision")
table.runs.groupby("learning_rate").test_accuracy.agg(["mean", "std"])
curve = table.rows.query("metric == 'train_loss'").pivot_table("value", "step", "learning_rate")
```
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cetsim.extras import require
from cetsim.sweep.grid import entries, plain
from cetsim.sweep.records import OF_A_ROW, OLD_RUNS, RUNS, TABLE, Records, read_lines, read_table


def load(path: str | Path) -> "Table":
    """The runs recorded in a folder, or in one file of rows (`results.csv`) or of earlier versions (`runs.jsonl`).

    **Raises:** ValueError if there are none, or if they cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        records = Records(path).records
    else:
        records = read_lines(path) if path.suffix == Path(OLD_RUNS).suffix else read_table(path)
    if not records:
        raise ValueError(f"there are no records of runs at {path}: no {RUNS} or {TABLE} that says what was measured")
    return Table(records)


class Table:
    """Runs, each with what it is a run of and all that was measured; those of different seeds are different runs.

    **Attributes:** `records`: by hash, in the order of all that is made of them.
    """

    def __init__(self, records: dict[str, dict]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        failed = sum("error" in record for record in self.records.values())
        metrics = ", ".join(dict.fromkeys(row["metric"] for record in self.records.values() for row in record["rows"]))
        return f"Table of {len(self)} runs ({failed} failed): {metrics}"

    @property
    def rows(self):
        """All that was measured as a DataFrame: a row a value, with the columns of its run and its `run`.

        What is missing, or was not finite, is NaN. **Raises:** ImportError if pandas is not installed.
        """
        frame = require("pandas", extra="sweep").DataFrame(
            record["columns"] | {"run": run, "layer": None, "step": None} | row
            for run, record in self.records.items()
            for row in record["rows"]
        )
        return frame.assign(value=frame["value"].astype(float)) if len(frame) else frame

    @property
    def runs(self):
        """The runs as a DataFrame by `run`: its columns, `wall_s`, `error` and the last value of each metric.

        Metrics of layers or of probes are in `rows` alone.
        """
        about = [
            record["columns"] | {name: record.get(name) for name in ("wall_s", "error")} | final_values(record)
            for record in self.records.values()
        ]
        return require("pandas", extra="sweep").DataFrame(about, index=list(self.records)).rename_axis("run")

    def final(self, metric: str, **where: Any) -> np.ndarray:
        """The last value of a metric in every run, [runs]; NaN where there is none or it was not finite.

        **Arguments:** `where`: what else its rows have, such as `layer="layers.0"`; by default they have no layer.

        **Raises:** ValueError if no run has such rows.
        """
        wanted = {"metric": metric, "layer": None} | where
        found = [
            [
                row["value"]
                for row in record["rows"]
                if wanted.items() <= ({"layer": None} | record["columns"] | row).items()
            ]
            for record in self.records.values()
        ]
        if self.records and not any(found):
            rows = [row for record in self.records.values() for row in record["rows"]]
            known = dict.fromkeys("/".join(filter(None, (row["metric"], row.get("layer")))) for row in rows)
            raise ValueError(f"`metric` must be one of {', '.join(known)}, got {metric!r} with {where}")
        return np.array([values[-1] if values else None for values in found], float)


def choose(table: Table | None, groups: Sequence[Sequence], by: str | Callable[[dict[str, float]], Any]) -> list[int]:
    """Which of the conditions in each group did best: their indices in it.

    **Arguments:**

    - `table`: of the runs of all conditions; None where no group has a choice.
    - `groups`: of conditions. A group of one is no choice, and need not have been run.
    - `by`: the metric whose last value is to be large, or a function of all last values by metric.

    Runs that failed or diverged, or lack the metric, come last; among equals the first is chosen.
    """
    score = (lambda values: values[by]) if isinstance(by, str) else by
    names = list(entries(groups[0][0])) if groups else []
    key = lambda columns: json.dumps([columns.get(name) for name in names])  # noqa: E731
    ran = {} if table is None else {key(record["columns"]): record for record in table.records.values()}
    chosen = []
    for group in groups:
        scores: dict[int, Any] = {}
        for index, condition in enumerate(group if len(group) > 1 else ()):
            record = ran.get(key(plain(entries(condition), "groups")))
            if record is None:
                raise ValueError(
                    f"`groups` must be of conditions that were run (wait=True waits for all), got {condition}"
                )
            values = {name: value for name, value in final_values(record).items() if value is not None}
            if "error" not in record and not values.get("diverged"):
                with contextlib.suppress(KeyError):
                    scores[index] = score(values)
        chosen.append(max(scores, key=scores.get, default=0))
    return chosen


def final_values(record: dict) -> dict[str, float | None]:
    """The last value of each metric of a run; those of layers, or that are told apart otherwise, are none."""
    plain_rows = (row for row in record["rows"] if {*row} <= {*OF_A_ROW} and row.get("layer") is None)
    return {row["metric"]: row["value"] for row in plain_rows}
