"""The conditions of experiments on images: what is varied, what is fixed, and the config that names a run."""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from cetsim import data
from cetsim.presentation import Presentation
from cetsim.train import Settings
from experiments.options.common import DT, STRETCH
from experiments.options.vision import Vision

WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Condition:
    """One run: what synapses remember, when credit comes, how images are shown, a learning rate and a seed.

    `peak_s` is where the trace is set: the peak of a cascade, the time constant of ET, the slower of two exponentials,
    whose faster one is `rise_s` and whose amplitude ratio is `ratio`. `spread_s` and `distribution` are of the delay.
    """

    trace: str
    order: int
    delay_s: float
    error_gate: float = 0.0
    learning_rate: float = 0.0
    seed: int = 0
    peak_s: float = 0.0
    rise_s: float = 0.0
    ratio: float = 0.0
    spread_s: float = 0.0
    distribution: str = ""
    mode: str = "reset"
    update_every: int = STRETCH
    run_length: int = 1
    interpolation: int = 1


@dataclass(frozen=True)
class RetrogradeCondition(Condition):
    """A run whose credit takes `delay_s` from each of its `layers` to the one below, and that learns from few images.

    `gate` picks a `fraction` of the images, or those whose loss is above `threshold`; `placement` says when they count
    as seen, `derivative` how what errors pass is remembered.
    """

    layers: int = 3
    gate: str = "quantile"
    fraction: float = 0.0125
    threshold: float = 0.0
    placement: str = "shown"
    derivative: str = "ideal"

    @property
    def events(self) -> str:
        """What is learned from, in words."""
        which = {"threshold": f"loss above {self.threshold:g}", "none": "all images"}.get(self.gate)
        which = f"{self.gate} {self.fraction:g}" if which is None else which
        more = [text for text, usual in ((self.placement, "shown"), (self.derivative, "ideal")) if text != usual]
        return ", ".join([which, *more])


@dataclass(frozen=True)
class Stage:
    """Runs of one length on one dataset: those that choose the learning rate, or those reported.

    `onlookers` are conditions that train nothing: their alignment is measured at the weights of every run.
    """

    measured_on: str  # "validation" or "test"
    options: Vision
    dataset: data.Dataset
    steps: int  # stretches of images
    onlookers: tuple[Condition, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(max(self.dataset.train_y.max(), self.dataset.test_y.max())) + 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of an mlp's layers."""
        return int(np.prod(self.dataset.train_x.shape[1:])), *self.options.hidden, self.classes

    @property
    def network(self) -> str:
        """Name of the network with its sizes."""
        names = {"mlp": "MLP " + "-".join(map(str, self.sizes)), "cnn": "CNN 32-64-128-512", "resnet20": "ResNet-20"}
        return names[self.options.network]

    @property
    def lanes(self) -> int:
        """Conditions trained at once at most."""
        return self.options.batch_conditions

    def settings(self, condition: Condition) -> Settings:
        """What is compiled into the condition's program."""
        shown = Presentation(condition.run_length, condition.interpolation, flip=self.options.network != "mlp")
        return Settings(
            steps=self.steps * self.options.stretch // condition.update_every,
            batch=condition.update_every,
            form=self.options.form,
            boundary=condition.mode,
            warmup=self.options.warmup,
            presentation=shown,
            derivative=condition.derivative if isinstance(condition, RetrogradeCondition) else "ideal",
        )

    @cached_property
    def _data(self) -> dict:
        labels = np.concatenate([self.dataset.train_y, self.dataset.test_y]).astype("<i4")
        held_out = {"fraction": self.options.validation, "seed": self.options.selection_seed}
        return {
            "images": {"train": len(self.dataset.train_y), self.measured_on: len(self.dataset.test_y)},
            "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest()[:16],
            "held_out": held_out if self.measured_on == "validation" else None,
        }

    def columns(self, condition: Condition) -> dict:
        """What all rows of a run have in common."""
        return {
            "experiment": self.options.name,
            "scenario": "none" if condition.trace == "backprop" else self._scenario(condition),
            "dataset": self.options.dataset,
            "network": self.network,
            "form": self.options.form,
        } | asdict(condition)

    @staticmethod
    def _scenario(condition: Condition) -> str:
        return "retrograde" if isinstance(condition, RetrogradeCondition) else "behavioral"

    def config(self, condition: Condition) -> dict:
        """Everything a run depends on; its hash names the run."""
        settings = asdict(self.settings(condition)) | {"optimizer": "adamw", "weight_decay": WEIGHT_DECAY, "dt": DT}
        settings.pop("derivative")  # a column of the conditions that have one; it came after runs had got their names
        config = self.columns(condition) | {"measured_on": self.measured_on} | self._data | {"settings": settings}
        return config | ({"onlookers": [asdict(other) for other in self.onlookers]} if self.onlookers else {})


def base_condition(options: Vision, trace: str, order: int, delay_s: float, **more) -> Condition:
    """A condition with its trace set to the delay of credit, and images shown as the options say."""
    shown = {name: getattr(options, name) for name in ("mode", "update_every", "run_length", "interpolation")}
    return Condition(trace, order, delay_s, **({"peak_s": delay_s} | shown | more))


def backprop_condition(options: Vision, **more) -> Condition:
    """Backprop, which has neither delay nor trace nor gate."""
    return base_condition(options, "backprop", 0, 0.0, **more)


def delayed_traces(orders: tuple[int, ...]) -> list[tuple[str, int]]:
    """The traces compared everywhere, by kind and order."""
    return [("ET", 1), *(("CET", order) for order in orders), ("delay line", 0)]


def trials_of(candidates: list[Condition], options: Vision) -> dict[Condition, Condition]:
    """The runs by which one of the candidates and its learning rate are chosen: trial -> condition it stands for."""
    trials = {}
    for candidate in candidates:
        for rate in options.learning_rates:
            chosen = replace(candidate, learning_rate=rate)
            trials[_trial(chosen, options)] = chosen
    return trials


def _trial(condition: Condition, options: Vision) -> Condition:
    trial = replace(condition, seed=options.selection_seed)
    if options.selection_delay is None or condition.trace == "backprop":
        return trial
    scale = options.selection_delay / condition.delay_s
    return replace(trial, delay_s=options.selection_delay, peak_s=round(condition.peak_s * scale, 9))
