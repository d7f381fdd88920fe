"""Arrays of published models by their names: which were asked for, which are missing, which are too many."""

import json
from pathlib import Path

import numpy as np

from cetsim.extras import require

FILES = ("model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
CONFIGS = ("config.json", "open_clip_config.json")
OWN_NAMES = "open_clip"  # how files of the one library begin that may stand beside another's in a folder


class Tensors:
    """Arrays of a file, each to be taken once by its name.

    **Fields:** `path`: of the file, for errors. `missing`: names that were asked for and are not there.
    """

    def __init__(self, path, arrays: dict[str, np.ndarray]):
        self.path, self.arrays, self.missing = path, dict(arrays), []
        self.left = set(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def any(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(prefix) for name in self.arrays)

    def take(self, name: str) -> np.ndarray | None:
        """The array, None and noted where it is missing."""
        self.left.discard(name)
        if name not in self.arrays:
            self.missing.append(name)
        return self.arrays.get(name)

    def drop(self, *prefixes: str) -> None:
        """Leaves out what the model does not need, by the beginning of its name."""
        self.left = {name for name in self.left if not name.startswith(prefixes)}

    def count(self, prefix: str) -> int:
        """How many numbers stand behind a prefix, as in `blocks.0`, `blocks.1`."""
        numbers = {name[len(prefix) :].partition(".")[0] for name in self.arrays if name.startswith(prefix)}
        return len(numbers)

    def require_all(self) -> None:
        """Raises ValueError that names the arrays that are missing and those that are too many."""
        if self.missing or self.left:
            parts = (("lacks", self.missing), ("has besides", sorted(self.left)))
            said = " and ".join(f"{what} {', '.join(names)}" for what, names in parts if names)
            raise ValueError(f"{self.path} is not what its family and configuration say: it {said}")


def read(folder: Path, family: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and configuration of a safetensors file, or of a folder with one (or one that an index cuts in parts).

    Folders of open_clip on the hub often hold the same network by transformers's names too: files and configuration are
    then those of the family.

    **Raises:** ValueError for what holds no weights, or a damaged file.
    """
    if folder.is_file():
        return _arrays(folder), _config(folder.parent, family)
    index, found = folder / "model.safetensors.index.json", _of_family(folder, FILES, family)
    if index.exists() and not (found and _is_own(family) and _is_own(found[0].name)):
        parts = sorted(set(_json(index)["weight_map"].values()))
        arrays = {name: array for part in parts for name, array in _arrays(folder / part).items()}
        return arrays, _config(folder, family)
    found = found or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{folder} must hold one safetensors file, got {', '.join(p.name for p in found) or 'none'}")
    return _arrays(found[0]), _config(folder, family)


def _is_own(name: str) -> bool:
    return name.startswith(OWN_NAMES)


def _of_family(folder: Path, names: tuple[str, ...], family: str) -> list[Path]:
    """Of those files that are there, the family's, or all where it has none."""
    found = [folder / name for name in names if (folder / name).exists()]
    return [path for path in found if _is_own(path.name) == _is_own(family)] or found


def _config(folder: Path, family: str) -> dict:
    found = _of_family(folder, CONFIGS, family)
    return _json(found[0]) if found else {}


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays in float32, whatever the file holds; whole numbers as they are."""
    package = require("safetensors", extra="interpret")
    try:
        with package.safe_open(path, framework="flax") as file:
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, package.SafetensorError) as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error
    whole = lambda array: np.issubdtype(array.dtype, np.integer) or array.dtype == bool  # noqa: E731
    return {name: array if whole(array) else array.astype(np.float32) for name, array in arrays.items()}
