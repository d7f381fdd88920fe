"""Neurons against closed forms: exact decay, the times of spikes, refractory time, adaptation; and what is refused."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import spiking

TAU, DT = 0.02, 0.001


def run(neuron, current, shape=()):
    """v, spikes and adaptation over time, from rest."""

    def body(state, now):
        state, output = neuron.step(state, now)
        return state, (state.v, output, state.adaptation)

    return [np.asarray(rows) for rows in jax.lax.scan(body, neuron.init(shape), jnp.asarray(current))[1]]


def test_membrane_is_exact_at_any_dt():
    """v(t) = I (1 - e^(-t/τ)), at the ends of steps of any length."""
    for dt in (0.0005, 0.001, 0.02):
        steps = round(0.1 / dt)
        v, output, _ = run(spiking.LeakyIntegrator(TAU, dt), np.full(steps, 0.7))
        np.testing.assert_allclose(v, 0.7 * -np.expm1(-dt * np.arange(1, steps + 1) / TAU), rtol=1e-12)
        np.testing.assert_array_equal(v, output)


def test_first_spike_comes_when_the_closed_form_crosses_threshold():
    v, spikes, _ = run(spiking.LIF(TAU, 1.0, DT), np.full(200, 1.5))
    crossing = -TAU * math.log(1 - 1 / 1.5)
    assert np.argmax(spikes) == math.floor(crossing / DT)  # step k ends at (k + 1) dt
    assert set(np.unique(spikes)) == {0.0, 1.0}
    first = np.argmax(spikes)
    after = math.exp(-DT / TAU) * v[first] + (1 - math.exp(-DT / TAU)) * 1.5 - 1.0
    np.testing.assert_allclose(v[first + 1], after, rtol=1e-12)


def test_refractory_neuron_integrates_but_does_not_spike():
    refractory = 5
    neuron = spiking.LIF(TAU, 1.0, DT, refractory=refractory * DT)
    _, spikes, _ = run(neuron, np.full(60, 40.0))  # above threshold at every step
    assert np.all(np.diff(np.flatnonzero(spikes)) == refractory + 1)
    _, spikes, _ = run(spiking.LIF(TAU, 1.0, DT), np.full(60, 40.0))
    assert np.all(np.diff(np.flatnonzero(spikes)) == 1)
    state = neuron.init(())
    slopes = []
    for _ in range(8):
        state, _, slope = neuron.respond(state, jnp.asarray(40.0))
        slopes.append(float(slope))
    assert slopes[0] > 0
    assert slopes[1 : refractory + 1] == [0.0] * refractory
    assert slopes[refractory + 1] > 0


def test_v_is_linear_in_the_input_with_spikes_subtracted():
    neuron = spiking.LIF(TAU, 1.0, DT, refractory=2 * DT)
    current = np.random.default_rng(0).normal(1.0, 4.0, 80)
    v, spikes, _ = run(neuron, current)
    decay = math.exp(-DT / TAU)
    kernel = decay ** np.arange(80)
    before = np.concatenate([[0.0], spikes[:-1]])
    expected = np.convolve((1 - decay) * current - before, kernel)[:80]
    np.testing.assert_allclose(v, expected, rtol=1e-10)
    assert spikes.sum() > 3


def test_adaptation_is_the_sum_of_decayed_spikes_and_raises_the_threshold():
    neuron = spiking.ALIF(TAU, 1.0, DT, adaptation_time_constant=0.1, adaptation=0.3)
    v, spikes, a = run(neuron, np.full(300, 2.0))
    at = np.flatnonzero(spikes)
    expected = [sum(math.exp(-DT * (t - s - 1) / 0.1) for s in at if s < t) for t in range(300)]
    np.testing.assert_allclose(a, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(spikes, v > 1.0 + 0.3 * a)
    assert at[-1] - at[-2] > at[1] - at[0]
    plain = run(spiking.LIF(TAU, 1.0, DT), np.full(300, 2.0))
    np.testing.assert_array_equal(run(spiking.ALIF(TAU, 1.0, DT, adaptation=0.0), np.full(300, 2.0))[1], plain[1])


def test_time_constants_per_neuron_are_so_many_neurons():
    taus = np.array([0.005, 0.02, 0.1])
    current = np.random.default_rng(1).normal(2.0, 3.0, 50)
    together = run(spiking.LIF(taus, 1.0, DT), np.repeat(current[:, None], 3, axis=1), (3,))
    for i, tau in enumerate(taus):
        alone = run(spiking.LIF(tau, 1.0, DT), current)
        for rows, row in zip(together, alone, strict=True):
            np.testing.assert_allclose(rows[:, i], row, rtol=1e-12)


def test_a_learned_time_constant_has_the_derivative_of_v_and_a_fixed_one_none():
    def last(neuron):
        state = neuron.init(())
        for _ in range(3):
            state, _ = neuron.step(state, jnp.asarray(0.5))
        return state.v

    neuron = spiking.LIF(TAU, 1.0, DT, learn_time_constant=True)
    np.testing.assert_allclose(neuron.time_constant, TAU, rtol=1e-12)
    derivative = eqx.filter_grad(last)(neuron).log_time_constant
    t = 3 * DT  # d/dlog τ of 0.5 (1 - e^(-t/τ))
    np.testing.assert_allclose(derivative, -0.5 * t / TAU * math.exp(-t / TAU), rtol=1e-10)
    for fixed in (spiking.LIF(TAU), spiking.ALIF([TAU, TAU]), spiking.LeakyIntegrator(TAU)):
        assert jax.tree.leaves(fixed) == []


def test_float32_follows_float64():
    neuron = spiking.LIF(TAU, 1.0, DT)
    current = np.random.default_rng(2).normal(0.3, 1.0, 100)
    state, wide = neuron.init((), jnp.float32), run(neuron, current)[0]
    for now in current:
        state, _ = neuron.step(state, jnp.float32(now))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(state.v, wide[-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spiking.LIF(0.0), "`time_constant` must be above 0 s, got 0.0"),
        (lambda: spiking.LIF(-0.02), "`time_constant` must be above 0 s, got -0.02"),
        (lambda: spiking.LIF(0.0005, dt=0.001), "`time_constant` must be at least dt = 0.001 s, got 0.0005"),
        (lambda: spiking.LIF(np.array([0.02, 0.0001])), "`time_constant` must be at least dt"),
        (lambda: spiking.LIF(np.full((2, 2), 0.02)), "one number or .neurons., got shape"),
        (lambda: spiking.LIF(threshold=0.0), "`threshold` must be above 0, got 0.0"),
        (lambda: spiking.LIF(threshold=-1.0), "`threshold` must be above 0, got -1.0"),
        (lambda: spiking.LIF(dt=0.0), "`dt` must be above 0 s"),
        (lambda: spiking.LIF(refractory=-0.001), "`refractory` must be at least 0"),
        (lambda: spiking.LIF(refractory=0.0015), "`refractory` must be a multiple of dt"),
        (lambda: spiking.LIF(surrogate=jnp.tanh), "`surrogate` must be a surrogate"),
        (lambda: spiking.LIF(learn_time_constant=1), "`learn_time_constant` must be True or False"),
        (lambda: spiking.ALIF(adaptation=-0.1), "`adaptation` must be at least 0, got -0.1"),
        (lambda: spiking.ALIF(adaptation_time_constant=0.0), "`adaptation_time_constant` must be above 0 s"),
        (lambda: spiking.ALIF(adaptation_time_constant=1e-4), "`adaptation_time_constant` must be at least dt"),
        (lambda: spiking.LeakyIntegrator(0.0), "`time_constant` must be above 0 s"),
        (lambda: spiking.LIF([0.02, 0.03]).init((3,)), "`shape` must end in the shape"),
        (lambda: spiking.LIF().step(spiking.LIF().init((3,)), jnp.zeros(2)), "`current` must have the state's shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
