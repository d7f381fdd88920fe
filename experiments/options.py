"""What can be asked of each experiment: options, presets, and the checks made before anything runs."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

DT = 0.2  # seconds an image is seen
STRETCH = 128  # images in a batch, which is one stretch of time


@dataclass(frozen=True)
class BehavioralVision:
    """Test accuracy against the delay of credit, digits seen one after the other.

    A batch of 128 images is a stretch of time, 0.2 s an image; the learning signal of an image arrives late
    by the delay. Compared are the exponential trace (ET), cascading traces of several orders (CET), the ideal
    delay line, and backprop without delay. Options given here override the preset's. A condition already
    finished in the output folder is not run again, so that an interrupted experiment goes on where it was.
    """

    preset: Literal["demo", "quick", "paper"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in minutes; paper: MNIST, the paper's delays, in hours."""
    out: Path = Path("results")
    """Output folder; files go to OUT/behavioral-vision."""
    data_dir: Path | None = None
    """Folder with the dataset's files as published; by default they are downloaded (digits needs none)."""
    dataset: Literal["digits", "mnist"] = "digits"
    """Images to learn: scikit-learn's 8x8 digits, or MNIST."""
    hidden: tuple[int, ...] = (128, 128)
    """Sizes of the network's hidden layers."""
    delays: tuple[float, ...] = (0.2, 2.0, 6.0, 10.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s."""
    orders: tuple[int, ...] = (2, 6, 10)
    """Orders of the cascading traces, 2 to 64."""
    error_gates: tuple[float, ...] = (1e-8,)
    """Squared error norms at or below which a layer's activity leaves no trace; 0 turns the gate off."""
    form: Literal["activation", "preactivation", "authors_linear"] = "activation"
    """Form of the three-factor rule."""
    mode: Literal["reset"] = "reset"
    """What happens between stretches: reset empties the trace and loses the signals still under way."""
    seeds: int = 3
    """Number of runs of each condition; they differ in initial weights and the order of images."""
    steps: int = 1000
    """Updates in a run, one per stretch of 128 images."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Peak learning rates to choose from, per condition, on held-out training images (one: no choice)."""
    selection_steps: int = 1000
    """Updates in a run that only serves to choose the learning rate; far fewer than steps favour high rates."""
    validation: float = 0.2
    """Fraction of the training set that is held out for that choice."""
    selection_seed: int = 1000
    """Seed of the runs that choose the learning rate, and of the split; not one of the seeds reported."""
    batch_conditions: int = 16
    """Conditions trained at once: many for small networks, 1 where one fills the processor."""
    plot_only: bool = False
    """Redraw the figure from results.csv; run nothing."""
    fresh: bool = False
    """Start over: remove what this experiment wrote to its folder before."""

    @property
    def folder(self) -> Path:
        """Where this experiment writes."""
        return self.out / "behavioral-vision"

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        _require_run_flags(self.plot_only, self.fresh)
        for name in ("seeds", "steps", "selection_steps", "batch_conditions"):
            _require(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("hidden", "learning_rates", "delays"):
            values = getattr(self, name)
            _require_each(name, values, lambda v: v > 0, "above 0")
        _require("delays", bool(self.delays), "at least one", "none")
        _require("learning-rates", bool(self.learning_rates), "at least one", "none")
        _require("error-gates", bool(self.error_gates), "at least one", "none")
        _require_each("error_gates", self.error_gates, lambda v: v >= 0, "at least 0")
        _require_each("orders", self.orders, lambda v: 2 <= v <= 64, "2 to 64 (one stage is ET, always there)")
        _require_each("delays", self.delays, _whole_steps, f"multiples of the {DT:g} s of an image")
        longest = (STRETCH - 1) * DT
        _require_each(
            "delays", self.delays, lambda v: v < longest + DT / 2,
            f"at most {longest:g} s: signals later than the stretch of {STRETCH} x {DT:g} s are lost",
        )  # fmt: skip
        _require("validation", 0 < self.validation < 1, "between 0 and 1", self.validation)
        apart = not 0 <= self.selection_seed < self.seeds
        _require("selection_seed", apart, f"outside the {self.seeds} seeds reported", self.selection_seed)
        _require("selection_seed", self.selection_seed >= 0, "at least 0", self.selection_seed)


# The longer a run, the lower the best learning rate, the more so the noisier the trace: runs that choose it must not
# be much shorter than those reported, or else the poorer traces are held back by more than their memory.
# The paper's MNIST numbers are of its authors' linear layers, hence their form of the rule.
_MNIST = BehavioralVision(
    dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1, learning_rates=(3e-4, 1e-3, 3e-3)
)
BEHAVIORAL_VISION_PRESETS = {
    "demo": BehavioralVision(),
    "quick": replace(
        _MNIST,
        preset="quick",
        delays=(0.2, 4.0, 10.0),
        seeds=1,
        steps=2808,
        selection_steps=1404,
    ),
    "paper": replace(
        _MNIST,
        preset="paper",
        delays=(0.2, 0.6, 1.0, 2.0, 4.0, 10.0),
        error_gates=(1e-8, 0.0),
        steps=12000,
        selection_steps=12000,
    ),
}


@dataclass(frozen=True)
class Kernels:
    """What a trace remembers: impulse responses, their width against order, and their Laplace transforms."""

    out: Path = Path("results")
    """Output folder; files go to OUT/kernels."""
    delay: float = 4.0
    """Lag of the largest weight in seconds (for ET the time constant), a multiple of dt."""
    dt: float = 0.04
    """Length of a step in seconds, above 0 and at most a tenth of the delay."""
    orders: tuple[int, ...] = (2, 6, 10, 32, 64)
    """Orders of the cascading traces, 2 to 64."""
    plot_only: bool = False
    """Redraw the figure from results.csv; compute nothing."""
    fresh: bool = False
    """Start over: remove what this experiment wrote to its folder before."""

    @property
    def folder(self) -> Path:
        """Where this experiment writes."""
        return self.out / "kernels"

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        _require_run_flags(self.plot_only, self.fresh)
        _require_each("delay", (self.delay,), lambda v: v > 0, "above 0")
        _require(
            "dt",
            0 < self.dt <= self.delay / 10,
            f"above 0 and at most delay/10 = {self.delay / 10:g}",
            self.dt,
        )
        _require("delay", _whole_steps(self.delay, self.dt), f"a multiple of dt = {self.dt:g} s", self.delay)
        _require("orders", bool(self.orders), "at least one", "none")
        _require_each("orders", self.orders, lambda v: 2 <= v <= 64, "2 to 64 (one stage is ET, always there)")


def _whole_steps(seconds: float, dt: float = DT) -> bool:
    return abs(seconds / dt - round(seconds / dt)) < 1e-3


def _require(name: str, holds: bool, constraint: str, value) -> None:
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {constraint}, got {value}")


def _require_each(name: str, values: tuple, holds, constraint: str) -> None:
    for value in values:
        _require(name, math.isfinite(value) and holds(value), constraint, f"{value:g}")
    if len(set(values)) < len(values) and name != "hidden":
        raise ValueError(f"--{name.replace('_', '-')} must not repeat a value, got {' '.join(map(str, values))}")


def _require_run_flags(plot_only: bool, fresh: bool) -> None:
    if plot_only and fresh:
        raise ValueError("--plot-only redraws what --fresh would remove: give one of them")
