"""The examples of docs/guides/spiking.md run, one after the other, and do what the text around them says."""

import jax
import numpy as np
import pytest
from pages import page

pytestmark = pytest.mark.slow


def test_the_guide_runs_and_its_network_learns(capsys):
    names = {"__name__": "__main__"}
    for source in page("guides/spiking.md"):
        exec(compile(source, "spiking.md", "exec"), names)
        assert capsys.readouterr().out
    assert names["losses"][-1] < 0.7 * names["losses"][0]
    for tree in (names["grads"], names["stream"], names["neurons"]):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
