"""The programs compared: one AdamW step of a network under backprop, under traces and by the rule's definition."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import cetsim
from cetsim import credit
from cetsim.traces import AbstractTrace

SIZES = (784, 512, 512, 10)
STEPS = 128  # of time, in one segment
DELAY = 4.0
DT = 0.2
LONG_SEGMENT, SALIENT = 1280, 0.0125  # of the retrograde experiments: images, and the share of them learned from


class Network(NamedTuple):
    """What is trained. **Fields:** `make`: of a key. `image`: shape of its input. `form`: of the rule."""

    make: Callable
    image: tuple[int, ...]
    form: str


MLP = Network(lambda key: cetsim.nn.mlp(SIZES, key=key), SIZES[:1], "activation")
CNN = Network(lambda key: cetsim.nn.cnn(key=key), (3, 32, 32), "authors")


def optimizer(rate=1e-3) -> optax.GradientTransformation:
    """Clipping and AdamW, as in the experiments."""
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.01))


def loss(model, x, labels, buffers):
    """Mean cross-entropy of a segment."""
    if jax.tree.leaves(buffers):
        over_time = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="time")
        logits, _ = over_time(x, buffers)
    else:
        logits = jax.vmap(model, axis_name="time")(x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def inputs(network: Network = MLP):
    """Parameters, optimiser state, state of batch norm and one segment of images."""
    model, buffers = eqx.nn.make_with_state(network.make)(jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    x = jax.random.normal(jax.random.key(1), (STEPS, *network.image))
    labels = jax.random.randint(jax.random.key(2), (STEPS,), 0, SIZES[-1])
    return params, optimizer().init(params), buffers, x, labels


def step_with(gradient, network: Network = MLP):
    """A training step that gets its gradient from `gradient(model, x, labels, buffers)`."""
    model, _ = eqx.nn.make_with_state(network.make)(jax.random.key(0))
    template = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def step(params, state, buffers, x, labels):
        grads = gradient(eqx.combine(params, template), x, labels, buffers)
        updates, state = optimizer().update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def backprop(model, x, labels, buffers):
    """Plain gradient."""
    return eqx.filter_grad(loss)(model, x, labels, buffers)


def cascade(order: int, delay: float = DELAY, readout: str = "last") -> AbstractTrace:
    """The trace of an order, 1 being ET, and the readout of its stages."""
    if order == 1:
        return cetsim.ExponentialTrace(delay, DT)
    return cetsim.CascadingTrace(order, delay, DT, readout=readout)


def traced(order: int, delay: float = DELAY, error_gate: float = 0.0, form: str = "activation", readout: str = "last"):
    """The update of CET(order), peak and signals at `delay` seconds."""

    def gradient(model, x, labels, buffers):
        def attached(model):
            late = cetsim.FixedDelay(delay, DT)
            model = cetsim.attach(model, cascade(order, delay, readout), late, form=form, error_gate=error_gate)
            return loss(model, x, labels, buffers)

        return eqx.filter_grad(attached)(model)

    return gradient


def salient(gradient):
    """A step of the MLP that learns from the salient images of a long segment, by `gradient(model, x, labels, events)`.

    What it takes besides is the forward pass that finds them.
    """
    model = MLP.make(jax.random.key(0))
    template = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    gate = cetsim.gates.QuantileGate(SALIENT)

    def step(params, state, x, labels):
        model = eqx.combine(params, template)
        losses = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model, axis_name="time")(x), labels)
        (rows, events, _), _ = gate.select(losses, gate.init(), jax.random.key(0))
        grads = gradient(model, x[rows], labels[rows], events)
        updates, state = optimizer().update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def salient_inputs():
    """Parameters, optimiser state and one long segment of images."""
    params = eqx.filter(MLP.make(jax.random.key(0)), eqx.is_inexact_array)
    x = jax.random.normal(jax.random.key(1), (LONG_SEGMENT, *MLP.image))
    labels = jax.random.randint(jax.random.key(2), (LONG_SEGMENT,), 0, SIZES[-1])
    return params, optimizer().init(params), x, labels


def backprop_on_events(model, x, labels, events):
    """Plain gradient."""
    return eqx.filter_grad(loss)(model, x, labels, ())


def retrograde(order: int, per_layer: float):
    """The update of CET(order) where signals take `per_layer` seconds from layer to layer."""
    layers = len(SIZES) - 1
    traces = (cetsim.DelayLine(0.0, DT), *(cascade(order, layer * per_layer) for layer in range(1, layers)))
    late = cetsim.LayerwiseDelay.stacked(per_layer, layers, DT, keep_late=True)

    def gradient(model, x, labels, events):
        attached = lambda model: loss(cetsim.attach(model, traces, late, events=events), x, labels, ())  # noqa: E731
        return eqx.filter_grad(attached)(model)

    return gradient


def literal(order: int):
    """The same update by the definition: n stages per synapse, [n, out, in + 1], stepped by a scan over the segment."""

    def gradient(model, x, labels, _):
        layers = [layer for layer in model.layers if isinstance(layer, eqx.nn.Linear)]
        trace, arrivals = cascade(order), jnp.arange(STEPS) + DELAY / DT
        activities, updates = [x], []
        for layer in layers[:-1]:
            activities.append(jax.nn.relu(jax.vmap(layer)(activities[-1])))
        logits = jax.vmap(layers[-1])(activities[-1])
        mean = lambda z: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, labels))  # noqa: E731
        error = jax.grad(mean)(logits)
        derivative = jnp.ones_like(error)
        for layer, x_in in zip(reversed(layers), reversed(activities), strict=True):
            gain, signal = credit.synaptic_factors("activation", derivative, error)
            updates.insert(0, credit.literal(trace, x_in, gain, signal, arrivals, horizon=STEPS))
            error = (derivative * error) @ layer.weight
            derivative = jnp.where(x_in > 0, 1.0, 0.0)
        where = lambda m: [leaf for i in range(len(layers)) for leaf in (m.layers[2 * i].weight, m.layers[2 * i].bias)]  # noqa: E731
        return eqx.tree_at(where, eqx.filter(model, eqx.is_inexact_array), [leaf for u in updates for leaf in u])

    return gradient
