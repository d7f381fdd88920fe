"""What is drawn from every table in figures/: the same data as when the table was made.

golden/figures.json was made by an earlier code, which the tables are of: of each axes of each figure the lines that are
no dots, by their number of points and the sum of their heights, and the sums of coloured cells.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from experiment import output_of

from experiments.common import plots

FIGURES = Path(__file__).parents[2] / "figures"
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "figures.json").read_text())


def drawn_by(figure) -> list[list]:
    """What is on each axes of a figure."""
    found = []
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) and line.get_marker() != "."]
        lines = [line for line in lines if line.get_linestyle() != "None" or line.get_label()[0] != "_"]
        heights = [np.asarray(line.get_ydata(), float) for line in lines]
        cells = [np.asarray(drawn.get_array(), float) for drawn in axes.collections if drawn.get_array() is not None]
        found.append(sorted([y.size, float(f"{np.nansum(y):.5g}")] for y in [*heights, *cells]))
    return found


@pytest.mark.parametrize("table", GOLDEN)
def test_a_committed_table_gives_the_picture_that_it_gave(table, tmp_path, monkeypatch):
    name, drawn = GOLDEN[table]["command"][0], {}
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.csv").symlink_to(FIGURES / table / "results.csv")
    note = lambda figure, folder, name, *rest, **more: drawn.setdefault(name, drawn_by(figure)) and []  # noqa: E731
    monkeypatch.setattr(plots, "save", note)
    output_of(*GOLDEN[table]["command"], "--plot-only", "--out", tmp_path)
    assert drawn.keys() == GOLDEN[table]["figures"].keys()
    for figure, axes in GOLDEN[table]["figures"].items():
        assert len(drawn[figure]) == len(axes)
        for found, expected in zip(drawn[figure], axes, strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
