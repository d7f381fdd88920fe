"""The experiment sae-frontier from end to end, the units of its penalties, and which axis of an image is a vector."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from experiment import error_of, output_of

from cetsim import interpret
from experiments import sae_frontier as experiment


def test_tables_and_figures(tmp_path):
    sizes = ["--hidden", 16, "--network-steps", 20, "--latents", 24, "--steps", 10, "--batch", 32, "--seeds", 2]
    options = [*sizes, "--k", 2, "--l0", 0.01]
    said = output_of("sae-frontier", *options, "--kinds", "TopK", "JumpReLU", "--out", tmp_path)
    assert "digits (8x8), layers.1, 24 latents" in said
    rows = experiment.measured(pd.read_csv(tmp_path / "sae-frontier" / "results.csv"))
    assert len(rows) == 2 * 2  # kinds, seeds
    gap = rows["loss_zero"] - rows["loss_clean"]
    np.testing.assert_allclose(rows["loss_recovered"], (rows["loss_zero"] - rows["loss_spliced"]) / gap)
    assert np.all(rows[rows["kind"] == "TopK"]["l0"] <= 2)
    assert {path.suffix for path in (tmp_path / "sae-frontier").glob("sae-frontier.*")} == {".png", ".pdf"}


def test_penalties_are_in_units_of_the_width():
    assert experiment.sparsity("JumpReLU", 0.01, 200).l0 == pytest.approx(2.0)
    assert experiment.sparsity("ReLU", 0.1, 400).l1 == pytest.approx(2.0)
    assert experiment.sparsity("Gated", 0.1, 400).l1 == pytest.approx(2.0)
    assert experiment.sparsity("TopK", 4.0, 400).k == 4


def test_vectors_of_a_convolution_are_its_channels(tmp_path):
    x, labels = np.random.default_rng(0).standard_normal((128, 3, 32, 32)), np.arange(128) % 10
    images = SimpleNamespace(train_x=x, train_y=labels, test_x=x[:2], test_y=labels[:2])
    options = experiment.Options(dataset="cifar10", network_steps=1)
    network = experiment.train_network(options, images)
    widths = []
    for i, (site, axis) in enumerate(network.sites.items()):
        store = interpret.record(tmp_path / str(i), network.model, site, network.test_x, *network.state, axis=axis)
        widths.append((store.widths[site], store.tokens[site]))
    assert widths == [(32, 32 * 32), (64, 16 * 16), (128, 8 * 8), (512, 1)]


def test_what_cannot_be_is_refused(capsys):
    assert "from 1 to the 256 latents" in error_of(capsys, "sae-frontier", "--k", "300")
    assert "above 0" in error_of(capsys, "sae-frontier", "--l0", "0")
