"""Test accuracy where time goes on without end, and where images do not come in random order."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

from experiments.common import captions, checks, plots, tables, vision
from experiments.common.checks import DT, SEGMENT
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import MNIST, Gate, Orders, SelectionDelay, Vision

BOUNDARIES = {"reset": "segments start empty", "carry": "time goes on"}
AXES = {
    "delay_s": "delay of the signal (s)",
    "run_length": "images of a class in a row",
    "interpolation": "steps per image",
    "segment": "images per update",
}
USUAL = {"run_length": 1, "interpolation": 1, "segment": SEGMENT}
_KEY = ("trace", "order", "boundary", "delay_s", *USUAL, "seed")


@dataclass(frozen=True)
class Options(SelectionDelay, Orders, Gate, Vision):
    """Test accuracy where time goes on without end, and where images do not come in random order.

    With the boundary reset every segment of 128 images starts with empty traces and loses the signals under way at its
    end; with the boundary carry both go on to the next segment, and batch norm uses running statistics. Compared over
    delays are the exponential trace (ET), cascading traces (CET), the delay line and backprop with both; at one of the
    delays also images of one class in a row, images blended into the next, and how often a stream changes its weights.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in less than half an hour."""
    boundaries: Annotated[tuple[Literal["reset", "carry"], ...], checks.WORDS] = ("reset", "carry")
    """Boundaries compared, reset and carry."""
    delays: Annotated[tuple[float, ...], checks.delays] = (0.4, 4.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless all is carried. A stream takes
    the longer per step the longer its trace remembers: at 10 s twice as long for CET(2)."""
    error_gate: float = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace, where the loss is the mean of 128
    images; it closes on the same images however many there are to an update. 0 turns the gate off."""
    order_delay: Annotated[float, checks.delays] = 4.0
    """The delay in seconds at which all that follows is compared."""
    run_lengths: Annotated[tuple[int, ...], checks.COUNT] = (1, 16)
    """Images of one class in a row; 1 shuffles all images."""
    interpolations: Annotated[tuple[int, ...], checks.COUNT] = (1, 4)
    """Steps of 0.2 s from one image to the next, blended in between; n of them show 1/n as many images in a run."""
    segments: Annotated[tuple[int, ...], checks.COUNT, checks.divisors] = (32, 128)
    """Images between two updates with the boundary carry, divisors of the images of a run; elsewhere there are 128."""

    @property
    def boundary(self) -> str:
        """The strictest of the boundaries, for checks."""
        return "reset" if "reset" in self.boundaries else "carry"


PRESETS = {
    "demo": Options(orders=(10,), seeds=2, steps=600, learning_rates=(3e-3,)),
    "quick": Options(
        delays=(2.0, 10.0), orders=(2, 10), order_delay=2.0, run_lengths=(1, 16, 64), segments=(128, 512),
        learning_rates=(1e-3,), steps=1400, **MNIST,
    ),
}  # fmt: skip


def conditions(options: Options) -> list[list[Condition]]:
    """Every trace at every delay with every boundary; at one delay the same for all else that is varied; backprop."""
    found, delay = [], options.order_delay
    for boundary in options.boundaries:
        varied = [(late, {}) for late in options.delays]
        varied += [(delay, {"run_length": length}) for length in options.run_lengths]
        varied += [(delay, {"interpolation": steps}) for steps in options.interpolations]
        varied += [(delay, {"segment": images}) for images in options.segments if boundary == "carry"]
        for late, change in varied:
            # The gate compares errors of the mean over an update: scaled, it closes on the same images in all of them.
            gate = options.error_gate * (SEGMENT / change.get("segment", SEGMENT)) ** 2
            # Backprop has nothing to carry: its boundaries are one unless batch norm tells them apart.
            still = dict(boundary="reset" if options.network == "mlp" else boundary) | change
            found.append(set_to_delay(options, "backprop", **still))
            shown = dict(boundary=boundary, error_gate=gate) | change
            found += [set_to_delay(options, *trace, late, **shown) for trace in options.delayed_traces]
    return [[condition] for condition in dict.fromkeys(found)]


run = partial(vision.run, conditions)


def select(rows: pd.DataFrame, options: Options) -> pd.DataFrame:
    """What the runs of one dataset, network, form and gate ended with, `step` in segments of 128 images.

    They are those of the last run in the file with the options' gate, of the last run if none has it. Of runs that
    differ only in length or learning rate the longest counts, then the last in the file. Backprop has a row in every
    boundary: what it would carry is nothing, unless it was run in both.
    """
    ends = tables.finals(rows)
    gates = (ends["error_gate"] * (ends["segment"] / SEGMENT) ** 2).map(lambda gate: float(f"{gate:.6g}"))
    segments = ends["step"] * ends["segment"] // SEGMENT
    ends = ends.assign(error_gate=gates, step=segments)
    ends = tables.like_last(ends, ("dataset", "network", "form", "error_gate"), error_gate=options.error_gate)
    ends = tables.latest(ends, _KEY)
    still = ends[ends["trace"] == "backprop"]
    others = still.assign(boundary=still["boundary"].map({"reset": "carry", "carry": "reset"}))
    return pd.concat([ends, others]).drop_duplicates(list(_KEY), keep="first")


def order_delay(ends: pd.DataFrame, options: Options) -> float | None:
    """The delay at which something else than the delay is varied: the options', or the longest there is."""
    late = ends[ends["trace"] != "backprop"]
    varied = set(late.loc[(late[list(USUAL)] != pd.Series(USUAL)).any(axis=1), "delay_s"])
    return options.order_delay if options.order_delay in varied else max(varied, default=None)


def line(ends: pd.DataFrame, varied: str, boundary: str, delay: float | None) -> pd.DataFrame:
    """The runs with one boundary where nothing but `varied` is varied."""
    runs = ends[ends["boundary"] == boundary]
    for name, usual in USUAL.items():
        runs = runs[runs[name] == usual] if name != varied else runs
    late = runs[runs["trace"] != "backprop"]
    if varied == "delay_s":
        return tables.everywhere(runs, "delay_s", sorted(set(late["delay_s"])))
    late = late[late["delay_s"] == delay]
    still = runs[(runs["trace"] == "backprop") & runs[varied].isin(late[varied])]
    return pd.concat([late, still])


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figures."""
    ends = select(rows, options)
    delay, late = order_delay(ends, options), ends[ends["trace"] != "backprop"]
    paper = tables.published(ends["dataset"].iloc[0], "test accuracy", delays=sorted(set(late["delay_s"])))
    boundaries = [boundary for boundary in BOUNDARIES if (late["boundary"] == boundary).any()]
    lines = {(varied, boundary): line(ends, varied, boundary, delay) for varied in AXES for boundary in boundaries}
    # One delay is enough, since it is compared between boundaries and traces.
    compared = {v: [m for m in boundaries if lines[v, m][v].nunique() > (v != "delay_s")] for v in AXES}
    print(f"\nTest accuracy in %, {captions.settings(ends)}.{captions.left_out(ends)}")
    for varied in (name for name in AXES if compared[name]):
        title = AXES[varied] + ("" if varied == "delay_s" else f", delay {delay:g} s")
        runs = {m: lines[varied, m] for m in boundaries if varied != "segment" or m == "carry"}
        for boundary, frame in runs.items():
            theirs = paper if (varied, boundary) == ("delay_s", "reset") else None
            print(tables.table(f"{title}: {BOUNDARIES[boundary]}", frame, varied, paper=theirs))
        if len(runs) > 1:  # what carrying changes, seed by seed
            place, reset = ["trace", "order", varied, "seed"], runs["reset"]
            both = runs["carry"][runs["carry"]["trace"] != "backprop"].merge(reset, on=place, suffixes=("", "_reset"))
            cost = both.assign(value=both["value"] - both["value_reset"]).dropna(subset=["value"])
            print(tables.table(f"{title}: {BOUNDARIES['carry']}, less {BOUNDARIES['reset']}", cost, varied))
    return draw(ends, lines, compared, delay, paper, options.folder)


def draw(ends: pd.DataFrame, lines: dict, compared: dict, delay: float | None, paper: pd.DataFrame, folder: Path):
    """Accuracy against delay, the order of images, and the images of an update; a column for each boundary."""
    alike = f"Weights change every {SEGMENT} images."
    blended = f"With n steps of {DT:g} s per image, blended into the next, the same time shows 1/n as many images."
    updates = "The same images in all: fewer to an update make more updates; the error gate is scaled to match."
    paths = []
    for name, varied, boundaries, text in (
        ("streaming-vision", ["delay_s"], compared["delay_s"], alike),
        ("input-order", ["run_length", "interpolation"], compared["delay_s"], f"{alike} {blended}"),
        ("update-every", ["segment"], ["carry"], updates),
    ):
        if not (rows := [one for one in varied if compared[one]]):
            paths += plots.left_out(name, f"one value of {' and '.join(AXES[one] for one in varied)}")
            continue
        at = "" if "delay_s" in rows else f" Delay {delay:g} s." if delay else ""
        note = f"{captions.settings(ends)}.{at} {text}{captions.seeds(ends)}{captions.left_out(ends)}"
        shown = [
            dict(frame=lines[one, boundary], x=one, xlabel=AXES[one], scale=100)
            | dict(title=BOUNDARIES[boundary] if one == rows[0] else "")
            | dict(paper=paper if (one, boundary) == ("delay_s", "reset") else None)
            for one in rows
            for boundary in boundaries
        ]
        note += captions.published(ends) if len(paper) and rows == ["delay_s"] and "reset" in boundaries else ""
        size = dict(columns=len(boundaries), width=plots.COLUMN_WIDTH, height=1.7, margin=1.3)
        paths += plots.panels(folder, name, note, shown, "test accuracy (%)", **size)
    return paths
