"""Readouts of all stages of a trace: the balanced one, and what is known of any.

A linear trace keeps n states, whose impulse responses are the rows of S, `[states, lags]`. Any signed readout c of them
is a trace too, with the weights w = c S. The balanced readout has the least crosstalk of a signal with activity at the
wrong lags, given the weight at the right one, D:

    c = argmin  Σ_{j≠D} w_j² + ρ (Σ_{j≠D} w_j)² + η ‖c‖² tr(S Sᵀ)/n      with w_D = 1

ρ is m²/v for crosstalk of mean m and variance v, η the noise of the states. Between two lags, D stands for the one at
which the weight is right: Σ_{j≠D} means the sum over all lags less what belongs to D.

All functions here take NumPy's arrays, for parameters known on the host, where they compute in float64, or jax's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special

from cetsim import checks, kernels, state_space, steps

RHO, ETA = 10.0, 1e-4
LEAST_ETA = 1e-6  # of float32: below, what the readout cancels is lost in rounding
LEAST_ORDER, LEAST_PEAKED_ORDER = 3, 6


def parameters(order: int, delay, readout, plain: str, rho, eta, peaked) -> tuple:
    """Delay, readout, ρ, η of one shape, and `peaked`; each but the delay None where the trace has none.

    **Raises:** ValueError for a readout that is neither `plain` nor `"balanced"` nor one number a state, and for what
    it does not have.
    """
    if isinstance(readout, str) and readout == "balanced":
        rho, eta, peaked = _checked_balance(order, rho, eta, peaked)
        shape = jnp.broadcast_shapes(*map(jnp.shape, (delay, rho, eta)))
        delay, rho, eta = (spread(each, shape) for each in (delay, rho, eta))
        return delay, None, rho, eta, peaked
    for name, value in (("rho", rho), ("eta", eta), ("peaked", peaked)):
        if value is not None:
            raise ValueError(f"`{name}` is of readout='balanced' alone, got {name}={checks.shown(value)}")
    if isinstance(readout, str):
        checks.require_in("readout", readout, (plain, "balanced"))
        return steps.constant(delay), None, None, None, None
    readout = checks.require_finite("readout", readout)
    if readout.shape[-1:] != (order,):
        raise ValueError(f"`readout` must be [..., {order}], one number a stage, got shape {readout.shape}")
    shape = jnp.broadcast_shapes(jnp.shape(delay), readout.shape[:-1])
    return spread(delay, shape), spread(readout, (*shape, order)), None, None, None


def spread(value, shape, dtype=float):
    """The value as an array of the shape; known where the value is."""
    if checks.is_traced(value):
        return jnp.broadcast_to(value.astype(dtype), shape)
    return steps.constant(np.broadcast_to(np.asarray(value), shape), dtype)


def _checked_balance(order: int, rho, eta, peaked) -> tuple:
    peaked = False if peaked is None else checks.require_flag("peaked", peaked)
    least = LEAST_PEAKED_ORDER if peaked else LEAST_ORDER
    if order < least:
        which = "balanced and peaked" if peaked else "balanced"
        raise ValueError(f"`order` must be at least {least} for a {which} readout, got {order}")
    rho = checks.require_at_least("rho", RHO if rho is None else rho, 0.0)
    eta = checks.require_at_least("eta", ETA if eta is None else eta, LEAST_ETA)
    return rho, eta, peaked


def solve(root, areas, right, slope, rho):
    """The balanced readout, scaled to w_D = 1.

    **Arguments:**

    - `root`: R, upper triangular, with Rᵀ R = S Sᵀ + η tr(S Sᵀ)/n I.
    - `areas`: Σ_j S_kj.
    - `right`: S at the lag D.
    - `slope`: S at D + 1 less S at D - 1 if their weights are to be alike, else None.
    - `rho`: ρ.

    In b = R c what is to be least is |b|² + ρ (d·b)² - 1, and the matrix I + ρ d dᵀ is inverted in closed form: large ρ
    does no harm, and errors of b are errors of w however ill conditioned S Sᵀ is.
    """
    host = isinstance(root, np.ndarray)
    triangular = scipy.linalg.solve_triangular if host else jax.scipy.linalg.solve_triangular
    dot = np.vdot if host else functools.partial(jnp.vdot, precision="highest")
    hat = lambda row: triangular(root, row, trans=1)  # noqa: E731
    right, other = hat(right), hat(areas - right)
    free = lambda row: row - other * (dot(other, row) * rho / (1.0 + rho * dot(other, other)))  # noqa: E731
    b = free(right)
    if slope is not None:
        slope = hat(slope)
        b = b - free(slope) * (dot(slope, b) / dot(slope, free(slope)))
    return triangular(root, b / dot(right, b))


def stage_factor(order: int, rate):
    """T of a cascade's stages, S = T L, with the discrete Laguerre functions of the pole q = e^(-r) as rows of L.

    With the generating function over the stages Φ(x) = e^(-r(1-x)), the column m = 0, 1, ... of T has

        √(1-q²) · (1-Φ)/((1-x)(1-qΦ)) · ((Φ-q)/(1-qΦ))^m

    All coefficients are positive, so that nothing cancels; S Sᵀ = T Tᵀ, the sum over all lags, for either read.

    **Arguments:** `order`: n. `rate`: r = α dt, per step.

    **Reference:** the factor is ours; Laguerre functions as in Wahlberg (1991), "System identification using Laguerre
    models".
    """
    host = isinstance(rate, float)
    xp, linalg = (np, scipy.linalg) if host else (jnp, jax.scipy.linalg)
    matmul = np.matmul if host else functools.partial(jnp.matmul, precision="highest")
    counts = np.arange(order)
    if host:
        chances, held = _poisson(counts, rate), scipy.special.gammainc(counts + 1, rate)  # Φ, (1-Φ)/(1-x)
    else:
        chances, held = kernels.poisson(counts, rate), state_space.cascade_system(order, rate).response[:, 0]
    behind = counts[:, None] - counts[None, :]
    toeplitz = lambda column: xp.where(behind >= 0, column[np.maximum(behind, 0)], 0.0)  # noqa: E731
    rising = xp.where(counts > 0, chances, 0.0)  # Φ - q
    share = -xp.expm1(-2.0 * rate)  # 1 - q²
    divisor = toeplitz(xp.where(counts > 0, -chances[0] * chances, share))
    power, first = linalg.solve_triangular(divisor, xp.stack([rising, held], axis=1), lower=True).T
    columns, power = xp.sqrt(share) * first[:, None], toeplitz(power)
    while columns.shape[1] < order:
        columns, power = xp.concatenate([columns, matmul(power, columns)], axis=1), matmul(power, power)
    return columns[:, :order]


def balanced_cascade(order: int, delay, read: str, rho, eta, peaked: bool):
    """The balanced readout of a cascade's stages, scaled to the last stage's own weight at the delay.

    **Arguments:**

    - `order`: n.
    - `delay`: D, in steps.
    - `peaked`: whether w(D+1) = w(D-1). Numbers, to solve on the host, or arrays of jax.
    """
    if isinstance(delay, float):
        return _balanced_cascade_on_the_host(order, delay, read, rho, eta, peaked)
    rate = kernels.cascade_rate(delay, order, read)
    lags = delay + jnp.asarray([0.0, -1.0, 1.0], rate.dtype)
    around = kernels.readout_weights(lags, jnp.eye(order, dtype=rate.dtype), rate, read)
    return _scaled(stage_factor(order, rate), around, rho, eta, peaked)


@functools.lru_cache(maxsize=1024)
def _balanced_cascade_on_the_host(order, delay, read, rho, eta, peaked) -> np.ndarray:
    rate = float(kernels.cascade_rate(delay, order, read))
    around = stage_weights(order, delay + np.array([0.0, -1.0, 1.0]), rate, read)
    return _scaled(stage_factor(order, rate), around, rho, eta, peaked)


def _scaled(factor, around, rho, eta, peaked: bool):
    """The readout of a cascade from the `factor` of its stages' weights and these weights at D, D - 1 and D + 1."""
    xp, order = np if isinstance(factor, np.ndarray) else jnp, factor.shape[0]
    # The condition of [Tᵀ; √(η tr(T Tᵀ)/n) I] is at most √(n/η), that of S Sᵀ + ... its square.
    noise = xp.sqrt(eta * xp.sum(factor**2) / order) * xp.eye(order, dtype=factor.dtype)
    root = xp.linalg.qr(xp.concatenate([factor.T, noise]), mode="r")
    slope = around[2] - around[1] if peaked else None
    return around[0, -1] * solve(root, 1.0, around[0], slope, rho)


def stage_weights(order: int, lags: np.ndarray, rate: float, read: str) -> np.ndarray:
    """Weights of every stage at `lags`, on the host, `[lags, stages]`."""
    stages = np.arange(1, order + 1)
    end = np.maximum(lags + 1 - kernels.first_lag(read), 0.0)[:, None]
    start = np.maximum(end - 1.0, 0.0)
    if rate < 2.0:  # as in `kernels.readout_weights`
        nodes, weights = np.polynomial.legendre.leggauss(8)
        x = rate * ((start + end) / 2 + (end - start) / 2 * nodes)
        return rate * (end - start) / 2 * np.einsum("jik,i->jk", _poisson(stages - 1, x[..., None]), weights)
    start, end = rate * start, rate * end
    below = scipy.special.gammainc(stages, end) - scipy.special.gammainc(stages, start)
    above = scipy.special.gammaincc(stages, start) - scipy.special.gammaincc(stages, end)
    return np.where(end < stages, below, above)  # of the two differences the one of small numbers


def _poisson(counts, x):
    """Poisson probabilities on the host."""
    return np.exp(scipy.special.xlogy(counts, x) - x - scipy.special.gammaln(counts + 1))


def host_weights(coefficients: np.ndarray, size: int, rate: float, read: str) -> np.ndarray:
    """Weights of a readout at the lags 0..size-1 on the host, from Poisson probabilities alone, which is fast."""
    counts = np.arange(len(coefficients))
    later = np.cumsum(coefficients[::-1])[::-1]  # Σ c_k P(k, x) = Σ c_k - Σ_i p_i(x) Σ_{k>i} c_k
    weights = -np.diff(_poisson(counts, rate * np.arange(size + 1.0)[:, None]) @ later)
    return np.concatenate([[0.0], weights[:-1]]) if read == "before" else weights


def reach(coefficients: np.ndarray, rate: float, read: str, tail: float) -> np.ndarray:
    """Weights on the host from lag 0 on, as far as all but `tail` of the sum of their absolute values lies."""
    order, norm = len(coefficients), np.sum(np.abs(coefficients))
    end = lambda share: int(np.ceil(scipy.special.gammainccinv(order, max(share, 1e-300)) / rate)) + 1  # noqa: E731
    near = host_weights(coefficients, end(1e-3), rate, read)
    total = np.sum(np.abs(near))
    if total == 0:
        return near[:1]
    weights = host_weights(coefficients, end(1e-3 * tail * min(1.0, total / norm)), rate, read)
    return weights[: leaving(np.abs(weights), tail)]


def leaving(sizes: np.ndarray, tail: float) -> int:
    """The least number of lags, from 0, outside which at most `tail` of the sum of `sizes` lies."""
    beyond = np.append(np.cumsum(sizes[::-1])[::-1], 0.0)  # from each lag on, summed from its small end
    return max(1, int(np.argmax(beyond <= tail * beyond[0])))
