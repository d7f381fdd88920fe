"""The low-pass filter of a layer's inputs: where it is mapped over it goes another way through time than the scan."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim.spiking import time

STEPS, IN = 24, 4


def loop(rows, decay, start):
    """x̂ of all steps, from its definition."""
    found = []
    for x in rows:
        start = decay * start + (1 - decay) * x
        found.append(start)
    return np.stack(found)


@pytest.mark.parametrize("mapped", list(itertools.product((False, True), repeat=3))[1:])
def test_a_mapped_filter_is_the_loop(mapped):
    """Whatever of rows, decay and start differs from stream to stream, in one map and in a map of maps."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 5, STEPS, IN)), rng.uniform(size=(2, 5)), rng.normal(size=(2, 5, IN))
    of = lambda i, j: [leaf[i, j] if has else leaf[0, 0] for leaf, has in zip(given, mapped, strict=True)]  # noqa: E731
    expected = np.array([[loop(*of(i, j)) for j in range(5)] for i in range(2)])
    passed = [jnp.asarray(leaf if has else leaf[0, 0]) for leaf, has in zip(given, mapped, strict=True)]
    axes = tuple(0 if has else None for has in mapped)
    once = jax.vmap(time.low_pass_of_constants, axes)
    np.testing.assert_allclose(jax.vmap(once, axes)(*passed), expected, rtol=0, atol=1e-12)
    first = [leaf[0] if has else leaf for leaf, has in zip(passed, mapped, strict=True)]
    np.testing.assert_allclose(once(*first), expected[0], rtol=0, atol=1e-12)


def test_without_a_map_the_filter_is_the_loop():
    rng = np.random.default_rng(0)
    rows, start = jnp.asarray(rng.normal(size=(STEPS, IN))), jnp.asarray(rng.normal(size=IN))
    for low_pass in (time.low_pass, time.low_pass_of_constants):
        np.testing.assert_allclose(low_pass(rows, 0.7, start), loop(rows, 0.7, start), rtol=0, atol=1e-12)
