"""Bands of credit matrices against the whole matrices, and where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, bands, credit

DT = 0.01
TRACES = {
    "cascade": CascadingTrace(5, 0.08, DT),
    "balanced": CascadingTrace(6, 0.1, DT) - 0.5 * ExponentialTrace(0.01, DT),
    "line": DelayLine(0.07, DT),
    "at once": DelayLine(0.0, DT),
    "exponential": ExponentialTrace(0.02, DT, read="after"),
}


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize(("first_arrival", "first_write"), [(8, 0), (0, 0), (0, -30), (-3, 4), (0, 9)])
@pytest.mark.parametrize("horizon", [None, 250])
def test_a_band_is_the_whole_matrix(name, first_arrival, first_write, horizon):
    trace, rng = TRACES[name], np.random.default_rng(0)
    arrivals, writes = first_arrival + jnp.arange(300), first_write + jnp.arange(277)
    band = credit.credit_filter(trace, arrivals, writes, horizon, regular=True)
    assert isinstance(band, bands.Band)
    whole = np.asarray(credit.credit_matrix(trace, arrivals, writes, horizon))
    signal = rng.normal(size=(300, 2, 3))
    expected = np.tensordot(whole.T, signal, axes=1)
    np.testing.assert_allclose(credit.remember(band, jnp.asarray(signal)), expected, rtol=0, atol=1e-13)
    # Every entry: what a signal at one step is worth to each write.
    np.testing.assert_allclose(credit.remember(band, jnp.eye(300)), whole.T, rtol=0, atol=1e-15)


def test_a_band_is_exact_to_rounding_in_float32_and_maps():
    trace, now = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), CascadingTrace(10, 0.2, DT)), jnp.arange(400)
    band, whole = (make(trace, now + 20, now, regular=True) for make in (credit.credit_filter, credit.credit_matrix))
    assert isinstance(band, bands.Band)
    assert band.blocks.dtype == whole.dtype == jnp.float32
    signal = jax.random.normal(jax.random.key(0), (4, 400, 3), jnp.float32)
    expected = np.einsum("rs,bro->bso", np.asarray(whole, float), np.asarray(signal, float))
    np.testing.assert_allclose(jax.vmap(band.remember)(signal), expected, rtol=0, atol=3e-7)


def test_no_band_where_it_is_unknown_or_no_cheaper():
    now = jnp.arange(300)
    assert bands.of(CascadingTrace(5, 2.0, DT), now, now, None) is None  # as wide as the segment
    assert bands.of(CascadingTrace(5, [0.08, 0.1], DT), now, now, None) is None
    assert bands.of(TRACES["cascade"], now[:0], now, None) is None
    seen = []
    jax.jit(lambda trace: seen.append(bands.of(trace, now, now, None)))(TRACES["cascade"])
    jax.jit(lambda now: seen.append(bands.of(TRACES["cascade"], now, now, None)))(now)
    assert seen == [None, None]
