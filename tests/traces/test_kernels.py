"""Closed forms of the impulse responses, against scipy and the authors' arrays."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import READS, cascade, cascade_rate, held_step
from scipy import integrate, special, stats

from cetsim import kernels

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "kernels.npz")
ORDERS = (2, 3, 6, 10, 32, 64)
DELAYS = (1, 2, 3, 5, 10, 50, 600, 3000, 10000)


# Lags enough for every delay, always the same so that each order is compiled once.
LAGS = np.concatenate([np.arange(-2, 3700), np.arange(3700, 60000, 61)])


def eager_weights(lags, order, delay, read):
    """The library's weights at the rate that puts their peak at `delay` steps."""
    rate = kernels.cascade_rate(jnp.asarray(delay, float), order, read)
    return kernels.cascade_weights(jnp.asarray(lags, float), order, rate, read)


cascade_weights = jax.jit(eager_weights, static_argnums=(1, 3))


# Probabilities


@pytest.mark.parametrize(("x64", "rtol"), [(True, 1e-12), (False, 2e-6)])
def test_poisson(x64, rtol):
    counts, means = np.arange(65)[:, None], np.float32([0.0, 1e-3, 0.3, 0.999, 1.0, 2.0, 7.5, 31.0, 64.0, 126.0])
    expected = stats.poisson.pmf(counts, means.astype(float))
    with jax.enable_x64(x64):
        means = jnp.asarray(means, float)
        together = kernels.poisson(counts, means)
        one_by_one = jnp.stack([kernels.poisson(int(k), means) for k in (0, 1, 40)])
    np.testing.assert_allclose(together, expected, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(one_by_one, expected[[0, 1, 40]], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 10, 31, 64])
def test_gamma_distribution(order):
    x = np.concatenate([[-1.0, 0.0], np.geomspace(1e-2, 10 * order, 200), order + np.array([-1e-9, 0.0, 1e-9])])
    expected = special.gammainc(order, np.maximum(x, 0.0))
    np.testing.assert_allclose(jax.jit(kernels.gamma_cdf, static_argnums=0)(order, x), expected, rtol=1e-12)
    slope = jax.jit(jax.vmap(jax.grad(kernels.gamma_cdf, 1), (None, 0)), static_argnums=0)(order, jnp.asarray(x))
    np.testing.assert_allclose(slope[x != 0], stats.gamma.pdf(x[x != 0], order), rtol=1e-12)


@pytest.mark.parametrize("order", [2, 10, 64])
def test_gamma_distribution_in_float32(order):
    x = np.linspace(0.0, 3 * order, 500, dtype=np.float32)
    with jax.enable_x64(False):
        found = jax.jit(kernels.gamma_cdf, static_argnums=0)(order, x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, special.gammainc(order, x.astype(float)), atol=5e-7)  # gammainc of jax: 2e-5


# Weights of cascades


@pytest.mark.parametrize("name", GOLDEN.files)
def test_golden_kernels(name):
    order, delay = (int(number) for number in name.removeprefix("order").split("_delay"))
    expected = GOLDEN[name] * cascade_rate(order, delay, "before") ** order
    found = cascade_weights(LAGS, order, delay, "before")[LAGS.searchsorted(range(len(expected)))]
    # The authors' tails are rounding errors of their largest weight.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11 * expected.max())


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("order", [2, 6, 10, 64])
def test_cascade_weights_are_differences_of_the_gamma_distribution(order, read):
    for delay in (*DELAYS, 0.51, 1.49, 2.5, 17.3):
        expected = cascade(LAGS, order, delay, read)
        found = cascade_weights(LAGS, order, delay, read)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11 * expected.max(), err_msg=f"delay {delay}")
        assert not np.any(found[{"before": 1, "after": 0}[read] > LAGS])  # nothing is read before it has entered


@pytest.mark.parametrize(("order", "delay"), [(2, 0.7), (2, 30.0), (6, 3.0), (10, 5.5), (64, 4.0), (64, 200.0)])
def test_cascade_weights_are_integrals_of_the_density_also_between_lags(order, delay):
    rate = cascade_rate(order, delay, "before")
    lags = delay * np.array([0.3, 0.8, 1.0, 1.37, 2.0])
    integrals = [
        integrate.quad(lambda t: stats.gamma.pdf(t, order, scale=1 / rate), *ends, epsabs=1e-13)[0]
        for ends in zip(*held_step(lags, "before"), strict=True)
    ]
    np.testing.assert_allclose(cascade_weights(lags, order, delay, "before"), integrals, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("order", ORDERS)
def test_cascade_weights_hold_up_in_float32(order, read):
    for delay in DELAYS:
        expected = cascade(LAGS, order, delay, read)
        with jax.enable_x64(False):
            found = cascade_weights(LAGS, order, delay, read)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * expected.max(), err_msg=f"delay {delay}")


@pytest.mark.parametrize("order", [32, 64])
def test_narrow_pulses_between_lags_hold_up_in_float32(order):
    """Delays around those where one integration takes over from the other."""
    for delay in np.float32([0.55, 1.5, 2.5, 3.5, 4.5, 5.4, 5.8, 6.6, 7.7, 8.3, 8.5, 9.2]):
        expected = cascade(np.arange(40), order, float(delay), "before")
        with jax.enable_x64(False):
            found = cascade_weights(LAGS, order, delay, "before")[2:42]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * expected.max(), err_msg=f"delay {delay}")


@hypothesis.settings(max_examples=30)
@hypothesis.given(order=st.integers(2, 64), delay=st.integers(0, 2400), read=st.sampled_from(READS))
def test_largest_weight_is_at_the_delay(order, delay, read):
    hypothesis.assume(read == "after" or delay > 0)
    weights = np.asarray(eager_weights(np.arange(3000), order, delay, read))
    assert weights.argmax() == delay
    assert np.sum(weights == weights[delay]) == 1


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("order", [2, 3, 20, 64])
def test_largest_weight_is_at_long_delays(order, read):
    for delay in (1, 7, 2399, 5000, 10000):
        around = delay + np.arange(-1, 2)
        before, at, after = cascade_weights(around, order, delay, read)
        assert at > before
        assert at > after


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("order", [2, 64])
def test_weight_at_the_delay_is_within_rounding_of_the_largest_in_float32(order, read):
    for delay in (1, 8, 600, 10000):
        with jax.enable_x64(False):
            weights = np.asarray(eager_weights(np.arange(12000), order, delay, read))
        assert weights[delay] >= (1 - 1e-5) * weights.max()


@hypothesis.settings(max_examples=20)
@hypothesis.given(delay=st.floats(0.6, 40.0), read=st.sampled_from(READS))
@pytest.mark.parametrize("order", [2, 10])
def test_area_is_one(order, delay, read):
    weights = np.asarray(cascade_weights(LAGS, order, delay, read))[:3702]
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert weights.min() >= 0.0


# One stage, and transforms


@pytest.mark.parametrize("read", READS)
def test_exponential_weights_are_a_cascade_of_one_stage(read):
    lags = jnp.arange(-2.0, 60.0)
    for rate in (1e-3, 0.3, 5.0):
        expected = np.diff(stats.expon.cdf(held_step(lags, read), scale=1 / rate), axis=0)[0]
        found = kernels.exponential_weights(lags, jnp.asarray(rate), read)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(found, kernels.cascade_weights(lags, 1, jnp.asarray(rate), read), atol=1e-12)


@pytest.mark.parametrize("s", [0.0, 0.7, 2.0, 1.5j, 0.4 - 3.0j])
@pytest.mark.parametrize("order", [1, 2, 10, 64])
def test_laplace_transform(order, s):
    rate = order / 2.0  # per second: a mean of 2 s
    density = stats.gamma(order, scale=1 / rate).pdf
    limits = {"epsabs": 1e-12, "limit": 400, "complex_func": True}
    integral, _ = integrate.quad(lambda t: density(t) * np.exp(-s * t), 0, 80, **limits)
    np.testing.assert_allclose(kernels.cascade_laplace(s, order, rate), integral, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("s", [0.3, 0.5j])
def test_laplace_transform_tends_to_the_delay_in_inverse_proportion_to_the_order(s):
    delay, orders = 2.0, np.array([8, 16, 32, 64])
    errors = [abs(kernels.cascade_laplace(s, int(n), (n - 1) / delay) - np.exp(-s * delay)) for n in orders]
    slope, _ = np.polyfit(np.log(orders), np.log(errors), 1)
    assert slope == pytest.approx(-1.0, abs=0.06)
    assert errors[-1] < 0.02
