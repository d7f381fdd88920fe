"""A small convolutional network, its update by the library, and the same network written out with its rule in loops."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rule_oracles as oracles
from networks import jit

import cetsim
from cetsim import CascadingTrace, FixedDelay
from cetsim.nn import cnn

DT, STEPS = 0.2, 8
IMAGE, CHANNELS, HIDDEN, CLASSES = (2, 4, 4), (3,), 4, 2
PIXELS, POOLED = 16, 4  # of a channel
TRACE, LATE = CascadingTrace(3, 0.5, DT), 2  # set apart: the peak at 0.5 s, the signal 2 steps late


def make(statistics="segment", layout="channels_first", key=0):
    """A small network whose first linear layer has its weights for features ordered as channels first."""
    options = dict(statistics=statistics, layout=layout, key=jax.random.key(key))
    model, state = jit(eqx.nn.make_with_state(cnn))(IMAGE, CHANNELS, HIDDEN, CLASSES, **options)
    if layout == "channels_last":
        where = lambda model: model.layers[-3].weight  # noqa: E731
        model = eqx.tree_at(where, model, features_last(where(model)))
    return model, state


small = functools.cache(make)


def features_last(weight):
    return jnp.moveaxis(weight.reshape(HIDDEN, CHANNELS[0], POOLED), 1, 2).reshape(HIDDEN, -1)


def features_first(weight):
    return jnp.moveaxis(weight.reshape(HIDDEN, POOLED, CHANNELS[0]), 1, 2).reshape(HIDDEN, -1)


def affine(model, layout="channels_first"):
    """Weight `[out, patch]` and bias of every layer, features ordered as channels first."""
    conv, first, last = (layer for layer in model.layers if hasattr(layer, "weight"))
    weight = first.weight if layout == "channels_first" else features_first(first.weight)
    return [
        (conv.weight.reshape(len(conv.weight), -1), conv.bias.ravel()),
        (weight, first.bias),
        (last.weight, last.bias),
    ]


def of_layout(name, layout):
    """Name of a layer, which the move of axes in front shifts by one."""
    return name if layout == "channels_first" else f"layers.{int(name.removeprefix('layers.')) + 1}"


@functools.cache
def segment():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(STEPS, *IMAGE))), jnp.asarray(rng.integers(0, CLASSES, STEPS))


def over_time(model, state, x):
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="time")(x, state)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@jit
def learn(model, state, batch, trace=None, delay=None, error_gate=0.0, **options):
    """Logits, state after the segment and gradient, by backprop or through traces attached inside the loss."""
    x, labels = batch

    @eqx.filter_grad(has_aux=True)
    def gradient(model):
        if trace is not None:
            model = cetsim.attach(model, trace, delay, error_gate=error_gate, **options)
        logits, after = over_time(model, state, x)
        return cross_entropy(logits, labels).mean(), (logits, after)

    grads, (logits, after) = gradient(model)
    return logits, after, grads


def late(trace=TRACE, steps=LATE):
    """Trace and delay; traces are tabulated, so that one program serves all kinds."""
    return trace.tabulate(STEPS), FixedDelay(steps * DT, DT)


def assert_same(tree, other, tolerance=1e-10):
    """Equal but for `tolerance` times the largest entry of each array; one that is 0 everywhere is so exactly."""
    sizes = [np.abs(wanted).max() for wanted in jax.tree.leaves(other)]
    assert max(sizes) > 0
    for array, wanted, size in zip(jax.tree.leaves(tree), jax.tree.leaves(other), sizes, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance * size)


def arrays(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


# The network written out


@functools.partial(jax.jit, static_argnames="statistics")
def written_out(weights, patches, labels, statistics):
    """What each layer sees, f', and ∂ℓ/∂a, `[time, positions, ...]`; positions are pixels, channels last."""
    (w1, b1), (w2, b2), (w3, b3) = weights

    def loss(nudges):
        z1 = patches @ w1.T + b1
        a1 = jax.nn.relu(z1) + nudges[0]
        pooled = a1.reshape(STEPS, 2, 2, 2, 2, -1).mean((2, 4)).reshape(STEPS, POOLED, -1)
        flat = jnp.moveaxis(normalised(pooled, statistics), 2, 1).reshape(STEPS, -1)
        z2 = flat @ w2.T + b2
        a2 = jax.nn.relu(z2) + nudges[1]
        logits = a2 @ w3.T + b3 + nudges[2]
        steps = lambda rows: rows[:, None]  # noqa: E731
        seen = [(patches, z1 > 0), (steps(flat), steps(z2 > 0)), (steps(a2), steps(jnp.ones_like(logits)))]
        return cross_entropy(logits, labels).mean(), (logits, seen)

    nudges = [jnp.zeros((STEPS, PIXELS, CHANNELS[0])), jnp.zeros((STEPS, HIDDEN)), jnp.zeros((STEPS, CLASSES))]
    errors, (logits, seen) = jax.grad(loss, has_aux=True)(nudges)
    return logits, seen, [error.reshape(STEPS, -1, error.shape[-1]) for error in errors]


def normalised(x, statistics):
    """Batch norm of `[time, positions, channels]` that begins at mean 0 and variance 1, image by image if running."""
    if statistics == "segment":
        return (x - x.mean((0, 1))) / jnp.sqrt(x.var((0, 1)) + 1e-5)
    out, mean, square, kept = [], 0.0, 1.0, 0.9 ** (1 / 128)
    for image in x:
        out.append((image - mean) / jnp.sqrt(square - mean**2 + 1e-5))
        past = jax.lax.stop_gradient(image)
        mean, square = kept * mean + (1 - kept) * past.mean(0), kept * square + (1 - kept) * (past**2).mean(0)
    return jnp.stack(out)


@functools.cache
def literal_factors(statistics):
    """Logits, and the factors of every layer of `small`."""
    x, labels = segment()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = list(itertools.product(range(4), range(4)))
    patches = np.stack([padded[:, :, i : i + 3, j : j + 3].reshape(STEPS, -1) for i, j in places], axis=1)
    logits, seen, errors = written_out(affine(small(statistics)[0]), patches, labels, statistics)
    layers = zip(seen, errors, strict=True)
    return logits, [oracles.Factors(np.asarray(x), np.asarray(d, float), np.asarray(error)) for (x, d), error in layers]


def literal_updates(statistics, form, error_gate=0.0, traces=(TRACE,) * 3):
    """The update of every layer, by loops over signals, writes and positions."""
    forms = ("activation", "authors_linear", "authors_linear") if form == "authors" else (form,) * 3
    layers = zip(traces, literal_factors(statistics)[1], forms, strict=True)
    return [oracles.update(trace, LATE, layer, form=form, error_gate=error_gate) for trace, layer, form in layers]


@functools.cache
def gate(statistics, layer=0):
    """A gate that closes a layer, the convolution by default, to half of the steps."""
    size = np.sum(literal_factors(statistics)[1][layer].error ** 2, axis=(1, 2))
    lower, upper = np.sort(size)[STEPS // 2 - 1 : STEPS // 2 + 1]
    assert upper > 1.01 * lower
    return float((lower + upper) / 2)
