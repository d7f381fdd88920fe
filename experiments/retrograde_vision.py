"""Learning from credit that takes minutes from layer to layer, and from the few images that are salient."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from matplotlib.ticker import MaxNLocator

from experiments.common import alignment, captions, checks, plots, tables, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import CIFAR10, MNIST, Gate, Orders, Vision

GATES = ("quantile", "threshold", "running", "random", "none")
CNN_LAYERS = 5
TITLES = {
    "delay_s": "delay per layer (s)",
    "fraction": "salient images (%)",
    "gate": "images learned from",
    "derivative": "how slopes are remembered",
    "placement": "when salient images are seen",
}
WORDS = {  # on the axes, by value
    "gate": {name: tick for name, (_, tick) in captions.GATES.items()},
    "derivative": captions.DERIVATIVES,
    "placement": captions.PLACEMENTS,
}
_SUBJECT = (*tables.SUBJECT, "segment")
_SETTING = ("delay_s", "fraction", "gate", "threshold", "derivative", "placement")
_OF_BACKPROP = ("fraction", "gate", "threshold")  # the rest it does not have to wait for
_OF_GATES = ("fraction", "threshold")  # what a gate settles by itself


@dataclass(frozen=True)
class Options(Orders, Gate, Vision):
    """Learning from credit that takes minutes from layer to layer, and from the few images that are salient.

    Signals travel backwards from each layer to the one below it in --delay seconds, so that they stack: 2, 4, 6
    minutes. Of each segment of images only those with the largest loss enter the traces. Compared are the exponential
    trace X the share of salient images, the kind of gate that picks them, how the derivative that errors pass is
    remembered, and when events happen. Each layer's trace is set to its own delay; the top layer's signal is at hand.
    """

    warmup = 0.2

    preset: Literal["demo", "quick", "paper", "mechanisms", "cifar10"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in 12 minutes; paper: MNIST, delays and shares of salient images, three
    seeds, in hours; mechanisms: gates, derivatives and placements, in hours; cifar10: in hours."""
    boundary: Literal["reset", "carry"] = "reset"
    """reset: every segment starts with empty traces, and signals that come after its end are still read; carry: traces
    and signals under way go on to the next segment."""
    segment: Annotated[int, checks.Rule("at least 2", lambda v: v >= 2)] = 1280
    """Images of a segment, after which weights change; --steps counts segments."""
    steps: int = 300
    """Length of a run, in segments."""
    selection_steps: int = 300
    """Length of a run that only serves to choose the learning rate."""
    delay: Annotated[float, checks.steps] = 120.0
    """Seconds that a signal takes from one layer to the one below, a multiple of 0.2 s."""
    fraction: Annotated[float, checks.SHARE] = 0.0125
    """Share of the images of a segment that are salient."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""
    threshold: Annotated[float, checks.NOT_NEGATIVE] = 1.0
    """Loss in nats above which an image is salient, for the gate named threshold."""
    delays: Annotated[tuple[float, ...], checks.steps, checks.OPTIONAL] = ()
    """Delays per layer to compare, in seconds."""
    fractions: Annotated[tuple[float, ...], checks.SHARE._replace(empty=True)] = ()
    """Shares of salient images to compare."""
    gates: Annotated[tuple[Literal[GATES], ...], checks.WORDS] = ("quantile",)
    """Kinds of gate to compare; the first is used elsewhere. quantile: the largest losses of a segment; threshold:
    losses above a fixed one; running: above one that follows the past; random: whatever the loss; none: all."""
    derivatives: Annotated[tuple[Literal["ideal", "cascade"], ...], checks.WORDS] = ("ideal",)
    """How the derivative that errors pass waits for them: as it was, or in the layer's trace at the soma. The first is
    used elsewhere."""
    placements: Annotated[tuple[Literal["shown", "random"], ...], checks.WORDS] = ("shown",)
    """When salient images count as seen: when shown, or, as in the authors' code, at random moments in their order. The
    first is used elsewhere."""

    @property
    def unit(self) -> int:
        """Images of a step of --steps."""
        return self.segment

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        if self.boundary == "carry":
            ideal = "ideal with --boundary carry: what is sent down cannot wait"
            checks.require("derivatives", self.derivatives == ("ideal",), ideal, self.derivatives)
        row = "mlp or cnn, whose layers stand in a row"
        checks.require("network", self.network in ("mlp", "cnn"), row, self.network)


_PAPER = Options(steps=1000, selection_steps=1000, **MNIST)
PRESETS = {
    "demo": Options(
        segment=320, fraction=0.05, delay=20.0, steps=400, seeds=2, learning_rates=(3e-3,),
        derivatives=("ideal", "cascade"),
    ),
    "quick": Options(
        delays=(0.2, 20.0, 120.0), gates=("quantile", "random"), learning_rates=(1e-3,), seeds=1, **MNIST
    ),
    "paper": replace(_PAPER, delays=(0.2, 2.0, 20.0, 120.0, 240.0), fractions=(0.0125, 0.05, 0.2)),
    "mechanisms": replace(_PAPER, gates=GATES, derivatives=("ideal", "cascade"), placements=("shown", "random")),
    "cifar10": Options(seeds=1, steps=780, selection_steps=390, **CIFAR10),
}  # fmt: skip


def conditions(options: Options) -> list[list[Condition]]:
    """Every trace and backprop on the same salient images; then each again with one thing changed at a time."""
    varied = [{}, *({"delay_s": delay} for delay in options.delays)]
    varied += [{"fraction": fraction} for fraction in options.fractions]
    for name, field in (("gates", "gate"), ("derivatives", "derivative"), ("placements", "placement")):
        varied += [{field: value} for value in getattr(options, name)]
    compared = [("backprop", 0), *options.delayed_traces]
    found = dict.fromkeys(_condition(options, *trace, change) for change in varied for trace in compared)
    return [[condition] for condition in found]


def _condition(options: Options, trace: str, order: int, change: dict) -> Condition:
    usual = {"delay_s": options.delay, "gate": options.gates[0], "fraction": options.fraction}
    usual |= {"derivative": options.derivatives[0], "placement": options.placements[0]}
    setting, still = usual | change, trace == "backprop"
    if still:  # nothing waits
        setting |= {"delay_s": 0.0, "derivative": "ideal", "placement": "shown"}
    # What the gate does not look at is the same for all.
    setting |= {"fraction": 1.0} if setting["gate"] in ("none", "threshold") else {}
    setting |= {"threshold": options.threshold} if setting["gate"] == "threshold" else {}
    setting |= {"boundary": "reset" if still and options.network == "mlp" else options.boundary}
    setting |= {"layers": CNN_LAYERS if options.network == "cnn" else len(options.hidden) + 1}
    return set_to_delay(options, trace, order, **setting)


run = partial(vision.run, conditions)


class Runs:
    """The runs of the last row's subject and how they can be compared: `usual` is the setting of the first of them."""

    def __init__(self, rows: pd.DataFrame):
        # Backprop, which has nothing to carry, goes with either boundary.
        self.ends = tables.like_last(tables.finals(rows), _SUBJECT, free="boundary")
        late = self.ends[self.ends["trace"] != "backprop"]
        self.first = (late if len(late) else self.ends).iloc[0]
        self.usual = {name: self.first[name] for name in _SETTING}

    def at(self, name: str = "") -> pd.DataFrame:
        """The runs in which all is as usual, but for one thing that is varied; backprop at all it does not see."""
        ends, still = self.ends, self.ends["trace"] == "backprop"
        settled = ends["gate"].isin(["none", "threshold"])  # they look at no share, or have a threshold
        fits = pd.Series(True, ends.index)
        for fixed in (setting for setting in _SETTING if setting != name):
            same = (ends[fixed] == self.usual[fixed]) | (still & (fixed not in _OF_BACKPROP))
            fits &= same | (settled & (name == "gate") & (fixed in _OF_GATES))
        if not name:
            return ends[fits].drop_duplicates(["trace", "order", "seed"], keep="last")
        found, late = ends[fits], lambda frame: frame.loc[frame["trace"] != "backprop", name].unique()
        found = found if name in _OF_BACKPROP else tables.everywhere(found, name, late(found))
        found = found.drop_duplicates(["trace", "order", "seed", name], keep="last")
        # In the table's order, numbers ascending.
        values = sorted(late(found)) if name in ("delay_s", "fraction") else late(found)
        return pd.concat([found[found[name] == value] for value in values])

    @property
    def note(self) -> str:
        """Settings, for a caption."""
        length = f"{self.ends['step'].max():,} segments of {self.first['segment']:,} images"
        count = captions.plural(self.ends["seed"].nunique(), "seed")
        return f"{captions.subject(self.ends)}; {count}, {length}; {captions.salient(self.first)}"


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figures."""
    runs = Runs(rows)
    varied = {name: frame for name in TITLES if (frame := runs.at(name))[name].nunique() > 1}
    title = f"Test accuracy in %, {runs.note}.{captions.left_out(runs.ends)}"
    print(tables.table(title, runs.at().assign(all=""), "all"))
    for name, frame in varied.items():
        print(tables.table(TITLES[name], frame, name))
    counted = rows[rows["run"].isin(runs.ends["run"])]
    if count := tables.last(counted, "skipped").sum():
        print(f"segments skipped, since no image was salient: {count:g}")
    if count := tables.last(counted, "missed").sum():
        print(f"salient images missed for want of a place: {count:g}")
    paths = draw_curves(rows, runs, options.folder) + draw_settings(runs, varied, options.folder)
    usual = pd.Series({name: value for name, value in runs.usual.items() if name != "delay_s"})
    return paths + alignment.draw(rows[(rows[list(usual.index)] == usual).all(axis=1)], options.folder)


def draw_curves(rows: pd.DataFrame, runs: Runs, folder: Path) -> list[Path]:
    """Training loss of all images and test accuracy against time, of each trace."""
    ends, axis_label = runs.at(), f"updates, one in {runs.first['segment']:,} images"
    sound, same = rows[rows["run"].isin(ends.loc[~ends["lost"], "run"])], dict(keys=tables.traces(ends)[::-1])
    shown = [
        dict(frame=sound[sound["metric"] == metric], scale=scale, xlabel=axis_label) | same
        for metric, scale in (("train_loss", 1.0), ("test_accuracy", 100.0))
    ]

    def set_axes(axes):
        plots.log_ticks(axes[0, 0])
        axes[1, 0].xaxis.set_major_locator(MaxNLocator(5, integer=True))

    note = f"{runs.note}.{captions.seeds(ends, 'Thick: mean; thin: seeds.')}{captions.left_out(runs.ends)}"
    how = dict(draw=plots.curves_of_traces, finish=set_axes, height=1.8, margin=1.0, sharex=True, sharey=False)
    ylabels = ["training loss\n(nats, all images)", "test accuracy (%)"]
    return plots.panels(folder, "retrograde-vision", note, shown, ylabels, **how)


def draw_settings(runs: Runs, varied: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Final accuracy against all that is varied, a panel each."""
    if not varied:
        return plots.left_out("retrograde-settings", "nothing is varied")
    columns, same = min(3, len(varied)), dict(keys=tables.traces(runs.ends)[::-1], scale=100, band=False)
    words, shown = [name for name in varied if name in WORDS], []
    for name, frame in varied.items():
        places = 100 * frame[name] if name == "fraction" else frame[name].replace(WORDS.get(name, {}))
        panel = dict(frame=frame.assign(**{name: places}), x=name, apart=0.08 if name in words else 0.005)
        shown.append(panel | dict(xlabel=TITLES[name]) | same)

    def make_room(axes):
        for axis, name in zip(axes.flat, varied, strict=False):
            if name in words:
                places = varied[name][name].nunique()
                axis.tick_params(axis="x", labelsize=5.5 if places > 3 else 7)
                axis.set_xlim(-0.5, places - 0.5)

    note = f"{runs.note}; unless the axis says otherwise."
    note += captions.seeds(runs.ends, "Marks: means; dots: seeds; bars: their range.") + captions.left_out(runs.ends)
    size = dict(columns=columns, names=len(same["keys"]) if columns > 1 else 3, finish=make_room)
    return plots.panels(folder, "retrograde-settings", note, shown, "test accuracy (%)", **size)
