"""Test accuracy against the delay of credit: ET, CET, the ideal delay line, and backprop without delay."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

from experiments.common import alignment, captions, checks, plots, tables, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import CIFAR10, MNIST, Delays, Orders, SelectionDelay, Vision

KEY = ("trace", "order", "delay_s", "error_gate", "seed")


@dataclass(frozen=True)
class Options(Delays, SelectionDelay, Orders, Vision):
    """Test accuracy against the delay of credit, images seen one after the other.

    A batch of 128 images is a segment of time, 0.2 s an image; the learning signal of an image arrives late
    by the delay. Compared are the exponential trace (ET), cascading traces of several orders (CET), the ideal
    delay line, and backprop without delay. What is finished in the output folder is not run again.
    """

    preset: Literal["demo", "vit", "quick", "paper", "cifar10", "cifar10-paper", "tinyimagenet"] = "demo"
    """demo: digits, in minutes; vit: digits, a vision transformer, 2 s, in two minutes; quick: MNIST, in minutes;
    paper: MNIST, the paper's delays, in hours; cifar10: three delays, 10 epochs, one seed, in hours; cifar10-paper: all
    delays, 50 epochs, three seeds, and tinyimagenet: 1 s, 100 epochs, for a GPU."""
    error_gates: Annotated[tuple[float, ...], checks.NOT_NEGATIVE] = (1e-8,)
    """Squared error norms at or below which a layer's activity leaves no trace; 0 turns the gate off."""


# The longer a run, the lower the best learning rate, the more so the noisier the trace: runs that choose it must not
# be much shorter than those reported, or else the poorer traces are held back by more than their memory.
_PAPER_DELAYS = (0.2, 0.6, 1.0, 2.0, 4.0, 10.0)
PRESETS = {
    "demo": Options(delays=(0.2, 2.0, 6.0, 10.0)),
    "vit": Options(
        network="vit", form="preactivation", delays=(2.0,), orders=(10,), steps=300, learning_rates=(3e-3,), seeds=1,
        batch_conditions=1, error_gates=(0.0,),
    ),
    "quick": Options(delays=(0.2, 4.0, 10.0), seeds=1, steps=2808, selection_steps=1404, **MNIST),
    "paper": Options(delays=_PAPER_DELAYS, error_gates=(1e-8, 0.0), steps=12000, selection_steps=12000, **MNIST),
    "cifar10": Options(
        delays=(2.0, 10.0, 0.2), seeds=1, steps=3900, selection_steps=312, selection_delay=2.0, **CIFAR10
    ),
    "cifar10-paper": Options(
        delays=_PAPER_DELAYS, steps=19500, selection_steps=15600, **CIFAR10 | dict(batch_conditions=16)
    ),
    "tinyimagenet": Options(
        dataset="tinyimagenet", network="resnet20", form="preactivation", delays=(1.0,), orders=(10,), steps=78100,
        selection_steps=62400, batch_conditions=4,
    ),
}  # fmt: skip


def conditions(options: Options) -> list[list[Condition]]:
    """Backprop once, and every trace at every delay under every gate."""
    varied = product(options.error_gates, options.delays, options.delayed_traces)
    delayed = [[set_to_delay(options, *trace, delay, error_gate=gate)] for gate, delay, trace in varied]
    return [[set_to_delay(options, "backprop")], *delayed]


run = partial(vision.run, conditions)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figures of accuracy and of gradient alignment."""
    ends = tables.latest(tables.like_last(tables.finals(rows), tables.SUBJECT), KEY)
    late = ends["trace"] != "backprop"
    delays = sorted(set(ends.loc[late, "delay_s"]))
    gates = sorted(set(ends.loc[late, "error_gate"]), reverse=True) or [0.0]
    # Backprop, which has neither delay nor gate, is the same everywhere.
    panels = {gate: tables.everywhere(ends[(ends["error_gate"] == gate) | ~late], "delay_s", delays) for gate in gates}
    metric = "top-1 accuracy" if ends["dataset"].iloc[0] == "tinyimagenet" else "test accuracy"
    paper = tables.published(ends["dataset"].iloc[0], metric, delays=delays)
    for frame in panels.values():
        print(tables.table(f"Test accuracy in %, {captions.settings(frame)}", frame, "delay_s", "delay (s)", paper))
        rates = frame.assign(value=frame["learning_rate"]).drop_duplicates(["trace", "order", "delay_s"])
        print(tables.table("learning rate", rates, "delay_s", "delay (s)", scale=1, digits=4))
    if len(paper):
        print(f"paper: {tables.CITATION} (made with the error gate, 1e-8)")
    return [*draw(panels, paper, options.folder), *alignment.draw(rows, options.folder)]


def draw(panels: dict[float, pd.DataFrame], paper: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy against delay, a panel for each error gate."""
    frame, same = pd.concat(panels.values()), dict(x="delay_s", scale=100, paper=paper)
    same["xlabel"] = "delay of the learning signal (s)"
    titles = [captions.gate(gate) for gate in panels] if len(panels) > 1 else [""]
    same["apart"] = 0.006 if frame.groupby(["trace", "order"]).ngroups > 6 else 0.0
    shown = [same | dict(frame=runs, title=title) for runs, title in zip(panels.values(), titles, strict=True)]
    note = f"{captions.settings(frame, gated=len(panels) == 1)}.{captions.seeds(frame)}{captions.left_out(frame)}"
    note, size = note + (captions.published(frame) if len(paper) else ""), dict(height=2.6, margin=1.0, sharex=True)
    return plots.panels(folder, "behavioral-vision", note, shown, "test accuracy (%)", **size)
