"""Test accuracy against the spread of the delay: credit that comes sooner or later from image to image."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

from experiments.common import captions, checks, plots, tables, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import CIFAR10, MNIST, Gate, Orders, Stream, Vision

TITLES = {"": "fixed delay", "uniform": "uniform delays", "gamma": "gamma distributed delays"}
_SD = 12**0.5  # spread of a uniform distribution over its standard deviation
_KEY = ("trace", "order", "distribution", "spread_s", "seed")


@dataclass(frozen=True)
class Options(Stream, Orders, Gate, Vision):
    """Test accuracy against the spread of delays that vary from image to image.

    The learning signal of each image arrives after a delay of its own, and traces are set to the mean delay. Compared
    are the exponential trace (ET), cascading traces of several orders (CET) and the delay line at the mean delay. With
    the boundary reset, signals that arrive after the last image of their segment are lost, the more the longer the
    delays get: half the spread above the mean if they are uniform, without limit if they are gamma distributed.
    """

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, in minutes; quick: MNIST at a mean of 4 s, in a quarter of an hour; cifar10: the paper's setting,
    a mean of 2 s with delays of 0 to 4 s, in hours."""
    mean: Annotated[float, checks.delays] = 2.0
    """Mean delay of the learning signal in seconds, a multiple of 0.2 s, below 25.6 s unless carried."""
    spreads: Annotated[tuple[float, ...], checks.NOT_NEGATIVE] = (0.0, 2.0, 4.0)
    """Spreads of the delay in seconds: uniform delays run from mean - spread/2 to mean + spread/2, gamma distributed
    ones have the same standard deviation, spread/√12; 0 is the fixed delay. At most 2 x mean if uniform. With the
    boundary reset, signals later than their segment of 25.6 s are lost."""
    distributions: Annotated[tuple[Literal["uniform", "gamma"], ...], checks.WORDS] = ("uniform", "gamma")
    """Distributions of the delay, a panel of the figure for each."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        if "uniform" in self.distributions:
            widest = f"at most 2 x --mean = {2 * self.mean:g} s, or else uniform delays would be negative"
            wide = [spread for spread in self.spreads if spread > 2 * self.mean * (1 + 1e-6)]
            checks.require("spreads", not wide, widest, *(f"{spread:g}" for spread in wide[:1] or [0.0]))


PRESETS = {
    "demo": Options(seeds=2, learning_rates=(3e-3,)),
    "quick": Options(mean=4.0, spreads=(0.0, 2.0, 4.0, 8.0), learning_rates=(1e-3,), steps=1404, **MNIST),
    "cifar10": Options(
        spreads=(0.0, 4.0), orders=(10,), distributions=("uniform",), seeds=1, learning_rates=(1e-3,), steps=3900,
        **CIFAR10,
    ),
}  # fmt: skip


def conditions(options: Options) -> list[list[Condition]]:
    """Every trace, set to the mean delay, at every spread of every distribution; without spread they are one."""
    delays = [("", 0.0)] if 0 in options.spreads else []
    delays += [(name, spread) for name in options.distributions for spread in options.spreads if spread > 0]
    late, varied = options.mean, product(delays, options.delayed_traces)
    return [[set_to_delay(options, *trace, late, distribution=name, spread_s=s)] for (name, s), trace in varied]


run = partial(vision.run, conditions)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figure, of the mean delay and gate asked for where there are rows of them."""
    asked = dict(delay_s=options.mean, error_gate=options.error_gate)
    ends = tables.like_last(tables.finals(rows), (*tables.SUBJECT, *asked), **asked)
    found, paper = tables.latest(ends, _KEY), published(ends)
    # A panel for each distribution, the fixed delay among all of them; the paper's delays are uniform.
    names = [name for name in ("uniform", "gamma") if (ends["distribution"] == name).any()] or [""]
    shown = [
        dict(frame=found[found["distribution"].isin(["", name])], paper=paper if name != "gamma" else None)
        | dict(title=TITLES[name], x="spread_s", xlabel="spread of the delay (s)", scale=100, linear=True)
        for name in names
    ]
    for panel in shown:
        title = f"{captions.settings(panel['frame'])}\n{panel['title']}, mean {ends['delay_s'].iloc[0]:g} s"
        print(tables.table(f"Test accuracy in %, {title}", panel["frame"], "spread_s", "spread (s)", panel["paper"]))
    spreads = sorted(set(ends["spread_s"]))
    sds = [f"{spread / _SD:.2f}" for spread in spreads]
    print(tables.text("standard deviation", ["spread (s)", *(f"{s:g}" for s in spreads)], [("sd (s)", sds)]))
    if len(paper):
        print(f"paper: {tables.CITATION} (made with the error gate, 1e-8)")

    def add_deviations(axes):
        upper = axes[0, 0].secondary_xaxis("top", functions=(lambda s: s / _SD, lambda sd: sd * _SD))
        upper.set_xticks([s / _SD for s in spreads], sds)
        upper.set_xlabel("standard deviation of the delay (s)")
        upper.spines["top"].set_visible(True)

    note, size = _note(found) + (captions.published(found) if len(paper) else ""), dict(margin=1.5, sharex=True)
    return plots.panels(options.folder, "random-delay", note, shown, "test accuracy (%)", finish=add_deviations, **size)


def published(ends: pd.DataFrame) -> pd.DataFrame:
    """The paper's accuracies, which are of one dataset and mean delay, by the spread of uniform delays."""
    found = []
    for spread, theirs in ((0.0, "0"), (4.0, "2.0")):  # theirs is the half width
        rows = tables.published(ends["dataset"].iloc[0], "test accuracy", f"variable delay mean 2 s spread {theirs}")
        found.append(rows[rows["delay_s"] == ends["delay_s"].iloc[0]].assign(spread_s=spread))
    return pd.concat(found)


def _note(ends: pd.DataFrame) -> str:
    text = f"{captions.settings(ends)}. Mean delay and traces' peaks (ET: time constant): {ends['delay_s'].iloc[0]:g} "
    text += "s. Spread: full width of uniform delays; gamma distributed ones have the same standard deviation."
    lost = f" Signals that come after the end of their segment of {checks.SEGMENT * checks.DT:g} s are lost."
    return text + lost * (ends["boundary"].iloc[0] == "reset") + captions.seeds(ends) + captions.left_out(ends)
