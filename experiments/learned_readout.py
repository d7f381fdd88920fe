"""The readout of a cascade's stages, learned from the task while the network learns: does it find the balance?

The readout c starts at the paper's, (0, ..., 0, 1), is kept at length 1, and goes down slopes of what should fall
(`experiments/common/learned.py`):

    alignment       minus the mean cosine between the trace's update and the true gradient
    crosstalk       the logarithm of ‖update - w(D) gradient‖² / ‖w(D) gradient‖²
    perturbation    the loss after some updates, seen at two readouts

The first two know the true gradient, the last sees two losses. A cosine is raised by crosstalk with the mean activity,
in which the gradient lies too (see `experiments/crosstalk.py`): what is best aligned need not be balanced.
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
from jaxtyping import Array, Float

from cetsim.traces import CascadingTrace
from experiments.common import captions, checks, crosstalk, learned, plots, tables, vision
from experiments.common.checks import DT, SEGMENT
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.hyperparameters import make_trace
from experiments.common.options import MNIST

METHODS = ("alignment", "crosstalk", "perturbation")
_STYLES = {  # by trace and how its readout is learned
    ("CET", "held"): dict(color="#0072B2"),
    ("balanced", "held"): dict(color="#CC3311"),
    ("CET", "alignment"): dict(color="#56B4E9", linewidth=2.4),
    ("CET", "crosstalk"): dict(color="#009E73", linestyle=(0, (5, 1))),
    ("CET", "perturbation"): dict(color="#E69F00"),
}


@dataclass(frozen=True)
class Options(learned.Learned):
    """The readout of a cascade's stages, learned from the task while the network learns.

    It starts at the last stage, and every --learn-every updates of the network it moves. alignment and crosstalk know
    the true gradient; perturbation sees the losses after some updates made with two readouts near its own. Beside them
    the same network is trained by the last stage and by the balanced readout.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in a quarter of an hour."""
    delay: Annotated[float, checks.delays] = 4.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s."""
    order: Annotated[int, checks.BALANCED] = 10
    """Order of the cascade, 3 to 64."""
    methods: Annotated[tuple[Literal["alignment", "crosstalk", "perturbation"], ...], checks.WORDS] = METHODS
    """Ways to tell in which direction to move the readout."""
    learn_every: int = 5
    """Updates of the network between two steps of the readout."""
    step_size: Annotated[float, checks.INSIDE] = 0.1
    """Change of each stage's part in the first step, the readout's length being 1."""
    perturbation: Annotated[float, checks.INSIDE] = 0.1
    """Distance, in each stage, of the readouts that are tried, above 0 and below 1."""


PRESETS = {
    "demo": Options(steps=2000, seeds=2),
    "quick": Options(steps=1404, delay=10.0, seeds=1, **MNIST),
}


def stages(order: int, delay: float) -> Float[Array, "stages lags"]:
    """S, weights of each stage over a segment."""
    return CascadingTrace(order, delay, DT, readout=np.eye(order)).weights(jnp.arange(SEGMENT)).T


def weights(rule: Condition, readout: Float[Array, " stages"]) -> Float[Array, " lags"]:
    """Those of the readout at length 1."""
    return readout / jnp.linalg.norm(readout) @ stages(rule.order, rule.delay_s)


def slope(run, rule: Condition, state, readout: Float[Array, " stages"]) -> Float[Array, " stages"]:
    """How minus the cosine, or the logarithm of the crosstalk, grows with the readout: over layers and segments."""
    model, late = eqx.combine(state.params, run._template()), round(rule.delay_s / DT)

    def objective(readout, segment):
        parts = crosstalk.by_layer(model, None, *segment, weights(rule, readout), late, run.settings.form)
        layers = jnp.stack(list(parts[rule.method].values()))
        return -jnp.mean(layers) if rule.method == "alignment" else jnp.mean(jnp.log(layers))

    coming = learned.coming(run, state, rule.segments)
    return jnp.mean(jax.lax.map(lambda segment: jax.grad(objective)(readout, segment), coming), axis=0)


KNOB = learned.Knob(
    start=lambda rule, condition: jnp.eye(max(rule.order, 1))[-1],
    weights=weights,
    slope=slope,
    kept=lambda readout: readout / jnp.linalg.norm(readout),
    measured=lambda readout: {"readout": {f"stage {k + 1}": part for k, part in enumerate(readout)}},
    every_move=False,
)


def conditions(options: Options) -> list[list[Condition]]:
    """The last stage and the balanced readout, held, the delay line, and every method."""
    held = [set_to_delay(options, trace, options.order, options.delay) for trace in ("CET", "balanced")]
    line = set_to_delay(options, "delay line", 0, options.delay)
    return [[one] for one in (*held, line, *learned.by_every_method(options, held[0]))]


run = partial(vision.run, conditions, course=partial(learned.Course, KNOB))


def kernel(rows: pd.DataFrame, runs: pd.Series) -> np.ndarray:
    """Weights of a run's trace at its end."""
    order, delay = int(runs["order"]), float(runs["delay_s"])
    if runs["method"] == "held":
        trace = make_trace(Condition(runs["trace"], order, delay, peak_s=delay))
        return np.asarray(trace.weights(jnp.arange(SEGMENT)))
    parts = rows[(rows["run"] == runs["run"]) & (rows["metric"] == "readout")]
    last = parts[parts["step"] == parts["step"].max()].set_index("layer")["value"]
    return np.array([last[f"stage {k + 1}"] for k in range(order)]) @ np.asarray(stages(order, delay))


def balance(weights: np.ndarray, late: int) -> tuple[float, float]:
    """What is left of the sum of the weights off the delay, as a share of their sizes; and Σ w² off it over w(D)²."""
    off = np.delete(weights, late)
    return off.sum() / np.abs(off).sum(), np.sum(off**2) / weights[late] ** 2


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure."""
    ends = tables.finals(rows)
    head = ["readout", "accuracy", "Σw off D / Σ|w|", "Σw² off D / w(D)²", "largest |w|, s", "w(D) / largest"]
    body, drawn = [], {}
    for (trace, method), runs in ends[ends["order"] > 0].groupby(["trace", "method"], sort=False):
        kernels = [kernel(rows, one) for _, one in runs.iterrows()]
        late, sizes = round(runs["delay_s"].iloc[0] / DT), np.abs(kernels)
        shapes = [(*balance(w, late), s.argmax() * DT, w[late] / s.max()) for w, s in zip(kernels, sizes, strict=True)]
        words = "last stage" if (trace, method) == ("CET", "held") else trace if method == "held" else f"by {method}"
        body.append((words, [tables.cell(runs["value"]), *(f"{number:.3g}" for number in np.mean(shapes, axis=0))]))
        drawn[trace, method] = words, kernels
    body.append(("delay line", [tables.cell(ends.loc[ends["trace"] == "delay line", "value"])]))
    print(tables.text(f"Readouts of {ends['order'].max()} stages, {captions.settings(ends)}", head, body, width=20))
    return draw(drawn, ends, options.folder)


def draw(drawn: dict, ends: pd.DataFrame, folder: Path) -> list[Path]:
    """The kernels that runs ended with, in units of their largest weight."""
    with plots.figure(height=2.8) as (figure, axes):
        axis, lags = axes[0, 0], np.arange(SEGMENT) * DT
        for key, (words, kernels) in drawn.items():
            for index, weights in enumerate(kernels):
                axis.plot(lags, weights / np.abs(weights).max(), label=None if index else words, **_STYLES[key])
        axis.axvline(ends["delay_s"].max(), color="black", linestyle=(0, (2, 1.5)), linewidth=0.8, zorder=1)
        axis.axhline(0, color="black", linewidth=0.5, zorder=1)
        axis.set(xlabel="time since the activity (s)", ylabel="weight, of the largest")
        note = f"{captions.settings(ends)}. A line a seed; dashed: the delay."
        return plots.save(figure, folder, "learned-readout", note, axis, 2)
