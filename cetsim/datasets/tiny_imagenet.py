"""TinyImageNet in its published folder layout: 64 x 64 colour images of 200 classes, one JPEG file each.

    wnids.txt                                  names of the classes, one a line
    train/<class>/images/<class>_<i>.JPEG      training images, 500 a class
    train/<class>/<class>_boxes.txt            file and box of each of them
    val/images/val_<i>.JPEG                    test images, 10,000 (the published test set has no labels)
    val/val_annotations.txt                    file, class and box of each of them

words.txt, boxes and the published test set are not needed. Folders with fewer classes or images are read as well.
"""

import io
import os
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from cetsim.datasets import data_files
from cetsim.datasets.data_files import DataError, File
from cetsim.extras import require

SIZE = 64  # pixels, in height and width
PUBLISHED = (200, 100_000, 10_000)  # classes, training images, test images
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_FOLDERS = ("", "tiny-imagenet-200", "tinyimagenet", "tinyimagenet/tiny-imagenet-200")
_WANTED = f"tiny-imagenet-200/ with wnids.txt, train/ and val/, unpacked from {URL}"
_SUFFIXES = (".jpeg", ".jpg")

Examples = tuple[UInt8[np.ndarray, "_ 3 64 64"], Int32[np.ndarray, "_"]]


def read(data_dir: Path | None) -> tuple[Examples, Examples]:
    """Images `[n, 3, 64, 64]` in bytes and class numbers `[n]` of the training set, and the same of the test set.

    A class's number is its place in wnids.txt, whichever classes have images. Grey images become colour images.

    **Arguments:** `data_dir`: the folder tiny-imagenet-200, or one that it lies in, there or in `tinyimagenet/`.

    **Raises:** `DataError` without a folder, and for files that are missing, corrupt, of another size or of a class
    that wnids.txt does not name. Where numbers of classes or images are not the published ones it warns.
    """
    if data_dir is None:
        raise DataError(f"tinyimagenet is not downloaded: --data-dir must be a folder that holds {_WANTED}")
    found = data_files.search(data_dir, _FOLDERS, {"wnids.txt": ("wnids.txt",)})
    data_files.require_complete(data_dir, found, ("wnids.txt",), _WANTED)
    classes = _read_classes(found["wnids.txt"])
    root = found["wnids.txt"].parent
    train, test = _train_paths(root / "train", classes), _test_paths(root / "val", classes)
    for name, paths in (("train", train), ("val", test)):
        if not paths:
            raise DataError(f"{root / name}: must hold at least one image, got none")
    sets = _decode(train), _decode(test)
    sizes = (len(set(train.values())), len(train), len(test))
    if sizes != PUBLISHED:
        numbers = "{:,} classes, {:,} training images and {:,} test images"
        published, got = numbers.format(*PUBLISHED), numbers.format(*sizes)
        warnings.warn(f"{root}: not the published {published}, used as it is, got {got}", stacklevel=4)
    return sets


def _read_classes(path: Path) -> dict[str, int]:
    """Number of every class that wnids.txt names."""
    names = [row[0] for _, row in _rows(data_files.read(path), fields=1)]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path}: must name at least one class and each once, got {len(set(names))} in {len(names)}")
    return {name: number for number, name in enumerate(names)}


def _train_paths(folder: Path, classes: Mapping[str, int]) -> dict[Path, int]:
    """Path and class number of every training image: all JPEG files of a class's folder."""
    paths = {}
    for name in _list(folder):
        if name.startswith(".") or not os.path.isdir(folder / name):
            continue
        if name not in classes:
            raise DataError(f"{folder / name}: must be the folder of a class in wnids.txt, got {name!r}")
        images = folder / name / "images"
        files = [file for file in _list(images) if file.lower().endswith(_SUFFIXES) and not file.startswith(".")]
        boxes = folder / name / f"{name}_boxes.txt"
        if os.path.isfile(boxes):
            missing = {row[0] for _, row in _rows(data_files.read(boxes), fields=5)}.difference(files)
            if missing:
                raise DataError(
                    f"{images / min(missing)}: must be there, since {boxes.name} names it, got no such file"
                )
        paths |= {images / file: classes[name] for file in files}
    return paths


def _test_paths(folder: Path, classes: Mapping[str, int]) -> dict[Path, int]:
    """Path and class number of every image that val_annotations.txt names."""
    _list(folder)  # a missing folder is said before a missing file
    annotations = folder / "val_annotations.txt"
    paths = {}
    for line, (name, wnid, *_) in _rows(data_files.read(annotations), fields=6):
        if wnid not in classes:
            raise DataError(f"{annotations}, line {line}: must name a class in wnids.txt, got {wnid!r}")
        path = folder / "images" / name
        if path in paths:
            raise DataError(f"{annotations}, line {line}: must name each image once, got {name!r} again")
        paths[path] = classes[wnid]
    return paths


def _list(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: must be a readable folder of {_WANTED}, got {error.strerror}") from None


def _rows(file: File, fields: int) -> list[tuple[int, Sequence[str]]]:
    """Line number and tab-separated fields of every line that is not blank."""
    lines = enumerate(file.content.decode(errors="replace").splitlines(), start=1)
    rows = [(number, line.strip().split("\t")) for number, line in lines if line.strip()]
    for number, row in rows:
        if len(row) != fields:
            raise DataError(f"{file.path}, line {number}: must have {fields} fields between tabs, got {len(row)}")
    return rows


def _decode(paths: Mapping[Path, int]) -> Examples:
    images = np.empty((len(paths), 3, SIZE, SIZE), np.uint8)
    for image, path in zip(images, paths, strict=True):
        image[:] = _decode_image(data_files.read(path))
    return images, np.fromiter(paths.values(), np.int32, len(paths))


def _decode_image(file: File) -> UInt8[np.ndarray, "3 64 64"]:
    pillow = require("PIL.Image", extra="data")
    broken = (OSError, SyntaxError, ValueError, struct.error, pillow.DecompressionBombError)
    try:
        with pillow.open(io.BytesIO(file.content), formats=("JPEG",)) as image:
            if image.size == (SIZE, SIZE):
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            width, height = image.size
    except broken as error:
        reason = "not a JPEG image" if isinstance(error, pillow.UnidentifiedImageError) else error
        raise DataError(f"{file.path}: must be a complete JPEG image, got {reason}") from None
    raise DataError(f"{file.path}: must be {SIZE} x {SIZE} pixels, got {width} x {height}")
