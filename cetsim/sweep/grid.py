"""Which conditions there are, what they are called, and which are trained at once: never by what else ran."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from cetsim import checks


class Batch(NamedTuple):
    """Conditions that one program of `width` slots trains side by side. **Fields:** `group`: what is compiled."""

    group: Hashable
    conditions: tuple
    width: int


def grid(**axes: Iterable) -> list[dict[str, Any]]:
    """Every combination of the values of the axes, as dicts; the last axis varies fastest.

    **Raises:** ValueError for an axis without values, or with one twice.
    """
    values = {name: list(along) for name, along in axes.items()}
    for name, along in values.items():
        if not along:
            raise ValueError(f"the axis `{name}` must have at least one value, got none")
        if any(a == b for a, b in itertools.combinations(along, 2)):
            raise ValueError(f"the axis `{name}` must not repeat a value, got {along}")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def in_batches(conditions: Iterable, group_of: Callable[[Any], Hashable], size: int, multiple: int = 1) -> list[Batch]:
    """The conditions in batches of at most `size`, those of one group together, in the order in which they come.

    **Arguments:** `multiple`: of which the width of a program is one, such as the number of devices.
    """
    checks.require_whole("size", size)
    groups: dict[Hashable, list] = {}
    for condition in conditions:
        groups.setdefault(group_of(condition), []).append(condition)
    batches = []
    for group, alike in groups.items():
        # Batches of a group are as even as can be, and of one width, so that the group is compiled once.
        width = -(-len(alike) // -(-len(alike) // size))
        slots = -(-width // multiple) * multiple
        batches += [Batch(group, tuple(alike[i : i + width]), slots) for i in range(0, len(alike), width)]
    return batches


def parse_shard(text: str) -> tuple[int, int]:
    """The i and n of "i/n", one of n processes that share the work. Raises ValueError unless 1 <= i <= n."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n, got {text}")
    return int(index), int(count)


def share(batches: list[Batch], shard: str) -> list[Batch]:
    """The batches of one of several processes; those of all are every batch once."""
    index, count = parse_shard(shard)
    return batches[index - 1 :: count]


def entries(value) -> dict[str, Any]:
    """The entries of a dict, or the fields of a dataclass."""
    return {field.name: getattr(value, field.name) for field in _fields(value)} or dict(value)


def plain(value, name: str = "config"):
    """A value as it comes back from JSON: arrays and tuples are lists, dataclasses dicts. ValueError if it has none."""

    def convert(other):
        return other.tolist() if isinstance(other, np.generic | np.ndarray | jax.Array) else entries(other)

    try:
        return json.loads(json.dumps(value, allow_nan=False, default=convert))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a JSON value, got {value!r}") from error


def naming(value, defaults: dict | None = None) -> dict:
    """The part of a dict or dataclass that differs from the defaults, and so names a run: a new option renames none.

    **Arguments:** `defaults`: of a dict's entries; dataclasses know theirs. A dataclass inside is named by its
    kind and what differs in it.
    """
    defaults, named = dict(defaults or {}), {}
    for field in _fields(value):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    for name, entry in entries(value).items():
        here, default = plain(entry, name), plain(defaults.get(name), name)
        # 0 and 0.0 are one, but True is no number.
        if name not in defaults or here != default or isinstance(here, bool) != isinstance(default, bool):
            named[name] = {"kind": type(entry).__name__} | naming(entry) if _fields(entry) else here
    return named


def _fields(value) -> tuple:
    return dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()


def words(condition) -> str:
    """A condition as a reader is told of it."""
    return ", ".join(f"{name} {value}" for name, value in plain(entries(condition), "conditions").items())
