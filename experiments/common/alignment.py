"""Cosines between traces' updates and true gradients, per layer: their table and their figure, of any run on images."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.common import plots, tables
from experiments.common.checks import STRETCH
from experiments.common.options import Files

MOST_LAYERS = 5  # columns; of deeper networks as many layers are drawn, spread over their depth
_SETTING = ("error_gate", "update_every", "run_length", "interpolation", "spread_s", "distribution", "peak_ratio")


def select(rows: pd.DataFrame) -> pd.DataFrame:
    """The cosines that one figure can show, of one subject and one setting.

    They are of the last row's dataset, network, form and mode, and of the gate, presentation, spread and ratio of peak
    to delay that most of these runs have (the first in the file of several). Runs that diverged and backprop, which
    is its own gradient, are left out. Of runs that differ only in length or learning rate the longest counts, then the
    last in the file. None are left where no run has a trace.
    """
    lost = rows["run"].isin(tables.diverged(rows)) | rows["value"].isna()
    rows = rows[(rows["metric"] == "alignment") & (rows["trace"] != "backprop") & ~lost]
    if rows.empty:
        return rows
    ratio = (rows["peak_s"].where(rows["peak_s"] > 0, rows["delay_s"]) / rows["delay_s"]).round(6).fillna(1.0)
    rows = tables.like_last(rows.assign(peak_ratio=ratio), tables.SUBJECT)
    settings = rows.drop_duplicates("run").groupby(list(_SETTING), sort=False).size()
    most = dict(zip(_SETTING, settings.idxmax(), strict=True))
    rows = rows[(rows[list(most)] == pd.Series(most)).all(axis=1)]
    lengths = rows.groupby(["run", "trace", "order", "delay_s", "seed"], sort=False)["step"].max().reset_index()
    return rows.merge(tables.latest(lengths, ("trace", "order", "delay_s", "seed")).drop(columns="step"))


def layers(frame: pd.DataFrame) -> dict[str, str]:
    """The layers from the images up, with names for readers."""
    numbers = lambda layer: [int(digits) for digits in re.findall(r"\d+", layer)]  # noqa: E731
    # By their numbers, a ResNet's ends around its blocks.
    found = sorted(set(frame["layer"]), key=lambda layer: ({"stem": -1, "head": 1}.get(layer, 0), numbers(layer)))
    kind = frame["network"].iloc[0].split()[0]
    hidden = {"MLP": [f"hidden {i + 1}" for i in range(len(found) - 1)],
              "CNN": [*(f"conv {i + 1}" for i in range(len(found) - 2)), "hidden"]}  # fmt: skip
    if kind in hidden:
        return dict(zip(found, [*hidden[kind], "output"], strict=True))
    place = lambda layer: "block {} conv {}".format(*(n + 1 for n in numbers(layer)))  # noqa: E731
    return {layer: {"stem": "stem", "head": "output"}.get(layer) or place(layer) for layer in found}


def at_end(frame: pd.DataFrame) -> pd.DataFrame:
    """The cosine of each seed after training."""
    place = ["trace", "order", "delay_s", "seed", "layer"]
    return frame.loc[frame.groupby(place, sort=False)["step"].idxmax()]


def report(rows: pd.DataFrame, options: Files) -> list[Path]:
    """Prints the table and writes the figure."""
    frame = select(rows)
    if len(frame):
        print(table(frame))
    return draw(rows, options.folder)


def table(frame: pd.DataFrame) -> str:
    """Cosine after training, of each trace (rows) at each delay, layer by layer."""
    ends = at_end(frame)
    lines = [f"\nCosine of update and true gradient after training, {_settings(frame)}"]
    for layer, name in layers(frame).items():
        own = ends[ends["layer"] == layer]
        lines.append(tables.table(f"{name} ({layer})", own, "delay_s", "delay (s)", scale=1, digits=2))
    return "\n".join(lines)


def _settings(frame: pd.DataFrame) -> str:
    return tables.settings(at_end(frame), images=int(frame["update_every"].iloc[-1] or STRETCH))


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Cosines against delay, order and training time, a row for each that varies, a column for each layer."""
    frame = select(rows)
    if frame.empty:
        return plots.left_out("alignment", "no run with a trace has been finished without diverging")
    names, panels = layers(frame), _panels(frame)
    # All layers, or the first, the last and some between.
    few = np.unique(np.linspace(0, len(names) - 1, min(MOST_LAYERS, len(names))).round().astype(int))
    shown = {layer: names[layer] for layer in (list(names)[i] for i in few)}
    if not panels:
        return plots.left_out("alignment", "nothing varies: neither delay nor order nor training step")
    size = dict(width=plots.PAGE_WIDTH, height=1.0 + 1.55 * len(panels))
    with plots.figure(len(panels), len(shown), **size, sharex="row", sharey=True) as (figure, axes):
        for row, (panel, x, y) in zip(axes, panels, strict=True):
            for axis, layer in zip(row, shown, strict=True):
                panel(axis, frame, layer)
                axis.set_xlabel(x)
            row[0].set_ylabel(y)
        for axis, name in zip(axes[0], shown.values(), strict=True):
            axis.set_title(name)
        low = axes[0, 0].get_ylim()[0]
        low = 0.5 if low > 0.5 else min(low, -0.03)
        axes[0, 0].set(ylim=(low, 1.0 + 0.05 * (1.0 - low)), yticks=(0.5, 0.75, 1) if low == 0.5 else (0, 0.5, 1))
        columns = len(tables.traces(frame))
        return plots.save(figure, folder, "alignment", _note(frame, len(shown)), axes[-1, 0], columns)


def _panels(frame: pd.DataFrame) -> list[tuple]:
    """What varies, and so is drawn: how, and the labels of its axes."""
    longest, panels = f"delay {frame['delay_s'].max():g} s", []
    if frame["delay_s"].nunique() > 1:
        panels.append((_against_delay, "delay (s)", "cosine,\nafter training"))
    if len({order for trace, order in tables.traces(frame) if trace == "CET"}) > 1:
        panels.append((_against_order, "order", f"cosine, {longest},\nafter training"))
    if (_longest(frame).groupby(["trace", "order"])["step"].nunique() > 1).any():
        panels.append((_against_time, "training step", f"cosine, {longest},\nduring training"))
    return panels


def _longest(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["delay_s"] == frame["delay_s"].max()]


def _against_delay(axis: Axes, frame: pd.DataFrame, layer: str) -> None:
    ends, keys = at_end(frame), tables.traces(frame)[::-1]
    plots.means(axis, ends[ends["layer"] == layer], "delay_s", keys=keys, ticks=False)
    _set_ticks(axis, {delay: f"{delay:g}" for delay in sorted(set(frame["delay_s"]))}, len(layers(frame)))


def _against_order(axis: Axes, frame: pd.DataFrame, layer: str) -> None:
    """Cascades on a line, ET beside them as their first stage, the delay line across as what they tend to."""
    ends = at_end(_longest(frame))
    ends, keys = ends[ends["layer"] == layer], tables.traces(frame)[::-1]
    for kind in ("balanced", "CET"):
        cascades = ends[ends["trace"] == kind].groupby("order")["value"].mean()
        axis.plot(cascades.index.to_numpy(float), cascades, color="#999999", linewidth=1.0, zorder=1)
    staged = [key for key in keys if key[0] in ("ET", "CET", "balanced")]
    plots.means(axis, ends[ends["trace"] != "delay line"], "order", keys=staged, ticks=False)
    line = {name: plots.styles(keys)["delay line", 0][name] for name in ("color", "linestyle")} if (
        "delay line", 0) in keys else {}  # fmt: skip
    for value in ends.loc[ends["trace"] == "delay line", "value"]:
        axis.axhline(value, linewidth=0.9, zorder=1, **line)
    _set_ticks(axis, {n: "ET" if n == 1 else f"{n}" for n in sorted({1, *cascades.index})}, len(layers(frame)))


def _against_time(axis: Axes, frame: pd.DataFrame, layer: str) -> None:
    own = _longest(frame)
    own, keys = own[own["layer"] == layer].assign(step=own["step"].astype(float)), tables.traces(frame)[::-1]
    plots.means(axis, own, "step", keys=keys, ticks=False, linear=True)
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _set_ticks(axis: Axes, names: dict[float, str], columns: int) -> None:
    """Ticks that can be written below a logarithmic axis without touching, the largest among them."""
    apart, shown = 0.04 * min(columns, MOST_LAYERS) * math.log(max(names) / min(names)), [max(names)]
    for value in sorted(names, reverse=True):
        if math.log(shown[-1] / value) >= apart:
            shown.append(value)
    axis.set_xscale("log")
    axis.set_xticks(shown[::-1], [names[value] for value in shown[::-1]])
    axis.minorticks_off()


def _note(frame: pd.DataFrame, columns: int) -> str:
    # One run for several traces: they were measured at the weights of another rule.
    together = (frame.groupby("run")[["trace", "order"]].nunique() > 1).any(axis=None)
    where = f"{'All are' if together else 'Each is'} measured at the weights of "
    where += "the same run, of backprop." if together else "its own run."
    ratio = frame["peak_ratio"].iloc[-1]
    text = (
        f"{_settings(frame)}. Cosine of the angle between the trace's update of a layer's weights and the gradient of "
        f"the loss over the images whose signals arrive; 1 is backprop. {where} Traces are set to "
        f"{'the delay' if ratio == 1 else f'{ratio:g} times the delay'} (ET: its time constant)."
    )
    if frame["error_gate"].iloc[-1]:
        text += " The gate keeps out images learned well, of the delay line too; where nothing is left, it counts as 0."
    text += plots.seeds(frame)
    count = frame["layer"].nunique()
    return text + (f" {columns} of {count} layers." if columns < count else "")
