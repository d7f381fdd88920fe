"""Options of learned-delay."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.options.common import require, require_delays, require_each
from experiments.options.peaks import require_peaks
from experiments.options.vision import Vision


@dataclass(frozen=True)
class LearnedDelay(Vision):
    """The peak of a cascade, learned from the task while the network learns.

    The peak starts wrong, and every --learn-every updates it moves towards where the network would learn better. Two
    ways tell where that is. alignment differentiates the cosine between the trace's update and the true gradient
    through the kernel. perturbation needs two scalars: the losses after some updates made with a longer peak and with
    a shorter one. Neither knows the delay. Beside them the same network is trained with its peak held right, and held
    where the others start.
    """

    name: ClassVar[str] = "learned-delay"

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in a quarter of an hour."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Peak learning rate of the network, one: it is not chosen here."""
    delay: float = 2.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s; what the peak should come to."""
    order: int = 10
    """Order of the cascade, 2 to 64."""
    starts: tuple[float, ...] = (0.5, 2.0)
    """Where the peak starts, in multiples of the delay."""
    methods: tuple[Literal["alignment", "perturbation"], ...] = ("alignment", "perturbation")
    """Ways to tell in which direction to move the peak."""
    error_gate: float = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""
    learn_every: int = 10
    """Updates of the network between two steps of the peak."""
    step_size: float = 0.15
    """Relative change of the peak in the first step; later ones are scaled by all slopes so far (AdaGrad)."""
    stretches: int = 4
    """Stretches of 128 images, those that come next, over which the cosine or the loss is averaged."""
    horizon: int = 10
    """Updates that perturbation tries before it looks at the loss."""
    perturbation: float = 0.2
    """Relative distance of the longer and the shorter peak that are tried, above 0 and below 1."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require("network", self.network == "mlp", "mlp here", self.network)
        require("mode", self.mode == "reset", "reset here", self.mode)
        require("learning_rates", len(self.learning_rates) == 1, "one: it is not chosen here", self.learning_rates)
        require("order", 2 <= self.order <= 64, "2 to 64", self.order)
        require_delays("delay", (self.delay,), self.mode)
        require_each("starts", self.starts, lambda v: v > 0 and v != 1, "above 0 and not 1, which is always there")
        require_peaks("starts", self.starts, (self.delay,), self.mode)
        require("methods", bool(self.methods), "at least one", "none")
        require("methods", len(set(self.methods)) == len(self.methods), "distinct", " ".join(self.methods))
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        for name in ("learn_every", "stretches", "horizon"):
            require(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("step_size", "perturbation"):
            require(name, 0 < getattr(self, name) < 1, "above 0 and below 1", getattr(self, name))
        require("learn_every", self.learn_every <= self.steps, f"at most --steps, {self.steps}", self.learn_every)


PRESETS = {
    "demo": LearnedDelay(),
    "quick": LearnedDelay(
        preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1, steps=1404
    ),
}
