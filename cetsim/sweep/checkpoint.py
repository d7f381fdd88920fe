"""Checkpoints: all that a run is at one moment, in a file that comes back bit for bit or not at all.

A file is a line of text, a header in JSON, the bytes of the leaves one after another, and the SHA-256 of all before it.
The line gives the schema, the length of the file and that of the header. It and the checksum are the same in every
schema, so that a file from a newer version is told from a damaged one. Nothing in it is executed when it is read.

`eqx.tree_serialise_leaves` (Equinox 0.13) would not do: it refuses typed keys, large integers and NumPy's bfloat16,
rounds Python's floats to float32 without x64, and loses weak types, on which the dtypes of all that follows depend.
"""

import contextlib
import errno
import hashlib
import json
import os
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
from cetsim.files import write_atomic
from cetsim.sweep import provenance
from cetsim.sweep.files import SCHEMA, flatten
from cetsim.sweep.grid import plain

KEPT = 2  # the newest, and one to fall back to
_LINE = b"cetsim checkpoint %04d %016d %016d\n"
_LINE_PATTERN = re.compile(rb"cetsim checkpoint (\d{4}) (\d{16}) (\d{16})\n")
_DIGEST = hashlib.sha256().digest_size
_NAME = re.compile(r"checkpoint-(\d+)\.cet")


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
    """The checkpoints of one run, the last two of which are kept. One process at a time may write.

    **Arguments:** `folder`: of this run alone; made when first written to. Once there is a checkpoint there is always
    one. `config`: JSON values that make the run what it is; one with another config is not resumed.
    """

    def __init__(self, folder: str | os.PathLike, config: dict):
        self.folder, self.config = Path(folder), plain(config)
        self._damaged: set[Path] = set()

    def save(self, step: int, tree: PyTree, notes: dict | None = None) -> None:
        """Writes what the run is after `step`, then removes all but this checkpoint and the one before.

        **Arguments:** `tree`: leaves are arrays of jax or numpy, typed keys, numbers and None. `notes`: JSON values.

        **Raises:** ValueError for another kind of leaf, or a step below that of a checkpoint which is there. OSError if
        the file cannot be written, for a full disk say; older checkpoints are then untouched.
        """
        checks.require_whole("step", step, least=0)
        content, files = _encode(step, self.config, tree, notes), self._files()
        later = [other for other, path in files if other > step and path not in self._damaged]
        if later:
            raise ValueError(
                f"`step` must be at least {max(later)}, that of the newest checkpoint in {self.folder}, got {step}: "
                "resume with `latest`, or remove the checkpoints"
            )
        path = self.folder / f"checkpoint-{step:010d}.cet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
        except OSError as error:
            kept = " and ".join(str(other) for other, _ in files) or "none"
            what = f"the checkpoint of step {step} could not be written to {self.folder}: {error.strerror or error}"
            raise OSError(error.errno, f"{what}; steps kept there: {kept}") from error
        self._damaged.discard(path)
        files = [path for _, path in self._files()]
        for useless in {*files} - {*[path for path in files if path not in self._damaged][-KEPT:]}:
            with contextlib.suppress(OSError):  # what stays is in nobody's way, and its turn comes again
                useless.unlink()
            self._damaged.discard(useless)

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
        if differ := _differences(header["config"], self.config):
            raise ValueError(
                f"the checkpoint {path} is of a run with another config: {differ}; resume with the config that it was "
                "made with, or choose another folder"
            )
        now = provenance.versions()
        both = ({name: of.get(name) for name in provenance.PACKAGES if name in now} for of in (header["versions"], now))
        if differ := _differences(*both):
            what = f"the checkpoint {path} is of other versions, so that numbers may differ in the last bits: {differ}"
            warnings.warn(what, CheckpointWarning, stacklevel=2)
        return Found(header["step"], _restore(path, header["leaves"], data, like), header.get("notes"))

    def _files(self) -> list[tuple[int, Path]]:
        """Steps and files of the checkpoints, from the oldest."""
        named = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*.cet")]
        return sorted((int(match[1]), path) for match, path in named if match)


def _differences(before: dict, now: dict) -> str:
    """What differs between two configs, with both values as JSON (1, 1.0 and true are three), in words."""
    before, now = ({n: json.dumps(v, sort_keys=True) for n, v in flatten(of).items()} for of in (before, now))
    both = [(name, before.get(name, "absent"), now.get(name, "absent")) for name in dict.fromkeys((*before, *now))]
    return ", ".join(f"`{name}` was {old} and is {new}" for name, old, new in both if old != new)


def _encode(step: int, config: dict, tree: PyTree, notes: dict | None) -> list[bytes]:
    """A whole file, in pieces."""
    packed = [_pack(name, leaf) for name, leaf in _leaves(tree)]
    data = [array.tobytes() for _, array in packed if array is not None]
    header = {"schema": SCHEMA, "step": step, "config": config, "versions": provenance.versions(), "notes": notes}
    text = json.dumps(header | {"leaves": [entry for entry, _ in packed]}, allow_nan=False).encode()
    length = len(_LINE % (0, 0, 0)) + len(text) + sum(map(len, data)) + _DIGEST
    content, checksum = [_LINE % (SCHEMA, length, len(text)), text, *data], hashlib.sha256()
    for piece in content:
        checksum.update(piece)
    return [*content, checksum.digest()]


def _read(path: Path, step: int) -> tuple[dict, memoryview]:
    """Header and leaves of a file. Raises Damaged if it is not as it was written, ValueError if its schema is newer."""
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
    read = json.loads(bytes(content[line.end() : line.end() + header]))
    if read["step"] != step:
        raise Damaged(f"its name is that of another step than its content, {read['step']}")
    return read, content[line.end() + header : -_DIGEST]


def _leaves(tree: PyTree) -> list[tuple[str, object]]:
    """Leaves by name; None is one, so that an array in its place is not overlooked."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is None)
    return [(jax.tree_util.keystr(path) or "the tree itself", leaf) for path, leaf in found]


def _pack(name: str, leaf, like: bool = False) -> tuple[dict, np.ndarray | None]:
    """What a leaf is, and its numbers: `kind` is how it comes back, `type` what it must agree in with `like`."""
    kind, array, more = type(leaf).__name__, None, {}
    if leaf is None or type(leaf) is int:  # which may be of any size
        return {"path": name, "kind": kind, "type": "None" if leaf is None else "a Python int", "value": leaf}, None
    if type(leaf) in (bool, float, complex):
        text, array = f"a Python {kind}", np.asarray(leaf)
    elif isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and not checks.is_traced(leaf):
        kind, is_key = "jax", jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        text = f"{leaf.dtype}{list(leaf.shape)}"
        if not like and not getattr(leaf, "is_fully_addressable", False):
            raise ValueError(f"a leaf of a checkpoint must have values, all on this host, got {leaf} as {name}")
        if not like:
            more = {"impl": str(jax.random.key_impl(leaf))} if is_key else {"weak": leaf.weak_type}
            array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    elif type(leaf) is np.ndarray or isinstance(leaf, np.generic):
        kind, array = "numpy" if type(leaf) is np.ndarray else "numpy scalar", np.asarray(leaf)
        text = f"{array.dtype}{list(array.shape)}"
    else:
        raise ValueError(f"a leaf of a checkpoint must be an array, a key, a number or None, got {leaf!r} as {name}")
    if array is not None:
        more |= {"dtype": _dtype_name(name, array.dtype), "shape": array.shape, "bytes": array.nbytes}
    return {"path": name, "kind": kind, "type": text} | more, array


def _dtype_name(name: str, dtype: np.dtype) -> str:
    """The name from which numpy makes `dtype` again."""
    for text in (dtype.name, dtype.str):
        with contextlib.suppress(TypeError):
            if not dtype.hasobject and np.dtype(text) == dtype:
                return text
    raise ValueError(f"a leaf of a checkpoint must have a dtype of plain numbers, got {dtype} as {name}")


def _restore(path: Path, entries: list[dict], data: memoryview, like: PyTree) -> PyTree:
    """The tree with the structure of `like` and the leaves of a file."""
    saved = {entry["path"]: entry["type"] for entry in entries}
    wanted = {name: _pack(name, leaf, like=True)[0]["type"] for name, leaf in _leaves(like)}
    differ = [
        f"{name} is {saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} in `like`"
        for name in dict.fromkeys((*saved, *wanted))
        if saved.get(name) != wanted.get(name)
    ]
    if differ or list(saved) != list(wanted):
        more = f", and {len(differ) - 5} leaves more" if len(differ) > 5 else ""
        misfits = ", ".join(differ[:5]) + more or "the same leaves stand in another order"
        raise ValueError(f"the checkpoint {path} does not fit the run: {misfits}")
    leaves, start = [], 0
    for entry in entries:
        end = start + entry.get("bytes", 0)
        leaves.append(_unpack(entry, data[start:end]))
        start = end
    return jax.tree.unflatten(jax.tree.structure(like, is_leaf=lambda node: node is None), leaves)


def _unpack(entry: dict, data: memoryview):
    """A leaf as it was."""
    kind = entry["kind"]
    if "value" in entry:
        return entry["value"]
    array = np.ndarray(entry["shape"], np.dtype(entry["dtype"]), data).copy()
    if kind != "jax":
        return array if kind == "numpy" else array[()] if kind == "numpy scalar" else array.item()
    restored = jnp.array(array)
    if restored.dtype != array.dtype:
        raise ValueError(f"{entry['path']} was saved as {array.dtype}, which jax holds with `jax_enable_x64` alone")
    if "impl" in entry:
        return jax.random.wrap_key_data(restored, impl=entry["impl"])
    if entry.get("weak"):  # decides the dtype of what is computed from it
        dtype = restored.dtype
        return primitives.convert_element_type_p.bind(restored, new_dtype=dtype, weak_type=True, sharding=None)
    return restored
