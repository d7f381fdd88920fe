"""Small networks, their twins in the loops of `rule_oracles`, and how their gradients are compared."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles

import cetsim
from cetsim import CascadingTrace, FixedDelay, credit

# XLA need not make these programs fast: compiling them is what takes long.
jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})

DT, STEPS = 0.2, 11
IMAGE = (2, 4, 4)
TRACE, DELAY = CascadingTrace(3, 0.5, DT), FixedDelay(0.6, DT)
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}
FORMS = pytest.mark.parametrize("form", credit.FORMS)


def mlp(activation="tanh", seed=0):
    return cetsim.nn.mlp((4, 5, 3, 2), ACTIVATIONS[activation], key=jax.random.key(seed))


def mlp_oracle(model, activation="tanh", feedback=(None, None, None)):
    names = (activation, activation, "identity")
    return [oracles.dense(model.layers[2 * i], name, feedback[i]) for i, name in enumerate(names)]


def convnet(activation="tanh", seed=0):
    keys, act = jax.random.split(jax.random.key(seed), 3), eqx.nn.Lambda(ACTIVATIONS[activation])
    convs = [eqx.nn.Conv2d(2, 3, 3, padding=1, key=keys[0]), eqx.nn.Conv2d(3, 2, 2, 2, padding=1, key=keys[1])]
    pool, flatten = eqx.nn.AvgPool2d(2, 2), eqx.nn.Lambda(jnp.ravel)
    return eqx.nn.Sequential([convs[0], act, pool, convs[1], act, flatten, eqx.nn.Linear(8, 2, key=keys[2])])


def convnet_oracle(model, activation="tanh"):
    return [
        oracles.convolution(model.layers[0], IMAGE, activation, oracles.average_pool(3, 4, 4)),
        oracles.convolution(model.layers[3], (3, 2, 2), activation),
        oracles.dense(model.layers[6]),
    ]


# A gate that closes on the first layer's error in about half of the steps.
GATES = {"mlp": 0.3, "convnet": 0.006}
NETWORKS = {"mlp": (mlp, mlp_oracle, (4,)), "convnet": (convnet, convnet_oracle, IMAGE)}


def segment(shape=(4,), steps=STEPS, seed=1):
    """Inputs and targets."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(steps, *shape))), jnp.asarray(rng.normal(size=(steps, 2)))


def half_square(model, x, target):
    return 0.5 * jnp.sum((jax.vmap(model, axis_name="time")(x) - target) ** 2)


def once(model, x):
    """The model's output for one input, at the first step of a segment."""
    return jax.vmap(model, axis_name="time")(jnp.broadcast_to(x, (STEPS, *x.shape)))[0]


def gradients(model, x, target, attach, loss=half_square):
    """Gradient of the model and of the input, traces attached inside the loss."""

    @jit
    @eqx.filter_grad
    def both(model_and_x):
        model, x = model_and_x
        return loss(attach(model), x, target)

    return both((model, x))


def default(model, **options):
    return cetsim.attach(model, TRACE, DELAY, **options)


def affine_gradients(model):
    """Weight, as [out, patch], and bias of every layer's gradient."""
    layers = [layer for layer in model.layers if hasattr(layer, "weight")]
    return [(layer.weight.reshape(len(layer.weight), -1), layer.bias.ravel()) for layer in layers]


def simulate(layers, x, target, trace=TRACE, delay_steps=3, **rule):
    """The updates of every layer and the input's gradient, by loops."""
    x = np.asarray(x).reshape(len(x), -1)
    output, _ = oracles.forward(layers, x)
    factors, input_error = oracles.backward(layers, x, output - np.asarray(target))
    return [oracles.update(trace, delay_steps, layer, **rule) for layer in factors], input_error


def assert_same(arrays, others, tolerance=1e-10):
    for array, other in zip(jax.tree.leaves(arrays), jax.tree.leaves(others), strict=True):
        largest = np.abs(other).max()
        assert largest > 0
        np.testing.assert_allclose(array, other, rtol=0, atol=tolerance * largest)


def assert_different(arrays, others, by=1e-3):
    pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(others), strict=True)
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs) > by
