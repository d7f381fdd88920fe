"""Images to learn from: scikit-learn's digits; MNIST, CIFAR-10 and TinyImageNet in their publishers' file formats.

`digits` is bundled and works offline. The others are read from a folder of the user's; MNIST and CIFAR-10 are
otherwise downloaded once into the user's cache. Subsets of the published files are read as well.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from cetsim import checks, extras
from cetsim.datasets import data_files, tiny_imagenet
from cetsim.datasets.data_files import DataError, File

NAMES = ("digits", "mnist", "cifar10", "tinyimagenet")

# MD5 of each file's content, decompressed, and of the .gz file as published. The publisher's own server no
# longer gives the files out: they come from the mirrors that other libraries use too.
_MNIST = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
}
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_FOLDERS = ("", "mnist", "MNIST/raw")
_MNIST_WANTED = f"{', '.join(_MNIST)} (each with .gz or without)"

_CIFAR10 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR10_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR10_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
_CIFAR10_FOLDERS = ("", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin")
_CIFAR10_WANTED = f"{', '.join(_CIFAR10)}, or {_CIFAR10_ARCHIVE}"

# The customary channel statistics, used by the paper's authors too. These deviations are means over images of
# the deviation within one image; over all pixels they would be 0.247, 0.243, 0.262.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_SD = (0.2023, 0.1994, 0.2010)
_TINY_IMAGENET_MEAN = (0.4802, 0.4481, 0.3975)
_TINY_IMAGENET_SD = (0.2302, 0.2265, 0.2262)


class Dataset(NamedTuple):
    """Standardised images, one row an example, with their class numbers from 0."""

    name: str
    train_x: Float32[np.ndarray, "train channel height width"]
    train_y: Int32[np.ndarray, "train"]
    test_x: Float32[np.ndarray, "test channel height width"]
    test_y: Int32[np.ndarray, "test"]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a dataset, each of its two sets standardised by its own statistics.

        y = sd (x - mean(x)) / sd(x) + mean

    mean = sd = 0.5 for digits and MNIST. For CIFAR-10 and TinyImageNet they are the customary ones of each
    channel, while mean(x) and sd(x) are taken over all channels. digits is split 80/20, stratified, always the same
    way. TinyImageNet's test set is its published validation set, the other one having no labels; as float32 its
    images take 5.4 GB.

    **Arguments:** `name`: "digits", "mnist", "cifar10" or "tinyimagenet". `data_dir`: folder with the publishers'
    files, in itself or in its `mnist/`, `cifar10/` or `tiny-imagenet-200/`; if None they are downloaded once into
    the user's cache, except for TinyImageNet, which needs the folder. digits needs neither.

    **Returns:** a `Dataset`: images `[N, channels, height, width]` in float32, labels `[N]` in int32.

    **Raises:** `ValueError` for an unknown name; `DataError` for files that are missing, truncated or corrupt
    and for a failed download; `ImportError`, with what to install, where a package is missing. Files in `data_dir`
    that are not the published ones are used, with a warning.
    """
    if name not in NAMES:
        raise ValueError(f"dataset must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "digits":
        return _load_digits()
    if data_dir is not None and not os.path.isdir(data_dir):
        raise DataError(f"--data-dir must be an existing folder, got {os.fspath(data_dir)!r}")
    reader = {"mnist": _load_mnist, "cifar10": _load_cifar10, "tinyimagenet": _load_tiny_imagenet}[name]
    return reader(None if data_dir is None else Path(data_dir))


def split_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Holds out part of the training set: the last `fraction` of a seeded shuffle becomes the test set.

    The dataset's own test set is dropped, so that no choice made on the result has seen it. Pixels stay
    standardised by the whole training set.

    **Arguments:** `fraction`: of the training examples, between 0 and 1. `seed`: of the shuffle.

    **Raises:** `ValueError` unless both parts get at least one example.
    """
    count = len(dataset.train_y)
    fraction, seed = checks.require_static("fraction", fraction), checks.require_whole("seed", seed, least=0)
    checks.require_within("fraction", fraction, "(0, 1)")
    kept = count - round(fraction * count)
    if not 0 < kept < count:
        raise ValueError(f"`fraction` must leave both parts an example, got {fraction!r} of {count}")
    order = np.random.default_rng(seed).permutation(count)
    train, held = order[:kept], order[kept:]
    x, y = dataset.train_x, dataset.train_y
    return Dataset(dataset.name, x[train], y[train], x[held], y[held])


def _load_digits() -> Dataset:
    # Imported here: it takes longer than the rest of this package together.
    datasets = extras.require("sklearn.datasets", extra="data")
    model_selection = extras.require("sklearn.model_selection", extra="data")
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)  # 0 to 16; the scale cancels in the standardisation
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return _dataset("digits", (train_x, train_y), (test_x, test_y), (0.5,), (0.5,))


def _load_mnist(data_dir: Path | None) -> Dataset:
    if data_dir is None:
        paths = {
            name: data_files.download(name + ".gz", md5, _MNIST_MIRRORS, _MNIST_WANTED)
            for name, (_, md5) in _MNIST.items()
        }
    else:
        spellings = {name: data_files.idx_spellings(name) for name in _MNIST}
        paths = data_files.search(data_dir, _MNIST_FOLDERS, spellings)
        data_files.require_complete(data_dir, paths, _MNIST, _MNIST_WANTED)
    files = {name: data_files.read(path) for name, path in paths.items()}
    train = data_files.parse_idx_pair(files["train-images-idx3-ubyte"], files["train-labels-idx1-ubyte"])
    test = data_files.parse_idx_pair(files["t10k-images-idx3-ubyte"], files["t10k-labels-idx1-ubyte"])
    if data_dir is not None:
        data_files.warn_if_changed(files, {name: content for name, (content, _) in _MNIST.items()})
    return _dataset("mnist", train, test, (0.5,), (0.5,))


def _load_cifar10(data_dir: Path | None) -> Dataset:
    if data_dir is None:
        path = data_files.download(_CIFAR10_ARCHIVE, _CIFAR10_ARCHIVE_MD5, _CIFAR10_MIRRORS, _CIFAR10_WANTED)
        files = data_files.read_archive(path, _CIFAR10)
    else:
        files = _local_cifar10(data_dir)
    *batches, test = (data_files.parse_cifar10(files[name]) for name in _CIFAR10)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    if data_dir is not None:
        data_files.warn_if_changed(files, _CIFAR10)
    return _dataset("cifar10", (images, labels), test, _CIFAR10_MEAN, _CIFAR10_SD)


def _local_cifar10(data_dir: Path) -> dict[str, File]:
    paths = data_files.search(data_dir, _CIFAR10_FOLDERS, {name: (name,) for name in _CIFAR10})
    archive = data_files.search(data_dir, _CIFAR10_FOLDERS, {_CIFAR10_ARCHIVE: (_CIFAR10_ARCHIVE,)})
    if len(paths) < len(_CIFAR10) and archive:
        return data_files.read_archive(archive[_CIFAR10_ARCHIVE], _CIFAR10)
    data_files.require_complete(data_dir, paths, _CIFAR10, _CIFAR10_WANTED)
    return {name: data_files.read(path) for name, path in paths.items()}


def _load_tiny_imagenet(data_dir: Path | None) -> Dataset:
    train, test = tiny_imagenet.read(data_dir)
    return _dataset("tinyimagenet", train, test, _TINY_IMAGENET_MEAN, _TINY_IMAGENET_SD)


def _dataset(name: str, train: tuple, test: tuple, mean: tuple, sd: tuple) -> Dataset:
    """Dataset of two (images, labels) pairs of bytes; `mean` and `sd` hold one number, or one a channel."""
    (train_x, train_y), (test_x, test_y) = train, test
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(
            f"{name}: training and test images must have one shape [channels, height, width], "
            f"got {list(train_x.shape[1:])} and {list(test_x.shape[1:])}"
        )
    train_x = _standardise(f"{name} training images", train_x, mean, sd)
    test_x = _standardise(f"{name} test images", test_x, mean, sd)
    return Dataset(name, train_x, train_y.astype(np.int32), test_x, test_y.astype(np.int32))


def _standardise(
    what: str, x: UInt8[np.ndarray, "n channel height width"], mean: tuple, sd: tuple
) -> Float32[np.ndarray, "n channel height width"]:
    """y = sd (x - mean(x)) / sd(x) + mean, with moments from exact sums of bytes and no float64 copy."""
    if x.min() == x.max():
        raise DataError(f"{what}: pixels must not all be equal, got {x.min()} in every one")
    m = x.mean(dtype=np.float64)
    s = math.sqrt(np.square(x, dtype=np.uint16).mean(dtype=np.float64) - m**2)
    gain = np.reshape(sd, (-1, 1, 1)) / s
    shift = np.reshape(mean, (-1, 1, 1)) - m * gain
    y = x.astype(np.float32)
    y *= gain.astype(np.float32)
    y += shift.astype(np.float32)
    return y
