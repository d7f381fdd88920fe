"""The programs compared: one AdamW step of an MLP under backprop, under traces and by the rule's definition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import cetsim
from cetsim import credit

SIZES = (784, 512, 512, 10)
STEPS = 128  # of time, in one stretch
DELAY = 4.0
DT = 0.2


def optimizer(rate=1e-3) -> optax.GradientTransformation:
    """Clipping and AdamW, as in the experiments."""
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.01))


def loss(model, x, labels):
    """Mean cross-entropy of a stretch."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), labels))


def inputs():
    """Parameters, optimiser state and one stretch of images."""
    model = cetsim.nn.mlp(SIZES, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    x = jax.random.normal(jax.random.key(1), (STEPS, SIZES[0]))
    labels = jax.random.randint(jax.random.key(2), (STEPS,), 0, SIZES[-1])
    return params, optimizer().init(params), x, labels


def step_with(gradient):
    """A training step that gets its gradient from `gradient(model, x, labels)`."""
    template = eqx.filter(cetsim.nn.mlp(SIZES, key=jax.random.key(0)), eqx.is_inexact_array, inverse=True)

    def step(params, state, x, labels):
        grads = gradient(eqx.combine(params, template), x, labels)
        updates, state = optimizer().update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def backprop(model, x, labels):
    """Plain gradient."""
    return eqx.filter_grad(loss)(model, x, labels)


def traced(order: int, delay: float = DELAY, error_gate: float = 0.0):
    """The update of CET(order), peak and signals at `delay` seconds."""

    def gradient(model, x, labels):
        def attached(model):
            trace = cetsim.CascadingTrace(order, delay, DT)
            model = cetsim.attach(model, trace, cetsim.FixedDelay(delay, DT), error_gate=error_gate)
            return loss(model, x, labels)

        return eqx.filter_grad(attached)(model)

    return gradient


def literal(order: int):
    """The same update by the definition: n stages per synapse, [n, out, in + 1], stepped by a scan over the stretch."""

    def gradient(model, x, labels):
        layers = [layer for layer in model.layers if isinstance(layer, eqx.nn.Linear)]
        trace, arrivals = cetsim.CascadingTrace(order, DELAY, DT), jnp.arange(STEPS) + DELAY / DT
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
