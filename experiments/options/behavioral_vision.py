"""Options of behavioral-vision."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from experiments.options.common import require_delays, require_each, require_orders
from experiments.options.vision import Vision


@dataclass(frozen=True)
class BehavioralVision(Vision):
    """Test accuracy against the delay of credit, images seen one after the other.

    A batch of 128 images is a stretch of time, 0.2 s an image; the learning signal of an image arrives late
    by the delay. Compared are the exponential trace (ET), cascading traces of several orders (CET), the ideal
    delay line, and backprop without delay. Options given here override the preset's. A condition already
    finished in the output folder is not run again, so that an interrupted experiment goes on where it was.
    """

    name: ClassVar[str] = "behavioral-vision"

    preset: Literal["demo", "quick", "paper", "cifar10", "cifar10-paper", "tinyimagenet"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in minutes; paper: MNIST, the paper's delays, in hours; cifar10: three
    delays, 10 epochs, one seed, in hours; cifar10-paper: all delays, 50 epochs, three seeds, and tinyimagenet: 1 s,
    100 epochs, for a GPU."""
    delays: tuple[float, ...] = (0.2, 2.0, 6.0, 10.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless carried."""
    orders: tuple[int, ...] = (2, 6, 10)
    """Orders of the cascading traces, 2 to 64."""
    error_gates: tuple[float, ...] = (1e-8,)
    """Squared error norms at or below which a layer's activity leaves no trace; 0 turns the gate off."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require_each("error_gates", self.error_gates, lambda v: v >= 0, "at least 0")
        require_orders(self.orders)
        require_delays("delays", self.delays, self.mode)
        if self.selection_delay is not None:
            require_delays("selection_delay", (self.selection_delay,), self.mode)


# The longer a run, the lower the best learning rate, the more so the noisier the trace: runs that choose it must not
# be much shorter than those reported, or else the poorer traces are held back by more than their memory.
# The paper's MNIST numbers are of its authors' linear layers, hence their form of the rule.
_MNIST = BehavioralVision(
    dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1, learning_rates=(3e-4, 1e-3, 3e-3)
)
_CIFAR10 = replace(_MNIST, preset="cifar10", dataset="cifar10", network="cnn", form="authors")
_PAPER_DELAYS = (0.2, 0.6, 1.0, 2.0, 4.0, 10.0)
PRESETS = {
    "demo": BehavioralVision(),
    "quick": replace(_MNIST, preset="quick", delays=(0.2, 4.0, 10.0), seeds=1, steps=2808, selection_steps=1404),
    "paper": replace(
        _MNIST, preset="paper", delays=_PAPER_DELAYS, error_gates=(1e-8, 0.0), steps=12000, selection_steps=12000
    ),
    "cifar10": replace(
        _CIFAR10, delays=(2.0, 10.0, 0.2), seeds=1, steps=3900, selection_steps=312, selection_delay=2.0
    ),
    "cifar10-paper": replace(
        _CIFAR10, preset="cifar10-paper", delays=_PAPER_DELAYS, steps=19500, selection_steps=15600, batch_conditions=16
    ),
    "tinyimagenet": replace(
        _CIFAR10, preset="tinyimagenet", dataset="tinyimagenet", network="resnet20", form="preactivation",
        delays=(1.0,), orders=(10,), steps=78100, selection_steps=62400, batch_conditions=4,
    ),
}  # fmt: skip
