"""Closed forms of the impulse responses: weights at lags, peaks, moments and Laplace transforms.

Everything here is a pure function of dimensionless quantities: lags in steps, rates per step. Input is held over a
step (zero-order hold), and `read` says whether the trace is read `"before"` or `"after"` the step's own input enters.
Weights are area-normalised: over all lags they sum to 1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, ArrayLike, Float

# Eight nodes integrate a pulse at least one step wide (standard deviation) to better than float32.
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)


def poisson(count: int | np.ndarray, mean: Float[Array, "..."]) -> Float[Array, "..."]:
    """Poisson probability e^(-x) x^k / k!, to a few ulp in float32 where the power and the factorial would overflow.

    It is evaluated relative to its value at x = k, whose logarithm is known on the host in float64. The exponent
    k (log u - (u - 1)), u = x/k, cancels near u = 1, where log1p keeps it, and log1p would lose small u.

    **Arguments:** `count`: k ≥ 0, known before tracing. `mean`: x ≥ 0. They broadcast.
    """
    k = np.maximum(count, 1)
    at_peak = jnp.asarray(np.exp(k * np.log(k) - k - scipy.special.gammaln(k + 1)), mean.dtype)
    k = jnp.asarray(k, mean.dtype)
    positive = mean > 0
    u = jnp.where(positive, mean, 1.0) / k
    small = u < 0.5
    log_u = jnp.where(small, jnp.log(jnp.where(small, u, 1.0)), jnp.log1p(jnp.where(small, 0.0, u - 1.0)))
    value = jnp.where(positive, at_peak * jnp.exp(k * (log_u - (u - 1.0))), 0.0)
    return jnp.where(np.asarray(count) == 0, jnp.exp(-mean), value)


def first_lag(read: str) -> int:
    """Lag at which the held input of a step is first read: 1 if read before it enters, 0 if after."""
    return 1 if read == "before" else 0


def cascade_rate(delay: ArrayLike, order: int, read: str):
    """Rate per step that puts the largest weight of a cascade exactly at lag `delay`: (n - 1) / (D ∓ 1/2).

    **Arguments:** `delay`: D, in steps. `order`: n.

    **Reference:** design of this package; the hold shifts the continuous peak (n - 1)/α by half a step.
    """
    return (order - 1) / (delay + 0.5 - first_lag(read))


@functools.partial(jax.jit, static_argnames=("order", "read"))
def cascade_weights(
    lags: Float[Array, "*lags"], order: int, rate: Float[Array, ""], read: str
) -> Float[Array, "*lags"]:
    """Area-normalised weight of a cascade of n equal stages at each lag, F(b) - F(a) with F(τ) = P(n, ατ).

    a and b are the ends of the held step as seen from the read: (j - 1, j) for `"before"`, (j, j + 1) for `"after"`.
    In float32 the difference is lost for wide pulses (9 % of the peak at n = 64, D = 10,000), and quadrature of the
    density fails for pulses narrower than a step: each is used where it is good.

    **Arguments:**

    - `lags`: in steps, any real.
    - `order`: n ≥ 1.
    - `rate`: α dt.

    **Reference:** arXiv:2506.14598, eq. of the cascade's impulse response.
    """
    end = jnp.maximum(lags + 1 - first_lag(read), 0.0)
    start = jnp.maximum(end - 1.0, 0.0)
    narrow = math.sqrt(order) < rate  # standard deviation below one step
    # Both branches see harmless values where the other one is taken, so that neither spoils the gradient.
    difference_rate = jnp.where(narrow, rate, 1.0 * order)
    quadrature_rate = jnp.where(narrow, math.sqrt(order), rate)
    difference = gamma_cdf(order, difference_rate * end) - gamma_cdf(order, difference_rate * start)
    middle, half = (start + end) / 2, (end - start) / 2
    nodes, node_weights = (jnp.asarray(array, half.dtype) for array in (_NODES, _NODE_WEIGHTS))
    density = poisson(order - 1, quadrature_rate * (middle[..., None] + half[..., None] * nodes))
    return jnp.where(narrow, difference, half * quadrature_rate * jnp.sum(density * node_weights, axis=-1))


@functools.partial(jax.jit, static_argnames="read")
def readout_weights(
    lags: Float[Array, "*lags"], coefficients: Float[Array, "stages *readouts"], rate: Float[Array, ""], read: str
) -> Float[Array, "..."]:
    """Weight at each lag of a readout of all stages of a cascade, Σ_k c_k w_k; w_k is `cascade_weights` of order k.

    As there, the density is integrated over the step that was held or, where stages pass within a step, their
    distribution is subtracted: that of Σ c_k P(k, x) = Σ_{i≥1} p_i (c_1 + ... + c_i), p_i the Poisson probability of i.

    **Arguments:**

    - `lags`: in steps, any real.
    - `coefficients`: c, of stages of unit area, `[stages]` or one column a readout.
    - `rate`: α dt.
    """
    order = coefficients.shape[0]
    end = jnp.maximum(lags + 1 - first_lag(read), 0.0)
    start = jnp.maximum(end - 1.0, 0.0)
    fast = rate > 2.0  # below, eight nodes integrate each stage to float64's rounding; above, the pulse is high enough
    difference_rate, quadrature_rate = jnp.where(fast, rate, 2.0), jnp.where(fast, 2.0, rate)
    sums = jnp.cumsum(coefficients, axis=0)
    combine = functools.partial(jnp.tensordot, axes=1, precision="highest")

    def distribution(x):
        below = combine(poisson(np.arange(1, order), x[..., None]), sums[:-1])
        return below + combine(gamma_cdf(order, x)[..., None], sums[-1:])

    difference = distribution(difference_rate * end) - distribution(difference_rate * start)
    middle, half = (start + end) / 2, (end - start) / 2
    probabilities = sum(
        weight * poisson(np.arange(order), (quadrature_rate * (middle + half * node))[..., None])
        for node, weight in zip(map(float, _NODES), map(float, _NODE_WEIGHTS), strict=True)
    )
    quadrature = combine((half * quadrature_rate)[..., None] * probabilities, coefficients)
    return jnp.where(fast, difference, quadrature)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gamma_cdf(order: int, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """P(n, x), the distribution of a cascade's delay: by its series below x = n, by 1 - Q(n, x) above.

        P(n, x) = p_n (1 + x/(n+1) (1 + x/(n+2) (1 + ...)))      Q(n, x) = p_{n-1} (1 + (n-1)/x (1 + (n-2)/x (1 + ...)))

    with p_k the Poisson probability of k. In float32 jax's own `gammainc` is off by 2e-5 near x = n = 64.

    **Arguments:** `order`: n ≥ 1, known before tracing. `x`: any shape; P is 0 where it is negative.
    """
    below, above = jnp.clip(x, 0.0, order), jnp.maximum(x, order)
    terms = 20 + 9 * math.isqrt(order)  # what is left out is below float64's rounding
    # A loop, since its terms written out were most of what XLA compiled of a network.
    series = jax.lax.fori_loop(0, terms, lambda i, total: 1.0 + total * below / (order + terms - i), jnp.ones_like(x))
    fraction = jax.lax.fori_loop(1, order, lambda k, total: 1.0 + total * k / above, jnp.ones_like(x))
    return jnp.where(x < order, poisson(order, below) * series, 1.0 - poisson(order - 1, above) * fraction)


@gamma_cdf.defjvp
def _gamma_cdf_jvp(order, primals, tangents):
    """Its slope is the density, p_{n-1}, where differentiating the series would cancel."""
    (x,), (tangent,) = primals, tangents
    return gamma_cdf(order, x), jnp.where(x >= 0, poisson(order - 1, jnp.maximum(x, 0.0)), 0.0) * tangent


def exponential_weights(lags: Float[Array, "*lags"], rate: Float[Array, ""], read: str) -> Float[Array, "*lags"]:
    """Area-normalised weight of one leaky stage, (1 - q) q^(j - j0) with q = e^(-dt/τ), from its first lag j0.

    **Arguments:** `lags`: in steps. `rate`: dt/τ.
    """
    since = lags - first_lag(read)
    weights = -jnp.expm1(-rate) * jnp.exp(-rate * jnp.maximum(since, 0.0))
    return jnp.where(since >= 0, weights, 0.0)


def largest(weights: Float[Array, " lags"]) -> Float[Array, ""]:
    """The largest of a few weights; the derivative of `jnp.max` is NaN where XLA rounds it unlike its arguments."""
    return weights[jnp.argmax(jax.lax.stop_gradient(weights))]


def cascade_laplace(s, order: int, rate):
    """Laplace transform (α/(s + α))^n of an area-normalised cascade; tends to e^(-sT) as n grows at fixed peak.

    **Arguments:** `s`: real or complex, per second. `rate`: α, per second.
    """
    return (rate / (s + rate)) ** order
