"""Options of retrograde-vision."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from experiments.options.common import DT, require, require_each, require_orders, whole_steps
from experiments.options.vision import Vision

GATES = ("quantile", "threshold", "running", "random", "none")


@dataclass(frozen=True)
class RetrogradeVision(Vision):
    """Learning from credit that takes minutes from layer to layer, and from the few images that are salient.

    Signals travel backwards from each layer to the one below it in --delay seconds, so that they stack: 2, 4, 6
    minutes. Of each stretch of images only those with the largest loss enter the traces. Compared are the exponential
    trace X the share of salient images, the kind of gate that picks them, how the derivative that errors pass is
    remembered, and when events happen. Each layer's trace is set to its own delay; the top layer's signal is at hand.
    """

    name: ClassVar[str] = "retrograde-vision"
    warmup: ClassVar[float] = 0.2
    run_length: ClassVar[int] = 1
    interpolation: ClassVar[int] = 1
    selection_delay: ClassVar[None] = None
    update_every: ClassVar[property] = property(lambda self: self.stretch)

    preset: Literal["demo", "quick", "paper", "mechanisms", "cifar10"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in 12 minutes; paper: MNIST, delays and shares of salient images, three
    seeds, in hours; mechanisms: gates, derivatives and placements, in hours; cifar10: in hours."""
    mode: Literal["reset", "carry"] = "reset"
    """reset: every stretch starts with empty traces, and signals that come after its end are still read; carry: traces
    and signals under way go on to the next stretch."""
    stretch: int = 1280
    """Images of a stretch, after which weights change; --steps counts stretches."""
    steps: int = 300
    """Length of a run, in stretches."""
    selection_steps: int = 300
    """Length of a run that only serves to choose the learning rate."""
    delay: float = 120.0
    """Seconds that a signal takes from one layer to the one below, a multiple of 0.2 s."""
    orders: tuple[int, ...] = (2, 6, 10)
    """Orders of the cascading traces, 2 to 64."""
    fraction: float = 0.0125
    """Share of the images of a stretch that are salient."""
    error_gate: float = 0.0
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""
    threshold: float = 1.0
    """Loss in nats above which an image is salient, for the gate named threshold."""
    delays: tuple[float, ...] = ()
    """Delays per layer to compare, in seconds."""
    fractions: tuple[float, ...] = ()
    """Shares of salient images to compare."""
    gates: tuple[Literal["quantile", "threshold", "running", "random", "none"], ...] = ("quantile",)
    """Kinds of gate to compare; the first is used elsewhere. quantile: the largest losses of a stretch; threshold:
    losses above a fixed one; running: above one that follows the past; random: whatever the loss; none: all."""
    derivatives: tuple[Literal["ideal", "cascade"], ...] = ("ideal",)
    """How the derivative that errors pass waits for them: as it was, or in the layer's trace at the soma. The first is
    used elsewhere."""
    placements: tuple[Literal["shown", "random"], ...] = ("shown",)
    """When salient images count as seen: when shown, or, as in the authors' code, at random moments in their order. The
    first is used elsewhere."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        require("stretch", self.stretch >= 2, "at least 2", self.stretch)
        require_orders(self.orders)
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        require_each("threshold", (self.threshold,), lambda v: v >= 0, "at least 0")
        for name, values in (("delay", (self.delay,)), ("delays", self.delays)):
            for value in values:
                require(name, value > 0 and whole_steps(value), f"above 0 and a multiple of {DT:g} s", value)
        for name, values in (("fraction", (self.fraction,)), ("fractions", self.fractions)):
            for value in values:
                require(name, 0 < value <= 1, "above 0 and at most 1", value)
        for name in ("gates", "derivatives", "placements"):
            values = getattr(self, name)
            require(name, bool(values), "at least one", "none")
            require(name, len(set(values)) == len(values), "different from each other", " ".join(values))
        if self.mode == "carry":
            ideal = self.derivatives == ("ideal",)
            require("derivatives", ideal, "ideal with --mode carry: what is sent down cannot wait", self.derivatives)
        if self.network == "resnet20":
            raise ValueError("--network must be mlp or cnn, whose layers stand in a row, got resnet20")


_MNIST = RetrogradeVision(
    preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1,
    learning_rates=(1e-3,), seeds=1, steps=300,
)  # fmt: skip
_PAPER = replace(
    _MNIST, preset="paper", seeds=3, steps=1000, selection_steps=1000, learning_rates=(3e-4, 1e-3, 3e-3),
)  # fmt: skip
PRESETS = {
    "demo": RetrogradeVision(
        stretch=320, fraction=0.05, delay=20.0, steps=400, seeds=2, learning_rates=(3e-3,),
        derivatives=("ideal", "cascade"),
    ),
    "quick": replace(_MNIST, delays=(0.2, 20.0, 120.0), gates=("quantile", "random")),
    "paper": replace(_PAPER, delays=(0.2, 2.0, 20.0, 120.0, 240.0), fractions=(0.0125, 0.05, 0.2)),
    "mechanisms": replace(
        _PAPER, preset="mechanisms", gates=GATES, derivatives=("ideal", "cascade"), placements=("shown", "random"),
    ),
    "cifar10": replace(
        _MNIST, preset="cifar10", dataset="cifar10", network="cnn", form="authors", steps=780,
        learning_rates=(3e-4, 1e-3, 3e-3), selection_steps=390,
    ),
}  # fmt: skip
