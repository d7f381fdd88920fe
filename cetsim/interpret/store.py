"""Activations of a data set at several sites of a model, in memory-mapped shards on disk.

A shard holds what one site says of some examples, and is put in place in one step. So a recording that was killed goes
on with the first shard that is missing, and ends with the same bits: each is computed alone, in batches of one size.
No more is held in memory than a shard of each site, and while reading a batch.
"""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim import checks
from cetsim.files import write_atomic
from cetsim.interpret.capture import capture

SCHEMA = 1
TOKENS = ("all", "cls", "patches")
MEMORY = 2**28
_FIELDS = ("sites", "widths", "dtypes", "tokens", "classes", "examples", "per_shard", "model")


class Activations:
    """What several sites say of each example: rows `[rows, width]` by site, of examples one after the other.

    A store that `record` wrote is opened by its folder; `Activations.of_arrays` makes one in memory.

    **Arguments:** `folder`: of a finished recording.

    **Attributes:** `sites`: names. `widths`: of a site's vectors, by name. `tokens`: rows that an example has at each
    site, by name. `classes`: how many of these, from the first, are class (or register) tokens. `examples`: their
    number. `model`: digest of the model.

    **Raises:** ValueError for a folder without a recording, one that is not finished, or a shard cut short.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        about = _described(self.folder)
        if about.get("schema") != SCHEMA:
            raise ValueError(f"{self.folder} was written by another version, schema {about.get('schema')}")
        if missing := [name for name in _FIELDS if name not in about]:
            raise ValueError(f"{self.folder} must hold a recording of activations: it lacks {', '.join(missing)}")
        self._set(about)
        self._shards = {
            name: [_opened(self.folder, i, part, about) for part in _parts(about)] for i, name in enumerate(self.sites)
        }

    @classmethod
    def of_arrays(cls, values: Mapping, tokens: Mapping | int = 1, classes: Mapping | int = 0) -> "Activations":
        """A store in memory.

        **Arguments:** `values`: `[rows, width]` by site. `tokens`: rows of an example. `classes`: class tokens among
        these. Both may be numbers for all sites.

        **Raises:** ValueError for no site, other shapes, values that are not finite, and tokens that do not divide.
        """
        arrays = {name: np.asarray(checks.require_finite(name, value)) for name, value in values.items()}
        if not arrays or any(array.ndim != 2 or not array.size for array in arrays.values()):
            raise ValueError(
                f"`values` must be [rows, width] by site, got { ({n: a.shape for n, a in arrays.items()}) }"
            )
        every = lambda given: dict.fromkeys(arrays, given) if isinstance(given, int) else dict(given)  # noqa: E731
        tokens, classes = every(tokens), every(classes)
        counts = {len(array) / tokens[name] for name, array in arrays.items()}
        if len(counts) > 1 or any(count != int(count) for count in counts):
            raise ValueError(f"`tokens` must give all sites one whole number of examples, got {sorted(counts)}")
        store = object.__new__(cls)
        widths = {name: array.shape[1] for name, array in arrays.items()}
        about = {"sites": list(arrays), "widths": widths, "tokens": tokens, "classes": classes, "model": None}
        store.folder = None
        store._set(about | {"examples": int(counts.pop()), "per_shard": len(next(iter(arrays.values())))})
        store._about["per_shard"] = store.examples
        store._shards = {name: [array] for name, array in arrays.items()}
        return store

    def _set(self, about: dict) -> None:
        self._about = about
        self.sites, self.widths = tuple(about["sites"]), about["widths"]
        self.tokens, self.classes = about["tokens"], about["classes"]
        self.examples, self.model = about["examples"], about["model"]

    def rows(self, site: str) -> int:
        """How many vectors the site has."""
        return self.examples * self.tokens[self.require(site)]

    def require(self, site: str) -> str:
        """The name of a site; raises ValueError, with those nearest to it, unless the store has it."""
        if site not in self.sites:
            near = get_close_matches(str(site), self.sites, n=3, cutoff=0.4) or self.sites[:3]
            raise ValueError(f"the store has no site {site!r}: the nearest are {', '.join(map(repr, near))}")
        return site

    def require_model(self, model) -> None:
        """Raises ValueError unless the store is of this model, as far as that is known."""
        if self.model is not None and self.model != digest(model):
            raise ValueError(f"the store is of another model, {self.model}, than the one given, {digest(model)}")

    def take(self, site: str, rows) -> np.ndarray:
        """Vectors by number, `[..., width]`."""
        rows = np.asarray(rows)
        per_shard = self._about["per_shard"] * self.tokens[self.require(site)]
        shards = self._shards[site]
        found = np.empty((rows.size, self.widths[site]), shards[0].dtype)
        flat = rows.reshape(-1)
        for index in np.unique(flat // per_shard):
            here = flat // per_shard == index
            found[here] = shards[index][flat[here] - index * per_shard]
        return found.reshape(*rows.shape, -1)

    def batches(self, site: str, batch: int):
        """The vectors in their order, in batches `[batch, width]`, the last of which may be shorter."""
        for start in range(0, self.rows(site), batch):
            yield self.take(site, np.arange(start, min(start + batch, self.rows(site))))

    def array(self, site: str) -> np.ndarray:
        """All vectors of a site, in memory."""
        return np.concatenate([np.asarray(shard) for shard in self._shards[self.require(site)]])

    def nbytes(self, site: str) -> int:
        """Bytes of a site's vectors."""
        return self.rows(site) * self.widths[site] * self._shards[site][0].dtype.itemsize

    def mean(self, site: str) -> np.ndarray:
        """Mean vector, `[width]`, in float64."""
        return sum(part.sum(0, dtype=float) for part in self._shards[self.require(site)]) / self.rows(site)

    def scale(self, site: str) -> float:
        """What vectors are multiplied with so that their mean squared norm is their width.

        **Raises:** ValueError where all are 0.
        """
        total = sum(float(np.square(b, dtype=float).sum()) for b in self.batches(site, 2**14))
        if total == 0:
            raise ValueError(f"site {site!r} has no activation other than 0: there is nothing to code")
        return math.sqrt(self.widths[site] * self.rows(site) / total)


def record(folder, model, sites, x, *state, tokens: str = "all", classes: int = 0, axis: int | None = None,
           batch: int = 256, memory: int = MEMORY, progress: bool = False) -> Activations:  # fmt: skip
    """Runs a model over a data set and keeps what its sites say; goes on where it was when it was interrupted.

    **Arguments:**

    - `folder`: to write to; a recording of the same model, data and options in it is taken up, or returned.
    - `model`: acts on one example, as `model(x, *state)`, in inference.
    - `sites`: names.
    - `x`: `[examples, ...]`, read in slices: it may be memory-mapped.
    - `tokens`: which vectors of a site `[tokens, width]` are kept: `"all"`, `"cls"`, the first `classes`, or
      `"patches"`, the others.
    - `classes`: class and register tokens at the front; needed for `"cls"` and `"patches"`.
    - `axis`: along which vectors lie in values of three axes and more, 0 for `[channels, height, width]`.
    - `batch`: examples that are run at once.
    - `memory`: bytes of all vectors that are held at once, at most, but those of one batch.
    - `progress`: whether to say on stderr how far it is.

    **Raises:** ValueError for an unknown site, options that do not go together, values that are not finite, and a
    folder with a recording of another model, data or options. OSError where the folder cannot be written.
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    checks.require_in("tokens", tokens, TOKENS)
    batch, memory = checks.require_whole("batch", batch), checks.require_whole("memory", memory)
    run = _program(model, sites, axis, state)
    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    counts, keep = {}, {}
    for name, value in shapes.items():
        kept = _kept(name, value.shape[1], tokens, checks.require_whole("classes", classes, least=0))
        keep[name], counts[name] = kept, len(range(*kept.indices(value.shape[1])))
    size = sum(counts[name] * v.shape[2] * v.dtype.itemsize for name, v in shapes.items())
    per_shard = max(1, memory // (size * batch)) * batch
    about = {
        "schema": SCHEMA, "sites": list(sites), "widths": {n: v.shape[2] for n, v in shapes.items()},
        "dtypes": {n: str(v.dtype) for n, v in shapes.items()}, "tokens": counts,
        "classes": {n: 0 if tokens == "patches" else min(classes, counts[n]) for n in sites},
        "examples": len(x), "per_shard": per_shard, "batch": batch, "kept": tokens, "model": digest(model),
        "data": _digest_of_data(x, state),
    }  # fmt: skip
    folder = _claimed(Path(folder), about)
    for start, end in _parts(about):
        missing = [i for i in range(len(sites)) if not _is_whole(folder, i, (start, end), about)]
        if missing:
            values = _values(run, x, start, end, batch, keep)
            for i in missing:
                _write(_path(folder, i, start), values[sites[i]])
        if progress:
            print(f"\rrecorded {end:,} of {len(x):,} examples", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return Activations(folder)


def take_of_runs(store: Activations, sites, rows, site):
    """Vectors by number from a store; there may be an axis of runs in front, of length 1 where all agree."""
    rows, site = np.asarray(rows), np.asarray(site)
    runs = np.broadcast_shapes(rows.shape[:-1], site.shape)
    rows, site = np.broadcast_to(rows, (*runs, rows.shape[-1])), np.broadcast_to(site, runs)
    found = []
    for role in sites:
        read = np.empty((*rows.shape, store.widths[role[0]]), np.float32)
        for run in np.ndindex(*runs):
            read[run] = store.take(role[int(site[run])], rows[run])
        found.append(read)
    return found


def digest(model) -> str:
    """16 digits that tell a model's weights and structure from others."""
    arrays, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))
    found = hashlib.sha256()
    for path, leaf in arrays:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def as_seen(x, model):
    """Floats, bytes and booleans in the precision of the model's weights; other whole numbers (tokens) as they are."""
    floats = [leaf.dtype for leaf in jax.tree.leaves(model) if eqx.is_inexact_array(leaf)]
    is_image = jnp.issubdtype(x.dtype, jnp.floating) or x.dtype in (jnp.uint8, jnp.bool_)
    return x.astype(max(floats, key=lambda dtype: jnp.finfo(dtype).bits)) if is_image and floats else x


def vectors(value, axis: int | None):
    """The vectors of a site's value of one example, `[tokens, width]`.

    **Raises:** ValueError for a value of three axes and more without an `axis`.
    """
    if axis is None and value.ndim > 2:
        raise ValueError(f"`axis` must say along which axis of {list(value.shape)} vectors lie (0 for channels first)")
    if value.ndim == 0:
        raise ValueError("a site must say at least a vector, got one number")
    value = jnp.moveaxis(value, -1 if axis is None or value.ndim == 1 else axis, -1)
    return value.reshape(-1, value.shape[-1])


def _program(model, sites, axis, state):
    """A function of `[batch, ...]` that gives `[batch, tokens, width]` by site."""
    model = eqx.nn.inference_mode(model)
    captured = capture(model, sites)

    @jax.jit
    def run(x):
        values = jax.vmap(lambda one: captured(one, *state)[1])(as_seen(x, model))
        return {name: jax.vmap(lambda v: vectors(v, axis))(value) for name, value in values.items()}

    return run


def _kept(name: str, count: int, tokens: str, classes: int) -> slice:
    if tokens == "all":
        return slice(0, count)
    if not 0 < classes < count:
        raise ValueError(
            f"`classes` must say how many of the {count} tokens of site {name!r} are before the patches, got {classes}"
        )
    return slice(0, classes) if tokens == "cls" else slice(classes, count)


def _values(run, x, start: int, end: int, batch: int, keep: dict) -> dict[str, np.ndarray]:
    """The vectors of some examples by site, all computed by one program: the last batch is filled up."""
    parts = []
    for first in range(start, end, batch):
        some = np.asarray(x[first : min(first + batch, end)])
        filled = np.concatenate([some, np.repeat(some[-1:], batch - len(some), axis=0)])
        values = {name: np.asarray(value)[: len(some), keep[name]] for name, value in run(filled).items()}
        for name, value in values.items():
            if not np.isfinite(value).all():
                bad = first + int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
                raise ValueError(f"site {name!r} must say finite numbers, got others of example {bad}")
        parts.append(values)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: value.reshape(-1, value.shape[-1]) for name, value in joined.items()}


def _digest_of_data(x, state) -> str:
    found = hashlib.sha256(f"{x.dtype} {x.shape}".encode())
    for start in range(0, len(x), 1024):
        found.update(np.ascontiguousarray(x[start : start + 1024]).tobytes())
    return found.hexdigest()[:16] + (digest(state) if state else "")


def _described(folder: Path) -> dict:
    """What a folder says of the recording in it."""
    try:
        about = json.loads((folder / "store.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} must hold a recording of activations: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{folder} must hold a recording of activations, got {checks.shown(about)} in store.json")
    return about


def _claimed(folder: Path, about: dict) -> Path:
    """The folder with the description of this recording, or an error where it has another."""
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / "store.json"
    if described.exists():
        old = _described(folder)
        if differing := [name for name in about if old.get(name) != about[name]]:
            raise ValueError(
                f"{folder} holds a recording with another {', '.join(differing)}: choose another folder, or remove it"
            )
        return folder
    write_atomic(described, json.dumps(about, indent=1))
    return folder


def _parts(about: dict) -> list[tuple[int, int]]:
    size, count = about["per_shard"], about["examples"]
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _path(folder: Path, site: int, start: int) -> Path:
    return folder / f"site{site}-{start:010d}.bin"


def _size(i: int, part: tuple[int, int], about: dict) -> int:
    name = about["sites"][i]
    numbers = (part[1] - part[0]) * about["tokens"][name] * about["widths"][name]
    return numbers * np.dtype(about["dtypes"][name]).itemsize


def _is_whole(folder: Path, i: int, part: tuple[int, int], about: dict) -> bool:
    path = _path(folder, i, part[0])
    return path.exists() and path.stat().st_size == _size(i, part, about)


def _opened(folder: Path, i: int, part: tuple[int, int], about: dict) -> np.ndarray:
    if not _is_whole(folder, i, part, about):
        path = _path(folder, i, part[0])
        what = f"cut short, {path.stat().st_size} bytes of {_size(i, part, about)}" if path.exists() else "missing"
        raise ValueError(f"the recording is not finished: {path} is {what}; `record` again to go on")
    name = about["sites"][i]
    shape = ((part[1] - part[0]) * about["tokens"][name], about["widths"][name])
    return np.memmap(_path(folder, i, part[0]), about["dtypes"][name], "r", shape=shape)


def _write(path: Path, array: np.ndarray) -> None:
    free, need = shutil.disk_usage(path.parent).free, array.nbytes
    if free < need:
        raise OSError(f"{path.parent} has no room for a shard of {need:,} bytes, only {free:,}")
    write_atomic(path, lambda file: file.write(np.ascontiguousarray(array).data))
