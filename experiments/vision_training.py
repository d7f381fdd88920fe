"""Trains conditions of experiments on images: one program for all that differ in numbers alone.

Traces of every kind are tabulated to their weights, over one stretch or over what a stream remembers, so that trace,
delay, error gate, learning rate and seed are all data: nothing is compiled again when they change, and conditions can
be vmapped.
"""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim import nn, salience
from cetsim.delays import FixedDelay, LayerwiseDelay, RandomDelay
from cetsim.sweep.devices import over_lanes, place
from cetsim.sweep.runner import Program
from cetsim.traces import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace
from cetsim.train import Hyperparameters, SupervisedRun
from experiments.options.common import DT, STRETCH
from experiments.records import number
from experiments.vision_conditions import WEIGHT_DECAY, Condition, RetrogradeCondition, Stage

CURVE_POINTS = 10  # of the training loss
TEST_POINTS = 5  # of accuracy and alignment along the way
ALIGNMENT_STRETCHES = {"mlp": 8, "cnn": 2}
TAIL = 1e-3  # area of the kernel that a stream may forget
COMMON_DELAY = 1200  # steps per layer up to which retrograde runs share one program
THRESHOLD_ROOM = 0.1  # of a stretch, for images above a fixed threshold
EVALUATED_AT_ONCE = 1000  # images, by networks that convolve: more only take memory
UNROLLED = 5  # steps of such networks in a program, on CPU


def make_trace(condition: Condition):
    """The condition's trace; see `Condition` for where it is set."""
    match condition.trace:
        case "ET":
            return ExponentialTrace(condition.peak_s, DT)
        case "CET":
            return CascadingTrace(condition.order, condition.peak_s, DT)
        case "double exponential":
            return DoubleExponentialTrace(condition.peak_s, condition.rise_s, condition.ratio, DT)
        case _:  # backprop is a delay line without delay
            return DelayLine(condition.peak_s, DT)


def make_delay(condition: Condition):
    """When the condition's credit comes; draws of a run differ with its seed."""
    if not condition.distribution:
        return FixedDelay(condition.delay_s, DT, max_delay=condition.delay_s if condition.mode == "carry" else None)
    key, longest = jax.random.key(condition.seed + 7919), None
    if condition.mode == "carry":  # room for uniform delays, and for gamma distributed ones up to 7 sd above the mean
        above = condition.spread_s * (0.5 if condition.distribution == "uniform" else 2.0)
        longest = DT * math.ceil((condition.delay_s + above) / DT - 1e-3)
    return RandomDelay(condition.delay_s, condition.spread_s, DT, condition.distribution, key, max_delay=longest)


def hyperparameters(condition: Condition) -> Hyperparameters:
    """What distinguishes the condition's training run, as arrays."""
    if isinstance(condition, RetrogradeCondition):
        return _retrograde(condition)
    trace = make_trace(condition)
    return Hyperparameters(
        learning_rate=jnp.asarray(condition.learning_rate),
        trace=trace.tabulate(STRETCH if condition.mode == "reset" else trace.window(TAIL)),
        delay=make_delay(condition),
        error_gate=jnp.asarray(condition.error_gate),
        weight_decay=jnp.asarray(WEIGHT_DECAY),
    )


def _retrograde(condition: RetrogradeCondition) -> Hyperparameters:
    """Traces and delays of each layer, and the gate that picks the images learned from."""
    layers, each = range(condition.layers), condition.delay_s
    peaks = [layer * condition.peak_s for layer in layers]
    traces = [make_trace(replace(condition, peak_s=peak)) if peak else DelayLine(0.0, DT) for peak in peaks]
    if condition.mode == "reset":  # every lag that a stretch can ask for, of the longest delays usually compared
        lags = condition.update_every + max(layers) * max(round(each / DT), COMMON_DELAY)
        traces = [trace.tabulate(lags) for trace in traces]
    else:
        traces = [trace.tabulate(trace.window(TAIL)) for trace in traces]
    return Hyperparameters(
        learning_rate=jnp.asarray(condition.learning_rate),
        trace=tuple(traces),
        delay=LayerwiseDelay.stacked(each, condition.layers, DT, each, keep_late=condition.mode == "reset"),
        error_gate=jnp.asarray(condition.error_gate),
        weight_decay=jnp.asarray(WEIGHT_DECAY),
        salience=_gate(condition),
    )


def _gate(condition: RetrogradeCondition) -> salience.AbstractGate:
    fraction, placement = condition.fraction, condition.placement
    match condition.gate:
        case "quantile":
            return salience.QuantileGate(fraction, placement)
        case "random":
            return salience.RandomGate(fraction, placement)
        case "running":
            return salience.RunningGate(fraction, placement=placement)
        case "threshold":
            return salience.ThresholdGate(condition.threshold, THRESHOLD_ROOM, placement)
        case _:
            return salience.NoGate(placement)


def program_of(stage: Stage, condition: Condition) -> tuple:
    """What conditions that are trained together have in common."""
    hyper = hyperparameters(condition)
    return stage.settings(condition), jax.tree.structure(hyper), tuple(map(jnp.shape, jax.tree.leaves(hyper)))


def make_model(stage: Stage, condition: Condition):
    """The stage's network as a function of a key."""
    options, image = stage.options, stage.dataset.train_x.shape[1:]
    streams = condition.mode == "carry" or isinstance(condition, RetrogradeCondition)
    statistics = "running" if streams else "stretch"
    match options.network:
        case "mlp":
            return lambda key: nn.mlp(stage.sizes, key=key)
        case "cnn":
            return lambda key: nn.cnn(image, classes=stage.classes, statistics=statistics, key=key)
        case _:
            return lambda key: nn.resnet20(stage.classes, in_channels=image[0], statistics=statistics, key=key)


class Trainer(Program):
    """Trains `width` conditions of one program at once.

    **Arguments:** `stage`: what is trained on and measured; of runs that choose a learning rate only the end is
    measured, and onlookers need a width of 1. `like`: a condition of the program. `width`: its lanes.

    With a width of 1 nothing is vmapped: large matrix products gain nothing from it.
    """

    def __init__(self, stage: Stage, like: Condition, width: int):
        dataset, self.settings, self.width = stage.dataset, stage.settings(like), width
        self.measured_on, self.mapped = stage.measured_on, width > 1
        self.convolves = stage.options.network != "mlp"
        shape = (lambda x: x) if self.convolves else (lambda x: x.reshape(len(x), -1))
        steps, points = self.settings.steps, CURVE_POINTS if stage.measured_on == "test" else TEST_POINTS
        self.chunk = max(1, steps // points)
        self.ends = [*range(self.chunk, steps, self.chunk), steps]
        train_x = shape(dataset.train_x)
        self.run = SupervisedRun(make_model(stage, like), train_x, dataset.train_y, self.settings)
        self.test = jnp.asarray(shape(dataset.test_x)), jnp.asarray(dataset.test_y)
        stretch = stage.options.stretch
        stretches = min(ALIGNMENT_STRETCHES["cnn" if self.convolves else "mlp"], len(train_x) // stretch)
        rate = like.learning_rate  # that of a trace which trains nothing is of no account
        self.onlookers = [(c, hyperparameters(replace(c, learning_rate=rate))) for c in stage.onlookers]
        self.probe = [
            (jnp.asarray(train_x[rows]), jnp.asarray(dataset.train_y[rows]))
            for rows in (slice(i * stretch, (i + 1) * stretch) for i in range(stretches))
        ]

    def begin(self, lanes: list[Condition]):
        """The runs before their first update."""
        return _init(self.run, *self._inputs(lanes), self.mapped)

    def advance(self, state, lanes: list[Condition], start: int, end: int):
        """The runs after the updates from `start` to `end`, and what was measured of each."""
        rows: list[list[dict]] = [[] for _ in lanes]
        if start == 0:
            self._align(rows, state, 0)
        state, loss = self._advance(state, end - start)
        self._add(rows, "train_loss", end, loss)
        if self._is_measured(end):
            self._measure(rows, state, end)
            self._align(rows, state, end)
        if end == self.settings.steps:
            for name in ("diverged", *(("skipped", "missed") if state.attention is not None else ())):
                self._add(rows, name, end, getattr(state, name))
        return state, rows

    def restore(self, tree, notes):
        """The state on the devices it was on."""
        return place(tree) if self.mapped else tree

    def _inputs(self, conditions):
        hyper = [hyperparameters(condition) for condition in conditions]
        keys = [jax.random.key(condition.seed) for condition in conditions]
        if not self.mapped:
            return hyper[0], keys[0]
        return place((jax.tree.map(lambda *leaves: jnp.stack(leaves), *hyper), jnp.stack(keys)))

    def _advance(self, state, steps: int):
        """The state after `steps` updates and their mean loss."""
        if not (self.convolves and jax.default_backend() == "cpu"):
            state, losses = _advance(self.run, state, steps, self.mapped, False)
            return state, jnp.mean(losses, axis=-1)
        losses = []
        for start in range(0, steps, UNROLLED):
            state, some = _advance(self.run, state, min(UNROLLED, steps - start), self.mapped, True)
            losses.append(some)
        return state, jnp.mean(jnp.concatenate(losses, axis=-1), axis=-1)

    def _is_measured(self, step: int) -> bool:
        along_the_way = (step // self.chunk) % (CURVE_POINTS // TEST_POINTS) == 0
        return step == self.settings.steps or (along_the_way and self.measured_on == "test")

    def _measure(self, rows, state, step):
        x, y = self.test
        at_once = EVALUATED_AT_ONCE if self.convolves else len(x)
        parts = [slice(start, start + at_once) for start in range(0, len(x), at_once)]
        measured = [_evaluate(self.run, state, x[part], y[part], self.mapped) for part in parts]
        share = np.asarray([len(y[part]) for part in parts]) / len(y)
        for name in ("accuracy", "loss", *(("top5_accuracy",) if "top5_accuracy" in measured[0] else ())):
            mean = sum(np.asarray(m[name]) * weight for m, weight in zip(measured, share, strict=True))
            self._add(rows, f"{self.measured_on}_{name}", step, mean)

    def _align(self, rows, state, step):
        if self.measured_on != "test":
            return
        self._add_cosines(rows, state, step)
        for other, hyper in self.onlookers:
            seen = eqx.tree_at(lambda state: state.hyper, state, hyper)
            own = {name: getattr(other, name) for name in ("trace", "order", "delay_s", "peak_s", "error_gate")}
            self._add_cosines(rows, seen, step, **own)

    def _add_cosines(self, rows, state, step, **more):
        cosines = [_align(self.run, state, x, y, self.mapped) for x, y in self.probe]
        for layer in cosines[0] if cosines else ():
            mean = np.mean([np.asarray(stretch[layer]) for stretch in cosines], axis=0)
            self._add(rows, "alignment", step, mean, layer=layer, **more)

    def _add(self, rows, metric, step, values, **more):
        for own, value in zip(rows, np.atleast_1d(values), strict=True):
            own.append({"metric": metric, "step": step, "value": number(value)} | more)


# The run is an argument, not a closure: its images would be constants of the program otherwise.
@eqx.filter_jit
def _init(run, hyper, key, mapped):
    return _lift(run.init, mapped)(hyper, key)


@eqx.filter_jit
def _advance(run, state, steps, mapped, unroll):
    return _lift(lambda state: run.advance(state, steps, unroll), mapped)(state)


@eqx.filter_jit
def _evaluate(run, state, x, y, mapped):
    return _lift(lambda state: run.evaluate(state, x, y), mapped)(state)


@eqx.filter_jit
def _align(run, state, x, y, mapped):
    return _lift(lambda state: run.alignment(state, x, y), mapped)(state)


def _lift(function, mapped: bool):
    return over_lanes(function) if mapped else function
