"""The examples of docs/sweeps.md run, one after the other, and do what the text around them says."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pages import page

from cetsim import sweep

IMAGES, OWN, LAYERS, CHOOSING, CONTROL, SUBMITIT, LOGGING = page("guides/sweeps.md")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(source, names=None):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "sweeps.md", "exec"), names := {"__name__": "__main__"} | (names or {}))
    assert printed.getvalue().strip()
    return names


def test_a_sweep_of_orders_and_delays():
    """Shorter than on the page, in float64."""
    names = run(IMAGES.replace("300", "20"))
    assert len(names["table"]) == 24
    accuracy = names["table"].final("accuracy").reshape(2, 2, 2, 3)
    assert accuracy[1, 0, 1].mean() > accuracy[0, 1, 0].mean()
    assert list(sweep.load("results/orders").records) == list(names["table"].records)


def test_whole_runs_in_a_batch_end_within_the_spread_of_seeds_of_those_alone():
    names = run(IMAGES.replace("300", "60").replace("order=(2, 10)", "order=(10,)"))
    together = names["table"].final("accuracy").reshape(-1, 3)
    alone = sweep.run("results/alone", names["conditions"], names["training"], batch=1).final("accuracy").reshape(-1, 3)
    assert np.all(np.abs(together - alone).max(axis=1) <= together.std(axis=1, ddof=1))


def test_a_training_of_ones_own():
    table = run(OWN.replace("1000", "100").replace("every=100", "every=50"))["table"]
    assert len(table) == 16
    assert np.all(table.final("distance") < 3)


def test_layers_choosing_and_tensorboard(monkeypatch):
    names = run(LAYERS)
    assert names["norms"].shape == (2 * 3, 2)  # layers and steps, by learning rate
    b = np.zeros(2)
    for _ in range(4):  # chunks of five steps
        b = b + 5 * np.array([0.1, 0.2]) * np.cos(b)
    np.testing.assert_allclose(names["norms"].loc["b", 20.0], b * 3**0.5)
    a = names["table"].rows.query("metric == 'test_error' and step == 20").value
    assert len(a) == 4
    trials = run(CHOOSING, names)
    errors = trials["trials"].final("test_error")
    assert trials["table"].runs.learning_rate.tolist() == [(0.1, 0.2)[int(np.argmin(errors))]] * 3
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install 'cetsim[log]'")
    logging = run(LOGGING, names)
    assert sorted(path.parent.name.partition("-")[0] for path in Path("logs").glob("*/written")) == sorted(
        names["table"].records
    )
    before = sorted(Path("logs").rglob("*"))
    logging["to_tensorboard"]("results/layers", "logs")
    assert sorted(Path("logs").rglob("*")) == before  # nothing twice


def test_what_tensorboard_and_wandb_are_given(monkeypatch):
    rows = [{"metric": "loss", "step": 1, "value": 0.5}, {"metric": "cosine", "layer": "top", "step": 2, "value": None}]
    record = {
        "columns": {"rate": 0.1},
        "rows": [
            *rows,
            {"metric": "loss", "step": 2, "value": 0.25},
            {"metric": "cosine", "layer": "top", "step": 2, "value": 0.75, "trace": "ET"},  # of a probe
        ],
        "finished": "12:30",
    }
    monkeypatch.setattr(sweep, "load", lambda folder: sweep.Table({"abc": record}))
    scalars, logged, begun = [], [], []

    class Writer:
        def __init__(self, logdir):
            Path(logdir).mkdir(parents=True)
            self.add_text, self.add_scalar = lambda *_: None, lambda *point: scalars.append(point)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def init(**options):
        begun.append(options)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(__import__("sys").modules, "wandb", SimpleNamespace(init=init))
    names = run(LOGGING)
    names["to_wandb"]("results", "widths", mode="offline")
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert scalars == [("loss", 0.5, 1), ("cosine/top", nan, 2), ("loss", 0.25, 2), ("cosine/top/ET", 0.75, 2)]
    assert logged == [(1, {"loss": 0.5}), (2, {"cosine/top": nan, "loss": 0.25, "cosine/top/ET": 0.75})]
    assert begun == [{"project": "widths", "id": "abc", "config": {"rate": 0.1}, "resume": "allow", "mode": "offline"}]


def test_control():
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")
    control = CONTROL.replace("60", "2").replace("every=20", "every=1").replace("updates=2", "updates=2, hidden=(8,)")
    assert np.all(run(control)["table"].final("returns") > 0)


def test_submitit():
    """Here without a cluster: submitit starts the processes on this machine."""
    pytest.importorskip("submitit", reason="needs submitit: pip install 'cetsim[cluster]'")
    table = run(SUBMITIT)["table"]
    np.testing.assert_allclose(sorted(table.final("loss")), np.arange(1, 5) * 0.9**45, rtol=1e-6)
