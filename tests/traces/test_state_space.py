"""Exact discretisation against scipy's matrix exponential, closed forms, and steps against weights, in float32 too."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import DT, READS, cascade, cascade_rate, examples, respond
from scipy import linalg, special, stats

from cetsim import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace, state_space

RATES = (1e-4, 0.05, 0.9, 0.999, 1.0, 1.1, 5.0, 30.0, 126.0)  # per step; small and large ones take different ways

cascade_system = jax.jit(state_space.cascade_system, static_argnums=0)


def discretise(a, b, dt):
    """e^(A dt) and (∫₀^dt e^(A s) ds) b, the exponential of one block matrix."""
    size = len(b)
    block = np.zeros((size + 1, size + 1))
    block[:size, :size], block[:size, size] = a, b
    exponential = linalg.expm(block * dt)
    return exponential[:size, :size], exponential[:size, size]


def chain(order, rate):
    """A and b of dh1/dt = -α h1 + e, dhk/dt = -α hk + h(k-1)."""
    return np.eye(order, k=-1) - rate * np.eye(order), np.eye(order)[0]


def transition(system):
    return np.eye(len(system.output)) + system.increment


# Exactness


@pytest.mark.parametrize("order", [1, 2, 3, 10, 64])
def test_cascade_is_discretised_exactly(order):
    for rate in RATES:
        # The library's stages have unit area: they are α^k times those of the equations.
        a, b = chain(order, 1.0)
        phi, gamma = discretise(rate * a, rate * b, 1.0)
        system = cascade_system(order, jnp.asarray(rate))
        np.testing.assert_allclose(transition(system), phi, rtol=1e-10, atol=1e-12, err_msg=f"rate {rate}")
        np.testing.assert_allclose(system.input, gamma, rtol=1e-10, atol=1e-12, err_msg=f"rate {rate}")
        np.testing.assert_array_equal(system.output, np.eye(order)[-1])


@pytest.mark.parametrize("order", [1, 2, 10, 64])
def test_cascade_has_the_closed_form(order):
    below = np.arange(order)[:, None] - np.arange(order)[None, :]
    for rate in RATES:
        system = cascade_system(order, jnp.asarray(rate))
        np.testing.assert_allclose(transition(system), stats.poisson.pmf(below, rate), rtol=1e-10, atol=1e-14)
        # Slow stages pass on a tiny part of what they hold: there the precision is relative.
        expected = special.gammainc(np.arange(1, order + 1), rate)
        np.testing.assert_allclose(system.input, expected, rtol=1e-11, atol=1e-290 if rate < 1 else 1e-14)


@pytest.mark.parametrize(("order", "delay"), [(2, 0.3), (3, 1.0), (6, 4.0), (10, 2.0)])
@pytest.mark.parametrize("read", READS)
def test_impulse_response_of_the_equations_in_seconds(order, delay, read):
    """The cascade as the paper writes it, unscaled, in seconds: α^n times its discretised response."""
    alpha = cascade_rate(order, delay / DT, read) / DT
    phi, gamma = discretise(*chain(order, alpha), DT)
    states = [np.zeros(order), gamma]
    for _ in range(60):
        states.append(phi @ states[-1])
    expected = alpha**order * np.array(states)[:, -1][(0 if read == "before" else 1) :][:60]
    found = CascadingTrace(order, delay, DT, read).weights(np.arange(60))
    # The input of a step is held over it, so that its area is dt.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * expected.max())


def test_parallel_stages_are_discretised_exactly():
    decay, rise, ratio = 3.0, 0.7, 1.4
    phi, gamma = discretise(np.diag([-1 / decay, -1 / rise]), np.array([1 / decay, 1 / rise]), DT)
    system = DoubleExponentialTrace(decay, rise, ratio, DT).system()
    np.testing.assert_allclose(transition(system), phi, rtol=1e-12)
    np.testing.assert_allclose(system.input, gamma, rtol=1e-12)
    np.testing.assert_allclose(system.output * (decay - ratio * rise), [decay, -ratio * rise], rtol=1e-12)


@hypothesis.settings(max_examples=30)
@hypothesis.given(rate=st.floats(1e-4, 60.0), order=st.sampled_from([1, 2, 7, 64]))
def test_two_steps_are_one_of_twice_the_length(rate, order):
    short, long = (cascade_system(order, jnp.asarray(r)) for r in (rate, 2 * rate))
    np.testing.assert_allclose(transition(short) @ transition(short), transition(long), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(transition(short) @ short.input + short.input, long.input, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["cascade10-before-peak", "double-before-area", "fir"])
def test_systems_of_post_neurons(name):
    trace = examples(per_neuron=True)[name].make()
    together = jax.jit(lambda trace: trace.system())(trace)
    for neuron in range(3):
        alone = jax.tree.map(lambda leaf, neuron=neuron: leaf[neuron], trace).system()
        for field in ("increment", "input", "output"):
            np.testing.assert_allclose(getattr(together, field)[neuron], getattr(alone, field), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["cascade2-before-area", "cascade64-after-peak", "double-after-peak", "fir"])
def test_powers(name):
    system = examples()[name].make().system()
    powers = jax.jit(state_space.powers, static_argnums=1)(system, 7)
    matrices = [np.linalg.matrix_power(transition(system), u) for u in range(8)]
    np.testing.assert_allclose(powers.reads, [system.output @ m for m in matrices], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(powers.kicks, [m @ system.input for m in matrices[:7]], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(powers.transition, matrices[7] - np.eye(len(matrices[7])), rtol=1e-10, atol=1e-13)


def test_advance_is_the_transition_and_the_input():
    rng = np.random.default_rng(0)
    state, e = jnp.asarray(rng.normal(size=(5, 3, 2))), jnp.asarray(rng.normal(size=(3, 2)))
    for system in (
        cascade_system(5, jnp.asarray(0.7)),
        state_space.parallel_system(jnp.arange(1.0, 6.0), jnp.ones(5)),
        state_space.shift_system(jnp.ones(5)),
    ):
        expected = np.tensordot(transition(system), state, 1) + np.multiply.outer(np.asarray(system.input), e)
        np.testing.assert_allclose(state_space.advance(system, state, e), expected, rtol=1e-12, atol=1e-13)


# Float32


def float32_responses(make, delays, steps):
    """Responses to an impulse and to a constant input of 1, `[delays, steps, 2]`, all delays in one program."""
    e = np.ones((steps, 2))
    e[1:, 0] = 0.0
    with jax.enable_x64(False):
        found = jax.vmap(lambda delay: respond(make(delay), jnp.asarray(e, jnp.float32)))(jnp.float32(delays))
    assert found.dtype == np.float32
    return np.asarray(found)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("order", [2, 3, 10, 32, 64])
@pytest.mark.parametrize(("delays", "steps"), [((1, 2, 3, 5, 10, 50), 400), ((600, 3000, 6800, 8350, 10000), 25000)])
def test_stepping_cascades_holds_up_in_float32(order, delays, steps, read):
    responses = float32_responses(lambda delay: CascadingTrace(order, delay, 1.0, read), delays, steps)
    for delay, response in zip(delays, responses, strict=True):
        weights = cascade(np.arange(steps), order, delay, read)
        expected = np.stack([weights, np.cumsum(weights)], axis=1)
        error = np.abs(response - expected).max(axis=0) / expected.max(axis=0)
        assert error.max() < 5e-6, f"of the peak, at delay {delay}: {error}"


def test_stepping_one_stage_holds_up_in_float32():
    times, lags = np.array([1.0, 100.0, 10000.0]), np.arange(20000)
    responses = float32_responses(lambda time: ExponentialTrace(time, 1.0, "after"), times, len(lags))
    weights = -np.expm1(-1 / times[:, None]) * np.exp(-lags / times[:, None])
    peaks = weights.max(axis=1, keepdims=True)
    np.testing.assert_allclose(responses[..., 0] / peaks, weights / peaks, rtol=0, atol=1e-6)
    np.testing.assert_allclose(responses[..., 1], np.cumsum(weights, axis=1), rtol=0, atol=2e-6)


def test_state_keeps_what_rounding_takes_in_float32_only():
    for x64, rows in ((True, 10), (False, 20)):
        with jax.enable_x64(x64):
            trace = CascadingTrace()
            assert trace.init((3,)).shape == (rows, 3)
            assert trace.init((3,), compensated=True).shape == (20, 3)
            assert trace.init((3,), compensated=False).shape == (10, 3)
            assert DelayLine(1.0).init((3,)).shape == (6, 3)  # moves its state, rounds nothing


def test_compensation_is_what_keeps_a_float32_trace_from_drifting():
    def respond(delay, compensated):
        trace = CascadingTrace(2, delay, 1.0, "after")
        e = jnp.zeros(20000, jnp.float32).at[0].set(1.0)
        return jax.lax.scan(lambda h, now: trace.step(h, now), trace.init((), compensated=compensated), e)[1]

    weights = cascade(np.arange(20000), 2, 8350, "after")
    with jax.enable_x64(False):
        errors = [np.abs(jax.jit(respond, static_argnums=1)(8350.0, way) - weights).max() for way in (False, True)]
    assert errors[1] < 0.1 * errors[0]
