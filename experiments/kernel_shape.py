"""Accuracy and alignment over the order and the rate of a trace, its peak set right and wrong."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiments.common import captions, checks, plots, tables, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import MNIST, Delays, Gate, Orders, SelectionDelay, Vision

NAMES = {"accuracy": "test accuracy (%)", "alignment": "alignment of the first layer (cosine)"}
CHANCE_TO_BEST = (0, 50, 70, 80, 90, 95, 97, 98, 99)  # ticks of accuracy's colours
_KEY = ("trace", "order", "delay_s", "peak_s", "seed")


@dataclass(frozen=True)
class Options(Delays, SelectionDelay, Orders, Gate, Vision):
    """Accuracy and alignment over the order and the rate of a trace, its peak set right and wrong.

    At each delay of the learning signal the peak of a cascade of each order is set to several multiples of that delay,
    which is to vary the rate α = (n - 1)/(peak - dt/2) of its stages. ET, its time constant so set, stands for order 1.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in less than half an hour."""
    factors: Annotated[tuple[float, ...], checks.peaks] = (0.5, 0.7, 1.0, 1.4, 2.0)
    """Peaks of the traces, in delays: 1 is right, 0.5 half the delay."""


PRESETS = {
    "demo": Options(steps=400, learning_rates=(1e-3,)),
    "quick": Options(delays=(4.0, 10.0), orders=(2, 4, 6, 10, 32), steps=1170, learning_rates=(1e-3,), **MNIST),
}


def conditions(options: Options) -> list[list[Condition]]:
    """The delay line, set right, and every order of trace at every multiple of every delay."""
    *traces, line = options.delayed_traces
    varied = product(options.delays, traces, options.factors)
    right = [set_to_delay(options, *line, delay) for delay in options.delays]
    return [[one] for one in (*right, *(set_to_delay(options, *t, d, peak_s=round(f * d, 9)) for d, t, f in varied))]


run = partial(vision.run, conditions)


def rate_of(order: float, peak: float) -> float:
    """Rate α per second of the stages of a cascade that peaks at `peak`; of ET, 1/τ."""
    return 1 / peak if order == 1 else (order - 1) / (peak - checks.DT / 2)


def select(rows: pd.DataFrame, options: Options) -> pd.DataFrame:
    """Runs with their `accuracy` in percent, the `alignment` of their first layer, and `factor`, peak over delay.

    They are those of the length and gate asked for, if there are any; of runs that differ in learning rate the last.
    """
    asked = dict(step=options.steps, error_gate=options.error_gate)
    ends = tables.latest(tables.like_last(tables.finals(rows), (*tables.SUBJECT, *asked), **asked), _KEY)
    first_layer = tables.last(rows[rows["layer"] == "layers.0"], "alignment")
    aligned = ends["run"].map(first_layer).where(~ends["lost"])
    factor = (ends["peak_s"] / ends["delay_s"]).round(6)
    return ends.assign(accuracy=100 * ends["value"], alignment=aligned, factor=factor)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figures."""
    ends = select(rows, options)
    line = ends["trace"] == "delay line"
    grid, lines = ends[~line], ends[line]
    for delay, of_delay in grid.groupby("delay_s"):
        for (metric, name), digits in zip(NAMES.items(), (1, 3), strict=True):
            title = f"{name}, delay {delay:g} s, {captions.settings(grid)}.{captions.left_out(ends)}"
            frame = of_delay.assign(value=of_delay[metric])
            print(tables.table(title[0].upper() + title[1:], frame, "factor", "peak / delay", scale=1, digits=digits))
        print(f"delay line: {tables.cell(lines.loc[lines['delay_s'] == delay, 'value'])}")
    staged = grid[grid["trace"].isin(["ET", "CET"])]  # a row of the map is an order, of which these are one each
    return [*draw_maps(staged, ends, options.folder), *draw_lines(grid, lines, options.folder)]


def draw_maps(grid: pd.DataFrame, ends: pd.DataFrame, folder: Path) -> list[Path]:
    """Maps over order and rate: accuracy on the left, alignment on the right, a row for each delay."""
    delays, orders = sorted(set(grid["delay_s"])), sorted(set(grid["order"]))
    size = dict(width=plots.PAGE_WIDTH, height=1.2 + len(delays) * (0.75 + 0.24 * len(orders)))
    slim = dict(location="top", aspect=40, shrink=0.9)
    with plots.figure(len(delays), 2, **size, sharex="row", sharey=True) as (figure, axes):
        for column, (metric, name) in enumerate(NAMES.items()):
            norm = _norm(grid[metric], metric)
            for axis, delay in zip(axes[:, column], delays, strict=True):
                _draw_map(axis, grid[grid["delay_s"] == delay], orders, delay, metric, norm)
            axes[-1, column].set_xlabel("rate of the stages, α (1/s)")
            bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes[:, column], label=name, **slim)
            if metric == "accuracy":
                bar.set_ticks([tick for tick in CHANCE_TO_BEST if norm.vmin <= tick <= norm.vmax])
                bar.minorticks_off()
            else:
                bar.locator, bar.formatter = MaxNLocator(5), StrMethodFormatter("{x:.2f}")
        for axis in axes[:, 0]:
            axis.set_ylabel("order (stages)")
        factors = ", ".join(f"{factor:g}" for factor in sorted(set(grid["factor"])))
        note = f"{captions.settings(grid)}. At the end of training{captions.seeds(grid, '(means over seeds)')}. Line: "
        note += "rates that put the peak at the delay; cells, from the right, put it at "
        note += f"{factors} times the delay. ET: α is 1 / time constant.{captions.left_out(ends)}"
        return plots.save(figure, folder, "kernel-shape", note)


def _norm(values: pd.Series, metric: str) -> Normalize:
    """Colours of accuracy are by the logarithm of the error, since the better ones differ by little."""
    low, high = (0, 1) if values.isna().all() else (values.min(), values.max())
    high = max(high, low + 0.01)  # colours need a range, also where all values are one
    if metric == "alignment":
        return Normalize(low, high)
    functions = (lambda a: -np.log(np.maximum(100.5 - a, 1e-3)), lambda x: 100.5 - np.exp(-x))
    return FuncNorm(functions, low, high)


def _draw_map(axis, of_delay: pd.DataFrame, orders: list[int], delay: float, metric: str, norm: Normalize) -> None:
    means = of_delay.groupby(["order", "factor"])[metric].mean().dropna()
    cells = [{rate_of(n, f * delay): mean for (m, f), mean in means.items() if m == n} for n in orders]
    plots.heat_map(axis, cells, norm, ".1f" if metric == "accuracy" else ".2f")
    right = [rate_of(order, delay) for order in orders]
    axis.plot(right, range(len(right)), color="#D55E00", linewidth=1.2, zorder=2)
    corners = dict(transform=axis.transAxes, fontsize=6.5, color="#555555", zorder=0)
    axis.text(0.02, 0.97, "peak after the delay", va="top", **corners)
    axis.text(0.98, 0.03, "peak before the delay", ha="right", **corners)
    axis.set_yticks(range(len(right)), ["1 (ET)" if order == 1 else f"{order:g}" for order in orders])
    axis.set_title(f"delay {delay:g} s", loc="left")


def draw_lines(grid: pd.DataFrame, lines: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy against the factor by which the peak is set wrong, a panel for each delay, the delay line across."""
    same = dict(x="factor", xlabel="peak of the trace / delay (ET: time constant / delay)", scale=100)
    same["keys"] = tables.traces(grid)[::-1]
    paper = tables.published(grid["dataset"].iloc[0], "test accuracy").assign(factor=1.0)
    paper = dict(list(paper[paper["delay_s"].isin(grid["delay_s"])].groupby("delay_s")))
    shown = {
        delay: same | dict(frame=runs, title=f"delay {delay:g} s", paper=paper.get(delay))
        for delay, runs in grid.groupby("delay_s")
    }

    def add_ceilings(axes):
        style = plots.styles([("delay line", 0)])["delay line", 0] | dict(marker="")
        for axis, delay in zip(axes[:, 0], shown, strict=True):
            if len(ceiling := lines.loc[lines["delay_s"] == delay, "value"].dropna()):
                axis.axhline(100 * ceiling.mean(), **style, label="delay line", zorder=1)

    note, size = f"{captions.settings(grid)}.{captions.seeds(grid)}", dict(height=1.9, margin=1.4, sharex=True)
    note += captions.published(grid) if paper else ""
    return plots.panels(folder, "peak-wrong", note, [*shown.values()], "test accuracy (%)", finish=add_ceilings, **size)
