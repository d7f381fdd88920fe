"""Checkpoints: all that a run is at one moment, in a file that comes back bit for bit or not at all.

A file is a line with the schema, a header in JSON, the leaves as `numpy.save` writes them one after another, and the
SHA-256 of all before it. The first line and the checksum are the same in every schema, so that a file from a newer
version is told from a damaged one. Nothing in it is executed when it is read.

`eqx.tree_serialise_leaves` (Equinox 0.13) would only be the loop over leaves: it refuses typed keys and loses weak
types, on which the dtypes of all that follows depend.
"""

import contextlib
import hashlib
import io
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives
from jaxtyping import PyTree

from cetsim.sweep import provenance
from cetsim.sweep.records import SCHEMA, require_known, write

_FILES, _BEGINNING = f"checkpoint-{'[0-9]' * 10}.cet", b"cetsim checkpoint "


def save(folder: Path, step: int, tree: PyTree, notes: dict | None = None) -> None:
    """Writes what a run is after `step`, then removes all that came before but the newest.

    Once there is a checkpoint there is always one. One process at a time may write.

    **Arguments:**

    - `folder`: of this run alone; made when first written to.
    - `step`: of the run, from 0.
    - `tree`: its leaves are arrays of jax or numpy, typed keys, and numbers.
    - `notes`: JSON values.

    **Raises:** ValueError for another kind of leaf. OSError if the file cannot be written, for a full disk say; older
    checkpoints are then untouched.
    """
    path = folder / f"checkpoint-{step:010d}.cet"
    write(path, _encode(step, tree, notes))
    for useless in [other for other in sorted(folder.glob(_FILES)) if other < path][:-1]:
        with contextlib.suppress(OSError):  # what stays is in nobody's way, and its turn comes again
            useless.unlink()


def latest(folder: Path, like: PyTree) -> tuple[int, PyTree, dict | None] | None:
    """Step, tree and notes of the newest checkpoint that is whole; None without any.

    **Arguments:** `like`: a tree of the same structure, which gives its static fields; of its leaves only shapes
    and dtypes matter (`eqx.filter_eval_shape` makes one). Arrays come back on the default device.

    **Raises:** ValueError if the structure, a shape or a dtype differs, or a newer cetsim wrote it. It warns of damaged
    files, which it keeps aside, and of versions that differ.
    """
    files = sorted(folder.glob(_FILES))
    while files:
        path = files.pop()
        content = memoryview(path.read_bytes())
        known = content[:18] == _BEGINNING and content[22:23] == b"\n"
        if not known or hashlib.sha256(content[:-32]).digest() != content[-32:]:
            what = "is damaged or of an older version: its checksum, or how it begins, does not fit"
            then = f"falls back to step {int(files[-1].stem[-10:])}" if files else "starts over"
            warnings.warn(f"the checkpoint {path} {what}; the run {then}", stacklevel=2)
            with contextlib.suppress(OSError):  # from a disk that cannot be written
                path.rename(path.with_suffix(".damaged"))
            continue
        require_known(int(content[18:22]), f"the checkpoint {path}")
        file = io.BytesIO(content[23:-32])
        header = json.loads(file.readline())
        both = [(name, header["versions"].get(name), now) for name, now in provenance.versions().items()]
        if differ := ", ".join(f"{name} was {before} and is {now}" for name, before, now in both if before != now):
            what = f"the checkpoint {path} is of other versions, so that numbers may differ in the last bits: {differ}"
            warnings.warn(what, stacklevel=2)
        return header["step"], _restore(path, header["leaves"], file, like), header["notes"]
    return None


def _encode(step: int, tree: PyTree, notes: dict | None) -> list[bytes]:
    """A whole file, in pieces."""
    entries, leaves = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, array = jax.tree_util.keystr(path), leaf
        if not isinstance(leaf, jax.Array):
            kind = type(leaf).__name__
        elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            kind, array = f"key {jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
        else:
            kind = "weak" if leaf.weak_type else "jax"
        known = isinstance(leaf, jax.Array | np.generic) or type(leaf) in (np.ndarray, bool, int, float, complex)
        if not known or (array := np.asarray(array)).dtype.hasobject:  # as integers of more than 64 bits are
            raise ValueError(f"a leaf of a checkpoint must be an array, a key or a number, got {leaf!r} as {name}")
        entries.append((name, _type(leaf), kind))
        np.save(buffer := io.BytesIO(), array, allow_pickle=False)
        leaves.append(buffer.getvalue())
    header = {"step": step, "versions": provenance.versions(), "notes": notes, "leaves": entries}
    text = json.dumps(header, allow_nan=False) + "\n"
    content = [_BEGINNING + b"%04d\n" % SCHEMA, text.encode(), *leaves]
    return [*content, hashlib.sha256(b"".join(content)).digest()]


def _restore(path: Path, entries: list, file: io.BytesIO, like: PyTree) -> PyTree:
    """The tree with the structure of `like` and the leaves of a file."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    there = [f"{name} {text}" for name, text, _ in entries]
    here = [f"{jax.tree_util.keystr(name)} {_type(leaf)}" for name, leaf in leaves]
    if there != here:
        fewer = lambda these, those: ", ".join([one for one in these if one not in those][:5])  # noqa: E731
        what = f"it has {fewer(there, here)} where `like` has {fewer(here, there)}"
        raise ValueError(f"the checkpoint {path} does not fit the run: {what}")
    restored = [_load(file, kind, leaf) for (_, _, kind), (_, leaf) in zip(entries, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


def _type(leaf) -> str:
    """What two leaves must have in common to take each other's place."""
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else f"a Python {type(leaf).__name__}"


def _load(file: io.BytesIO, kind: str, like):
    """The next leaf of a file, as it was."""
    array = np.load(file)
    if kind.startswith("key "):
        return jax.random.wrap_key_data(array, impl=kind.removeprefix("key "))
    if not hasattr(like, "dtype"):
        return array.item()
    array = array.view(like.dtype)  # NumPy has no bfloat16
    if kind not in ("jax", "weak"):
        return array if kind == "ndarray" else array[()]
    restored = jnp.array(array)
    if restored.dtype != array.dtype:
        raise ValueError(f"a leaf was saved as {array.dtype}, which jax holds with `jax_enable_x64` alone")
    if kind == "weak":  # decides the dtype of what is computed from it
        return primitives.convert_element_type_p.bind(restored, new_dtype=array.dtype, weak_type=True, sharding=None)
    return restored
