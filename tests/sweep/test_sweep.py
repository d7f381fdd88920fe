"""Sweeps of a user's own training: batches, groups, records, resuming; and vision, retrograde and control in one."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from toy_sweep import CONDITIONS, DESCENT, advance, evaluate, init, rows_of
from worlds import corridor

import cetsim
from cetsim import rl, sweep
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from cetsim.sweep import runner
from cetsim.sweep import training as user_training
from cetsim.sweep.interrupts import Interrupted
from cetsim.sweep.records import Records
from cetsim.sweep.training import Trainer


def descent(condition):
    """The norm at the end of a run and its losses, from the definition."""
    w = np.asarray(jax.random.normal(jax.random.key(condition["seed"]), (3,)))
    losses = []
    for _ in range(20):
        losses.append(np.sum(w**2))
        w = w * (1 - 2 * condition["learning_rate"])
    return np.linalg.norm(w), [np.mean(losses[:8]), np.mean(losses[8:16]), np.mean(losses[16:])]


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_sweep_is_the_loop_over_its_conditions(tmp_path, batch):
    table = sweep.run(tmp_path, CONDITIONS, DESCENT, batch=batch)
    assert len(table) == 6
    for i, condition in enumerate(CONDITIONS):
        assert table.runs.iloc[i][list(condition)].to_dict() == condition
        norm, losses = descent(condition)
        np.testing.assert_allclose(table.final("norm")[i], norm, rtol=1e-12)
        curve = table.rows.query("metric == 'loss' and run == @table.runs.index[@i]")
        assert curve.step.tolist() == [8, 16, 20]
        np.testing.assert_allclose(curve.value, losses, rtol=1e-12)


def test_programs_are_not_kept_without_end(tmp_path, monkeypatch):
    """Linux allows a process 65,530 maps of memory; a sweep of control died of 33 programs."""
    monkeypatch.setattr(runner, "MAPS", 0)
    kept = []

    def widths(width):
        def start(hyper, key):
            kept.append(len(jax.devices()[0].client.live_executables()))
            return init(hyper, key) | {"w": jnp.ones(width)}

        return sweep.Training(start, advance, evaluate, steps=4)

    sweep.run(tmp_path, sweep.grid(learning_rate=(0.1,), width=range(1, 13)), widths, static=("width",))
    assert len(kept) == 12
    assert max(kept[8:]) <= max(kept[4:8]) + 1, kept


def test_what_is_recorded_is_not_trained_again(tmp_path, monkeypatch):
    first = sweep.run(tmp_path, CONDITIONS[:4], DESCENT, batch=2)
    begun = []
    monkeypatch.setattr(
        Trainer, "begin", lambda self, slots, begin=Trainer.begin: begun.append(slots) or begin(self, slots)
    )
    table = sweep.run(tmp_path, CONDITIONS, DESCENT, batch=2)
    assert begun == [CONDITIONS[4:]]
    assert list(table.records)[:4] == list(first.records)
    sweep.run(tmp_path, CONDITIONS, DESCENT, batch=2, fresh=True)
    assert len(begun) == 4


def test_axes_that_change_shapes_are_compiled_once_a_group(tmp_path, monkeypatch):
    traced = []

    def make(width):
        def start(hyper, key):
            return init(hyper, key) | {"w": jax.random.normal(key, (width,))}

        def go_on(state, steps):
            traced.append((width, state["w"].shape, steps))
            return advance(state, steps)

        return sweep.Training(start, go_on, evaluate, steps=20, every=10)

    conditions = sweep.grid(width=(2, 5), learning_rate=(0.1, 0.01), seed=range(3))
    table = sweep.run(tmp_path, conditions, make, static=["width"], batch=3)
    assert sorted(traced) == [(2, (2,), 10), (5, (5,), 10)]
    batches = {tuple(record["batch"]["of"]) for record in table.records.values()}
    assert sorted(map(len, batches)) == [3] * 4
    assert all(len({table.records[key]["config"]["condition"]["width"] for key in of}) == 1 for of in batches)


def test_hyperparameters_of_other_shapes_are_another_group(tmp_path):
    own = DESCENT._replace(
        init=lambda hyper, key: {"w": hyper * jax.random.normal(key, hyper.shape), "rate": 0.1 + 0 * hyper[0]},
        advance=lambda state, steps: (state, jnp.sum(state["w"])),
        hyperparameters=lambda condition: jnp.ones(condition["size"]),
    )
    table = sweep.run(tmp_path, sweep.grid(size=(1, 2), seed=range(2)), own)
    widths = [record["batch"]["width"] for record in table.records.values()]
    assert widths == [2] * 4
    assert len({tuple(record["batch"]["of"]) for record in table.records.values()}) == 2


def test_records_say_all_that_a_run_depended_on(tmp_path):
    table = sweep.run(tmp_path, CONDITIONS, DESCENT, config={"data": "none"}, batch=4)
    for place, (key, record) in enumerate(table.records.items()):
        assert record["config"] == {
            "condition": CONDITIONS[place], "steps": 20, "every": 8, "config": {"data": "none"}
        }  # fmt: skip
        assert record["hash"] == key
        assert record["versions"]["jax"] == jax.__version__
        assert record["device"]["platform"] == jax.devices()[0].platform
        assert record["wall_s"] >= 0
        assert record["batch"] == {"width": 3, "of": list(table.records)[place // 3 * 3 :][:3], "slot": place % 3}
    assert list(sweep.load(tmp_path).records) == list(table.records)


def test_one_that_fails_or_diverges_leaves_the_others_alone(tmp_path, capsys):
    def rate(condition):
        if condition["learning_rate"] == 0.5:
            raise RuntimeError("no such rate")
        return {"learning_rate": condition["learning_rate"]}

    conditions = [{"learning_rate": rate, "seed": 0} for rate in (0.1, 0.5, 1e200, 0.01)]
    table = sweep.run(tmp_path, conditions, DESCENT._replace(hyperparameters=rate))
    assert "RuntimeError: no such rate" in capsys.readouterr().err
    norms = table.final("norm")
    expected = [descent(condition)[0] for condition in (conditions[0], conditions[3])]
    np.testing.assert_allclose(norms[[0, 3]], expected, rtol=1e-12)
    assert np.isnan(norms[[1, 2]]).all()
    assert table.final("diverged").tolist()[2:] == [1.0, 0.0]
    assert "no such rate" in table.records[list(table.records)[1]]["error"]
    mended = DESCENT._replace(hyperparameters=lambda condition: {"learning_rate": condition["learning_rate"]})
    assert "error" not in sweep.run(tmp_path, conditions, mended).records[list(table.records)[1]]


class Stop(BaseException):
    """An end without a word, as by SIGKILL."""


def stop_after(monkeypatch, calls):
    left = iter(range(calls))

    def advance(self, *arguments, original=Trainer.advance):
        if next(left, None) is None:
            raise Stop
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "advance", advance)


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_a_sweep_goes_on_where_it_was_left(tmp_path, monkeypatch, calls):
    sweep.run(tmp_path / "whole", CONDITIONS, DESCENT, batch=3)
    with monkeypatch.context() as patch:
        stop_after(patch, calls)
        with pytest.raises(Stop):
            sweep.run(tmp_path / "halves", CONDITIONS, DESCENT, batch=3, checkpoint_every=0.0)
    steps = []
    monkeypatch.setattr(Trainer, "advance", lambda *a, original=Trainer.advance: steps.append(a[2:]) or original(*a))
    sweep.run(tmp_path / "halves", CONDITIONS, DESCENT, batch=3, checkpoint_every=0.0)
    assert len(steps) == 6 - calls
    assert rows_of(tmp_path / "halves") == rows_of(tmp_path / "whole")
    assert not (tmp_path / "halves" / "checkpoints").exists()


@pytest.mark.parametrize(
    "change", [{"training": DESCENT._replace(steps=24)}, {"config": {"data": 2}}, {"batch": 6}, {"stage": "other"}]
)
def test_an_unfinished_sweep_of_another_config_is_left_alone(tmp_path, monkeypatch, capsys, change):
    options = {"conditions": CONDITIONS, "training": DESCENT, "batch": 3}
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            sweep.run(tmp_path, **options, checkpoint_every=0.0)
    sweep.run(tmp_path, **options | change)
    recorded = "batch" in change or "stage" in change  # under the same names: nothing is left to go on with
    note = "note: unfinished batches, declared otherwise, that are left alone: 1"
    assert (note in capsys.readouterr().err) == ("stage" not in change)
    begun = []
    advance = lambda *a, original=Trainer.advance: begun.append(a[2]) or original(*a)  # noqa: E731
    monkeypatch.setattr(Trainer, "advance", advance)
    assert len(sweep.run(tmp_path, **options)) == 6
    assert begun == ([] if recorded else [8, 16, 0, 8, 16])
    assert not list(tmp_path.glob("checkpoints/training/*"))


def digits():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(64, 5)), rng.integers(0, 3, 64).astype(np.int32)
    make_model = lambda key: cetsim.nn.mlp((5, 6, 3), key=key)  # noqa: E731
    return SupervisedRun(make_model, x, labels, Settings(steps=10, segment=16))


def vision():
    run = digits()

    def hyper(condition):
        delay = condition["delay"]
        trace = cetsim.CascadingTrace(condition["order"], delay, 0.2).tabulate(16)
        return Hyperparameters(condition["learning_rate"], trace, cetsim.FixedDelay(delay, 0.2))

    axes = {"order": (2, 6), "delay": (0.2, 0.6), "learning_rate": (1e-2,), "seed": range(2)}
    measure = lambda state: run.evaluate(state, run.x, run.labels)  # noqa: E731
    return sweep.Training(run.init, run.advance, measure, 10, hyperparameters=hyper), sweep.grid(**axes)


def retrograde():
    run = digits()

    def hyper(condition):
        top = cetsim.DelayLine(0.0, 0.2).tabulate(16)
        below = cetsim.CascadingTrace(condition["order"], 0.4, 0.2).tabulate(16)
        delay = cetsim.LayerwiseDelay.stacked(0.4, 2, 0.2, 0.4)
        return Hyperparameters(condition["learning_rate"], (top, below), delay)

    axes = {"order": (2, 6), "learning_rate": (1e-2, 1e-3), "seed": range(2)}
    return sweep.Training(run.init, run.advance, None, 10, hyperparameters=hyper), sweep.grid(**axes)


def control():
    settings = rl.Settings(updates=10, environments=2, rollout=5, hidden=(), window=20)
    run = rl.ActorCriticRun(corridor(), settings)

    def hyper(condition):
        trace = cetsim.CascadingTrace(condition["order"], 0.6, 0.2).tabulate(20)
        return rl.Hyperparameters(condition["learning_rate"], trace, cetsim.FixedDelay(0.6, 0.2, 0.6))

    axes = {"order": (2, 6), "learning_rate": (1e-2, 1e-3), "seed": range(2)}
    return sweep.Training(run.init, run.advance, None, 10, hyperparameters=hyper), sweep.grid(**axes)


def assert_each_equals_itself_alone(training, conditions, tolerance):
    """The whole state, weights among it, after ten updates; the first condition and every third."""
    training = training._replace(every=5)
    assert len({training.shape_of(condition) for condition in conditions}) == 1
    program, start = Trainer(training, len(conditions), jax.local_devices()[:1]), 0
    state = program.begin(conditions)
    for end in program.ends:
        state, rows = program.advance(state, start, end)
        start = end
    assert [own[-1] for own in rows] == [{"metric": "diverged", "step": 10, "value": 0.0}] * len(conditions)
    advance_alone = jit(training.advance)
    for slot, condition in list(enumerate(conditions))[::3]:
        alone = training.init(training.arrays(condition), jax.random.key(condition["seed"]))
        alone, _ = advance_alone(alone, 10)
        for in_batch, own in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
            if jnp.issubdtype(own.dtype, jnp.inexact):
                np.testing.assert_allclose(in_batch[slot], own, atol=tolerance)


@pytest.mark.parametrize("make", [vision, retrograde, control])
def test_a_condition_in_a_batch_equals_it_alone(make):
    assert_each_equals_itself_alone(*make(), tolerance=1e-9)


def test_a_condition_in_a_batch_equals_it_alone_in_float32():
    with jax.enable_x64(False):
        training, conditions = vision()
        assert training.arrays(conditions[0]).learning_rate.dtype == jnp.float32
        assert_each_equals_itself_alone(training, conditions, tolerance=1e-4)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would(tmp_path, monkeypatch):
    monkeypatch.setattr(user_training.os, "sysconf", lambda name: 14)
    with pytest.raises(
        ValueError, match=r"`batch` must be so small .*: 6 runs on 1 devices need .*; about \d would fit"
    ):
        sweep.run(tmp_path, CONDITIONS, DESCENT, devices=jax.local_devices()[:1])
    assert Records(tmp_path).records == {}


def test_what_is_measured_must_be_numbers(tmp_path, capsys):
    for change, message in (
        ({"evaluate": lambda state: {"w": state["w"][None]}}, "a number, or one a layer, got 'w' of shape [1, 3]"),
        ({"advance": lambda state, steps: (state, state["w"])}, "a number, or one a step, got 'loss' of shape [3]"),
    ):
        table = sweep.run(tmp_path, CONDITIONS[:1], DESCENT._replace(**change))
        assert message in capsys.readouterr().err
        assert len(table) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": []}, "`conditions` must be at least one"),
        ({"conditions": [{"a": 1}, {"b": 1}]}, r"must have one set of names, \['a'\], got \['b'\]"),
        ({"conditions": [{"a": 1}, {"a": 1}]}, "conditions must differ, got a 1 twice"),
        ({"conditions": [{"a": 0}, {"a": 0.0}], "defaults": {"a": 0}}, "conditions must differ, got a 0.0 twice"),
        ({"conditions": [{"a": object()}]}, "`a` must be a JSON value, got <object"),
        ({"conditions": [{"a": float("nan")}]}, "`a` must be a JSON value, got nan"),
        ({"batch": 0}, "`batch` must be at least 1, got 0"),
        ({"checkpoint_every": -1.0}, "`checkpoint_every` must be at least 0, got -1"),
        ({"shard": "3/2"}, "--shard must be i/n with 1 <= i <= n, got 3/2"),
        ({"shard": "1/2", "fresh": True}, "`fresh` must be False where processes share a folder"),
        (
            {"static": ["width"]},
            r"`static` must name axes of the conditions, .*, got \['width'\]",
        ),
        ({"training": lambda: DESCENT}, "`training` must be a Training where no axis is static, got <function"),
        ({"static": ["seed"], "training": lambda seed: 3}, "`training` must return a Training, got 3"),
        ({"training": DESCENT._replace(steps=0)}, "`steps` must be at least 1, got 0"),
    ],
)
def test_mistakes(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(tmp_path, **{"conditions": CONDITIONS, "training": DESCENT} | change)
    assert not (tmp_path / "runs").exists()


def test_numbers_of_numpy_are_plain_ones(tmp_path):
    conditions = [{"learning_rate": np.float32(0.5), "seed": np.int64(1)}]
    (record,) = sweep.run(tmp_path, conditions, DESCENT).records.values()
    assert json.dumps(record["columns"]) == '{"learning_rate": 0.5, "seed": 1}'


def test_interruption_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stop(self, batches):
        raise Interrupted(143)

    monkeypatch.setattr(runner.Runner, "run", stop)
    monkeypatch.setattr("sys.orig_argv", ["python", "my sweep.py", "--fresh", "--out", "a b"])
    with pytest.raises(SystemExit) as end:
        sweep.run(tmp_path, CONDITIONS, DESCENT)
    assert end.value.code == 143
    assert (
        f"what was done is kept in {tmp_path}\nto go on: python 'my sweep.py' --out 'a b'\n" in capsys.readouterr().err
    )


def test_a_sweep_that_was_killed_between_two_records_goes_on(tmp_path, monkeypatch):
    """Two runs of a batch are recorded and its checkpoints still there; then all, with the checkpoints there."""
    options = {"conditions": CONDITIONS, "training": DESCENT, "batch": 3}
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            sweep.run(tmp_path, **options, checkpoint_every=0.0)
    whole = tmp_path / "whole"
    table = sweep.run(whole, **options)
    begun = []
    advance = lambda *a, original=Trainer.advance: begun.append(a[2]) or original(*a)  # noqa: E731
    monkeypatch.setattr(Trainer, "advance", advance)
    for recorded in (2, 3):
        left = shutil.copytree(tmp_path / "checkpoints", tmp_path / str(recorded) / "checkpoints").parent
        (left / "runs").mkdir()
        for key in list(table.records)[:recorded]:
            shutil.copy(whole / "runs" / f"{key}.json", left / "runs")
        sweep.run(left, **options)
        assert rows_of(left) == rows_of(whole)
        assert not (left / "checkpoints").exists()
    assert begun == [16, 0, 8, 16, 0, 8, 16]
