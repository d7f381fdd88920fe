"""What a step of the convolutional network costs, and options that are refused."""

import functools

import equinox as eqx
import jax
import optax
import pytest
from small_cnn import DT, cross_entropy, over_time

import cetsim
from cetsim import CascadingTrace, FixedDelay
from cetsim.nn import cnn


def test_flops_of_a_step_are_those_of_backprop():
    """Of a whole AdamW step of the full network on 128 images, by XLA's analysis; nothing is run."""
    make_full = eqx.nn.make_with_state(lambda: cnn(key=jax.random.key(0)))
    model, state = eqx.filter_eval_shape(make_full)
    params, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-3))
    batch = jax.ShapeDtypeStruct((128, 3, 32, 32), float), jax.ShapeDtypeStruct((128,), int)

    def step(trace, delay, params, memory, state, x, labels):
        def loss(params):
            model = eqx.combine(params, static)
            model = model if trace is None else cetsim.attach(model, trace, delay, form="authors", error_gate=1e-8)
            logits, after = over_time(model, state, x)
            return cross_entropy(logits, labels).mean(), after

        grads, after = jax.grad(loss, has_aux=True)(params)
        updates, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory, after

    def flops(trace=None, delay=None):
        program = jax.jit(functools.partial(step, trace, delay))
        lowered = program.lower(params, jax.eval_shape(optimizer.init, params), state, *batch)
        return lowered.compile({"xla_backend_optimization_level": 0}).cost_analysis()["flops"]

    assert flops(CascadingTrace(10, 4.0, DT), FixedDelay(4.0, DT)) <= 1.15 * flops()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": (3, 32, 28)}, "height and width must be multiples of 8 to be pooled, got 32 x 28"),
        ({"layout": "NHWC"}, "`layout` must be one of 'channels_first', 'channels_last', got 'NHWC'"),
        ({"statistics": "batch"}, "`statistics` must be one of 'segment', 'running', got 'batch'"),
        ({"channels": (8, 0)}, "`out_channels` must be at least 1, got 0"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cnn(**options, key=jax.random.key(0))
