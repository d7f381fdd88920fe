"""The examples of docs/guides/spiking.md run, one after the other, and do what the text around them says."""

import jax
import numpy as np
import pytest
from pages import run_guide

pytestmark = pytest.mark.slow


def test_the_guide_runs_and_its_network_learns(capsys):
    names, printed = run_guide("spiking.md", capsys)
    assert printed
    assert names["losses"][-1] < 0.7 * names["losses"][0]
    for tree in (names["grads"], names["stream"], names["neurons"]):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
