"""Accuracy and alignment over the order and the rate of a trace, its peak set right and wrong."""

import math
import statistics
import textwrap
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiments import figures, vision_study
from experiments.final_runs import FinalRuns, values_of
from experiments.options.common import DT
from experiments.options.kernel_shape import KernelShape
from experiments.vision_conditions import Condition, base_condition
from experiments.vision_report import cell

NAMES = {"accuracy": "test accuracy (%)", "alignment": "alignment of the first layer (cosine)"}
CHANCE_TO_BEST = (0, 50, 80, 90, 95, 97, 98, 99)  # ticks of accuracy's colours


def groups(options: KernelShape) -> list[list[Condition]]:
    """The delay line, set right, and every order of trace at every multiple of every delay."""
    traces = [("ET", 1), *(("CET", order) for order in options.orders)]
    lines = [[_condition(options, "delay line", 0, delay, 1.0)] for delay in options.delays]
    grid = [
        [_condition(options, trace, order, delay, factor)]
        for delay in options.delays
        for trace, order in traces
        for factor in options.factors
    ]
    return lines + grid


def _condition(options: KernelShape, trace: str, order: int, delay: float, factor: float) -> Condition:
    peak = round(factor * delay, 9)
    return base_condition(options, trace, order, delay, peak_s=peak, error_gate=options.error_gate)


def rate_of(order: float, peak: float) -> float:
    """Rate α per second of the stages of a cascade that peaks at `peak`; of ET, 1/τ."""
    return 1 / peak if order == 1 else (order - 1) / (peak - DT / 2)


class Grid:
    """Runs by delay, order (1 is ET) and multiple of the delay at which the trace peaks."""

    def __init__(self, finals: FinalRuns):
        self.finals = finals
        self.cells = finals.by(lambda run: _place(run) if run["trace"] in ("ET", "CET") else None)
        self.lines = finals.by(lambda run: run["delay_s"] if run["trace"] == "delay line" else None)
        self.delays, self.orders, self.factors = (sorted({place[i] for place in self.cells}) for i in range(3))

    def values(self, delay: float, order: float, factor: float, metric: str) -> list[float]:
        """One value a run that did not diverge, alignment as it is and accuracy in percent."""
        scale = 100 if metric == "accuracy" else 1
        return [scale * value for value in values_of(self.cells.get((delay, order, factor), []), metric)]

    def row(self, delay: float, order: float, metric: str) -> dict[float, list[float]]:
        """The values of one order, by multiple of the delay."""
        values = {factor: self.values(delay, order, factor, metric) for factor in self.factors}
        return {factor: found for factor, found in values.items() if found}


def _place(run: dict) -> tuple[float, int, float]:
    return run["delay_s"], run["order"], round(run["peak_s"] / run["delay_s"], 6)


def report(rows: list[dict], options: KernelShape) -> list[Path]:
    """Prints the tables and writes the figures."""
    grid = Grid(FinalRuns(rows, options))
    print(table(grid))
    return [*draw_maps(grid, options.folder), *draw_lines(grid, options.folder)]


def table(grid: Grid) -> str:
    """Accuracy and alignment of each order (rows) at each peak."""
    lines = []
    for delay in grid.delays:
        for metric, name in NAMES.items():
            lines += ["", f"{name[0].upper()}{name[1:]}, delay {delay:g} s, {grid.finals.note}"]
            lines.append(f"{'peak / delay':<12}" + "".join(f"{factor:>14g}" for factor in grid.factors))
            for order in grid.orders:
                cells = [_cell(grid, delay, order, factor, metric) for factor in grid.factors]
                lines.append(f"{_label(order):<12}" + "".join(f"{text:>14}" for text in cells))
        lines.append(f"delay line: {cell([run['accuracy'] for run in grid.lines.get(delay, [])])}")
    return "\n".join(lines)


def _cell(grid: Grid, delay: float, order: float, factor: float, metric: str) -> str:
    if metric == "accuracy":
        return cell([run["accuracy"] for run in grid.cells.get((delay, order, factor), [])])
    values = grid.values(delay, order, factor, metric)
    return f"{statistics.mean(values):.3f}" if values else ""


def _label(order: int) -> str:
    return figures.label("ET" if order == 1 else "CET", order)


def draw_maps(grid: Grid, folder: Path) -> list[Path]:
    """Maps over order and rate: accuracy on the left, alignment on the right, a row for each delay."""
    delays, metrics = grid.delays, list(NAMES)
    height = 0.9 + len(delays) * (0.75 + 0.24 * len(grid.orders))
    with figures.new_grid(len(delays), 2, 7.0, height, sharex="row", sharey=True) as (figure, axes):
        for column, metric in enumerate(metrics):
            norm = _norm(grid, metric)
            for axis, delay in zip(axes[:, column], delays, strict=True):
                _draw_map(axis, grid, delay, metric, norm)
                axis.set_title(f"delay {delay:g} s", loc="left")
            axes[-1, column].set_xlabel("rate of the stages, α (1/s)")
            _draw_colours(figure, axes[:, column], norm, NAMES[metric])
        for axis in axes[:, 0]:
            axis.set_ylabel("order (stages)")
        factors = ", ".join(f"{factor:g}" for factor in grid.factors)
        note = f"{grid.finals.note}. Means over seeds at the end of training. Line: rates that put the peak at the "
        note += f"delay; the cells of a row, from the right, put it at {factors} delays. ET: α is 1 / time constant."
        figures.footnote(figure, textwrap.fill(note, 125))
        return figures.save(figure, folder, "kernel-shape")


def _norm(grid: Grid, metric: str) -> Normalize:
    """Colours of accuracy are by the logarithm of the error, since the better ones differ by little."""
    values = [v for place in grid.cells for v in grid.values(*place, metric)]
    low, high = min(values, default=0), max(values, default=1)
    high = max(high, low + 0.01)  # colours need a range, also where all values are one
    if metric == "alignment":
        return Normalize(low, high)
    functions = (lambda a: -np.log(np.maximum(100.5 - a, 1e-3)), lambda x: 100.5 - np.exp(-x))
    return FuncNorm(functions, low, high)


def _draw_map(axis, grid: Grid, delay: float, metric: str, norm: Normalize) -> None:
    colours = matplotlib.colormaps["viridis"]
    for level, order in enumerate(grid.orders):
        row = {rate_of(order, f * delay): v for f, v in sorted(grid.row(delay, order, metric).items(), reverse=True)}
        if not row:
            continue
        means = [statistics.mean(values) for values in row.values()]
        heights, lines = [level - 0.48, level + 0.48], dict(edgecolors="white", linewidth=0.6)
        axis.pcolormesh(_edges(list(row)), heights, [means], cmap=colours, norm=norm, zorder=1, **lines)
        for rate, mean in zip(row, means, strict=True):
            text = f"{mean:.1f}" if metric == "accuracy" else f"{mean:.2f}"
            shade = colours(norm(mean))
            ink = "black" if np.dot(shade[:3], (0.3, 0.6, 0.1)) > 0.45 else "white"
            box = dict(facecolor=shade, edgecolor="none", pad=0.3)
            axis.text(rate, level, text, fontsize=5.5, ha="center", va="center", color=ink, bbox=box, zorder=3)
    right = [rate_of(order, delay) for order in grid.orders]
    axis.plot(right, range(len(right)), color="#D55E00", linewidth=1.2, zorder=2)
    corners = dict(transform=axis.transAxes, fontsize=6.5, color="#555555", zorder=0)
    axis.text(0.02, 0.97, "peak after the delay", va="top", **corners)
    axis.text(0.98, 0.03, "peak before the delay", ha="right", **corners)
    axis.set_xscale("log")
    axis.set_yticks(range(len(right)), ["1 (ET)" if order == 1 else f"{order:g}" for order in grid.orders])
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter("{x:g}")


def _edges(centres: list[float]) -> list[float]:
    """Where cells around ascending rates end: halfway between them, in ratios."""
    if len(centres) == 1:
        return [centres[0] / 1.2, centres[0] * 1.2]
    inner = [math.sqrt(a * b) for a, b in pairwise(centres)]
    return [centres[0] ** 2 / inner[0], *inner, centres[-1] ** 2 / inner[-1]]


def _draw_colours(figure, axes, norm: Normalize, name: str) -> None:
    mapped = matplotlib.cm.ScalarMappable(norm, "viridis")
    bar = figure.colorbar(mapped, ax=axes, location="top", aspect=40, shrink=0.9)
    bar.set_label(name)
    if isinstance(norm, FuncNorm):
        bar.set_ticks([tick for tick in CHANCE_TO_BEST if norm.vmin <= tick <= norm.vmax])
        bar.minorticks_off()
    else:
        bar.locator, bar.formatter = MaxNLocator(5), StrMethodFormatter("{x:.2f}")


def draw_lines(grid: Grid, folder: Path) -> list[Path]:
    """Accuracy against the factor by which the peak is set wrong, a panel for each delay; seeds are dots."""
    delays = grid.delays
    with figures.new_figure(len(delays), 1.4 + 1.9 * len(delays), sharex=True, sharey=True) as (figure, axes):
        for axis, delay in zip(axes, delays, strict=True):
            _draw_lines(axis, grid, delay)
            axis.set_title(f"delay {delay:g} s", loc="left")
            axis.set_ylabel("test accuracy (%)")
        axes[-1].set_xlabel("peak of the trace / delay (ET: time constant / delay)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figures.footnote(figure, textwrap.fill(f"{grid.finals.note}. Line: mean; dots: seeds.", 58))
        return figures.save(figure, folder, "peak-wrong")


def _draw_lines(axis, grid: Grid, delay: float) -> None:
    styles = figures.styles([("ET" if order == 1 else "CET", order) for order in grid.orders])
    for index, ((trace, order), style) in enumerate(styles.items()):
        row = grid.row(delay, order, "accuracy")
        if not row:
            continue
        axis.plot(list(row), [statistics.mean(v) for v in row.values()], **style, label=figures.label(trace, order))
        shift = 1 + 0.006 * (index - len(styles) / 2)  # beside each other, so that they can be told apart
        seeds = [(factor * shift, value) for factor, values in row.items() for value in values]
        axis.plot(*zip(*seeds, strict=True), ".", color=style["color"], markersize=2.5, alpha=0.6)
    ceiling = [100 * value for value in values_of(grid.lines.get(delay, []))]
    if ceiling:
        (style,) = figures.styles([("delay line", 0)]).values()
        axis.axhline(statistics.mean(ceiling), **(style | dict(marker="")), label="delay line", zorder=1)
    axis.set_xscale("log")
    axis.set_xticks(grid.factors, [f"{factor:g}" for factor in grid.factors])
    axis.minorticks_off()


STUDY = vision_study.Study(groups, report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
