"""kernel-shape: what is run, its figures and table from end to end, and what it says to mistakes."""

import csv
from dataclasses import replace

import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy

from cetsim import CascadingTrace
from experiments import kernel_shape
from experiments.common import plots
from experiments.kernel_shape import PRESETS, Options

TINY = (
    *("kernel-shape", "--delays", "0.4", "0.8", "--orders", "5", "--factors", "0.5", "1"),
    *("--hidden", "8", "--seeds", "2", "--steps", "5", "--batch-conditions", "10"),
)
FIGURES = ("kernel-shape.png", "kernel-shape.pdf", "peak-wrong.png", "peak-wrong.pdf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny run, and what it printed."""
    out = tmp_path_factory.mktemp("tiny")
    return out / "kernel-shape", output_of(*TINY, "--out", str(out))


def row(**more) -> dict:
    """One of a finished run's tidy rows."""
    shared = dict(
        dataset="digits", network="MLP 64-8-10", form="activation", boundary="reset", error_gate=1e-8, step=400
    )
    trace = dict(trace="CET", order=2, delay_s=4.0, peak_s=4.0, rise_s=0.0, ratio=0.0, learning_rate=1e-3, seed=0)
    return shared | trace | dict(run="a", metric="test_accuracy", value=0.9) | more


def test_the_grid_is_every_order_at_every_multiple_of_every_delay():
    options = Options(delays=(4.0, 10.0), orders=(2, 6), factors=(0.7, 1.0, 2.0))
    conditions = [condition for (condition,) in kernel_shape.conditions(options)]
    lines = [condition for condition in conditions if condition.trace == "delay line"]
    assert [(line.delay_s, line.peak_s) for line in lines] == [(4.0, 4.0), (10.0, 10.0)]
    traces = {(c.trace, c.order, c.delay_s, c.peak_s) for c in conditions if c not in lines}
    peaks = {4.0: (2.8, 4.0, 8.0), 10.0: (7.0, 10.0, 20.0)}
    kinds = (("ET", 1), ("CET", 2), ("CET", 6))
    assert traces == {(*kind, delay, peak) for kind in kinds for delay, set_to in peaks.items() for peak in set_to}
    assert len(conditions) == 2 + 2 * 3 * 3
    assert {condition.error_gate for condition in conditions} == {1e-8}


@pytest.mark.parametrize("options", PRESETS.values())
def test_presets_pass_their_own_checks(options):
    options.check()


@pytest.mark.parametrize("order", [2, 10, 40])
def test_rates_are_those_of_the_traces(order):
    assert kernel_shape.rate_of(order, 2.8) == pytest.approx(float(CascadingTrace(order, 2.8, 0.2).rate))


def test_cells_meet_halfway_between_their_rates():
    assert plots.edges([1.0, 4.0, 16.0]) == pytest.approx([0.5, 2.0, 8.0, 32.0])
    low, high = plots.edges([3.0])
    assert low < 3.0 < high


def test_tables_figures_and_results(tiny):
    folder, printed = tiny
    for name in FIGURES:
        assert (folder / name).stat().st_size > 10_000
    with (folder / "results.csv").open(newline="") as file:
        ends = [r for r in csv.DictReader(file) if (r["metric"], r["step"]) == ("test_accuracy", "5")]
    assert len(ends) == 2 * (2 + 2 * 2 * 2)
    assert {r["peak_s"] for r in ends if r["delay_s"] == "0.8"} == {"0.4", "0.8"}
    for delay in ("0.4 s", "0.8 s"):
        for quantity in ("Test accuracy (%)", "Alignment of the first layer (cosine)"):
            assert f"{quantity}, delay {delay}, digits (8x8), MLP 64-8-10" in printed
    assert printed.count("\nCET(5) ") >= 4
    assert "2 seeds, 5 segments of 128 images, learning rate 0.001" in printed


def test_plot_only_needs_nothing_but_results(tiny, tmp_path):
    folder = copied(tiny[0], tmp_path)
    printed = output_of("kernel-shape", "--plot-only", "--steps", "5", "--out", str(tmp_path))
    assert printed[: printed.index("\nresults:")] in tiny[1]
    assert require_same_pictures(folder, tiny[0]) == sorted(FIGURES)


def test_runs_are_those_of_the_length_and_the_gate_asked_for():
    options = Options(steps=400)
    rows = tidy([row(), row(run="b", error_gate=0.0, value=0.8), row(run="c", step=100, value=0.7)])
    of = lambda options: kernel_shape.select(rows, options)["accuracy"].tolist()  # noqa: E731
    assert of(options) == [90]
    assert of(replace(options, error_gate=0.0)) == [80]
    assert of(replace(options, steps=100)) == [70]
    assert of(replace(options, steps=5)) == [70]  # of which there is none: the last


def test_of_runs_that_differ_in_learning_rate_the_last_counts():
    rows = tidy([row(), row(run="b", learning_rate=1e-2, value=0.5)])
    (run,) = kernel_shape.select(rows, Options(steps=400)).to_dict("records")
    assert (run["accuracy"], run["learning_rate"]) == (50, 1e-2)


def test_alignment_is_that_of_the_first_layer_at_the_end():
    cosines = [("layers.0", 0, 0.2), ("layers.2", 0, 0.3), ("layers.0", 400, 0.4), ("layers.2", 400, 0.5)]
    rows = [row(), *(row(metric="alignment", layer=layer, step=s, value=v) for layer, s, v in cosines)]
    assert kernel_shape.select(tidy(rows), Options(steps=400))["alignment"].tolist() == [0.4]


@pytest.mark.parametrize("lost", ["one", "all"])
def test_runs_that_diverged_are_left_out_and_counted(lost, tmp_path, capsys):
    rows = []
    for seed in (0, 1):
        for factor in (1.0, 2.0):
            which = dict(run=f"{seed} {factor}", seed=seed, peak_s=4 * factor)
            diverged = float(lost == "all" or (seed, factor) == (1, 2.0))
            rows += [row(**which), row(**which, metric="alignment", layer="layers.0", value=0.5)]
            rows.append(row(**which, metric="diverged", value=diverged))
    options = Options(steps=400, out=tmp_path)
    options.folder.mkdir()
    assert len(kernel_shape.report(tidy(rows), options)) == 4
    printed = capsys.readouterr().out
    assert f"Left out: {'1 run' if lost == 'one' else '4 runs'} that diverged" in printed
    assert ("90.0 (1 div.)" if lost == "one" else "diverged") in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--factors", "0"), "--factors must be above 0, got 0"),
        (("--factors", "nan"), "--factors must be above 0, got nan"),
        (("--factors", "1", "1"), "--factors must be different from each other, got 1.0 1.0"),
        (("--factors",), "--factors must be at least one, got none"),
        (("--factors", "0.2", "--delays", "0.4"), "--factors must be large enough for peaks above 0.1 s, half"),
        (("--factors", "2.6", "--delays", "10"), "--factors must be small enough for peaks up to 25.4 s"),
        (
            ("--factors", "2", "--delays", "2", "--selection-delay", "20"),
            "within a segment of 128 x 0.2 s, where the delay is 20 s, got 2",
        ),
        (("--delays", "0.3"), "--delays must be multiples of the 0.2 s of an image, got 0.3"),
        (("--delays", "25.6"), "--delays must be at most 25.4 s"),
        (("--selection-delay", "0.3"), "--selection-delay must be multiples of the 0.2 s"),
        (("--orders", "1"), "--orders must be 2 to 64"),
        (("--error-gate", "-1"), "--error-gate must be at least 0, got -1"),
        (("--plot-only",), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, "kernel-shape", *arguments, "--out", tmp_path)


def test_peaks_beyond_a_stretch_are_allowed_where_time_goes_on():
    Options(boundary="carry", delays=(20.0,), factors=(2.0,)).check()
