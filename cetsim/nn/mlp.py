"""A multilayer perceptron as in the paper."""

import itertools
import math
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array


def mlp(
    sizes: tuple[int, ...] = (784, 512, 512, 10), activation: Callable = jax.nn.relu, *, key: Array
) -> eqx.nn.Sequential:
    """Linear layers with an activation between them, `[sizes[0]] -> [sizes[-1]]`.

    Weights are Xavier-uniform, biases too (as a matrix of shape 1 x out), as in the authors' code.

    **Raises:** ValueError for fewer than two sizes or a size below 1.
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise ValueError(f"`sizes` must be at least two numbers of units above 0, got {sizes}")
    layers = []
    pairs = list(itertools.pairwise(sizes))
    for (fan_in, fan_out), layer_key in zip(pairs, jax.random.split(key, len(pairs)), strict=True):
        layers += [_linear(fan_in, fan_out, layer_key), eqx.nn.Lambda(activation)]
    return eqx.nn.Sequential(layers[:-1])


def _linear(fan_in: int, fan_out: int, key) -> eqx.nn.Linear:
    shape_key, weight_key, bias_key = jax.random.split(key, 3)
    linear = eqx.nn.Linear(fan_in, fan_out, key=shape_key)

    def uniform(key, shape, fans):
        bound = math.sqrt(6 / fans)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    weight = uniform(weight_key, (fan_out, fan_in), fan_in + fan_out)
    bias = uniform(bias_key, (fan_out,), 1 + fan_out)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (weight, bias))
