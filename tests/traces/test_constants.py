"""Weights of a trace that is known while a program is traced are constants of it, in a user's own loop too."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import cetsim

X, LABELS, LATE = jnp.ones((12, 5)), jnp.arange(12) % 3, cetsim.FixedDelay(0.8)
MADE = {
    "last": lambda delay: cetsim.CascadingTrace(6, delay),
    "balanced": lambda delay: cetsim.CascadingTrace(6, delay, readout="balanced", peaked=True),
    "sum": lambda delay: cetsim.CascadingTrace(6, delay) - cetsim.ExponentialTrace(delay),
}


def program(gradient, *arguments) -> str:
    """A loop of three steps of gradient descent, written out as XLA gets it."""

    model = cetsim.nn.mlp((5, 6, 3), key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loop(params, *arguments):
        def body(params, _):
            model = eqx.combine(params, static)
            changes = jax.tree.map(lambda g: -0.1 * g, gradient(model, *arguments))
            return eqx.apply_updates(params, eqx.filter(changes, eqx.is_inexact_array)), None

        return jax.lax.scan(body, params, length=3)[0]

    return str(jax.make_jaxpr(loop)(params, *arguments))


@pytest.mark.parametrize("kind", MADE)
def test_nothing_of_a_known_trace_is_computed_in_a_step(kind):
    make = MADE[kind]

    def loss(model, delay):
        logits = jax.vmap(cetsim.attach(model, make(delay), LATE), axis_name="time")(X)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), LABELS])

    costly = ("gamma", "cholesky", "triangular_solve", "lu", "eigh")
    known = program(lambda model: eqx.filter_grad(lambda model: loss(model, 0.8))(model))
    assert [name for name in costly if f" {name}" in known or f"_{name}" in known] == []
    traced = program(eqx.filter_grad(loss), jnp.asarray(0.8))
    assert any(f" {name}" in traced or f"_{name}" in traced for name in costly)
