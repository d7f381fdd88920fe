"""Surrogates: a spike on the way forward, the derivative of a known sigmoid on the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from cetsim import spiking

SURROGATES = {
    "FastSigmoid": (spiking.FastSigmoid(3.0), lambda u: u / (1 + 3.0 * abs(u))),
    "ArcTan": (spiking.ArcTan(1.7), lambda u: np.arctan(np.pi / 2 * 1.7 * u) / np.pi),
    "Boxcar": (spiking.Boxcar(0.4), lambda u: np.clip(u / 0.8, -0.5, 0.5)),
    "Gaussian": (spiking.Gaussian(0.3), lambda u: scipy.stats.norm.cdf(u, scale=0.3)),
}
each = pytest.mark.parametrize("name", SURROGATES)


@each
def test_forward_is_the_step_and_zero_is_no_spike(name):
    surrogate, _ = SURROGATES[name]
    u = jnp.array([-2.0, -1e-9, 0.0, 1e-9, 2.0])
    np.testing.assert_array_equal(surrogate(u), [0, 0, 0, 1, 1])
    assert surrogate(u.astype(jnp.float32)).dtype == jnp.float32


@each
def test_backward_is_the_derivative_of_the_sigmoid_that_it_names(name):
    surrogate, sigmoid = SURROGATES[name]
    u, h = np.array([-1.3, -0.37, -0.1, 0.02, 0.2, 0.9]), 1e-6
    expected = (sigmoid(u + h) - sigmoid(u - h)) / (2 * h)
    np.testing.assert_allclose(surrogate.slope(u), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(jax.grad(lambda u: surrogate(u).sum())(jnp.asarray(u)), surrogate.slope(u), rtol=1e-14)
    assert surrogate.slope(jnp.float32(0.3)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["ArcTan", "Boxcar", "Gaussian"])
def test_area_is_one(name):
    surrogate, sigmoid = SURROGATES[name]
    area = scipy.integrate.quad(lambda u: float(surrogate.slope(jnp.asarray(u))), -5, 5, points=[-0.4, 0.4])[0]
    np.testing.assert_allclose(area, sigmoid(5.0) - sigmoid(-5.0), rtol=1e-6)


@pytest.mark.parametrize("kind", [spiking.FastSigmoid, spiking.ArcTan, spiking.Boxcar, spiking.Gaussian])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), "wide"])
def test_widths_at_or_below_zero_are_refused(kind, wrong):
    with pytest.raises(ValueError, match="must be"):
        kind(wrong)
