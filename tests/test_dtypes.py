"""Time is counted in integers whatever activity is kept in, and long times are exact or refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit

import cetsim
from cetsim import CascadingTrace, DelayLine, Events, FixedDelay, RandomDelay, credit, steps

T, LATE, DT = 400, 10, 0.2  # more steps than bfloat16 can count
NARROW = pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.bool_, jnp.bfloat16, jnp.float16], ids=str)
SLACK = {"bfloat16": 0.02, "float16": 2e-3}


def activity(dtype, size, seed=0):
    rows = np.random.default_rng(seed).normal(size=(T, size))
    whole = jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_
    return jnp.asarray(np.abs(2 * rows).astype(int) if whole else rows).astype(dtype)


def assert_sum(found, x, signal, dtype):
    """Σ_s L(s) x(s)ᵀ over the steps whose signal arrives."""
    x, signal = (np.asarray(rows.astype(jnp.float64)) for rows in (x, signal))
    expected = signal[: T - LATE].T @ x[: T - LATE]
    slack = SLACK.get(jnp.dtype(dtype).name, 1e-10)
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=0, atol=slack * np.abs(expected).max())


@NARROW
@pytest.mark.parametrize("evaluation", [credit.adjoint, credit.literal, credit.chunked])
def test_evaluations_of_the_rule(dtype, evaluation):
    """Arrivals in the dtype of the counter that a user has, as well."""
    x, signal = activity(dtype, 3), activity(dtype, 2, seed=1)
    update = evaluation(DelayLine(LATE * DT, DT), x, jnp.ones((T, 2), dtype), signal, jnp.arange(T) + LATE, horizon=T)
    assert_sum(update.weight, x, signal, dtype)
    assert jnp.finfo(update.weight.dtype).bits >= 32


SITUATIONS = {
    "fixed delay": (FixedDelay(LATE * DT, DT), {}),
    "random delay of no spread": (RandomDelay(LATE * DT, 0.0, DT), {}),
    "events at every step": (FixedDelay(LATE * DT, DT), {"events": Events(np.arange(T), T)}),
    "events in bytes": (FixedDelay(LATE * DT, DT), {"events": Events(np.arange(T).astype(np.int16), T)}),
}


@NARROW
@pytest.mark.parametrize("situation", SITUATIONS)
def test_layers_fed_with_narrow_numbers(dtype, situation):
    """Spikes and pixels into weights of float32, and 16-bit floats into weights like them."""
    delay, options = SITUATIONS[situation]
    floats = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    layer, x, signal = (
        eqx.nn.Linear(3, 2, dtype=floats, key=jax.random.key(0)),
        activity(dtype, 3),
        activity(floats, 2, 1),
    )
    line = DelayLine(LATE * DT, DT)
    attach = lambda m: cetsim.attach(m, line, delay, form="preactivation", **options)  # noqa: E731
    loss = lambda m: jnp.sum((signal * jax.vmap(m, axis_name="time")(x)).astype(jnp.float32))  # noqa: E731
    grad = jax.grad(lambda layer: loss(attach(layer)))(layer).weight
    assert grad.dtype == floats
    expected = np.asarray(signal, float)[: T - LATE].T @ np.asarray(x, float)[: T - LATE]
    slack = SLACK.get(jnp.dtype(dtype).name, 1e-5)
    np.testing.assert_allclose(np.asarray(grad, float), expected, rtol=0, atol=slack * np.abs(expected).max())


@NARROW
def test_streams_fed_with_narrow_numbers(dtype):
    """In two segments, of more steps than bfloat16 can count."""
    floats = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    layer, x, signal = (
        eqx.nn.Linear(3, 2, dtype=floats, key=jax.random.key(0)),
        activity(dtype, 3),
        activity(floats, 2, 1),
    )
    model = cetsim.attach(
        layer, DelayLine(LATE * DT, DT), FixedDelay(LATE * DT, DT), form="preactivation", boundary="carry"
    )
    loss = lambda m, x, c: jnp.sum((c * jax.vmap(m, axis_name="time")(x)).astype(jnp.float32))  # noqa: E731
    state, total = cetsim.streaming_init(model, x[0]), 0.0
    update = jit(cetsim.streaming_value_and_grad(loss))
    for part in (slice(0, 300), slice(300, T)):
        _, grads, state = update(model, state, x[part], signal[part])
        total = total + grads.affine.weight.astype(jnp.float32)
    expected = np.asarray(signal, float)[: T - LATE].T @ np.asarray(x, float)[: T - LATE]
    slack = SLACK.get(jnp.dtype(dtype).name, 1e-5)
    np.testing.assert_allclose(total, expected, rtol=0, atol=slack * np.abs(expected).max())


def test_a_stream_of_float64_into_weights_of_float32():
    layer = eqx.nn.Linear(3, 2, dtype=jnp.float32, key=jax.random.key(0))
    x, signal = (jnp.asarray(np.random.default_rng(0).normal(size=(T, size))) for size in (3, 2))
    model = cetsim.attach(
        layer, DelayLine(LATE * DT, DT), FixedDelay(LATE * DT, DT), form="preactivation", boundary="carry"
    )
    loss = lambda m, x, c: jnp.sum(c * jax.vmap(m, axis_name="time")(x))  # noqa: E731
    assert x.dtype == jnp.float64
    _, grads, state = cetsim.streaming_value_and_grad(loss)(model, cetsim.streaming_init(model, x[0]), x, signal)
    assert state[""].x.dtype == grads.affine.weight.dtype == jnp.float32
    expected = np.asarray(signal)[: T - LATE].T @ np.asarray(x)[: T - LATE]
    np.testing.assert_allclose(grads.affine.weight, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Long times.


def test_delays_beyond_what_float32_counts_are_exact():
    with jax.enable_x64(False):
        delay = FixedDelay(800.0001, 1e-4)
        assert int(delay.steps) == 8_000_001
        now = jnp.array([0, 16_777_217, 2_000_000_000])
        assert delay.arrivals(now).tolist() == [8_000_001, 24_777_218, 2_008_000_001]
        assert delay.max_steps == 8_000_001
        with pytest.raises(ValueError, match=r"`delay` must be at most 2\^31 - 1 steps of 0.0001 s, got 300000"):
            FixedDelay(300_000.0, 1e-4)


@pytest.mark.parametrize(
    "make", [lambda s: DelayLine(s, 1e-4), lambda s: RandomDelay(s, 0.0, 1e-4)], ids=["line", "random"]
)
def test_where_they_cannot_be_they_are_refused(make):
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"must be at most 4,194,304 steps.*set jax_enable_x64"):
        make(800.0001)
    make(800.0001)  # in float64


def test_a_traced_delay_of_too_many_steps_is_an_error_when_it_runs():
    with jax.enable_x64(False):
        steps_of = jax.jit(lambda seconds: FixedDelay(seconds, 1e-4).steps)
        assert int(steps_of(400.0)) == 4_000_000
        with pytest.raises(Exception, match=r"`delay` must be at most 4,194,304 steps of 0.0001 s in float32"):
            jax.block_until_ready(steps_of(800.0001))


def test_events_beyond_what_float32_counts_are_exact():
    with jax.enable_x64(False):
        events = Events(np.array([5, 16_777_217]), 20_000_000)
        assert events.times.tolist() == [5, 16_777_217]
        line, late = DelayLine(1.0, 1.0), FixedDelay(16_777_212.0, 1.0)
        matrix = credit.credit_matrix(line, late.arrivals(events.times), events.times + 1)
        assert matrix.tolist() == [[0.0, 0.0], [0.0, 0.0]]
        matrix = credit.credit_matrix(line, late.arrivals(events.times), events.times - 1)
        assert matrix.tolist() == [[0.0, 1.0], [0.0, 0.0]]
        with pytest.raises(ValueError, match=r"`times` must be integers where `steps` is above 16777216, got float32"):
            Events(np.array([5.0, 16_777_217.0], np.float32), 20_000_000)
        with pytest.raises(ValueError, match=r"`steps` must be at most 2\^31 - 1, got 3000000000"):
            Events(np.array([5]), 3_000_000_000)


def test_a_stream_of_events_that_reaches_too_far_back_is_refused():
    """The steps of past events are kept as floats."""
    with jax.enable_x64(False):
        layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        model = cetsim.attach(
            layer,
            CascadingTrace(2, 4.0, 1.0),
            FixedDelay(4.0, 1.0),
            form="preactivation",
            boundary="carry",
            events=Events(np.array([5]), 20_000_000),
        )
        with pytest.raises(
            ValueError, match=r"a stream of events reaches back 200000.. steps, too many to count in float32"
        ):
            cetsim.streaming_init(model, jnp.ones(3))


def test_counting():
    assert steps.count(jnp.arange(3, dtype=jnp.uint8)).dtype == jnp.int32
    assert steps.count(jnp.arange(3, dtype=jnp.bfloat16)).dtype == jnp.float32
    assert steps.count(np.arange(3.0)).dtype == jnp.float64
