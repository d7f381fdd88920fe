"""Records of runs: atomic files, resuming by hash, reading what others wrote."""

import json

import pytest

from cetsim.sweep.batches import config_hash
from experiments import records
from experiments.records import COLUMNS, Journal, read_results, to_csv


def record(key: str, value: float | None = 0.5, **columns) -> dict:
    shared = {"experiment": "e", "trace": "CET", "order": 10, "delay_s": 4.0} | columns
    rows = [{"metric": "test_accuracy", "step": 20, "value": value}]
    return {"schema": 1, "hash": key, "config": {"name": key}, "columns": shared, "rows": rows}


def test_hash_depends_on_the_config_alone_not_on_the_order_of_its_keys():
    one = config_hash({"a": 1, "b": {"c": 0.1, "d": [1, 2]}})
    assert one == config_hash({"b": {"d": [1, 2], "c": 0.1}, "a": 1})
    assert one != config_hash({"b": {"d": [2, 1], "c": 0.1}, "a": 1})
    assert len(one) == 16


def test_hash_refuses_what_is_not_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        config_hash({"a": float("nan")})


def test_number_is_none_where_json_has_no_number():
    assert [records.number(value) for value in (1, 0.25, float("nan"), float("inf"))] == [
        1.0,
        0.25,
        None,
        None,
    ]


def test_journal_is_resumed_from_its_file(tmp_path):
    Journal(tmp_path).append([record("a"), record("b")])
    journal = Journal(tmp_path)
    assert list(journal.records) == ["a", "b"]
    journal.append([record("b", 0.75)])  # done again: the last counts
    assert [row["value"] for row in Journal(tmp_path).rows()] == [0.5, 0.75]
    assert [row["value"] for row in journal.rows(["b"])] == [0.75]


def test_what_another_process_added_meanwhile_is_kept(tmp_path):
    here, there = Journal(tmp_path), Journal(tmp_path)
    there.append([record("there")])
    here.append([record("here")])
    assert set(Journal(tmp_path).records) == {"here", "there"}


def test_a_line_cut_short_is_dropped_with_a_warning_and_nothing_else(tmp_path, capsys):
    Journal(tmp_path).append([record("a"), record("b")])
    path = tmp_path / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert list(Journal(tmp_path).records) == ["a"]
    assert "cut short" in capsys.readouterr().err
    Journal(tmp_path).append([record("c")])
    assert list(Journal(tmp_path).records) == ["a", "c"]


def test_a_whole_last_line_without_its_newline_is_read(tmp_path):
    (tmp_path / "runs.jsonl").write_text(json.dumps(record("a")))
    assert list(Journal(tmp_path).records) == ["a"]


@pytest.mark.parametrize("line", ["{", "[]", '{"hash": "x"}'])
def test_any_other_broken_line_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(record("a")) + f"\n{line}\n" + json.dumps(record("b")) + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*runs\.jsonl"):
        Journal(tmp_path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"output folder .*file.* cannot be written"):
        records.require_writable(tmp_path / "file" / "below")


def test_results_have_the_columns_promised_then_others(tmp_path):
    Journal(tmp_path).append([record("a", time_s=0.2), record("b", None)])
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert header.split(",") == [*COLUMNS, "time_s", "run"]
    assert header.startswith(
        "experiment,scenario,dataset,network,trace,order,delay_s,form,mode,"
        "learning_rate,seed,layer,step,metric,value,error_gate"
    )
    assert lines == [
        "e,,,,CET,10,4.0,,,,,,20,test_accuracy,0.5,,0.2,a",
        "e,,,,CET,10,4.0,,,,,,20,test_accuracy,,,,b",
    ]


def test_results_are_read_back_and_unknown_columns_do_no_harm(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(to_csv([record("a")["columns"] | record("a")["rows"][0] | {"mood": "good"}]))
    (row,) = read_results(path)
    assert (row["trace"], row["order"], row["step"], row["value"]) == ("CET", 10.0, 20.0, 0.5)
    assert row["seed"] is None
    assert row["mood"] == "good"


# Where only the table is there.


def two_runs() -> list[dict]:
    """Runs as experiments record them: a metric by step, one by layer, and one that is missing."""
    first = record("a", learning_rate=1e-3, seed=0, error_gate=1e-8, rise_s=0.0)
    first["rows"] += [
        {"metric": "alignment", "step": 20, "value": 0.25, "layer": "layers.0"},
        {"metric": "train_loss", "step": 20, "value": None},
    ]
    return [first, record("b", None, seed=1, learning_rate=3e-4, spread_s=1.5)]


def test_a_table_alone_is_gone_on_from(tmp_path):
    Journal(tmp_path).append(two_runs())
    table = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "runs.jsonl").unlink()
    journal = Journal(tmp_path)
    assert list(journal.records) == ["a", "b"]
    journal.write_results()
    assert (tmp_path / "results.csv").read_bytes() == table
    journal.append([record("c")])
    (tmp_path / "results.csv").rename(tmp_path / "table.csv")
    assert list(Journal(tmp_path).records) == ["a", "b", "c"]  # the records hold all by now
    (tmp_path / "table.csv").rename(tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_bytes().startswith(table)


def test_what_a_table_tells_of_a_run(tmp_path):
    Journal(tmp_path).append(two_runs())
    (tmp_path / "runs.jsonl").unlink()
    told = Journal(tmp_path).records
    for written in two_runs():
        read = told[written["hash"]]
        assert {name: value for name, value in read["columns"].items() if value not in (None, "")} == written["columns"]
        assert read["rows"] == written["rows"]


@pytest.mark.parametrize("some", [True, False])
def test_a_table_that_names_no_runs_is_kept_out_of_harm(tmp_path, some):
    path = tmp_path / "results.csv"
    rows = [record("a")["columns"] | record("a")["rows"][0]] * 2
    path.write_text(to_csv([rows[0] | {"run": "a"}, *rows] if some else rows))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"results.csv has rows that do not say of which `run`.* --fresh, or .* --out"):
        Journal(tmp_path)
    assert path.read_bytes() == before
    path.write_text(to_csv([]))  # nothing to lose
    assert Journal(tmp_path).records == {}


def test_two_that_go_on_from_one_table_lose_nothing(tmp_path):
    Journal(tmp_path).append(two_runs())
    (tmp_path / "runs.jsonl").unlink()
    here, there = Journal(tmp_path), Journal(tmp_path)
    there.append([record("there")])
    here.append([record("here")])
    assert list(Journal(tmp_path).records) == ["a", "b", "there", "here"]
    assert (tmp_path / "results.csv").read_text() == to_csv(Journal(tmp_path).rows())


def test_the_table_is_that_of_all_rows_however_it_grew(tmp_path):
    journal = Journal(tmp_path)
    for more in (record("a"), record("b", mood="good"), record("a", 0.75), record("c", time_s=0.2)):
        journal.append([more])
        assert (tmp_path / "results.csv").read_text() == to_csv(journal.rows())
    Journal(tmp_path).write_results()
    assert (tmp_path / "results.csv").read_text() == to_csv(journal.rows())


def test_the_journal_counts_more_than_a_table(tmp_path):
    Journal(tmp_path).append([record("a")])
    (tmp_path / "results.csv").write_text(to_csv([]))
    assert list(Journal(tmp_path).records) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no .*results.csv"),
        ("", "lacks the columns experiment, scenario"),
        ("trace,order\nET,1\n", "lacks the columns"),
        (",".join(COLUMNS) + "\n" + ",".join("x" * len(COLUMNS)) + "\n", "line 2 of .*could not convert"),
    ],
)
def test_results_that_cannot_be_read_say_why(tmp_path, content, message):
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(path)
