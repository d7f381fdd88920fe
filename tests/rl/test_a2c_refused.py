"""What actor-critics refuse: settings and hyperparameters outside their range, and those that do not go together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import corridor

from cetsim import CascadingTrace, DelayLine, FixedDelay, LayerwiseDelay, RandomDelay
from cetsim.rl import ActorCriticRun, Hyperparameters, Settings, networks

DT, KEY = 0.2, jax.random.key(0)
SETTINGS = Settings(updates=4, environments=3, rollout=11, hidden=(6, 5))
RUN = ActorCriticRun(corridor(), SETTINGS)


def hyper(rate=1e-2, **options):
    return Hyperparameters(rate, DelayLine(0.0, DT, 0.0), FixedDelay(0.0, DT), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hyper(discount=1.1), r"`discount` must be in \[0, 1\], got 1.1"),
        (lambda: hyper(lam=-0.1), r"`lam` must be in \[0, 1\], got -0.1"),
        (lambda: hyper(rate=0.0), "`learning_rate` must be above 0, got 0.0"),
        (lambda: hyper(critic_rate=0.0), "`critic_rate` must be above 0, got 0.0"),
        (lambda: hyper(synaptic_lam=(np.full((6, 3), 1.1),)), r"`synaptic_lam` must be in \[0, 1\]"),
        (
            lambda: RUN.init(
                hyper(synaptic_lam=[np.ones((6, 3)), np.ones((6, 3)), np.ones((2, 5))]), jax.random.key(0)
            ),
            r"`synaptic_lam` must have the weights' shape \(5, 6\), got \(6, 3\)",
        ),
        (lambda: Settings(1, random_lam=(0.9, 0.1)), r"`random_lam` must be two ends in \[0, 1\], the lower first"),
        (
            lambda: ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, random_lam=(0.1, 0.9))).init(
                hyper(synaptic_lam=[np.ones((6, 3)), np.ones((5, 6)), np.ones((2, 5))]), KEY
            ),
            "`synaptic_lam` must be None where `Settings.random_lam` draws it",
        ),
        (lambda: Settings(1, hold_actor=0.0), r"`hold_actor` must be in \(0, 1\], got 0.0"),
        (lambda: Settings(1, hold_actor=1.5), r"`hold_actor` must be in \(0, 1\], got 1.5"),
        (lambda: Settings(1, actor_gradient="total"), "`actor_gradient` must be one of 'mean', 'sum', got 'total'"),
        (lambda: Settings(1, anneal="actor"), "`anneal` must be one of 'none', 'critic', 'both', got 'actor'"),
        (lambda: Settings(1, environments=0), "`environments` must be at least 1, got 0"),
        (
            lambda: Settings(1, truncation="ignore"),
            "`truncation` must be one of 'bootstrap', 'terminate', got 'ignore'",
        ),
        (
            lambda: Hyperparameters(1e-2, DelayLine(1.0, DT), RandomDelay(1.0, 1.0, DT)),
            "`delay` must be a FixedDelay or a LayerwiseDelay of them",
        ),
        (
            lambda: RUN.init(Hyperparameters(1e-2, DelayLine(0.0), LayerwiseDelay.stacked(0.2, 2)), jax.random.key(0)),
            "`delay` must be one for all or one for each of 3 layers, got 2",
        ),
        (
            lambda: Hyperparameters(1e-2, CascadingTrace(3, 1.0, 0.2), FixedDelay(1.0, 0.5)),
            r"`trace` and `delay` must have one dt, got 0.\d s and 0.\d s",
        ),
        (
            lambda: RUN.init(Hyperparameters(1e-2, CascadingTrace(3, jnp.ones(5), DT), FixedDelay(1.0, DT)), KEY),
            r"`trace` must be one for all synapses of a layer, got shape \(5,\)",
        ),
        (
            lambda: jax.vmap(
                lambda peak: RUN.init(Hyperparameters(1e-2, CascadingTrace(3, peak, DT), FixedDelay(1.0, DT, 1.0)), KEY)
            )(jnp.ones(2)),
            "`Settings.window` must be given",
        ),
        (lambda: Settings(1, window=0), "`window` must be at least 1, got 0"),
        (lambda: networks.actor((4,), key=jax.random.key(0)), r"`sizes` must be at least an input and an output"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
