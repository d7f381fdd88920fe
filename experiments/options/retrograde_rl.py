"""Options of retrograde-rl."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.options import rl_paper
from experiments.options.rl import ReinforcementLearning


@dataclass(frozen=True)
class RetrogradeRL(ReinforcementLearning):
    """Control learned from signals that take minutes from layer to layer.

    An actor-critic acts every 0.3 s. TD errors and log-policy gradients reach the actor's top layer at once, the layer
    below --delay seconds later, and so on down. Each layer's trace is set to its own delay; the top layer needs none.
    """

    name: ClassVar[str] = "retrograde-rl"
    dt: ClassVar[float] = rl_paper.RETROGRADE_STEP

    preset: Literal["demo", "quick", "paper"] = "demo"
    """demo: CartPole, in minutes; quick: in an hour; paper: three seeds, in hours."""
    delay: float = rl_paper.RETROGRADE_DELAY
    """Seconds that a signal takes from one layer to the one below, a multiple of 0.3 s."""

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        return self.delay * len(self.hidden)

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        self.require_delays("delay", (self.delay,))
        super().check()


PRESETS = {
    "demo": RetrogradeRL(seeds=1, frames=500_000),
    "quick": RetrogradeRL(preset="quick", frames=500_000, seeds=2),
    "paper": RetrogradeRL(
        preset="paper", frames=rl_paper.SETTINGS["cartpole"].frames,
        orders=rl_paper.ORDERS, betas=rl_paper.BETAS, learning_rates=rl_paper.LEARNING_RATES,
    ),
}  # fmt: skip
