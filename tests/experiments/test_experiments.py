"""The experiments' command line, end to end at tiny sizes, and what it says to mistakes."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy, trained

from cetsim import datasets, sweep
from cetsim.supervised import SupervisedRun
from cetsim.sweep.grid import naming
from experiments import __main__ as entry
from experiments import behavioral_vision
from experiments.behavioral_vision import PRESETS, Options
from experiments.common import command_line, selection, tables, vision
from experiments.common.conditions import Condition, from_record, recorded, set_to_delay
from experiments.common.options import Vision

ROOT = Path(__file__).parents[2]
TINY = (
    *("behavioral-vision", "--delays", "0.4", "--orders", "2", "--hidden", "8", "--seeds", "1"),
    *("--steps", "20", "--selection-steps", "4", "--learning-rates", "1e-3", "1e20", "--batch-conditions", "8"),
)
EXPERIMENTS = {name: command_line.load(name) for name in command_line.names()}
CHECKED = [
    (name, preset, options)
    for name, experiment in EXPERIMENTS.items()
    for preset, options in (experiment.PRESETS or {"defaults": experiment.Options()}).items()
]


def run(*arguments: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main([name, "--help"])
    text = capsys.readouterr().out
    for option in dataclasses.fields(EXPERIMENTS[name].Options):
        flag = option.name.replace("_", "-")
        assert f"--{flag}" in text or f"--no-{flag}" in text  # of what is on by default


def test_options_given_override_those_of_the_preset():
    arguments = ["--seeds", "5", "--preset", "paper", "--error-gates", "1e-8", "0"]
    chosen = command_line.parse("behavioral-vision", behavioral_vision, arguments)
    paper = PRESETS["paper"]
    assert (chosen.preset, chosen.seeds, chosen.error_gates) == ("paper", 5, (1e-8, 0.0))
    assert (chosen.delays, chosen.dataset, chosen.steps) == (paper.delays, "mnist", paper.steps)


@pytest.mark.parametrize(
    ("name", "preset", "options"), CHECKED, ids=[f"{name}-{preset}" for name, preset, _ in CHECKED]
)
def test_presets_pass_their_own_checks(name, preset, options):
    options.check()
    assert options.folder == Path("results") / name
    if EXPERIMENTS[name].PRESETS:
        chosen = command_line.parse(name, EXPERIMENTS[name], ["--preset", preset])
        assert chosen == dataclasses.replace(options, preset=preset)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_options_an_experiment_is_its_first_preset(name):
    experiment = EXPERIMENTS[name]
    presets = experiment.PRESETS
    assert command_line.parse(name, experiment, []) == next(iter(presets.values()), experiment.Options())
    if issubclass(experiment.Options, Vision):  # which is small, on images that need no download
        assert next(iter(presets)) == "demo"
        assert presets["demo"].dataset == "digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("behavioural",), f"unknown experiment 'behavioural': choose from {', '.join(EXPERIMENTS)}"),
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
        (
            ("behavioral-vision", "--network", "vit"),
            "--form must be preactivation for a vit, whose activations cannot be seen from outside, got activation",
        ),
        (("behavioral-vision", "--segment", "0"), "--segment must be at least 1, got 0"),
        (
            ("behavioral-vision", "--segment", "64"),
            "--segment must be 128 with --boundary reset, where a segment is an update, got 64",
        ),
        (
            ("behavioral-vision", "--boundary", "carry", "--segment", "48", "--steps", "10"),
            "--segment must be a divisor of the 1280 images of a run, got 48",
        ),
        (
            ("behavioral-vision", "--boundary", "carry", "--segment", "3", "--steps", "9", "--selection-steps", "10"),
            "--segment must be a divisor of the 1280 images of a run, got 3",
        ),
        (("behavioral-vision", "--selection-delay", "0.5"), "--selection-delay must be multiples of the 0.2 s"),
        (("behavioral-vision", "--selection-delay", "30"), "--selection-delay must be at most 25.4 s"),
        (("behavioral-vision", "--run-length", "0"), "--run-length must be at least 1, got 0"),
        (("behavioral-vision", "--run-length", "900"), "`run_length` must not exceed the images of any class, got 900"),
        (("behavioral-vision", "--interpolation", "-1"), "--interpolation must be at least 1, got -1"),
        (("behavioral-vision", "--validation", "1"), "--validation must be above 0 and below 1, got 1"),
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
        (("behavioral-vision", "--delays", "2", "2"), "--delays must be different from each other"),
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
    assert message in error_of(capsys, *arguments, *out)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_output_folder_that_cannot_be_written(name, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in error_of(capsys, name, "--out", str(tmp_path / "file"))


def test_a_mistake_shows_no_traceback_and_prints_to_stderr(tmp_path):
    (tmp_path / "mnist").mkdir()
    result = run("behavioral-vision", "--preset", "quick", "--out", str(tmp_path), "--data-dir", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "train-images-idx3-ubyte" in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_faults_of_the_program_keep_their_traceback(monkeypatch, tmp_path):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(EXPERIMENTS["kernels"], "report", fail)
    with pytest.raises(ValueError, match="a bug"):
        command_line.main(["kernels", "--orders", "2", "--out", str(tmp_path)])


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(EXPERIMENTS["kernels"], "run", interrupt)
    out = tmp_path / "a folder"
    assert command_line.main(["kernels", "--fresh", "--out", str(out)]) == 130
    assert f"to go on: python -m experiments kernels --out '{out}'" in capsys.readouterr().err


def test_demo_writes_table_figure_and_results(demo):
    folder, first, _ = demo
    assert first.returncode == 0, first.stderr
    for name in ("backprop", "delay line", "CET(2)", "ET", str(folder / "results.csv")):
        assert name in first.stdout
    assert (folder / "behavioral-vision.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "behavioral-vision.pdf").read_bytes().startswith(b"%PDF")
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Columns of what is as by default everywhere are left out.
    assert {"experiment", "scenario", "dataset", "network", "form", *tables.NEEDED, "run"} <= rows[0].keys()
    assert not {"distribution", "spread_s", "method"} & rows[0].keys()
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


def records_of(folder):
    return [json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")]


def test_runs_hold_their_config_and_where_they_come_from(demo):
    records = records_of(demo[0])
    assert len({record["hash"] for record in records}) == len(records) == 4 * 2 + 4
    for record in records:
        assert {"schema", "config", "versions", "git", "device", "wall_s", "finished", "rows"} <= record.keys()
        assert {"python", "jax", "jaxlib", "equinox", "optax", "numpy", "cetsim"} <= record["versions"].keys()
    tested = [r for r in records if any(row["metric"] == "test_accuracy" for row in r["rows"])]
    assert {record["columns"]["seed"] for record in tested} == {0}


def test_a_diverging_condition_is_recorded_and_the_others_go_on(demo):
    folder, first, _ = demo
    rates = {True: set(), False: set()}
    for record in records_of(folder):
        (diverged,) = (row["value"] for row in record["rows"] if row["metric"] == "diverged")
        rates[bool(diverged)].add(record["columns"]["learning_rate"])
    assert rates == {True: {1e20}, False: {1e-3}}
    assert first.stdout.count("diverged") == 4


def test_a_second_run_trains_nothing_and_draws_the_same_figure(demo):
    _, first, second = demo
    assert second.returncode == 0, second.stderr
    assert "learning rate 0.001" in first.stdout
    assert second.stdout == first.stdout[first.stdout.index("\nTest accuracy") :]


def test_plot_only_needs_nothing_but_results(demo, tmp_path):
    folder = copied(demo[0], tmp_path)
    assert "CET(2)" in output_of("behavioral-vision", "--plot-only", "--out", tmp_path)
    drawn = require_same_pictures(folder, demo[0])
    assert {"behavioral-vision.png", "behavioral-vision.pdf"} <= set(drawn)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*drawn, "results.csv"])


def test_a_table_alone_is_gone_on_from(demo, tmp_path):
    """As in a repository that keeps the table only: what is in it is not trained again, and stays in it."""
    folder = copied(demo[0], tmp_path)
    before = tables.read(folder / "results.csv")
    output = output_of(*TINY, "--out", tmp_path)
    assert "seed 0: " not in output
    assert output[output.index("Test accuracy") :] == demo[2].stdout.replace(str(demo[0]), str(folder))[1:]
    assert not list((folder / "runs").glob("*.json"))
    output_of(*TINY, "--seeds", "2", "--out", tmp_path)
    new = tables.read(folder / "results.csv")
    assert set(before["run"]) < set(new["run"])
    assert len(list((folder / "runs").glob("*.json"))) == 4
    kept = new[new["run"].isin(before["run"])].drop(columns="step").reset_index(drop=True)
    columns = [name for name in before if name != "step"]
    key = ["run", "metric", "layer", "value"]
    assert kept[columns].sort_values(key, ignore_index=True).equals(before[columns].sort_values(key, ignore_index=True))


def test_a_table_of_older_shape_is_read_and_kept_out_of_harm(tmp_path, capsys):
    """Without a column `run` there is no telling which of its runs are asked for; new ones would replace them."""
    path = tmp_path / "behavioral-vision" / "results.csv"
    path.parent.mkdir()
    older = dict(experiment="behavioral-vision", scenario="none", dataset="digits", network="MLP", trace="ET", order=1)
    older |= dict(delay_s=0.4, form="activation", mode="reset", learning_rate=1e-3, seed=0, layer="", step=20)
    older |= dict(metric="test_accuracy", value=0.5, error_gate=1e-8)
    path.write_text(f"{','.join(older)}\n{','.join(map(str, older.values()))}\n")
    before = path.read_bytes()
    assert "run" in error_of(capsys, *TINY, "--out", tmp_path)
    assert path.read_bytes() == before
    assert "50.0" in output_of("behavioral-vision", "--plot-only", "--out", tmp_path)


def test_learning_rates_are_chosen_at_one_delay_if_so_wanted(tmp_path):
    arguments = [*TINY, "--delays", "0.4", "0.8", "--selection-delay", "0.8", "--steps", "2", "--selection-steps", "2"]
    output_of(*arguments, "--learning-rates", "1e-3", "1e-2", "--out", tmp_path)
    runs = sweep.load(tmp_path / "behavioral-vision").runs
    seeds = {seed: runs[runs["seed"] == seed] for seed in (1000, 0)}
    found = lambda seed: set(zip(seeds[seed]["trace"], seeds[seed]["delay_s"].fillna(0.0), strict=True))  # noqa: E731
    late = ("ET", "CET", "delay line")
    assert found(1000) == {("backprop", 0.0), *((trace, 0.8) for trace in late)}
    assert len(seeds[1000]) == 2 * 4  # at two rates
    assert found(0) == {("backprop", 0.0), *((trace, delay) for trace in late for delay in (0.4, 0.8))}
    assert seeds[0].groupby("trace")["learning_rate"].nunique().eq(1).all()


def test_trials_at_one_delay_keep_the_peak_in_proportion():
    options = Options(selection_delay=2.0)
    candidates = [set_to_delay(options, "CET", 6, 0.4, peak_s=0.6), set_to_delay(options, "backprop")]
    trials = [selection.at_selection_delay(options, candidate) for candidate in candidates]
    assert [(t.delay_s, t.peak_s) for t in trials] == [(2.0, 3.0), (0.0, 0.0)]


def random_data(pixels: int = 9):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(160, 1, pixels, 1)).astype(np.float32)
    labels = rng.integers(0, 10, 160).astype(np.int32)
    return datasets.Dataset("random", images, labels, images, labels)


def test_a_run_keeps_its_name(tmp_path):
    # Hashes are what finished runs are found by: a change of this one makes everybody run everything again.
    course = vision.Course(Options(hidden=(5,), steps=1), random_data(), "test")
    table = trained(course, [Condition("CET", 6, 2.0, 1e-3, 1, 2.0, error_gate=1e-8)], tmp_path)
    assert list(table.records) == ["e2c40fdbd64a6f5b"]


def test_names_of_fields_that_runs_were_first_named_by_are_kept():
    condition = Condition(boundary="carry", segment=64)
    assert naming(recorded(condition), recorded(Condition())) == {"mode": "carry", "update_every": 64}
    assert from_record(recorded(condition)) == condition


def test_conditions_share_one_program_and_do_not_depend_on_who_is_trained_beside_them(monkeypatch, tmp_path):
    course = vision.Course(Options(hidden=(5,), steps=3), random_data(), "test")
    conditions = [
        Condition("ET", 1, 0.4, 1e-2, 0, 0.4),
        Condition("CET", 6, 2.0, 1e-3, 1, 2.0, error_gate=1e-8),
    ]
    traced, advance = [], SupervisedRun.advance
    monkeypatch.setattr(SupervisedRun, "advance", lambda *args: traced.append(args) or advance(*args))
    alone = trained(course, conditions, tmp_path / "alone").rows
    together = trained(course, conditions, tmp_path / "together", batch=2).rows
    assert len(traced) <= 2 * 2  # for each width, not for each condition and step: traced for its shape, then compiled
    key = ["run", "metric", "layer", "step"]
    alone, together = (rows[rows["metric"] != "wall_s"].sort_values(key) for rows in (alone, together))
    assert alone[key].to_numpy().tolist() == together[key].to_numpy().tolist()
    np.testing.assert_allclose(alone["value"].astype(float), together["value"].astype(float), atol=1e-5)
    metrics = {"train_loss", "test_accuracy", "test_loss", "alignment", "diverged"}
    assert set(alone["metric"]) == metrics
    assert jax.config.jax_enable_x64  # the tolerance is that of rounding


def test_table_leaves_diverged_runs_out_and_counts_them():
    assert tables.cell([0.9, 0.92, np.nan]) == "91.0 ± 1.4 (1 div.)"
    assert tables.cell([0.9]) == "90.0"
    assert tables.cell([np.nan]) == "diverged"
    assert tables.cell([]) == ""


def test_table_shows_the_papers_numbers_beside_ours_on_mnist(tmp_path, capsys):
    row = dict(experiment="behavioral-vision", dataset="mnist", network="MLP 784-512-512-10", metric="test_accuracy")
    row |= dict(form="activation", boundary="reset", run="a")
    row |= dict(step=100, seed=0, learning_rate=1e-3, error_gate=1e-8, value=0.95, delay_s=10.0, trace="CET", order=6)
    still = row | dict(trace="backprop", order=0, delay_s=0.0, error_gate=0.0, run="b")
    options = Options(out=tmp_path)
    options.folder.mkdir()
    behavioral_vision.report(tidy([row, still]), options)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index(["CET(6)", "95.0"]) + 1] == ["paper", "95"]
    assert lines[lines.index(["backprop", "95.0"]) + 1] == ["paper", "99"]


def test_packages_that_are_missing_are_named(monkeypatch, capsys):
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda name: None if name in ("pandas", "tyro") else name)
    assert entry.main(["kernels"]) == 2
    assert capsys.readouterr().err == ("error: the experiments need tyro, pandas: pip install 'cetsim[experiments]'\n")
