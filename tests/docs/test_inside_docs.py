"""The code of docs/guides/steer.md and robust.md runs, and does what the text around it says."""

import numpy as np
import pytest
from pages import page

from cetsim import interpret

pytestmark = pytest.mark.slow


def names_of(guide: str) -> dict:
    """What the programs of a guide leave behind, one after the other."""
    names = {"__name__": "__main__"}
    for source in page(f"guides/{guide}"):
        exec(compile(source, guide, "exec"), names)
    return names


def test_steer(capsys):
    names = names_of("steer.md")
    found, null = names["found"], names["null"]
    assert found.score.shape == (40, 3)
    assert found.score[:, 2].max() > 0.1
    assert found.score[:, 2].mean() > null.score[:, 2].mean()  # more than chance
    reached = names["reached"]
    assert len(reached)
    np.testing.assert_allclose(names["there"][reached, names["target"]], 0.2)
    assert names["score"].shape == (len(reached),)
    assert (names["score"] <= 0.5 + 1e-6).all()  # probabilities sum to 1
    printed = capsys.readouterr().out
    assert "above chance" in printed
    assert "(5,)" in printed


def test_robust(capsys):
    names = names_of("robust.md")
    test, found = names["test"], names["found"]
    assert found.groups.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found.worst[0] < found.average[0] - 0.05  # it goes by the colour
    mended = names["jax"].vmap(names["mended"])(names["jnp"].asarray(names["flat"](test))).argmax(-1)
    np.testing.assert_array_equal(mended, names["said"][names["best"]])
    again = interpret.group_accuracy(names["again"], test.labels, test.attributes)
    assert again.worst > found.worst[0]
    assert "last layer retrained" in capsys.readouterr().out
