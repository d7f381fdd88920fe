"""What users see first: `python -m cetsim`, and a trace drawn."""

import jax
import numpy as np
import pytest

import cetsim
from cetsim import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace, __main__


def test_the_module_says_what_runs_and_where_to_go(capsys):
    __main__.main()
    said = capsys.readouterr().out
    for word in (cetsim.__version__, jax.__version__, "devices", "cpu", "cetsim.attach", "python -m experiments"):
        assert word in said


@pytest.mark.parametrize(
    "trace",
    [CascadingTrace(4, 2.0), ExponentialTrace(1.0), DelayLine(1.0), DoubleExponentialTrace([2.0, 4.0], [1.0, 1.0])],
    ids=lambda trace: type(trace).__name__,
)
def test_a_trace_draws_its_weights_against_seconds(trace):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib: pip install 'cetsim[experiments]'")
    axes = trace.plot()
    for line, kernel in zip(axes.lines, np.asarray(trace.weights(np.arange(3))).reshape(3, -1).T, strict=True):
        np.testing.assert_allclose(line.get_xdata()[:3], [0.0, 0.2, 0.4])
        np.testing.assert_allclose(line.get_ydata()[:3], kernel)
    assert axes.get_xlabel().endswith(", s")
    assert trace.plot(axes, seconds=2.0) is axes
    assert axes.lines[-1].get_xdata()[-1] == pytest.approx(2.0)
    pyplot.close(axes.figure)
