"""Presynaptic activity less its mean: an alternative to a balanced readout, if the biases follow.

A blurred trace adds up the mean of activity over all wrong lags. Less its mean m over a segment there is nothing to add
up. A bias is a synapse whose activity is 1, so that the centred update of weights is the plain one less that part,

    weights     ΔW = G_W - G_b mᵀ        with G the rule's gradient of W and b, as ever

It destroys learning where it is all that changes, even without crosstalk. Adam makes every weight's step about as large
as the rate, whatever the gradient, so that ΔW m shifts the unit's input for all images at once by up to η Σ|m|. Weights
no longer see such a shift, and a bias undoes η of it a step. So the bias has to follow what was done to the weights,

    bias        b ← b - ΔW m             after the optimiser's own step of b

which is the step that a network of W(x - m) + b, held at this m, would make.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import pandas as pd

from cetsim.supervised import SupervisedRun
from experiments.common import captions, checks, plots, tables, vision
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import MNIST, Gate, Orders, Vision

HOW = {"": "plain", "weights": "weights centred", "bias": "bias follows"}
_COLOURS = {"": "#555555", "weights": "#E69F00", "bias": "#009E73"}


@dataclass(frozen=True)
class Options(Orders, Gate, Vision):
    """Presynaptic activity less its mean over a segment, beside and with a balanced readout.

    Each trace trains the plain way, with centred weights alone, and with biases that follow.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits; quick: MNIST; both in minutes."""
    delay: float = 10.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s, below 25.6 s."""
    orders: tuple[int, ...] = (2, 10)
    """Orders of the cascading traces, 2 to 64."""
    balanced: tuple[int, ...] = (10,)
    """Orders of cascades with a balanced readout of all stages, 3 to 64."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.delays("delay", (self.delay,), "reset")
        checks.require("network", self.network == "mlp", "mlp, of whose layers the inputs are known", self.network)


PRESETS = {
    "demo": Options(steps=400, learning_rates=(1e-3,), seeds=2),
    "quick": Options(preset="quick", steps=936, learning_rates=(1e-3,), **MNIST),
}


def conditions(options: Options) -> list[list[Condition]]:
    """Every trace and backprop, each in the three ways."""
    more = dict(error_gate=options.error_gate)
    found = [set_to_delay(options, "backprop", 0, 0.0)]
    found += [set_to_delay(options, *trace, options.delay, **more) for trace in options.delayed_traces]
    return [[replace(one, centering=how)] for one in found for how in HOW]


class CentredRun(SupervisedRun):
    """A run of an MLP whose weights learn from centred activity; its biases follow them, or do not."""

    follow: bool = eqx.field(static=True)

    def __init__(self, run: SupervisedRun, follow: bool):
        super().__init__(run.make_model, run.x, run.labels, run.settings)
        self.follow = follow

    def _gradient(self, model, state, stream, x, labels, events=None):
        (loss, buffers), grads, stream = super()._gradient(model, state, stream, x, labels, events)
        means = mean_inputs(model, x)
        for i, mean in means.items():
            weight, bias = grads.layers[i].weight, grads.layers[i].bias
            grads = eqx.tree_at(lambda tree, i=i: tree.layers[i].weight, grads, weight - bias[:, None] * mean)
        return (loss, (buffers, means)), grads, stream

    def _updated(self, state, loss, grads, buffers, **changed):
        buffers, means = buffers
        updated = super()._updated(state, loss, grads, buffers=buffers, **changed)
        params = updated.params
        for i, mean in means.items() if self.follow else ():
            moved = params.layers[i].weight - state.params.layers[i].weight
            bias = params.layers[i].bias - jnp.matmul(moved, mean, precision="highest")
            params = eqx.tree_at(lambda tree, i=i: tree.layers[i].bias, params, bias)
        return replace(updated, params=params)


def mean_inputs(model, x) -> dict[int, jax.Array]:
    """The mean over a segment of what every linear layer of an MLP gets, by its place."""
    means = {}
    for i, layer in enumerate(model.layers):
        if isinstance(layer, eqx.nn.Linear):
            means[i] = jax.lax.stop_gradient(jnp.mean(x, axis=0))
        x = jax.vmap(layer)(x)
    return means


class Course(vision.Course):
    """Trains as its parent does, activity centred as a condition says."""

    static = (*vision.Course.static, "centering")

    def supervised(self, *, centering: str, **static) -> SupervisedRun:
        """The run of conditions that have these fields."""
        run = super().supervised(**static)
        return CentredRun(run, centering == "bias") if centering else run


run = partial(vision.run, conditions, course=Course)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure."""
    ends = tables.like_last(tables.finals(rows), tables.SUBJECT).fillna({"centering": ""})
    ends = tables.latest(ends, ("trace", "order", "delay_s", "centering", "seed"))
    body = []
    for key in tables.traces(ends):
        own = tables.of_trace(ends, key)
        body.append((tables.label(*key), [tables.cell(own.loc[own["centering"] == how, "value"]) for how in HOW]))
    print(tables.text(f"Test accuracy in %, {captions.settings(ends)}", ["", *HOW.values()], body, width=20))
    return draw(ends, options.folder)


def draw(ends: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy of every trace in the three ways, a dot a seed."""
    keys = tables.traces(ends)[::-1]
    with plots.figure(width=plots.PAGE_WIDTH, height=3.0) as (figure, axes):
        axis = axes[0, 0]
        for place, (how, words) in enumerate(HOW.items()):
            for at, key in enumerate(keys):
                values = 100 * tables.of_trace(ends[ends["centering"] == how], key)["value"]
                beside, style = at + 0.22 * (place - 1), dict(color=_COLOURS[how])
                axis.plot([beside] * len(values), values, ".", markersize=3, **style)
                axis.bar(beside, values.mean(), 0.2, alpha=0.6, label=None if at else words, **style)
        axis.set_xticks(range(len(keys)), [tables.label(*key) for key in keys])
        axis.set(ylabel="test accuracy (%)", ylim=(0, 100))
        late = ends.loc[ends["trace"] != "backprop", "delay_s"].max()
        note = f"{captions.settings(ends)}; signals {late:g} s late. "
        note += "Weights centred: they learn from activity less its mean over a segment; "
        note += "bias follows: and biases make up for what that does to the output."
        note += captions.seeds(ends, "Bar: mean; dots: seeds.")
        return plots.save(figure, folder, "centering", note + captions.left_out(ends), axis)
