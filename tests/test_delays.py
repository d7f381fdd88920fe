"""Arrival times, and which signals arrive within a segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import FixedDelay


@pytest.mark.parametrize("steps", [0, 1, 7, 10_000])
def test_signals_arrive_the_delay_later(steps):
    delay = FixedDelay(steps * 0.2, dt=0.2)
    writes = jnp.array([-3.0, 0.0, 2.0, 500.0])
    np.testing.assert_array_equal(delay.arrivals(writes), np.array(writes) + steps)
    assert delay.max_steps == steps


def test_signals_after_the_end_of_a_segment_have_not_arrived_unless_kept():
    np.testing.assert_array_equal(FixedDelay(0.6, 0.2).arrived(5), [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(FixedDelay(2.0, 0.2).arrived(5), np.zeros(5))
    np.testing.assert_array_equal(FixedDelay(0.6, 0.2, keep_late=True).arrived(5), np.ones(5))


def test_a_delay_in_float32_is_whole_steps_too():
    with jax.enable_x64(False):
        for steps in range(0, 10_000, 37):
            assert FixedDelay(steps * 0.2, 0.2).steps == steps


def test_times_are_whole_steps_to_a_thousandth():
    assert FixedDelay(0.60019, 0.2).steps == 3
    assert FixedDelay(0.59981, 0.2).steps == 3
    for delay in (0.60021, 0.59979):
        with pytest.raises(ValueError, match=f"multiple of dt = 0.2 s, got {delay}"):
            FixedDelay(delay, 0.2)


def test_numbers_of_any_kind_are_taken():
    delay = FixedDelay(np.int64(2), 1, max_delay=3)
    assert (delay.steps, delay.max_steps, delay.dt) == (2, 3, 1.0)


def test_delays_are_mapped_and_never_compiled_again():
    traced = []

    @jax.jit
    def arrivals(seconds):
        traced.append(1)
        return FixedDelay(seconds, 0.5).arrivals(jnp.arange(3.0))

    for seconds in (0.5, 1.0, 4.0):
        np.testing.assert_array_equal(arrivals(seconds), np.arange(3) + seconds / 0.5)
    assert len(traced) == 1
    np.testing.assert_array_equal(jax.vmap(arrivals)(jnp.array([0.5, 2.0])), [[1, 2, 3], [4, 5, 6]])


def test_room_for_a_traced_delay_must_be_said():
    room = lambda **options: jax.jit(lambda s: jnp.zeros(FixedDelay(s, 0.2, **options).max_steps))(0.4)  # noqa: E731
    assert room(max_delay=1.0).shape == (5,)
    with pytest.raises(ValueError, match="traced delay needs `max_delay`, in seconds"):
        room()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedDelay(0.3, 0.2), "`delay` must be a multiple of dt = 0.2 s, got 0.3"),
        (lambda: FixedDelay(-0.2, 0.2), "`delay` must be at least 0, got -0.2"),
        (lambda: FixedDelay(float("nan"), 0.2), "`delay` must be finite, got nan"),
        (lambda: FixedDelay("soon", 0.2), "`delay` must be a number or an array of numbers, got 'soon'"),
        (lambda: FixedDelay(jnp.array([0.2, 0.4]), 0.2), r"must be one number .* got shape \(2,\)"),
        (lambda: FixedDelay(1.0, 0.0), "`dt` must be above 0 s, got 0.0"),
        (lambda: FixedDelay(float("inf"), 0.2), "`delay` must be finite, got inf"),
        (lambda: FixedDelay(1.0, -0.2), "`dt` must be above 0 s, got -0.2"),
        (lambda: FixedDelay(1.0, float("nan")), "`dt` must be finite, got nan"),
        (lambda: FixedDelay(1.0, [0.2, 0.5]), r"`dt` must be one number for the whole trace, got shape \(2,\)"),
        (lambda: FixedDelay(1.0, 0.2, max_delay=0.8), "`delay` must be at most max_delay = 0.8 s, got 1.0"),
        (lambda: FixedDelay(0.2, 0.2, max_delay=0.5), "`max_delay` must be a multiple of dt = 0.2 s, got 0.5"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
