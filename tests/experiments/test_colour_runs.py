"""The experiment colour-runs from end to end, and that its runs are of colours."""

from functools import cache

import numpy as np
from experiment import error_of, output_of

from cetsim import datasets
from cetsim.datasets import InputOrder
from cetsim.supervised import Settings, backprop
from experiments import colour_runs as experiment
from experiments.common import inside, tables

SIZES = [
    "--hidden", 12, 8, "--network-steps", 5, "--latents", 16, "--k", 4,
    "--steps", 5, "--batch", 32, "--seeds", 1,
]  # fmt: skip


def test_tables_and_figures(tmp_path):
    options = [*SIZES, "--rules", "backprop", "ET", "--run-lengths", 4, "--counts", 0, 2, "--out", tmp_path]
    said = output_of("colour-runs", *options)
    assert "ET, runs of 4" in said
    found = experiment.summary(tables.read(tmp_path / "colour-runs" / "results.csv"))
    assert found["rule"].tolist() == ["ET", "backprop"]
    shares = found[["average", "worst", "suppressed", "last layer"]]
    assert shares.notna().all(axis=None)
    assert shares.ge(0).all(axis=None)
    assert (found["worst"] <= found["average"]).all()
    assert output_of("colour-runs", *options, "--plot-only").count("figure:") == 2


def test_controls_are_as_accurate_from_another_start_or_untrained():
    sizes = dict(hidden=(16,), network_steps=60, learning_rate=3e-3, delay=0.4)
    options, made = experiment.Options(**sizes), datasets.coloured_digits(datasets.load("digits"), 0.7)
    trained = cache(lambda one: experiment.train(options, made, one, trained))
    flat = made.test.x.reshape(len(made.test.x), -1)
    accuracy, start = {}, {}
    for rule in ("backprop", "ET", "stopped at ET", "another seed", "untrained"):
        network = trained(experiment.Learned(rule, 4, 0))
        accuracy[rule] = (inside.outputs(network, flat).argmax(1) == made.test.labels).mean()
        start[rule] = np.asarray(network.model.layers[0].weight)
    assert accuracy["untrained"] < accuracy["ET"] < accuracy["backprop"]
    assert abs(accuracy["stopped at ET"] - accuracy["ET"]) < 0.03
    far = {rule: np.abs(weights - start["untrained"]).mean() for rule, weights in start.items()}
    assert far["stopped at ET"] < far["another seed"]


def test_runs_are_of_colours_and_not_of_labels():
    made = datasets.coloured_digits(datasets.load("digits"), 0.6)
    x, settings = made.train.x.reshape(len(made.train.x), -1), Settings(2, 64, input_order=InputOrder(8))
    run = experiment.RunsOfColours(inside.mlp(192, (4,), 2), x, made.train.labels, made.train.attributes, settings)
    state = run.init(backprop(1e-3), experiment.jax.random.key(0))
    rows = np.asarray(run._frames(state, 2).row).ravel()
    changes = [np.mean(np.diff(own[rows]) != 0) for own in (made.train.attributes, made.train.labels)]
    assert changes[0] <= 1 / 8
    assert changes[1] > 0.3
    shuffled = experiment.RunsOfColours(
        inside.mlp(192, (4,), 2), x, made.train.labels, made.train.attributes, Settings(2, 64)
    )
    rows = np.asarray(shuffled._frames(state, 2).row).ravel()
    assert np.mean(np.diff(made.train.attributes[rows]) != 0) > 0.3


def test_what_cannot_be_is_refused(capsys):
    assert "ascending from 0" in error_of(capsys, "colour-runs", "--counts", 2)
    assert "multiples of the 0.2 s" in error_of(capsys, "colour-runs", "--delay", "0.3")
    assert "--rules must be of backprop, delay line" in error_of(capsys, "colour-runs", "--rules", "LSTM")
