"""Presynaptic activity less its mean: an alternative to a balanced readout, if the biases follow.

A blurred trace adds up the mean of activity over all wrong lags. Less its mean m over a segment, or the running mean
that a synapse could know, there is nothing to add up (`cetsim.nn.centered` has the mathematics). Where weights are
centred and biases do not follow, learning breaks under Adam, also that of backprop.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import optax
import pandas as pd

from cetsim import nn
from cetsim.supervised import Hyperparameters, SupervisedRun
from experiments.common import captions, checks, plots, tables, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import CIFAR10, MNIST, Gate, Orders, Vision

RUNNING = 0.99  # decay of a running mean, per update
HOW = {"": "plain", "weights": "weights centred", "bias": "bias follows", "running": "running mean"}
_COLOURS = {"": "#555555", "weights": "#E69F00", "bias": "#009E73", "running": "#0072B2"}


@dataclass(frozen=True)
class Options(Orders, Gate, Vision):
    """Presynaptic activity less its mean, beside and with a balanced readout.

    Each trace trains the plain way and in the ways asked for.
    """

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in minutes; cifar10: ten epochs at 2 s, one seed, in hours."""
    ways: Annotated[tuple[Literal["weights", "bias", "running"], ...], checks.OPTIONAL] = ("weights", "bias", "running")
    """What is taken off beside the plain way: weights: the mean of the segment, in the update of weights alone; bias:
    the same, and biases follow; running: the mean of activity so far (decay 0.99 an update), and biases follow."""
    delay: Annotated[float, checks.delays] = 10.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s, below 25.6 s."""
    orders: tuple[int, ...] = (2, 10)
    """Orders of the cascading traces, 2 to 64."""
    balanced: tuple[int, ...] = (10,)
    """Orders of cascades with a balanced readout of all stages, 3 to 64."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace."""


PRESETS = {
    "demo": Options(steps=400, learning_rates=(1e-3,), seeds=2),
    "quick": Options(steps=936, learning_rates=(1e-3,), **MNIST),
    "cifar10": Options(
        delay=2.0, steps=3900, learning_rates=(1e-3,), seeds=1, error_gate=1e-8, ways=("bias",),
        **CIFAR10,
    ),
}  # fmt: skip


def conditions(options: Options) -> list[list[Condition]]:
    """Every trace and backprop, each the plain way and centred in the ways asked for."""
    more = dict(error_gate=options.error_gate)
    found = [set_to_delay(options, "backprop", 0, 0.0)]
    found += [set_to_delay(options, *trace, options.delay, **more) for trace in options.delayed_traces]
    ways = [how for how in HOW if not how or how in options.ways]
    return [[replace(one, centering=how)] for one in found for how in ways]


class CentredWeights(SupervisedRun):
    """A run whose weights learn from centred activity, and whose biases do not follow: the way that fails."""

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        following = super()._optimizer(hyper)

        def update(grads, state, params=None, *, means=None, **more):
            updates, state = following.update(grads, state, params, means=means, **more)
            return nn.follow(updates, {name: -mean for name, mean in means.items()}), state

        return optax.GradientTransformationExtraArgs(following.init, update)


class Course(vision.Course):
    """Trains as its parent does, activity centred as a condition says."""

    static = (*vision.Course.static, "centering")

    def supervised(self, *, centering: str, **static) -> SupervisedRun:
        """The run of conditions that have these fields."""
        run = super().supervised(**static)
        if not centering:
            return run
        settings = replace(run.settings, centering=RUNNING if centering == "running" else 0.0)
        kind = CentredWeights if centering == "weights" else SupervisedRun
        return kind(run.make_model, run.x, run.labels, settings)


run = partial(vision.run, conditions, course=Course)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure."""
    ends = tables.like_last(tables.finals(rows), tables.SUBJECT).fillna({"centering": ""})
    ends = tables.latest(ends, ("trace", "order", "delay_s", "centering", "seed"))
    ways, body = {how: words for how, words in HOW.items() if (ends["centering"] == how).any()}, []
    for key in tables.traces(ends):
        of_key = tables.of_trace(ends, key)
        body.append(
            (tables.label(*key), [tables.cell(of_key.loc[of_key["centering"] == how, "value"]) for how in ways])
        )
    print(tables.text(f"Test accuracy in %, {captions.settings(ends)}", ["", *ways.values()], body, width=20))
    return draw(ends, ways, options.folder)


def draw(ends: pd.DataFrame, ways: dict[str, str], folder: Path) -> list[Path]:
    """Accuracy of every trace in each way that it was trained in, a dot a seed."""
    keys, width = tables.traces(ends)[::-1], 0.8 / len(ways)
    with plots.figure(width=plots.PAGE_WIDTH, height=3.0) as (figure, axes):
        axis = axes[0, 0]
        for place, (how, words) in enumerate(ways.items()):
            of_way, named = ends[ends["centering"] == how], words
            for at, key in enumerate(keys):
                values = 100 * tables.of_trace(of_way, key)["value"]
                if values.empty:
                    continue
                beside, style = at + width * (place - (len(ways) - 1) / 2), dict(color=_COLOURS[how])
                axis.plot([beside] * len(values), values, ".", markersize=3, **style)
                axis.bar(beside, values.mean(), 0.9 * width, alpha=0.6, label=named, **style)
                named = None
        axis.set_xticks(range(len(keys)), [tables.label(*key) for key in keys])
        axis.set(ylabel="test accuracy (%)", ylim=(0, 100))
        late = ends.loc[ends["trace"] != "backprop", "delay_s"].max()
        note = f"{captions.settings(ends)}; signals {late:g} s late.{explained(ways)}"
        note += captions.seeds(ends, "Bar: mean; dots: seeds.")
        return plots.save(figure, folder, "centering", note + captions.left_out(ends), axis)


def explained(ways: Collection[str]) -> str:
    """What ways take off, as sentences; empty of the plain one."""
    segment, follow = "activity less its mean over a segment", "biases make up for what that does to the output."
    text = f" Weights centred: they learn from {segment}" if "weights" in ways else ""
    if "bias" in ways:
        text += "; bias follows: " if text else f" Bias follows: weights learn from {segment}, "
        text += f"and {follow}"
    elif text:
        text += "."
    if "running" in ways:
        whole = f"weights learn from activity less a mean of the past, and {follow}"
        text += f" Running mean: {'the same with a mean of the past.' if 'bias' in ways else whole}"
    return text
