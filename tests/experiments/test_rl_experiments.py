"""The experiments on reinforcement learning: what they run, what they say to mistakes, what their figures are of."""

import io
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from experiment import error_of, output_of, trained
from worlds import corridor

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FirstStageCascade
from cetsim.spiking import LIF
from experiments import behavioral_rl, retrograde_rl
from experiments.behavioral_rl import PRESETS, Options
from experiments.common import captions, returns, rl, selection, tables
from experiments.common.conditions import Condition
from experiments.common.options import Orders
from experiments.common.rl import UNDELAYED, Course

SMALL = ("--environments", "2", "--rollout", "8", "--hidden", "4", "--seeds", "2", "--orders", "2", "--episodes", "3")
TINY = (
    *("behavioral-rl", *SMALL, "--frames", "64", "--selection-frames", "32", "--delays", "0.4", "0.8"),
    *("--selection-delay", "0.4", "--learning-rates", "1e-2", "1e-3"),
)


def make_small(patch):
    """A world that needs no simulator in place of each, and fewer delayed traces: compiling them is what takes time."""
    patch.setattr(rl, "open_environment", lambda options: corridor())
    patch.setattr(Orders, "delayed_traces", property(lambda options: [("CET", order) for order in options.orders]))
    patch.setattr(rl, "ROLLOUTS", 2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny run."""
    out = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        output_of(*TINY, "--out", out)
    return out / "behavioral-rl"


# What is run.


def test_returns_are_in_the_environments_own_units_though_rewards_are_scaled(tmp_path):
    """An agent of Pendulum that has learned nothing loses about 6 a step, for 200 steps."""
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")
    frames = ("--environment", "pendulum", "--frames", "3200", "--delays", "0.4", "--learning-rates", "1e-5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Orders, "delayed_traces", [("CET", 2)])
        output_of("behavioral-rl", *SMALL, *frames, "--out", tmp_path)
    rows = pd.read_csv(tmp_path / "behavioral-rl" / "results.csv")
    for metric in ("return", "test_return"):
        found = rows.loc[rows["metric"] == metric, "value"].dropna()
        assert len(found) >= 4
        assert found.between(-2000, -400).all()


def test_every_trace_at_every_delay_and_once_without():
    conditions = behavioral_rl.conditions(Options(delays=(2.0, 8.0), orders=(2, 10)))
    assert len(set(conditions)) == len(conditions) == 1 + 2 * 4
    assert conditions.count(Condition(*UNDELAYED, boundary="carry")) == 1
    assert {(c.trace, c.order) for c in conditions if c.delay_s == 8.0} == {
        ("ET", 1), ("CET", 2), ("CET", 10), ("delay line", 0),
    }  # fmt: skip


def test_settings_are_chosen_at_one_delay():
    options = Options(delays=(2.0,), learning_rates=(1e-4, 1e-3), betas=(0.5, 0.9, 0.99), selection_delay=8.0)
    candidates = rl.candidates(options, Condition("ET", 1, 2.0))
    assert {(c.learning_rate, c.beta) for c in candidates} == {(r, b) for r in (1e-4, 1e-3) for b in (0.5, 0.9, 0.99)}
    trials = [selection.at_selection_delay(options, candidate) for candidate in candidates]
    assert trials == [replace(candidate, delay_s=8.0) for candidate in candidates]
    still = Condition(*UNDELAYED)
    assert {c.beta for c in rl.candidates(options, still)} == {0.0}
    assert selection.at_selection_delay(options, still) == still


def test_traces_and_delays_of_a_condition():
    stage = Course(Options(frames=1024), "test")
    hyper = stage.hyperparameters(Condition("CET", 10, 8.0, learning_rate=1e-3))
    assert isinstance(hyper.trace, CascadingTrace)
    assert int(np.argmax(hyper.trace.weights(np.arange(200)))) == int(hyper.delay.steps) == 40
    assert (float(hyper.learning_rate), float(hyper.critic_rate)) == (1e-3, 1.0)
    hyper = stage.hyperparameters(Condition("ET", 1, 8.0, beta=0.9, learning_rate=1e-3))
    assert isinstance(hyper.trace, ExponentialTrace)
    weights = hyper.trace.weights(np.arange(1, 4))
    np.testing.assert_allclose(weights[1:] / weights[:-1], 0.9, rtol=1e-12)
    theirs = Course(Options(cascade="first_stage", normalization="peak"), "test")
    hyper = theirs.hyperparameters(Condition("CET", 10, 8.0, learning_rate=1e-3))
    assert isinstance(hyper.trace, FirstStageCascade)
    assert float(hyper.trace.weights(np.arange(200)).max()) == 1.0
    assert isinstance(stage.hyperparameters(Condition(*UNDELAYED, 0.0, learning_rate=1.0)).trace, DelayLine)


def test_retrograde_signals_stack():
    options = retrograde_rl.Options()
    stage = Course(options, "test")
    condition = next(c for c in retrograde_rl.conditions(options) if (c.trace, c.order) == ("CET", 10))
    hyper = stage.hyperparameters(replace(condition, learning_rate=1e-3))
    assert [int(delay.steps) for delay in hyper.delay.delays] == [0, 400, 800]
    peaks = [int(np.argmax(trace.weights(np.arange(2000)))) for trace in hyper.trace]
    assert peaks == [0, 400, 800]


@pytest.mark.parametrize("options", [*PRESETS.values(), *retrograde_rl.PRESETS.values()])
def test_presets_pass_their_own_checks(options):
    options.check()


def test_the_paper_settings_go_with_the_environment():
    settings = Course(PRESETS["space_invaders"], "test").settings()
    assert (settings.environments, settings.rollout) == (32, 32)
    settings = Course(PRESETS["paper"], "test").settings()
    assert (settings.environments, settings.rollout, settings.hidden) == (4, 128, (256, 256))


def test_flags_reach_the_agent():
    flags = ("reset_cascade", "late_critic", "late_flag")
    for flag in flags:
        settings = Course(Options(**{flag: True}), "test").settings()
        assert [getattr(settings, name) for name in flags] == [name == flag for name in flags]
    own = dict(truncation="terminate", anneal="both", actor_gradient="sum", form="preactivation", random_lam=(0.1, 0.9))
    settings = Course(Options(**own), "test").settings()
    assert {name: getattr(settings, name) for name in own} == own


def test_spiking_neurons_and_remembered_slopes_reach_the_agent():
    settings = Course(Options(neurons="lif", derivative="cascade"), "test").settings()
    assert isinstance(settings.neuron, LIF)
    assert (settings.neuron.dt, settings.derivative) == (0.2, "cascade")
    plain = Course(Options(), "test").settings()
    assert (plain.neuron, plain.derivative) == (None, "ideal")
    assert Course(retrograde_rl.Options(neurons="lif"), "test").settings().neuron.dt == 0.3


def test_the_authors_code():
    stage = Course(PRESETS["authors"], "test")
    settings, hyper = stage.settings(), stage.hyperparameters(Condition("CET", 10, 8.0, learning_rate=1e-3))
    assert (settings.truncation, settings.late_flag, settings.anneal) == ("terminate", True, "critic")
    assert float(hyper.critic_rate) == 1.0
    assert isinstance(hyper.trace, FirstStageCascade)
    assert float(hyper.trace.weights(np.arange(200)).max()) == 1.0
    assert settings.updates * settings.frames == pytest.approx(5_000_000, abs=512)
    others = [PRESETS[f"authors_{name}"] for name in ("lunarlander", "space_invaders")]
    assert [(o.environment, o.anneal, o.normalization, o.critic, o.random_lam) for o in others] == [
        ("lunarlander", "none", "area", "mlp", None),
        ("space_invaders", "none", "peak", "conv", (0.1, 0.99)),
    ]


def test_runs_of_other_settings_are_not_drawn_together(tiny):
    rows = tables.of_options(tables.read(tiny / "results.csv"), Options())
    assert Options(anneal="both", lam=0.9).variant == "anneal=both, lam=0.9"
    others = rows.assign(variant="anneal", run=rows["run"] + ", too")
    assert set(returns.select(pd.concat([others, rows]))["variant"]) == {""}
    assert captions.agent(returns.select(pd.concat([rows, others]))).endswith(" Learning rates fall to 0.")


# What is recorded.


def test_rows_of_a_run(tiny):
    rows = tables.read(tiny / "results.csv")
    ends = tables.finals(rows, "test_return")
    assert len(ends) == 2 * (1 + 2)
    assert set(ends["delay_s"]) == {0.0, 0.4, 0.8}
    assert set(ends["step"]) == {64}
    assert (rows["metric"] == "validation_return").sum() == 2 * 2
    cosines = returns.alignment(rows, returns.select(rows))
    assert set(cosines["layer"]) == {"layers.0", "layers.1"}
    assert len(cosines) == 2 * len(ends)


def test_a_finished_run_is_not_run_again_and_redraws_alike(tiny, monkeypatch):
    before, table = (tiny / "results.csv").read_bytes(), "Mean return"
    make_small(monkeypatch)
    first = output_of(*TINY, "--out", tiny.parent)
    assert "seed 0: " not in first
    second = output_of(*TINY, "--out", tiny.parent, "--plot-only")
    assert first[first.index(table) :] == second[second.index(table) :]
    assert (tiny / "results.csv").read_bytes() == before
    for name in ("behavioral-rl", "behavioral-rl-curves", "behavioral-rl-alignment"):
        assert (tiny / f"{name}.png").stat().st_size > 5000


SMALLEST = Options(environments=2, rollout=8, hidden=(4,), frames=64, selection_frames=64, episodes=3)


def test_a_run_in_a_batch_is_the_run_alone_and_one_that_diverges_takes_no_other_with_it(monkeypatch, tmp_path):
    make_small(monkeypatch)
    course, same = Course(SMALLEST, "validation"), Condition("CET", 2, 0.8, learning_rate=1e-2)
    slots = [replace(same, learning_rate=1e200), same]
    together = trained(course, slots, tmp_path / "together", batch=2)
    assert together.final("diverged").tolist() == [1, 0]
    alone = trained(course, [same], tmp_path / "alone")
    of_run = lambda table: table.rows[table.rows["run"] == next(iter(alone.records))]  # noqa: E731
    both = [of_run(table).query("metric != 'wall_s'") for table in (together, alone)]
    assert both[0][["metric", "step"]].to_numpy().tolist() == both[1][["metric", "step"]].to_numpy().tolist()
    np.testing.assert_allclose(*(rows["value"].astype(float) for rows in both), atol=1e-7)


def test_retrograde_end_to_end(tmp_path, monkeypatch):
    make_small(monkeypatch)
    arguments = ("retrograde-rl", *SMALL, "--frames", "64", "--delay", "0.6", "--out", str(tmp_path))
    text = output_of(*arguments)
    assert "CET(2)" in text
    assert "figure left out: retrograde-rl, one delay" in text
    names = {path.name for path in (tmp_path / "retrograde-rl").glob("*.png")}
    assert names == {"retrograde-rl-curves.png", "retrograde-rl-alignment.png"}


def test_spiking_neurons_end_to_end_beside_the_papers(tmp_path, monkeypatch):
    make_small(monkeypatch)
    arguments = ("behavioral-rl", *SMALL, "--frames", "64", "--delays", "0.4", "0.8", "--neurons", "lif")
    text = output_of(*arguments, "--derivative", "cascade", "--out", tmp_path)
    assert "The actor's hidden neurons are leaky integrate-and-fire and slopes that errors pass are remembered" in text
    rows = tables.read(tmp_path / "behavioral-rl" / "results.csv")
    rows = rows.assign(dataset="LunarLander-v3", delay_s=rows["delay_s"].replace({0.4: 32.0, 0.8: 64.0}))
    rows["order"] = rows["order"].replace({2: 5})
    with redirect_stdout(io.StringIO()) as out:
        returns.report(rows, Options(neurons="lif", out=tmp_path))
    assert re.search(r"^  paper +122 +64$", out.getvalue(), re.MULTILINE)


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
        (
            ("--derivative", "cascade", "--normalization", "peak"),
            "--normalization must be area where --derivative is cascade, got peak",
        ),
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
