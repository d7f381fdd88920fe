"""Codes: how many spikes and when, and what is no spike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import spiking


def test_rate_code_spikes_as_often_as_said():
    values, steps = jnp.array([0.0, 0.25, 1.0]), 4000
    spikes = np.asarray(spiking.rate_code(values, steps, most=0.5, key=jax.random.key(0)))
    assert spikes.shape == (steps, 3)
    p = np.array([0.0, 0.125, 0.5])
    assert np.all(np.abs(np.mean(spikes, axis=0) - p) <= 6 * np.sqrt(p * (1 - p) / steps))
    np.testing.assert_allclose(spiking.firing_rate(spikes, 0.01), np.mean(spikes, axis=0) / 0.01, rtol=1e-12)


def test_latency_code_spikes_once_and_sooner_for_larger_values():
    spikes = np.asarray(spiking.latency_code(jnp.array([1.0, 0.5, 0.01, 0.0]), 21))
    np.testing.assert_array_equal(spikes.sum(axis=0), [1, 1, 1, 0])
    np.testing.assert_array_equal(spikes.argmax(axis=0)[:3], [0, 10, 20])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spiking.rate_code(jnp.array([1.5]), 3, key=jax.random.key(0)), "`values` must be in .0, 1., got"),
        (lambda: spiking.rate_code(jnp.ones(2), 3, most=0.0, key=jax.random.key(0)), "`most` must be in"),
        (lambda: spiking.latency_code(jnp.array([-0.1]), 3), "`values` must be in"),
        (lambda: spiking.latency_code(jnp.ones(2), 0), "`steps` must be at least 1, got 0"),
        (lambda: spiking.firing_rate(jnp.array([[0.3], [1.0]]), 0.01), "`spikes` must be 0 or 1, got 0.3"),
        (lambda: spiking.firing_rate(jnp.array([2, 1]), 0.01), "`spikes` must be 0 or 1, got 2"),
        (lambda: spiking.firing_rate(jnp.ones((0, 3)), 0.01), "`spikes` must be .time"),
        (lambda: spiking.firing_rate(jnp.ones(2), 0.0), "`dt` must be above 0 s"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
