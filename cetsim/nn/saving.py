"""Saving attached models with the traces that they learn by, and loading them into models with the same traces only."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from cetsim import checks
from cetsim.files import write_atomic
from cetsim.nn.block import TracedBlock, blocks, plain_layer
from cetsim.nn.synapse import NonTrainable

_MAGIC = b"cetsim model 1\n"
_SHORT = 64  # numbers of an array that are written out; of a longer one, a digest
_OF_A_SEGMENT = ("signal", "events", "length", "name", "pool", "origin")  # or of the model


def save(path_or_file, model) -> None:
    """Writes a model, or any tree that holds some, with the rule of every traced layer.

    A plain model may be saved too; Equinox's own `tree_serialise_leaves` refuses an attached one.

    **Arguments:** `path_or_file`: where to; a file is written beside it and then takes its place. `model`: its arrays
    and numbers are saved, and trace, delay and options of each traced layer, which it must be loaded into again.

    **Raises:** ValueError for traces whose values are traced, as inside `jax.jit`.
    """
    if not isinstance(path_or_file, str | os.PathLike):
        _write(path_or_file, model)
        return
    write_atomic(Path(path_or_file), lambda file: _write(file, model))


def load(path_or_file, like):
    """The model that `save` wrote, with the arrays of the file and all else of `like`.

    **Arguments:** `like`: a model of the same structure, attached with the same traces, delays and options.

    **Raises:** ValueError for a file that `save` did not write, and for a rule that is not the one in the file; it says
    where they differ. RuntimeError, of Equinox, for arrays of other shapes or dtypes.
    """
    if isinstance(path_or_file, str | os.PathLike):
        with open(path_or_file, "rb") as file:
            return load(file, like)
    if path_or_file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError(f"{getattr(path_or_file, 'name', path_or_file)!r} was not written by `cetsim.save`")
    _compare(json.loads(path_or_file.readline()), rules(like))
    return eqx.tree_deserialise_leaves(path_or_file, like, filter_spec=_read_leaf)


def rules(model) -> dict:
    """By layer, the rule that its synapses obey, in numbers, strings and dicts."""
    return {name: _rule(block) for name, block in blocks(model).items()}


def _write(file, model) -> None:
    file.write(_MAGIC + json.dumps(rules(model)).encode() + b"\n")
    eqx.tree_serialise_leaves(file, model, filter_spec=_write_leaf)


def _write_leaf(file, leaf) -> None:
    if not isinstance(leaf, NonTrainable):
        eqx.default_serialise_filter_spec(file, leaf)


def _read_leaf(file, leaf):
    return leaf if isinstance(leaf, NonTrainable) else eqx.default_deserialise_filter_spec(file, leaf)


def _rule(block: TracedBlock) -> dict:
    layer = {"layer": type(plain_layer(block.affine)).__name__, "feedback": _plain(block.feedback.value)}
    return layer | _plain(block.synapses)


def _plain(value):
    """A value as numbers, strings and dicts."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, eqx.Module):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in _OF_A_SEGMENT]
        return {"kind": type(value).__name__} | {name: _plain(getattr(value, name)) for name in fields}
    if isinstance(value, tuple):
        return {str(index): _plain(entry) for index, entry in enumerate(value)}
    if checks.is_traced(value):
        raise ValueError("a trace whose values are traced cannot be saved or compared: do it outside of jit and vmap")
    if eqx.is_array(value):
        is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        return _numbers(np.asarray(jax.random.key_data(value) if is_key else value))
    return repr(value)


def _numbers(array: np.ndarray):
    if array.size <= _SHORT:
        return array.tolist()
    return f"{array.dtype}{list(array.shape)} sha256 {hashlib.sha256(array.tobytes()).hexdigest()}"


def _compare(saved: dict, like: dict) -> None:
    """Raises ValueError where the rules of two models differ."""
    if saved.keys() != like.keys():
        raise ValueError(
            f"the file holds a model with traces on the layers {sorted(saved)}, `like` has traces on {sorted(like)}: "
            "attach the same first"
        )
    for name, rule in like.items():
        other, mine = _flat(saved[name]), _flat(json.loads(json.dumps(rule)))
        for key in [*mine, *other]:
            if other.get(key) != mine.get(key):
                raise ValueError(
                    f"layer {name!r}: `{key}` is {other.get(key)!r} in the file and {mine.get(key)!r} in `like`: "
                    "attach the trace, delay and options that the model was saved with"
                )


def _flat(rule: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in rule.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
