"""Options of random-delay."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from experiments.options.common import require, require_delays, require_each, require_orders
from experiments.options.vision import Vision


@dataclass(frozen=True)
class RandomDelay(Vision):
    """Test accuracy against the spread of delays that vary from image to image.

    The learning signal of each image arrives after a delay of its own, and traces are set to the mean delay. Compared
    are the exponential trace (ET), cascading traces of several orders (CET) and the delay line at the mean delay. In
    the mode reset, signals that arrive after the last image of their stretch are lost, the more of them the longer the
    delays get: half the spread above the mean if they are uniform, without limit if they are gamma distributed.
    """

    name: ClassVar[str] = "random-delay"

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, in minutes; quick: MNIST at a mean of 4 s, in a quarter of an hour; cifar10: the paper's setting,
    a mean of 2 s with delays of 0 to 4 s, in hours."""
    mean: float = 2.0
    """Mean delay of the learning signal in seconds, a multiple of 0.2 s, below 25.6 s unless carried."""
    spreads: tuple[float, ...] = (0.0, 2.0, 4.0)
    """Spreads of the delay in seconds: uniform delays run from mean - spread/2 to mean + spread/2, gamma distributed
    ones have the same standard deviation, spread/√12; 0 is the fixed delay. At most 2 x mean if uniform. In the mode
    reset, signals later than their stretch of 25.6 s are lost."""
    distributions: tuple[Literal["uniform", "gamma"], ...] = ("uniform", "gamma")
    """Distributions of the delay, a panel of the figure for each."""
    orders: tuple[int, ...] = (2, 6, 10)
    """Orders of the cascading traces, 2 to 64."""
    error_gate: float = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        require_orders(self.orders)
        require_delays("mean", (self.mean,), self.mode)
        require("distributions", bool(self.distributions), "at least one", "none")
        distinct = len(set(self.distributions)) == len(self.distributions)
        require("distributions", distinct, "different from each other", " ".join(self.distributions))
        require_each("spreads", self.spreads, lambda v: v >= 0, "at least 0")
        if "uniform" in self.distributions:
            widest = f"at most 2 x --mean = {2 * self.mean:g} s, or else uniform delays would be negative"
            require_each("spreads", self.spreads, lambda v: v <= 2 * self.mean * (1 + 1e-6), widest)
        alone = self.selection_delay is None
        require("selection_delay", alone, "left out: all runs have one mean delay", self.selection_delay)


_MNIST = RandomDelay(
    preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1, mean=4.0,
    spreads=(0.0, 2.0, 4.0, 8.0), learning_rates=(1e-3,), steps=1404,
)  # fmt: skip
PRESETS = {
    "demo": RandomDelay(seeds=2, learning_rates=(3e-3,)),
    "quick": _MNIST,
    "cifar10": replace(
        _MNIST, preset="cifar10", dataset="cifar10", network="cnn", form="authors", mean=2.0, spreads=(0.0, 4.0),
        orders=(10,), distributions=("uniform",), seeds=1, steps=3900,
    ),
}  # fmt: skip
