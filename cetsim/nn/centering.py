"""Centred activity: layers learn from what they see less its mean, and their biases follow.

A blurred trace adds up the mean m of activity over all wrong lags; less its mean there is less to add up. Where a layer
computes W (x - m) + b', with b' = b + W m, a step is

    weights     ΔW from G_W - G_b mᵀ     G the gradient of W and b, or a trace's update of them
    bias        b ← b + Δb - ΔW m        as b' makes the optimiser's own step, and W does not move it

Neither needs activity again: both are of what is known when weights change, so that a synapse needs no look ahead. The
second line is what makes it work. Without it Adam, whose steps of weights are about as large as the rate whatever their
gradient, shifts a unit's input for all examples at once by up to the rate times Σ|m|, which the weights cannot see any
more, and one bias cannot undo.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.nn import surgery
from cetsim.nn.block import TracedBlock


class CenteredState(NamedTuple):
    """What `centered` remembers: the wrapped optimiser's state, running means by layer, and Σ of their weights."""

    inner: optax.OptState
    means: dict[str, Float[Array, " inputs"]]
    weight: Float[Array, ""]


def mean_inputs(call: Callable, model) -> dict[str, Float[Array, " inputs"]]:
    """The mean of what each layer with weights and a bias gets, one number an input (or input channel), by its name.

    **Arguments:**

    - `call`: of a model; runs it over what is averaged, in any maps: time, batches, tokens, places of an image.
    - `model`: without traces.

    Inside one jitted function with a loss of the same `call` XLA makes one forward pass of both.

    **Raises:** ValueError for a model with traces, or without a linear or convolution layer that has a bias.
    """
    found = _layers(model)
    if not found:
        raise ValueError("the model has no Linear or Conv layer with a bias, of whose inputs a mean could be taken")
    cells = {site.name: (jnp.zeros(_inputs(site.layer), site.layer.weight.dtype), jnp.zeros(())) for site in found}

    def outputs(cells):
        measured = {site.path: _Measured(site.layer, *cells[site.name]) for site in found}
        return eqx.filter(call(surgery.replace(model, measured)), eqx.is_inexact_array)

    out, pull = jax.vjp(outputs, cells)
    (sums,) = pull(jax.tree.map(jnp.zeros_like, out))
    return {name: total / jnp.maximum(count, 1).astype(total.dtype) for name, (total, count) in sums.items()}


def centered(optimizer: optax.GradientTransformation, decay: float = 0.0) -> optax.GradientTransformationExtraArgs:
    """The optimiser in coordinates where the input of each layer has mean zero; layers without a bias stay as they are.

    Its `update` takes `means`, as `mean_inputs` finds them, by name: `update(grads, state, params, means=means)`.

    **Arguments:**

    - `optimizer`: which clips, scales and decays; it sees G_W - G_b mᵀ in the place of G_W.
    - `decay`: of the running mean that is taken off, per update: m ← decay m + (1 - decay) means, in [0, 1), corrected
      for its start at none; 0 takes the means of the update itself.

    **Raises:** ValueError for a decay outside its range; in `update`, for missing `params` or `means`, or means of
    other layers.

    **Reference:** the centering trick of Montavon & Müller 2012, there for Boltzmann machines.
    """
    decay = checks.require_static("decay", decay)
    checks.require_within("decay", decay, "[0, 1)")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        none = {site.name: jnp.zeros(_inputs(site.layer), site.layer.weight.dtype) for site in _layers(params)}
        return CenteredState(optimizer.init(params), none, jnp.zeros(()))

    def update(grads, state, params=None, *, means=None, **more):
        if params is None or means is None:
            raise ValueError("the update of a `centered` optimiser needs `params` and `means`, of nn.mean_inputs")
        _check_means(means, state.means)
        running = {name: decay * state.means[name] + (1 - decay) * mean for name, mean in means.items()}
        weight = decay * state.weight + (1 - decay)
        now = {name: mean / weight.astype(mean.dtype) for name, mean in running.items()}
        updates, inner = optimizer.update(center(grads, now), state.inner, params, **more)
        return follow(updates, now), CenteredState(inner, running, weight)

    return optax.GradientTransformationExtraArgs(init, update)


def center(grads, means: dict[str, Float[Array, " inputs"]]):
    """The gradient, or a trace's update, in coordinates of centred inputs: G_W - G_b mᵀ in the place of G_W."""
    return _changed(grads, means, lambda weight, bias, mean: (weight - _outer(weight, bias, mean), bias))


def follow(updates, means: dict[str, Float[Array, " inputs"]]):
    """Steps made in coordinates of centred inputs, in those of W and b: Δb - ΔW m in the place of Δb."""
    return _changed(updates, means, lambda weight, bias, mean: (weight, bias - _shift(weight, bias, mean)))


class _Measured(eqx.Module):
    """A layer that adds what it gets to a cell, whose cotangent is the sum over whatever the layer is mapped over."""

    layer: eqx.Module
    total: Float[Array, " inputs"]
    count: Float[Array, ""]

    def __call__(self, x, *args, **options):
        last = isinstance(self.layer, eqx.nn.Linear) or getattr(self.layer, "layout", None) == "channels_last"
        seen = jnp.asarray(x, jnp.result_type(x, self.total.dtype))
        return self.layer(_record(-1 if last else 0, seen, self.total, self.count), *args, **options)

    def __getattr__(self, name):
        if name == "layer":  # of a module that is being put together
            raise AttributeError(name)
        return getattr(self.layer, name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _record(axis: int, x, total, count):
    """x as it is. The cotangents of the cells are its sum, over all axes but one, and the number of terms."""
    return x


def _forward(axis, x, total, count):
    return x, (x, total)


def _backward(axis, kept, cotangent):
    x, total = kept
    # The sums do not depend on the cotangent, so that XLA drops the pass back through the model.
    rows = jnp.moveaxis(x, axis, -1).reshape(-1, total.size)
    # A number that does not depend on x would be counted once for all that x is mapped over.
    return cotangent, rows.sum(0).astype(total.dtype), jnp.sum(rows[:, 0] == rows[:, 0]).astype(float)


_record.defvjp(_forward, _backward)


def _layers(model) -> list[surgery.Site]:
    """The layers that can be centred: linear maps and convolutions with a bias, of a model or of its parameters."""
    found = surgery.sites(model)
    for site in found:
        if isinstance(site.layer, TracedBlock):
            raise ValueError(f"layer {site.name!r} has a trace: means are of the model without, `detach` it first")
    return [site for site in found if site.fault is None and _can_be_centred(site.layer)]


def _can_be_centred(layer) -> bool:
    # Of a transposed convolution each place sees other weights, and so another share of the mean.
    known = isinstance(layer, (eqx.nn.Linear, eqx.nn.Conv))
    return known and all(eqx.is_inexact_array(leaf) for leaf in (layer.weight, layer.bias))


def _inputs(layer) -> int:
    """Inputs of a layer, or its input channels."""
    return layer.weight.shape[1] * getattr(layer, "groups", 1)


def _changed(tree, means: dict, change: Callable):
    """The tree of parameters with weight and bias of each layer that has a mean changed by it."""
    new = {}
    for site in _layers(tree):
        weight, bias = change(site.layer.weight, site.layer.bias, means[site.name])
        new[site.path] = eqx.tree_at(lambda layer: (layer.weight, layer.bias), site.layer, (weight, bias))
    return surgery.replace(tree, new)


def _outer(weight, bias, mean):
    """G_b mᵀ in the shape of the weights, the same at every place of a kernel."""
    outer = jnp.reshape(bias, (-1, 1)) * _of_groups(weight, mean)
    return outer.reshape(outer.shape + (1,) * (weight.ndim - 2)).astype(weight.dtype)


def _shift(weight, bias, mean):
    """ΔW m, what the step of the weights alone does to each unit at the mean input, in the shape of the bias."""
    of_inputs = weight.reshape(*weight.shape[:2], -1).sum(-1)
    return jnp.sum(of_inputs * _of_groups(weight, mean), axis=1).reshape(bias.shape).astype(bias.dtype)


def _of_groups(weight, mean):
    """The means of the inputs that each unit sees, `[out, inputs of a group]`; one row where it sees all."""
    groups = mean.reshape(-1, weight.shape[1])
    return groups if len(groups) == 1 else jnp.repeat(groups, weight.shape[0] // len(groups), axis=0)


def _check_means(means: dict, wanted: dict) -> None:
    """Raises ValueError for means that are not those of the layers that the optimiser was made for."""
    shapes = {name: jnp.shape(mean) for name, mean in means.items()}
    expected = {name: mean.shape for name, mean in wanted.items()}
    if shapes != expected:
        raise ValueError(f"`means` must be of the layers {expected}, as cetsim.nn.mean_inputs gives them, got {shapes}")
