"""Rasters and potentials, read back from the figure."""

import numpy as np
import pytest

from cetsim import spiking

SPIKES = np.array([[0, 1], [0, 0], [1, 1]])
V = np.arange(6.0).reshape(3, 2)


def test_a_raster_has_a_mark_for_each_spike_and_potentials_below():
    figure = spiking.plot_spikes(SPIKES, 0.1, V, threshold=4.5, shown=1)
    raster, below = figure.axes
    np.testing.assert_allclose(raster.collections[0].get_offsets(), [[0.0, 1], [0.2, 0], [0.2, 1]])
    potential, threshold = below.lines
    np.testing.assert_allclose(potential.get_xydata(), [[0.0, 0], [0.1, 2], [0.2, 4]])
    np.testing.assert_allclose(threshold.get_ydata(), 4.5)
    assert len(spiking.plot_spikes(SPIKES, 0.1).axes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5 * SPIKES, 0.1), "must be 0 or 1, got 0.5"),
        ((SPIKES, 0.0), "dt"),
    ],
)
def test_what_is_no_raster_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        spiking.plot_spikes(*arguments)
    assert "\n" not in str(error.value)
