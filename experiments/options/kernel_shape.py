"""Options of kernel-shape."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.options.common import require_delays, require_each, require_orders
from experiments.options.peaks import require_peaks
from experiments.options.vision import Vision


@dataclass(frozen=True)
class KernelShape(Vision):
    """Accuracy and alignment over the order and the rate of a trace, its peak set right and wrong.

    At each delay of the learning signal the peak of a cascade of each order is set to several multiples of that delay,
    which is to vary the rate α = (n - 1)/(peak - dt/2) of its stages. ET, whose time constant is set to the same
    multiples, stands for order 1. Options given here override the preset's.
    """

    name: ClassVar[str] = "kernel-shape"

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in less than half an hour."""
    delays: tuple[float, ...] = (2.0, 6.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless carried."""
    orders: tuple[int, ...] = (2, 6, 10)
    """Orders of the cascading traces, 2 to 64."""
    factors: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0)
    """Peaks of the traces, in delays: 1 is right, 0.5 half the delay."""
    error_gate: float = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        require_orders(self.orders)
        delays = self.delays
        require_delays("delays", delays, self.mode)
        if self.selection_delay is not None:
            require_delays("selection_delay", (self.selection_delay,), self.mode)
            delays = (*delays, self.selection_delay)
        require_peaks("factors", self.factors, delays, self.mode)


PRESETS = {
    "demo": KernelShape(steps=400, learning_rates=(1e-3,)),
    "quick": KernelShape(
        preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1,
        delays=(4.0, 10.0), orders=(2, 4, 6, 10, 32), steps=1170, learning_rates=(1e-3,),
    ),
}  # fmt: skip
