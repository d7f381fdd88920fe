"""Experiments with networks that convolve, end to end at tiny sizes on generated images."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment import trained

from cetsim import datasets
from experiments.behavioral_vision import PRESETS
from experiments.common import vision
from experiments.common.conditions import set_to_delay

TINY = ("--steps", "2", "--selection-steps", "2", "--seeds", "1", "--learning-rates", "1e-3", "--delays", "0.4")


def run(*arguments: str) -> None:
    """The command line in a process of its own, as a user runs it (and in float32)."""
    command = [sys.executable, "-m", "experiments", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
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


@pytest.mark.parametrize(
    "boundary", [(), ("--boundary", "carry", "--segment", "64", "--steps", "1")], ids=["reset", "carry"]
)
def test_the_cnn_runs_in_both_modes(cifar10, tmp_path, boundary):
    arguments = ("behavioral-vision", "--preset", "cifar10", "--data-dir", str(cifar10), "--out", str(tmp_path))
    run(*arguments, *TINY, "--selection-delay", "0.4", "--orders", "10", *boundary)
    rows = rows_of(tmp_path)
    tested = {row["trace"] for row in rows if row["metric"] == "test_accuracy"}
    assert tested == {"backprop", "ET", "CET", "delay line"}
    assert {row["network"] for row in rows} == {"CNN 32-64-128-512"}
    assert len({row["layer"] for row in rows if row["metric"] == "alignment"}) == 5
    exact = [float(r["value"]) for r in rows if r["metric"] == "alignment" and r["trace"] == "backprop"]
    np.testing.assert_allclose(exact, 1.0, atol=1e-5)
    assert (tmp_path / "behavioral-vision" / "behavioral-vision.png").exists()


def test_the_resnet_runs_on_small_images_of_many_classes(tmp_path):
    """What the preset tinyimagenet trains, without its loader (see test_tiny_imagenet.py) and at 4 x 4 pixels."""
    rng, images = np.random.default_rng(0), 140
    labels = (np.arange(images) % 12).astype(np.int32)
    x = rng.normal(size=(images, 3, 4, 4)) + 0.3 * labels[:, None, None, None]
    options = replace(PRESETS["tinyimagenet"], steps=1, selection_steps=1)
    course = vision.Course(options, datasets.Dataset("tinyimagenet", x, labels, x[:24], labels[:24]), "test")
    condition = set_to_delay(options, "CET", 10, 1.0, error_gate=1e-8, learning_rate=1e-3)
    table = trained(course, [condition], tmp_path)
    assert course.network == "ResNet-20"
    assert table.final("diverged") == 0
    assert set(table.rows["metric"]) >= {"test_accuracy", "test_top5_accuracy", "alignment"}
    assert table.rows.loc[table.rows["metric"] == "alignment", "layer"].nunique() == 20
