"""The experiment retrograde-vision: what it runs, what it says to mistakes, and what its figures are drawn from."""

import csv
from dataclasses import replace

import pytest
from experiment import error_of, output_of

from experiments import retrograde_vision
from experiments.common import tables
from experiments.common.hyperparameters import hyperparameters
from experiments.retrograde_vision import PRESETS, Runs

NAME = "retrograde-vision"
TINY = (
    *(NAME, "--segment", "64", "--steps", "2", "--seeds", "1", "--hidden", "6", "5", "--orders", "2", "--delay", "4"),
    *("--fraction", "0.1", "--learning-rates", "1e-3"),
)
VARIED = (
    *("--delays", "0.2", "4", "--fractions", "0.1", "0.2", "--gates", "quantile", "threshold", "none"),
    *("--derivatives", "ideal", "cascade", "--placements", "shown", "random"),
)


def conditions_of(options):
    return [condition for (condition,) in retrograde_vision.conditions(options)]


def test_one_thing_is_varied_at_a_time():
    wide = PRESETS["paper"]
    options = replace(PRESETS["mechanisms"], orders=(10,), delays=wide.delays, fractions=wide.fractions)
    conditions = conditions_of(options)
    usual = {"delay_s": 120.0, "fraction": 0.0125, "gate": "quantile", "derivative": "ideal", "placement": "shown"}
    for condition in conditions:
        assert (condition.peak_s, condition.segment, condition.layers) == (condition.delay_s, 1280, 3)
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
    output_of(*TINY, *VARIED, "--out", out)
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
    rows = tables.read(tiny / "results.csv")
    ends = Runs(rows).at("gate")
    for gate in ("quantile", "none"):
        line, plain = (ends[(ends["trace"] == name) & (ends["gate"] == gate)] for name in ("delay line", "backprop"))
        assert line["value"].tolist() == plain["value"].tolist() != []
        losses = [rows[(rows["run"] == run) & (rows["metric"] == "train_loss")]["value"].tolist()
                  for run in (line["run"].item(), plain["run"].item())]  # fmt: skip
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_compared_differs_in_one_thing(tiny):
    runs = Runs(tables.read(tiny / "results.csv"))
    for name in ("delay_s", "fraction", "gate", "derivative", "placement"):
        found = tables.of_trace(runs.at(name), ("CET", 2)).to_dict("records")
        assert len({run[name] for run in found}) == len(found) > 1
        for run in found:
            fixed = {"delay_s", "fraction", "gate", "derivative", "placement"} - {name}
            fixed -= {"fraction"} if run[name] in ("none", "threshold") else set()
            assert {key: run[key] for key in fixed} == {key: runs.usual[key] for key in fixed}


def test_tables_and_figures(tiny):
    before = (tiny / "retrograde-settings.pdf").read_bytes()
    text = output_of(*TINY, *VARIED, "--out", tiny.parent, "--plot-only")
    assert (tiny / "retrograde-settings.pdf").read_bytes() == before
    for title in ("delay per layer (s)", "salient images (%)", "images learned from", "when salient images are seen"):
        assert title in text
    assert "missed for want of a place" in text
    for name in ("retrograde-vision", "retrograde-settings", "alignment"):
        for kind in ("png", "pdf"):
            assert (tiny / f"{name}.{kind}").stat().st_size > 1000
    assert "seed 0: " not in output_of(*TINY, *VARIED, "--out", tiny.parent)  # nothing is run again


def test_a_stream_of_events_runs(tmp_path):
    stream = ("--boundary", "carry", "--gates", "running", "--derivatives", "ideal")
    assert "figure left out: retrograde-settings, nothing is varied" in output_of(*TINY, *stream, "--out", tmp_path)
    rows = tables.read(tmp_path / NAME / "results.csv")
    assert set(rows.loc[rows["trace"] != "backprop", "boundary"]) == {"carry"}
    assert not tables.diverged(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fraction", "0"), "--fraction must be above 0 and at most 1, got 0"),
        (("--fractions", "0.1", "1.5"), "--fractions must be above 0 and at most 1, got 1.5"),
        (("--delay", "0.3"), "--delay must be above 0 and a multiple of 0.2 s, got 0.3"),
        (("--delays", "0"), "--delays must be above 0 and a multiple of 0.2 s, got 0"),
        (("--segment", "1"), "--segment must be at least 2, got 1"),
        (("--segment", "1500"), "at least 1500 training images must be left after holding some out, got 1150"),
        (("--gates", "quantile", "quantile"), "--gates must be different from each other, got quantile quantile"),
        (("--boundary", "carry"), "--derivatives must be ideal with --boundary carry"),
        (("--dataset", "cifar10", "--network", "resnet20", "--form", "preactivation"), "--network must be mlp or cnn"),
        (("--threshold", "-1"), "--threshold must be at least 0, got -1"),
    ],
)
def test_mistakes(capsys, tmp_path, arguments, message):
    assert message in error_of(capsys, NAME, *arguments, "--out", tmp_path)


def test_presets_are_sound():
    for preset in PRESETS.values():
        preset.check()
