"""Waterbirds and CelebA in their published folders: labels, attributes and parts; images are read as needed.

waterbird_complete95_forest2water2/      CelebA: any folder with
    metadata.csv                             list_attr_celeba.txt
    <class>/<image>.jpg                      list_eval_partition.txt
                                             img_align_celeba/<image>.jpg
"""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from cetsim import checks
from cetsim.datasets import data_files
from cetsim.datasets.data_files import DataError, File
from cetsim.datasets.shortcuts import Grouped
from cetsim.extras import require

SPLITS = ("train", "validation", "test")
_METADATA = ("img_filename", "y", "split", "place")
_WATERBIRDS = ("", "waterbird_complete95_forest2water2", "waterbirds/waterbird_complete95_forest2water2")
_CELEBA = ("", "celeba", "CelebA", "celebA")
_LISTS = ("list_attr_celeba.txt", "list_eval_partition.txt")


class GroupedFiles(NamedTuple):
    """What is known of each image of a published set.

    **Fields:** `name`. `paths`: of the images. `labels`, `attributes`: `[images]`, 0 or 1. `split`: `[images]`, 0 of
    training, 1 of validation, 2 of test images.
    """

    name: str
    paths: list[Path]
    labels: Int32[np.ndarray, "images"]
    attributes: Int32[np.ndarray, "images"]
    split: Int32[np.ndarray, "images"]

    def load(self, part: str, size: int = 64, limit: int | None = None, seed: int = 0) -> Grouped:
        """Images of one part, shrunk to `size` x `size`, in 0 to 1.

        **Arguments:** `part`: "train", "validation" or "test". `limit`: of the images, drawn by `seed`; None for all.

        **Raises:** ValueError for another part, DataError for an image that is missing or damaged.
        """
        checks.require_in("part", part, SPLITS)
        rows = np.flatnonzero(self.split == SPLITS.index(part))
        if limit is not None and checks.require_whole("limit", limit) < len(rows):
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
        size = checks.require_whole("size", size)
        x = np.stack([_image(data_files.read(self.paths[row]), size) for row in rows])
        return Grouped(x, self.labels[rows], self.attributes[rows])


def waterbirds(folder: str | os.PathLike) -> GroupedFiles:
    """Waterbirds: the label is whether the bird is a waterbird, the attribute whether it is on water.

    **Arguments:** `folder`: `waterbird_complete95_forest2water2`, or one that it lies in.

    **Raises:** DataError for a folder without metadata.csv, or a table of other columns or values.

    **Reference:** Sagawa et al. (2020), arXiv:1911.08731.
    """
    path = _found(folder, _WATERBIRDS, ("metadata.csv",))["metadata.csv"]
    file = data_files.read(path)
    rows = list(csv.DictReader(io.StringIO(file.content.decode(errors="replace"))))
    missing = [name for name in _METADATA if not rows or rows[0].get(name) is None]
    if missing:
        raise DataError(
            f"{path}: must have rows with the columns {', '.join(_METADATA)}; missing: {', '.join(missing)}"
        )
    columns = {
        name: _whole(path, name, [row[name] for row in rows], allowed)
        for name, allowed in (("y", (0, 1)), ("place", (0, 1)), ("split", (0, 1, 2)))
    }
    paths = [path.parent / row["img_filename"] for row in rows]
    return GroupedFiles("waterbirds", paths, columns["y"], columns["place"], columns["split"])


def celeba(folder: str | os.PathLike, label: str = "Blond_Hair", attribute: str = "Male") -> GroupedFiles:
    """CelebA with any two of its forty attributes, as label and as shortcut.

    **Arguments:** `folder`: with list_attr_celeba.txt, list_eval_partition.txt and img_align_celeba/, or one that it
    lies in. `label`, `attribute`: names in the first of these.

    **Raises:** DataError for a folder without these, an attribute that there is not, or lists that do not go together.

    **Reference:** Liu et al. (2015), arXiv:1411.7766.
    """
    found = _found(folder, _CELEBA, _LISTS)
    of_attributes, partition = (found[name] for name in _LISTS)
    count, names, *lines = _lines(of_attributes, least=3)
    names, rows = names.split(), [line.split() for line in lines]
    for wanted in (label, attribute):
        if wanted not in names:
            raise DataError(f"{of_attributes}: must name the attribute {wanted!r}, got {', '.join(names[:5])}, ...")
    if count != str(len(rows)):
        raise DataError(f"{of_attributes}: must have as many rows as its first line says, {count}, got {len(rows)}")
    for number, row in enumerate(rows, start=3):
        if len(row) != len(names) + 1:
            fields = f"a file and {len(names)} attributes, got {len(row)} fields"
            raise DataError(f"{of_attributes}, line {number}: must have {fields}")
    split = dict(line.split()[:2] for line in _lines(partition) if len(line.split()) >= 2)
    files = [row[0] for row in rows]
    unknown = [file for file in files if file not in split]
    if unknown:
        raise DataError(f"{partition}: must have every image of {of_attributes.name}; missing: {unknown[0]}")
    signs = lambda name: [row[1 + names.index(name)] for row in rows]  # noqa: E731
    labels, attributes = (_whole(of_attributes, name, signs(name), (-1, 1)) for name in (label, attribute))
    split = _whole(partition, "the partition", [split[file] for file in files], (0, 1, 2))
    paths = [of_attributes.parent / "img_align_celeba" / file for file in files]
    return GroupedFiles("celeba", paths, (labels > 0).astype(np.int32), (attributes > 0).astype(np.int32), split)


def _found(folder, folders, names: tuple[str, ...]) -> dict[str, Path]:
    if not os.path.isdir(folder):
        raise DataError(f"{os.fspath(folder)}: must be a folder with {' and '.join(names)}, got no folder")
    found = data_files.search(Path(folder), folders, {name: (name,) for name in names})
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{os.fspath(folder)}: must hold {' and '.join(names)}; missing: {', '.join(missing)}")
    return found


def _lines(path: Path, least: int = 1) -> list[str]:
    lines = [line.strip() for line in data_files.read(path).content.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    if len(lines) < least:
        raise DataError(f"{path}: must have at least {least} lines, got {len(lines)}")
    return lines


def _whole(path: Path, name: str, texts: list[str], allowed: tuple[int, ...]) -> np.ndarray:
    known = {str(value): value for value in allowed}
    for number, text in enumerate(texts, start=1):
        if text not in known:
            raise DataError(f"{path}: {name} must be one of {', '.join(known)}, got {text!r} of image {number}")
    return np.array([known[text] for text in texts], np.int32)


def _image(file: File, size: int) -> np.ndarray:
    pillow = require("PIL.Image", extra="data")
    try:
        with pillow.open(io.BytesIO(file.content)) as image:
            shrunk = image.convert("RGB").resize((size, size), pillow.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file.path}: must be a complete image, got {error}") from None
    return np.asarray(shrunk, np.float32).transpose(2, 0, 1) / 255
