"""Arrays out of files of `torch.save`, without executing the pickle that they hold.

Such a file is a zip of a pickle, `data.pkl`, and a file of bytes for each array. The pickle's instructions are read
as data (`pickletools.genops`) and only those that put dicts, lists, tuples and numbers together are followed. Where it
asks for a function to be called, nothing is: the call is noted, and of what is noted only PyTorch's own ways of making
an array of stored bytes are understood. All else, such as a configuration object, comes out as a note.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_MARK = object()


class Note(NamedTuple):
    """A call that was not made."""

    name: str
    arguments: Any


class _Stored(NamedTuple):
    dtype: str
    key: str


def read(path) -> Any:
    """What a file of `torch.save` holds: arrays of NumPy in the dicts, lists and tuples they were saved in.

    **Raises:** ValueError for what is no such file, is damaged, or needs more than arrays.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            return _Reader(archive, root).run(archive.read(pickled))
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a sound file of torch.save (of PyTorch 1.6 or newer): {error}") from error


class _Reader:
    """A machine with a stack and a memo, as pickles are written for, that calls nothing."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self.archive, self.root, self.stack, self.memo = archive, root, [], {}

    def run(self, pickled: bytes):
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("its pickle has no end")

    def _step(self, name: str, argument) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name.startswith(("BININT", "LONG", "BINUNICODE", "SHORT_BIN", "BINFLOAT", "BINBYTES", "BINSTRING")) and (
            "PUT" not in name and "GET" not in name
        ):
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(Note(argument.replace(" ", "."), None))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Note(f"{module}.{attribute}", None))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._to_mark()
            stack.append({"TUPLE": tuple, "LIST": list, "DICT": _pairs}[name](items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = self._to_mark() if name == "APPENDS" else [stack.pop()]
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            if isinstance(stack[-1], dict):
                stack[-1].update(_pairs(items))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._noted(function, arguments))
        elif name == "BUILD":  # of an object's attributes: those of what is only noted are not looked at
            stack.pop()
        else:
            raise ValueError(f"its pickle has the instruction {name}, which arrays do not need")

    def _to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _storage(self, persistent):
        kind, storage, key, *_ = persistent
        if kind != "storage" or not isinstance(storage, Note):
            raise ValueError(f"it refers to {kind!r}, not to stored bytes")
        dtype = storage.name.rpartition(".")[2]
        if dtype == "BFloat16Storage":
            return _Stored("bfloat16", key)
        if dtype not in _DTYPES:
            raise ValueError(f"it has numbers of the kind {dtype}, which cannot be read")
        return _Stored(_DTYPES[dtype], key)

    def _noted(self, function, arguments):
        name = getattr(function, "name", None)
        if name == "collections.OrderedDict":
            return {}
        if name == "torch._utils._rebuild_tensor_v2":
            return self._array(*arguments[:4])
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        return Note(str(name), arguments)

    def _array(self, stored: _Stored, offset: int, shape: tuple, strides: tuple):
        raw = self.archive.read(f"{self.root}data/{stored.key}")
        if stored.dtype == "bfloat16":
            flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            flat = np.frombuffer(raw, stored.dtype)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if min((*shape, 1)) > 0 and not (offset >= 0 and min((*strides, 0)) >= 0 and last < flat.size):
            raise ValueError(f"an array of shape {shape} reaches beyond its {flat.size} numbers")
        view = np.lib.stride_tricks.as_strided(flat[offset:], shape, [s * flat.itemsize for s in strides])
        return view.copy()


_CONSTANTS = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set, "NONE": lambda: None,
    "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip


def _pairs(items: list) -> dict:
    return dict(zip(items[::2], items[1::2], strict=True))
