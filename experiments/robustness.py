"""What a readout of all stages survives: noise in the stages, stages of unequal rates, limits on signs and on size.

**Noise.** Stage k of a synapse is read as h_k + σ r_k ξ: r_k is the root mean square of its own signal in the segment,
ξ a new normal number in every stage, synapse and step. So a synapse's update gets a normal number more. Where activity
has mean m and variance v and is independent from step to step, with signals L, the variance of that number is

    σ² Σ_t L(t)² Σ_k c_k² (v Σ_j S_kj² + m² (Σ_j S_kj)²)

**Rates.** The stages' rates are α e^(s ξ_k), drawn once a run; their weights come from the matrix exponential.

**Pairs.** In a segment of T steps lag j is met T - max(D, j) times: weights that cancel over all lags do not there.
What is left must not be negative: a little of it turns the mean update against the gradient. Informed and limited
readouts are solved with lags weighed so.

**Limits.** The same problem as the balanced readout's, under conditions that a synapse may have. No stage lowers a
weight; or early stages lower it and late ones raise it, with one change of sign; or ‖c‖ is at most a bound, the last
stage's being 1, by as much noise assumed as that takes.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.linalg
import scipy.optimize
from jaxtyping import Array, Float

from cetsim.supervised import Hyperparameters, SupervisedRun
from cetsim.traces import FIRTrace
from cetsim.traces.readout import solve
from experiments.common import captions, checks, crosstalk, plots, tables, vision
from experiments.common.checks import DT, SEGMENT
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.hyperparameters import hyperparameters
from experiments.common.options import MNIST, Gate, Vision

RHO, ETA = 10.0, 1e-4  # those of `CascadingTrace(readout="balanced")`
KNOWN, RAISE, CHANGE, BOUND = "informed", "none lowers", "one change", "norm"
_KEY = ("trace", "order", "noise", "rates_spread", "readout", "seed")


@dataclass(frozen=True)
class Options(Gate, Vision):
    """Balanced readouts under noise in every stage, unequal stages, and limits on their signs and sizes.

    Each stands beside the last stage of the same cascade under the same noise and rates. An informed readout is solved
    for them and for the lags that a segment has, others for equal rates, noise of 1 % and all lags.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits; quick: MNIST; both in minutes."""
    delay: Annotated[float, checks.delays] = 10.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s, below 25.6 s."""
    balanced: Annotated[tuple[int, ...], checks.BALANCED._replace(empty=False)] = (6, 10)
    """Orders of the cascades, 3 to 64."""
    noises: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (0.01, 0.03, 0.1)
    """Noise of every stage, as shares of its signal's root mean square."""
    spreads: Annotated[tuple[float, ...], checks.INSIDE] = (0.1, 0.2, 0.3)
    """Standard deviations of the logarithms of the stages' rates."""
    norms: tuple[float, ...] = (2.0, 4.0, 8.0)
    """Bounds on the length of the readout, that of the last stage being 1."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("network", self.network == "mlp", "mlp, of whose layers the noise is known", self.network)
        checks.each("norms", self.norms, lambda v: v > 1, "above 1, the last stage's")


PRESETS = {
    "demo": Options(steps=400, learning_rates=(1e-3,), seeds=2),
    "quick": Options(steps=936, learning_rates=(1e-3,), **MNIST),
}


def conditions(options: Options) -> list[list[Condition]]:
    """The delay line, and of every order the last stage and all readouts."""
    found = [set_to_delay(options, "delay line", 0, options.delay, error_gate=options.error_gate)]
    for order in options.balanced:
        last, balanced = (
            set_to_delay(options, trace, order, options.delay, error_gate=options.error_gate)
            for trace in ("CET", "balanced")
        )
        found += [last, balanced, replace(balanced, readout=KNOWN)]
        for name, levels in (("noise", options.noises), ("rates_spread", options.spreads)):
            for level in levels:
                worse = [replace(one, **{name: level}) for one in (last, balanced)]
                found += [*worse, replace(worse[1], readout=KNOWN)]
        limits = [RAISE, CHANGE, *(f"{BOUND} {bound:g}" for bound in options.norms)]
        found += [replace(balanced, readout=limit) for limit in limits]
    return [[one] for one in found]


# Stages and their readouts, on the host in float64.


def stages(order: int, late: int, spread: float, seed: int, lags: int) -> np.ndarray:
    """S, weights of unit area of every stage, `[stages, lags]`, of a cascade that peaks at the delay, read before."""
    rate = (order - 1) / (late - 0.5)  # per step
    rates = rate * np.exp(spread * np.random.default_rng([seed, order]).standard_normal(order))
    system = np.zeros((order + 1, order + 1))  # the last row holds the activity
    system[:order, :order] = np.diag(-rates) + np.diag(rates[1:], -1)
    system[0, order] = rates[0]
    step = scipy.linalg.expm(system)
    found, state = np.zeros((order, lags)), step[:order, order]
    for lag in range(1, lags):
        found[:, lag], state = state, step[:order, :order] @ state
    return found


def readout(condition: Condition) -> tuple[np.ndarray, np.ndarray]:
    """c, as large at the delay as the last stage, and the weights of the stages that it reads."""
    late, order = round(condition.delay_s / DT), condition.order
    true = stages(order, late, condition.rates_spread, condition.seed, 20 * late)
    last = np.eye(order)[-1]
    if condition.trace == "CET":
        return last, true
    knows = condition.readout == KNOWN
    assumed = true if knows else stages(order, late, 0.0, 0, 20 * late)
    eta = max(ETA, condition.noise**2) if knows else ETA
    what, _, bound = condition.readout.partition(" ")
    if condition.readout in (RAISE, CHANGE):
        return _signed(assumed, late, condition.readout), true
    often = pairs(late, 20 * late) if condition.readout else np.ones(20 * late)
    c = _balanced(assumed, late, eta, often)
    while what == BOUND and np.linalg.norm(c) > float(bound):
        eta *= 1.05
        c = _balanced(assumed, late, eta, often)
    return c, true


def pairs(late: int, lags: int) -> np.ndarray:
    """How often each lag is met in a segment that starts empty, as a share of how often the delay is."""
    return np.maximum(SEGMENT - np.maximum(np.arange(lags), late), 0) / (SEGMENT - late)


def _balanced(weights: np.ndarray, late: int, eta: float, often: np.ndarray) -> np.ndarray:
    """The balanced readout of any stages, its largest weight at the delay from six stages on."""
    order, met = len(weights), weights * np.sqrt(often)
    noise = np.sqrt(eta * np.sum(met**2) / order) * np.eye(order)
    root = np.linalg.qr(np.concatenate([met.T, noise]), mode="r")
    slope = weights[:, late + 1] - weights[:, late - 1] if order >= 6 else None
    c = solve(root, weights @ often, weights[:, late], slope, RHO)
    return c * weights[-1, late] / (c @ weights[:, late])


def _signed(weights: np.ndarray, late: int, limit: str) -> np.ndarray:
    """The best readout of which no stage lowers a weight, or the early ones lower it and the others raise it."""
    order, often = len(weights), pairs(late, weights.shape[1])
    met, off = weights * np.sqrt(often), weights @ often - weights[:, late]
    noise = np.sqrt(ETA * np.sum(met**2) / order) * np.eye(order)
    scale = weights[:, late].max()
    rows = np.concatenate([np.delete(met, late, axis=1).T, np.sqrt(RHO) * off[None], noise]) / scale
    found = []
    for lowering in range(order if limit == CHANGE else 1):
        signs = np.where(np.arange(order) < lowering, -1.0, 1.0)
        # The condition w(D) = 1 as a row that weighs far more than all others.
        system = np.concatenate([rows, 1e4 * weights[:, late][None] / scale]) * signs
        aim = np.append(np.zeros(len(rows)), 1e4)
        c, left = scipy.optimize.nnls(system, aim)
        found.append((left, signs * c / scale))
    c = min(found, key=lambda pair: pair[0])[1]
    return c * weights[-1, late] / (c @ weights[:, late])


# Runs whose stages are noisy.


class NoisyHyperparameters(Hyperparameters):
    """What distinguishes a run, with its noise.

    **Fields:** those of `Hyperparameters`; `varying`: σ² Σ_k c_k² Σ_j S_kj². `constant`: σ² Σ_k c_k² (Σ_j S_kj)².
    """

    varying: Float[Array, ""]
    constant: Float[Array, ""]

    def __init__(self, hyper: Hyperparameters, varying, constant):
        for name, value in vars(hyper).items():
            setattr(self, name, value)
        self.varying, self.constant = jnp.asarray(varying, float), jnp.asarray(constant, float)


class NoisyRun(SupervisedRun):
    """A run of an MLP whose every update has the noise of the stages in it."""

    def _gradient(self, model, state, stream, x, labels, events=None):
        result, grads, stream = super()._gradient(model, state, stream, x, labels, events)
        hyper, late = state.hyper, state.hyper.delay.arrived(x.shape[0])
        key = jax.random.fold_in(jax.random.fold_in(state.order, 2**31 - 2), state.step)
        for name, factors in crosstalk.factors_of(model, None, x, labels, self.settings.form).items():
            seen, gain, signal = (factor[:, 0] for factor in factors)
            gated = gain * (jnp.sum(signal**2, axis=1, keepdims=True) > hyper.error_gate)
            power = jnp.sum(signal**2 * late[:, None], axis=0)[:, None]
            seen = jnp.concatenate([seen, jnp.ones((len(seen), 1), seen.dtype)], axis=1)  # the bias's activity
            mean, square = gated.T @ seen / len(seen), gated.T**2 @ seen**2 / len(seen)
            variance = power * (hyper.varying * jnp.maximum(square - mean**2, 0.0) + hyper.constant * mean**2)
            index = int(name.rpartition(".")[2])
            noise = jnp.sqrt(variance) * jax.random.normal(jax.random.fold_in(key, index), variance.shape)
            of_layer = lambda tree, i=index: (tree.layers[i].weight, tree.layers[i].bias)  # noqa: E731
            weight, bias = of_layer(grads)
            grads = eqx.tree_at(of_layer, grads, (weight + noise[:, :-1], bias + noise[:, -1]))
        return result, grads, stream


def noisy(condition: Condition) -> NoisyHyperparameters:
    """What distinguishes the condition's training run, as arrays."""
    hyper = hyperparameters(condition)
    if condition.trace not in ("CET", "balanced"):
        return NoisyHyperparameters(hyper, 0.0, 0.0)
    c, weights = readout(condition)
    trace = FIRTrace(jnp.asarray((c @ weights)[:SEGMENT]), DT)
    hyper = eqx.tree_at(lambda hyper: hyper.trace, hyper, trace)
    by_stage = (condition.noise * c) ** 2
    return NoisyHyperparameters(hyper, by_stage @ np.sum(weights**2, axis=1), by_stage @ weights.sum(axis=1) ** 2)


class Course(vision.Course):
    """Trains as its parent does, with the noise and the rates of a condition."""

    hyperparameters = staticmethod(noisy)

    def supervised(self, **static) -> SupervisedRun:
        """The run of conditions that have these fields."""
        run = super().supervised(**static)
        return NoisyRun(run.make_model, run.x, run.labels, run.settings)


run = partial(vision.run, conditions, course=Course)


# What came of it.


def name_of(trace: str, order: int, known: str = "") -> str:
    """A readout in a reader's words."""
    return f"last of {order}" if trace == "CET" else f"balanced {order}" + (", informed" if known else "")


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figure."""
    ends = tables.latest(tables.like_last(tables.finals(rows), tables.SUBJECT), _KEY)
    ends = ends.fillna({"readout": "", "noise": 0.0, "rates_spread": 0.0})
    late = ends[ends["trace"] != "delay line"]
    limited = (late["readout"] != "") & (late["readout"] != KNOWN)
    title = captions.settings(ends)
    for name, words in (("noise", "noise of every stage"), ("rates_spread", "spread of the rates")):
        frame = _against(late[~limited], name)
        levels = sorted(set(frame[name]))
        body = [
            (line, [tables.cell(runs.loc[runs[name] == level, "value"]) for level in levels])
            for line, runs in frame.groupby("line", sort=False)
        ]
        print(tables.text(f"Test accuracy in %, {title}", [words, *(f"{level:g}" for level in levels)], body))
    body = []
    for (order, limit), runs in late[(late["noise"] == 0) & (late["rates_spread"] == 0)].groupby(["order", "readout"]):
        for trace, same in runs.groupby("trace"):
            one = same.iloc[0]
            c, _ = readout(Condition(trace, int(order), float(one["delay_s"]), readout=limit))
            cells = [
                tables.cell(same["value"]),
                f"{np.linalg.norm(c):.3g}",
                str(int(np.sum(np.diff(np.sign(c[c != 0])) != 0))),
            ]
            body.append((f"{name_of(trace, int(order))}{f', {limit}' if limit else ''}", cells))
    body.append(("delay line", [tables.cell(ends.loc[ends["trace"] == "delay line", "value"]), "", ""]))
    print(tables.text("Readouts without noise", ["readout", "accuracy", "‖c‖", "sign changes"], body))
    return draw(late[~limited], ends, options.folder)


def _against(late: pd.DataFrame, name: str) -> pd.DataFrame:
    """Runs in which only `name` is not as it should be, each `line` from where nothing is wrong."""
    other = {"noise": "rates_spread", "rates_spread": "noise"}[name]
    frame = late[late[other] == 0].sort_values(["order", "trace", "readout"], kind="stable")
    keys = frame["trace"], frame["order"], frame["readout"]
    words = [name_of(t, int(n), known) for t, n, known in zip(*keys, strict=True)]
    return frame.assign(line=words)


_COLOURS = {"last": "#0072B2", "balanced": "#CC3311"}


def draw(late: pd.DataFrame, ends: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy against noise and against the spread of the rates."""
    line = 100 * ends.loc[ends["trace"] == "delay line", "value"].mean()
    with plots.figure(1, 2, width=plots.PAGE_WIDTH, height=3.0, sharey=True) as (figure, axes):
        panels = {"noise": "noise of every stage (%)", "rates_spread": "spread of the stages' rates (%)"}
        for axis, (name, words) in zip(axes[0], panels.items(), strict=True):
            for label, runs in _against(late, name).groupby("line", sort=False):
                levels = 100 * runs.groupby(name)["value"].agg(["mean", "min", "max"])
                order, known = int(runs["order"].iloc[0]), "informed" in label
                style = dict(color=_COLOURS[label.split()[0]], linestyle=(0, (3, 1)) if known else "-")
                marker = "o" if order == max(late["order"]) else "s"
                at = 100 * levels.index.to_numpy(float)
                axis.plot(at, levels["mean"], marker=marker, markersize=4, label=label, **style)
                axis.fill_between(at, levels["min"], levels["max"], color=style["color"], alpha=0.12, linewidth=0)
            axis.axhline(line, color="black", linestyle=(0, (2, 1.5)), linewidth=0.8, label="ideal delay line")
            axis.set_xlabel(words)
        axes[0, 0].set_ylabel("test accuracy (%)")
        note = f"{captions.settings(ends)}; signals {ends['delay_s'].max():g} s late. "
        note += "Last: the last stage alone, a CET; balanced: all stages read with signs; "
        note += "informed: solved for the noise or the rates that there are."
        note += captions.seeds(ends, "Line: mean over seeds; band: their range.")
        return plots.save(figure, folder, "robustness", note + captions.left_out(ends), axes[0, 0], 4)
