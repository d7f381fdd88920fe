"""The rule in its three evaluations, against the double loop of its definition and the authors' arrays."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import rule_oracles as oracles
from hypothesis import given, settings
from hypothesis import strategies as st

from cetsim import (
    CascadingTrace,
    DelayLine,
    DoubleExponentialTrace,
    ExponentialTrace,
    FIRTrace,
    credit,
)

GOLDEN = Path(__file__).parent / "golden"
DT = 0.2
OUT, IN, STEPS = 3, 4, 13
TAPS = np.random.default_rng(5).normal(size=(OUT, 7))
FORMS = pytest.mark.parametrize("form", credit.FORMS)


def traces_of_every_kind():
    """Every kind of trace, read both ways, shared and one a post-neuron, normalised by area and by peak."""
    delays, decays, rises = jnp.array([0.8, 0.5, 1.4]), jnp.array([1.0, 0.3, 3.0]), jnp.array([0.4, 0.8, 0.2])
    before, after, peak = dict(dt=DT, read="before"), dict(dt=DT, read="after"), dict(normalization="peak")
    yield "cascade-before-shared", CascadingTrace(3, 0.8, **before)
    yield "cascade-before-per_post", CascadingTrace(3, delays, **before, **peak)
    yield "cascade-after-shared", CascadingTrace(3, 0.8, **after, **peak)
    yield "cascade-after-per_post", CascadingTrace(3, delays, **after)
    yield "exponential-before-shared", ExponentialTrace(1.0, **before)
    yield "exponential-after-per_post", ExponentialTrace(decays, **after, **peak)
    yield "double-before-per_post", DoubleExponentialTrace(decays, rises, **before, **peak)
    yield "double-after-shared", DoubleExponentialTrace(1.0, 0.4, 0.3, **after)
    yield "delay_line-shared", DelayLine(0.6, DT, max_delay=1.0)
    yield "delay_line-per_post", DelayLine(jnp.array([0.6, 0.0, 1.0]), DT, max_delay=1.0)
    yield "fir-shared", FIRTrace(TAPS[0], DT)
    yield "fir-per_post", FIRTrace(TAPS, DT)


TRACES = dict(traces_of_every_kind())
EVERY_TRACE = pytest.mark.parametrize("name", TRACES)
# Every kind once, and both shapes; what does not depend on the kernel is tried with two.
EVERY_KIND = pytest.mark.parametrize(
    "name",
    ["cascade-before-shared", "exponential-after-per_post", "double-after-shared", "delay_line-per_post", "fir-shared"],
)
TWO_TRACES = pytest.mark.parametrize("name", ["exponential-before-shared", "fir-per_post"])


def random_segment(seed=0, steps=STEPS):
    """Random x, derivative and error of one segment."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(steps, size))) for size in (IN, OUT, OUT)]


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


def assert_same(update, expected, tolerance=1e-10):
    """Weights and biases equal to `tolerance` of the largest entry."""
    largest = max(np.abs(array).max() for array in expected)
    assert largest > 0
    for array, other in zip(update, expected, strict=True):
        assert array.shape == np.shape(other)
        np.testing.assert_allclose(array, other, rtol=0, atol=tolerance * largest)


@partial(jax.jit, static_argnames=("horizon", "chunks"))
def every_evaluation(trace, x, gain, signal, arrivals, writes=None, *, horizon, chunks=(5,)):
    """The update in each of the three ways, the chunked one for each size of chunk."""
    arrays = trace, x, gain, signal, arrivals.astype(x.dtype), None if writes is None else writes.astype(x.dtype)
    updates = {f"chunked-{chunk}": credit.chunked(*arrays, horizon=horizon, chunk=chunk) for chunk in chunks}
    updates["literal"] = credit.literal(*arrays, horizon=horizon)
    updates["adjoint"] = credit.adjoint(*arrays, horizon=horizon)
    return updates


adjoint = jax.jit(credit.adjoint, static_argnames="horizon")
credit_matrix = jax.jit(credit.credit_matrix, static_argnames=("horizon", "regular"))


# The factors of the three forms.


@FORMS
@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize("error_gate", [0.0, 2.0])
def test_forms_and_gate_are_those_of_the_table(form, shape, error_gate):
    rng = np.random.default_rng(1)
    derivative, error = rng.normal(size=(2, STEPS, *shape)) * np.sqrt(2 / np.prod(shape))
    flat = oracles.Factors(None, *(array.reshape(STEPS, -1, 1) for array in (derivative, error)))
    expected = oracles.gain_and_signal(form, flat, error_gate)
    closed = np.sum(error**2, axis=tuple(range(1, error.ndim))) <= error_gate
    assert error_gate == 0.0 or 0 < closed.sum() < STEPS
    for gate in (error_gate, jnp.asarray(error_gate)):
        factors = credit.synaptic_factors(form, jnp.asarray(derivative), jnp.asarray(error), gate)
        for array, other in zip(factors, expected, strict=True):
            np.testing.assert_allclose(array, other.reshape(error.shape), rtol=1e-15)


@FORMS
def test_forms_agree_where_the_activation_is_the_identity(form):
    error = jnp.arange(6.0).reshape(3, 2)
    gain, signal = credit.synaptic_factors(form, None, error)
    np.testing.assert_array_equal(gain, np.ones((3, 2)))
    np.testing.assert_array_equal(signal, error)


def test_gate_is_open_only_above_its_threshold_and_off_at_zero():
    error = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    for gate, expected in ((2.0, [0, 0]), (1.999, [1, 0]), (jnp.array(0.0), [1, 1]), (0.0, [1, 1])):
        gain, _ = credit.synaptic_factors("activation", None, error, gate)
        np.testing.assert_array_equal(gain[:, 0], expected)


# Who meets whom.


@EVERY_KIND
@pytest.mark.parametrize("regular", [False, True])
def test_credit_matrix_holds_the_weight_at_each_lag(name, regular):
    trace, arrivals, writes = TRACES[name], np.arange(-2, 6), np.arange(-4, 3)
    weights = oracles.weights(trace, np.arange(10))
    times = jnp.asarray(arrivals, float), jnp.asarray(writes, float)
    matrix = credit_matrix(trace, *times, horizon=4, regular=regular)
    assert matrix.shape == (8, 7, *trace.shape)
    for r, arrival in enumerate(arrivals):
        for s, write in enumerate(writes):
            expected = weights[arrival - write] if 0 <= arrival < 4 and arrival >= write else 0 * weights[0]
            np.testing.assert_allclose(matrix[r, s], expected, rtol=1e-13)


@pytest.mark.parametrize("post", [(), (OUT,)])
def test_remember_is_the_transpose_applied_to_every_signal(post):
    rng = np.random.default_rng(2)
    matrix, signal = rng.normal(size=(6, 5, *post)), rng.normal(size=(6, OUT, 2, 2))
    expected = np.einsum("rso,rohw->sohw", np.broadcast_to(matrix.reshape(6, 5, -1), (6, 5, OUT)), signal)
    result = credit.remember(jnp.asarray(matrix), jnp.asarray(signal))
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


# One rule, three evaluations.


@EVERY_TRACE
def test_every_evaluation_is_the_double_loop(name):
    """In all forms, with signals 3 steps late and lost at the end of the segment."""
    x, derivative, error = random_segment()
    arrivals = jnp.arange(STEPS) + 3.0
    for form in credit.FORMS:
        gain, signal = credit.synaptic_factors(form, derivative, error)
        expected = oracles.double_loop(TRACES[name], x, gain, signal, arrivals, horizon=STEPS)
        for update in every_evaluation(TRACES[name], x, gain, signal, arrivals, horizon=STEPS).values():
            assert_same(update, expected)


@EVERY_KIND
def test_every_evaluation_is_the_double_loop_in_float32(name):
    x, gain, signal = random_segment()
    arrivals = jnp.arange(STEPS) + 3.0
    expected = oracles.double_loop(TRACES[name], x, gain, signal, arrivals, horizon=STEPS)
    with jax.enable_x64(False):
        single = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), (TRACES[name], x, gain, signal))
        for update in every_evaluation(*single, jnp.arange(STEPS) + 3, horizon=STEPS).values():
            assert update.weight.dtype == jnp.float32
            assert_same(update, expected, 1e-5)


@TWO_TRACES
@pytest.mark.parametrize(("horizon", "chunks"), [(6, (1, 6)), (40, (3, 64))])
def test_signals_are_lost_at_the_horizon_and_nowhere_else(name, horizon, chunks):
    """Shorter and longer than the segment, for chunks of a step up to more than all, that divide it or not."""
    x, gain, signal = random_segment()
    arrivals = jnp.arange(STEPS) + 3.0
    expected = oracles.double_loop(TRACES[name], x, gain, signal, arrivals, horizon=horizon)
    for update in every_evaluation(TRACES[name], x, gain, signal, arrivals, horizon=horizon, chunks=chunks).values():
        assert_same(update, expected)


@EVERY_KIND
def test_without_a_horizon_every_signal_is_met(name):
    """In the adjoint; the others need to know how long to step."""
    trace, (x, gain, signal) = TRACES[name], random_segment()
    arrivals = jnp.arange(STEPS) + 5.0
    met = oracles.double_loop(trace, x, gain, signal, arrivals)
    assert_same(adjoint(trace, x, gain, signal, arrivals, horizon=None), met)
    assert_same(adjoint(trace, x, gain, signal, arrivals, horizon=STEPS + 5), met)
    with_loss = adjoint(trace, x, gain, signal, arrivals, horizon=STEPS)
    assert np.abs(with_loss.weight - met[0]).max() > 1e-2 * np.abs(met[0]).max()


@TWO_TRACES
@given(data=st.data())
@settings(max_examples=20)
def test_times_need_not_be_regular(name, data):
    """Whole steps in any order; no two writes share one, signals may."""
    writes = data.draw(st.lists(st.integers(0, 24), min_size=STEPS, max_size=STEPS, unique=True))
    arrivals = data.draw(st.lists(st.integers(-3, 30), min_size=STEPS, max_size=STEPS))
    x, gain, signal = random_segment()
    writes, arrivals = np.array(writes, float), np.array(arrivals, float)
    expected = oracles.double_loop(TRACES[name], x, gain, signal, arrivals, writes, horizon=25)
    for update in every_evaluation(TRACES[name], x, gain, signal, arrivals, writes, horizon=25).values():
        for array, other in zip(update, expected, strict=True):
            np.testing.assert_allclose(array, other, rtol=0, atol=1e-10)


def test_times_may_fall_between_steps_in_the_adjoint():
    trace, rng = CascadingTrace(4, 1.3, DT), np.random.default_rng(3)
    x, gain, _ = random_segment()
    writes, arrivals, signal = rng.uniform(0, 20, STEPS), rng.uniform(0, 40, 9), rng.normal(size=(9, OUT))
    expected = oracles.double_loop(trace, x, gain, signal, arrivals, writes, horizon=31)
    arrays = (x, gain, *map(jnp.asarray, (signal, arrivals, writes)))
    assert_same(adjoint(trace, *arrays, horizon=31), expected)


@TWO_TRACES
def test_scalar_third_factor_reaches_every_neuron(name):
    x, gain, signal = random_segment()
    arrivals, reward = jnp.arange(STEPS) + 3.0, signal[:, 0]
    expected = oracles.double_loop(TRACES[name], x, gain, np.repeat(reward[:, None], OUT, 1), arrivals, horizon=STEPS)
    for update in every_evaluation(TRACES[name], x, gain, reward, arrivals, horizon=STEPS).values():
        assert_same(update, expected)


@TWO_TRACES
def test_biases_are_synapses_with_input_one(name):
    x, gain, signal = random_segment()
    arrivals = jnp.arange(STEPS) + 3.0
    for update in every_evaluation(TRACES[name], x.at[:, 0].set(1.0), gain, signal, arrivals, horizon=STEPS).values():
        np.testing.assert_allclose(update.bias, update.weight[:, 0], rtol=1e-12, atol=1e-14)
        assert np.abs(update.bias).max() > 0.1


def test_delay_line_without_delay_is_backprop():
    x, gain, signal = random_segment()
    for update in every_evaluation(
        DelayLine(0.0, DT, max_delay=0.0), x, gain, signal, jnp.arange(STEPS), horizon=STEPS
    ).values():
        assert_same(update, ((gain * signal).T @ x, jnp.sum(gain * signal, 0)), 1e-14)


def test_literal_takes_a_kernel_per_synapse():
    rng, literal = np.random.default_rng(4), partial(credit.literal, horizon=STEPS)
    x, gain, signal = random_segment()
    arrivals = jnp.arange(STEPS) + 3.0
    for trace in (
        FIRTrace(rng.normal(size=(OUT, IN + 1, 6)), DT),
        ExponentialTrace(jnp.asarray(rng.uniform(0.3, 2.0, (OUT, IN + 1))), DT),
    ):
        expected = oracles.double_loop(trace, x, gain, signal, arrivals, horizon=STEPS)
        assert_same(jax.jit(literal)(trace, x, gain, signal, arrivals), expected)


@EVERY_KIND
def test_chunk_hands_on_the_state_that_stepping_reaches(name):
    trace, (x, gain, signal) = TRACES[name], random_segment(steps=6)
    state = start = trace.init((OUT, IN)) + 0.1
    step, total = jax.jit(type(trace).step), 0.0
    for t in range(len(x)):
        state, remembered = step(trace, state, gain[t][:, None] * x[t])
        total += signal[t][:, None] * remembered
    chunked_state, chunked_total = jax.jit(credit.chunk_update)(trace, start, x, gain, signal)
    np.testing.assert_allclose(chunked_state, state, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(chunked_total, total, rtol=1e-10, atol=1e-10)


# The authors' arrays.


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["identity", "relu"])
def test_linear_golden_arrays(kind, index):
    arrays = golden(f"linear_{kind}_{index}")
    x, cotangent, output = (jnp.asarray(arrays[key]) for key in ("x", "cotangent", "output"))
    derivative = None if kind == "identity" else (output > 0) * 1.0
    gain, signal = credit.synaptic_factors("authors_linear", derivative, cotangent)
    trace, arrivals = FIRTrace(arrays["kernel"], dt=1.0), jnp.arange(len(x)) + float(arrays["delay"])
    for update in every_evaluation(trace, x, gain, signal, arrivals, horizon=len(x)).values():
        np.testing.assert_allclose(update.weight, arrays["weight_grad"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["ideal", "cascade"])
def test_event_golden_arrays(kind, index):
    """Sparse events: each signal comes a fixed time after its own event, past the last one too.

    Their kernel is unnormalised and divided by `kernel_norm`, ours has the area 1: the factor is α^-n / kernel_norm.
    """
    arrays = golden(f"events_{kind}_{index}")
    x, cotangent, weight = (jnp.asarray(arrays[key]) for key in ("x", "cotangent", "weight"))
    order, delay = int(arrays["order"]), float(arrays["delay"])
    trace = CascadingTrace(order, delay, dt=1.0)
    factor = float(trace.rate) ** -order / arrays["kernel_norm"]
    writes = jnp.asarray(arrays["event_times"], float)
    derivative = (jnp.asarray(arrays["output"]) > 0) * 1.0
    gain, signal = credit.synaptic_factors("activation", derivative, cotangent)
    update = adjoint(trace, x, gain, signal, writes + delay, writes, horizon=None)
    np.testing.assert_allclose(factor * update.weight, arrays["weight_grad"], rtol=1e-10, atol=1e-12)
    if index == 0:
        for again in every_evaluation(trace, x, gain, signal, writes + delay, writes, horizon=240).values():
            np.testing.assert_allclose(factor * again.weight, arrays["weight_grad"], rtol=1e-10, atol=1e-12)
    # The derivative that errors travel down through waits for the signal too: exactly, or in a cascade at the soma.
    waited = derivative
    if kind == "cascade":
        np.testing.assert_allclose(factor * update.bias, arrays["bias_grad"][0], rtol=1e-10, atol=1e-12)
        waited = factor * credit_matrix(trace, writes + delay, writes) @ derivative
    np.testing.assert_allclose((waited * cotangent) @ weight, arrays["input_grad"], rtol=1e-10, atol=1e-12)


# What is refused.


@pytest.fixture
def without_type_checks():
    """As users call the library, without the type checker that says the same in other words under pytest."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"`form` must be one of 'activation', .*, got 'hebbian'"):
        credit.synaptic_factors("hebbian", None, jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(gain=jnp.ones((4, OUT))), r"must be \[time, in\] and \[time, out\], got \(5, 4\) and \(4, 3\)"),
        (dict(signal=jnp.ones((5, 2))), r"`signal` must be \[signals\] or \[signals, out\], got \(5, 2\) for out = 3"),
        (dict(signal=jnp.ones((5, OUT, 1))), r"`signal` must be .* got \(5, 3, 1\)"),
        (dict(signal=jnp.ones((6, OUT))), r"`arrival_steps` must have shape \(6,\), got \(5,\)"),
        (dict(write_steps=jnp.arange(4.0)), r"`write_steps` must have shape \(5,\), got \(4,\)"),
        (dict(trace=CascadingTrace(3, jnp.ones(2))), r"shared or one a post-neuron, got shape \(2,\) for out = 3"),
    ],
    ids=["gain", "signal", "signal_ndim", "arrivals", "writes", "trace"],
)  # fmt: skip
@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("evaluation", [credit.adjoint, credit.literal, credit.chunked])
def test_shapes_that_do_not_fit_are_refused(evaluation, wrong, message):
    arguments = dict(trace=CascadingTrace(3, 1.0), x=jnp.ones((5, IN)), gain=jnp.ones((5, OUT)))
    arguments |= dict(signal=jnp.ones((5, OUT)), arrival_steps=jnp.arange(5.0), horizon=5) | wrong
    with pytest.raises(ValueError, match=message):
        evaluation(**arguments)


@pytest.mark.parametrize("evaluation", [credit.adjoint, credit.chunked])
def test_a_kernel_per_synapse_needs_the_literal_form(evaluation):
    trace = CascadingTrace(3, jnp.ones((OUT, IN + 1)))
    with pytest.raises(ValueError, match=r"needs `literal`, got a trace of shape \(3, 5\)"):
        evaluation(trace, *random_segment(), jnp.arange(STEPS) * 1.0, horizon=STEPS)


def test_an_empty_chunk_is_refused():
    with pytest.raises(ValueError, match="`chunk` must be at least 1 step, got 0"):
        credit.chunked(CascadingTrace(3, 1.0), *random_segment(), jnp.arange(STEPS) * 1.0, horizon=STEPS, chunk=0)
