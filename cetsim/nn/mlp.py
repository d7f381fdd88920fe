"""A multilayer perceptron as in the paper."""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array

from cetsim import checks
from cetsim.nn.init import xavier


def mlp(
    sizes: tuple[int, ...] = (784, 512, 512, 10), activation: Callable = jax.nn.relu, *, key: Array
) -> eqx.nn.Sequential:
    """Linear layers with an activation between them, `[sizes[0]] -> [sizes[-1]]`, weights as by `xavier`.

    **Raises:** ValueError for fewer than two sizes or a size below 1.
    """
    sizes = tuple(checks.require_whole("sizes", size, least=None) for size in sizes)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"`sizes` must be at least two numbers of units above 0, got {sizes}")
    layers = []
    pairs = list(itertools.pairwise(sizes))
    for (fan_in, fan_out), layer_key in zip(pairs, jax.random.split(key, len(pairs)), strict=True):
        layers += [xavier(eqx.nn.Linear(fan_in, fan_out, key=layer_key), layer_key), eqx.nn.Lambda(activation)]
    return eqx.nn.Sequential(layers[:-1])
