"""tuned-traces: equal budgets, where two exponentials peak, what is chosen and reported, and mistakes."""

import json
from itertools import product

import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy

from cetsim import CascadingTrace, ExponentialTrace
from experiments import tuned_traces
from experiments.common import plots
from experiments.common.hyperparameters import make_trace
from experiments.tuned_traces import FAMILIES, PRESETS, Options, candidates, two_exponentials, untuned

DT = 0.2
TINY = (
    *("tuned-traces", "--delays", "0.4", "0.8", "--time-constants", "0.5", "1", "--orders", "2", "--peaks", "1", "1.5"),
    *("--rises", "0.5", "--depressions", "0.5", "--hidden", "8", "--seeds", "2", "--steps", "5"),
    *("--selection-steps", "5", "--learning-rates", "1e-3", "1e-2", "--batch-conditions", "21"),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny run, and what it printed."""
    out = tmp_path_factory.mktemp("tiny")
    return out / "tuned-traces", output_of(*TINY, "--out", str(out))


@pytest.mark.parametrize("options", PRESETS.values())
def test_every_family_has_the_same_budget(options):
    options.check()
    for delay in options.delays:
        groups = [candidates(options, family, delay) for family in FAMILIES]
        assert {len(set(group)) for group in groups} == {12}
        for family, group in zip(FAMILIES, groups, strict=True):
            assert {(c.trace, c.delay_s, c.error_gate) for c in group} == {(family, delay, 1e-8)}
            assert untuned(options, family, delay) in group  # so that to report it costs no trials


def test_groups_are_references_and_families_at_every_delay():
    options = Options(delays=(4.0, 10.0))
    first, *others = tuned_traces.conditions(options)
    assert [condition.trace for condition in first] == ["backprop"]
    assert [len(group) for group in others] == [1, 12, 12, 12, 1, 1, 1] * 2
    assert [group[0].trace for group in others] == ["delay line", *FAMILIES, *FAMILIES] * 2


def test_what_is_asked_for_besides_is_a_family_with_the_same_budget():
    options = Options(delays=(4.0, 10.0), balanced=(3, 4, 6, 8, 10, 20), contrasts=(2, 4, 6, 8, 10, 20))
    options.check()
    compared, groups = [*FAMILIES, "balanced", "CET - ET"], tuned_traces.conditions(options)[1:]
    assert [group[0].trace for group in groups] == ["delay line", *compared, *compared] * 2
    for delay in options.delays:
        group = candidates(options, "CET - ET", delay)
        assert {(one.order, one.peak_s / delay) for one in group} == set(product(options.contrasts, options.peaks))
        assert {(one.trace, one.delay_s, one.error_gate) for one in group} == {("CET - ET", delay, 1e-8)}
        assert len(group) == len(candidates(options, "ET", delay))
        assert untuned(options, "CET - ET", delay) in group
    trace, lags = make_trace(untuned(options, "CET - ET", 4.0)), np.arange(1, 200)
    both = CascadingTrace(10, 4.0, DT).weights(lags) - ExponentialTrace(4.0, DT).weights(lags)
    np.testing.assert_allclose(trace.weights(lags), both, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.85, 1.0])
@pytest.mark.parametrize("rise", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("depression", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("delay", [4.0, 10.0])
def test_two_exponentials_peak_where_they_are_set(share, rise, depression, delay):
    condition = two_exponentials(Options(), delay, share, rise, depression)
    weights = np.asarray(make_trace(condition).weights(np.arange(128)))
    assert abs(np.argmax(weights) - share * delay / DT) <= 0.5 + 1e-6
    if depression == 0:
        assert weights.min() >= 0
        assert condition.ratio == 1
    else:
        assert weights[1] < 0  # LTD comes first
    slow, fast, ratio = condition.peak_s, condition.rise_s, condition.ratio
    assert slow - ratio * fast == pytest.approx((1 - depression) * (slow - fast), rel=1e-5)


def test_two_equal_exponentials_are_a_cascade_of_order_2():
    condition = two_exponentials(Options(), 4.0, 1.0, 0.99, 0.0)
    lags = np.arange(100)
    expected = np.asarray(CascadingTrace(2, 4.0, DT).weights(lags))
    np.testing.assert_allclose(make_trace(condition).weights(lags), expected, atol=1e-3 * expected.max())


def test_untuned_members_are_set_by_the_delay_alone():
    options = Options()
    assert untuned(options, "ET", 4.0).peak_s == 4.0
    cascade = untuned(options, "CET", 4.0)
    assert (cascade.order, cascade.peak_s) == (tuned_traces.ORDERS["CET"], 4.0)
    assert np.argmax(make_trace(untuned(options, "double exponential", 4.0)).weights(np.arange(128))) == 20
    assert untuned(options, "delay line", 4.0).peak_s == 4.0
    assert untuned(options, "backprop", 4.0).delay_s == 0.0


def test_the_best_on_held_out_images_is_reported(tiny):
    records = [json.loads(path.read_text()) for path in (tiny[0] / "runs").glob("*.json")]
    trials = [record for record in records if any(r["metric"] == "validation_accuracy" for r in record["rows"])]
    tested = [record["columns"] for record in records if record not in trials]
    # At a delay: 2 candidates of each family, two untuned members that are not among them, the delay line.
    assert len(trials) == 2 * (2 * (3 * 2 + 2 + 1) + 1)
    members = ("trace", "order", "delay_s", "peak_s", "rise_s", "ratio", "learning_rate")
    for delay in (0.4, 0.8):
        for family, offered in (("ET", (1,)), ("double exponential", (2,)), ("CET", (2,))):
            scores = {}
            for record in trials:
                config = record["columns"]
                fits = (config["trace"], config["delay_s"]) == (family, delay) and config["order"] in offered
                if fits and (family != "double exponential" or config["ratio"] > 1):
                    values = {row["metric"]: row["value"] for row in record["rows"]}
                    score = values["validation_accuracy"], -values["validation_loss"]
                    scores[tuple(config[name] for name in members)] = score
            assert len(scores) == 4
            best = max(scores, key=scores.get)
            assert {c["seed"] for c in tested if tuple(c[name] for name in members) == best} == {0, 1}


def test_table_figure_and_parameters(tiny):
    folder, printed = tiny
    for kind in ("png", "pdf"):
        assert (folder / f"tuned-traces.{kind}").stat().st_size > 10_000
    for delay in ("0.4 s", "0.8 s"):
        assert f"Test accuracy in %, delay {delay}, digits (8x8), MLP 64-8-10" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for name, parameters in (("ET", "ET τ"), ("two exponentials", "two exponentials τ"), ("CET", "CET(2) peak")):
        assert sum(line.startswith(f"{name}, tuned") and parameters in line for line in lines) == 2
    assert sum(line.startswith("set by the delay") and line.endswith("CET(10) peak 0.4 s") for line in lines) == 1
    for name in ("delay line", "backprop"):
        assert sum(line.startswith(name) and "±" in line for line in lines) == 2


def test_plot_only_needs_nothing_but_results(tiny, tmp_path):
    folder = copied(tiny[0], tmp_path)
    printed = output_of(*TINY, "--plot-only", "--out", str(tmp_path))
    assert printed[: printed.index("\nresults:")] in tiny[1]
    assert require_same_pictures(folder, tiny[0]) == ["tuned-traces.pdf", "tuned-traces.png"]


def ended(run: str, peak: float, value: float, **more) -> dict:
    """A row of a run of ET that ended with this accuracy."""
    row = dict(dataset="digits", network="MLP 64-8-10", form="activation", boundary="reset", error_gate=1e-8, step=300)
    row |= dict(trace="ET", order=1, delay_s=4.0, peak_s=peak, rise_s=0.0, ratio=0.0, learning_rate=1e-3, seed=0)
    return row | dict(run=run, metric="test_accuracy", value=value) | more


def values(ends, options, family, delay):
    """Accuracies of the member chosen, and of the one set by the delay."""
    return tuple(
        how(ends, options, family, delay)["value"].tolist() for how in (tuned_traces.tuned, tuned_traces.set_by_delay)
    )


def test_the_member_chosen_may_be_the_one_set_by_the_delay():
    options = Options(steps=300)
    ends = tuned_traces.select(tidy([ended("a", 4.0, 0.5)]), options)
    assert values(ends, options, "ET", 4.0) == ([0.5], [0.5])
    assert values(ends, options, "CET", 4.0) == ([], [])


def test_the_last_member_chosen_counts():
    options = Options(steps=300)
    rows = [ended("a", 2.0, 0.5), ended("b", 4.0, 0.6), ended("c", 8.0, 0.7), ended("d", 8.0, 0.8, delay_s=8.0)]
    ends = tuned_traces.select(tidy(rows), options)
    assert values(ends, options, "ET", 4.0) == ([0.7], [0.6])
    assert values(ends, options, "ET", 8.0)[0] == [0.8]


def test_families_without_a_sound_run_are_drawn_empty(tmp_path, capsys):
    options = Options(steps=300, out=tmp_path)
    options.folder.mkdir()
    rows = [ended("a", 4.0, 0.5), ended("a", 4.0, 1.0, metric="diverged")]
    assert len(tuned_traces.report(tidy(rows), options)) == 2
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize(("order", "peak"), [(10, 3.4), (2, 4.0)])
def test_cet_less_et_is_told_and_drawn(order, peak, tmp_path, capsys, monkeypatch):
    """Its kernel too, unless nothing is left of it at the delay: CET(2) and ET that are set to it are alike there."""
    shown = []
    monkeypatch.setattr(plots, "save", lambda figure, *rest: shown.append(figure) or [])
    contrast = dict(trace="CET - ET", order=10, learning_rate=3e-4)
    rows = [ended("a", 4.0, 0.5), ended("b", 4.0, 0.6, **contrast)]
    rows.append(ended("c", peak, 0.7, **contrast | dict(order=order)))
    tuned_traces.report(tidy(rows), Options(steps=300, out=tmp_path))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"CET - ET, tuned 70.0 0.0003 CET({order}) - ET peak and τ {peak:.3g} s" in lines
    assert lines[lines.index(next(line for line in lines if line.startswith("CET - ET"))) + 1] == (
        "set by the delay 60.0 0.0003 CET(10) - ET peak and τ 4 s"
    )
    accuracies, kernels = shown[0].axes
    assert f"CET({order}) - ET\npeak and τ {peak:.3g} s" in [tick.get_text() for tick in accuracies.get_yticklabels()]
    heights = [np.abs(line.get_ydata()).max() for line in kernels.lines if len(line.get_xdata()) > 2]
    assert len(heights) == 1 + (order == 10)
    assert max(heights) < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--time-constants", "1", "0"), "--time-constants must be above 0, got 0"),
        (("--time-constants", "1", "2"), "--orders must be as many with --peaks as the 2 of --time-constants"),
        (("--orders", "2", "4"), "--orders must be as many with --peaks as the 12 of --time-constants: every family"),
        (("--balanced", "3", "6", "10"), "--balanced must be as many with --peaks as the 12 of --time-constants"),
        (("--contrasts", "10"), "--contrasts must be as many with --peaks as the 12 of --time-constants: every family"),
        (("--rises", "0.5"), "--rises must be as many with --depressions and --peaks as the 12 of --time-constants"),
        (("--rises", "0.5", "1"), "--rises must be above 0 and at most 0.99, got 1"),
        (("--depressions", "0", "1"), "--depressions must be 0 to 0.95, got 1"),
        (("--depressions", "-0.1"), "--depressions must be 0 to 0.95, got -0.1"),
        (("--peaks", "0", "1"), "--peaks must be above 0, got 0"),
        (("--peaks", "0.2", "1", "--delays", "0.4"), "--peaks must be large enough for peaks above 0.1 s"),
        (("--peaks", "1", "3", "--delays", "10"), "--peaks must be small enough for peaks up to 25.4 s"),
        (("--orders", "1", "2"), "--orders must be 2 to 64"),
        (("--delays", "0.3"), "--delays must be multiples of the 0.2 s of an image, got 0.3"),
        (("--error-gate", "-1"), "--error-gate must be at least 0, got -1"),
        (("--plot-only",), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, "tuned-traces", *arguments, "--out", tmp_path)
