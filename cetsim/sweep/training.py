"""A user's own training in a sweep: `init`, `advance` and `evaluate`, vmapped over the conditions of a batch."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from cetsim import checks
from cetsim.sweep.devices import over_lanes, place
from cetsim.sweep.runner import Infeasible, Program

LOOKS = 10  # of a run, by default


def numbers(condition: dict[str, Any]) -> dict[str, Any]:
    """The condition without its seed: the hyperparameters where nothing else is said."""
    return {name: value for name, value in condition.items() if name != "seed"}


class Training(NamedTuple):
    """Training that is pure in (hyperparameters, key), as `cetsim.train.SupervisedRun` and `ActorCriticRun` are.

    **Fields:**

    - `init(hyperparameters, key)`: the state before the first step, a tree of arrays.
    - `advance(state, steps)`: the state after so many steps (a Python int), and a tree of what was measured, numbers
      or one a step, of which the mean is recorded.
    - `evaluate(state)`: a dict of numbers; None for nothing.
    - `steps`: of a whole run.
    - `every`: steps between two looks of the host, which record, evaluate and make checkpoints; a tenth of the run by
      default.
    - `hyperparameters(condition)`: a tree of arrays and numbers, made on the host; by default the condition itself
      but for its `seed`, which gives the key. Conditions whose trees have one structure, and leaves of the same shapes
      and types, are trained side by side.

    What these functions close over is compiled in: hand large arrays over in an Equinox module, whose methods may
    stand here (`run.init`), or in `eqx.Partial(run.evaluate, x=x, labels=labels)`.
    """

    init: Callable[[PyTree, Array], Any]
    advance: Callable[[Any, int], tuple[Any, PyTree]]
    evaluate: Callable[[Any], dict] | None
    steps: int
    every: int | None = None
    hyperparameters: Callable[[dict[str, Any]], PyTree] = numbers

    def check(self) -> None:
        """Raises ValueError for numbers of steps that are none."""
        checks.require_whole("steps", self.steps)
        if self.every is not None:
            checks.require_whole("every", self.every)

    @property
    def ends(self) -> list[int]:
        """Steps after which the host looks."""
        every = max(1, self.steps // LOOKS) if self.every is None else self.every
        return [*range(every, self.steps, every), self.steps]

    def arrays(self, condition: dict[str, Any]) -> PyTree:
        """The hyperparameters with their numbers as arrays."""
        as_array = lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf  # noqa: E731
        return jax.tree.map(as_array, self.hyperparameters(condition))

    def shape_of(self, condition: dict[str, Any]) -> tuple:
        """What conditions that are trained side by side have in common."""
        leaves, structure = jax.tree.flatten(self.arrays(condition))
        return structure, tuple((x.shape, str(x.dtype)) if eqx.is_array(x) else x for x in leaves)


class Mapped(Program):
    """A training of several conditions at once, on all devices.

    **Arguments:** `training`. `width`: lanes, a multiple of the number of devices. `devices`: of this process.
    """

    def __init__(self, training: Training, width: int, devices: Sequence[jax.Device]):
        self.training, self.width, self.devices = training, width, devices
        self.ends = training.ends
        self._compiled: dict[int, Callable] = {}  # by the steps it makes

    def begin(self, lanes: list[dict[str, Any]]):
        """The runs before their first step."""
        hyper = [self.training.arrays(condition) for condition in lanes]
        arrays, rest = eqx.partition(hyper[0], eqx.is_array)
        stacked = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), arrays, *(eqx.filter(other, eqx.is_array) for other in hyper[1:])
        )
        keys = jnp.stack([jax.random.key(condition.get("seed", 0)) for condition in lanes])
        return _init(self.training.init, rest, *place((stacked, keys), self.devices), self.devices)

    def advance(self, state, lanes: list[dict[str, Any]], start: int, end: int):
        """The runs after the steps from `start` to `end`, and what was measured of each."""
        arguments = self.training.advance, state, end - start, self.devices
        if end - start not in self._compiled:
            self._compiled[end - start] = _advance.lower(*arguments).compile()
            self._require_room(self._compiled[end - start])
        state, measured = self._compiled[end - start](*arguments)
        found = _named(measured)
        if self.training.evaluate is not None:
            found |= _named(_evaluate(self.training.evaluate, state, self.devices))
        values = {name: np.asarray(value, float).reshape(len(lanes), -1).mean(axis=1) for name, value in found.items()}
        if end == self.ends[-1]:
            values["diverged"] = ~np.isfinite(np.stack(list(values.values()) or [np.zeros(len(lanes))])).all(axis=0)
        return state, [
            [
                {"metric": name, "step": end, "value": float(own[lane]) if np.isfinite(own[lane]) else None}
                for name, own in values.items()
            ]
            for lane in range(len(lanes))
        ]

    def restore(self, tree, notes):
        """The state on the devices it was on."""
        return place(tree, self.devices)

    def _require_room(self, compiled) -> None:
        """Raises Infeasible unless what a device has to hold at once fits its memory."""
        need, limit = _need(compiled), _memory(self.devices[0])
        if limit is None or need is None or need <= limit:
            return
        needs, has = (f"{size / 2**30:.1f} GiB" for size in (need, limit))
        raise Infeasible(
            f"`batch` must be so small that its runs fit in memory: {self.width} runs on {len(self.devices)} devices "
            f"need {needs} on each, which has {has}; about {max(1, int(limit / need * self.width))} would fit"
        )


# Functions are arguments, not closures, so that arrays of the modules they are methods of are no constants.
@eqx.filter_jit
def _init(init, rest, hyper, key, devices):
    return over_lanes(lambda own, key: init(eqx.combine(own, rest), key), devices)(hyper, key)


@eqx.filter_jit
def _advance(advance, state, steps, devices):
    return over_lanes(lambda own: advance(own, steps), devices)(state)


@eqx.filter_jit
def _evaluate(evaluate, state, devices):
    return over_lanes(evaluate, devices)(state)


def _named(measured: PyTree) -> dict[str, Array]:
    """What was measured by name, `[lanes, ...]`; a single array is a loss."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(measured)
    named = {jax.tree_util.keystr(path, simple=True, separator=".") or "loss": leaf for path, leaf in leaves}
    for name, leaf in named.items():
        if leaf.ndim > 2:
            shape = list(leaf.shape[1:])
            raise ValueError(f"what is measured must be a number, or one a step, got {name!r} of shape {shape}")
    return named


def _need(compiled) -> int | None:
    """Bytes that a compiled program holds at once on a device, where XLA tells."""
    told = compiled.compiled.memory_analysis()
    if told is None:
        return None
    once = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return once + told.temp_size_in_bytes


def _memory(device: jax.Device) -> int | None:
    """Bytes of a device's memory; where devices are the processor's, each could have all of it."""
    told = device.memory_stats() or {}
    if "bytes_limit" in told:
        return told["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows
        return None
