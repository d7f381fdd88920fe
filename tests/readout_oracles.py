"""Readouts of cascades from their definition, in NumPy: least squares over every lag."""

import numpy as np
from kernel_oracles import cascade_rate, held_step
from scipy import special, stats


def stage_weights(lags, order, delay, read):
    """S, `[stages, lags]`: the gamma density of every stage over the held step, by 40 nodes of Gauss and Legendre where
    pulses are wide, where the difference of two incomplete gammas loses digits.
    """
    rate, stages = cascade_rate(order, delay, read), np.arange(1, order + 1)[:, None]
    start, end = (rate * t for t in held_step(lags, read))
    if rate > 1:
        below = special.gammainc(stages, end) - special.gammainc(stages, start)
        above = special.gammaincc(stages, start) - special.gammaincc(stages, end)
        return np.where(end < stages, below, above)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    middle, half = (start + end) / 2, (end - start) / 2
    return sum(w * half * stats.gamma.pdf(middle + half * x, stages) for x, w in zip(nodes, weights, strict=True))


def balanced(
    order,
    delay,
    read,
    rho,
    eta,
    peaked,
):
    """c that minimises Σ_{j≠D} w_j² + ρ (Σ_{j≠D} w_j)² + η ‖c‖² tr(S Sᵀ)/n with w_D that of the last stage."""
    at = np.arange(int(delay * (2 + 100 / order)) + 200)  # beyond lies less than float64 can tell
    weights = stage_weights(at, order, delay, read)
    right = weights[:, delay]
    slope = weights[:, delay + 1] - weights[:, delay - 1]
    return least_squares(weights, delay, slope if peaked else None, rho, eta) * right[-1]


def least_squares(weights, delay, slope, rho, eta):
    """The same for any rows of S, with w_D = 1: the constraints leave a subspace, searched by `lstsq`."""
    order, right = len(weights), weights[:, delay]
    other = np.delete(weights, delay, axis=1)
    noise = np.sqrt(eta * np.sum(weights**2) / order) * np.eye(order)
    rows = np.concatenate([other.T, np.sqrt(rho) * other.sum(axis=1)[None], noise])
    constraints = np.stack([right] if slope is None else [right, slope])
    count = len(constraints)
    basis, triangle = np.linalg.qr(constraints.T, mode="complete")
    start = basis[:, :count] @ np.linalg.solve(triangle[:count].T, np.eye(count)[0])
    free = basis[:, count:]
    return start + free @ np.linalg.lstsq(rows @ free, -rows @ start, rcond=None)[0]
