"""Options of behavioral-rl."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from experiments.options import rl_paper
from experiments.options.common import require
from experiments.options.rl import ReinforcementLearning


@dataclass(frozen=True)
class BehavioralRL(ReinforcementLearning):
    """Control learned from rewards that come seconds to minutes late.

    An actor-critic acts every 0.2 s. Its TD errors and log-policy gradients reach the actor's synapses --delays seconds
    later. Compared are the exponential trace, cascades with their peak at the delay, a delay line, which remembers the
    activity of that moment alone, and signals without delay. The learning rate of each trace, and the decay of the
    exponential one, are chosen at one delay.
    """

    name: ClassVar[str] = "behavioral-rl"

    preset: Literal[
        "demo", "quick", "paper", "authors", "authors_lunarlander", "authors_space_invaders", "space_invaders",
        "lunarlander",
    ] = "demo"  # fmt: skip
    """demo: CartPole at two delays, in minutes; quick: in an hour; paper: at all delays, in half a day; authors: the
    same with the authors' whole setting, of CartPole or another environment; space_invaders and lunarlander: two delays
    each, in hours."""
    delays: tuple[float, ...] = (2.0, 8.0)
    """Delays of credit in seconds, multiples of 0.2 s."""
    selection_delay: float = 8.0
    """The delay at which learning rates and β are chosen, for all delays."""

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        return max((*self.delays, self.selection_delay) if self.choices > 1 else self.delays)

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        require("delays", bool(self.delays), "at least one", "none")
        self.require_delays("delays", self.delays)
        self.require_delays("selection_delay", (self.selection_delay,))
        super().check()


_PAPER = BehavioralRL(
    preset="paper", frames=rl_paper.SETTINGS["cartpole"].frames, delays=(2.0, 8.0, 32.0, 64.0, 128.0),
    orders=rl_paper.ORDERS, betas=rl_paper.BETAS, learning_rates=rl_paper.LEARNING_RATES,
)  # fmt: skip
PRESETS = {
    "demo": BehavioralRL(seeds=1, frames=500_000),
    "quick": BehavioralRL(preset="quick", frames=500_000, delays=(2.0, 8.0, 32.0), seeds=2),
    "paper": _PAPER,
    "authors": replace(_PAPER, preset="authors", **rl_paper.authors("cartpole")),
    "authors_lunarlander": replace(
        _PAPER, preset="authors_lunarlander", delays=(8.0, 32.0, 128.0), **rl_paper.authors("lunarlander")
    ),
    "authors_space_invaders": replace(
        _PAPER, preset="authors_space_invaders", delays=(2.0, 8.0), **rl_paper.authors("space_invaders")
    ),
    "space_invaders": replace(
        _PAPER, preset="space_invaders", environment="space_invaders", delays=(2.0, 8.0), seeds=1,
        orders=(2, 10), betas=(0.9, 0.99), learning_rates=(1e-4, 5e-4), frames=2_000_000,
    ),
    "lunarlander": replace(
        _PAPER, preset="lunarlander", environment="lunarlander", delays=(8.0, 32.0), seeds=1,
        orders=(2, 10), betas=(0.9, 0.99), learning_rates=(1e-4, 5e-4), frames=2_000_000,
    ),
}  # fmt: skip
