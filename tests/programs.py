"""Programs run without a runner, and one that needs no compiler: random walks, each step of which depends on all."""

import itertools
from types import SimpleNamespace

import numpy as np

from cetsim.sweep.grid import Run, digest, grid, in_batches
from cetsim.sweep.records import Records
from cetsim.sweep.runner import Runner

FACTOR, SHIFT = 6364136223846793005, 1442695040888963407  # of the random numbers, modulo 2^64
CONDITIONS = grid(kind=("a", "b"), scale=(0.5, 2.0), seed=range(4))


def trained_rows(program, slots):
    """The rows of each slot after a whole run."""
    rows, state = [[] for _ in slots], program.begin(list(slots))
    for start, end in itertools.pairwise((0, *program.ends)):
        state, new = program.advance(state, start, end)
        rows = [old + added for old, added in zip(rows, new, strict=True)]
    return rows


def last(rows):
    """The value measured last of each metric."""
    return {row["metric"]: row["value"] for row in rows}


class Walk:
    """Random walks side by side. `watch` is told of all that is asked for, and may raise or send signals."""

    ends = (4, 8, 12, 16, 18)
    room = 1  # numbers of a slot's state that stay, so that it may take a while to be written

    def __init__(self, run, width):
        self.width = width
        type(self).watch("made", [run.condition], 0)

    @staticmethod
    def watch(what, slots, step):
        """Replaced by tests."""

    def begin(self, slots):
        assert len(slots) == self.width
        self.slots = slots
        type(self).watch("begin", slots, 0)
        bits = np.asarray([slot["seed"] for slot in slots], np.uint64)
        return {"bits": bits, "walk": np.zeros(self.width), "filling": np.zeros((self.width, self.room))}

    def advance(self, state, start, end):
        bits, walk, furthest = state["bits"], state["walk"], np.zeros(self.width)
        with np.errstate(all="ignore"):
            for _ in range(start, end):
                bits = bits * np.uint64(FACTOR) + np.uint64(SHIFT)
                walk = walk + [slot["scale"] for slot in self.slots] * ((bits >> np.uint64(11)) / 2**53 - 0.5)
                furthest = np.maximum(furthest, abs(walk))
        type(self).watch("advance", self.slots, end)
        rows = [_rows(end, *numbers) for numbers in zip(walk, furthest, strict=True)]
        return state | {"bits": bits, "walk": walk}, rows

    def save(self, state):
        return state, {}

    def restore(self, tree, notes):
        return tree


def literal(condition):
    """The rows of a walk, from its definition."""
    bits, walk, rows = condition["seed"], 0.0, []
    for start, end in itertools.pairwise((0, *Walk.ends)):
        passed = []
        for _ in range(start, end):
            bits = (bits * FACTOR + SHIFT) % 2**64
            walk += condition["scale"] * ((bits >> 11) / 2**53 - 0.5)
            passed.append(abs(walk))
        rows += _rows(end, walk, max(passed))
    return rows


def _rows(step, walk, furthest):
    measured = {"walk": {"value": walk}, "furthest": {"value": furthest, "side": "both"}}
    number = lambda value: float(value) if np.isfinite(value) else None  # noqa: E731
    return [{"metric": name, "step": step} | m | {"value": number(m["value"])} for name, m in measured.items()]


def words(condition):
    return f"{condition['kind']} {condition['scale']} {condition['seed']}"


def run_of(condition):
    config = {"walk": 1} | condition
    training = SimpleNamespace(steps=Walk.ends[-1])
    return Run(condition, training, condition["kind"], config, digest(config), dict(condition), words(condition))


def key_of(condition):
    """The name of the condition's run."""
    return run_of(condition).key


def batches(conditions=CONDITIONS, size=3, multiple=1):
    return in_batches(map(run_of, conditions), size, multiple)


def walk(folder, conditions=CONDITIONS, every=60.0, **of_batches):
    """Runs the walks that are not finished; the records."""
    records = Records(folder)
    Runner(Walk, records, every).run(batches(conditions, **of_batches))
    return records


def measured(folder):
    """The rows of each run but for the seconds it took, by name."""
    records = Records(folder).records.values()
    return {words(r["columns"]): [row for row in r["rows"] if row["metric"] != "wall_s"] for r in records}


def recorded(folder):
    """The files of records, by name, as they are."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("runs/*"))}


def expected(conditions=CONDITIONS):
    return {words(condition): literal(condition) for condition in conditions}
