"""Control learned from rewards that come seconds to minutes late."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from experiments.common import checks, returns, rl
from experiments.common.conditions import Condition, delayed_traces


@dataclass(frozen=True)
class Options(rl.Control):
    """Control learned from rewards that come seconds to minutes late.

    An actor-critic acts every 0.2 s. Its TD errors and log-policy gradients reach the actor's synapses --delays seconds
    later. Compared are the exponential trace, cascades with their peak at the delay, a delay line, which remembers the
    activity of that moment alone, and signals without delay. The learning rate of each trace, and the decay of the
    exponential one, are chosen at one delay.
    """

    preset: Literal["demo", "quick", "paper", "authors", "space_invaders", "lunarlander"] = "demo"
    """demo: CartPole at two delays, in minutes; quick: in an hour; paper: at all delays with falling learning rates, in
    half a day; authors: the same with what the authors' code does; space_invaders and lunarlander: two delays each, in
    hours."""
    delays: tuple[float, ...] = (2.0, 8.0)
    """Delays of credit in seconds, multiples of 0.2 s."""
    selection_delay: float = 8.0
    """The delay at which learning rates and β are chosen, for all delays."""

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        choice = len(self.learning_rates) * len(self.betas) > 1
        return max((*self.delays, self.selection_delay) if choice else self.delays)

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        checks.steps_above_zero("delays", self.delays, self.dt)
        checks.steps_above_zero("selection_delay", (self.selection_delay,), self.dt)
        super().check()


_CARTPOLE = rl.PAPER["cartpole"]
_PAPER = Options(
    preset="paper", frames=_CARTPOLE.frames, anneal=_CARTPOLE.anneal, delays=(2.0, 8.0, 32.0, 64.0, 128.0),
    selection_delay=64.0, **rl.CHOICES,
)  # fmt: skip
_TWO_DELAYS = dict(selection_delay=8.0, seeds=1, orders=(2, 10), betas=(0.9, 0.99), learning_rates=(1e-4, 5e-4),
                   frames=2_000_000, anneal=False)  # fmt: skip
PRESETS = {
    "demo": Options(seeds=1, frames=250_000),
    "quick": Options(preset="quick", frames=500_000, delays=(2.0, 8.0, 32.0), seeds=2),
    "paper": _PAPER,
    "authors": replace(_PAPER, preset="authors", normalization=_CARTPOLE.normalization, **rl.AUTHORS_CODE),
    "space_invaders": replace(
        _PAPER, preset="space_invaders", environment="space_invaders", delays=(2.0, 8.0), **_TWO_DELAYS
    ),
    "lunarlander": replace(_PAPER, preset="lunarlander", environment="lunarlander", delays=(8.0, 32.0), **_TWO_DELAYS),
}


def conditions(options: Options) -> list[Condition]:
    """Every trace at every delay, and signals without delay."""
    traces = delayed_traces(options.orders)
    late = [Condition(*trace, delay, mode="carry") for delay in options.delays for trace in traces]
    return [Condition(*rl.UNDELAYED, mode="carry"), *late]


def trial(options: Options, condition: Condition) -> Condition:
    """The condition at the delay at which settings are chosen."""
    return replace(condition, delay_s=options.selection_delay if condition.delay_s else 0.0)


run, report = partial(rl.run, conditions, trial=trial), returns.report
