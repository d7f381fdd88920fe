"""The experiment small-transformers: networks that learn, are kept, and go on where they were."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from experiment import error_of, output_of

import cetsim
from cetsim import datasets
from experiments import small_transformers as experiment
from experiments.common import pretraining

TINY = ("--steps", "40", "--width", "16", "--blocks", "1")


@pytest.mark.parametrize("model", ["vit", "clip"])
def test_a_network_is_trained_and_kept(model, tmp_path):
    said = output_of("small-transformers", "--out", str(tmp_path), "--model", model, *TINY)
    rows = pd.read_csv(tmp_path / "small-transformers" / "results.csv")
    measured = rows[rows["metric"] == "accuracy"].sort_values("step")["value"].to_numpy()
    loss = rows[rows["metric"] == "loss"].sort_values("step")["value"].to_numpy()
    assert loss[-1] < 0.9 * loss[0]
    options = experiment.Options(out=tmp_path, model=model, steps=40, width=16, blocks=1)
    assert str(experiment.path_of(options, 0)) in said
    data = datasets.load("digits")
    network = cetsim.load(experiment.path_of(options, 0), experiment.maker(options, data)(jax.random.key(7)))
    _, evaluate = experiment.prepared(options)
    np.testing.assert_allclose(evaluate(network)["accuracy"], measured[-1])
    again = output_of("small-transformers", "--out", str(tmp_path), "--model", model, *TINY)
    assert again.count("figure:") == 2


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    options = lambda folder: experiment.Options(out=tmp_path / folder, steps=40, width=16, blocks=1)  # noqa: E731
    accuracy, calls, last = pretraining.accuracy, [], 11

    def interrupted(*given):
        calls.append(given)
        if len(calls) == last:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return accuracy(*given)

    whole = experiment.run(options("whole"))
    monkeypatch.setattr(pretraining, "accuracy", interrupted)
    with pytest.raises(SystemExit, match="130"):
        experiment.run(options("parts"))
    went_on = experiment.run(options("parts"))
    assert len(calls) - last < last  # not from the start: half was done
    columns = ["step", "metric", "value"]
    still = [rows[rows["metric"].isin(["accuracy", "loss"])] for rows in (whole, went_on)]
    both = [rows.sort_values(columns[:2])[columns].reset_index(drop=True) for rows in still]
    pd.testing.assert_frame_equal(*both)


def test_a_run_in_parts_is_the_run():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(30, 3, 8, 8))), jnp.asarray(rng.integers(0, 10, 30))
    make = pretraining.vit((3, 8, 8), 4, 8, 1, 10)
    sizes = dict(steps=6, batch=8, rate=1e-2, decay=0.1, augment=True)
    trained = pretraining.Pretraining(make, pretraining.classified, x, y, **sizes)
    whole, losses = trained.advance(trained.init(0), 6)
    parts = trained.init(0)
    for steps in (2, 3, 1):
        parts, _ = trained.advance(parts, steps)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-12), whole.params, parts.params))
    assert np.all(np.isfinite(losses["loss"]))


def test_augmented_images_are_moved_or_mirrored():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8)))
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    cuts = [padded[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    allowed = np.stack(cuts + [cut[:, :, ::-1] for cut in cuts])
    seen = set()
    for i in range(40):
        same = (allowed == np.asarray(pretraining.augmented(jax.random.key(i), image))).all((1, 2, 3))
        assert same.any()
        seen.add(int(same.argmax()))
    assert len(seen) > 20


def test_captions_that_a_batch_has_twice_are_both_right():
    make = pretraining.clip((3, 8, 16), 4, 8, 1)
    model = make(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 8, 16)))
    ids = jnp.asarray(datasets.captions_of([[0, 1, 0], [0, 1, 0], [2, 3, 1]]))
    images, texts = (np.stack([np.asarray(f(one)) for one in of]) for f, of in ((model.vision, x), (model.text, ids)))
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    logits = 10 * images @ texts.T
    right = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    of = lambda logits: -(right * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()  # noqa: E731
    np.testing.assert_allclose(pretraining.matched(model, x, ids), (of(logits) + of(logits.T)) / 2, rtol=1e-6)


def test_mistakes(capsys, tmp_path):
    wrong = ("small-transformers", "--out", str(tmp_path))
    assert "--patch must be a divisor of the image's 8 pixels, got 3" in error_of(capsys, *wrong, "--patch", "3")
    message = "--dataset must be digits or mnist for a clip, got cifar10"
    assert message in error_of(capsys, *wrong, "--model", "clip", "--dataset", "cifar10")
