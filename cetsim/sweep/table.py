"""What was recorded, to analyse: arrays, and data frames of pandas."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cetsim.extras import require
from cetsim.sweep.grid import entries, plain
from cetsim.sweep.records import OF_A_ROW, RUNS, TABLE, Records, read_table


def load(path: str | Path) -> "Table":
    """The runs recorded in a folder, by whichever version, or in one file of rows (`results.csv`).

    **Raises:** ValueError if there are none, or if they cannot be read.
    """
    path = Path(path)
    records = Records(path).records if path.is_dir() else read_table(path)
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
        frame = require("pandas", extra="sweep").DataFrame(row for rows in self._rows() for row in rows)
        return frame.assign(value=frame["value"].astype(float)) if len(frame) else frame

    @property
    def runs(self):
        """The runs as a DataFrame by `run`: its columns, `wall_s`, `error` and the last value of each metric.

        Metrics of layers or of probes are in `rows` alone.
        """
        frame = require("pandas", extra="sweep").DataFrame(
            r["columns"] | {name: r.get(name) for name in ("wall_s", "error")} | final_values(r["rows"])
            for r in self.records.values()
        )
        return frame.set_axis(list(self.records)).rename_axis("run")

    def final(self, metric: str, **where: Any) -> np.ndarray:
        """The last value of a metric in every run, [runs]; NaN where there is none or it was not finite.

        **Arguments:** `where`: what else its rows have, such as `layer="layers.0"`; by default they have no layer.

        **Raises:** ValueError if no run has such rows.
        """
        wanted, every = {"metric": metric, "layer": None} | where, self._rows()
        found = [[row["value"] for row in rows if wanted.items() <= row.items()] for rows in every]
        if every and not any(found):
            known = {"/".join(filter(None, (row["metric"], row["layer"]))): None for rows in every for row in rows}
            raise ValueError(f"`metric` must be one of {', '.join(known)}, got {metric!r} with {where}")
        return np.array([values[-1] if values else None for values in found], float)

    def _rows(self) -> list[list[dict]]:
        """The rows of each run, with its columns."""
        common = lambda run, record: record["columns"] | {"run": run, "layer": None, "step": None}  # noqa: E731
        return [[common(run, one) | row for row in one["rows"]] for run, one in self.records.items()]


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
            if (record := ran.get(key(plain(entries(condition), "groups")))) is None:
                raise ValueError(f"`groups` must be conditions that were run (or wait=True), got {condition}")
            values = {name: value for name, value in final_values(record["rows"]).items() if value is not None}
            if "error" not in record and not values.get("diverged"):
                with contextlib.suppress(KeyError):
                    scores[index] = score(values)
        chosen.append(max(scores, key=scores.get, default=0))
    return chosen


def final_values(rows: list[dict]) -> dict[str, float | None]:
    """The last value of each metric in the rows of a run, but for those of layers or that are told apart otherwise."""
    plain_rows = (row for row in rows if {*row} <= {*OF_A_ROW} and row.get("layer") is None)
    return {row["metric"]: row["value"] for row in plain_rows}
