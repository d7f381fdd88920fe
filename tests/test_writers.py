"""What is made of records: arrays, data frames, TensorBoard's logs, runs at Weights & Biases."""

import importlib
import json
import math
import struct
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cetsim.sweep.records import SCHEMA, Records
from cetsim.sweep.writers import load, to_tensorboard, to_wandb
from experiments.records import Journal


def record(seed: int, rate: float = 1e-3, trace: str = "CET", **more) -> dict:
    """A run as experiments record them, in rows."""
    columns = {"experiment": "e", "trace": trace, "learning_rate": rate, "seed": seed}
    losses = [{"metric": "loss", "step": step, "value": 1.0 / (step + seed + 1)} for step in (0, 10, 20)]
    layers = [{"metric": "alignment", "layer": f"layers.{i}", "step": 20, "value": 0.25 * i + seed} for i in (0, 1)]
    rows = [*losses, *layers, {"metric": "accuracy", "step": 20, "value": None if seed == 2 else 0.5 + seed / 10}]
    config = {"seed": seed, "settings": {"batch": 128, "sizes": [3, 3]}}
    own = {"schema": SCHEMA, "hash": f"run{seed}", "config": config, "columns": columns, "rows": rows, "wall_s": 1.5}
    return own | more


def compact(key: str) -> dict:
    """A run as a sweep may record it, in curves and final values."""
    curves = {"loss": {"steps": [0, 5], "values": [1.0, None]}}
    final = {"loss": 9.0, "accuracy": 0.75}
    return {"schema": SCHEMA, "hash": key, "config": {"rate": 1, "name": "x"}, "curves": curves, "final": final}


@pytest.fixture
def folder(tmp_path):
    Journal(tmp_path / "runs").append([record(seed) for seed in range(3)])
    return tmp_path / "runs"


# Arrays.


@pytest.mark.parametrize("name", ["", "runs.jsonl", "results.csv", "only the table"])
def test_runs_are_read_as_arrays(folder, name):
    if name == "only the table":
        (folder / "runs.jsonl").unlink()
    table = load(folder / name if "." in name else folder)
    assert table.hashes == ["run0", "run1", "run2"]
    assert len(table) == 3
    rates, seeds, traces = map(table.column, ("learning_rate", "seed", "trace"))
    assert (rates.dtype, rates.tolist()) == (np.float64, [1e-3] * 3)
    assert (seeds.dtype.kind, seeds.tolist()) == ("i", [0, 1, 2])
    assert traces.tolist() == ["CET"] * 3
    np.testing.assert_array_equal(table.final("accuracy"), [0.5, 0.6, np.nan])
    np.testing.assert_array_equal(table.final("alignment", "layers.1"), [0.25, 1.25, 2.25])
    assert np.isnan(table.final("loss", "layers.1")).all()
    for seed, key in enumerate(table.hashes):  # kept apart
        steps, losses = table.curve(key, "loss")
        np.testing.assert_array_equal(steps, [0, 10, 20])
        np.testing.assert_array_equal(losses, 1.0 / (steps + seed + 1))
        np.testing.assert_array_equal(table.curve(key, "alignment", "layers.0"), [[20], [seed]])
        expected = [("loss", None), ("alignment", "layers.0"), ("alignment", "layers.1"), ("accuracy", None)]
        assert table.metrics(key) == expected


def test_settings_come_from_the_config_too(folder):
    table = load(folder)
    assert table.column("settings.batch").tolist() == [128] * 3
    assert table.column("settings.sizes").tolist() == [[3, 3]] * 3
    assert table.column("wall_s").tolist() == [1.5] * 3
    assert table.column("hash").tolist() == table.hashes


def test_curves_and_final_values(tmp_path):
    Records(tmp_path).append([compact("a"), compact("b") | {"config": {"name": "y"}}])
    table = load(tmp_path)
    np.testing.assert_array_equal(table.curve("a", "loss"), [[0, 5], [1.0, np.nan]])
    np.testing.assert_array_equal(table.final("accuracy"), [0.75, 0.75])
    np.testing.assert_array_equal(table.column("rate"), [1.0, np.nan])
    assert table.column("name").tolist() == ["x", "y"]


def test_rows_that_are_not_of_their_run_s_trace_are_kept_apart(tmp_path, log):
    """As experiments record what other traces would have done at the same weights."""
    own = record(0)
    own["rows"] += [{"metric": "alignment", "layer": "layers.0", "step": 20, "value": 0.125, "trace": "ET"}]
    Journal(tmp_path).append([own])
    to_tensorboard(tmp_path, tmp_path / "logs")
    assert ("alignment/layers.0", 20, 0.0) in log.runs["run0"]
    assert ("alignment/layers.0/trace=ET", 20, 0.125) in log.runs["run0"]
    for path in (tmp_path, tmp_path / "results.csv"):
        table = load(path)
        for trace, value in (("CET", 0.0), ("ET", 0.125)):
            np.testing.assert_array_equal(table.curve("run0", "alignment", "layers.0", trace=trace), [[20], [value]])
            assert table.final("alignment", "layers.0", trace=trace).tolist() == [value]
        with pytest.raises(ValueError, match=r"rows of one kind must be chosen .* got \['alignment/layers.0"):
            table.curve("run0", "alignment", "layers.0")
    with pytest.raises(ValueError, match="'trace' differs between rows of one run, and is no column of runs"):
        table.column("trace")
    with pytest.raises(ValueError, match=r"one of .* got \('loss', None, {'trace': 'IIR'}\)"):
        table.curve("run0", "loss", trace="IIR")


def test_data_frames(folder):
    pytest.importorskip("pandas")
    frame = load(folder).dataframe()
    assert len(frame) == 3 * 6
    assert {"trace", "learning_rate", "seed", "run", "metric", "layer", "step", "value"} <= set(frame.columns)
    assert frame.value.dtype == np.float64
    means = frame[frame.metric == "loss"].groupby("step").value.mean()
    np.testing.assert_allclose(means[0], np.mean([1, 1 / 2, 1 / 3]))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda table: table.column("speed"), "column must be one of hash, wall_s, seed, settings.batch.* got 'speed'"),
        (lambda table: table.curve("run0", "speed"), r"must be one of \[\('loss', None\).* got \('speed', None\)"),
        (lambda table: table.curve("run9", "loss"), "one of the 3 hashes of this table, got 'run9'"),
    ],
)
def test_what_is_not_there_is_named(folder, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(load(folder))


def test_what_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "results.csv"):
        with pytest.raises(ValueError, match="there are no records of runs at"):
            load(path)
    (tmp_path / "results.csv").write_text("trace,metric,value,run\nET,loss,1.0,\n")
    with pytest.raises(ValueError, match=r"each row of .*results\.csv must have a metric, a value and the run"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("module", "use", "message"),
    [
        ("pandas", lambda folder: load(folder).dataframe(), r"this needs pandas: pip install 'cetsim\[sweep\]'"),
        ("tensorboardX", lambda folder: to_tensorboard(folder, folder), r"pip install 'cetsim\[log\]'"),
        ("wandb", lambda folder: to_wandb(folder, "p"), r"this needs wandb: pip install 'cetsim\[log\]'"),
    ],
)
def test_what_is_not_installed_says_how(folder, monkeypatch, module, use, message):
    monkeypatch.setitem(sys.modules, module, None)  # so importing it fails
    with pytest.raises(ImportError, match=message):
        use(folder)


# Others' logs.


class Log(ModuleType):
    """Stands for both libraries: what it was given, by place."""

    def __init__(self):
        super().__init__("log")
        self.runs, self.closed, self.fails = {}, [], False

    def SummaryWriter(self, logdir):
        Path(logdir).mkdir(parents=True)
        return self._start(Path(logdir).name)

    def init(self, **told):
        return self._start(told["id"], told)

    def _start(self, name, told=None):
        points = self.runs[name] = []
        summary = {}

        def log(values, step):
            if self.fails:
                raise RuntimeError("the network is gone")
            points.extend((tag, step, value) for tag, value in values.items())

        return SimpleNamespace(
            add_text=lambda tag, text: None,
            add_scalar=lambda tag, value, step: log({tag: value}, step),
            close=lambda: self.closed.append(name),
            log=log,
            summary=summary,
            told=self.runs.setdefault(f"{name} told", (told, summary)),
            finish=lambda exit_code=0: self.closed.append((name, exit_code)),
        )


@pytest.fixture
def log(monkeypatch):
    log = Log()
    for module in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, module, log)
    return log


def test_tensorboard_gets_every_run_once(folder, tmp_path, log):
    assert to_tensorboard(folder, tmp_path / "logs") == 3
    assert log.closed == ["run0", "run1", "run2"]
    assert log.runs["run1"][:3] == [("loss", step, 1.0 / (step + 2)) for step in (0, 10, 20)]
    assert log.runs["run1"][3:5] == [("alignment/layers.0", 20, 1.0), ("alignment/layers.1", 20, 1.25)]
    assert math.isnan(log.runs["run2"][-1][-1])  # as TensorBoard shows what is not finite
    assert to_tensorboard(folder, tmp_path / "logs") == 0
    Journal(folder).append([record(1, 1e-2), record(7)])  # one anew, one more
    assert to_tensorboard(folder, tmp_path / "logs") == 2
    assert log.closed[3:] == ["run1", "run7"]
    assert to_tensorboard(folder, tmp_path / "other", named_by=("trace", "seed")) == 4
    assert log.closed[5] == "trace=CET,seed=0,run0"


def test_a_log_that_was_not_finished_is_written_again(folder, tmp_path, log):
    log.fails = True
    with pytest.raises(RuntimeError, match="network"):
        to_tensorboard(folder, tmp_path / "logs")
    assert (tmp_path / "logs" / "run0").exists()
    log.fails = False
    assert to_tensorboard(folder, tmp_path / "logs") == 3
    with (tmp_path / "logs" / ".written").open("r+") as file:  # cut short
        file.truncate(len(file.read()) - 5)
    assert to_tensorboard(folder, tmp_path / "logs") == 1
    assert to_tensorboard(folder, tmp_path / "logs") == 0


def test_a_table_alone_can_be_shown(folder, tmp_path, log):
    (folder / "runs.jsonl").unlink()
    assert to_tensorboard(folder, tmp_path / "logs") == 3
    with pytest.raises(ValueError, match="there are no records of runs at"):
        to_tensorboard(tmp_path / "nothing", tmp_path / "logs")
    with pytest.raises(ValueError, match=r"named_by must name settings .* got mood"):
        to_tensorboard(folder, tmp_path / "more", named_by=("mood",))


def test_no_name_leads_out_of_the_logs(tmp_path, log):
    Records(tmp_path / "runs").append([compact("../.."), compact("..")])
    to_tensorboard(tmp_path / "runs", tmp_path / "logs")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "logs"}
    assert len([path for path in (tmp_path / "logs").iterdir() if path.is_dir()]) == 2


def test_wandb_gets_every_run_once(tmp_path, log):
    Records(tmp_path).append([compact("a"), compact("b")])
    options = dict(entity="me", mode="offline", named_by=("rate",))
    assert to_wandb(tmp_path, "delays", **options) == 2
    first, second = (name for name in log.runs if not name.endswith("told"))
    assert (first[:2], second[:2]) == ("a-", "b-")
    assert log.closed == [(first, 0), (second, 0)]
    told, summary = log.runs[f"{first} told"]
    expected = dict(project="delays", entity="me", mode="offline", name="rate=1,a", resume="allow")
    assert {name: told[name] for name in expected} == expected
    assert told["config"] == {"rate": 1, "name": "x"}
    assert summary == {"accuracy": 0.75}
    assert log.runs[first][0] == ("loss", 0, 1.0)
    assert math.isnan(log.runs[first][1][2])
    assert to_wandb(tmp_path, "delays", **options) == 0
    assert to_wandb(tmp_path, "another project") == 2


def test_a_run_that_wandb_did_not_get_is_sent_again(tmp_path, log):
    Records(tmp_path).append([compact("a")])
    log.fails = True
    with pytest.raises(RuntimeError, match="network"):
        to_wandb(tmp_path, "p")
    ((name, status),) = log.closed
    assert status == 1
    log.fails = False
    assert to_wandb(tmp_path, "p") == 1
    assert log.closed[1:] == [(name, 0)]  # the same run, gone on with


def test_following_ends_with_the_sweep_and_has_all_of_it(tmp_path, log):
    sweep, count = Records(tmp_path / "runs"), []
    feed = lambda: count.append(to_tensorboard(sweep.folder, tmp_path / "logs", follow=True, poll=0.01))  # noqa: E731
    with sweep.exclusive():
        thread = threading.Thread(target=feed)
        thread.start()
        for key in "abc":
            sweep.append([compact(key)])
            while (tmp_path / "logs" / key) not in (tmp_path / "logs").glob("*"):
                assert thread.is_alive()
        sweep.append([compact("d")])
    thread.join(20)
    assert count == [4]


def test_tensorboard_reads_it(folder, tmp_path):
    pytest.importorskip("tensorboardX")
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    assert to_tensorboard(folder, tmp_path / "logs") == 3
    (path,) = (tmp_path / "logs" / "run1").glob("events.out.tfevents.*")
    data, found = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = events.Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        data = data[16 + length :]
    np.testing.assert_allclose(found["loss"], [(step, 1.0 / (step + 2)) for step in (0, 10, 20)], rtol=1e-6)
    assert found["alignment/layers.1"] == [(20, 1.25)]


def test_records_stay_plain_json(folder):
    for line in (folder / "runs.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["schema"] == SCHEMA
