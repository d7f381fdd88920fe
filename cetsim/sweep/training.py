"""A user's own training in a sweep: `init`, `advance` and `evaluate`, vmapped over the conditions of a batch."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from cetsim import checks
from cetsim.sweep.grid import entries
from cetsim.sweep.runner import Infeasible

EVALS = 10  # of a run, by default
SLOTS = PartitionSpec("slots")


class Evaluation(NamedTuple):
    """What is measured of a run on the way.

    **Fields:**

    - `function(state, *arguments)`: gives numbers by name, pure as all of `Training`. Numbers of a dict or an array
      inside are of layers.
    - `at`: steps at which it is made, some of the training's `ends` and 0, before the first step; all but 0 by default.
    - `over`: tuples of arguments, for each of which `function` is called. The mean is recorded, in which each weighs as
      much as its last array is long: parts of a test set that is too large, say.
    - `prefix`: put before the names of what is measured.
    - `columns`: of its rows, beside those of the condition, which they replace: those of a probe, say.
    """

    function: Callable[..., PyTree]
    at: Sequence[int] | None = None
    over: Sequence[tuple] = ((),)
    prefix: str = ""
    columns: dict[str, Any] | None = None


class Training(NamedTuple):
    """Training that is pure in (hyperparameters, key), as `cetsim.supervised.SupervisedRun` and `ActorCriticRun` are.

    **Fields:**

    - `init(hyperparameters, key)`: the state before the first step, a tree of arrays.
    - `advance(state, steps)`: the state after so many steps (a Python int), and a tree of what was measured, numbers
      or one a step, of which the mean is recorded.
    - `evaluate`: a function of the state that gives a dict of numbers, an `Evaluation`, or several; None for nothing.
    - `steps`: of a whole run.
    - `every`: steps between two moments at which the host evaluates, records and makes checkpoints, or all these
      moments; a tenth of the run by default.
    - `hyperparameters(condition)`: a tree of arrays and numbers, made on the host; by default the condition itself
      but for its `seed`, which gives the key. Conditions whose trees have one structure, and leaves of the same shapes
      and types, are trained side by side.
    - `chunk`: steps that are compiled into one program, at most.
    - `frames_per_step`: what a step counts as where it is recorded, such as the frames of an update.
    - `on_host`: whether all is plain Python, of one condition at a time: nothing is compiled or vmapped. `evaluate`
      may then give rows as they are recorded, too.
    - `save(state)`, `restore(tree, notes)`: of a state on the host, a tree of arrays with JSON notes, and back.

    What these functions close over is compiled in: hand large arrays over in an Equinox module, whose methods may
    stand here (`run.init`), in `eqx.Partial(run.evaluate, x=x, labels=labels)` or in `Evaluation(over=...)`.
    """

    init: Callable[[PyTree, Array], Any]
    advance: Callable[[Any, int], tuple[Any, PyTree]]
    evaluate: Callable[[Any], dict] | Evaluation | Sequence[Callable | Evaluation] | None
    steps: int
    every: int | Sequence[int] | None = None
    hyperparameters: Callable[[Any], PyTree] = lambda one: {n: v for n, v in entries(one).items() if n != "seed"}
    chunk: int | None = None
    frames_per_step: int = 1
    on_host: bool = False
    save: Callable[[Any], tuple[PyTree, dict]] = lambda state: (state, {})
    restore: Callable[[PyTree, dict], Any] = lambda tree, notes: tree

    def check(self) -> None:
        """Raises ValueError for numbers of steps that are none, and moments that are not."""
        for name, value in (("steps", self.steps), ("every", self.every), ("chunk", self.chunk)):
            if value is not None and not np.ndim(value):
                checks.require_whole(name, value)
        ends = self.ends
        if ends[0] < 1 or ends[-1] != self.steps or sorted({*ends}) != ends:
            raise ValueError(f"`every` must be a number or steps that ascend to the last, {self.steps}, got {ends}")
        if odd := sorted({step for evaluation in self.evaluations for step in evaluation.at or ()} - {0, *ends}):
            raise ValueError(f"`at` must be 0 or steps at which the host evaluates, {ends}, got {odd}")

    @property
    def ends(self) -> list[int]:
        """Steps after which the host evaluates."""
        if np.ndim(self.every):
            return list(map(int, self.every))
        every = max(1, self.steps // EVALS) if self.every is None else self.every
        return [*range(every, self.steps, every), self.steps]

    @property
    def evaluations(self) -> list[Evaluation]:
        """What is measured, one by one."""
        several = isinstance(self.evaluate, list | tuple) and not isinstance(self.evaluate, Evaluation)
        given = self.evaluate if several else [self.evaluate]
        return [one if isinstance(one, Evaluation) else Evaluation(one) for one in given if one is not None]

    def arrays(self, condition) -> PyTree:
        """The hyperparameters with their numbers as arrays."""
        as_array = lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf  # noqa: E731
        return jax.tree.map(as_array, self.hyperparameters(condition))

    def shape_of(self, condition) -> tuple:
        """What conditions that are trained side by side have in common."""
        leaves, structure = jax.tree.flatten(self.arrays(condition))
        return structure, tuple((x.shape, str(x.dtype)) if eqx.is_array(x) else x for x in leaves)


class Trainer:
    """A training of several conditions side by side, a slot each, on all devices, or of one on the host.

    **Arguments:** `training`. `width`: slots, a multiple of the number of devices. `devices`: of this process.
    """

    def __init__(self, training: Training, width: int, devices: Sequence[jax.Device]):
        self.training, self.width, self.devices = training, width, devices
        self.ends, self.save = training.ends, training.save
        self._compiled: dict[int, Callable] = {}  # by the steps it makes

    def begin(self, slots: list):
        """The state before the first step, of a condition in each slot; several slots may have the same."""
        hyper = [self.training.arrays(condition) for condition in slots]
        keys = [jax.random.key(entries(condition).get("seed", 0)) for condition in slots]
        if self.training.on_host:
            return self.training.init(hyper[0], keys[0])
        arrays, rest = eqx.partition(hyper[0], eqx.is_array)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), arrays, *(eqx.filter(one, eqx.is_array) for one in hyper[1:]))
        trees = place((stacked, jnp.stack(keys)), self.devices)
        return over_slots(_init, trees, (self.training.init, rest), self.devices)

    def restore(self, tree, notes):
        """The state that was saved, on the devices it was on."""
        state = self.training.restore(tree, notes)
        return state if self.training.on_host else place(state, self.devices)

    def advance(self, state, start: int, end: int):
        """The state after the steps from `start` to `end`, and the rows of what was measured in each slot.

        A row is a dict of `metric`, `step`, `value`, a number or None, and what else sets it apart.
        """
        rows: list[list[dict]] = [[] for _ in range(self.width)]
        if start == 0:
            self._evaluate(rows, state, 0)
        parts, chunk = [], self.training.chunk or end - start
        for steps in (min(chunk, end - done) for done in range(start, end, chunk)):
            state, measured = self._advance(state, steps)
            parts.append((steps, self._by_name(measured, steps)))
        self._add(rows, end, parts, Evaluation(self.training.advance))
        self._evaluate(rows, state, end)
        if end == self.ends[-1] and not any(row["metric"] == "diverged" for row in rows[0]):
            step = end * self.training.frames_per_step
            for of_slot in rows:
                lost = any(row["value"] is None for row in of_slot if row["step"] == step)
                of_slot.append({"metric": "diverged", "step": step, "value": float(lost)})
        return state, rows

    def _advance(self, state, steps: int):
        if self.training.on_host:
            return self.training.advance(state, steps)
        arguments = self.training.advance, (state,), (steps,), self.devices
        if steps not in self._compiled:
            compiled = over_slots.lower(*arguments).compile()
            self._require_room(compiled.compiled.memory_analysis())
            self._compiled[steps] = compiled
        return self._compiled[steps](*arguments)

    def _require_room(self, program) -> None:
        """Raises Infeasible unless what a device has to hold at once fits its memory, as far as that is known."""
        # Where devices are the processor's, each could have all of its memory.
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
        limit = (self.devices[0].memory_stats() or {}).get("bytes_limit", pages)
        if program is None or not limit:
            return
        need = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
        if (need := need - program.alias_size_in_bytes) > limit:
            raise Infeasible(
                f"`batch` must be so small that its runs fit in memory: {self.width} runs on {len(self.devices)} "
                f"devices need {need / 2**30:.1f} GiB on each, which has {limit / 2**30:.1f} GiB; about "
                f"{max(1, int(limit / need * self.width))} would fit"
            )

    def _evaluate(self, rows: list[list[dict]], state, step: int) -> None:
        """Adds what the evaluations due at this step find to the rows of each slot."""
        for evaluation in self.training.evaluations:
            parts, due = [], step in (self.ends if evaluation.at is None else evaluation.at)
            for arguments in evaluation.over if due else ():
                if not self.training.on_host:
                    measured = over_slots(evaluation.function, (state,), arguments, self.devices)
                elif isinstance(measured := evaluation.function(state, *arguments), list):
                    rows[0] += [{"step": step * self.training.frames_per_step} | row for row in measured]
                    continue
                weight = [1, *map(len, filter(np.ndim, jax.tree.leaves(arguments)))][-1]
                parts.append((weight, self._by_name(measured)))
            self._add(rows, step, parts, evaluation)

    def _by_name(self, measured: PyTree, steps: int | None = None) -> dict[tuple[str, str | None], np.ndarray]:
        """What was measured by metric and layer, `[slots]`, the mean over steps if any; a single array is a loss."""
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(measured):
            metric, layer = (jax.tree_util.keystr(part, simple=True, separator=".") for part in (path[:1], path[1:]))
            metric, values = metric or "loss", np.asarray(leaf, float)[None if self.training.on_host else ...]
            got = f"got {metric!r} of shape {list(values.shape[1:])}"
            if steps is not None and values.ndim > 1:
                if values.shape[1] != steps:
                    raise ValueError(f"what `advance` measures must be a number, or one a step, {got}")
                values = values.mean(axis=1)
            if values.ndim > 2 or (values.ndim == 2 and layer):
                raise ValueError(f"what is measured must be a number, or one a layer, {got}")
            layers = {layer or None: values} if values.ndim == 1 else {str(i): of for i, of in enumerate(values.T)}
            found |= {(metric, layer): of_layer for layer, of_layer in layers.items()}
        return found

    def _add(self, rows, step: int, parts: list[tuple[int, dict]], evaluation: Evaluation) -> None:
        """Adds the weighted mean of what was measured in parts to the rows of each slot."""
        for metric, layer in parts[0][1] if parts else ():
            arrays = [measured[metric, layer] for _, measured in parts]
            values = np.average(arrays, 0, [weight for weight, _ in parts]) if len(parts) > 1 else arrays[0]
            row = {"metric": evaluation.prefix + metric, "step": step * self.training.frames_per_step, "value": None}
            row |= ({} if layer is None else {"layer": layer}) | (evaluation.columns or {})
            for of_slot, value in zip(rows, values, strict=True):
                of_slot.append(row | {"value": float(value) if np.isfinite(value) else None})


# Functions are arguments, not closures, so that arrays of the modules they are methods of are no constants.
@eqx.filter_jit
def over_slots(function: Callable, trees: tuple, arguments: Sequence, devices: Sequence[jax.Device]) -> PyTree:
    """`function(*trees, *arguments)`, vmapped over the first axis of the trees, of which each device has its part.

    No device waits for another: what is mapped needs no word from its neighbours. The arguments are the same for all.
    A single slot is not vmapped: large matrix products and convolutions gain nothing from it.
    """

    def mapped(*trees):
        if any(leaf.shape[0] != 1 for leaf in jax.tree.leaves(trees)):
            return jax.vmap(lambda *slot: function(*slot, *arguments))(*trees)
        alone = function(*jax.tree.map(lambda leaf: leaf[0], trees), *arguments)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], alone)

    if len(devices) > 1:
        mapped = jax.shard_map(mapped, mesh=Mesh(devices, SLOTS), in_specs=SLOTS, out_specs=SLOTS, check_vma=False)
    return mapped(*trees)


def _init(hyper, key, init, rest):
    return init(eqx.combine(hyper, rest), key)


def place(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """The tree of stacked slots with each on its device."""
    return jax.device_put(tree, devices[0] if len(devices) == 1 else NamedSharding(Mesh(devices, SLOTS), SLOTS))
