"""Initial weights as in the paper."""

import math

import equinox as eqx
import jax
from jaxtyping import Array


def xavier(layer: eqx.nn.Linear | eqx.nn.Conv2d, key: Array) -> eqx.nn.Linear | eqx.nn.Conv2d:
    """The layer with Xavier-uniform weights, its bias too (as a matrix of shape 1 x out), as in the authors' code."""
    _, weight_key, bias_key = jax.random.split(key, 3)
    fan_out, fan_in, *window = layer.weight.shape
    fans = (fan_in + fan_out) * math.prod(window)
    weight = _uniform(weight_key, layer.weight, fans)
    layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    if layer.bias is None:
        return layer
    return eqx.tree_at(lambda layer: layer.bias, layer, _uniform(bias_key, layer.bias, 1 + fan_out))


def _uniform(key, like, fans: int):
    bound = math.sqrt(6 / fans)
    return jax.random.uniform(key, like.shape, like.dtype, minval=-bound, maxval=bound)
