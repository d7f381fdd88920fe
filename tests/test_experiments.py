"""The experiments' command line, end to end at tiny sizes, and what it says to mistakes."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import trained_rows

from cetsim import data
from cetsim.train import SupervisedRun
from experiments import __main__ as command_line
from experiments import kernels, vision_report
from experiments.options.behavioral_vision import PRESETS, BehavioralVision
from experiments.options.vision import Vision
from experiments.records import COLUMNS, remove_outputs
from experiments.study import hashes
from experiments.vision_conditions import Condition, Stage, base_condition, trials_of
from experiments.vision_training import Trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = (
    *("behavioral-vision", "--delays", "0.4", "--orders", "2", "--hidden", "8", "--seeds", "1"),
    *("--steps", "20", "--selection-steps", "4", "--learning-rates", "1e-3", "1e20", "--batch-conditions", "8"),
)
CHECKED = [
    (name, preset, options)
    for name, (_, kind, presets) in command_line.EXPERIMENTS.items()
    for preset, options in (presets or {"defaults": kind()}).items()
]


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
    for option in dataclasses.fields(command_line.EXPERIMENTS[name][1]):
        assert f"--{option.name.replace('_', '-')}" in text


def test_options_given_override_those_of_the_preset():
    arguments = ["--seeds", "5", "--preset", "paper", "--error-gates", "1e-8", "0"]
    chosen = command_line.parse("behavioral-vision", BehavioralVision, PRESETS, arguments)
    paper = PRESETS["paper"]
    assert (chosen.preset, chosen.seeds, chosen.error_gates) == ("paper", 5, (1e-8, 0.0))
    assert (chosen.delays, chosen.dataset, chosen.steps) == (paper.delays, "mnist", paper.steps)


@pytest.mark.parametrize(
    ("name", "preset", "options"), CHECKED, ids=[f"{name}-{preset}" for name, preset, _ in CHECKED]
)
def test_presets_pass_their_own_checks(name, preset, options):
    options.check()
    if isinstance(options, Vision):
        assert (options.name, options.preset) == (name, preset)
        assert options.folder == Path("results") / name


@pytest.mark.parametrize("name", command_line.EXPERIMENTS)
def test_without_options_an_experiment_is_its_first_preset(name):
    _, kind, presets = command_line.EXPERIMENTS[name]
    assert command_line.parse(name, kind, presets, []) == next(iter(presets.values()), kind())
    if issubclass(kind, Vision):  # which is small, on images that need no download
        assert next(iter(presets)) == "demo"
        assert presets["demo"].dataset == "digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("behavioural",), f"unknown experiment 'behavioural': choose from {', '.join(command_line.EXPERIMENTS)}"),
        (("behavioral-vision", "--preset", "big"), "invalid choice 'big' for argument '--preset'"),
        (("behavioral-vision", "--dataset", "imagenet"), "invalid choice 'imagenet' for argument '--dataset'"),
        (("behavioral-vision", "--network", "vgg"), "invalid choice 'vgg' for argument '--network'"),
        (("behavioral-vision", "--form", "hebbian"), "invalid choice 'hebbian' for argument '--form'"),
        (("behavioral-vision", "--network", "cnn"), "--dataset must be cifar10 or tinyimagenet for a cnn, got digits"),
        (
            ("behavioral-vision", "--network", "resnet20", "--dataset", "mnist"),
            "--dataset must be cifar10 or tinyimagenet for a resnet20, got mnist",
        ),
        (
            ("behavioral-vision", "--network", "resnet20", "--dataset", "cifar10", "--form", "authors"),
            "--form must be preactivation for a resnet20, whose batch norm stands between layer and activation, got",
        ),
        (("behavioral-vision", "--update-every", "0"), "--update-every must be at least 1, got 0"),
        (
            ("behavioral-vision", "--update-every", "64"),
            "--update-every must be 128 with --mode reset, where a stretch is an update, got 64",
        ),
        (
            ("behavioral-vision", "--mode", "carry", "--update-every", "48", "--steps", "10"),
            "--update-every must be a divisor of the 1280 images of a run, got 48",
        ),
        (
            ("behavioral-vision", "--mode", "carry", "--update-every", "3", "--steps", "9", "--selection-steps", "10"),
            "--update-every must be a divisor of the 1280 images of a run, got 3",
        ),
        (("behavioral-vision", "--selection-delay", "0.5"), "--selection-delay must be multiples of the 0.2 s"),
        (("behavioral-vision", "--selection-delay", "30"), "--selection-delay must be at most 25.4 s"),
        (("behavioral-vision", "--run-length", "0"), "--run-length must be at least 1, got 0"),
        (("behavioral-vision", "--run-length", "900"), "`run_length` must not exceed the images of any class, got 900"),
        (("behavioral-vision", "--interpolation", "-1"), "--interpolation must be at least 1, got -1"),
        (("behavioral-vision", "--validation", "1"), "--validation must be between 0 and 1, got 1"),
        (("behavioral-vision", "--validation", "0.95"), "at least 128 training images must be left"),
        (("behavioral-vision", "--hidden", "8", "0"), "--hidden must be at least 1, got 0"),
        (("behavioral-vision", "--batch-conditions", "0"), "--batch-conditions must be at least 1, got 0"),
        (("behavioral-vision", "--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("behavioral-vision", "--steps", "-5"), "--steps must be at least 1, got -5"),
        (("behavioral-vision", "--learning-rates", "0"), "--learning-rates must be above 0, got 0"),
        (("behavioral-vision", "--learning-rates", "nan"), "--learning-rates must be above 0, got nan"),
        (("behavioral-vision", "--delays", "0.3"), "--delays must be multiples of the 0.2 s of an image, got 0.3"),
        (("behavioral-vision", "--delays", "25.6"), "--delays must be at most 25.4 s"),
        (("behavioral-vision", "--delays"), "--delays must be at least one, got none"),
        (("behavioral-vision", "--delays", "2", "2"), "--delays must not repeat a value"),
        (("behavioral-vision", "--orders", "1"), "--orders must be 2 to 64 (one stage is ET, always there), got 1"),
        (("behavioral-vision", "--error-gates", "-1"), "--error-gates must be at least 0, got -1"),
        (("behavioral-vision", "--seeds", "2000"), "--selection-seed must be outside the 2000 seeds reported"),
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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path, number, status):
    def interrupt(_):
        signal.raise_signal(number)

    monkeypatch.setattr(kernels, "run", interrupt)
    assert command_line.main(["kernels", "--fresh", "--out", str(tmp_path)]) == status
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
    more = ("peak_s", "rise_s", "ratio", "spread_s", "distribution", "update_every", "run_length", "interpolation")
    assert list(rows[0]) == [*COLUMNS, *more, "run"]
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
        assert {"schema", "config", "versions", "git", "device", "wall_s", "finished", "rows"} <= record.keys()
        assert {"python", "jax", "jaxlib", "equinox", "optax", "numpy", "cetsim"} == record["versions"].keys()
        assert record["config"]["settings"]["batch"] == 128
    assert {record["config"]["seed"] for record in records if record["config"]["measured_on"] == "test"} == {0}


def test_a_diverging_condition_is_recorded_and_the_others_go_on(demo):
    folder, first, _ = demo
    records = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    rates = {True: set(), False: set()}
    for record in records:
        (diverged,) = (row["value"] for row in record["rows"] if row["metric"] == "diverged")
        rates[bool(diverged)].add(record["config"]["learning_rate"])
    assert rates == {True: {1e20}, False: {1e-3}}
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
    drawn = sorted(path.name for kind in ("png", "pdf") for path in demo[0].glob(f"*.{kind}"))
    assert {"behavioral-vision.png", "behavioral-vision.pdf"} <= set(drawn)
    for name in drawn:
        assert (folder / name).read_bytes() == (demo[0] / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*drawn, "results.csv"])


@pytest.fixture
def trained(monkeypatch):
    """The conditions that are trained from here on."""
    conditions, begin = [], Trainer.begin
    note = lambda self, lanes: conditions.extend(dict.fromkeys(lanes)) or begin(self, lanes)  # noqa: E731
    monkeypatch.setattr(Trainer, "begin", note)
    return conditions


def test_a_table_alone_is_gone_on_from(demo, tmp_path, capsys, trained):
    """As in a repository that keeps the table only: what is in it is not trained again, and stays in it."""
    folder = tmp_path / "behavioral-vision"
    folder.mkdir()
    table = (demo[0] / "results.csv").read_bytes()
    (folder / "results.csv").write_bytes(table)
    assert command_line.main([*TINY, "--out", str(tmp_path)]) == 0
    assert trained == []
    assert (folder / "results.csv").read_bytes() == table
    assert capsys.readouterr().out == demo[2].stdout.replace(str(demo[0]), str(folder))
    assert command_line.main([*TINY, "--seeds", "2", "--out", str(tmp_path)]) == 0
    assert [(c.trace, c.seed) for c in trained] == [("backprop", 1), ("ET", 1), ("CET", 1), ("delay line", 1)]
    assert (folder / "results.csv").read_bytes().startswith(table)
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 4 * 2 + 2 * 4


@pytest.mark.parametrize("name", ["behavioral-vision", "kernels"])
def test_a_table_of_older_shape_is_kept_out_of_harm(name, tmp_path, capsys):
    """Without a column `run` there is no telling which of its runs are asked for; new ones would replace them."""
    path = tmp_path / name / "results.csv"
    path.parent.mkdir()
    row = dict(
        zip(COLUMNS, [name, "none", "digits", "MLP", "ET", 1, 0.4, "activation", "reset", 1e-3, 0], strict=False)
    )
    row |= {"step": 20, "metric": "test_accuracy", "value": 0.5}
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(str(row.get(column, "")) for column in COLUMNS) + "\n")
    before = path.read_bytes()
    message = errors_of(capsys, name, "--out", str(tmp_path))
    assert "of which `run` they are" in message
    assert "start over with --fresh, or choose another folder with --out" in message
    assert path.read_bytes() == before


def test_learning_rates_are_chosen_at_one_delay_if_so_wanted(tmp_path, capsys, trained):
    arguments = [*TINY, "--delays", "0.4", "0.8", "--selection-delay", "0.8", "--steps", "2", "--selection-steps", "2"]
    assert command_line.main([*arguments, "--learning-rates", "1e-3", "1e-2", "--out", str(tmp_path)]) == 0
    seeds = {seed: [c for c in trained if c.seed == seed] for seed in (1000, 0)}
    assert {(c.trace, c.delay_s) for c in seeds[1000]} == {
        ("backprop", 0.0), ("ET", 0.8), ("CET", 0.8), ("delay line", 0.8)
    }  # fmt: skip
    assert len(seeds[1000]) == 2 * 4  # at two rates
    assert {c.delay_s for c in seeds[0]} == {0.0, 0.4, 0.8}
    assert len(seeds[0]) == 1 + 2 * 3
    rates = {trace: {c.learning_rate for c in seeds[0] if c.trace == trace} for trace in ("ET", "CET", "delay line")}
    assert all(len(chosen) == 1 for chosen in rates.values())
    assert "CET(2)" in capsys.readouterr().out


def test_trials_at_one_delay_keep_the_peak_in_proportion():
    options = BehavioralVision(selection_delay=2.0, learning_rates=(1e-3, 1e-2), selection_seed=77)
    candidates = [base_condition(options, "CET", 6, 0.4, peak_s=0.6), base_condition(options, "backprop", 0, 0.0)]
    trials = trials_of(candidates, options)
    assert [(t.delay_s, t.peak_s, t.seed, t.learning_rate) for t in trials] == [
        (2.0, 3.0, 77, 1e-3), (2.0, 3.0, 77, 1e-2), (0.0, 0.0, 77, 1e-3), (0.0, 0.0, 77, 1e-2)
    ]  # fmt: skip
    assert [(c.delay_s, c.peak_s, c.seed) for c in trials.values()] == [(0.4, 0.6, 0)] * 2 + [(0.0, 0.0, 0)] * 2


def test_fresh_removes_only_what_the_experiment_wrote(tmp_path):
    for name in ("runs.jsonl", "results.csv", "behavioral-vision.png", "notes.txt"):
        (tmp_path / name).write_text("")
    remove_outputs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_keeps_its_name():
    # Hashes are what finished runs are found by: a change of this one makes everybody run everything again.
    rng = np.random.default_rng(0)
    images, labels = np.zeros((160, 1, 3, 3), np.float32), rng.integers(0, 10, 160).astype(np.int32)
    stage = Stage("test", BehavioralVision(), data.Dataset("digits", images, labels, images, labels), 100)
    (name,) = hashes(stage, [Condition("CET", 6, 2.0, 1e-8, 1e-3, 1, peak_s=2.0)])
    assert name == "d85de0bcff79aceb"


def test_conditions_share_one_program_and_do_not_depend_on_who_is_trained_beside_them(monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(160, 1, 3, 3)).astype(np.float32), rng.integers(0, 10, 160).astype(np.int32)
    dataset = data.Dataset("random", images, labels, images, labels)
    stage = Stage("test", BehavioralVision(hidden=(5,)), dataset, 3)
    conditions = [
        Condition("ET", 1, 0.4, 0.0, 1e-2, 0, peak_s=0.4),
        Condition("CET", 6, 2.0, 1e-8, 1e-3, 1, peak_s=2.0),
    ]
    traced = []
    advance = SupervisedRun.advance
    monkeypatch.setattr(SupervisedRun, "advance", lambda *args: traced.append(args) or advance(*args))

    trainer = Trainer(stage, conditions[0], 1)
    alone = [rows for condition in conditions for rows in trained_rows(trainer, [condition])]
    *together, again = trained_rows(Trainer(stage, conditions[0], 3), [*conditions, conditions[0]])
    assert again == together[0]  # a lane that is left over repeats one
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
