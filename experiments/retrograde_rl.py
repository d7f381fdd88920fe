"""Control learned from signals that take minutes from layer to layer."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from experiments.common import checks, returns, rl
from experiments.common.conditions import Condition


@dataclass(frozen=True)
class Options(rl.Control):
    """Control learned from signals that take minutes from layer to layer.

    An actor-critic acts every 0.3 s. TD errors and log-policy gradients reach the actor's top layer at once, the layer
    below --delay seconds later, and so on down. Each layer's trace is set to its own delay; the top layer needs none.
    """

    dt = 0.3

    preset: Literal["demo", "quick", "paper"] = "demo"
    """demo: CartPole, in minutes; quick: in an hour; paper: three seeds, in hours."""
    delay: Annotated[float, checks.steps] = 120.0
    """Seconds that a signal takes from one layer to the one below, a multiple of 0.3 s."""

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        return self.delay * len(self.hidden)


PRESETS = {
    "demo": Options(orders=(2, 10), seeds=1, frames=500_000),
    "quick": Options(orders=(2, 10), frames=500_000, seeds=2),
    "paper": Options(frames=rl.PAPER["cartpole"].frames, **rl.CHOICES),
}


def conditions(options: Options) -> list[Condition]:
    """Every trace with delays that stack, and signals without delay."""
    stacked = {"delay_s": options.delay, "layers": len(options.hidden) + 1, "boundary": "carry"}
    late = [Condition(*trace, **stacked) for trace in options.delayed_traces]
    return [Condition(*rl.UNDELAYED, boundary="carry"), *late]


run, report = partial(rl.run, conditions), returns.report
