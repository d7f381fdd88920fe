"""Experiments with networks that convolve, end to end at tiny sizes on generated images."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import last, trained_rows

from cetsim import data
from experiments.options.behavioral_vision import PRESETS
from experiments.vision_conditions import Stage, base_condition
from experiments.vision_training import Trainer

pytestmark = pytest.mark.slow

TINY = ("--steps", "2", "--selection-steps", "2", "--seeds", "1", "--learning-rates", "1e-3", "--delays", "0.4")


def run(*arguments: str) -> None:
    """The command line in a process of its own, as a user runs it (and in float32)."""
    command = [sys.executable, "-m", "experiments", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def rows_of(folder):
    with (folder / "behavioral-vision" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """Files in CIFAR-10's layout with a few generated images, of a hue that tells the class."""
    folder, rng = tmp_path_factory.mktemp("cifar10"), np.random.default_rng(0)
    for name, count in [*((f"data_batch_{i}.bin", 64) for i in range(1, 6)), ("test_batch.bin", 40)]:
        labels = rng.integers(0, 10, count)
        pixels = rng.integers(0, 120, (count, 3, 1024)) + 12 * labels[:, None, None] * (np.arange(3) == 0)[:, None]
        np.concatenate([labels[:, None], pixels.reshape(count, -1)], axis=1).astype(np.uint8).tofile(folder / name)
    return folder


@pytest.mark.parametrize("mode", [(), ("--mode", "carry", "--update-every", "64")], ids=["reset", "carry"])
def test_the_cnn_runs_in_both_modes(cifar10, tmp_path, mode):
    arguments = ("behavioral-vision", "--preset", "cifar10", "--data-dir", str(cifar10), "--out", str(tmp_path))
    run(*arguments, *TINY, "--selection-delay", "0.4", "--orders", "10", *mode)
    rows = rows_of(tmp_path)
    tested = {row["trace"] for row in rows if row["metric"] == "test_accuracy"}
    assert tested == {"backprop", "ET", "CET", "delay line"}
    assert {row["network"] for row in rows} == {"CNN 32-64-128-512"}
    assert len({row["layer"] for row in rows if row["metric"] == "alignment"}) == 5
    exact = [float(r["value"]) for r in rows if r["metric"] == "alignment" and r["trace"] == "backprop"]
    np.testing.assert_allclose(exact, 1.0, atol=1e-5)
    assert (tmp_path / "behavioral-vision" / "behavioral-vision.png").exists()


def test_the_resnet_runs_on_small_images_of_many_classes():
    """What the preset tinyimagenet trains, without its loader (see test_tiny_imagenet.py) and at 8 x 8 pixels."""
    rng, images = np.random.default_rng(0), 140
    labels = (np.arange(images) % 12).astype(np.int32)
    x = rng.normal(size=(images, 3, 8, 8)) + 0.3 * labels[:, None, None, None]
    options = replace(PRESETS["tinyimagenet"], steps=1, selection_steps=1)
    stage = Stage("test", options, data.Dataset("tinyimagenet", x, labels, x[:24], labels[:24]), options.steps)
    condition = replace(base_condition(options, "CET", 10, 1.0, error_gate=1e-8), learning_rate=1e-3)
    (rows,) = trained_rows(Trainer(stage, condition, 1), [condition])
    assert stage.network == "ResNet-20"
    assert last(rows)["diverged"] == 0
    assert {row["metric"] for row in rows} >= {"test_accuracy", "test_top5_accuracy", "alignment"}
    assert len({row["layer"] for row in rows if row["metric"] == "alignment"}) == 20
