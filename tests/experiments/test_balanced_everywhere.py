"""--balanced, --sharp and --contrasts reach the runs of every experiment on images that takes them."""

from dataclasses import replace

import numpy as np
import pytest
from experiment import error_of

from experiments.common import command_line
from experiments.common.conditions import Condition
from experiments.common.hyperparameters import make_trace

ASKED = ("--balanced", "3", "6", "10", "--sharp", "10", "--contrasts", "10")
WANTED = [("balanced", 3), ("balanced", 6), ("balanced", 10), ("sharp", 10), ("CET - ET", 10)]
BUDGET = ("--time-constants", "0.5", "1", "2", "--peaks", "1", "--rises", "0.5", "--depressions", "0", "0.5", "0.8")
TUNED = ("--sharp", "6", "10", "20", "--contrasts", "6", "10", "20")
NAMES = (
    *("behavioral-vision", "streaming-vision", "alignment", "kernel-shape", "random-delay", "tuned-traces"),
    *("retrograde-vision", "spiking-vision", "crosstalk", "centering"),
)


def parsed(name: str, *arguments: str):
    """An experiment and its options as the command line reads them."""
    experiment = command_line.load(name)
    return experiment, command_line.parse(name, experiment, [*arguments])


def conditions_of(experiment, options) -> list[Condition]:
    """All that is trained, or measured at the weights of what is."""
    trained = [one for group in experiment.conditions(options) for one in group]
    return trained + getattr(experiment, "probes", lambda options: [])(options)


def settings(conditions: list[Condition], trace: str, order: int) -> set[Condition]:
    """All that is said of the runs of a trace besides the trace."""
    return {replace(one, trace="", order=0) for one in conditions if (one.trace, one.order) == (trace, order)}


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_asked_for_is_run_wherever_a_cascade_is(name):
    # Every family of tuned-traces has the same budget, and so as many contrasts.
    more = (*BUDGET, "--orders", "2", "6", "10", *TUNED) if name == "tuned-traces" else ()
    experiment, options = parsed(name, *ASKED, *(more or ("--orders", "2", "10")))
    options.check()
    found = conditions_of(experiment, options)
    assert settings(found, "CET", 10)
    for trace in WANTED:
        assert settings(found, *trace) == settings(found, "CET", 10), trace


@pytest.mark.parametrize("name", NAMES)
def test_none_is_run_unasked(name):
    experiment, options = parsed(name)
    options = replace(options, balanced=(), sharp=(), contrasts=())
    assert not {"balanced", "sharp", "CET - ET"} & {one.trace for one in conditions_of(experiment, options)}


def test_tuned_traces_has_both_families_at_once_and_refuses_unlike_budgets(capsys, tmp_path):
    experiment, options = parsed("tuned-traces", *ASKED)
    found = {(one.trace, one.order) for one in conditions_of(experiment, options)}
    assert {*WANTED} <= found
    message = "--contrasts must be as many with --peaks as the 3 of --time-constants: every family has the same budget"
    arguments = (*ASKED, *BUDGET, "--orders", "2", "6", "10", *TUNED[:4], "--out", tmp_path)
    assert f"{message}, got 1 x 1" in error_of(capsys, "tuned-traces", *arguments)


def test_a_sharp_readout_is_the_balanced_one_without_regard_to_the_sum():
    """Of all readouts with the same weight at the delay its squares are the least, and the sum is about half."""
    lags = np.arange(1, 400)
    last, balanced, sharp = (
        make_trace(Condition(kind, 10, 10.0, peak_s=10.0)) for kind in ("CET", "balanced", "sharp")
    )
    w = [np.asarray(trace.weights(lags)) for trace in (last, balanced, sharp)]
    np.testing.assert_allclose([one[49] for one in w], w[0][49], rtol=1e-5)
    squares, sums = [np.sum(one**2) for one in w], [np.sum(one) for one in w]
    assert squares[2] < min(squares[:2])
    assert sums[1] < 0.1 < 0.4 < sums[2] < 0.6 < sums[0]
