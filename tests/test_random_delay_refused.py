"""Random delays that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import DT, TRACE, half_square, mlp
from networks import segment as random_data
from test_random_delay import LATE

import cetsim
from cetsim import RandomDelay


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomDelay(1.0, 2.1), "`spread` must be at most 2 mean = 2 s, or else delays .* negative, got 2.1"),
        (lambda: RandomDelay(0.0, 0.1), "`spread` must be at most 2 mean = 0 s, .* got 0.1"),
        (lambda: RandomDelay(1.0, -0.1), "`spread` must be at least 0, got -0.1"),
        (lambda: RandomDelay(-1.0, 0.1), "`mean` must be at least 0, got -1.0"),
        (lambda: RandomDelay(float("nan"), 0.1), "`mean` must be finite, got nan"),
        (lambda: RandomDelay(float("inf"), 0.1), "`mean` must be finite, got inf"),
        (lambda: RandomDelay(1.0, float("nan"), distribution="gamma"), "`spread` must be finite, got nan"),
        (lambda: RandomDelay(1.0, "wide"), "`spread` must be a number or an array of numbers, got 'wide'"),
        (lambda: RandomDelay(jnp.ones(2), 0.1), r"`mean` must be one number .*jax.vmap\), got shape \(2,\)"),
        (lambda: RandomDelay(1.0, jnp.ones(3)), r"`spread` must be one number .* got shape \(3,\)"),
        (lambda: RandomDelay(0.3, 0.0), "`mean` must be a multiple of dt = 0.2 s, got 0.3"),
        (lambda: RandomDelay(0.0, 0.1, distribution="gamma"), "`mean` must be above 0 s .* gamma distributed, got 0.0"),
        (lambda: RandomDelay(1.0, 0.5, distribution="normal"), "one of 'uniform', 'gamma', got 'normal'"),
        (lambda: RandomDelay(1.0, 0.5, dt=0.0), "`dt` must be above 0 s, got 0.0"),
        (lambda: RandomDelay(1.0, 0.5, max_delay=1.3), "`max_delay` must be a multiple of dt = 0.2 s, got 1.3"),
        (
            lambda: RandomDelay(1.0, 0.5, max_delay=1.0),
            "`max_delay` must be at least the longest delay, 1.2 s, got 1.0",
        ),
        (
            lambda: RandomDelay(1.0, 0.5, distribution="gamma", max_delay=0.8),
            "`max_delay` must be at least the mean, 1 s, got 0.8",
        ),
        (lambda: RandomDelay(1.0, 0.5).at(1.5), "`origin` must be one integer, got .*1.5"),
        (lambda: RandomDelay(1.0, 0.5).at(jnp.arange(2)), "`origin` must be one integer, got"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_at_their_bounds_are_taken():
    RandomDelay(0.3, 0.6)
    RandomDelay(3 * 0.1, 0.6, max_delay=0.6)
    RandomDelay(0.0, 0.0, distribution="gamma", max_delay=0.0)
    RandomDelay(np.float32(0.7), np.float32(1.4), max_delay=1.4)
    RandomDelay(0.5, 3.0, distribution="gamma")  # no gamma distributed delay is negative


def test_streams_must_have_room_and_know_their_place():
    model, (x, target) = mlp(), random_data()
    attach = lambda delay: cetsim.attach(model, TRACE, delay, boundary="carry", window=5)  # noqa: E731
    with pytest.raises(ValueError, match="gamma distributed delays needs `max_delay`, in seconds, to make room"):
        cetsim.streaming_init(attach(RandomDelay(1.0, 0.5, DT, "gamma")), x[0])
    with pytest.raises(ValueError, match="a stream with a traced delay needs `max_delay`, in seconds"):
        jax.jit(lambda s: cetsim.streaming_init(attach(RandomDelay(1.0, s, DT)), x[0]))(0.5)
    attached = attach(LATE["uniform"])
    state = cetsim.streaming_init(attached, x[0])
    with pytest.raises(ValueError, match=r"needs its place in time: attach `delay.at\(step\)` for each segment"):
        cetsim.streaming_value_and_grad(half_square)(attached, state, x, target)
    with pytest.raises(ValueError, match="a stream that is carried loses no signal"):
        attach(RandomDelay(1.0, 0.5, DT, keep_late=True))
    with pytest.raises(ValueError, match=r"layer 'layers.0': `delay` must be one of cetsim's delays, got 0.6"):
        cetsim.attach(model, TRACE, LATE["uniform"], overrides={"layers.0": {"delay": 0.6}})
