"""Experiments with networks that convolve, end to end at tiny sizes on generated images."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TINY = ("--steps", "6", "--selection-steps", "2", "--seeds", "1", "--learning-rates", "1e-3", "--delays", "0.4")


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_resnet_runs_on_tinyimagenets_layout(tmp_path):
    from PIL import Image

    rng, root = np.random.default_rng(0), tmp_path / "data" / "tiny-imagenet-200"
    classes = [f"n{i:08d}" for i in range(12)]
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(classes) + "\n")

    def save(path, hue):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 100, (64, 64, 3)) + np.array([20 * hue, 0, 0])
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, format="JPEG")

    for hue, name in enumerate(classes):
        for i in range(14):
            save(root / "train" / name / "images" / f"{name}_{i}.JPEG", hue)
    lines = []
    for i in range(16):
        save(root / "val" / "images" / f"val_{i}.JPEG", i % 12)
        lines.append(f"val_{i}.JPEG\t{classes[i % 12]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    arguments = ("behavioral-vision", "--preset", "tinyimagenet", "--data-dir", str(tmp_path / "data"))
    tiny = ("--steps", "1", "--selection-steps", "1", *TINY[4:], "--orders", "10")
    run(*arguments, "--out", str(tmp_path / "out"), *tiny)
    rows = rows_of(tmp_path / "out")
    assert {row["network"] for row in rows} == {"ResNet-20"}
    assert {row["metric"] for row in rows} >= {"test_accuracy", "test_top5_accuracy", "alignment"}
    assert len({row["layer"] for row in rows if row["metric"] == "alignment"}) == 20
