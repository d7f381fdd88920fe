"""The table and the figure of gradient alignment, from the tidy rows of any experiment on images.

Alignment is the cosine between a trace's update and the true gradient, per layer, over the signals that arrived.
"""

import math
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from experiments import figures
from experiments.cosines import Cosines
from experiments.options.vision import Vision

PAGE_WIDTH = 7.0  # inches
NOTE_WIDTH = 130  # letters
MOST_LAYERS = 5  # columns; of deeper networks as many layers are drawn, spread over their depth


class Panel(NamedTuple):
    """A row of the figure. **Fields:** `draw`: of axis, cosines and layer. `x`, `y`: labels of its axes."""

    draw: Callable
    x: str
    y: str


def report(rows: list[dict], options: Vision) -> list[Path]:
    """Prints the table and writes the figure."""
    print(table(Cosines(rows)))
    return draw(rows, options.folder)


def table(cosines: Cosines) -> str:
    """Cosine after training, mean ± standard deviation over seeds, of each trace (rows) at each delay, by layer."""
    lines = ["", f"Cosine of update and true gradient after training, {cosines.note()}"]
    for layer, name in cosines.names().items():
        lines += ["", f"{name} ({layer})"]
        lines.append(f"{'delay (s)':<20}" + "".join(f"{delay:>14g}" for delay in cosines.delays))
        for trace in reversed(cosines.traces):
            cells = [_cell(cosines.at_end(trace, delay, layer)) for delay in cosines.delays]
            lines.append(f"{figures.label(*trace):<20}" + "".join(f"{text:>14}" for text in cells))
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def draw(rows: list[dict], folder: Path) -> list[Path]:
    """Cosines against delay, order and training time, a row for each that varies, a column for each layer.

    **Returns:** the paths of the figure's files; none where nothing varies or every run diverged.
    """
    try:
        cosines = Cosines(rows)
    except ValueError:
        return []
    panels, layers = _panels(cosines), _spread_out(cosines.names())
    if not panels:
        return []
    height = 1.0 + 1.55 * len(panels)
    with figures.new_grid(len(panels), len(layers), PAGE_WIDTH, height, sharex="row", sharey=True) as (figure, axes):
        for row, panel in zip(axes, panels, strict=True):
            for axis, layer in zip(row, layers, strict=True):
                panel.draw(axis, cosines, layer)
                axis.set_xlabel(panel.x)
            row[0].set_ylabel(panel.y)
        for axis, name in zip(axes[0], layers.values(), strict=True):
            axis.set_title(name)
        low = axes[0, 0].get_ylim()[0]
        low = 0.5 if low > 0.5 else min(low, -0.03)
        axes[0, 0].set(ylim=(low, 1.0 + 0.05 * (1.0 - low)), yticks=(0.5, 0.75, 1) if low == 0.5 else (0, 0.5, 1))
        handles, labels = axes[-1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figures.footnote(figure, _note(cosines, len(layers)))
        return figures.save(figure, folder, "alignment")


def _panels(cosines: Cosines) -> list[Panel]:
    """What varies, and so is drawn."""
    longest, panels = f"delay {cosines.delays[-1]:g} s", []
    if len(cosines.delays) > 1:
        panels.append(Panel(_against_delay, "delay (s)", "cosine,\nafter training"))
    if len(cosines.orders) > 1:
        panels.append(Panel(_against_order, "order", f"cosine, {longest},\nafter training"))
    if any(len(cosines.along(trace, cosines.delays[-1], cosines.layers[0])) > 1 for trace in cosines.traces):
        panels.append(Panel(_against_time, "training step", f"cosine, {longest},\nduring training"))
    return panels


def _spread_out(names: dict[str, str]) -> dict[str, str]:
    """The layers drawn: all, or the first, the last and some between."""
    layers, gaps = list(names), MOST_LAYERS - 1
    if len(layers) <= MOST_LAYERS:
        return names
    return {layers[i]: names[layers[i]] for i in (round(k * (len(layers) - 1) / gaps) for k in range(gaps + 1))}


def _against_delay(axis, cosines: Cosines, layer: str) -> None:
    for trace, style in figures.styles(cosines.traces).items():
        _line(axis, {delay: cosines.at_end(trace, delay, layer) for delay in cosines.delays}, trace, style)
    axis.set_xscale("log")
    shown = _ticks(cosines.delays, len(cosines.names()))
    axis.set_xticks(shown, [f"{delay:g}" for delay in shown])
    axis.minorticks_off()


def _against_order(axis, cosines: Cosines, layer: str) -> None:
    """Cascades on a line, ET beside them as their first stage, the delay line across as what they tend to."""
    delay, styles = cosines.delays[-1], figures.styles(cosines.traces)
    kinds = {order: ("CET", order) for order in cosines.orders}
    cascades = {order: cosines.at_end(trace, delay, layer) for order, trace in kinds.items()}
    means = {order: statistics.mean(values) for order, values in cascades.items() if values}
    axis.plot(list(means), list(means.values()), color="#999999", linewidth=1.0, zorder=1)
    for order, trace in ({1: ("ET", 1)} if ("ET", 1) in styles else {}).items() | kinds.items():
        _line(axis, {order: cosines.at_end(trace, delay, layer)}, trace, styles[trace])
    for value in cosines.at_end(("delay line", 0), delay, layer):
        line = {name: styles["delay line", 0][name] for name in ("color", "linestyle")}
        axis.axhline(value, linewidth=0.9, zorder=1, **line)
    axis.set_xscale("log")
    shown = _ticks([1, *cosines.orders], len(cosines.names()))
    axis.set_xticks(shown, ["ET" if order == 1 else f"{order}" for order in shown])
    axis.minorticks_off()


def _against_time(axis, cosines: Cosines, layer: str) -> None:
    for trace, style in figures.styles(cosines.traces).items():
        _line(axis, cosines.along(trace, cosines.delays[-1], layer), trace, style)
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _line(axis, points: dict[float, list[float]], trace: tuple, style: dict) -> None:
    """Means on a line; single seeds are dots, and a band their range."""
    points = {x: values for x, values in points.items() if values}
    if not points:
        return
    axis.plot(list(points), [statistics.mean(v) for v in points.values()], **style, label=figures.label(*trace))
    low, high = ([pick(values) for values in points.values()] for pick in (min, max))
    axis.fill_between(list(points), low, high, color=style["color"], alpha=0.15, linewidth=0)
    seeds = [(x, value) for x, values in points.items() if len(values) > 1 for value in values]
    axis.plot([x for x, _ in seeds], [y for _, y in seeds], ".", color=style["color"], markersize=2.5, alpha=0.6)


def _ticks(values: list[float], columns: int) -> list[float]:
    """Values that can be written below a logarithmic axis without touching, the largest among them."""
    logs = [math.log(value) for value in values]
    apart = 0.04 * min(columns, MOST_LAYERS) * (max(logs) - min(logs))
    shown = [len(values) - 1]
    for i in reversed(range(len(values))):
        if logs[shown[-1]] - logs[i] >= apart:
            shown.append(i)
    return [values[i] for i in reversed(shown)]


def _note(cosines: Cosines, columns: int) -> str:
    text = (
        f"{cosines.note()}. Cosine of the angle between the trace's update of a layer's weights and the gradient of "
        f"the loss over the images whose signals arrive; 1 is backprop. {cosines.where} "
        f"{_setting(cosines.peak_ratio)} (ET: its time constant)."
    )
    if cosines.gate:
        text += " The gate keeps out images learned well, of the delay line too; where nothing is left, it counts as 0."
    if len(cosines.seeds) > 1:
        text += " Line: mean; dots: seeds; band: their range."
    if columns < len(cosines.layers):
        text += f" {columns} of {len(cosines.layers)} layers."
    return textwrap.fill(text, NOTE_WIDTH)


def _setting(peak_ratio: float) -> str:
    return "Traces are set to the delay" if peak_ratio == 1 else f"Traces are set to {peak_ratio:g} times the delay"
