"""Streams of batches, tokens and conditions: each has a past of its own, and none is ever added up without a word."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_same, jit
from time_oracles import DELAY, DT, RNG, T, attach, by_hand, linear, met, time

import cetsim
from cetsim import CascadingTrace


def in_segments(model, state, x, cotangent, cuts, run):
    """Sum of the updates of a stream that is cut, and its last state; time is the first axis."""
    loss = lambda m, x, c: jnp.sum(c * run(m, x))  # noqa: E731
    step = jit(lambda state, x, c: cetsim.streaming_value_and_grad(loss)(model, state, x, c)[1:])
    total = None
    for start, end in zip([0, *cuts], [*cuts, T], strict=True):
        grads, state = step(state, x[start:end], cotangent[start:end])
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return cetsim.detach(total), state


RUNS = {
    "inside": lambda m, x: time(jax.vmap(m))(x),
    "outside": lambda m, x: jnp.moveaxis(jax.vmap(time(m))(jnp.moveaxis(x, 0, 1)), 0, 1),
}


@pytest.mark.parametrize("where", RUNS)
def test_a_batch_of_independent_streams(where):
    """Each of the batch has a past of its own, mapped inside or outside of time, and comes out as it would alone."""
    model = attach(linear(), boundary="carry", window=T)
    x, cotangent = (jnp.asarray(RNG.normal(size=(T, 2, size))) for size in (4, 3))
    state = cetsim.streaming_init(model, x[0, 0], batch=2)
    grads, state = in_segments(model, state, x, cotangent, [4, 8], RUNS[where])
    assert_same(grads.weight, by_hand(x, cotangent))
    (state,) = state.values()
    for i in range(2):
        alone = cetsim.streaming_init(model, x[0, 0])
        _, alone = in_segments(model, alone, x[:, i], cotangent[:, i], [4, 8], lambda m, x: time(m)(x))
        for whole, one in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(whole[i], one, atol=1e-13)


def test_streams_of_tokens_in_a_batch():
    """Two axes of streams: the model's own map over tokens, which `streaming_init` finds, and the batch's."""

    class PerToken(eqx.Module):
        layer: eqx.Module

        def __call__(self, tokens):
            return jax.vmap(self.layer)(tokens)

    model = attach(PerToken(linear()), boundary="carry", window=T)
    x, cotangent = (jnp.asarray(RNG.normal(size=(T, 2, 3, size))) for size in (4, 3))
    for where, run in RUNS.items():
        state = cetsim.streaming_init(model, x[0, 0], batch=2)
        assert state["layer"].x.shape == (2, 3, T, 4), where
        grads, _ = in_segments(model, state, x, cotangent, [5], run)
        assert_same(grads.layer.weight, by_hand(x, cotangent))


def test_streams_may_be_mapped_as_a_whole():
    """`streaming_value_and_grad` itself under a map, over conditions with one state to begin with."""
    x, cotangent = (jnp.asarray(RNG.normal(size=(T, size))) for size in (4, 3))
    loss = lambda m, x, c: jnp.sum(c * time(m)(x))  # noqa: E731

    def go(seconds, state, part):
        model = cetsim.attach(
            linear(), CascadingTrace(3, seconds, DT), DELAY, form="preactivation", boundary="carry", window=T
        )
        return cetsim.streaming_value_and_grad(loss)(model, state, x[part], cotangent[part])[1:]

    state = cetsim.streaming_init(attach(linear(), boundary="carry", window=T), x[0])
    seconds = jnp.array([0.6, 1.0])
    first, state = jit(eqx.filter_vmap(lambda s: go(s, state, slice(0, 5))))(seconds)
    second, _ = jit(eqx.filter_vmap(lambda s, state: go(s, state, slice(5, T))))(seconds, state)
    for i in range(2):
        expected = by_hand(x, cotangent, met(trace=CascadingTrace(3, float(seconds[i]), DT)))
        assert_same(first.affine.weight[i] + second.affine.weight[i], expected)


class Twice(eqx.Module):
    layer: eqx.Module
    unused: eqx.Module

    def __call__(self, x, times=1):
        for _ in range(times):
            x = self.layer(x)
        return x


@pytest.mark.parametrize(
    ("run", "layer"),
    [
        (lambda m, x: time(lambda x: m(x, 2))(x), "layer"),
        (lambda m, x: time(lambda x: m.unused(m(x, 2)))(x), "layer"),
        (lambda m, x: time(lambda x: m(x))(x), "unused"),
        (
            lambda m, x: time(lambda x: m.unused(m(x)))(x[:5]).sum() + time(lambda x: m.unused(m(x)))(x[5:]).sum(),
            "layer",
        ),
        (lambda m, x: jax.vmap(time(lambda x: m.unused(m(x))))(jnp.stack([x, x])), "layer"),
    ],
    ids=["twice", "twice a step", "not at all", "two segments in one", "batch outside"],
)
def test_a_layer_of_a_stream_runs_exactly_once(run, layer):
    model = attach(Twice(linear(4, 4), linear(4, 4)), boundary="carry", window=5)
    x = jnp.ones((T, 4))
    (one,) = cetsim.streaming_init(attach(linear(4, 4), boundary="carry", window=5), x[0]).values()
    state = {"layer": one, "unused": one}
    step = eqx.filter_jit(cetsim.streaming_value_and_grad(lambda m, x: jnp.sum(run(m, x))))
    with pytest.raises(Exception, match=f"layer '{layer}' of a stream must run exactly once in a segment"):
        jax.block_until_ready(jax.tree.leaves(step(model, state, x)))


def test_a_batch_inside_a_stream_of_one_state_is_refused():
    model, x = attach(linear(), boundary="carry", window=5), jnp.ones((T, 2, 4))
    state = cetsim.streaming_init(model, x[0, 0])
    with pytest.raises(ValueError, match=r"runs 2 times a step.*streaming_init\(model, example, batch=...\)"):
        cetsim.streaming_value_and_grad(lambda m, x: jnp.sum(time(jax.vmap(m))(x)))(model, state, x)


def test_streaming_init_refuses_what_cannot_have_a_stream():
    x = jnp.ones(4)
    model = attach(Twice(linear(4, 4), linear(4, 4)), boundary="carry", window=5)
    with pytest.raises(ValueError, match="layer 'unused' does not run when the model is called"):
        cetsim.streaming_init(model, x)
    with pytest.raises(ValueError, match="layer 'layer' runs more than once a step"):
        cetsim.streaming_init(attach(Both(linear(4, 4)), boundary="carry", window=5), x)


class Both(eqx.Module):
    layer: eqx.Module

    def __call__(self, x):
        return self.layer(self.layer(x))
