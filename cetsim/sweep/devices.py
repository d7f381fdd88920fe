"""The slots of a batch over devices: a function of one run, mapped over as many as there are, each where it lies."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

SLOTS = "slots"


def over_slots(function: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`function` of trees of arrays, vmapped over their first axis, of which each device has its part.

    **Arguments:** `devices`: all of this process by default. The axis is a multiple of their number.

    No device waits for another: what is mapped needs no word from its neighbours. What `function` closes over is the
    same for all. A single slot is not vmapped: large matrix products and convolutions gain nothing from it.
    """
    devices = jax.local_devices() if devices is None else devices

    def mapped(*trees):
        if any(leaf.shape[0] != 1 for leaf in jax.tree.leaves(trees)):
            return jax.vmap(function)(*trees)
        alone = function(*jax.tree.map(lambda leaf: leaf[0], trees))
        return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf)[None], alone)

    if len(devices) == 1:
        return mapped
    slots = PartitionSpec(SLOTS)
    return jax.shard_map(mapped, mesh=_mesh(devices), in_specs=slots, out_specs=slots, check_vma=False)


def place(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """The tree of stacked slots with each on its device."""
    devices = jax.local_devices() if devices is None else devices
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec(SLOTS)))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (SLOTS,))
