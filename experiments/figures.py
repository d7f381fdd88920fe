"""What all figures share: size, fonts, a colour and marker for each trace, atomic saving."""

import io
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments.records import write_atomic

COLUMN_WIDTH = 3.4  # inches
_RC = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "font.family": "DejaVu Sans", "pdf.fonttype": 42, "savefig.dpi": 300,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2, "lines.markersize": 4,
    "legend.frameon": False, "legend.handlelength": 2.2, "axes.linewidth": 0.7,
}  # fmt: skip
# Okabe and Ito's palette: told apart by readers of every kind of colour vision; markers and dashes in print.
_STYLES = {
    ("ET", 1): dict(color="#D55E00", marker="o", linestyle="-"),
    ("CET", 2): dict(color="#E69F00", marker="^", linestyle=(0, (5, 1))),
    ("CET", 6): dict(color="#56B4E9", marker="s", linestyle=(0, (3, 1, 1, 1))),
    ("CET", 10): dict(color="#0072B2", marker="D", linestyle="-"),
    ("CET", 32): dict(color="#CC79A7", marker="v", linestyle=(0, (5, 1, 1, 1))),
    ("CET", 64): dict(color="#009E73", marker="P", linestyle="-"),
    ("delay line", 0): dict(color="#000000", marker="x", linestyle=(0, (2, 1.5))),
    ("no delay", 0): dict(color="#AAAAAA", marker="", linestyle="-", linewidth=2),
    ("backprop", 0): dict(color="#AAAAAA", marker="", linestyle="-", linewidth=2),
}
_SPARE = tuple(
    dict(color=color, marker=marker, linestyle=":")
    for color, marker in zip(("#009E73", "#CC79A7", "#56B4E9", "#E69F00"), "<>hp", strict=True)
)


def label(trace: str, order: float) -> str:
    """Name of a trace as readers know it, CET(10)."""
    return f"CET({order:g})" if trace == "CET" else trace


def styles(traces) -> dict[tuple, dict]:
    """Colour, marker and line style of each `(trace, order)`, always the same for those the paper has."""
    spare = cycle(_SPARE)
    return {key: _STYLES.get(key) or next(spare) for key in traces}


def gate_name(gate: float) -> str:
    """The error gate in words."""
    return f"error gate {f'{gate:g}'.replace('e-0', 'e-')}" if gate else "no error gate"


@contextmanager
def new_figure(rows: int = 1, height: float = 2.6, **subplots):
    """A figure one column wide with `rows` axes above each other, in this package's style."""
    with new_grid(rows, 1, COLUMN_WIDTH, height, **subplots) as (figure, axes):
        yield figure, axes[:, 0]


@contextmanager
def new_grid(rows: int, columns: int, width: float, height: float, **subplots):
    """A figure with axes in rows and columns, `axes[row, column]`, in this package's style."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def footnote(figure: Figure, text: str) -> None:
    """Small print under the axes."""
    figure.supxlabel(text, fontsize=7, color="#333333", x=0.02, ha="left")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name`.png and `name`.pdf into `folder`, atomically; returns their paths."""
    paths = []
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):  # undated: same rows, same file
        out = io.BytesIO()
        figure.savefig(out, format=kind, metadata=metadata)
        paths.append(folder / f"{name}.{kind}")
        write_atomic(paths[-1], out.getvalue())
    return paths
