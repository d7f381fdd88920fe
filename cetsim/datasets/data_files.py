"""The publishers' files behind the datasets: found or downloaded, decompressed, checked and parsed.

What cannot be used raises one `DataError` that names the file, the constraint and the value found.
"""

import gzip
import hashlib
import math
import os
import struct
import tarfile
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from cetsim.extras import require

CLASSES = 10  # in MNIST and in CIFAR-10


class DataError(ValueError):
    """A data file is missing, unreadable or not what its format says, or it could not be downloaded."""


class File(NamedTuple):
    """Where a file lies, for messages, and its decompressed content."""

    path: str
    content: bytes


def search(data_dir: Path, folders: Iterable[str], wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
    """Paths of the wanted files, in the folder with most of them, under the first spelling there."""
    best: dict[str, Path] = {}
    for folder in folders:
        found = {}
        for name, spellings in wanted.items():
            paths = [data_dir / folder / spelling for spelling in spellings]
            # os.path, since Path.is_file raises where a folder may not be read.
            if path := next(filter(os.path.isfile, paths), None):
                found[name] = path
        if len(found) > len(best):
            best = found
    return best


def idx_spellings(name: str) -> tuple[str, ...]:
    """Names an IDX file goes by: as published, with .gz or without, and with some unpackers' dot."""
    dotted = name.replace("-idx", ".idx")
    return name, name + ".gz", dotted, dotted + ".gz"


def require_complete(data_dir: Path, paths: Mapping[str, Path], names: Iterable[str], wanted: str) -> None:
    """Raises `DataError` unless `paths` has every one of `names`; `wanted` describes them to the user."""
    missing = [name for name in names if name not in paths]
    if missing:
        folder = next(iter(paths.values())).parent if paths else data_dir
        raise DataError(f"{folder}: --data-dir must hold {wanted}; missing: {', '.join(missing)}")


def warn_if_changed(files: Mapping[str, File], md5: Mapping[str, str]) -> None:
    """One warning that names all files whose content is not the published one: users recode and cut files."""
    changed = [
        file.path
        for name, file in files.items()
        if hashlib.md5(file.content, usedforsecurity=False).hexdigest() != md5[name]
    ]
    if changed:
        warnings.warn(f"not the published content (MD5 differs), used as it is: {', '.join(changed)}", stacklevel=4)


def download(name: str, md5: str, mirrors: Iterable[str], wanted: str) -> Path:
    """Path of a published file in the user's cache, fetched from the first mirror that gives it whole."""
    pooch = require("pooch", extra="data")  # here, since it brings a network stack along

    failures = []
    for mirror in mirrors:
        try:
            cache = pooch.os_cache("cetsim")
            return Path(pooch.retrieve(mirror + name, f"md5:{md5}", fname=name, path=cache))
        except (OSError, ValueError) as error:  # no connection, no such page, no room; or another checksum
            reason = textwrap.shorten(str(error), 140)
            failures.append(f"{mirror + name} ({type(error).__name__}: {reason})")
    raise DataError(
        f"{name} could not be downloaded. Fetch it on another machine and give its folder with --data-dir, "
        f"which must hold {wanted}. Tried {', '.join(failures)}"
    )


def read(path: Path) -> File:
    """The file's content, decompressed if its name or its first bytes say gzip (names get changed)."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" or content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: must be a readable, complete file, got {error}") from None
    return File(str(path), content)


def read_archive(path: Path, names: Iterable[str]) -> dict[str, File]:
    """The named members of a .tar.gz, whatever folder they lie in there. Nothing is unpacked to disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {os.path.basename(member.name): member for member in archive if member.isfile()}
            missing = [name for name in names if name not in members]
            if missing:
                raise DataError(f"{path}: must hold {', '.join(names)}; missing: {', '.join(missing)}")
            return {name: File(f"{path}:{name}", archive.extractfile(members[name]).read()) for name in names}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: must be a complete .tar.gz archive, got {error}") from None


def parse_idx_pair(images: File, labels: File) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, 1, height, width]` and labels `[n]`, as bytes."""
    x, y = parse_idx(images, axes=3), parse_idx(labels, axes=1)
    if len(x) != len(y):
        raise DataError(f"{labels.path}: must hold one label per image, got {len(y)} for {len(x)} in {images.path}")
    return x[:, None], _checked_labels(labels, y)


def parse_idx(file: File, axes: int) -> UInt8[np.ndarray, "..."]:
    """Array in an IDX file: magic number 0x000008nn (bytes, n axes), n big-endian sizes, the bytes."""
    path, content = file
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{path}: must hold an IDX header of {header} bytes, got {len(content)} bytes")
    magic, *shape = struct.unpack(f">{1 + axes}I", content[:header])
    if magic != 0x0800 + axes:
        raise DataError(f"{path}: must begin with the magic number 0x{0x0800 + axes:08x}, got 0x{magic:08x}")
    sizes = " x ".join(map(str, shape))
    if 0 in shape:
        raise DataError(f"{path}: must hold at least one example, got sizes {sizes}")
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: must hold {math.prod(shape)} bytes for its sizes {sizes}, got {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def parse_cifar10(file: File) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels in a CIFAR-10 batch: records of a label byte and 3 x 32 x 32 pixels."""
    record = 1 + 3 * 32 * 32
    if not file.content or len(file.content) % record:
        raise DataError(f"{file.path}: must hold whole records of {record} bytes, got {len(file.content)} bytes")
    records = np.frombuffer(file.content, np.uint8).reshape(-1, record)
    return records[:, 1:].reshape(-1, 3, 32, 32), _checked_labels(file, records[:, 0])


def _checked_labels(file: File, labels: UInt8[np.ndarray, "n"]) -> UInt8[np.ndarray, "n"]:
    if labels.max() >= CLASSES:
        raise DataError(f"{file.path}: labels must be 0 to {CLASSES - 1}, got {labels.max()}")
    return labels
