"""Which conditions there are, what their runs are called, and which are trained at once: never by what else ran."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np


class Run(NamedTuple):
    """A condition, and how it is named and trained."""

    condition: Any  # a dict or dataclass
    training: Any  # what is done with it, a `cetsim.sweep.training.Training`
    group: Hashable  # what is compiled: runs of one group may be trained side by side
    config: dict  # all that the run depends on and that is not a default, as JSON
    key: str  # its name, the digest of the config
    columns: dict  # what its rows share
    words: str  # the condition as a reader is told of it


def grid(**axes: Iterable) -> list[dict[str, Any]]:
    """Every combination of the values of the axes, as dicts; the last axis varies fastest.

    **Raises:** ValueError for an axis without values, or with one twice.
    """
    values = {name: list(along) for name, along in axes.items()}
    for name, along in values.items():
        if not along or any(a == b for a, b in itertools.combinations(along, 2)):
            raise ValueError(f"the axis `{name}` must have values, none of them twice, got {along}")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def in_batches(runs: Iterable, size: int, multiple: int = 1) -> list[tuple[list, int]]:
    """Batches of at most `size` runs of one `group`, in the order in which they come, and the slots that each has.

    **Arguments:** `multiple`: of which the slots are one, such as the number of devices.
    """
    groups: dict[Hashable, list] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    batches = []
    for alike in groups.values():
        # Batches of a group are as even as can be, and of one width, so that the group is compiled once.
        width = -(-len(alike) // -(-len(alike) // size))
        slots = -(-width // multiple) * multiple
        batches += [(alike[i : i + width], slots) for i in range(0, len(alike), width)]
    return batches


def parse_shard(text: str) -> tuple[int, int]:
    """The i and n of "i/n", one of n processes that share the work. Raises ValueError unless 1 <= i <= n."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n, got {text}")
    return int(index), int(count)


def digest(config: dict) -> str:
    """16 digits of the SHA-256 of `config` as JSON (sorted keys, no spaces): equal configs, equal digests."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def entries(value) -> dict[str, Any]:
    """The entries of a dict, or the fields of a dataclass."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {field.name: getattr(value, field.name) for field in fields} or dict(value)


def plain(value, name: str = "config"):
    """A value as it comes back from JSON: arrays and tuples are lists, dataclasses dicts. ValueError if it has none."""
    listed = lambda x: x.tolist() if isinstance(x, np.generic | np.ndarray | jax.Array) else entries(x)  # noqa: E731
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=listed))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a JSON value, got {value!r}") from error


def naming(value, defaults: dict | None = None) -> dict:
    """The part of a dict or dataclass that differs from the defaults, and so names a run: a new option renames none.

    **Arguments:** `defaults`: of a dict's entries; dataclasses know theirs, and inside are named by their kind too.
    """
    defaults, named = dict(defaults or {}), {}
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if default is not dataclasses.MISSING:
            defaults[field.name] = default
    for name, entry in entries(value).items():
        here, default = plain(entry, name), plain(defaults.get(name), name)
        # 0 and 0.0 are one, but True is no number.
        if name not in defaults or here != default or isinstance(here, bool) != isinstance(default, bool):
            inside = {"kind": type(entry).__name__} | naming(entry) if dataclasses.is_dataclass(entry) else here
            named[name] = inside
    return named


def words(condition) -> str:
    """A condition as a reader is told of it."""
    return ", ".join(f"{name} {value}" for name, value in plain(entries(condition), "conditions").items())
