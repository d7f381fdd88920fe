"""The actor and the critic of the paper, and what the actor's synapses see of a rollout."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim.rl.policies import Categorical, Gaussian


def actor(sizes: tuple[int, ...], *, key: Array) -> eqx.nn.Sequential:
    """Layers without biases, orthogonal with gain √2, ReLU between them; from an observation to a policy's outputs.

    **Reference:** arXiv:2506.14598, reinforcement learning.
    """
    orthogonal = jax.nn.initializers.orthogonal(math.sqrt(2.0))
    return _mlp(sizes, lambda key, shape: orthogonal(key, shape), False, key)


def critic(sizes: tuple[int, ...], *, key: Array) -> eqx.nn.Sequential:
    """Layers with weights Kaiming-normal and biases 0, ReLU between them; from an observation to its value.

    **Reference:** He et al. (2015), "Delving Deep into Rectifiers".
    """
    normal = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
    return _mlp((*sizes, 1), lambda key, shape: normal(key, shape), True, key)


def _mlp(sizes, draw, use_bias: bool, key) -> eqx.nn.Sequential:
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"`sizes` must be at least an input and an output, all at least 1, got {sizes}")
    layers = []
    for inputs, out, layer_key in zip(sizes[:-1], sizes[1:], jax.random.split(key, len(sizes) - 1), strict=True):
        layer = eqx.nn.Linear(inputs, out, use_bias=use_bias, key=layer_key)
        layer = eqx.tree_at(lambda layer: layer.weight, layer, draw(layer_key, (out, inputs)))
        if use_bias:
            layer = eqx.tree_at(lambda layer: layer.bias, layer, jnp.zeros(out))
        layers += [layer, eqx.nn.Lambda(jax.nn.relu)]
    return eqx.nn.Sequential(layers[:-1])


def outputs(model: eqx.nn.Sequential, observations: Float[Array, "*many size"]) -> Float[Array, "*many outputs"]:
    """What an actor or a critic says of many observations.

    As rows times weights: of the model mapped over observations XLA makes weights times columns, and transposes what
    every layer gives.
    """
    x = observations
    for layer in model.layers:
        if isinstance(layer, eqx.nn.Linear):
            x = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        else:
            x = layer(x)
    return x


class Factors(NamedTuple):
    """What one layer's synapses see of a segment of time, in one environment or in many.

    **Fields:**

    - `x`: `[time, ..., in]`, with a last column of ones where there are biases.
    - `derivative`: f'(z), `[time, ..., out]`, or None for the identity.
    - `error`: the derivative, by the layer's activation, of what is to rise, `[time, ..., out]`.
    """

    x: Float[Array, "*time inputs"]
    derivative: Float[Array, "*time out"] | None
    error: Float[Array, "*time out"]


def factors_of_policy(
    model: eqx.nn.Sequential, policy: Categorical | Gaussian, observations: Float[Array, "*time size"], actions
) -> list[Factors]:
    """The factors of each layer of an actor, from the bottom up, of the log-probability of the actions taken."""
    return _factors(model, observations, lambda outputs: policy.score(outputs, actions))


def factors_of_value(model: eqx.nn.Sequential, observations: Float[Array, "*time size"]) -> list[Factors]:
    """The factors of each layer of a critic, from the bottom up, of the value of each observation."""
    return _factors(model, observations, jnp.ones_like)


def _factors(model, observations, error_of) -> list[Factors]:
    """Forward and back by hand, errors travelling down undelayed: what autodiff would sum over time is kept apart.

    Forward in the same operations as `outputs`, so that a program which needs both computes one.
    """
    linear = [layer for layer in model.layers if isinstance(layer, eqx.nn.Linear)]
    seen, derivatives, x = [], [], observations
    for layer in linear:
        seen.append(x)
        z = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        derivatives.append((z > 0).astype(z.dtype))
        x = jax.nn.relu(z)
    return sent_down(linear, seen, [*derivatives[:-1], None], error_of(z))


def sent_down(layers, seen: list, derivatives: list, error: Float[Array, "*time outputs"]) -> list[Factors]:
    """The factors of each layer from what it saw, its slopes, and the error at the top, which goes down at once."""
    factors = []
    for layer, x, derivative in zip(layers[::-1], seen[::-1], derivatives[::-1], strict=True):
        x = x if layer.bias is None else jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        factors.insert(0, Factors(x, derivative, error))
        error = (error if derivative is None else derivative * error) @ layer.weight
    return factors


def gradient_like(model: eqx.Module, updates: list[Float[Array, "_ _"]]) -> eqx.Module:
    """The updates of all its `layers`, each with its biases as a last column, as a gradient of the model."""
    layers = list(model.layers)
    places = [i for i, layer in enumerate(layers) if isinstance(layer, eqx.nn.Linear)]
    for i, update in zip(places, updates, strict=True):
        biased = layers[i].bias is not None
        weight, bias = (update[:, :-1], update[:, -1]) if biased else (update, None)
        layers[i] = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layers[i], (weight, bias), is_leaf=_is_none)
    return eqx.filter(eqx.tree_at(lambda model: model.layers, model, tuple(layers)), eqx.is_inexact_array)


def _is_none(leaf) -> bool:
    return leaf is None
