"""The readout of a cascade's stages, learned from the task while the network learns: does it find the balance?

The readout c starts at the paper's, (0, ..., 0, 1), is kept at length 1, and goes down slopes g of what should fall,
each stage's steps scaled by all its slopes so far (AdaGrad),

    c_k ← c_k - η g_k / √(Σ g_k²)

    alignment       minus the mean cosine between the trace's update and the true gradient
    crosstalk       the logarithm of ‖update - w(D) gradient‖² / ‖w(D) gradient‖²
    perturbation    (ℓ(c + σ d) - ℓ(c - σ d)) / 2σ · d, ℓ the loss after some updates, d a random sign a stage

The first two know the true gradient, the last sees two losses. A cosine is raised by crosstalk with the mean activity,
in which the gradient lies too (see `experiments/crosstalk.py`): what is best aligned need not be balanced.

**Reference:** Spall (1992), "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation".
"""

import operator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from cetsim import sweep
from cetsim.traces import CascadingTrace
from experiments.common import checks, crosstalk, plots, tables, vision
from experiments.common.checks import DT, STRETCH
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.hyperparameters import hyperparameters
from experiments.common.options import Learned

METHODS = ("alignment", "crosstalk", "perturbation")
RULE = ("trace", "order", "delay_s", "method", "learn_every", "step_size", "stretches", "horizon", "perturbation")
_STYLES = {  # by trace and how its readout is learned
    ("CET", "held"): dict(color="#0072B2"),
    ("balanced", "held"): dict(color="#CC3311"),
    ("CET", "alignment"): dict(color="#56B4E9", linewidth=2.4),
    ("CET", "crosstalk"): dict(color="#009E73", linestyle=(0, (5, 1))),
    ("CET", "perturbation"): dict(color="#E69F00"),
}


@dataclass(frozen=True)
class Options(Learned):
    """The readout of a cascade's stages, learned from the task while the network learns.

    It starts at the last stage, and every --learn-every updates of the network it moves. alignment and crosstalk know
    the true gradient; perturbation sees the losses after some updates made with two readouts near its own. Beside them
    the same network is trained by the last stage and by the balanced readout.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in a quarter of an hour."""
    delay: float = 4.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s."""
    order: int = 10
    """Order of the cascade, 3 to 64."""
    methods: tuple[Literal["alignment", "crosstalk", "perturbation"], ...] = METHODS
    """Ways to tell in which direction to move the readout."""
    learn_every: int = 5
    """Updates of the network between two steps of the readout."""
    step_size: float = 0.1
    """Change of each stage's part in the first step, the readout's length being 1."""
    perturbation: float = 0.1
    """Distance, in each stage, of the readouts that are tried, above 0 and below 1."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("order", 3 <= self.order <= 64, "3 to 64", self.order)


PRESETS = {
    "demo": Options(steps=2000, seeds=2),
    "quick": Options(
        preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1, steps=1404,
        delay=10.0, seeds=1,
    ),
}  # fmt: skip


class Learner(NamedTuple):
    """What is learned. **Fields:** `readout`: c, of length 1. `squares`: of its slopes so far. `key`: of directions."""

    readout: Float[Array, " stages"]
    squares: Float[Array, " stages"]
    key: Array


def stages(order: int, delay: float) -> Float[Array, "stages lags"]:
    """S, weights of each stage over a stretch."""
    trace = CascadingTrace(order, delay, DT, readout=np.eye(order))
    return trace.weights(jnp.arange(STRETCH)).T


def learn(run, rule: Condition, state, learner: Learner):
    """One step of the readout: the state with its trace set to the new one, its network as it was; and the learner."""
    key, sub = jax.random.split(learner.key)
    g = slope(run, rule, state, learner.readout, sub)
    g = jnp.where(jnp.isfinite(g), g, 0.0)  # a network that diverged tells nothing
    squares = learner.squares + g**2
    after = learner.readout - rule.step_size * g / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    learner = Learner(after / jnp.linalg.norm(after), squares, key)
    return with_readout(state, rule, learner.readout), learner


def slope(run, rule: Condition, state, readout, key) -> Float[Array, " stages"]:
    """How what should fall grows with the readout."""
    if rule.method != "perturbation":
        return jax.grad(lambda c: objective(run, rule, state, c))(readout)
    signs = jnp.where(jax.random.bernoulli(key, shape=readout.shape), 1.0, -1.0)
    tried = readout + rule.perturbation * jnp.stack([signs, -signs])
    above, below = jax.lax.map(lambda c: loss_after(run, rule, state, c / jnp.linalg.norm(c)), tried)
    return (above - below) / (2 * rule.perturbation) * signs


def objective(run, rule: Condition, state, readout) -> Float[Array, ""]:
    """Minus the cosine, or the logarithm of the crosstalk, averaged over layers and the stretches that come next."""
    model = eqx.combine(state.params, run._template())
    weights, late = readout @ stages(rule.order, rule.delay_s), round(rule.delay_s / DT)

    def of_stretch(stretch):
        parts = crosstalk.by_layer(model, *stretch, weights, late, run.settings.form)
        layers = jnp.stack(list(parts[rule.method].values()))
        return -jnp.mean(layers) if rule.method == "alignment" else jnp.mean(jnp.log(layers))

    return jnp.mean(jax.lax.map(of_stretch, vision.coming(run, state, rule.stretches)))


def loss_after(run, rule: Condition, state, readout) -> Float[Array, ""]:
    """Loss that `rule.horizon` updates with a readout lead to, on the stretches that come after them."""
    after, _ = run.advance(with_readout(state, rule, readout), rule.horizon)
    x, labels = vision.coming(run, after, rule.stretches)
    return run.evaluate(after, x.reshape(-1, *x.shape[2:]), labels.reshape(-1))["loss"]


def with_readout(state, rule: Condition, readout):
    """The state with the readout's weights as its tabulated trace, the length that of the last stage alone."""
    return eqx.tree_at(lambda state: state.hyper.trace.taps, state, readout @ stages(rule.order, rule.delay_s))


def conditions(options: Options) -> list[list[Condition]]:
    """The last stage and the balanced readout, held, the delay line, and every method."""
    more = dict(error_gate=options.error_gate)
    held = [set_to_delay(options, trace, options.order, options.delay, **more) for trace in ("CET", "balanced")]
    line, found = set_to_delay(options, "delay line", 0, options.delay, **more), []
    for method in options.methods:
        names = ["learn_every", "step_size", "stretches"]
        names += ["horizon", "perturbation"] if method == "perturbation" else []
        found.append(replace(held[0], method=method, **{name: getattr(options, name) for name in names}))
    return [[one] for one in (*held, line, *found)]


class LearningCourse(vision.Course):
    """Trains as its parent does, moving readouts on the way: a run's state comes with their learner's."""

    def training(self, **static) -> sweep.Training:
        """How conditions of one rule are trained, and what is measured of them."""
        rule = Condition(**{name: static.pop(name) for name in RULE})
        run, learned = self.supervised(**static), rule.method != "held"
        steps, every = run.settings.steps, rule.learn_every
        ends, at = self.points(steps, every or 1)
        moves = [*range(every, steps, every), steps] if learned else ends
        measured = self.evaluations(run, at, of_state=operator.itemgetter(0))
        if learned:
            name = lambda state: {"readout": {f"stage {k + 1}": c for k, c in enumerate(state[1].readout)}}  # noqa: E731
            measured.append(sweep.Evaluation(name, at=[0, *at]))
        start = lambda condition: (hyperparameters(condition), jnp.eye(max(rule.order, 1))[-1])  # noqa: E731
        return sweep.Training(eqx.Partial(_init, run), eqx.Partial(_advance, run, rule), measured, steps, moves, start)


def _init(run, start, key):
    hyper, readout = start
    return run.init(hyper, key), Learner(readout, jnp.zeros_like(readout), jax.random.fold_in(key, 1))


def _advance(run, rule, state, steps):
    """The state after `steps` updates, before which the readout moves, and their losses."""
    state, learner = state if rule.method == "held" else learn(run, rule, *state)
    state, losses = run.advance(state, steps)
    return (state, learner), {"train_loss": losses}


run = partial(vision.run, conditions, course=LearningCourse, static=(*vision.STATIC, *RULE))


def kernel(rows: pd.DataFrame, own: pd.Series) -> np.ndarray:
    """Weights of a run's trace at its end."""
    learned = rows[(rows["run"] == own["run"]) & (rows["metric"] == "readout")]
    order, delay = int(own["order"]), float(own["delay_s"])
    if learned.empty:
        peaked = {"readout": "balanced", "peaked": order >= 6} if own["trace"] == "balanced" else {}
        return np.asarray(CascadingTrace(order, delay, DT, **peaked).weights(jnp.arange(STRETCH)))
    last = learned[learned["step"] == learned["step"].max()].set_index("layer")["value"]
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
    for (trace, method), own in ends[ends["order"] > 0].groupby(["trace", "method"], sort=False):
        kernels = [kernel(rows, one) for _, one in own.iterrows()]
        late = round(own["delay_s"].iloc[0] / DT)
        numbers = np.array(
            [(*balance(w, late), np.abs(w).argmax() * DT, w[late] / np.abs(w).max()) for w in kernels]
        ).mean(axis=0)
        words = "last stage" if (trace, method) == ("CET", "held") else trace if method == "held" else f"by {method}"
        body.append((words, [tables.cell(own["value"]), *(f"{number:.3g}" for number in numbers)]))
        drawn[trace, method] = words, kernels
    body.append(("delay line", [tables.cell(ends.loc[ends["trace"] == "delay line", "value"])]))
    print(tables.text(f"Readouts of {ends['order'].max()} stages, {tables.settings(ends)}", head, body, width=20))
    return draw(drawn, ends, options.folder)


def draw(drawn: dict, ends: pd.DataFrame, folder: Path) -> list[Path]:
    """The kernels that runs ended with, in units of their largest weight."""
    with plots.figure(height=2.8) as (figure, axes):
        axis, lags = axes[0, 0], np.arange(STRETCH) * DT
        for key, (words, kernels) in drawn.items():
            for index, weights in enumerate(kernels):
                axis.plot(lags, weights / np.abs(weights).max(), label=None if index else words, **_STYLES[key])
        axis.axvline(ends["delay_s"].max(), color="black", linestyle=(0, (2, 1.5)), linewidth=0.8, zorder=1)
        axis.axhline(0, color="black", linewidth=0.5, zorder=1)
        axis.set(xlabel="time since the activity (s)", ylabel="weight, of the largest")
        note = f"{tables.settings(ends)}. A line a seed; dashed: the delay."
        return plots.save(figure, folder, "learned-readout", note, axis, 2)
