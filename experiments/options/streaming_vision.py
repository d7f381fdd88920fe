"""Options of streaming-vision."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.options.common import STRETCH, require, require_delays, require_each, require_orders
from experiments.options.vision import Vision


@dataclass(frozen=True)
class StreamingVision(Vision):
    """Test accuracy where time goes on without end, and where images do not come in random order.

    In the mode reset every stretch of 128 images starts with empty traces and loses the signals still under way at its
    end; in the mode carry both go on to the next stretch, and batch norm uses running statistics. Compared over delays
    are the exponential trace (ET), cascading traces (CET), the delay line and backprop in both modes; at one of the
    delays also images of one class in a row, images blended into the next, and how often a stream changes its weights.
    """

    name: ClassVar[str] = "streaming-vision"
    # What is compared here, by the options named in the plural, starts from these.
    mode: ClassVar[str] = "reset"
    update_every: ClassVar[int] = STRETCH
    run_length: ClassVar[int] = 1
    interpolation: ClassVar[int] = 1

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in less than half an hour."""
    modes: tuple[Literal["reset", "carry"], ...] = ("reset", "carry")
    """Modes compared, reset and carry."""
    delays: tuple[float, ...] = (0.4, 4.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless all is carried. A stream takes
    the longer per step the longer its trace remembers: at 10 s twice as long for CET(2)."""
    orders: tuple[int, ...] = (10,)
    """Orders of the cascading traces, 2 to 64."""
    error_gate: float = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace, where the loss is the mean of 128
    images; it closes on the same images however many there are to an update. 0 turns the gate off."""
    order_delay: float = 4.0
    """The delay in seconds at which all that follows is compared."""
    run_lengths: tuple[int, ...] = (1, 16)
    """Images of one class in a row; 1 shuffles all images."""
    interpolations: tuple[int, ...] = (1, 4)
    """Steps of 0.2 s from one image to the next, blended in between; n of them show 1/n as many images in a run."""
    update_everys: tuple[int, ...] = (32, 128)
    """Images between two updates in the mode carry, divisors of the images of a run; elsewhere there are 128."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require("modes", bool(self.modes), "at least one", "none")
        require("modes", len(set(self.modes)) == len(self.modes), "different from each other", " ".join(self.modes))
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        require_orders(self.orders)
        strictest = "reset" if "reset" in self.modes else "carry"
        require_delays("delays", self.delays, strictest)
        require_delays("order_delay", (self.order_delay,), strictest)
        if self.selection_delay is not None:
            require_delays("selection_delay", (self.selection_delay,), strictest)
        for name in ("run_lengths", "interpolations", "update_everys"):
            require_each(name, getattr(self, name), lambda v: v >= 1, "at least 1")
        self._check_updates()

    def _check_updates(self) -> None:
        chosen = {self.selection_steps} if len(self.learning_rates) > 1 else set()
        for images in sorted(steps * STRETCH for steps in {self.steps, *chosen}):
            for each in self.update_everys:
                require("update_everys", images % each == 0, f"divisors of the {images} images of a run", each)


PRESETS = {
    "demo": StreamingVision(seeds=2, steps=600, learning_rates=(3e-3,)),
    "quick": StreamingVision(
        preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1,
        delays=(2.0, 10.0), orders=(2, 10), order_delay=2.0, run_lengths=(1, 16, 64), update_everys=(128, 512),
        learning_rates=(1e-3,), steps=1400,
    ),
}  # fmt: skip
