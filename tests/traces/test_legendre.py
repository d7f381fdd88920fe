"""Traces on Legendre states, against the matrix exponential and against the delay that they approximate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import DT, filtered, respond, weights
from readout_oracles import least_squares
from scipy import linalg, special

from cetsim import LegendreTrace

LAGS = np.arange(140)
CASES = [(2, 3, "before"), (6, 20, "after"), (10, 50, "before"), (32, 50, "after"), (64, 5, "before")]
each_case = pytest.mark.parametrize(("order", "delay", "read"), CASES)


def states(order, delay, read, span=1.0, lags=LAGS):
    """Impulse responses of m as written by Voelker et al., `[states, lags]`, by powers of e^(A dt/θ)."""
    i, j = np.arange(order)[:, None], np.arange(order)[None, :]
    a = (2 * i + 1) * np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    b = (2 * i + 1) * (-1.0) ** i
    theta = span * (delay + (0.5 if read == "after" else -0.5))
    phi = linalg.expm(a / theta)
    held = np.linalg.solve(a, (phi - np.eye(order)) @ b)
    rows = [held[:, 0]]
    for _ in lags[1:]:
        rows.append(phi @ rows[-1])
    rows = np.stack(rows, axis=-1)
    return rows if read == "after" else np.concatenate([np.zeros((order, 1)), rows[:, :-1]], axis=1)


@each_case
def test_weights_and_steps(order, delay, read):
    for span in (1.0, 1.3):
        output = special.eval_legendre(np.arange(order), 2 / span - 1)
        expected = output @ states(order, delay, read, span)
        trace = LegendreTrace(order, delay * DT, DT, read, span=span)
        np.testing.assert_allclose(weights(trace, LAGS), expected, atol=1e-10 * np.abs(expected).max())
        np.testing.assert_allclose(trace.weights(LAGS), expected, atol=1e-10 * np.abs(expected).max())
    e = np.random.default_rng(1).normal(size=(len(LAGS), 2))
    np.testing.assert_allclose(respond(trace, e), filtered(expected, e), atol=1e-10)


def test_more_states_remember_more_sharply():
    """The weight at the delay grows with the order, and the trace of a slow signal is the signal delayed."""
    at = [float(LegendreTrace(n, 10.0).weights(50)) for n in (2, 4, 8, 16, 32)]
    assert at == sorted(at)
    assert float(LegendreTrace(10, 10.0).weights(np.arange(400)).sum()) == pytest.approx(1.0, abs=1e-9)
    t = np.arange(400)
    slow = np.sin(2 * np.pi * t / 100)
    found = respond(LegendreTrace(10, 10.0, DT), slow)
    np.testing.assert_allclose(found[150:], np.sin(2 * np.pi * (t[150:] - 50) / 100), atol=1e-3)


@pytest.mark.parametrize(("order", "delay", "read"), CASES[1:4])
def test_balanced(order, delay, read):
    scaled = states(order, delay, read, lags=np.arange(30 * delay)) / np.sqrt(2 * np.arange(order) + 1)[:, None]
    output = special.eval_legendre(np.arange(order), 1.0) * np.sqrt(2 * np.arange(order) + 1)
    for peaked in (False, True):
        slope = scaled[:, delay + 1] - scaled[:, delay - 1] if peaked else None
        c = least_squares(scaled, delay, slope, 10.0, 1e-4)
        expected = (output @ scaled)[delay] * (c @ scaled)[: len(LAGS)]
        trace = LegendreTrace(order, delay * DT, DT, read, readout="balanced", peaked=peaked)
        for found in (weights(trace, LAGS), trace.weights(LAGS)):
            np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
        assert not peaked or np.argmax(expected) == delay


def test_any_readout_many_at_once_and_float32():
    c = np.random.default_rng(2).normal(size=(3, 4))
    delays = np.array([1.0, 2.0, 3.0])
    many = LegendreTrace(4, delays, DT, readout=c).weights(LAGS)
    alone = [LegendreTrace(4, d, DT, readout=row).weights(LAGS) for d, row in zip(delays, c, strict=True)]
    mapped = jax.vmap(lambda d, row: LegendreTrace(4, d, DT, readout=row).weights(LAGS))(delays, c)
    np.testing.assert_allclose(many, np.stack(alone, axis=-1), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(mapped, alone, rtol=1e-9, atol=1e-12)
    exact = np.asarray(LegendreTrace(10, 10.0, readout="balanced").weights(LAGS))
    with jax.enable_x64(False):
        trace = LegendreTrace(10, 10.0, readout="balanced")
        impulse = jnp.zeros(140).at[0].set(1.0)
        for found in (trace.weights(LAGS), weights(trace, LAGS), respond(trace, impulse)):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, exact, atol=1e-5 * exact.max())


def test_differentiable_in_rho_and_eta():
    at = (10.0, 1e-3)
    value = lambda rho, eta: LegendreTrace(5, 2.0, readout="balanced", rho=rho, eta=eta).weights(7)  # noqa: E731
    slopes = jax.grad(value, argnums=(0, 1))(*at)
    for index, h in ((0, 1e-3), (1, 1e-7)):
        up, down = (value(*(p + s * h * (i == index) for i, p in enumerate(at))) for s in (1, -1))
        np.testing.assert_allclose(slopes[index], (up - down) / (2 * h), rtol=1e-5)


def test_windows_and_words():
    trace = LegendreTrace(6, 2.0, DT)
    size = np.abs(np.asarray(trace.weights(np.arange(600))))
    assert trace.window() == np.argmax(np.cumsum(size[::-1])[::-1] <= 1e-6 * size.sum())
    assert repr(trace) == "LegendreTrace(delay=2.0 s, order=6, dt=0.2 s, read='before', span=1.0)"
    assert "readout='balanced'" in repr(LegendreTrace(6, 2.0, DT, readout="balanced"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(order=1), "`order` must be 2 to 64, got 1"),
        (dict(delay=0.3), "`delay` must be a multiple of dt = 0.2 s, got 0.3"),
        (dict(delay=0.0), "`delay` must be above 0.1 s, got 0.0"),
        (dict(span=0.5), "`span` must be at least 1, got 0.5"),
        (dict(readout="last"), "`readout` must be one of 'delay', 'balanced', got 'last'"),
        (dict(order=2, readout="balanced"), "`order` must be at least 3 for a balanced readout, got 2"),
        (dict(readout=np.ones(3)), r"`readout` must be \[..., 10\], one number a stage"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LegendreTrace(**options)
