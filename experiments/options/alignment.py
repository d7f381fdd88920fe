"""Options of alignment."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.options.common import require, require_delays, require_each, require_orders
from experiments.options.vision import Vision


@dataclass(frozen=True)
class Alignment(Vision):
    """Cosine between a trace's update and the true gradient, per layer, against delay, order and training time.

    The true gradient is that of the loss of the images whose learning signals arrive within the stretch, so that the
    delay line reaches 1 whatever the delay, unless the error gate keeps activity out: of images learned well it does,
    and where nothing is left of a stretch the cosine counts as 0. Compared are the exponential trace (ET), cascading
    traces of several orders (CET) and the delay line, each set to the delay, all at the same weights: those of a
    network trained by backprop, before, during and after training.
    """

    name: ClassVar[str] = "alignment"

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, quick: MNIST, each in a minute; cifar10: three epochs, in a quarter of an hour."""
    delays: tuple[float, ...] = (0.2, 2.0, 6.0, 10.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless carried."""
    orders: tuple[int, ...] = (2, 6, 10, 20)
    """Orders of the cascading traces, 2 to 64."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace, 1e-8 in the paper; 0 turns the gate
    off, so that what is seen is of the traces alone."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        require_orders(self.orders)
        require_delays("delays", self.delays, self.mode)
        require("selection_delay", self.selection_delay is None, "left out: only backprop trains", self.selection_delay)
        require("batch_conditions", self.batch_conditions == 1, "1: traces look on at one run", self.batch_conditions)


PRESETS = {
    "demo": Alignment(seeds=2, learning_rates=(3e-3,), batch_conditions=1),
    "quick": Alignment(
        preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1,
        delays=(0.2, 1.0, 4.0, 10.0), orders=(2, 4, 6, 10, 20), learning_rates=(1e-3,), steps=1404,
    ),
    "cifar10": Alignment(
        preset="cifar10", dataset="cifar10", network="cnn", form="authors", batch_conditions=1, seeds=1,
        delays=(0.2, 2.0, 10.0), orders=(2, 6, 10), learning_rates=(1e-3,), steps=1170,
    ),
}  # fmt: skip
