"""Alignment of traces' updates with true gradients, per layer: its table and its figure, of any run on images."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.common import captions, plots, tables
from experiments.common.checks import SEGMENT
from experiments.common.options import Files

OF_VIT = {
    "attention.query_proj": "query", "attention.key_proj": "key", "attention.value_proj": "value",
    "attention.output_proj": "attention", "mlp.layers.0": "MLP 1", "mlp.layers.2": "MLP 2",
}  # fmt: skip
MOST_LAYERS = 5  # columns; of deeper networks as many layers are drawn, spread over their depth
_SETTING = ("error_gate", "segment", "run_length", "interpolation", "spread_s", "distribution", "peak_ratio")


def select(rows: pd.DataFrame) -> pd.DataFrame:
    """The alignment that one figure can show, of one subject and one setting.

    They are of the last row's dataset, network, form and boundary, and of the gate, input order, spread and ratio of
    peak to delay that most of these runs have (the first in the file of several). Runs that diverged are left out, and
    backprop, which is its own gradient. Of runs that differ only in length or learning rate the longest counts, then
    the last in the file. None are left where no run has a trace.
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
    if frame["network"].iloc[0].startswith("ViT"):
        return _of_vit(frame)
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


def _of_vit(frame: pd.DataFrame) -> dict[str, str]:
    blocks = 1 + max(int(layer.split(".")[1]) for layer in frame["layer"] if layer.startswith("blocks."))
    inside = {f"blocks.{i}.{layer}": f"block {i + 1} {name}" for i in range(blocks) for layer, name in OF_VIT.items()}
    return {"embed.linear": "patches"} | inside | {"head": "output"}


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
    ends, names = at_end(frame), layers(frame)
    how = dict(across="delay_s", head="delay (s)", scale=1, digits=2)
    of_layers = [tables.table(f"{n} ({layer})", ends[ends["layer"] == layer], **how) for layer, n in names.items()]
    return "\n".join([f"\nCosine of update and true gradient after training, {_settings(frame)}", *of_layers])


def _settings(frame: pd.DataFrame) -> str:
    return captions.settings(at_end(frame), images=int(frame["segment"].iloc[-1] or SEGMENT))


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Alignment against delay, order and training time, a row for each that varies, a column for each layer."""
    frame = select(rows)
    if frame.empty:
        return plots.left_out("alignment", "no run with a trace has been finished without diverging")
    if not (varied := _varied(frame)):
        return plots.left_out("alignment", "nothing varies: neither delay nor order nor training step")
    names = layers(frame)
    # All layers, or the first, the last and some between.
    few = np.unique(np.linspace(0, len(names) - 1, min(MOST_LAYERS, len(names))).round().astype(int))
    few = [list(names)[i] for i in few]
    shown = [
        panel | dict(frame=panel["frame"][panel["frame"]["layer"] == layer], title=names[layer] if first else "")
        for first, panel in zip([True] + [False] * len(varied), varied.values(), strict=False)
        for layer in few
    ]
    size = dict(columns=len(few), width=plots.PAGE_WIDTH, height=1.55, margin=1.0, sharex="row")
    size |= dict(names=len(tables.traces(frame)), finish=partial(_finish, frame, list(varied.values()), few))
    return plots.panels(folder, "alignment", _note(frame, len(few)), shown, list(varied), **size)


def _varied(frame: pd.DataFrame) -> dict[str, dict]:
    """What varies, and so is drawn: by the label of its y axis what `plots.means` takes."""
    last, keys = frame["delay_s"].max(), tables.traces(frame)[::-1]
    delay = f"delay {'per layer ' if frame['layers'].iloc[-1] else ''}(s)"
    longest, found = frame[frame["delay_s"] == last], {}
    if frame["delay_s"].nunique() > 1:
        found["cosine,\nafter training"] = dict(frame=at_end(frame), x="delay_s", xlabel=delay, keys=keys)
    if len({order for trace, order in keys if trace == "CET"}) > 1:
        ends, staged = at_end(longest), [key for key in keys if key[0] in ("ET", "CET", "balanced", "sharp")]
        panel = dict(frame=ends[ends["trace"] != "delay line"], x="order", xlabel="order (stages)", keys=staged)
        found[f"cosine at {last:g} s,\nafter training"] = panel
    if (longest.groupby(["trace", "order"])["step"].nunique() > 1).any():
        panel = dict(frame=longest.assign(step=longest["step"].astype(float)), x="step", keys=keys, linear=True)
        found[f"cosine at {last:g} s,\nduring training"] = panel | dict(xlabel="updates")
    return {ylabel: panel | dict(ticks=False) for ylabel, panel in found.items()}


def _finish(frame: pd.DataFrame, varied: list[dict], few: list[str], axes: np.ndarray) -> None:
    """Ticks; and with the orders cascades on a line, the delay line across as what they tend to."""
    ends = at_end(frame[frame["delay_s"] == frame["delay_s"].max()])
    style = plots.styles([("delay line", 0)])["delay line", 0]
    for row, panel in zip(axes, varied, strict=True):
        for axis, of_layer in zip(row, (ends[ends["layer"] == layer] for layer in few), strict=True):
            if panel["x"] == "step":
                axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                continue
            names = {delay: f"{delay:g}" for delay in sorted(set(frame["delay_s"]))}
            if panel["x"] == "order":
                for kind in ("balanced", "sharp", "CET"):
                    cascades = of_layer[of_layer["trace"] == kind].groupby("order")["value"].mean()
                    axis.plot(cascades.index.to_numpy(float), cascades, color="#999999", linewidth=1.0, zorder=1)
                line = of_layer.loc[of_layer["trace"] == "delay line", "value"].mean()
                axis.axhline(line, linewidth=0.9, zorder=1, color=style["color"], linestyle=style["linestyle"])
                names = {n: "ET" if n == 1 else f"{n}" for n in sorted({1, *cascades.index})}
            _set_ticks(axis, names, frame["layer"].nunique())
    low = axes[0, 0].get_ylim()[0]
    low = 0.5 if low > 0.5 else min(low, -0.03)
    axes[0, 0].set(ylim=(low, 1.0 + 0.05 * (1.0 - low)), yticks=(0.5, 0.75, 1) if low == 0.5 else (0, 0.5, 1))


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
    where = "All are measured at the weights of the same run, of backprop." if together else (
        "Each is measured at the weights of its own run.")  # fmt: skip
    ratio, count = frame["peak_ratio"].iloc[-1], frame["layer"].nunique()
    text = f"{_settings(frame)}. Cosine of the angle between the trace's update of a layer's weights and the gradient "
    text += f"of the loss over the images whose signals arrive: 1 if it is the gradient. {where} Traces are set to "
    text += f"{'the delay' if ratio == 1 else f'{ratio:g} times the delay'} (ET: its time constant)."
    if frame["error_gate"].iloc[-1]:
        text += " The gate keeps out images learned well, of the delay line too; where nothing is left, it counts as 0."
    if len({order for trace, order in tables.traces(frame) if trace == "CET"}) > 1:
        text += " Against the order, the dashed line is the delay line."
    return text + captions.seeds(frame) + (f" {columns} of {count} layers." if columns < count else "")
