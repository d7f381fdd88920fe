"""The examples of docs/guides/spiking.md run, one after the other, and do what the text around them says."""

import re
from pathlib import Path

import jax
import numpy as np

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "spiking.md").read_text()


def test_the_guide_runs_and_its_network_learns():
    names = {"__name__": "__main__"}
    for source in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(source, "spiking.md", "exec"), names)
    assert names["losses"][-1] < 0.7 * names["losses"][0]
    for tree in (names["grads"], names["stream"], names["neurons"]):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
