"""The readout of a cascade learned with the network: its slopes, its kernels and the experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from experiment import copied, output_of, require_same_pictures

from cetsim import CascadingTrace
from experiments import learned_readout
from experiments.common import learned
from experiments.common.checks import SEGMENT

SMALL = ("--order", "4", "--delay", "2", "--hidden", "6", "--steps", "4", "--learn-every", "2", "--seeds", "1")


def test_stages_are_those_of_the_cascade():
    rows = np.asarray(learned_readout.stages(5, 4.0))
    np.testing.assert_allclose(rows[-1], CascadingTrace(5, 4.0).weights(jnp.arange(SEGMENT)), rtol=1e-10, atol=1e-14)
    trace = CascadingTrace(5, 4.0, readout="balanced")
    mixed = np.asarray(trace.coefficients()) @ rows
    np.testing.assert_allclose(mixed, trace.weights(jnp.arange(SEGMENT)), atol=1e-12)


def test_balance_of_a_kernel():
    assert learned_readout.balance(np.array([1.0, 2.0, 4.0, -3.0]), 2) == pytest.approx((0.0, 14 / 16))
    assert learned_readout.balance(np.array([1.0, 2.0, 4.0, 1.0]), 2)[0] == 1.0


def test_every_method_moves_the_readout_and_is_drawn(tmp_path):
    text = output_of("learned-readout", *SMALL, "--horizon", "1", "--segments", "1", "--out", tmp_path)
    assert all(f"by {method}" in text for method in learned_readout.METHODS)
    rows = pd.read_csv(tmp_path / "learned-readout" / "results.csv")
    learned = rows[rows["metric"] == "readout"]
    assert learned["run"].nunique() == 3
    for _, own in learned.groupby("run"):
        table = own.pivot_table(index="step", columns="layer", values="value")
        np.testing.assert_allclose((table**2).sum(axis=1), 1.0, rtol=1e-5)
        np.testing.assert_array_equal(table.iloc[0], [0, 0, 0, 1])
        assert np.abs(table.iloc[-1] - table.iloc[0]).max() > 1e-3
    again = copied(tmp_path / "learned-readout", tmp_path / "again")
    output_of("learned-readout", "--plot-only", "--out", again.parent)
    require_same_pictures(tmp_path / "learned-readout", again)


def test_a_difference_along_signs_is_the_slope_s_part_along_them():
    """Of a parabola: the sum of the slope over stages, each with its sign."""
    centre, at = jnp.array([0.0, 1.0, 0.5]), jnp.array([1.0, 0.0, 0.2])
    signs = set()
    for seed in range(8):
        found = learned.difference(lambda c: jnp.sum((c - centre) ** 2), at, 0.1, jax.random.key(seed))
        direction = np.sign(found) * np.sign(found[0])
        np.testing.assert_allclose(found, direction * np.dot(direction, 2 * (at - centre)), rtol=1e-10)
        signs.add(tuple(direction.tolist()))
    assert len(signs) > 1
