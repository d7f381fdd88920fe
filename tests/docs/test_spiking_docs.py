"""The examples of docs/guides/spiking.md run, one after the other, and do what the text around them says."""

import jax
import jax.numpy as jnp
import numpy as np
from pages import ROOT, run_guide

GUIDES, MADE, SCRIPT = ROOT / "docs" / "guides", ROOT / "tests" / "spiking", "make_same_network.py"


def test_the_guide_runs_and_its_network_learns(capsys):
    names, printed = run_guide("spiking.md", capsys)
    assert printed
    assert names["losses"][-1] < 0.7 * names["losses"][0]
    for tree in (names["grads"], names["stream"], names["neurons"]):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
    peer = dict(np.load(MADE / "peers" / "same_network.npz"))
    spikes, logits = names["in_cetsim"](*(jnp.asarray(peer[name]) for name in ("x", "w_in", "w_rec", "w_out")))
    assert 50 < spikes.sum() < 500
    for other in ("snntorch", "brian2"):
        np.testing.assert_array_equal(spikes, peer[f"{other}_spikes"])
        np.testing.assert_allclose(logits, peer[f"{other}_logits"], atol=1e-6)


def test_the_guide_prints_the_programs_that_made_the_others():
    guide, script = ((folder / name).read_text() for folder, name in ((GUIDES, "spiking.md"), (MADE, SCRIPT)))
    _, first, second = script.partition("def main")[0].split("\ndef in_")
    for printed in (first, second):
        assert f"def in_{printed.strip()}\n```" in guide
