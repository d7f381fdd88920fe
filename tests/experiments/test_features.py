"""The experiment features from end to end, its measure of what is private, and its controls."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from experiment import error_of, output_of

from cetsim import datasets, interpret
from experiments import features as experiment
from experiments.common import late_networks

SIZES = [
    "--hidden", 12, "--network-steps", 10, "--latents", 16, "--k", 4,
    "--steps", 10, "--batch", 32, "--features", 4, "--frontier", 8,
]  # fmt: skip


def test_tables_and_figures(tmp_path):
    options = [*SIZES, "--delay", 2, "--pairs", "ET", "untrained", "--out", tmp_path]
    said = output_of("features", *options)
    assert "hidden 1: latents of crosscoders" in said
    rows = pd.read_csv(tmp_path / "features" / "results.csv")
    assert set(rows["pair"]) == {"backprop", "ET", "untrained"}
    bins = rows[rows["metric"] == "histogram"].groupby("pair")["value"].agg(["sum", "size"])
    assert (bins["size"] == experiment.BINS).all()
    np.testing.assert_allclose(bins["sum"], 1)
    wide = rows.dropna(subset=["site"]).pivot_table(index="pair", columns="metric", values="value")
    for name in ("backprop", "other"):
        assert (wide[f"private_{name}"].dropna() <= wide[f"seems_{name}"].dropna()).all()
    assert output_of("features", *options, "--plot-only").count("figure:") == 2
    assert wide["class_variance"].between(0, 1).all()
    wider = rows[rows["metric"].isin(["explained_variance", "explained_variance_8"])].dropna(subset=["site"])
    by_k = wider.pivot_table(index=["pair", "site"], columns="metric", values="value")
    assert by_k.notna().all(axis=None)
    assert not np.allclose(*by_k.to_numpy().T)
    assert "coders by number of active latents" in said
    fewer = [*SIZES, "--delay", 2, "--pairs", "untrained", "--out", tmp_path]
    assert "in runs of 4 of one class" in output_of("features", *fewer, "--run-length", 4)
    both = pd.read_csv(tmp_path / "features" / "results.csv")
    assert both.groupby("run_length")["pair"].unique().map(sorted).to_dict() == {
        1: ["ET", "backprop", "untrained"], 4: ["backprop", "untrained"]
    }  # fmt: skip
    loss = both[(both["metric"] == "explained_variance") & (both["pair"] == "backprop")]
    assert loss.groupby("run_length")["value"].first().nunique() == 2  # another order, another network


def test_the_share_of_variance_that_is_of_the_class():
    labels, rng = np.repeat(np.arange(3), 50), np.random.default_rng(0)
    f = np.stack([np.array([0.0, 2.0, 5.0])[labels], rng.normal(size=150), np.zeros(150)], 1)
    noise = [f[labels == one, 1].mean() for one in range(3)]
    wanted = (1 + np.var(noise) / f[:, 1].var()) / 2  # one of the class, one of noise, one that is never active
    assert experiment.of_class(f, labels) == pytest.approx(wanted)
    assert experiment.of_class(np.zeros((150, 2)), labels) == 0


def test_directions_along_which_latents_would_best_write(monkeypatch):
    monkeypatch.setattr(experiment, "OFTEN", 5)
    rng = np.random.default_rng(0)
    crosscoder = interpret.Crosscoder((4, 3), 6, interpret.BatchTopK(2), key=jax.random.key(0)).unscaled((2.0, 0.5))
    x = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
    f = np.asarray(crosscoder.encode(tuple(map(jnp.asarray, x))))
    often = np.flatnonzero((f > 0).sum(0) >= 5)
    found = experiment.of_latents(crosscoder, x)
    assert len(often) == len(found.r) > 2
    for i, k in enumerate(often):
        for site in (0, 1):
            others = [j for j in range(6) if j != k]
            w, b = np.asarray(crosscoder.W_dec[site]), np.asarray(crosscoder.b_dec[site])
            left = x[site] - b - f[:, others] @ w[others]
            best = np.linalg.lstsq(np.stack([f[:, k], np.ones(len(f))], 1), left, rcond=None)[0][0]
            scale = float(crosscoder.scales[site])
            assert found.lengths[site, i] == pytest.approx(scale * np.linalg.norm(best))


def test_a_latent_whose_decoder_is_zero_at_one_network_is_private_only_if_nothing_of_it_is_there():
    f = np.random.default_rng(0).uniform(0, 1, (4000, 2)) * (np.random.default_rng(1).uniform(size=(4000, 2)) < 0.3)
    noise = np.random.default_rng(2).normal(size=(4000, 3)) * 0.1
    x = noise + np.outer(f[:, 1], [0, 0.6, 0.8]), f  # the first network has what latent 1 is for, and not latent 0
    crosscoder = interpret.Crosscoder((3, 2), 2, interpret.ReLU(0.0), key=jax.random.key(0))
    zeros, ones = jnp.zeros((2, 3)), jnp.eye(2)
    crosscoder = eqx.tree_at(lambda c: (c.W_enc, c.W_dec), crosscoder, ((zeros.T, ones), (zeros, ones)))
    found = experiment.of_latents(crosscoder, x)
    np.testing.assert_array_equal(found.r, 1)  # both seem the second network's alone
    shares = found.lengths[0] / found.lengths[1]
    assert shares[0] < experiment.SHARED < 0.9 < shares[1] < 1.1


def test_networks_begin_alike_and_one_stops_at_the_accuracy_of_another():
    options = experiment.Options(hidden=(24,), network_steps=100, delay=0.4, learning_rate=3e-3)
    data = datasets.load("digits")
    x, test_x = (own.reshape(len(own), -1) for own in (data.train_x, data.test_x))
    data = data._replace(train_x=x, test_x=test_x)
    networks = cache(lambda pair, seed: late_networks.network(options, data, networks, pair, seed))
    models = {pair: networks(pair, 3) for pair in ("untrained", "backprop", "ET", "stopped at ET", "another seed")}
    accuracy = {pair: own[1] for pair, own in models.items()}
    assert accuracy["untrained"] < accuracy["ET"] < accuracy["backprop"]
    assert accuracy["stopped at ET"] == pytest.approx(accuracy["ET"], abs=0.03)
    assert models["another seed"] == networks("backprop", 1003)
    start = np.asarray(models["untrained"][0].model.layers[0].weight)
    near, far = (np.abs(np.asarray(models[p][0].model.layers[0].weight) - start).mean() for p in ("ET", "another seed"))
    assert near < far  # of one start


@pytest.mark.parametrize("aim", [0.0, 0.05, 0.31, 0.5, 0.99, 2.0])
def test_a_run_is_stopped_where_its_score_comes_nearest(aim):
    made = []

    def ahead(state, steps):
        made.append(steps)
        return state + steps

    scored = []
    score = lambda state: scored.append(state) or 1 - 0.97**state  # noqa: E731
    found = late_networks.stopped(ahead, score, 0, aim, 100)
    assert len(scored) == len(set(scored)) == len(made) + 1
    every = [abs(score(state) - aim) for state in range(101)]
    assert found == int(np.argmin(every))
    assert len(made) <= 2 * 7


def test_of_a_cnn_the_same_pixels_of_all_images_are_vectors(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    train_x, test_x = (rng.normal(size=(n, 3, 32, 32)).astype(np.float32) for n in (256, 60))
    labels = rng.integers(0, 10, 256), rng.integers(0, 10, 60)
    data = datasets.Dataset("cifar10", train_x, labels[0], test_x, labels[1])
    sizes = dict(latents=16, k=4, steps=3, batch=32, features=3, examples=80, network_steps=2)
    options = experiment.Options(dataset="cifar10", delay=0.4, out=tmp_path, **sizes)
    made = cache(lambda pair, seed: late_networks.kept(options, data, made, pair, seed))

    def networks(pair, seed):  # the second convolution alone, to be done sooner
        network, accuracy = made(pair, seed)
        assert len(network.sites) == 4
        return network._replace(sites={name: network.sites[name] for name in [*network.sites][1:2]}), accuracy

    rows = pd.DataFrame(experiment.measure(options, data, networks, experiment.Pair("ET", 0)))
    assert list(rows["site"].dropna().unique()) == ["hidden 1"]
    assert rows["value"].notna().all()
    network, few = made("ET", 0)[0], test_x[:3]
    seen = late_networks.said(network, few, batch=2)
    values = jax.vmap(lambda x: interpret.capture(network.model, list(network.sites))(x, *network.state)[1])(few)
    assert [seen[name].shape for name in network.sites] == [(3, 16, 32), (3, 16, 64), (3, 16, 128), (3, 1, 512)]
    for name, of_pixels in seen.items():
        every = np.asarray(values[name]).reshape(3, -1, of_pixels.shape[-1])
        places = [int(np.flatnonzero((np.abs(every[0] - pixel) < 1e-6).all(1))[0]) for pixel in of_pixels[0]]
        np.testing.assert_allclose(every[:, places], of_pixels, atol=1e-5)

    # Another process finds the network that this one trained, and trains it no more.
    again = cache(lambda pair, seed: late_networks.kept(options, data, again, pair, seed))
    again("untrained", 0)
    monkeypatch.setattr(late_networks, "network", None)
    found, accuracy = again("ET", 0)
    assert (accuracy, found.sites) == (made("ET", 0)[1], network.sites)
    for a, b in zip(
        *(jax.tree.leaves(eqx.filter((n.model, n.state), eqx.is_array)) for n in (found, network)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_entropy_of_classes():
    assert experiment.entropy(np.array([3, 3, 3])) == 0
    assert experiment.entropy(np.array([0, 1, 2, 3])) == pytest.approx(2)


def test_what_cannot_be_is_refused(capsys):
    assert "--pairs must be of delay line" in error_of(capsys, "features", "--pairs", "LSTM")
    assert "multiples of the 0.2 s" in error_of(capsys, "features", "--delay", "0.3")
