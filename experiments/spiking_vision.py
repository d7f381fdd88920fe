"""Test accuracy of a spiking network against the delay of credit, images seen as rates or as latencies of spikes.

An image is seen for 0.2 s, 20 steps of 10 ms, one after the other without a pause: neurons and traces go on from image
to image. One hidden layer of leaky integrate-and-fire neurons, and a leaky readout whose cross-entropy with the label
counts in the second half of an image. Everything that learns is late by the delay.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay, attach, spiking, sweep
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from experiments.common import captions, checks, plots, tables, vision
from experiments.common.checks import SEGMENT
from experiments.common.conditions import Condition
from experiments.common.hyperparameters import WEIGHT_DECAY, readout
from experiments.common.options import Orders, Vision

DT, SHOWN = 0.01, 20  # seconds a step, steps an image
COUNTED = SHOWN // 2  # steps at the end of an image in which errors count and answers are read
MEMBRANE, READOUT, THRESHOLD = 0.05, 0.05, 0.1  # seconds, seconds, and in units of the current
MOST = 0.5  # probability of a spike at a step, of the brightest pixel under the rate code
TESTED = 50, 20  # images side by side, and one after the other, in an evaluation
CODES = ("rate", "latency")


@dataclass(frozen=True)
class Options(Orders, Vision):
    """Test accuracy of a spiking network against the delay of credit.

    Compared are the exponential trace (ET), cascading traces (CET), those with a balanced readout, the ideal delay
    line, e-prop (an ET of the readout's own time constant, which knows of no delay), and surrogate-gradient backprop
    through time without delay.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in two minutes; quick: MNIST."""
    codes: Annotated[tuple[Literal["rate", "latency"], ...], checks.WORDS] = CODES
    """How images become spikes."""
    delays: Annotated[tuple[float, ...], checks.delays] = (0.2, 2.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s."""
    hidden: tuple[int, ...] = (256,)
    """Number of hidden neurons, one layer."""
    learning_rates: tuple[float, ...] = (3e-2,)
    """Peak learning rates to choose from, per condition, on held-out training images (one: no choice)."""
    batch_conditions: int = 1
    """Conditions trained at once."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("hidden", len(self.hidden) == 1, "one number of neurons", self.hidden)
        checks.require("network", self.network == "mlp", "mlp here", self.network)
        checks.require("form", self.form == "activation", "activation here", self.form)


PRESETS = {
    "demo": Options(hidden=(64,), codes=("latency",), delays=(1.0,), orders=(6,), steps=100, seeds=1),
    "quick": Options(
        dataset="mnist", delays=(0.2, 2.0, 10.0), orders=(10,), balanced=(10,), steps=468, seeds=3,
        learning_rates=(1e-2,),
    ),
}  # fmt: skip


class Network(eqx.Module):
    """A hidden layer of neurons and a leaky readout."""

    hidden: spiking.SpikingLayer
    readout: spiking.SpikingLayer

    def __init__(self, sizes: tuple[int, int, int], errors: str, key):
        one, two = jax.random.split(key)
        neuron = spiking.LIF(MEMBRANE, THRESHOLD, DT, surrogate=spiking.FastSigmoid(1 / THRESHOLD))
        self.hidden = spiking.SpikingLayer(*sizes[:2], neuron, errors=errors, key=one)
        integrator = spiking.LeakyIntegrator(READOUT, DT)
        self.readout = spiking.SpikingLayer(*sizes[1:], integrator, errors=errors, key=two)

    def __call__(self, x):
        """Logits of one step."""
        return self.readout(self.hidden(x))


class SpikingRun(SupervisedRun):
    """A run whose images are each seen for `SHOWN` steps, as spikes under a `code`."""

    code: str = eqx.field(static=True)

    def __init__(self, make_model, x, labels, settings: Settings, code: str):
        super().__init__(make_model, x, labels, settings)
        self.code = code

    def spikes(self, x, key):
        """Images `[images, pixels]` as spikes `[images * SHOWN, pixels]`."""
        if self.code == "latency":
            seen = spiking.latency_code(x, SHOWN)
        else:
            seen = spiking.rate_code(x, SHOWN, most=MOST, key=key)
        return jnp.swapaxes(seen, 0, 1).reshape(-1, x.shape[-1]).astype(x.dtype)

    def logits(self, model, x, key):
        """Logits in the counted steps of each image of a sequence, `[images, COUNTED, classes]`."""
        logits = jax.vmap(model, axis_name="time")(self.spikes(x, key))
        return logits.reshape(len(x), SHOWN, -1)[:, -COUNTED:]

    def _gradient(self, model, state, stream, x, labels, events=None):
        key = jax.random.fold_in(jax.random.fold_in(state.order, 2**30), state.step)

        def loss(model):
            traced = attach(model, state.hyper.trace, state.hyper.delay, error_gate=state.hyper.error_gate)
            logits = self.logits(traced, x, key)
            every = jnp.broadcast_to(labels[:, None], logits.shape[:2])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, every)), state.buffers

        return *eqx.filter_value_and_grad(loss, has_aux=True)(model), None

    def evaluate(self, state, x, labels):
        """`accuracy` and `loss` of images in sequences, by the mean logits of each image's counted steps."""
        model, at_once = eqx.combine(state.params, self._template()), TESTED[0] * TESTED[1]
        missing = -len(x) % at_once
        groups = jnp.pad(x, ((0, missing), (0, 0))).reshape(-1, *TESTED, x.shape[-1])
        keys = jax.random.split(jax.random.key(0), groups.shape[:2])
        answers = lambda group: jax.vmap(partial(self.logits, model))(*group).mean(axis=2)  # noqa: E731
        logits = jax.lax.map(answers, (groups, keys)).reshape(len(x) + missing, -1)[: len(x)]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels), "loss": jnp.mean(losses)}


class Course(vision.Course):
    """Trains spiking networks."""

    static = ("code", "errors")
    segments = ()  # alignment is not measured

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        low, high = self._images[0].min(), self._images[0].max()
        self._images = [np.clip((x - low) / (high - low), 0, 1) for x in self._images]
        self.network = f"LIF {'-'.join(map(str, self.sizes))}"

    def supervised(self, code: str, errors: str) -> SpikingRun:
        """The run of conditions that have these fields."""
        settings = Settings(self.steps, self.options.unit, warmup=self.options.warmup)
        return SpikingRun(lambda key: Network(self.sizes, errors, key), self.x, self.labels, settings, code)

    def training(self, **static) -> sweep.Training:
        """How conditions of one code are trained, and what is measured of them."""
        run = self.supervised(**static)
        ends, at = self.points(run.settings.steps)
        measured = self.evaluations(run, at)
        return sweep.Training(run.init, eqx.Partial(_advance, run), measured, run.settings.steps, ends, hyperparameters)


def _advance(run, state, steps):
    state, losses = run.advance(state, steps)
    return state, {"train_loss": losses}


def hyperparameters(condition: Condition) -> Hyperparameters:
    """What distinguishes the condition's run, as arrays."""
    match condition.trace:
        case "ET":
            trace = ExponentialTrace(condition.peak_s, DT)
        case "e-prop":
            trace = ExponentialTrace(READOUT, DT, read="after")
        case "CET":
            trace = CascadingTrace(condition.order, condition.peak_s, DT)
        case "balanced" | "sharp" | "CET - ET":
            trace = readout(condition.trace, condition.order, condition.peak_s, DT)
        case _:  # backprop is a delay line without delay
            trace = DelayLine(condition.peak_s, DT)
    rate, gate, decay = map(jnp.asarray, (condition.learning_rate, condition.error_gate, WEIGHT_DECAY))
    return Hyperparameters(rate, trace.tabulate(SEGMENT * SHOWN), FixedDelay(condition.delay_s, DT), gate, decay)


def conditions(options: Options) -> list[list[Condition]]:
    """Backprop once under each code, and every trace at every delay."""
    found = []
    for code in options.codes:
        found.append([Condition("backprop", code=code)])
        for delay in options.delays:
            found += [
                [Condition(trace, order, delay, peak_s=delay, code=code)] for trace, order in options.delayed_traces
            ]
            found.append([Condition("e-prop", 1, delay, code=code, errors="instant")])
    return found


run = partial(vision.run, conditions, course=Course)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints a table for each code and writes the figure of accuracy against delay."""
    ends = tables.latest(tables.finals(rows), ("code", "trace", "order", "delay_s", "seed"))
    delays = sorted(set(ends.loc[ends["trace"] != "backprop", "delay_s"]))
    panels = {code: tables.everywhere(own, "delay_s", delays) for code, own in ends.groupby("code", sort=False)}
    for code, frame in panels.items():
        title = f"Test accuracy in %, {code} code, {captions.settings(frame, gated=False)}"
        print(tables.table(title, frame, "delay_s", "delay (s)"))
    with plots.figure(len(panels), height=1.0 + 2.2 * len(panels), sharex=True, sharey=True) as (figure, axes):
        for axis, (code, frame) in zip(axes[:, 0], panels.items(), strict=True):
            plots.means(axis, frame, "delay_s", scale=100)
            axis.set_ylabel("test accuracy (%)")
            axis.set_title(f"{code} code", loc="left")
        axes[-1, 0].set_xlabel("delay of the learning signal (s)")
        frame = pd.concat(panels.values())
        note = f"{captions.settings(frame, gated=False)}.{captions.seeds(frame)}{captions.left_out(frame)}"
        return plots.save(figure, options.folder, "spiking-vision", note, axes[0, 0])
