"""The cascade fed through its first stage alone, against its matrix stepped in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from kernel_oracles import DT, NORMALIZATIONS, READS, filtered, respond

from cetsim import CascadingTrace, FirstStageCascade, credit
from cetsim.rl import actor_trace

STEPS = 4000
EVERY_WAY = pytest.mark.parametrize(
    ("order", "delay", "read", "normalization"),
    [(n, d, r, m) for n, d in ((2, 5), (10, 40), (10, 10)) for r in READS for m in NORMALIZATIONS],
)


def stepped(order, delay, read, normalization):
    """Weights by lag: a pulse that enters the first stage and nothing else in its step."""
    rate = (order - 1) / (delay - 0.5 if read == "before" else delay + 0.5)
    matrix = rate * (np.eye(order, k=-1) - np.eye(order))
    transition = scipy.linalg.expm(matrix)
    h, weights = np.zeros(order), []
    for step in range(STEPS):
        weights.append(h[-1])
        h = transition @ h + (-np.expm1(-rate) * np.eye(order)[0] if step == 0 else 0.0)
        if read == "after":
            weights[-1] = h[-1]
    weights = np.array(weights)
    return weights / (weights.sum() if normalization == "area" else weights.max())


@EVERY_WAY
def test_weights_and_steps(order, delay, read, normalization):
    trace = FirstStageCascade(order, delay * DT, DT, read, normalization)
    expected = stepped(order, delay, read, normalization)[:120]
    e = np.random.default_rng(0).normal(size=(120, 3, 2))
    found, reads = jax.jit(lambda trace: (trace.weights(np.arange(120)), respond(trace, e)))(trace)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(reads, filtered(expected, e), rtol=1e-9, atol=1e-10)


def test_it_comes_half_a_step_late():
    for order, delay in ((2, 5), (10, 40), (10, 640)):
        trace = FirstStageCascade(order, delay * DT, DT, "after")
        assert int(jnp.argmax(trace.weights(np.arange(40 * delay)))) in (delay, delay + 1)
        exact = CascadingTrace(order, delay * DT, DT, "after").weights(np.arange(40 * delay))
        shift = np.sum(np.arange(40 * delay) * (trace.weights(np.arange(40 * delay)) - exact))
        assert abs(shift - 0.5) < 0.05


def test_chunks_of_the_actor_are_its_steps():
    rng, trace = np.random.default_rng(1), FirstStageCascade(3, 1.0, DT, "after")
    x, gain, signal = (jnp.asarray(rng.normal(size=(16, size))) for size in (4, 3, 3))
    arriving = actor_trace.Arriving(signal, jnp.asarray(rng.normal(size=16)), jnp.ones(16))
    rows = 0.9, actor_trace.init(trace, 3, 4), x, gain, arriving
    found, expected = (jax.jit(form)(trace, *rows) for form in (actor_trace.chunked, actor_trace.literal))
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-10)


def test_the_rule_takes_it():
    rng, trace = np.random.default_rng(2), FirstStageCascade(4, 1.0, DT)
    lags = np.arange(12.0)
    matrix = credit.credit_matrix(trace, jnp.asarray(lags), jnp.asarray(lags), regular=True)
    signal = rng.normal(size=(12, 2))
    table = np.asarray(trace.weights(lags))
    expected = [sum(table[r - s] * signal[r] for r in range(s, 12)) for s in range(12)]
    np.testing.assert_allclose(credit.remember(matrix, jnp.asarray(signal)), expected, atol=1e-12)
