"""How figures look, and what draws them: means with seeds and their range, curves, and maps."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from cetsim.files import write_atomic
from experiments.common import tables

COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0  # inches
_LETTERS = {COLUMN_WIDTH: 62, PAGE_WIDTH: 130}  # of a line of small print
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
    ("balanced", 3): dict(color="#AA4499", marker="<", linestyle=(0, (5, 1))),
    ("balanced", 6): dict(color="#882255", marker="h", linestyle=(0, (3, 1, 1, 1))),
    ("balanced", 10): dict(color="#CC3311", marker="*", linestyle="-"),
    ("sharp", 10): dict(color="#44AA99", marker="p", linestyle=(0, (3, 1))),
    ("CET - ET", 10): dict(color="#117733", marker=">", linestyle=(0, (1, 1))),
    ("delay line", 0): dict(color="#000000", marker="x", linestyle=(0, (2, 1.5))),
    ("no delay", 0): dict(color="#AAAAAA", marker="", linestyle="-", linewidth=2),
    ("backprop", 0): dict(color="#AAAAAA", marker="", linestyle="-", linewidth=2),
}
_SPARE = tuple(
    dict(color=color, marker=marker, linestyle=":")
    for color, marker in zip(("#009E73", "#CC79A7", "#56B4E9", "#E69F00"), "<>hp", strict=True)
)


def styles(traces: Iterable[tuple[str, int]]) -> dict[tuple, dict]:
    """Colour, marker and line style of each `(trace, order)`, always the same for those the paper has."""
    spare = cycle(_SPARE)
    return {key: _STYLES.get(key) or next(spare) for key in traces}


@contextmanager
def figure(rows: int = 1, columns: int = 1, width: float = COLUMN_WIDTH, height: float = 2.6, **subplots):
    """A figure with axes in rows and columns, `axes[row, column]`, in one style."""
    with matplotlib.rc_context(_RC):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.subplots(rows, columns, squeeze=False, **subplots)


def save(drawn: Figure, folder: Path, name: str, note: str = "", legend: Axes | None = None, columns: int = 3):
    """Writes `name`.png and `name`.pdf into `folder`, atomically; returns their paths.

    `note` is small print under the axes; names of the axes `legend` stand above it all, in at most so many `columns`.
    """
    if legend is not None:
        handles, names = legend.get_legend_handles_labels()
        fitting = max(1, int(drawn.get_figwidth() / (0.5 + 0.05 * max(map(len, names), default=0))))  # inches
        drawn.legend(handles, names, loc="outside upper center", ncols=min(columns, fitting))
    if note:
        # No line ends between a number and its unit.
        unbroken = re.sub(r"(?<=\d) (?=[^\W\d]|%|× )|(?<=×) (?=\d)", "\N{NO-BREAK SPACE}", note)
        wrapped = textwrap.fill(unbroken, _LETTERS[drawn.get_figwidth()])
        drawn.supxlabel(wrapped, fontsize=7, color="#333333", x=0.02, ha="left")
    paths = []
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):  # undated: same rows, same file
        out = io.BytesIO()
        drawn.savefig(out, format=kind, metadata=metadata)
        paths.append(folder / f"{name}.{kind}")
        write_atomic(paths[-1], out.getvalue())
    return paths


def left_out(name: str, why: str) -> list[Path]:
    """Says that a figure is not drawn; its paths, none."""
    print(f"figure left out: {name}, {why}")
    return []


def panels(folder: Path, name: str, note: str, shown: Sequence[dict], ylabel: str | list[str], *, columns: int = 1,
           width: float = 0.0, height: float = 2.0, margin: float = 1.2, names: int = 3, draw: Callable | None = None,
           finish: Callable | None = None, **subplots) -> list[Path]:  # fmt: skip
    """Writes a figure of panels of means, or of what else `draw` draws, row by row; returns its paths.

    **Arguments:**

    - `folder`, `name`, `note`: as of `save`.
    - `shown`: of each panel what `draw` takes, and its `title` and `xlabel`.
    - `width`: inches, of a page by default if there are `columns`; `height`: of a row; `margin`: of what is around.
    - `ylabel`: of all rows, or of each; `names`: columns of the legend.
    - `finish(axes)`: draws what else there is.
    - `subplots`: what axes share; they share the y axis by default.
    """
    rows, width = -(-len(shown) // columns), width or (PAGE_WIDTH if columns > 1 else COLUMN_WIDTH)
    subplots = dict(width=width, height=margin + height * rows, sharey=True) | subplots
    with figure(rows, columns, **subplots) as (drawn, axes):
        for axis, panel in zip(axes.flat, shown, strict=False):
            (draw or means)(axis, **{key: value for key, value in panel.items() if key not in ("title", "xlabel")})
            axis.set_title(panel.get("title", ""), loc="left", fontsize=8 if width > 2 * columns else 7)
            axis.set_xlabel(panel["xlabel"])
            if subplots.get("sharex") is True:
                axis.label_outer()
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, text in zip(axes[:, 0], [ylabel] * rows if isinstance(ylabel, str) else ylabel, strict=True):
            axis.set_ylabel(text)
        if finish:
            finish(axes)
        named = max(axes[:, 0], key=lambda axis: len(axis.get_legend_handles_labels()[1]))
        return save(drawn, folder, name, note, named, names)


def means(axis: Axes, frame: pd.DataFrame, x: str, *, keys: Sequence[tuple] | None = None, scale: float = 1.0,
          band: bool = True, apart: float = 0.0, linear: bool = False, ticks: bool = True,
          paper: pd.DataFrame | None = None) -> None:  # fmt: skip
    """Mean of each trace against one column, with the range of seeds, each a dot, and the paper's as hollow marks.

    **Arguments:**

    - `frame`: a row a run; runs without a `value` are left out. `scale`: of values, 100 for percent.
    - `x`: the column, of numbers, drawn on a logarithmic axis unless `linear`, or of words, which no line joins.
    - `keys`: the traces in the order of the legend; by default those of the frame, ET first.
    - `band`: whether the range of seeds is a band, or else a bar. `ticks`: whether every place has one.
    - `apart`: how far traces stand beside each other, as a share of the axis, or of a place where these are words.
    - `paper`: rows of `trace`, `order`, `x` and `value`.
    """
    words = frame[x].dtype.kind not in "iuf"
    values = list(dict.fromkeys(frame[x]))
    places = {value: i for i, value in enumerate(values)} if words else {value: value for value in sorted(values)}
    keys = list(reversed(tables.traces(frame))) if keys is None else keys
    linear = linear or words
    span = max(places.values(), default=0) or 1.0 if linear else math.log(max(places) / min(places))
    move = (lambda at, by: at + by) if linear else (lambda at, by: at * math.exp(by))
    for index, (key, style) in enumerate(styles(keys).items()):
        beside = index - (len(keys) - 1) / 2
        measured = tables.of_trace(frame, key).dropna(subset=["value"])
        found = {places[at]: scale * runs["value"] for at, runs in measured.groupby(x, sort=False)}
        shifted = {move(at, apart * beside * (1 if words else span)): found[at].to_numpy() for at in sorted(found)}
        shown = style | dict(linestyle="", marker=style["marker"] or "_") if words or len(places) == 1 else style
        # Dots stand a little beside their place, so that those of different traces can be told apart.
        _mean(axis, shifted, lambda at, b=beside: move(at, 0.004 * span * b), band, shown, tables.label(*key))
        if paper is not None:
            theirs = tables.of_trace(paper[paper[x].isin(list(places))], key)
            hollow = dict(linestyle="", marker=style["marker"] or "H", markersize=7, markerfacecolor="none", alpha=0.7)
            axis.plot(theirs[x], scale * theirs["value"], color=style["color"], **hollow, label="_paper")
    if not linear:
        axis.set_xscale("log")
        axis.minorticks_off()
    if ticks:
        axis.set_xticks(list(places.values()), [p if isinstance(p, str) else f"{p:g}" for p in places])


def _mean(axis: Axes, found: dict, beside: Callable, band: bool, style: dict, name: str) -> None:
    if not found:
        return
    axis.plot(list(found), [values.mean() for values in found.values()], **({"zorder": 3} | style), label=name)
    low, high = ([pick(values) for values in found.values()] for pick in (min, max))
    if band:
        axis.fill_between(list(found), low, high, color=style["color"], alpha=0.15, linewidth=0)
    else:
        axis.vlines(list(found), low, high, color=style["color"], linewidth=0.8, zorder=2)
    dots = [(beside(at), value) for at, values in found.items() for value in values if len(values) > 1]
    small = dict(color=style["color"], markersize=2.5, alpha=0.6, zorder=2, label="_seeds")
    axis.plot([at for at, _ in dots], [value for _, value in dots], ".", **small)


def curves(axis: Axes, frame: pd.DataFrame, *, style: dict, name: str = "", scale: float = 1.0, **more) -> None:
    """Each run thin against its steps, and their mean over the steps that all have, in this `style` and `more`.

    `frame` has rows of one metric: `run`, `step` and `value`; rows without a value are left out.
    """
    table = scale * frame.dropna(subset=["value"]).pivot_table(index="step", columns="run", values="value")
    if table.empty:
        return
    for run in table if table.shape[1] > 1 else ():
        measured, thin = table[run].dropna(), dict(color=style["color"], linewidth=0.5, alpha=0.6, label="_seed")
        axis.plot(measured.index.to_numpy(float), measured, **thin)
    mean = table.dropna().mean(axis=1)
    axis.plot(mean.index.to_numpy(float), mean, **({"zorder": 3, "label": name} | style | more))


def curves_of_traces(axis: Axes, frame: pd.DataFrame, keys: Sequence[tuple], scale: float = 1.0, marks: int = 0):
    """The curves of each trace, with about so many marks, all if 0."""
    for key, style in styles(keys).items():
        rows = tables.of_trace(frame, key)
        every = max(1, rows["step"].nunique() // marks) if marks else None
        curves(axis, rows, style=style, name=tables.label(*key), scale=scale, markevery=every)


def heat_map(axis: Axes, rows: Sequence[dict[float, float]], norm: Normalize, form: str) -> None:
    """Rows of cells, from the bottom up, around their places on a logarithmic axis, coloured by `norm`, written out."""
    colours = matplotlib.colormaps["viridis"]
    for level, row in enumerate(rows):
        if not row:
            continue
        places = sorted(row)
        cells, lines = [[row[at] for at in places]], dict(edgecolors="white", linewidth=0.6)
        heights = [level - 0.48, level + 0.48]
        axis.pcolormesh(edges(places), heights, cells, cmap=colours, norm=norm, zorder=1, **lines)
        for at in places:
            shade = colours(norm(row[at]))
            ink = "black" if np.dot(shade[:3], (0.3, 0.6, 0.1)) > 0.45 else "white"
            written = dict(fontsize=5.5, bbox=dict(facecolor=shade, edgecolor="none", pad=0.3), zorder=3)
            axis.text(at, level, f"{row[at]:{form}}", ha="center", va="center", color=ink, **written)
    log_ticks(axis, "x")
    axis.tick_params(axis="y", length=0)


def log_ticks(axes: Axes, which: str = "y") -> None:
    """A logarithmic axis with ticks that can be read: 1, 2 and 5 of each decade; round numbers within less."""
    axes.set(**{f"{which}scale": "log"})
    axis, (low, high) = getattr(axes, f"{which}axis"), getattr(axes, f"get_{which}lim")()
    few = MaxNLocator(4, steps=[1, 2, 5, 10])
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)) if high > 5 * low else few)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def edges(centres: Sequence[float]) -> list[float]:
    """Where cells around ascending places end: halfway between them, in ratios."""
    if len(centres) == 1:
        return [centres[0] / 1.2, centres[0] * 1.2]
    inner = [math.sqrt(a * b) for a, b in pairwise(centres)]
    return [centres[0] ** 2 / inner[0], *inner, centres[-1] ** 2 / inner[-1]]
