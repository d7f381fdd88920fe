"""The experiment retrograde-vision: what it runs, what it says to mistakes, and what its figures are drawn from."""

import csv
from dataclasses import replace

import pytest

from experiments import __main__ as command_line
from experiments import retrograde_vision
from experiments.options.retrograde_vision import PRESETS, RetrogradeVision
from experiments.records import read_results
from experiments.retrograde_report import Runs, table
from experiments.vision_conditions import RetrogradeCondition
from experiments.vision_training import hyperparameters

pytestmark = pytest.mark.slow

NAME = "retrograde-vision"
TINY = (
    *(NAME, "--stretch", "64", "--steps", "2", "--seeds", "1", "--hidden", "6", "5", "--orders", "2", "--delay", "4"),
    *("--fraction", "0.1", "--learning-rates", "1e-3"),
)
VARIED = (
    *("--delays", "0.2", "4", "--fractions", "0.1", "0.2", "--gates", "quantile", "threshold", "none"),
    *("--derivatives", "ideal", "cascade", "--placements", "shown", "random"),
)


def conditions_of(options):
    return [condition for (condition,) in retrograde_vision.groups(options)]


def test_one_thing_is_varied_at_a_time():
    wide = PRESETS["paper"]
    options = replace(PRESETS["mechanisms"], orders=(10,), delays=wide.delays, fractions=wide.fractions)
    conditions = conditions_of(options)
    usual = {"delay_s": 120.0, "fraction": 0.0125, "gate": "quantile", "derivative": "ideal", "placement": "shown"}
    for condition in conditions:
        assert isinstance(condition, RetrogradeCondition)
        assert (condition.peak_s, condition.update_every, condition.layers) == (condition.delay_s, 1280, 3)
        changed = {name for name, value in usual.items() if getattr(condition, name) != value}
        if condition.trace == "backprop":  # waits for nothing
            changed -= {"delay_s"}
        assert len(changed - {"fraction"} if condition.gate in ("none", "threshold") else changed) <= 1
    traced = [c for c in conditions if c.trace == "CET"]
    assert len(traced) == 1 + 4 + 2 + 4 + 1 + 1
    backprop = sorted((c.gate, c.fraction) for c in conditions if c.trace == "backprop")
    gates = [("none", 1.0), ("random", 0.0125), ("running", 0.0125), ("threshold", 1.0)]
    assert backprop == sorted([*gates, *(("quantile", share) for share in (0.0125, 0.05, 0.2))])
    assert len(conditions) == len(set(conditions))


def test_each_layer_is_set_to_its_own_delay():
    condition = next(c for c in conditions_of(PRESETS["demo"]) if (c.trace, c.order) == ("CET", 10))
    hyper = hyperparameters(replace(condition, learning_rate=1e-3))
    assert [float(delay.delay) for delay in hyper.delay.delays] == [0.0, 20.0, 40.0]
    assert [int(trace.taps.argmax()) for trace in hyper.trace] == [0, 100, 200]
    assert hyper.delay.keep_late
    cnn = replace(PRESETS["cifar10"], orders=(10,))
    hyper = hyperparameters(replace(conditions_of(cnn)[2], learning_rate=1e-3))
    assert [float(delay.delay) for delay in hyper.delay.delays] == [0.0, 120.0, 240.0, 360.0, 480.0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny run of all that can be varied."""
    out = tmp_path_factory.mktemp("tiny")
    assert command_line.main([*TINY, *VARIED, "--out", str(out)]) == 0
    return out / NAME


def test_rows_say_what_was_learned_from(tiny):
    with (tiny / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tested = [row for row in rows if row["metric"] == "test_accuracy" and row["step"] == "2"]
    seen = {(row["gate"], row["fraction"], row["placement"], row["derivative"]) for row in tested}
    assert seen == {
        ("quantile", "0.1", "shown", "ideal"),
        ("quantile", "0.2", "shown", "ideal"),
        ("threshold", "1.0", "shown", "ideal"),
        ("none", "1.0", "shown", "ideal"),
        ("quantile", "0.1", "random", "ideal"),
        ("quantile", "0.1", "shown", "cascade"),
    }
    assert {row["scenario"] for row in rows} == {"retrograde", "none"}
    assert {row["metric"] for row in rows} >= {"skipped", "missed", "alignment", "train_loss"}
    exact = {row["value"] for row in rows if row["metric"] == "alignment" and row["layer"] == "layers.4"}
    assert all(float(value) == pytest.approx(1.0, abs=1e-5) for value in exact)  # the top layer's signal is at hand


def test_an_ideal_memory_learns_what_backprop_learns(tiny):
    runs = Runs(read_results(tiny / "results.csv"))
    for gate in ("quantile", "none"):
        line, plain = (runs.at(trace, "gate", gate)[0] for trace in (("delay line", 0), ("backprop", 0)))
        assert line.final == plain.final
        assert line.loss == pytest.approx(plain.loss, rel=1e-5)


def test_what_is_compared_differs_in_one_thing(tiny):
    runs = Runs(read_results(tiny / "results.csv"))
    for name in ("delay_s", "fraction", "gate", "derivative", "placement"):
        for value in runs.values(name):
            for run in runs.at(("CET", 2), name, value).values():
                fixed = {"delay_s", "fraction", "gate", "derivative", "placement"} - {name}
                fixed -= {"fraction"} if value in ("none", "threshold") else set()
                assert {key: run.columns[key] for key in fixed} == {key: runs.usual[key] for key in fixed}


def test_tables_and_figures(tiny, capsys):
    text = table(Runs(read_results(tiny / "results.csv")))
    for title in ("delay per layer (s)", "share of salient images", "kind of gate", "when events happen"):
        assert title in text
    assert "missed for want of a place" in text
    for name in ("retrograde-vision", "retrograde-settings", "alignment"):
        for kind in ("png", "pdf"):
            assert (tiny / f"{name}.{kind}").stat().st_size > 1000
    before = (tiny / "retrograde-settings.pdf").read_bytes()
    assert command_line.main([*TINY, *VARIED, "--out", str(tiny.parent), "--plot-only"]) == 0
    assert (tiny / "retrograde-settings.pdf").read_bytes() == before
    assert command_line.main([*TINY, *VARIED, "--out", str(tiny.parent)]) == 0  # nothing is run again
    assert "seed 0: test accuracy" not in capsys.readouterr().out


def test_a_stream_of_events_runs(tmp_path):
    stream = ("--mode", "carry", "--gates", "running", "--derivatives", "ideal")
    assert command_line.main([*TINY, *stream, "--out", str(tmp_path)]) == 0
    rows = read_results(tmp_path / NAME / "results.csv")
    assert {row["mode"] for row in rows if row["trace"] != "backprop"} == {"carry"}
    assert not any(row["value"] for row in rows if row["metric"] == "diverged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fraction", "0"), "--fraction must be above 0 and at most 1, got 0"),
        (("--fractions", "0.1", "1.5"), "--fractions must be above 0 and at most 1, got 1.5"),
        (("--delay", "0.3"), "--delay must be above 0 and a multiple of 0.2 s, got 0.3"),
        (("--delays", "0"), "--delays must be above 0 and a multiple of 0.2 s, got 0"),
        (("--stretch", "1"), "--stretch must be at least 2, got 1"),
        (("--stretch", "1500"), "at least 1500 training images must be left after holding some out, got 1150"),
        (("--gates", "quantile", "quantile"), "--gates must be different from each other, got quantile quantile"),
        (("--mode", "carry"), "--derivatives must be ideal with --mode carry"),
        (("--dataset", "cifar10", "--network", "resnet20", "--form", "preactivation"), "--network must be mlp or cnn"),
        (("--threshold", "-1"), "--threshold must be at least 0, got -1"),
    ],
)
def test_mistakes(capsys, tmp_path, arguments, message):
    assert command_line.main([NAME, *arguments, "--out", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_presets_are_sound():
    for preset in PRESETS.values():
        preset.check()
    assert RetrogradeVision().update_every == 1280
