"""Checkpoints: all that a run is at one moment, in a file that comes back bit for bit or not at all.

A file is a line of text, a header in JSON, the bytes of the leaves one after another, and the SHA-256 of all before it.
The line gives the schema, the length of the file and that of the header. It and the checksum are the same in every
schema, so that a file from a newer version is told from a damaged one. Nothing in it is executed when it is read.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jaxtyping import PyTree

from cetsim import checks
from cetsim.sweep import provenance

SCHEMA = 1
KEPT = 2  # the newest, and one to fall back to
_LINE = b"cetsim checkpoint %04d %016d %016d\n"
_LINE_PATTERN = re.compile(rb"cetsim checkpoint (\d{4}) (\d{16}) (\d{16})\n")
_DIGEST = hashlib.sha256().digest_size
_NAME = re.compile(r"checkpoint-(\d+)\.cet")
_TEMPORARY = re.compile(r"\.checkpoint-\d+\.cet\.([\w-]+)\.(\d+)\.tmp")
_DAY = 86400.0
_PYTHON = {"bool": bool, "int": int, "float": float, "complex": complex}


class CheckpointWarning(UserWarning):
    """A checkpoint was passed over, or may not continue exactly."""


class Damaged(Exception):
    """A file that is not what was once written."""


class Found(NamedTuple):
    """What a checkpoint holds. **Fields:** `step`, `tree` and `notes` as they were saved."""

    step: int
    tree: PyTree
    notes: dict | None


class Checkpoints:
    """The checkpoints of one run, the last two of which are kept in `folder`.

    **Arguments:** `folder`: of this run alone; made when first written to. `config`: JSON values that make the run what
    it is; one with another config is not resumed. One process at a time may write: a sweep holds a lock. Once there is
    a checkpoint there is always one.
    """

    def __init__(self, folder: str | os.PathLike, config: dict):
        self.folder, self.config = Path(folder), _plain(config)
        self._damaged: set[Path] = set()

    def save(self, step: int, tree: PyTree, notes: dict | None = None) -> None:
        """Writes what the run is after `step`, then removes all but this checkpoint and the one before.

        **Arguments:** `tree`: leaves are arrays of jax or numpy, typed keys, numbers and None. `notes`: JSON values
        besides, such as what was measured so far.

        **Raises:** ValueError for another kind of leaf, or a step below that of a checkpoint which is there. OSError if
        the file cannot be written, for a full disk say; older checkpoints are then untouched.
        """
        checks.require_whole("step", step, least=0)
        content = _encode(step, self.config, tree, notes)
        later = [other for other, path in self._files() if other > step and path not in self._damaged]
        if later:
            raise ValueError(
                f"`step` must be at least {max(later)}, that of the newest checkpoint in {self.folder}, got {step}: "
                "resume with `latest`, or `remove` the checkpoints"
            )
        path = self.folder / f"checkpoint-{step:010d}.cet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, content)
        except OSError as error:
            kept = " and ".join(str(other) for other, _ in self._files()) or "none"
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} could not be written to {self.folder}: {error.strerror or error}; "
                f"steps kept there: {kept}",
            ) from error
        self._damaged.discard(path)
        self._prune(path)

    def latest(self, like: PyTree) -> Found | None:
        """The newest checkpoint that is whole; None without any.

        **Arguments:** `like`: a tree of the same structure, which gives its static fields; of its leaves only shapes
        and dtypes matter (`eqx.filter_eval_shape` makes one). Arrays come back on the default device.

        Warns (`CheckpointWarning`) of damaged files, which it passes over, and of versions that differ.

        **Raises:** ValueError if the config, the structure, a shape or a dtype differs, or a newer cetsim wrote it.
        """
        damaged, found = {}, None
        for step, path in reversed(self._files()):
            try:
                found = path, *_read(path, step)
                break
            except Damaged as error:
                damaged[path] = str(error)
        self._damaged |= damaged.keys()
        back = "there is none before it, so that the run starts over"
        on = back if found is None else f"the run falls back to step {found[1]['step']}"
        for path, what in damaged.items():
            warnings.warn(f"the checkpoint {path} is damaged: {what}; {on}", CheckpointWarning, stacklevel=2)
        if found is None:
            return None
        path, header, data = found
        self._require_same_config(path, header["config"])
        differ = _differences(header["versions"], provenance.versions(), only=provenance.PACKAGES)
        if differ:
            what = f"the checkpoint {path} is of other versions, so that numbers may differ in the last bits: {differ}"
            warnings.warn(what, CheckpointWarning, stacklevel=2)
        return Found(header["step"], _restore(path, header["leaves"], data, like), header.get("notes"))

    def saved_config(self) -> dict | None:
        """The config of the newest checkpoint that is whole; None without any."""
        for step, path in reversed(self._files()):
            with contextlib.suppress(Damaged):
                return _read(path, step)[0]["config"]

    def remove(self) -> None:
        """Deletes all checkpoints, those of a run that is finished."""
        for _, path in self._files():  # from the oldest, so that a kill in between leaves the newest
            path.unlink(missing_ok=True)
        for temporary, _, _ in self._temporaries():
            temporary.unlink(missing_ok=True)
        self._damaged.clear()

    def _files(self) -> list[tuple[int, Path]]:
        """Steps and files of the checkpoints, from the oldest."""
        named = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*.cet")]
        return sorted((int(match[1]), path) for match, path in named if match)

    def _temporaries(self) -> list[tuple[Path, str, int]]:
        """Files that a writer has not finished, with its host and its process."""
        named = [(path, _TEMPORARY.fullmatch(path.name)) for path in self.folder.glob(".checkpoint-*.tmp")]
        return [(path, match[1], int(match[2])) for path, match in named if match]

    def _prune(self, newest: Path) -> None:
        """Removes what is of no more use now that `newest` is in place."""
        files = [path for _, path in self._files()]
        useless = set(files) - set([path for path in files if path not in self._damaged][-KEPT:])
        # A file's clock is that of the disk, which neither another host's nor a clock that jumps confuses.
        now = newest.stat().st_mtime
        for path, host, process in self._temporaries():
            gone = host == _host() and (process == os.getpid() or not _runs(process))
            if gone or now - path.stat().st_mtime > _DAY:
                useless.add(path)
        for path in useless:
            with contextlib.suppress(OSError):  # what stays is in nobody's way, and its turn comes again
                path.unlink()
            self._damaged.discard(path)

    def _require_same_config(self, path: Path, config: dict) -> None:
        differ = _differences(config, self.config)
        if differ:
            raise ValueError(
                f"the checkpoint {path} is of a run with another config: {differ}; resume with the config that it was "
                "made with, or choose another folder"
            )


def _plain(config: dict) -> dict:
    """`config` as it comes back from JSON."""
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`config` must hold JSON values alone ({error}), got {config!r}") from error


def _differences(before: dict, now: dict, only: tuple[str, ...] | None = None) -> str:
    """What differs between two configs, with both values, in words; nothing if they agree."""
    before, now = _flat(before), _flat(now)
    names = [name for name in dict.fromkeys((*before, *now)) if only is None or name in only]
    told = [(name, before.get(name, "absent"), now.get(name, "absent")) for name in names]
    return ", ".join(f"`{name}` was {old} and is {new}" for name, old, new in told if old != new)


def _flat(config: dict, prefix: str = "") -> dict[str, str]:
    """Values as JSON by dotted name: 1 and 1.0 and true are three."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: json.dumps(value, sort_keys=True)}
    return flat


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node()) or "unknown"


def _runs(process: int) -> bool:
    """Whether a process of this host is alive."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or no process that this host could have
        return True
    return True


def _write(path: Path, content: list[bytes]) -> None:
    """Puts a file in place in one step: readers, and whoever comes after a crash, see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a new name last: after a power cut the folder would still have the old one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # from file systems that do not sync folders
            raise
    finally:
        os.close(handle)


def _encode(step: int, config: dict, tree: PyTree, notes: dict | None) -> list[bytes]:
    """A whole file, in pieces."""
    leaves, data = [], []
    for name, leaf in _leaves(tree):
        entry, array = _entry(name, leaf), _array(name, leaf)
        if array is not None:
            entry |= {"dtype": _dtype_name(name, array.dtype), "shape": array.shape, "bytes": array.nbytes}
            data.append(array.tobytes())
        leaves.append(entry)
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    header = {
        "schema": SCHEMA,
        "step": step,
        "config": config,
        "config_hash": digest,
        "versions": provenance.versions(),
    }
    told = json.dumps(header | {"leaves": leaves, "notes": notes}, allow_nan=False).encode()
    line = len(_LINE % (0, 0, 0))
    length = line + len(told) + sum(map(len, data)) + _DIGEST
    content = [_LINE % (SCHEMA, length, len(told)), told, *data]
    checksum = hashlib.sha256()
    for piece in content:
        checksum.update(piece)
    return [*content, checksum.digest()]


def _read(path: Path, step: int) -> tuple[dict, memoryview]:
    """Header and leaves of a file.

    **Raises:** Damaged if it is not as it was written. ValueError if its schema is newer than this code.
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Damaged("the disk cannot read it") from error
    line = _LINE_PATTERN.match(content)
    if line is None:
        raise Damaged("it is empty" if not content else "it does not begin as a checkpoint does")
    schema, length, header = map(int, line.groups())
    if len(content) < length:
        raise Damaged(f"it is cut short, {len(content)} bytes of {length}")
    if len(content) > length or hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise Damaged("its checksum does not fit its content")
    if schema > SCHEMA:
        raise ValueError(
            f"the checkpoint {path} has schema {schema}, and this version of cetsim knows those up to {SCHEMA}: "
            "update cetsim to resume (the file is left as it is)"
        )
    told = json.loads(bytes(content[line.end() : line.end() + header]))
    if told["step"] != step:
        raise Damaged(f"its name is that of another step than its content, {told['step']}")
    return told, content[line.end() + header : -_DIGEST]


def _leaves(tree: PyTree) -> list[tuple[str, object]]:
    """Leaves by name; None is one, so that an array in its place is not overlooked."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is None)
    return [(jax.tree_util.keystr(path) or "the tree itself", leaf) for path, leaf in found]


def _entry(name: str, leaf) -> dict:
    """What a leaf is: `kind` is how it comes back, `type` what it must agree in with `like`."""
    entry = {"path": name}
    if leaf is None:
        return entry | {"kind": "none", "type": "None"}
    if type(leaf).__name__ in _PYTHON and type(leaf) is _PYTHON[type(leaf).__name__]:
        kind = type(leaf).__name__
        return entry | {"kind": kind, "type": f"a Python {kind}"} | ({"value": hex(leaf)} if kind == "int" else {})
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and not checks.is_traced(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            entry |= {"kind": "key", "type": f"{leaf.dtype}{list(leaf.shape)}"}
            return entry if isinstance(leaf, jax.ShapeDtypeStruct) else entry | {"impl": str(jax.random.key_impl(leaf))}
        entry |= {"kind": "jax"} | ({"weak": True} if leaf.weak_type else {})
    elif type(leaf) is np.ndarray or isinstance(leaf, np.generic):
        entry |= {"kind": "numpy" if type(leaf) is np.ndarray else "numpy scalar"}
    else:
        raise ValueError(f"a leaf of a checkpoint must be an array, a key, a number or None, got {leaf!r} as {name}")
    return entry | {"type": f"{_dtype_name(name, np.dtype(leaf.dtype))}{list(leaf.shape)}"}


def _array(name: str, leaf) -> np.ndarray | None:
    """The numbers of a leaf that can be saved; None if it has none."""
    if leaf is None or type(leaf) is int:
        return None
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"a leaf of a checkpoint must have values, got {leaf} as {name}")
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_addressable:
            raise ValueError(f"a leaf of a checkpoint must lie on devices of this host, got {leaf.sharding} as {name}")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _dtype_name(name: str, dtype: np.dtype) -> str:
    """The name from which numpy makes `dtype` again."""
    for text in (dtype.name, dtype.str):
        with contextlib.suppress(TypeError):
            if not dtype.hasobject and np.dtype(text) == dtype:
                return text
    raise ValueError(f"a leaf of a checkpoint must have a dtype of plain numbers, got {dtype} as {name}")


def _restore(path: Path, entries: list[dict], data: memoryview, like: PyTree) -> PyTree:
    """The tree with the structure of `like` and the leaves of a file."""
    told = entries, [_entry(name, leaf) for name, leaf in _leaves(like)]
    saved, wanted = ([(entry["path"], entry["type"]) for entry in each] for each in told)
    if saved != wanted:
        raise ValueError(f"the checkpoint {path} does not fit the run: {_misfits(dict(saved), dict(wanted))}")
    leaves, start = [], 0
    for entry in entries:
        end = start + entry.get("bytes", 0)
        leaves.append(_leaf(entry, data[start:end]))
        start = end
    return jax.tree.unflatten(jax.tree.structure(like, is_leaf=lambda node: node is None), leaves)


def _misfits(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """Which leaves differ between a file and the tree that is wanted, in words."""
    differ = [
        f"{name} is {saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} in `like`"
        for name in dict.fromkeys((*saved, *wanted))
        if saved.get(name) != wanted.get(name)
    ]
    more = f", and {len(differ) - 5} leaves more" if len(differ) > 5 else ""
    return ", ".join(differ[:5]) + more or "the same leaves stand in another order"


def _leaf(entry: dict, data: memoryview):
    """A leaf as it was."""
    kind = entry["kind"]
    if kind == "none":
        return None
    if kind == "int":
        return int(entry["value"], 16)
    array = np.ndarray(entry["shape"], np.dtype(entry["dtype"]), data).copy()
    if kind == "numpy":
        return array
    if kind == "numpy scalar":
        return array[()]
    if kind in _PYTHON:
        return array.item()
    restored = jnp.array(array)
    if restored.dtype != array.dtype:
        raise ValueError(f"{entry['path']} was saved as {array.dtype}, which jax holds with `jax_enable_x64` alone")
    if kind == "key":
        return jax.random.wrap_key_data(restored, impl=entry["impl"])
    if entry.get("weak"):  # decides the dtype of what is computed from it
        dtype = restored.dtype
        return primitives.convert_element_type_p.bind(restored, new_dtype=dtype, weak_type=True, sharding=None)
    return restored
