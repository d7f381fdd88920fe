"""Traces of every kind: weights, steps, moments, transforms, windows and what they refuse."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import (
    DT,
    NORMALIZATIONS,
    READS,
    cascade,
    cascade_rate,
    double_exponential,
    examples,
    exponential,
    filtered,
    respond,
    weights,
)
from scipy import integrate, stats

from cetsim import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace, FIRTrace

SHARED, PER_NEURON = examples(), examples(per_neuron=True)
LAGS = np.arange(40)
EVERY_TRACE = pytest.mark.parametrize("name", SHARED)
EVERY_KIND = pytest.mark.parametrize(
    "name", ["cascade10-before-area", "exponential-after-area", "double-before-peak", "delay_line", "fir"]
)


# Weights and steps


@pytest.mark.parametrize("known", [SHARED, PER_NEURON], ids=["shared", "per-neuron"])
@EVERY_TRACE
def test_weights_and_steps(name, known):
    """Activity `[out, in]`, with one kernel for all synapses or one for each post-neuron."""
    trace, expected = known[name].make(), known[name].weights(LAGS)
    e = np.random.default_rng(1).normal(size=(len(LAGS), 3, 2))
    assert trace.shape == expected.shape[1:]
    found, reads = jax.jit(lambda trace: (trace.weights(LAGS), respond(trace, e)))(trace)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(reads, filtered(expected, e), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cascade10-before-area", "delay_line", "fir"])
def test_steps_of_a_single_synapse_and_of_post_neurons(name):
    rng = np.random.default_rng(2)
    for known, shape in ((SHARED, ()), (PER_NEURON, (3,)), (PER_NEURON, (3, 2, 2))):
        e = rng.normal(size=(12, *shape))
        found = respond(known[name].make(), e)
        np.testing.assert_allclose(found, filtered(known[name].weights(np.arange(12)), e), rtol=1e-10, atol=1e-12)


def test_kernels_per_synapse():
    delays = np.array([[1.0, 3.0], [2.0, 4.0], [8.0, 2.5]])  # [out, in], in steps
    trace = CascadingTrace(4, delays * DT, DT)
    expected = np.stack([[cascade(LAGS, 4, delay, "before") for delay in row] for row in delays])
    assert trace.shape == (3, 2)
    np.testing.assert_allclose(weights(trace, LAGS), np.moveaxis(expected, -1, 0), rtol=1e-10, atol=1e-13)
    e = np.random.default_rng(3).normal(size=(20, 3, 2))
    np.testing.assert_allclose(respond(trace, e), filtered(np.moveaxis(expected, -1, 0)[:20], e), atol=1e-12)


def test_weights_at_lags_of_any_shape():
    trace, lags = CascadingTrace(3, 1.0, DT), np.arange(-4, 8).reshape(3, 4)
    found = weights(trace, lags)
    np.testing.assert_allclose(found, cascade(lags, 3, 5, "before"), rtol=1e-10, atol=1e-15)
    assert not np.any(found[lags <= 0])  # causal, and read before the step's own input enters
    assert weights(trace, 5).shape == ()


@EVERY_KIND
@hypothesis.settings(max_examples=10)
@hypothesis.given(seed=st.integers(0, 1000), scale=st.floats(-3, 3), shift=st.integers(0, 20))
def test_steps_are_linear_and_invariant_in_time(name, seed, scale, shift):
    trace, rng = SHARED[name].make(), np.random.default_rng(seed)
    one, two = rng.normal(size=(2, 40, 2))
    one[20:] = 0.0
    together = respond(trace, one + scale * two)
    np.testing.assert_allclose(together, respond(trace, one) + scale * respond(trace, two), atol=1e-12)
    later = respond(trace, np.roll(one, shift, axis=0))
    np.testing.assert_allclose(later[:shift], 0.0, atol=1e-15)
    np.testing.assert_allclose(later[shift:], respond(trace, one)[: 40 - shift], atol=1e-12)


@hypothesis.settings(max_examples=20)
@hypothesis.given(scale=st.floats(1e-3, 1e3), steps=st.integers(1, 30))
def test_weights_depend_on_times_over_dt_only(scale, steps):
    dt = DT * scale
    for one, other in (
        (CascadingTrace(10, steps * DT, DT), CascadingTrace(10, steps * dt, dt)),
        (ExponentialTrace(steps * DT, DT), ExponentialTrace(steps * dt, dt)),
        (DoubleExponentialTrace(steps * DT, DT / 2, 1.0, DT), DoubleExponentialTrace(steps * dt, dt / 2, 1.0, dt)),
        (DelayLine(steps * DT, DT), DelayLine(steps * dt, dt)),
    ):
        np.testing.assert_allclose(one.weights(LAGS), other.weights(LAGS), rtol=1e-9, atol=1e-12)


def test_numbers_of_any_kind_are_taken():
    trace = CascadingTrace(np.int64(3), 4, 1)
    np.testing.assert_allclose(trace.weights(LAGS), cascade(LAGS, 3, 4, "before"), rtol=1e-10, atol=1e-15)
    assert (trace.order, trace.dt) == (3, 1.0)
    np.testing.assert_array_equal(DelayLine(np.float32(2), 1, max_delay=3).weights(np.arange(4)), [0, 0, 1, 0])


def test_defaults():
    trace = CascadingTrace()
    assert (trace.order, trace.dt, trace.read, trace.normalization) == (10, 0.2, "before", "area")
    assert float(trace.delay) == 4.0


# Normalisation


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: CascadingTrace(2, 1.0, **options),
        lambda **options: CascadingTrace(10, 1.13, **options),  # between lags 5 and 6
        lambda **options: CascadingTrace(64, 3.0, **options),
        lambda **options: ExponentialTrace(1.3, **options),
        lambda **options: DoubleExponentialTrace(1.3, 0.4, **options),
        lambda **options: DoubleExponentialTrace(0.4, 1.3, **options),
        lambda **options: DoubleExponentialTrace(1.3, 0.4, 0.0, **options),
        lambda **options: DoubleExponentialTrace(1.3, 0.4, 5.0, **options),
        lambda **options: DoubleExponentialTrace(1.3, 0.05, 1.0, **options),
    ],
)
def test_area_sums_to_one_and_peak_is_one(make, read):
    lags = np.arange(600)
    assert weights(make(read=read), lags).sum() == pytest.approx(1.0, abs=1e-12)
    assert np.abs(weights(make(read=read, normalization="peak"), lags)).max() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_delay_between_lags_has_its_largest_weight_beside_it(normalization):
    for delay, largest in ((5.3, 5), (5.7, 6)):
        found = weights(CascadingTrace(10, delay * DT, DT, "before", normalization), LAGS)
        assert int(np.argmax(found)) == largest


@pytest.mark.parametrize("read", READS)
def test_double_exponential_with_two_phases(read):
    """It starts below zero and ends above, or the other way about, and its peak may be on either side."""
    for parameters in ((6.0, 2.0, 2.5), (6.0, 2.0, 20.0), (2.0, 6.0, 0.05), (9.0, 2.0, 3.9)):
        decay, rise, ratio = parameters
        for normalization in NORMALIZATIONS:
            trace = DoubleExponentialTrace(decay * DT, rise * DT, ratio, DT, read, normalization)
            expected = double_exponential(LAGS, *parameters, read, normalization)
            assert expected.min() < 0 < expected.max()
            np.testing.assert_allclose(weights(trace, LAGS), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("read", READS)
def test_double_exponential_without_its_second_part_is_exponential(read):
    for normalization in NORMALIZATIONS:
        trace = DoubleExponentialTrace(5 * DT, 2 * DT, 0.0, DT, read, normalization)
        np.testing.assert_allclose(
            weights(trace, LAGS), exponential(LAGS, 5.0, read, normalization), rtol=1e-10, atol=1e-15
        )


# Moments, transforms and windows


def test_moments_of_cascades():
    for order, delay, read in ((2, 0.3, "before"), (10, 4.0, "after"), (64, 1.0, "before")):
        trace = CascadingTrace(order, delay, DT, read)
        density = stats.gamma(order, scale=DT / cascade_rate(order, delay / DT, read)).pdf
        assert_moments(trace, density)


@pytest.mark.parametrize("parameters", [(2.0, 0.5, 1.0), (0.5, 2.0, 1.0), (2.0, 0.5, 0.0), (2.0, 0.5, 7.0)])
def test_moments_of_exponentials(parameters):
    decay, rise, ratio = parameters
    assert_moments(
        DoubleExponentialTrace(*parameters, DT),
        lambda t: (np.exp(-t / decay) - ratio * np.exp(-t / rise)) / (decay - ratio * rise),
    )
    assert_moments(ExponentialTrace(decay, DT), lambda t: np.exp(-t / decay) / decay)


def assert_moments(trace, density):
    area, first, second = (integrate.quad(lambda t, k=k: t**k * density(t), 0, 90, limit=400)[0] for k in range(3))
    assert area == pytest.approx(1.0, rel=1e-7)
    assert float(trace.mean()) == pytest.approx(first, rel=1e-7)
    assert float(trace.variance()) == pytest.approx(second - first**2, rel=1e-6)


def test_moments_of_a_delay_line():
    trace = DelayLine(np.array([0.0, 1.4]))
    np.testing.assert_allclose(trace.mean(), [0.0, 1.4])
    np.testing.assert_array_equal(trace.variance(), [0.0, 0.0])


@pytest.mark.parametrize("s", [0.8, 0.3 - 2.0j])
def test_laplace_transforms(s):
    for trace, density in (
        (CascadingTrace(10, 1.0, DT, "after"), stats.gamma(10, scale=1.1 / 9).pdf),
        (ExponentialTrace(0.7, DT), lambda t: np.exp(-t / 0.7) / 0.7),
    ):
        expected, _ = integrate.quad(lambda t, d=density: d(t) * np.exp(-s * t), 0, 30, limit=400, complex_func=True)
        np.testing.assert_allclose(trace.laplace(s), expected, rtol=1e-7)
    np.testing.assert_allclose(DelayLine(1.4).laplace(s), np.exp(-1.4 * s), rtol=1e-12)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("tail", [1e-6, 1e-3])
def test_window_leaves_out_no_more_than_the_tail_and_is_not_needlessly_long(read, tail):
    kinds = [
        *((CascadingTrace(n, d * DT, DT, read), cascade, (n, d), 1.0) for n in (2, 10, 64) for d in (1, 20, 300)),
        *((ExponentialTrace(t * DT, DT, read), exponential, (t,), 1.0) for t in (0.5, 3, 200)),
        *(
            (DoubleExponentialTrace(d * DT, r * DT, ratio, DT, read), double_exponential, (d, r, ratio), 1.15)
            for d, r, ratio in ((20, 10, 1), (10, 20, 1), (20, 10, 0), (20, 1, 50), (50, 5, 3))
        ),
    ]
    for trace, oracle, parameters, slack in kinds:
        size = np.abs(oracle(np.arange(12000), *parameters, read))
        beyond = np.cumsum(size[::-1])[::-1] / size.sum()  # of the area, from each lag on
        shortest = int(np.argmax(beyond <= tail * (1 + 1e-6)))
        assert shortest <= trace.window(tail) <= slack * shortest + 1, trace


def test_windows_take_the_longest_of_many_and_have_room_for_the_whole_line():
    assert CascadingTrace(10, np.array([1.0, 9.0, 2.0])).window() == CascadingTrace(10, 9.0).window()
    assert ExponentialTrace(np.array([1.0, 9.0])).window() == ExponentialTrace(9.0).window()
    assert DelayLine(np.array([1.0, 0.2])).window() == 6
    assert DelayLine(1.0, max_delay=2.0).window() == 11
    assert FIRTrace(np.ones((2, 7))).window() == 7


def test_window_of_a_traced_parameter_says_so():
    with pytest.raises(ValueError, match="traced parameters is unknown: give a number of steps"):
        jax.jit(lambda delay: CascadingTrace(10, delay).window())(4.0)


# Other ways to make a trace


@pytest.mark.parametrize("read", READS)
def test_from_rate_and_back(read):
    for rate in (0.5, np.array([2.0, 11.0])):
        trace = CascadingTrace.from_rate(rate, 5, DT, read, "peak")
        np.testing.assert_allclose(trace.rate, rate, rtol=1e-12)
        assert (trace.order, trace.read, trace.normalization) == (5, read, "peak")
    delay = 1.4
    again = CascadingTrace.from_rate(CascadingTrace(5, delay, DT, read).rate, 5, DT, read)
    np.testing.assert_allclose(again.delay, delay, rtol=1e-12)


@pytest.mark.parametrize("known", [SHARED, PER_NEURON], ids=["shared", "per-neuron"])
@EVERY_KIND
def test_tabulate(name, known):
    trace = known[name].make()
    table = trace.tabulate(9)
    assert isinstance(table, FIRTrace)
    assert (table.shape, table.dt, table.window()) == (trace.shape, trace.dt, 9)
    expected = known[name].weights(np.arange(9))
    np.testing.assert_allclose(weights(table, LAGS)[:9], expected, rtol=1e-10, atol=1e-13)
    assert not np.any(weights(table, LAGS)[9:])
    e = np.random.default_rng(5).normal(size=(9, 3))
    np.testing.assert_allclose(respond(table, e), filtered(expected, e), atol=1e-12)


def test_fir_is_zero_outside_its_taps():
    trace = FIRTrace([1.0, -2.0, 3.0])
    np.testing.assert_array_equal(trace.weights([-1, 0, 1, 2, 3, 9]), [0, 1, -2, 3, 0, 0])
    np.testing.assert_array_equal(FIRTrace([1, 2]).weights([0, 1]), [1.0, 2.0])


def test_delay_line_remembers_exactly():
    e = np.random.default_rng(6).normal(size=(30, 2))
    for steps in (0, 1, 7):
        found = respond(DelayLine(steps * DT, DT, max_delay=10 * DT), e)
        np.testing.assert_array_equal(found, np.concatenate([np.zeros((steps, 2)), e[: 30 - steps]]))


def test_delay_line_with_a_traced_delay_is_stepped_in_the_room_of_the_longest():
    e = np.random.default_rng(7).normal(size=30)
    line = jax.vmap(lambda delay: respond(DelayLine(delay, DT, max_delay=7 * DT), e))
    expected = [np.concatenate([np.zeros(n), e[: 30 - n]]) for n in (0, 2, 7)]
    np.testing.assert_array_equal(line(DT * jnp.array([0.0, 2.0, 7.0])), expected)
    with pytest.raises(ValueError, match="`max_delay` is needed, in seconds"):
        jax.vmap(lambda delay: respond(DelayLine(delay, DT), e))(jnp.array([0.2]))


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CascadingTrace(1), r"`order` must be 2 to 64, got 1: .* ExponentialTrace\(time_constant\)"),
        (lambda: CascadingTrace(65), "`order` must be 2 to 64, got 65"),
        (lambda: CascadingTrace(0), "`order` must be 2 to 64, got 0"),
        (lambda: CascadingTrace(-3), "`order` must be 2 to 64, got -3"),
        (lambda: CascadingTrace.from_rate(1.0, 1), "ExponentialTrace"),
        (lambda: CascadingTrace(2, 0.1, 0.2), r"`delay` must be above 0.1 s \(dt/2.*got 0.1"),
        (lambda: CascadingTrace(2, [1.0, -1.0]), r"`delay` must be above 0.1 s.*got \[1.0, -1.0\]"),
        (lambda: CascadingTrace(2, -0.1, read="after"), "`delay` must be at least 0, got -0.1"),
        (lambda: CascadingTrace(2, np.nan), "`delay` must be finite, got nan"),
        (lambda: CascadingTrace(2, np.inf), "`delay` must be finite, got inf"),
        (lambda: CascadingTrace(2, "long"), "`delay` must be a number or an array of numbers, got 'long'"),
        (lambda: CascadingTrace.from_rate(0.0), "`rate` must be above 0 per second, got 0.0"),
        (lambda: CascadingTrace.from_rate(np.nan), "`rate` must be finite, got nan"),
        (lambda: ExponentialTrace(0.0), "`time_constant` must be above 0 s, got 0.0"),
        (lambda: ExponentialTrace(np.inf), "`time_constant` must be finite, got inf"),
        (lambda: DoubleExponentialTrace(0.0, 1.0), "`decay` must be above 0 s, got 0.0"),
        (lambda: DoubleExponentialTrace(1.0, -1.0), "`rise` must be above 0 s, got -1.0"),
        (lambda: DoubleExponentialTrace(1.0, 2.0, -0.5), "`ratio` must be at least 0, got -0.5"),
        (lambda: DoubleExponentialTrace(1.0, 2.0, np.nan), "`ratio` must be finite, got nan"),
        (lambda: DoubleExponentialTrace(2.0, 2.0), "`decay` and `rise` must differ, got 2.0 and 2.0"),
        (lambda: DelayLine(-0.2), "`delay` must be at least 0, got -0.2"),
        (lambda: DelayLine(0.3), "`delay` must be a multiple of dt = 0.2 s, got 0.3"),
        (lambda: DelayLine(np.nan), "`delay` must be finite, got nan"),
        (lambda: DelayLine(1.0, max_delay=0.5), "`max_delay` must be a multiple of dt = 0.2 s, got 0.5"),
        (lambda: DelayLine(1.0, max_delay=0.8), "`delay` must be at most max_delay = 0.8 s, got 1.0"),
        (lambda: FIRTrace([]), r"`taps` must hold at least one lag, got shape \(0,\)"),
        (lambda: FIRTrace(1.0), r"`taps` must hold at least one lag, got shape \(\)"),
        (lambda: FIRTrace([1.0, np.inf]), r"`taps` must be finite, got \[1.0, inf\]"),
    ],
)
def test_parameters_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("order", [2.0, 2.5, True, "10"])
def test_order_must_be_an_integer(order):
    with pytest.raises(ValueError, match=f"`order` must be a whole number, got {order!r}"):
        CascadingTrace(order)


@pytest.mark.parametrize("kind", [CascadingTrace, ExponentialTrace, DoubleExponentialTrace, DelayLine, FIRTrace])
def test_dt_is_refused(kind):
    first = [[1.0]] if kind is FIRTrace else []
    for dt, message in (
        (0.0, "`dt` must be above 0 s, got 0.0"),
        (-0.2, "`dt` must be above 0 s, got -0.2"),
        (float("nan"), "`dt` must be finite, got nan"),
        (float("inf"), "`dt` must be finite, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(*first, dt=dt)


@pytest.mark.parametrize("kind", [CascadingTrace, ExponentialTrace, DoubleExponentialTrace])
def test_unknown_options_are_refused(kind):
    with pytest.raises(ValueError, match="`read` must be one of 'before', 'after', got 'during'"):
        kind(read="during")
    with pytest.raises(ValueError, match="`normalization` must be one of 'area', 'peak', got 'sum'"):
        kind(normalization="sum")


@pytest.mark.parametrize("ratio", [2.0, 1.9995, 2.0005])
def test_double_exponential_without_an_area_has_a_peak_only(ratio):
    with pytest.raises(ValueError, match=r"at least 1e-3 of the kernel's absolute area, got an area of .* of"):
        DoubleExponentialTrace(4.0, 2.0, ratio)
    found = weights(DoubleExponentialTrace(4.0, 2.0, ratio, DT, normalization="peak"), np.arange(600))
    assert np.abs(found).max() == pytest.approx(1.0)
    assert abs(found.sum()) < 1e-3 * np.abs(found).sum()


def test_double_exponential_with_a_small_area_is_taken():
    found = weights(DoubleExponentialTrace(4.0, 2.0, 1.99, DT), np.arange(600))
    assert found.sum() == pytest.approx(1.0, rel=1e-9)
    assert np.abs(found).sum() < 1e3


def test_shapes_that_do_not_match_are_refused():
    trace = CascadingTrace(3, np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"`shape` must begin with the trace's own shape \(2,\), got \(3, 2\)"):
        trace.init((3, 2))
    with pytest.raises(ValueError, match=r"`shape` must begin with the trace's own shape \(2,\), got \(\)"):
        trace.init(())
