"""Control learned from rewards that come seconds to minutes late."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from experiments.common import returns, rl
from experiments.common.conditions import Condition


@dataclass(frozen=True)
class Options(rl.LateControl):
    """Control learned from rewards that come seconds to minutes late.

    An actor-critic acts every 0.2 s. Its TD errors and log-policy gradients reach the actor's synapses --delays seconds
    later. Compared are the exponential trace, cascades with their peak at the delay, a delay line, which remembers the
    activity of that moment alone, and signals without delay. The learning rate of each trace, and the decay of the
    exponential one, are chosen at one delay.
    """

    preset: Literal[
        "demo", "quick", "paper", "authors", "authors_lunarlander", "authors_space_invaders", "space_invaders",
        "lunarlander", "lif", "lif_lunarlander", "pendulum",
    ] = "demo"  # fmt: skip
    """demo: CartPole at two delays, in minutes; quick: in an hour; paper: at all delays, in half a day; authors: the
    same with the authors' whole setting, of CartPole or another environment; space_invaders and lunarlander: two delays
    each, in hours; lif and lif_lunarlander: the actor's hidden neurons are leaky integrate-and-fire, in CartPole and in
    LunarLander at the paper's delays; pendulum: real actions, in half an hour."""


_PAPER = Options(frames=rl.PAPER["cartpole"].frames, delays=(2.0, 8.0, 32.0, 64.0, 128.0), **rl.CHOICES)
_TWO_DELAYS = dict(seeds=1, orders=(2, 10), betas=(0.9, 0.99), learning_rates=(1e-4, 5e-4), frames=2_000_000)
_LIF = dict(neurons="lif", betas=(0.9, 0.99), learning_rates=(5e-4,))
_PENDULUM = dict(hidden=(64, 64), discount=0.95, lam=0.9, critic_rate=2.0, anneal="both", balanced=(10,), sharp=(10,))
_OTHERS = {"lunarlander": (8.0, 32.0, 128.0), "space_invaders": (2.0, 8.0)}
PRESETS = {
    "demo": Options(orders=(2, 10), seeds=1, frames=500_000),
    "quick": Options(orders=(2, 10), frames=500_000, delays=(2.0, 8.0, 32.0), seeds=2),
    "paper": _PAPER,
    "authors": replace(_PAPER, **rl.authors("cartpole")),
    **{f"authors_{name}": replace(_PAPER, delays=delays, **rl.authors(name)) for name, delays in _OTHERS.items()},
    **{
        name: replace(_PAPER, environment=name, delays=_OTHERS[name][:2], **_TWO_DELAYS)
        for name in ("space_invaders", "lunarlander")
    },
    "lif": Options(frames=2_000_000, selection_frames=500_000, delays=(8.0, 32.0), orders=(2, 10), **_LIF),
    "lif_lunarlander": Options(
        environment="lunarlander",
        frames=2_000_000,
        delays=(32.0, 64.0),
        selection_delay=32.0,
        orders=(5,),
        **_LIF,
    ),
    "pendulum": Options(environment="pendulum", frames=2_000_000, orders=(2, 10), **_PENDULUM),
}


def conditions(options: Options) -> list[Condition]:
    """Every trace at every delay, and signals without delay."""
    return options.late()


run, report = partial(rl.run, conditions), returns.report
