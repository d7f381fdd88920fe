"""Training on images: one program for all conditions that differ in numbers alone.

Traces of every kind are tabulated to their weights, over one segment or over what a stream remembers, so that trace,
delay, error gate, learning rate and seed are all data: nothing is compiled again when they change, and conditions are
trained side by side. Runs of one seed begin from the same weights and see the images in the same order.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cetsim import datasets, interpret, nn, sweep
from cetsim.datasets import InputOrder
from cetsim.supervised import Settings, SupervisedRun
from experiments.common import selection
from experiments.common.checks import DT, SEGMENT, UserError
from experiments.common.conditions import Condition, changed
from experiments.common.hyperparameters import WEIGHT_DECAY, hyperparameters
from experiments.common.options import Vision

CURVE_POINTS = 10  # of the training loss
TEST_POINTS = 5  # of accuracy and alignment along the way
ALIGNMENT_SEGMENTS = {"mlp": 8, "cnn": 2, "resnet20": 2, "vit": 2}
VIT = dict(width=32, depth=2, heads=4, pool="mean", class_token=False)
VIT_PLAIN = ("positions", "norm", *(f"blocks.{i}.norm{j}" for i in range(VIT["depth"]) for j in (1, 2)))  # no synapses
EVALUATED_AT_ONCE = 1000  # images, by networks that convolve: more only take memory
UNROLLED = 5  # steps of such networks in a program, on CPU


@dataclass(frozen=True)
class Setting:
    """All that runs depend on besides their conditions; what is not as by default names them.

    **Fields:** `labels_sha256`: of training and test labels in their order. `held_out`: fraction and seed of the split,
    where runs are measured on held-out images. `probes`: fields of conditions that look on.
    """

    dataset: str
    network: str
    measured_on: str
    images: tuple[int, int]
    labels_sha256: str
    form: str = "activation"
    stretch: int = SEGMENT
    warmup: float = 0.1
    held_out: tuple = ()
    probes: tuple = ()
    weight_decay: float = WEIGHT_DECAY
    dt: float = DT


class Course(selection.Course):
    """Runs of one length on one dataset, with what is measured on as its test set.

    `probes` are conditions that train nothing: their alignment is measured at the weights of every run on `"test"`.
    """

    static = ("boundary", "segment", "run_length", "interpolation", "layers", "derivative")
    hyperparameters = staticmethod(hyperparameters)  # of a condition, as arrays

    def __init__(self, options: Vision, dataset: datasets.Dataset, measured_on: str, probes: Sequence[Condition] = ()):
        super().__init__(options, measured_on)
        self.probes = tuple(probes)
        self.steps = options.steps if measured_on == "test" else options.selection_steps
        self.labels, self.test_labels = dataset.train_y, dataset.test_y
        self.image, self.classes = dataset.train_x.shape[1:], int(max(dataset.train_y.max(), dataset.test_y.max())) + 1
        self.sizes = int(np.prod(self.image)), *options.hidden, self.classes
        names = {"mlp": f"MLP {'-'.join(map(str, self.sizes))}", "cnn": "CNN 32-64-128-512", "resnet20": "ResNet-20"}
        names |= {"vit": f"ViT, {VIT['depth']} blocks of {VIT['width']}"}
        self.network, images = names[options.network], (dataset.train_x, dataset.test_x)
        self._images = [x.reshape(len(x), -1) if options.network == "mlp" else x for x in images]

    @cached_property
    def x(self) -> jax.Array:
        """The training images, on the device once for all programs."""
        return jnp.asarray(self._images[0])

    def supervised(self, boundary, segment, run_length, interpolation, derivative, layers) -> SupervisedRun:
        """The run of conditions that have these fields."""
        options, network = self.options, self.options.network
        input_order = InputOrder(run_length, interpolation, network != "mlp")
        fixed = dict(warmup=options.warmup, input_order=input_order, derivative=derivative)
        fixed |= dict(plain=VIT_PLAIN) if network == "vit" else {}
        settings = Settings(self.steps * options.unit // segment, segment, options.form, boundary, **fixed)
        known = dict(statistics="running" if boundary == "carry" or layers else "segment")  # to batch norm

        def make_model(key):
            if network == "mlp":
                return nn.mlp(self.sizes, key=key)
            if network == "cnn":
                return nn.cnn(self.image, classes=self.classes, key=key, **known)
            if network == "vit":
                patch = self.image[1] // (4 if self.image[1] < 32 else 8)  # 16 of them, or 64
                return interpret.VisionTransformer(self.image, patch, **VIT, classes=self.classes, key=key)
            return nn.resnet20(self.classes, in_channels=self.image[0], key=key, **known)

        return SupervisedRun(make_model, self.x, self.labels, settings)

    def training(self, **static) -> sweep.Training:
        """How conditions that agree in what is compiled in are trained, and what is measured of them."""
        run = self.supervised(**static)
        unrolled = self.options.network in ("cnn", "resnet20") and jax.default_backend() == "cpu"
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
        return ends, [*(end for end in ends[:-1] if (end // chunk) % (CURVE_POINTS // TEST_POINTS) == 0), steps]

    def evaluations(self, run: SupervisedRun, at: list[int], salient: bool = False) -> list[sweep.Evaluation]:
        """What is measured of a run after the updates `at`, the last among them; of a `salient` gate what it counts."""
        x, labels, names = self._images[1], self.test_labels, ("diverged", *(("skipped", "missed") if salient else ()))
        width = EVALUATED_AT_ONCE if self.options.network != "mlp" else len(labels)
        parts = [slice(start, start + width) for start in range(0, len(labels), width)]
        test = [(jnp.asarray(x[part]), jnp.asarray(labels[part])) for part in parts]
        measured = [
            sweep.Evaluation(run.evaluate, at=at, over=test, prefix=f"{self.measured_on}_"),
            sweep.Evaluation(lambda state: {name: getattr(state, name) for name in names}, at=[at[-1]]),
        ]
        for one in (None, *self.probes) if self.measured_on == "test" and self.segments else ():
            hyper = None if one is None else hyperparameters(one)
            measured.append(self.of_segments(eqx.Partial(_align, run), hyper, [0, *at], one))
        return measured

    def of_segments(self, function: Callable, first, at: list[int], probe: Condition | None) -> sweep.Evaluation:
        """What a function of (state, first, images, labels) says of training segments, in rows of the probe."""
        fields = ("trace", "order", "delay_s", "peak_s", "error_gate")
        columns = None if probe is None else {name: getattr(probe, name) for name in fields}
        return sweep.Evaluation(function, at=at, over=[(first, *segment) for segment in self.segments], columns=columns)

    @cached_property
    def segments(self) -> list[tuple]:
        """Images and labels over which alignment is measured."""
        segment = self.options.unit
        count = min(ALIGNMENT_SEGMENTS[self.options.network], len(self.labels) // segment)
        rows = [slice(i * segment, (i + 1) * segment) for i in range(count)]
        return [(self.x[some], jnp.asarray(self.labels[some])) for some in rows]

    def config(self) -> Setting:
        """All that runs depend on besides their conditions."""
        options, labels = self.options, np.concatenate([self.labels, self.test_labels]).astype("<i4")
        held_out = (options.validation, options.selection_seed) if self.measured_on == "validation" else ()
        images, digest = (len(self.labels), len(self.test_labels)), hashlib.sha256(labels.tobytes()).hexdigest()[:16]
        names, probes = (options.dataset, self.network, self.measured_on), tuple(changed(one) for one in self.probes)
        return Setting(*names, images, digest, options.form, options.unit, options.warmup, held_out, probes)

    def score(self, values: dict[str, float]) -> Any:
        """The accuracy; of equal ones the loss counts."""
        return values["validation_accuracy"], -values["validation_loss"]


# Runs are arguments, not closures: their images would be constants of the program otherwise.
def _advance(run, unrolled, state, steps):
    state, losses = run.advance(state, steps, unrolled)
    return state, {"train_loss": losses}


def _align(run, state, hyper, x, labels):
    seen = state if hyper is None else eqx.tree_at(lambda state: state.hyper, state, hyper)
    return {"alignment": run.alignment(seen, x, labels)}


def run(
    conditions: Callable[[Vision], list[list[Condition]]],
    options: Vision,
    *,
    probes: Callable[[Vision], list[Condition]] = lambda options: [],
    course: Callable[..., Course] = Course,
) -> pd.DataFrame | None:
    """Chooses candidates and learning rates, trains what is not finished and records it.

    **Arguments:**

    - `conditions`: of options, groups of candidates, of each of which the best on images held out of the training set
      is reported; those reported are trained on the whole training set.
    - `probes`: of options, conditions whose alignment is measured at the weights of every run reported.
    - `course`: how runs are trained, where that is not as usual.

    **Returns:** the tidy rows of the runs reported; None in shards that leave the report to the first.

    **Raises:** UserError for data that cannot be read, or are too few.
    """
    with selection.users_errors():
        dataset = datasets.load(options.dataset, options.data_dir)
        held_out = datasets.split_validation(dataset, options.validation, options.selection_seed)
    if (kept := len(held_out.train_y)) < options.unit:
        raise UserError(f"at least {options.unit} training images must be left after holding some out, got {kept}")
    rates, wanted = options.learning_rates, conditions(options)
    groups = [[replace(one, learning_rate=rate) for one in group for rate in rates] for group in wanted]
    reported = course(options, dataset, "test", probes(options))
    with selection.users_errors():
        for condition in (one for group in groups for one in group):
            hyperparameters(condition)
    return selection.complete({"test": reported, "validation": course(options, held_out, "validation")}, groups)
