"""Where jax is told to promote no dtype by itself, layers, streams and the rule itself give the same numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit

import cetsim
from cetsim import CascadingTrace, Events, FixedDelay, RandomDelay, credit

SPARSE = lambda: Events(np.arange(12) * 3, 50)  # noqa: E731
OPTIONS = {  # made anew in each precision
    **{form: {"form": form} for form in credit.FORMS},
    "gate": {"error_gate": 1e-3},
    "reward": {"reward": np.ones(12)},
    "length": {"length": 7},
    "cascade": {"derivative": "cascade"},
    "events": {"events": SPARSE},
    "random": {"delay": lambda: RandomDelay(0.6, 0.4)},
    "gamma": {"delay": lambda: RandomDelay(0.6, 0.4, distribution="gamma")},
    "carry": {"boundary": "carry"},
    "carried events": {"boundary": "carry", "events": SPARSE},
}


def loss(model, x):
    return jnp.sum(jnp.sin(jax.vmap(model, axis_name="time")(x)))


def update(delay=lambda: FixedDelay(0.6), **options):
    options = {name: option() if callable(option) else option for name, option in options.items()}
    trace, delay = CascadingTrace(3, 0.6), delay()
    model, x = cetsim.nn.mlp((4, 5, 2), jnp.tanh, key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (12, 4))
    if "boundary" not in options:
        return jit(eqx.filter_grad(lambda m: loss(cetsim.attach(m, trace, delay, **options), x)))(model)
    attached = cetsim.attach(model, trace, delay, **options)
    return jit(cetsim.streaming_value_and_grad(loss))(attached, cetsim.streaming_init(attached, x[0]), x)[1:]


def same(function):
    with jax.enable_x64(False):
        expected = function()
        with jax.numpy_dtype_promotion("strict"):
            found = function()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", OPTIONS)
def test_layers(name):
    same(lambda: update(**OPTIONS[name]))


@pytest.mark.parametrize("evaluation", [credit.adjoint, credit.literal, credit.chunked])
@pytest.mark.parametrize(
    ("dtype", "times"), [(jnp.float32, jnp.int32), (jnp.bfloat16, jnp.float32), (jnp.int8, jnp.int8)]
)
def test_the_rule(evaluation, dtype, times):
    rows = lambda size, seed: (3 * jax.random.normal(jax.random.key(seed), (12, size))).astype(dtype)  # noqa: E731

    def go():
        arrivals = jnp.arange(12, dtype=times) + jnp.ones((), times)
        trace, signal = CascadingTrace(3, 0.6), rows(2, 2).astype(jnp.float32)
        return evaluation(trace, rows(3, 0), rows(2, 1), signal, arrivals, horizon=12)

    same(go)
