"""The experiments' command line, end to end at tiny sizes, and what it says to mistakes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cetsim import data
from cetsim.train import Settings, SupervisedRun
from experiments import __main__ as command_line
from experiments import behavioral_vision, kernels, vision_report
from experiments.options import BEHAVIORAL_VISION_PRESETS, BehavioralVision, Kernels
from experiments.records import COLUMNS
from experiments.vision_conditions import Condition, Stage
from experiments.vision_training import Trainer

ROOT = Path(__file__).parents[1]
TINY = (
    *("behavioral-vision", "--delays", "0.4", "--orders", "2", "--hidden", "8", "--seeds", "1"),
    *(
        "--steps",
        "20",
        "--selection-steps",
        "4",
        "--learning-rates",
        "1e-3",
        "1e20",
        "--batch-conditions",
        "8",
    ),
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def errors_of(capsys, *arguments: str) -> str:
    """What the command line says on stderr, having exited with status 2."""
    try:
        status = command_line.main(list(arguments))
    except SystemExit as stop:  # what can't even be parsed
        status = stop.code
    assert status == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A tiny demo, run twice."""
    out = tmp_path_factory.mktemp("demo")
    return out / "behavioral-vision", *(run(*TINY, "--out", str(out)) for _ in range(2))


def test_a_list_of_the_experiments_with_their_presets(capsys):
    assert command_line.main([]) == 0
    listing = capsys.readouterr().out
    assert "behavioral-vision" in listing
    assert "demo, quick, paper" in " ".join(listing.split())
    assert "kernels" in listing


@pytest.mark.parametrize("name", command_line.EXPERIMENTS)
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main([name, "--help"])
    text = capsys.readouterr().out
    kind = command_line.EXPERIMENTS[name][1]
    for option in kind.__dataclass_fields__:
        assert f"--{option.replace('_', '-')}" in text


def test_options_given_override_those_of_the_preset():
    chosen = command_line.parse(
        "behavioral-vision",
        BehavioralVision,
        BEHAVIORAL_VISION_PRESETS,
        ["--seeds", "5", "--preset", "paper", "--error-gates", "1e-8", "0"],
    )
    paper = BEHAVIORAL_VISION_PRESETS["paper"]
    assert (chosen.preset, chosen.seeds, chosen.error_gates) == ("paper", 5, (1e-8, 0.0))
    assert (chosen.delays, chosen.dataset, chosen.steps) == (paper.delays, "mnist", paper.steps)


@pytest.mark.parametrize("options", [*BEHAVIORAL_VISION_PRESETS.values(), Kernels()])
def test_presets_pass_their_own_checks(options):
    options.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("behavioural",), "unknown experiment 'behavioural': choose from behavioral-vision, kernels"),
        (("behavioral-vision", "--preset", "big"), "invalid choice 'big' for argument '--preset'"),
        (
            ("behavioral-vision", "--dataset", "imagenet"),
            "invalid choice 'imagenet' for argument '--dataset'",
        ),
        (("behavioral-vision", "--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("behavioral-vision", "--steps", "-5"), "--steps must be at least 1, got -5"),
        (("behavioral-vision", "--learning-rates", "0"), "--learning-rates must be above 0, got 0"),
        (("behavioral-vision", "--learning-rates", "nan"), "--learning-rates must be above 0, got nan"),
        (
            ("behavioral-vision", "--delays", "0.3"),
            "--delays must be multiples of the 0.2 s of an image, got 0.3",
        ),
        (("behavioral-vision", "--delays", "25.6"), "--delays must be at most 25.4 s"),
        (("behavioral-vision", "--delays"), "--delays must be at least one, got none"),
        (("behavioral-vision", "--delays", "2", "2"), "--delays must not repeat a value"),
        (
            ("behavioral-vision", "--orders", "1"),
            "--orders must be 2 to 64 (one stage is ET, always there), got 1",
        ),
        (("behavioral-vision", "--error-gates", "-1"), "--error-gates must be at least 0, got -1"),
        (
            ("behavioral-vision", "--seeds", "2000"),
            "--selection-seed must be outside the 2000 seeds reported",
        ),
        (("behavioral-vision", "--plot-only", "--fresh"), "--plot-only redraws what --fresh would remove"),
        (("behavioral-vision", "--plot-only"), "run the experiment first, without --plot-only"),
        (("behavioral-vision", "--dataset", "mnist", "--data-dir", "nowhere"), "nowhere"),
        (("kernels", "--delay", "-1"), "--delay must be above 0, got -1"),
        (("kernels", "--plot-only"), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error_and_status_2(arguments, message, capsys, tmp_path):
    out = () if arguments[0] == "behavioural" else ("--out", str(tmp_path))
    assert message in errors_of(capsys, *arguments, *out)


@pytest.mark.parametrize("name", command_line.EXPERIMENTS)
def test_an_output_folder_that_cannot_be_written(name, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in errors_of(capsys, name, "--out", str(tmp_path / "file"))


def test_a_mistake_shows_no_traceback_and_prints_to_stderr(tmp_path):
    (tmp_path / "mnist").mkdir()
    result = run("behavioral-vision", "--preset", "quick", "--out", str(tmp_path), "--data-dir", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "train-images-idx3-ubyte" in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_faults_of_the_program_keep_their_traceback(monkeypatch, tmp_path):
    def fail(_):
        raise ValueError("a bug")

    monkeypatch.setattr(kernels, "run", fail)
    with pytest.raises(ValueError, match="a bug"):
        command_line.main(["kernels", "--out", str(tmp_path)])


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "run", interrupt)
    assert command_line.main(["kernels", "--fresh", "--out", str(tmp_path)]) == 130
    assert f"to go on: python -m experiments kernels --out {tmp_path}" in capsys.readouterr().err


def test_demo_writes_table_figure_and_results(demo):
    folder, first, _ = demo
    assert first.returncode == 0, first.stderr
    for name in ("backprop", "delay line", "CET(2)", "ET", str(folder / "results.csv")):
        assert name in first.stdout
    assert (folder / "behavioral-vision.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "behavioral-vision.pdf").read_bytes().startswith(b"%PDF")
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    at_end = [row for row in rows if row["metric"] == "test_accuracy" and row["step"] == "20"]
    assert {(row["trace"], row["order"], row["delay_s"], row["scenario"]) for row in at_end} == {
        ("backprop", "0", "0.0", "none"),
        ("ET", "1", "0.4", "behavioral"),
        ("CET", "2", "0.4", "behavioral"),
        ("delay line", "0", "0.4", "behavioral"),
    }
    assert {row["learning_rate"] for row in at_end} == {"0.001"}  # the other rate diverges
    assert {row["seed"] for row in at_end} == {"0"}
    assert {"train_loss", "validation_accuracy", "alignment", "wall_s", "diverged"} <= {r["metric"] for r in rows}


def test_runs_hold_their_config_and_where_they_come_from(demo):
    records = [json.loads(line) for line in (demo[0] / "runs.jsonl").read_text().splitlines()]
    assert len({record["hash"] for record in records}) == len(records) == 4 * 2 + 4
    for record in records:
        assert {
            "schema",
            "config",
            "versions",
            "git",
            "device",
            "wall_s",
            "diverged",
            "rows",
        } <= record.keys()
        assert {"python", "jax", "jaxlib", "equinox", "optax", "numpy", "cetsim"} == record["versions"].keys()
        assert record["config"]["settings"]["batch"] == 128
    assert {record["config"]["seed"] for record in records if record["config"]["measured_on"] == "test"} == {0}


def test_a_diverging_condition_is_recorded_and_the_others_go_on(demo):
    folder, first, _ = demo
    records = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    diverged = {record["config"]["learning_rate"] for record in records if record["diverged"]}
    sound = {record["config"]["learning_rate"] for record in records if not record["diverged"]}
    assert (diverged, sound) == ({1e20}, {1e-3})
    assert first.stdout.count("diverged") == 4


def test_a_second_run_trains_nothing_and_draws_the_same_figure(demo):
    _, first, second = demo
    assert second.returncode == 0, second.stderr
    assert "to choose learning rates" in first.stdout
    assert second.stdout == first.stdout[first.stdout.index("\nTest accuracy") :]


def test_plot_only_needs_nothing_but_results(demo, tmp_path, capsys):
    folder = tmp_path / "behavioral-vision"
    folder.mkdir()
    (folder / "results.csv").write_bytes((demo[0] / "results.csv").read_bytes())
    assert command_line.main(["behavioral-vision", "--plot-only", "--out", str(tmp_path)]) == 0
    assert "CET(2)" in capsys.readouterr().out
    for kind in ("png", "pdf"):
        assert (folder / f"behavioral-vision.{kind}").read_bytes() == (
            demo[0] / f"behavioral-vision.{kind}"
        ).read_bytes()
    assert not (folder / "runs.jsonl").exists()


def test_fresh_removes_only_what_the_experiment_wrote(tmp_path):
    for name in ("runs.jsonl", "results.csv", "behavioral-vision.png", "notes.txt"):
        (tmp_path / name).write_text("")
    behavioral_vision.remove_outputs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_kernels_from_start_to_redrawn_figure(tmp_path, capsys):
    arguments = ["kernels", "--orders", "2", "10", "--out", str(tmp_path)]
    assert command_line.main(arguments) == 0
    table = capsys.readouterr().out
    folder = tmp_path / "kernels"
    picture = (folder / "kernels.png").read_bytes()
    with (folder / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["trace"], row["order"]) == ("CET", "10")]
    weights = {float(row["time_s"]): float(row["value"]) for row in rows if row["metric"] == "weight_per_s"}
    assert max(weights, key=weights.get) == 4.0
    sd = [float(row["value"]) for row in rows if row["metric"] == "sd_s"]
    assert sd == pytest.approx([10**0.5 * (4 - 0.02) / 9])  # √n / α, α = (n - 1)/(T - dt/2)
    (folder / "kernels.png").unlink()
    (folder / "runs.jsonl").unlink()
    assert command_line.main([*arguments, "--plot-only"]) == 0
    assert (folder / "kernels.png").read_bytes() == picture
    assert capsys.readouterr().out == table


def test_a_run_keeps_its_name():
    # Hashes are what finished runs are found by: a change of this one makes everybody run everything again.
    rng = np.random.default_rng(0)
    images, labels = np.zeros((160, 1, 3, 3), np.float32), rng.integers(0, 10, 160).astype(np.int32)
    stage = Stage("test", BehavioralVision(), data.Dataset("digits", images, labels, images, labels), 100)
    (name,) = stage.hashes([Condition("CET", 6, 2.0, 1e-8, 1e-3, 1)])
    assert name == "7905554d63d256eeb53d9dfa22ead79d3607643934ca6b42ca60cf38708bbeda"


def test_conditions_share_one_program_and_do_not_depend_on_who_is_trained_beside_them(monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(160, 1, 3, 3)).astype(np.float32), rng.integers(0, 10, 160).astype(np.int32)
    dataset = data.Dataset("random", images, labels, images, labels)
    conditions = [Condition("ET", 1, 0.4, 0.0, 1e-2, 0), Condition("CET", 6, 2.0, 1e-8, 1e-3, 1)]
    traced = []
    advance = SupervisedRun.advance
    monkeypatch.setattr(SupervisedRun, "advance", lambda *args: traced.append(args) or advance(*args))

    def train(width, conditions):
        trainer = Trainer(dataset, (9, 5, 10), Settings(steps=3), width, "test")
        groups = [conditions[i : i + width] for i in range(0, len(conditions), width)]
        return [rows for group in groups for rows, _, _ in trainer.train(group, lambda steps: None)]

    alone, together = train(1, conditions), train(3, conditions)  # the group of 3 is filled up
    assert len(traced) == 2  # once for each width
    for a, b in zip(alone, together, strict=True):
        assert [row | {"value": None} for row in a] == [row | {"value": None} for row in b]
        np.testing.assert_allclose([row["value"] for row in a], [row["value"] for row in b], atol=1e-5)
    assert {row["metric"] for row in alone[0]} == {"train_loss", "test_accuracy", "test_loss", "alignment", "diverged"}


def test_table_leaves_diverged_runs_out_and_counts_them():
    assert vision_report.cell([0.9, 0.92, None]) == "91.0 ± 1.4 (1 div.)"
    assert vision_report.cell([0.9]) == "90.0"
    assert vision_report.cell([None]) == "diverged"
    assert vision_report.cell([]) == ""


def test_table_shows_the_papers_numbers_beside_ours_on_mnist():
    row = dict(experiment="behavioral-vision", dataset="mnist", network="MLP 784-512-512-10", metric="test_accuracy")
    row |= dict(form="activation", mode="reset")
    row |= dict(step=100, seed=0, learning_rate=1e-3, error_gate=1e-8, value=0.95, delay_s=10.0, trace="CET", order=6)
    results = vision_report.Results([row, row | dict(trace="backprop", order=0, delay_s=0.0, error_gate=0.0)])
    lines = [line.split() for line in vision_report.table(results).splitlines()]
    assert lines[lines.index(["CET(6)", "95.0"]) + 1] == ["paper", "95"]
    assert lines[lines.index(["backprop", "95.0"]) + 1] == ["paper", "99"]
