"""Traces under jax's transformations: mapped, compiled once, and differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import DT, NORMALIZATIONS, READS, cascade, double_exponential, exponential, filtered, respond

from cetsim import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace

LAGS = np.arange(40)
MAKERS = {
    "cascade": (lambda p, **o: CascadingTrace(10, p, **o), cascade, (10,)),
    "exponential": (lambda p, **o: ExponentialTrace(p, **o), exponential, ()),
    "double": (lambda p, **o: DoubleExponentialTrace(p, 0.5, **o), None, ()),
}


@pytest.mark.parametrize("name", [*MAKERS, "delay_line"])
def test_vmap_over_parameters_is_a_loop(name):
    make = MAKERS[name][0] if name in MAKERS else lambda p: DelayLine(p, max_delay=4.0)
    values, e = np.array([0.4, 1.0, 3.2]), np.random.default_rng(8).normal(size=(20, 2))
    mapped = jax.vmap(lambda p: (make(p).weights(LAGS), respond(make(p), e)))(values)
    looped = [(make(p).weights(LAGS), respond(make(p), e)) for p in values]
    for found, *expected in zip(mapped, *looped, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [*MAKERS, "delay_line"])
def test_changing_a_parameter_does_not_recompile(name):
    make = MAKERS[name][0] if name in MAKERS else lambda p: DelayLine(p, max_delay=4.0)
    traced = []

    @jax.jit
    def made_inside(p):
        traced.append("inside")
        trace = make(p)
        state, value = trace.step(trace.init(()), jnp.ones(()))
        return trace.weights(LAGS), value, state

    @jax.jit
    def given(trace):
        traced.append("given")
        return trace.weights(LAGS), trace.step(trace.init((2,)), jnp.ones(2))

    found = [(made_inside(p)[0], given(make(p))[0]) for p in (0.4, 1.0, 2.0, 3.0)]
    assert traced == ["inside", "given"]
    for p, results in zip((0.4, 1.0, 2.0, 3.0), found, strict=True):
        np.testing.assert_allclose(results, [make(p).weights(LAGS)] * 2, rtol=1e-12, atol=1e-15)


def test_changing_a_rate_does_not_recompile():
    traced = []

    @jax.jit
    def made_inside(rate):
        traced.append(rate)
        return CascadingTrace.from_rate(rate, 6).weights(LAGS)

    for rate in (0.3, 2.0, 30.0):
        expected = cascade(LAGS, 6, 5 / (rate * DT) + 0.5, "before")
        np.testing.assert_allclose(made_inside(rate), expected, rtol=1e-9, atol=1e-13)
    assert len(traced) == 1


def assert_derivative(function, oracle, points):
    """Forward and reverse derivatives of 40 weights or reads against central differences of the oracle."""
    cotangent = np.random.default_rng(9).normal(size=len(LAGS))
    forwards = jax.jit(jax.jacfwd(function))
    backwards = jax.jit(jax.grad(lambda p: jnp.sum(cotangent * function(p))))
    for at in points:
        h = 1e-5 * at
        expected = (oracle(at + h) - oracle(at - h)) / (2 * h)
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(forwards(at), expected, rtol=1e-5, atol=1e-6 * scale + 1e-12)
        np.testing.assert_allclose(backwards(at), cotangent @ expected, rtol=1e-5, atol=1e-5 * scale + 1e-12)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(("order", "normalization"), [(2, "area"), (10, "area"), (10, "peak"), (64, "area")])
def test_gradient_of_a_cascade_by_its_delay(order, read, normalization):
    """Narrow and wide pulses, which are integrated in different ways, from lag 0 on."""
    assert_derivative(
        lambda steps: CascadingTrace(order, steps * DT, DT, read, normalization).weights(LAGS),
        lambda steps: cascade(LAGS, order, steps, read, normalization),
        points=(0.8, 1.3, 3.1, 7.2, 30.0, 200.0),
    )


@pytest.mark.parametrize("order", [2, 10])
def test_gradient_of_a_cascade_by_its_rate(order):
    assert_derivative(
        lambda rate: CascadingTrace.from_rate(rate, order, DT).weights(LAGS),
        lambda rate: cascade(LAGS, order, (order - 1) / (rate * DT) + 0.5, "before"),
        points=(0.5, 3.0, 40.0),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradient_of_an_exponential_by_its_time_constant(normalization):
    assert_derivative(
        lambda time: ExponentialTrace(time * DT, DT, "after", normalization).weights(LAGS),
        lambda time: exponential(LAGS, time, "after", normalization),
        points=(0.3, 4.0, 60.0),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("index", range(3))
def test_gradients_of_a_double_exponential(index, normalization):
    """By its decay, its rise and its ratio; with one phase, and with two."""
    for parameters in ((8.0, 3.0, 1.1), (2.0, 7.0, 0.2)):

        def replaced(value, parameters=parameters):
            return [*parameters[:index], value, *parameters[index + 1 :]]

        def found(value, replaced=replaced):
            decay, rise, ratio = replaced(value)
            return DoubleExponentialTrace(decay * DT, rise * DT, ratio, DT, "before", normalization).weights(LAGS)

        def oracle(value, replaced=replaced):
            return double_exponential(LAGS, *replaced(value), "before", normalization)

        assert_derivative(found, oracle, points=parameters[index : index + 1])


@pytest.mark.parametrize("name", ["cascade", "exponential"])
def test_gradient_through_steps(name):
    make, oracle, order = MAKERS[name]
    e = np.random.default_rng(10).normal(size=len(LAGS))
    assert_derivative(
        lambda steps: respond(make(steps * DT), e),
        lambda steps: filtered(oracle(LAGS, *order, steps, "before"), e),
        points=(0.9, 4.3, 50.0),
    )
