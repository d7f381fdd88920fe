"""Sequences of unequal length: padding changes nothing, whatever stands in it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_different, assert_same, jit

import cetsim
from cetsim import CascadingTrace, DelayLine, Events, FixedDelay

T, LENGTHS, DT = 12, (5, 9, 12), 0.2
TRACE, LATE = CascadingTrace(3, 0.6, DT), FixedDelay(0.6, DT)
RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(3, T, 4)), RNG.normal(size=(3, T, 2))
MODEL = cetsim.nn.mlp((4, 5, 2), jnp.tanh, key=jax.random.key(0))


def loss(model, x, cotangent):
    return jnp.sum(cotangent * jax.vmap(model, axis_name="time")(x))


@jit
def alone(model, x, cotangent, delay=LATE):
    return eqx.filter_grad(lambda m: loss(cetsim.attach(m, TRACE, delay), x, cotangent))(model)


@pytest.mark.parametrize("masked", [True, False], ids=["masked loss", "loss of padding too"])
@pytest.mark.parametrize("keep_late", [False, True])
def test_a_batch_of_padded_sequences_is_the_sum_of_each_alone(masked, keep_late):
    late = FixedDelay(0.6, DT, keep_late=keep_late)
    padding = np.arange(T) >= np.array(LENGTHS)[:, None]
    cotangent = jnp.asarray(np.where(padding[..., None] & masked, 0.0, C))

    def one(model, x, cotangent, length):
        return loss(cetsim.attach(model, TRACE, late, length=length), x, cotangent)

    together = lambda m: jnp.sum(jax.vmap(one, (None, 0, 0, 0))(m, X, cotangent, jnp.array(LENGTHS)))  # noqa: E731
    grads = jit(eqx.filter_grad(together))(MODEL)
    each = [alone(MODEL, x[:n], c[:n], late) for x, c, n in zip(X, C, LENGTHS, strict=True)]
    assert_same(jax.tree.leaves(grads), jax.tree.leaves(jax.tree.map(lambda *g: sum(g), *each)), 1e-12)


def test_without_a_length_padding_changes_the_update():
    """What the case in the issue was about: signals that would have come too late arrive in the padding."""
    pad = lambda rows: np.concatenate([rows, np.zeros((7, rows.shape[1]))])  # noqa: E731
    assert_different(alone(MODEL, pad(X[0, :5]), pad(C[0, :5])), alone(MODEL, X[0, :5], C[0, :5]))


def test_the_case_of_a_delay_line():
    x, c, line = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 3)), DelayLine(2.0)
    layer = eqx.nn.Linear(5, 3, key=jax.random.key(0))
    pad = lambda rows: np.concatenate([rows, np.zeros((24, rows.shape[1]))])  # noqa: E731
    update = lambda x, c, **how: jax.grad(  # noqa: E731
        lambda m: loss(cetsim.attach(m, line, FixedDelay(2.0), form="preactivation", **how), x, c)
    )(layer)
    expected = c[:30].T @ x[:30]
    assert_same(update(x, c).weight, expected)
    assert_same(update(pad(x), pad(c), length=40).weight, expected)


def test_a_length_in_a_segment_of_events():
    """The segment ends before its last events."""
    times, rows = np.array([0, 2, 3, 7, 10]), X[0, :5]
    grads = [
        eqx.filter_grad(
            lambda m, e=events, n=n, length=length: loss(
                cetsim.attach(m, TRACE, LATE, events=e, length=length), rows[:n], C[0, :n]
            )
        )(MODEL)
        for events, n, length in ((Events(times, 12), 5, 8), (Events(times[:4], 8), 4, None))
    ]
    assert_same(jax.tree.leaves(grads[0]), jax.tree.leaves(grads[1]), 1e-12)


def test_a_stream_goes_on_from_the_end_of_what_is_real():
    """Segments of one size, filled to different lengths, are the stream that has no padding."""
    model = cetsim.attach(MODEL, TRACE, LATE, boundary="carry", window=T)
    step = jit(
        lambda m, state, x, c, n: cetsim.streaming_value_and_grad(loss)(
            cetsim.attach(m, TRACE, LATE, boundary="carry", window=T, length=n), state, x, c
        )[1:]
    )
    state = cetsim.streaming_init(model, X[0, 0])
    total, start = None, 0
    for length in (3, 5, 4):
        piece = lambda rows, s=start, n=length: np.pad(rows[s : s + n], ((0, 6 - n), (0, 0)), constant_values=7.0)  # noqa: E731
        grads, state = step(MODEL, state, piece(X[0]), piece(C[0]), length)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        start += length
    whole = jit(cetsim.streaming_value_and_grad(loss))(model, cetsim.streaming_init(model, X[0, 0]), X[0], C[0])
    assert_same(jax.tree.leaves(cetsim.detach(total)), jax.tree.leaves(cetsim.detach(whole[1])), 1e-12)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(whole[2]), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-13)


@pytest.mark.parametrize("length", [2.5, jnp.ones(3, int), "5"])
def test_a_length_is_one_whole_number(length):
    with pytest.raises(ValueError, match="`length` must be one whole number of steps"):
        cetsim.attach(MODEL, TRACE, LATE, length=length)


def test_a_stream_of_events_has_no_length():
    with pytest.raises(ValueError, match="`length` and `events` do not go together with boundary='carry'"):
        cetsim.attach(MODEL, TRACE, LATE, length=3, events=Events(np.array([1]), 4), boundary="carry")
