"""The conditions of behavioral-vision: what is varied, what is fixed, and the config that names a run."""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from cetsim import data
from cetsim.train import Settings
from experiments.options import DT, STRETCH, BehavioralVision
from experiments.records import config_hash

NAME = "behavioral-vision"
CLASSES = 10  # in each of the datasets
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Condition:
    """One run: a trace at a delay, under an error gate, with a learning rate and a seed."""

    trace: str
    order: int
    delay_s: float
    error_gate: float
    learning_rate: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """Runs of one length on one dataset: those that choose the learning rate, or those reported."""

    measured_on: str  # "validation" or "test"
    options: BehavioralVision
    dataset: data.Dataset
    steps: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the network's layers."""
        return int(np.prod(self.dataset.train_x.shape[1:])), *self.options.hidden, CLASSES

    @property
    def settings(self) -> Settings:
        """What all its runs share."""
        return Settings(steps=self.steps, batch=STRETCH, form=self.options.form, boundary=self.options.mode)

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
            "experiment": NAME,
            "scenario": "none" if condition.trace == "backprop" else "behavioral",
            "dataset": self.options.dataset,
            "network": "MLP " + "-".join(map(str, self.sizes)),
            "form": self.options.form,
            "mode": self.options.mode,
        } | asdict(condition)

    def config(self, condition: Condition) -> dict:
        """Everything a run depends on; its hash names the run."""
        # Settings left out are left out of the config, so that one added to the library later renames no run.
        settings = {name: value for name, value in asdict(self.settings).items() if value is not None}
        settings |= {"optimizer": "adamw", "weight_decay": WEIGHT_DECAY, "dt": DT}
        return self.columns(condition) | {"measured_on": self.measured_on} | self._data | {"settings": settings}

    def hashes(self, conditions: list[Condition]) -> dict[str, Condition]:
        """The conditions by the hash of their config."""
        return {config_hash(self.config(condition)): condition for condition in conditions}


def conditions_of(options: BehavioralVision) -> list[Condition]:
    """Every trace at every delay under every gate, and backprop once, without learning rates and seeds."""
    traces = [("ET", 1), *(("CET", order) for order in options.orders), ("delay line", 0)]
    delayed = [
        Condition(trace, order, delay, gate)
        for gate in options.error_gates
        for delay in options.delays
        for trace, order in traces
    ]
    return [Condition("backprop", 0, 0.0, 0.0), *delayed]


def trials_of(condition: Condition, options: BehavioralVision) -> list[Condition]:
    """The runs that a condition's learning rate is chosen by."""
    seed = options.selection_seed
    return [replace(condition, learning_rate=rate, seed=seed) for rate in options.learning_rates]
