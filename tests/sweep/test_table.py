"""What is made of records: data frames and arrays, from folders and files of any version; what is chosen by them."""

import csv
import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_records import TABLE, old, record, write_lines

from cetsim import sweep
from cetsim.files import write_atomic
from cetsim.sweep.records import Records, parse_cell


def row(metric, value, step=20, **more):
    return {"metric": metric, "step": step, "value": value} | more


def two_runs():
    """A metric by step, one by layer, one of a probe, and one that is missing; and a run that failed."""
    first, second = record("a", seed=0, learning_rate=1e-3), record("b", None, seed=1, learning_rate=3e-4)
    first["rows"] = [
        row("loss", 0.1, step=10),
        row("loss", 0.30000000000000004),
        row("alignment", 0.25, layer="layers.0"),
        row("alignment", 0.75, layer="layers.0", trace="ET", order=1),
        row("test_accuracy", 0.5),
        row("diverged", 0.0),
    ]
    return [first | {"wall_s": 1.5}, second | {"wall_s": 2.0, "error": "RuntimeError: no"}]


@pytest.fixture
def table(tmp_path):
    Records(tmp_path).add(two_runs())
    return sweep.load(tmp_path)


def test_rows_are_all_that_was_measured(table):
    rows = table.rows
    assert list(rows) == [
        *("experiment", "trace", "order", "delay_s", "seed", "learning_rate", "run", "layer", "step", "metric", "value")
    ]
    assert len(rows) == 7
    losses = rows[(rows.run == "a") & (rows.metric == "loss")]
    assert losses.step.tolist() == [10, 20]
    assert losses.value.tolist() == [0.1, 0.30000000000000004]
    probe = rows[rows.metric == "alignment"].set_index("trace")
    assert (probe.value["CET"], probe.order["CET"], probe.value["ET"], probe.order["ET"]) == (0.25, 10, 0.75, 1)
    assert np.isnan(rows.value.iloc[-1])
    assert rows.layer.isna().sum() == 5


def test_runs_are_a_row_each(table):
    runs = table.runs
    assert runs.index.tolist() == list(table.records) == ["a", "b"]
    assert runs.learning_rate.tolist() == [1e-3, 3e-4]
    assert runs.loss.tolist()[0] == 0.30000000000000004
    assert runs.wall_s.tolist() == [1.5, 2.0]
    assert runs.error.isna().tolist() == [True, False]
    assert "alignment" not in runs
    assert repr(table).startswith("Table of 2 runs (1 failed): loss, alignment, test_accuracy")


def test_final_values(table):
    assert table.final("loss").tolist()[0] == 0.30000000000000004
    assert math.isnan(table.final("loss")[1])
    assert table.final("alignment", layer="layers.0").tolist()[0] == 0.75
    assert table.final("alignment", layer="layers.0", trace="CET").tolist()[0] == 0.25
    with pytest.raises(ValueError, match=r"`metric` must be one of loss, alignment/layers.0, .*, got 'los' with {}"):
        table.final("los")
    with pytest.raises(ValueError, match=r"got 'alignment' with {'layer': 'layers.9'}"):
        table.final("alignment", layer="layers.9")


def test_a_table_written_and_read_is_the_same(table, tmp_path):
    path = tmp_path / "results.csv"
    write_atomic(path, table.rows.to_csv(index=False))
    read = sweep.load(path)
    columns = [*table.rows]
    pd.testing.assert_frame_equal(read.rows[columns], table.rows, check_dtype=False)
    assert sweep.load(tmp_path).records == table.records  # the records count where both are
    Records(tmp_path / "other").add([record("c")])
    path.rename(tmp_path / "other" / "results.csv")
    both = sweep.load(tmp_path / "other")
    assert sorted(both.records) == ["a", "b", "c"]
    write_atomic(tmp_path / "other" / "results.csv", both.rows.to_csv(index=False))
    assert sorted(sweep.load(tmp_path / "other" / "results.csv").records) == ["a", "b", "c"]  # none is lost


def test_folders_and_files_of_earlier_versions(tmp_path):
    path = write_lines(tmp_path, old("a"), old("b", None))
    read = sweep.load(tmp_path)
    assert read.final("test_accuracy")[0] == 0.5
    assert read.runs.order.tolist() == [10, 10]
    path.unlink()
    (tmp_path / "results.csv").write_text(TABLE)
    read = sweep.load(tmp_path)
    assert read.runs.index.tolist() == ["12e4567890123456", "b"]
    assert read.runs.error.isna().tolist() == [True, False]


COMMITTED = sorted((Path(__file__).parents[2] / "figures").rglob("results.csv"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_every_committed_table_is_read_to_the_last_row(path):
    table = sweep.load(path)
    read = [(run, row) for run, record in table.records.items() for row in record["rows"]]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("metric", "step", "layer", "value")
    written = Counter((row["run"], *(str(parse_cell(row[name])) for name in names)) for row in rows)
    shared = {run: record["columns"] for run, record in table.records.items()}
    cells = [(run, {"layer": None, "step": None} | shared[run] | row) for run, row in read]
    assert Counter((run, *(str(row[name]) for name in names)) for run, row in cells) == written
    assert len(table.rows) == len(rows)


def test_where_there_is_nothing_it_is_said(tmp_path):
    for place in (tmp_path, tmp_path / "absent", tmp_path / "results.csv"):
        with pytest.raises(ValueError, match="there are no records of runs at"):
            sweep.load(place)


@pytest.mark.parametrize("module", ["pandas", "filelock"])
def test_a_library_that_is_absent_is_named_with_its_extra(tmp_path, module):
    code = f"""
import sys
sys.modules[{module!r}] = None
from cetsim import sweep
from cetsim.sweep.table import Table
try:
    table = sweep.run(sys.argv[1], [{{"seed": 0}}], sweep.Training(lambda h, k: h, lambda s, n: (s, 1.0), None, 1))
    assert table.final("loss") == [1.0]
    table.rows
except ImportError as error:
    assert str(error).startswith("this needs {module}: pip install 'cetsim[sweep]'"), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)


# Choosing.


@dataclass(frozen=True)
class Condition:
    trace: str = "CET"
    rate: float = 1e-3
    seed: int = 0


def trials(**outcomes):
    """A table of a run for each rate of each trace, with these last values."""
    records = {}
    for trace, values in outcomes.items():
        for rate, value in values.items():
            columns = {"experiment": "e", "trace": trace, "rate": float(rate.replace("_", ".")), "seed": 9}
            rows = [row("accuracy", None if isinstance(value, str) else value), row("loss", 1.0)]
            rows += [row("diverged", float(value == "diverged"))]
            error = {"error": "no"} if value == "failed" else {}
            records[f"{trace}{rate}"] = {"hash": "", "columns": columns, "rows": rows} | error
    return sweep.Table(records)


def test_the_best_of_each_group_is_chosen():
    table = trials(a={"0_1": 0.5, "0_2": 0.75}, b={"0_1": 0.5, "0_2": 0.5}, c={"0_1": "diverged", "0_2": 0.1})
    groups = [[Condition(trace, rate, 9) for rate in (0.1, 0.2)] for trace in "abc"]
    assert sweep.choose(table, groups, "accuracy") == [1, 0, 1]
    assert sweep.choose(table, groups, lambda values: -values["accuracy"]) == [0, 0, 1]
    assert sweep.choose(table, [[*groups[0], *groups[2]]], "accuracy") == [1]
    assert sweep.choose(table, [[vars(c) for c in group] for group in groups], "accuracy") == [1, 0, 1]


def test_a_group_of_one_needs_no_run_and_without_any_that_ended_well_it_is_the_first():
    only = [[Condition("d")], [Condition("e")]]
    assert sweep.choose(None, only, "accuracy") == [0, 0]
    table = trials(a={"0_1": "diverged", "0_2": "failed"})
    assert sweep.choose(table, [[Condition("a", 0.2, 9), Condition("a", 0.1, 9)]], "accuracy") == [0]
    assert sweep.choose(table, [[Condition("a", 0.2, 9), Condition("a", 0.1, 9)]], "absent") == [0]


def test_what_was_not_run_cannot_be_chosen_from():
    table, group = trials(a={"0_1": 0.5}), [Condition("a", 0.1, 9), Condition("a", 0.2, 9)]
    with pytest.raises(ValueError, match=r"must be conditions that were run .*, got Condition\(trace='a', rate=0.2"):
        sweep.choose(table, [group], "accuracy")
    with pytest.raises(ValueError, match="must be conditions that were run"):
        sweep.choose(table, [[group[0], replace(group[0], seed=1)]], "accuracy")
