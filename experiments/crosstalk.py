"""What a trace's update is made of: the true gradient, signals lost, and crosstalk with activity at the wrong lags.

In a segment of T steps the signal of step u, late by D, meets activity of step s with the weight W_us = w(u + D - s).
Per post-neuron, with signals δ of mean δ̄ and variance V, and factors h (of the activity, a number per synapse) of mean
h̄ and variance U, each independent from step to step, the update is w(D) g, g the gradient of the signals that arrive,
and crosstalk c. With k_u = Σ_s W_us and l_s = Σ_u W_us, all sums over s ≠ u, which hold lag j T - max(D, j) times,

    E‖c‖² = |δ̄ h̄|² (Σ W)² + V |h̄|² Σ k² + δ̄² U Σ l² + V U Σ W²
    E g·c = (h̄·E δ²h + (n - 1) |h̄|² δ̄²) Σ k + δ̄² U Σ l,   n signals arrive, and of l those of their steps count

The first three parts vanish where weights off the delay cancel (ρ's term), the last is that of independent pairs. What
lies in E g·c is of the mean activity, in which the gradient has a part as well: a cosine near 1 may tell of it alone.
A convolution's h and δ are of all places of an image, over which their product is summed: its squares are means over
pairs of steps.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.common import captions, checks, plots, tables, vision
from experiments.common import crosstalk as measures
from experiments.common.checks import DT
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.hyperparameters import hyperparameters
from experiments.common.options import CIFAR10, MNIST, Gate, Orders, Stream, Vision

ORDERS = {"mlp": 16, "cnn": 2}  # in which images of a segment are shown
MEASURED = (*measures.PARTS, "crosstalk", "lost", "predicted", "alignment", "centred")


@dataclass(frozen=True)
class Options(Stream, Orders, Gate, Vision):
    """The update's error split into lost signals, mean and variance crosstalk, predicted and measured.

    All is predicted from the kernel and the means and variances of activity and error, at the weights of a network
    trained by backprop, and held against the cosine with the gradient there and the accuracy of networks that each
    kernel trains.
    """

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits; quick: MNIST; both in minutes; cifar10: its CNN 2 s late, in an hour."""
    delay: Annotated[float, checks.delays] = 10.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s, below 25.6 s."""
    orders: tuple[int, ...] = (2, 4, 6, 10, 20, 32, 64)
    """Orders of the cascading traces, 2 to 64."""
    balanced: tuple[int, ...] = (3, 4, 6, 10, 20, 32, 64)
    """Orders of cascades with a balanced readout of all stages, 3 to 64."""
    contrasts: tuple[int, ...] = (4, 10, 32)
    """Orders of cascades from which the exponential trace is taken away, areas alike, 2 to 64."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace, in the runs that are trained."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("network", self.network in ORDERS, " or ".join(ORDERS), self.network)
        checks.require("boundary", self.boundary == "reset", "reset, of which the prediction is", self.boundary)


PRESETS = {
    "demo": Options(steps=400, learning_rates=(1e-3,), seeds=2),
    "quick": Options(error_gate=1e-8, steps=936, learning_rates=(1e-3,), seeds=1, **MNIST),
    "cifar10": Options(
        delay=2.0, orders=(2, 10), balanced=(10,), contrasts=(), steps=390, learning_rates=(1e-3,), seeds=1, **CIFAR10
    ),
}


def kernels(options: Options) -> list[Condition]:
    """Every trace, set to the delay, and two shorter exponential ones."""
    short = [set_to_delay(options, "ET", 1, options.delay, peak_s=share * options.delay) for share in (0.3, 3)]
    return short + [set_to_delay(options, *trace, options.delay) for trace in options.delayed_traces]


def conditions(options: Options) -> list[list[Condition]]:
    """Backprop, which all kernels watch, and every kernel."""
    return [[one] for one in (set_to_delay(options, "backprop"), *kernels(options))]


class Course(vision.Course):
    """Runs of which backprop's are looked into, at its last weights."""

    def evaluations(self, run, at, salient=False):
        """Accuracy and the rest as usual; and of each kernel the parts of its update."""
        measured = super().evaluations(run, at, salient)
        split = eqx.Partial(_split_update, run, round(self.options.delay / DT), ORDERS[self.options.network])
        for one in kernels(self.options) if self.measured_on == "test" else ():
            weights = hyperparameters(one).trace.weights(jnp.arange(self.options.unit))
            measured.append(self.of_segments(split, weights, [at[-1]], one))
        return measured


def _split_update(run, late: int, orders: int, state, weights, x, labels):
    """The parts of one segment's update by layer, at the weights of a run: means over orders of its images.

    In one order, which all kernels share, what is measured may be half or twice what is expected. Squares are averaged
    before they are divided by that of the signal: where few large errors arrive both are small, and the ratio is not.
    """
    model, form = eqx.combine(state.params, run._template()), run.settings.form
    split = lambda order: measures.by_layer(model, state.buffers, x[order], labels[order], weights, late, form)  # noqa: E731
    shown = jax.vmap(jax.random.permutation, (0, None))(jax.random.split(jax.random.key(0), orders), len(x))
    found = jax.lax.map(split, shown)
    unit, mean = found.pop("unit"), {}
    for part in (*measures.PARTS, "along", "crosstalk"):
        mean[part] = {name: jnp.sum(v * unit[name]) / jnp.sum(unit[name]) for name, v in found.pop(part).items()}
    mean = jax.tree.map(lambda values: jnp.mean(values, axis=0), found) | mean
    mean["predicted"] = {n: measures.expected_cosine({part: mean[part][n] for part in mean}) for n in unit}
    return {what: values for what, values in mean.items() if what != "along"}


run = partial(vision.run, conditions, course=Course)


def select(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a kernel and layer: its parts and cosines, means over seeds, and the `accuracy` that it trains to."""
    last, key = rows["step"] == rows.groupby("run")["step"].transform("max"), ["trace", "order", "peak_s"]
    trained = rows.loc[(rows["trace"] == "backprop") & (rows["metric"] == "test_accuracy"), "run"].unique()
    of_layer = rows[last & rows["run"].isin(trained) & rows["metric"].isin(MEASURED) & (rows["trace"] != "backprop")]
    table = of_layer.pivot_table(index=[*key, "layer"], columns="metric", values="value").reset_index()
    table["expected"] = table[list(measures.PARTS)].sum(axis=1)
    table["kernel"] = [tables.label(*which) for which in zip(table["trace"], table["order"], strict=True)]
    table.loc[table["trace"] == "ET", "kernel"] += table["peak_s"].map(", τ {:g} s".format)
    return table.join(100 * tables.finals(rows).groupby(key)["value"].mean().rename("accuracy"), on=key)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure, of the first layer."""
    frame, settings = select(rows), captions.settings(tables.finals(rows))
    lowest = min(frame["layer"], key=lambda name: int(name.rpartition(".")[2]))
    first = frame[frame["layer"] == lowest].sort_values("accuracy")
    body = [(row["kernel"], [f"{row[c]:.3g}" for c in (*MEASURED, "accuracy")]) for row in first.to_dict("records")]
    title = f"Squares relative to the signal's, cosines and accuracy, {settings}"
    print(tables.text(title, ["first layer", *MEASURED, "accuracy"], body, width=18))
    for layer, of_layer in frame.groupby("layer"):
        of_layer = of_layer[of_layer["expected"] > 0]
        ratio = np.exp(np.abs(np.log(of_layer["expected"] / of_layer["crosstalk"])).mean())
        error = np.abs(of_layer["predicted"] - of_layer["alignment"])
        ranks = of_layer[["expected", "alignment", "accuracy"]].rank().corr()["accuracy"]
        print(
            f"{layer}: crosstalk predicted within a factor of {ratio:.2f}, the cosine within {error.mean():.3f} "
            f"(at most {error.max():.3f}); rank correlation of accuracy with predicted crosstalk "
            f"{ranks['expected']:.2f}, with the measured cosine {ranks['alignment']:.2f}"
        )
    return draw(frame, first, settings, options)


def draw(frame: pd.DataFrame, first: pd.DataFrame, settings: str, options: Options) -> list[Path]:
    """Parts of the update's error by kernel; crosstalk measured against predicted, and accuracy."""
    size, places = dict(width=plots.PAGE_WIDTH, height=1.2 + 0.16 * len(first)), range(len(first))
    with plots.figure(1, 3, **size, width_ratios=(1.5, 1, 1)) as (figure, axes):
        bars, squares, trained = axes[0]
        mean = (first["expected"] - first["variance"]).clip(lower=0)  # an estimate, which may be below 0 where it is 0
        bars.barh(places, mean, color="#56B4E9", label="mean crosstalk, predicted")
        bars.barh(places, first["variance"], left=mean, color="#D55E00", label="variance crosstalk, predicted")
        bars.plot(first["crosstalk"], places, "k|", markersize=6, label="measured")
        bars.set_yticks(places, first["kernel"], fontsize=6)
        bars.set(xscale="symlog", xlabel="square of the error / of the signal, first layer")
        for key, style in plots.styles(tables.traces(frame)).items():
            of_layer, dot = (
                tables.of_trace(frame, key),
                dict(color=style["color"], marker=style["marker"], linestyle=""),
            )
            some = of_layer[of_layer["expected"] > 0]  # a delay line has none
            squares.loglog(some["expected"], some["crosstalk"], **dot)
            top = tables.of_trace(first, key)
            trained.semilogx(top["expected"], top["accuracy"], **dot)
        ends = [frame.loc[frame["expected"] > 0, "expected"].min(), frame["expected"].max()]
        squares.plot(ends, ends, color="#999999", linewidth=0.7, zorder=1)
        squares.set(xlabel="predicted square of the crosstalk", ylabel="measured, all layers")
        trained.set(xlabel="predicted, first layer", ylabel="test accuracy (%)")
        note = f"{settings}. Error of the update at the weights that backprop ends with, "
        note += f"over {ORDERS[options.network]} orders of the images."
        return plots.save(figure, options.folder, "crosstalk", note, bars, 2)
