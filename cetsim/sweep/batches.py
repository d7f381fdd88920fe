"""Which conditions are trained at once: decided by the grid and the size of a batch alone, never by what else ran."""

import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from cetsim import checks


class Batch(NamedTuple):
    """Conditions that one program trains side by side.

    **Fields:** `group`: what is compiled, the same for all of them. `conditions`. `width`: lanes of the program; those
    left over repeat a condition.
    """

    group: Hashable
    conditions: tuple
    width: int


def grid(**axes: Iterable) -> list[dict[str, Any]]:
    """Every combination of the values of the axes, as dicts; the last axis varies fastest.

    **Raises:** ValueError for an axis without values, or with one twice.
    """
    values = {name: list(own) for name, own in axes.items()}
    for name, own in values.items():
        if not own:
            raise ValueError(f"the axis `{name}` must have at least one value, got none")
        if any(a == b for a, b in itertools.combinations(own, 2)):
            raise ValueError(f"the axis `{name}` must not repeat a value, got {own}")
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


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
        lanes = -(-width // multiple) * multiple
        batches += [Batch(group, tuple(alike[i : i + width]), lanes) for i in range(0, len(alike), width)]
    return batches


def parse_shard(text: str) -> tuple[int, int]:
    """The i and n of "i/n", one of n processes that share the work.

    **Raises:** ValueError unless 1 <= i <= n.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n, got {text}")
    return int(index), int(count)


def share(batches: list[Batch], shard: str) -> list[Batch]:
    """The batches of one of several processes; those of all are every batch once."""
    index, count = parse_shard(shard)
    return batches[index - 1 :: count]


def config_hash(config: dict) -> str:
    """16 digits of the SHA-256 of `config` as JSON (sorted keys, no spaces): equal configs, equal hash."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
