"""Training on images: one program for all conditions that differ in numbers alone.

Traces of every kind are tabulated to their weights, over one stretch or over what a stream remembers, so that trace,
delay, error gate, learning rate and seed are all data: nothing is compiled again when they change, and conditions are
trained side by side. Runs of one seed begin from the same weights and see the images in the same order.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cetsim import datasets, nn, sweep
from cetsim.datasets import InputOrder
from cetsim.supervised import Settings, SupervisedRun, TrainState
from experiments.common import tables
from experiments.common.checks import DT, STRETCH, UserError
from experiments.common.conditions import Condition, at_rates, changed
from experiments.common.hyperparameters import WEIGHT_DECAY, hyperparameters
from experiments.common.options import Vision
from experiments.common.selection import complete, users_errors

STATIC = ("mode", "update_every", "run_length", "interpolation", "layers", "derivative")
CURVE_POINTS = 10  # of the training loss
TEST_POINTS = 5  # of accuracy and alignment along the way
ALIGNMENT_STRETCHES = {"mlp": 8, "cnn": 2, "resnet20": 2}
EVALUATED_AT_ONCE = 1000  # images, by networks that convolve: more only take memory
UNROLLED = 5  # steps of such networks in a program, on CPU


# What all runs of one length on one dataset share.


@dataclass(frozen=True)
class Setting:
    """All that runs depend on besides their conditions; what is not as by default names them.

    **Fields:**

    - `dataset`, `network`, `measured_on`: names.
    - `images`: numbers of training and test images, `labels_sha256` of both in their order.
    - `form`: of the rule. `stretch`: images. `warmup`: share of a run.
    - `held_out`: fraction and seed of the split, where runs are measured on held-out images.
    - `probes`: fields of conditions that look on; they cost nothing but time, and name runs since their rows do.
    """

    dataset: str
    network: str
    measured_on: str
    images: tuple[int, int]
    labels_sha256: str
    form: str = "activation"
    stretch: int = STRETCH
    warmup: float = 0.1
    held_out: tuple = ()
    probes: tuple = ()
    weight_decay: float = WEIGHT_DECAY
    dt: float = DT


class Course:
    """Runs of one length on one dataset, and what is measured of them.

    **Arguments:**

    - `options`: of the experiment.
    - `dataset`: with what is measured on as its test set.
    - `measured_on`: `"validation"`, where only the end is measured, or `"test"`.
    - `probes`: conditions that train nothing: their alignment is measured at the weights of every run.
    """

    hyperparameters = staticmethod(hyperparameters)  # of a condition, as arrays

    def __init__(self, options: Vision, dataset: datasets.Dataset, measured_on: str, probes: Sequence[Condition] = ()):
        self.options, self.measured_on, self.probes = options, measured_on, tuple(probes)
        self.steps = options.steps if measured_on == "test" else options.selection_steps
        self.labels, self.test_labels = dataset.train_y, dataset.test_y
        self.image, self.classes = dataset.train_x.shape[1:], int(max(dataset.train_y.max(), dataset.test_y.max())) + 1
        flat = (lambda x: x.reshape(len(x), -1)) if options.network == "mlp" else (lambda x: x)
        self._images, self._test_images = flat(dataset.train_x), flat(dataset.test_x)

    @cached_property
    def x(self) -> jax.Array:
        """The training images, on the device once for all programs."""
        return jnp.asarray(self._images)

    @property
    def network(self) -> str:
        """Name of the network with its sizes."""
        sizes = "-".join(map(str, self._sizes))
        return {"mlp": f"MLP {sizes}", "cnn": "CNN 32-64-128-512", "resnet20": "ResNet-20"}[self.options.network]

    @property
    def _sizes(self) -> tuple[int, ...]:
        return int(np.prod(self.image)), *self.options.hidden, self.classes

    def supervised(self, mode, update_every, run_length, interpolation, derivative, layers) -> SupervisedRun:
        """The run of conditions that have these fields."""
        options, flip = self.options, self.options.network != "mlp"
        steps = self.steps * options.stretch // update_every
        shown = InputOrder(run_length, interpolation, flip)
        fixed = dict(warmup=options.warmup, input_order=shown, derivative=derivative)
        settings = Settings(steps, update_every, options.form, mode, **fixed)
        known = dict(statistics="running" if mode == "carry" or layers else "segment")  # to batch norm

        def make_model(key):
            if options.network == "mlp":
                return nn.mlp(self._sizes, key=key)
            if options.network == "cnn":
                return nn.cnn(self.image, classes=self.classes, key=key, **known)
            return nn.resnet20(self.classes, in_channels=self.image[0], key=key, **known)

        return SupervisedRun(make_model, self.x, self.labels, settings)

    def training(self, **static) -> sweep.Training:
        """How conditions that agree in what is compiled in are trained, and what is measured of them."""
        run = self.supervised(**static)
        unrolled = self.options.network != "mlp" and jax.default_backend() == "cpu"
        ends, at = self.points(run.settings.steps)
        measured = self.evaluations(run, at, salient=static["layers"] > 0)
        advance, chunk = eqx.Partial(_advance, run, unrolled), UNROLLED if unrolled else None
        return sweep.Training(run.init, advance, measured, run.settings.steps, ends, self.hyperparameters, chunk)

    def points(self, steps: int, unit: int = 1) -> tuple[list[int], list[int]]:
        """Multiples of a unit after which the training loss is recorded, and those after which all else is."""
        chunk = unit * max(1, steps // unit // (CURVE_POINTS if self.measured_on == "test" else TEST_POINTS))
        ends = [*range(chunk, steps, chunk), steps]
        if self.measured_on == "validation":
            return ends, [steps]
        along = [end for end in ends[:-1] if (end // chunk) % (CURVE_POINTS // TEST_POINTS) == 0]
        return ends, [*along, steps]

    def evaluations(
        self, run: SupervisedRun, at: list[int], salient: bool = False, of_state: Callable = lambda state: state
    ) -> list[sweep.Evaluation]:
        """What is measured of a run.

        **Arguments:**

        - `run`: how it is trained.
        - `at`: updates after which it is measured, the last included.
        - `salient`: whether a gate picks the images learned from, which counts.
        - `of_state`: finds the run's state in what is trained.
        """
        steps, x, labels = run.settings.steps, self._test_images, self.test_labels
        width = EVALUATED_AT_ONCE if self.options.network != "mlp" else len(labels)
        parts = [slice(start, start + width) for start in range(0, len(labels), width)]
        test = [(jnp.asarray(x[part]), jnp.asarray(labels[part])) for part in parts]
        names = ("diverged", *(("skipped", "missed") if salient else ()))
        measured = [
            sweep.Evaluation(eqx.Partial(_evaluate, run, of_state), at=at, over=test, prefix=f"{self.measured_on}_"),
            sweep.Evaluation(lambda state: {name: getattr(of_state(state), name) for name in names}, at=[steps]),
        ]
        if self.measured_on == "validation" or not self.stretches:
            return measured
        align, probe = eqx.Partial(_align, run, of_state), eqx.Partial(_align_probe, run, of_state)
        measured.append(sweep.Evaluation(align, at=[0, *at], over=self.stretches))
        for one in self.probes:
            over = [(hyperparameters(one), *stretch) for stretch in self.stretches]
            columns = {name: getattr(one, name) for name in ("trace", "order", "delay_s", "peak_s", "error_gate")}
            measured.append(sweep.Evaluation(probe, at=[0, *at], over=over, columns=columns))
        return measured

    @cached_property
    def stretches(self) -> list[tuple]:
        """Images and labels over which alignment is measured."""
        stretch = self.options.stretch
        count = min(ALIGNMENT_STRETCHES[self.options.network], len(self.labels) // stretch)
        rows = [slice(i * stretch, (i + 1) * stretch) for i in range(count)]
        return [(self.x[some], jnp.asarray(self.labels[some])) for some in rows]

    def config(self) -> Setting:
        """All that runs depend on besides their conditions."""
        options, labels = self.options, np.concatenate([self.labels, self.test_labels]).astype("<i4")
        held_out = (options.validation, options.selection_seed) if self.measured_on == "validation" else ()
        images, digest = (len(self.labels), len(self.test_labels)), hashlib.sha256(labels.tobytes()).hexdigest()[:16]
        names = options.dataset, self.network, self.measured_on
        probes = tuple(changed(probe) for probe in self.probes)
        return Setting(*names, images, digest, options.form, options.stretch, options.warmup, held_out, probes)

    def columns(self, condition: Condition) -> dict:
        """What rows of a run say besides its condition."""
        scenario = "retrograde" if condition.layers else "behavioral"
        return {
            "experiment": self.options.name,
            "scenario": "none" if condition.trace == "backprop" else scenario,
            "dataset": self.options.dataset,
            "network": self.network,
            "form": self.options.form,
        }


# Runs are arguments, not closures: their images would be constants of the program otherwise.
def _advance(run, unrolled, state, steps):
    state, losses = run.advance(state, steps, unrolled)
    return state, {"train_loss": losses}


def _evaluate(run, of_state, state, x, labels):
    return run.evaluate(of_state(state), x, labels)


def _align(run, of_state, state, x, labels):
    return {"alignment": run.alignment(of_state(state), x, labels)}


def _align_probe(run, of_state, state, hyper, x, labels):
    seen = eqx.tree_at(lambda state: state.hyper, of_state(state), hyper)
    return {"alignment": run.alignment(seen, x, labels)}


# How an experiment on images runs.


def run(
    conditions: Callable[[Vision], list[list[Condition]]],
    options: Vision,
    *,
    probes: Callable[[Vision], list[Condition]] = lambda options: [],
    course: type[Course] = Course,
    static: tuple[str, ...] = STATIC,
) -> pd.DataFrame | None:
    """Chooses candidates and learning rates, trains what is not finished and records it.

    **Arguments:**

    - `conditions`: of options, groups of candidates, of each of which the best on images held out of the training set
      is reported; those reported are trained on the whole training set.
    - `options`: of the experiment.
    - `probes`: of options, conditions whose alignment is measured at the weights of every run reported.
    - `course`: how runs are trained, where that is not as usual; `static`: what it compiles in.

    **Returns:** the tidy rows of the runs reported; None in shards that leave the report to the first.

    **Raises:** UserError for data that cannot be read, or are too few.
    """
    with users_errors():
        dataset = datasets.load(options.dataset, options.data_dir)
        held_out = datasets.split_validation(dataset, options.validation, options.selection_seed)
    if (kept := len(held_out.train_y)) < options.stretch:
        raise UserError(f"at least {options.stretch} training images must be left after holding some out, got {kept}")
    groups = at_rates(conditions(options), options.learning_rates)
    reported = course(options, dataset, "test", probes(options))
    selection = course(options, held_out, "validation")
    with users_errors():
        for group in groups:
            labels = held_out.train_y if len(group) > 1 else dataset.train_y
            for condition in group:
                hyperparameters(condition)
                shown = InputOrder(condition.run_length, condition.interpolation)
                shown.check(labels, condition.update_every)
    score = lambda values: (values["validation_accuracy"], -values["validation_loss"])  # noqa: E731
    how = dict(static=static, score=score, describe=describe, trial=partial(at_selection_delay, options))
    return complete(options, groups, {"test": reported, "validation": selection}, **how)


def at_selection_delay(options: Vision, condition: Condition) -> Condition:
    """The condition at the delay at which learning rates are chosen, its trace in proportion."""
    delay = getattr(options, "selection_delay", None)
    if delay is None or condition.trace == "backprop":
        return condition
    scale = delay / condition.delay_s
    return replace(condition, delay_s=delay, peak_s=round(condition.peak_s * scale, 9))


def describe(condition: Condition) -> str:
    """A condition in words."""
    where = tables.label(condition.trace, condition.order)
    if condition.trace != "backprop":
        where += f" at {condition.delay_s:g} s, {tables.gate_name(condition.error_gate)}"
    special = changed(replace(condition, peak_s=0.0 if condition.peak_s == condition.delay_s else condition.peak_s))
    told = ("trace", "order", "delay_s", "error_gate", "seed", "learning_rate", "layers")
    more = [f"{name.removesuffix('_s').replace('_', ' ')} {v}" for name, v in special.items() if name not in told]
    return ", ".join([where, *more])


def coming(run: SupervisedRun, state: TrainState, stretches: int) -> tuple[jax.Array, jax.Array]:
    """Images and labels of the stretches that the network sees next, `[stretches, batch, ...]`."""
    shown, batch = run.settings.shown, run.settings.segment
    frames = shown.frames(state.order, run.labels, state.step, stretches, batch)
    return shown.show(frames, run.x, run.labels)
