"""The experiments on reinforcement learning: what they run, what they say to mistakes, what their figures are of."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from programs import last, trained_rows
from worlds import corridor

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FirstStageCascade
from experiments import __main__ as command_line
from experiments import behavioral_rl, retrograde_rl, rl_report, rl_study, rl_training
from experiments.options.behavioral_rl import PRESETS, BehavioralRL
from experiments.options.retrograde_rl import PRESETS as RETROGRADE_PRESETS
from experiments.options.retrograde_rl import RetrogradeRL
from experiments.records import read_results
from experiments.rl_conditions import UNDELAYED, RLCondition, Stage

pytestmark = pytest.mark.slow

SMALL = ("--environments", "2", "--rollout", "8", "--hidden", "4", "--seeds", "2", "--orders", "2", "--episodes", "3")
TINY = (
    *("behavioral-rl", *SMALL, "--frames", "64", "--selection-frames", "32", "--delays", "0.4", "0.8"),
    *("--selection-delay", "0.4", "--learning-rates", "1e-2", "1e-3"),
)
FEW = (UNDELAYED, ("CET", 2))


def make_small(patch, *traces):
    """A world that needs no simulator in place of each, and few traces: compiling them is what takes time."""
    for module in (rl_training, rl_study):
        patch.setattr(module, "open_environment", lambda options: corridor())
    for module in (behavioral_rl, retrograde_rl):
        patch.setattr(module, "traces_of", lambda options: list(traces))
    patch.setattr(rl_training, "ROLLOUTS", 2)


def error_of(capsys, *arguments: str) -> str:
    """What the command line says on stderr, having exited with status 2."""
    try:
        status = command_line.main([*arguments])
    except SystemExit as stop:  # what can't even be parsed
        status = stop.code
    assert status == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny run."""
    out = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, *FEW)
        assert command_line.main([*TINY, "--out", str(out)]) == 0
    return out / "behavioral-rl"


# What is run.


def test_every_trace_at_every_delay_and_once_without():
    conditions = behavioral_rl.conditions(BehavioralRL(delays=(2.0, 8.0), orders=(2, 10)))
    assert len(set(conditions)) == len(conditions) == 1 + 2 * 4
    assert conditions.count(RLCondition(*UNDELAYED, 0.0)) == 1
    assert {(c.trace, c.order) for c in conditions if c.delay_s == 8.0} == {
        ("ET", 1), ("CET", 2), ("CET", 10), ("delay line", 0),
    }  # fmt: skip


def test_settings_are_chosen_at_one_delay():
    options = BehavioralRL(delays=(2.0,), learning_rates=(1e-4, 1e-3), betas=(0.5, 0.9, 0.99), selection_delay=8.0)
    trials = rl_study._trials(behavioral_rl.STUDY, RLCondition("ET", 1, 2.0), options)
    assert {(t.delay_s, t.seed) for t in trials} == {(8.0, 1000)}
    assert {(t.learning_rate, t.beta) for t in trials} == {(r, b) for r in (1e-4, 1e-3) for b in (0.5, 0.9, 0.99)}
    assert all((c.delay_s, c.learning_rate, c.beta) == (2.0, t.learning_rate, t.beta) for t, c in trials.items())
    trials = rl_study._trials(behavioral_rl.STUDY, RLCondition(*UNDELAYED, 0.0), options)
    assert {(t.delay_s, t.beta) for t in trials} == {(0.0, 0.0)}


def test_traces_and_delays_of_a_condition():
    stage = Stage("test", BehavioralRL(), 1000)
    hyper = stage.hyperparameters(RLCondition("CET", 10, 8.0, learning_rate=1e-3))
    assert isinstance(hyper.trace, CascadingTrace)
    assert int(np.argmax(hyper.trace.weights(np.arange(200)))) == int(hyper.delay.steps) == 40
    assert (float(hyper.learning_rate), float(hyper.critic_rate)) == (1e-3, 1.0)
    hyper = stage.hyperparameters(RLCondition("ET", 1, 8.0, beta=0.9, learning_rate=1e-3))
    assert isinstance(hyper.trace, ExponentialTrace)
    weights = hyper.trace.weights(np.arange(1, 4))
    np.testing.assert_allclose(weights[1:] / weights[:-1], 0.9, rtol=1e-12)
    theirs = Stage("test", BehavioralRL(cascade="first_stage", normalization="peak"), 1000)
    hyper = theirs.hyperparameters(RLCondition("CET", 10, 8.0, learning_rate=1e-3))
    assert isinstance(hyper.trace, FirstStageCascade)
    assert float(hyper.trace.weights(np.arange(200)).max()) == 1.0
    assert isinstance(stage.hyperparameters(RLCondition(*UNDELAYED, 0.0, learning_rate=1.0)).trace, DelayLine)


def test_retrograde_signals_stack():
    options = RetrogradeRL()
    stage = Stage("test", options, 1000)
    condition = next(c for c in retrograde_rl.conditions(options) if (c.trace, c.order) == ("CET", 10))
    hyper = stage.hyperparameters(replace(condition, learning_rate=1e-3))
    assert [int(delay.steps) for delay in hyper.delay.delays] == [0, 400, 800]
    peaks = [int(np.argmax(trace.weights(np.arange(2000)))) for trace in hyper.trace]
    assert peaks == [0, 400, 800]


@pytest.mark.parametrize("options", [*PRESETS.values(), *RETROGRADE_PRESETS.values()])
def test_presets_pass_their_own_checks(options):
    options.check()


def test_the_paper_settings_go_with_the_environment():
    settings = Stage("test", PRESETS["space_invaders"], 10**6).settings()
    assert (settings.environments, settings.rollout) == (32, 32)
    settings = Stage("test", PRESETS["paper"], 10**6).settings()
    assert (settings.environments, settings.rollout, settings.hidden) == (4, 128, (256, 256))


def test_flags_reach_the_agent():
    flags = ("reset_cascade", "late_critic", "late_flag")
    for flag in flags:
        settings = Stage("test", BehavioralRL(**{flag: True}), 1000).settings()
        assert [getattr(settings, name) for name in flags] == [name == flag for name in flags]
    words = {"truncation": "terminate", "anneal": "both", "actor_gradient": "sum", "form": "authors_linear"}
    settings = Stage("test", BehavioralRL(**words, random_lam=(0.1, 0.9)), 1000).settings()
    assert {name: getattr(settings, name) for name in words} == words
    assert settings.random_lam == (0.1, 0.9)


def test_the_authors_code():
    stage = Stage("test", PRESETS["authors"], PRESETS["authors"].frames)
    settings, hyper = stage.settings(), stage.hyperparameters(RLCondition("CET", 10, 8.0, learning_rate=1e-3))
    assert (settings.truncation, settings.late_flag, settings.anneal) == ("terminate", True, "critic")
    assert (settings.form, settings.actor_gradient, settings.random_lam) == ("authors_linear", "mean", None)
    assert float(hyper.critic_rate) == 1.0
    assert isinstance(hyper.trace, FirstStageCascade)
    assert float(hyper.trace.weights(np.arange(200)).max()) == 1.0
    assert settings.updates * settings.frames == pytest.approx(5_000_000, abs=512)
    stage = Stage("test", PRESETS["authors_lunarlander"], PRESETS["authors_lunarlander"].frames)
    assert (stage.settings().anneal, stage.options.normalization, stage.options.environment) == (
        "none", "area", "lunarlander",
    )  # fmt: skip
    settings = Stage("test", PRESETS["authors_space_invaders"], 10**7).settings()
    assert (settings.random_lam, settings.frames, settings.anneal) == ((0.1, 0.99), 32 * 32, "none")


def test_runs_of_other_settings_are_not_drawn_together(tiny, tmp_path):
    rows = read_results(tiny / "results.csv")
    rows = [row for row in rows if row["run"] in {r["run"] for r in rows if r["metric"] == "test_return"}]
    assert BehavioralRL(anneal="both", lam=0.9).variant == "anneal=both, lam=0.9"
    others = [row | {"variant": "anneal", "run": f"{row['run']}, too"} for row in rows]
    runs = rl_report.Runs([*others, *rows])
    assert {run.columns["variant"] for run in runs.runs} == {""}
    assert rl_report.Runs([*rows, *others]).note.endswith(", options: anneal")


# What is recorded.


def test_rows_of_a_run(tiny):
    rows = read_results(tiny / "results.csv")
    tested = [row for row in rows if row["metric"] == "test_return"]
    assert len(tested) == 2 * (1 + 2)
    assert {row["delay_s"] for row in tested} == {0.0, 0.4, 0.8}
    assert {row["step"] for row in tested} == {64}
    assert sum(row["metric"] == "validation_return" for row in rows) == 2 * 2
    runs = rl_report.Runs([row for row in rows if row["run"] in {t["run"] for t in tested}])
    assert runs.frames == 64
    assert runs.layers == ["layers.0", "layers.1"]
    assert all(len(run.alignment["layers.0"]) >= 1 for run in runs.runs)


def test_a_finished_run_is_not_run_again_and_redraws_alike(tiny, capsys, monkeypatch):
    before = (tiny / "results.csv").read_bytes()
    table = "Mean return"
    make_small(monkeypatch, *FEW)
    monkeypatch.setattr(rl_training.Trainer, "begin", None)
    assert command_line.main([*TINY, "--out", str(tiny.parent)]) == 0
    first = capsys.readouterr().out
    assert command_line.main([*TINY, "--out", str(tiny.parent), "--plot-only"]) == 0
    assert first[first.index(table) :] == (second := capsys.readouterr().out)[second.index(table) :]
    assert (tiny / "results.csv").read_bytes() == before
    for name in ("behavioral-rl", "behavioral-rl-curves", "behavioral-rl-alignment"):
        assert (tiny / f"{name}.png").stat().st_size > 5000


def test_a_run_in_a_batch_is_the_run_alone(monkeypatch):
    make_small(monkeypatch)
    options = BehavioralRL(environments=2, rollout=8, hidden=(4,), frames=64, seeds=2, episodes=3)
    stage, runs = (
        Stage("validation", options, 64),
        [RLCondition("CET", 2, 0.8, learning_rate=1e-2, seed=s) for s in (0, 1)],
    )
    _, beside = trained_rows(rl_training.Trainer(stage, runs[0], 2), runs)
    (alone,) = trained_rows(rl_training.Trainer(stage, runs[1], 1), runs[1:])
    values = lambda rows: [(row["metric"], row["step"], row["value"]) for row in rows]  # noqa: E731
    for (metric, step, value), (same, at, expected) in zip(values(beside), values(alone), strict=True):
        assert (metric, step) == (same, at)
        np.testing.assert_allclose(
            np.nan if value is None else value, np.nan if expected is None else expected, atol=1e-7
        )


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    make_small(monkeypatch, ("CET", 2))
    options = BehavioralRL(environments=2, rollout=8, hidden=(4,), frames=64, episodes=3)
    stage, runs = Stage("validation", options, 64), [RLCondition("CET", 2, 0.8, learning_rate=r) for r in (1e200, 1e-2)]
    lost, rows = trained_rows(rl_training.Trainer(stage, runs[0], 2), runs)
    assert [last(own)["diverged"] for own in (lost, rows)] == [1, 0]
    assert all(row["value"] is not None for row in rows if row["metric"] == "value_loss")


def test_retrograde_end_to_end(tmp_path, capsys, monkeypatch):
    make_small(monkeypatch, ("CET", 2))
    arguments = ("retrograde-rl", *SMALL, "--frames", "64", "--delay", "0.6", "--out", str(tmp_path))
    assert command_line.main([*arguments]) == 0
    assert "CET(2)" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "retrograde-rl").glob("*.png")}
    assert names == {"retrograde-rl-curves.png", "retrograde-rl-alignment.png"}


# What it says to mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--delays", "0.3"), "--delays must be above 0 and a multiple of 0.2 s, got 0.3"),
        (("--delays",), "--delays must be at least one, got none"),
        (("--environments", "0"), "--environments must be at least 1, got 0"),
        (("--frames", "100"), "--frames must be at least"),
        (
            ("--frames", "40000", "--delays", "4000", "--learning-rates", "1e-3"),
            "--frames must be at least 80384: whole updates, longer than the longest delay, 4000 s",
        ),
        (
            ("--frames", "3071", "--delays", "128", "--learning-rates", "1e-3"),  # 640 steps each, none for a signal
            "--frames must be at least 3072: whole updates, longer than the longest delay, 128 s",
        ),
        (("--betas", "1.0"), "--betas must be above 0 and below 1, got 1"),
        (("--orders", "1"), "--orders must be 2 to 64"),
        (("--critic-rate", "0"), "--critic-rate must be above 0, got 0"),
        (("--discount", "1.5"), "--discount must be 0 to 1, got 1.5"),
        (("--environment", "pong"), "invalid choice"),
        (("--selection-seed", "0"), "--selection-seed must be outside the 1 seeds reported, got 0"),
    ],
)
def test_mistakes(arguments, message, tmp_path, capsys):
    assert message in error_of(capsys, "behavioral-rl", *arguments, "--out", str(tmp_path))


def test_an_environment_that_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    said = error_of(capsys, "behavioral-rl", "--out", str(tmp_path))
    assert "pip install 'cetsim[rl]'" in said


def test_nothing_to_draw(tmp_path, capsys):
    assert "run the experiment first" in error_of(capsys, "behavioral-rl", "--plot-only", "--out", str(tmp_path))
