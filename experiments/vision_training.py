"""Trains conditions of behavioral-vision: one program for each network, dataset and number of steps.

Traces of every kind are tabulated to their weights over one stretch, so that trace, delay, error gate,
learning rate and seed are all data: nothing is compiled again when they change, and conditions can be
vmapped.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim.data import Dataset
from cetsim.delays import FixedDelay
from cetsim.nn import mlp
from cetsim.traces import CascadingTrace, DelayLine, ExponentialTrace
from cetsim.train import Hyperparameters, Settings, SupervisedRun
from experiments.options import DT, STRETCH
from experiments.records import number
from experiments.vision_conditions import WEIGHT_DECAY, Condition

CURVE_POINTS = 20  # of the training loss
TEST_POINTS = 5  # of accuracy along the way
ALIGNMENT_STRETCHES = 8


def make_trace(condition: Condition):
    """The condition's trace, its largest weight at the delay (for ET: its time constant the delay)."""
    match condition.trace:
        case "ET":
            return ExponentialTrace(condition.delay_s, DT)
        case "CET":
            return CascadingTrace(condition.order, condition.delay_s, DT)
        case _:  # backprop is a delay line without delay
            return DelayLine(condition.delay_s, DT)


def hyperparameters(condition: Condition) -> Hyperparameters:
    """What distinguishes the condition's training run, as arrays."""
    return Hyperparameters(
        learning_rate=jnp.asarray(condition.learning_rate),
        trace=make_trace(condition).tabulate(STRETCH),
        delay=FixedDelay(condition.delay_s, DT),
        error_gate=jnp.asarray(condition.error_gate),
        weight_decay=jnp.asarray(WEIGHT_DECAY),
    )


class Trainer:
    """Trains groups of up to `width` conditions at once on one dataset and returns the rows of each.

    **Arguments:** `sizes`: of the network's layers. `width`: conditions in a group. `measured_on`: "test", or
    "validation" for the runs that choose a learning rate; of those only the end is measured.

    A group that is not full repeats its last condition, since a program is compiled for one width. With a
    width of 1 nothing is vmapped: large matrix products gain nothing from it.
    """

    def __init__(self, dataset: Dataset, sizes: tuple[int, ...], settings: Settings, width: int, measured_on: str):
        flat = [x.reshape(len(x), -1) for x in (dataset.train_x, dataset.test_x)]
        self.test = jnp.asarray(flat[1]), jnp.asarray(dataset.test_y)
        self.run = SupervisedRun(lambda key: mlp(sizes, key=key), flat[0], dataset.train_y, settings)
        self.settings, self.width, self.measured_on = settings, width, measured_on
        probe = ALIGNMENT_STRETCHES * STRETCH
        self.probe = _stretches(flat[0][:probe]), _stretches(dataset.train_y[:probe])
        self.mapped = width > 1

    def train(self, conditions: list[Condition], on_progress) -> list[tuple[list[dict], bool, float]]:
        """Trains the conditions from scratch.

        **Arguments:** `conditions`: at most `width`. `on_progress`: called with the steps done,
        summed over conditions.

        **Returns:** for each condition its rows, whether it diverged, and its share of the seconds this took.
        """
        began = time.perf_counter()
        padded = conditions + [conditions[-1]] * (self.width - len(conditions))
        state = _init(self.run, *self._inputs(padded), self.mapped)
        rows: list[list[dict]] = [[] for _ in conditions]
        self._align(rows, state, 0)
        chunk = max(1, self.settings.steps // (CURVE_POINTS if self.measured_on == "test" else TEST_POINTS))
        for start in range(0, self.settings.steps, chunk):
            length = min(chunk, self.settings.steps - start)
            state, losses = _advance(self.run, state, length, self.mapped)
            step = start + length
            self._add(rows, "train_loss", step, jnp.mean(losses, axis=-1))
            if self._is_measured(step, chunk):
                self._measure(rows, state, step)
            on_progress(length * len(conditions))
        self._align(rows, state, self.settings.steps)
        self._add(rows, "diverged", self.settings.steps, state.diverged)
        diverged = np.atleast_1d(state.diverged)
        seconds = (time.perf_counter() - began) / len(conditions)
        return [(own, bool(diverged[i]), seconds) for i, own in enumerate(rows)]

    def _inputs(self, conditions):
        hyper = [hyperparameters(condition) for condition in conditions]
        keys = [jax.random.key(condition.seed) for condition in conditions]
        if not self.mapped:
            return hyper[0], keys[0]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *hyper), jnp.stack(keys)

    def _is_measured(self, step: int, chunk: int) -> bool:
        along_the_way = (step // chunk) % (CURVE_POINTS // TEST_POINTS) == 0
        return step == self.settings.steps or (along_the_way and self.measured_on == "test")

    def _measure(self, rows, state, step):
        measured = _evaluate(self.run, state, *self.test, self.mapped)
        for name in ("accuracy", "loss"):
            self._add(rows, f"{self.measured_on}_{name}", step, measured[name])

    def _align(self, rows, state, step):
        for layer, cosine in _align(self.run, state, *self.probe, self.mapped).items():
            self._add(rows, "alignment", step, cosine, layer=layer)

    def _add(self, rows, metric, step, values, **more):
        for own, value in zip(rows, np.atleast_1d(values), strict=False):  # values may include padding
            own.append({"metric": metric, "step": step, "value": number(value)} | more)


def _stretches(array):
    count = len(array) // STRETCH
    return jnp.asarray(array[: count * STRETCH]).reshape(count, STRETCH, *array.shape[1:])


# The run is an argument, not a closure: its images would be constants of the program otherwise.
@eqx.filter_jit
def _init(run, hyper, key, mapped):
    return _lift(lambda hyper, key: run.init(hyper, key), mapped)(hyper, key)


@eqx.filter_jit
def _advance(run, state, steps, mapped):
    return _lift(lambda state: run.advance(state, steps), mapped)(state)


@eqx.filter_jit
def _evaluate(run, state, x, y, mapped):
    return _lift(lambda state: run.evaluate(state, x, y), mapped)(state)


@eqx.filter_jit
def _align(run, state, x, y, mapped):
    """Alignment, mean over stretches."""

    def mean(state):
        cosines = jax.vmap(lambda x, y: run.alignment(state, x, y))(x, y)
        return {layer: jnp.mean(cosine) for layer, cosine in cosines.items()}

    return _lift(mean, mapped)(state)


def _lift(function, mapped: bool):
    return eqx.filter_vmap(function) if mapped else function
