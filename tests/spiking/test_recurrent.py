"""Recurrent layers: forward against Equinox, and what traces make of their gradient against every synapse's own
cascade of its eligibility, in loops.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spiking_oracles as oracles

import cetsim
from cetsim import CascadingTrace, DelayLine, FixedDelay
from cetsim.spiking import RecurrentLayer

DT, STEPS, IN, OUT = 0.01, 20, 4, 3
TRACE, LATE = CascadingTrace(3, 0.05, DT), FixedDelay(0.06, DT)
AT_ONCE = dict(trace=DelayLine(0.0, dt=DT), delay=FixedDelay(0.0, DT))
CELLS = {"rnn": ("rnn", 0.0), "leaky": ("rnn", 0.7), "gru": ("gru", 0.0)}


def make(name, seed=0):
    cell, retained = CELLS[name]
    layer = RecurrentLayer(IN, OUT, cell, retained=retained, key=jax.random.key(seed))
    return jax.tree.map(lambda leaf: 2.0 * leaf, layer)


def segment(seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(STEPS, IN))), jnp.asarray(rng.normal(size=(STEPS, OUT)))


def gradient(model, x, target, **rule):
    """Gradients of model and input under Σ target · output; `target` is then L."""

    @eqx.filter_jit
    @eqx.filter_grad
    def grad(model_and_x):
        model, x = model_and_x
        model = cetsim.attach(model, **rule) if rule else model
        return jnp.sum(target * jax.vmap(model, axis_name="time")(x))

    grads, input_grad = grad((model, x))
    return cetsim.detach(grads) if rule else grads, input_grad


def simulate(layer, x):
    """States, and the eligibilities of input weights with the bias last and of recurrent ones, `[time, out, ...]`."""
    weight, bias, back = (np.asarray(a) for a in (layer.inputs.weight, layer.inputs.bias, layer.recurrent.weight))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    gates, h, rows = len(weight) // OUT, np.zeros(OUT), []
    inside, among = np.zeros((gates, OUT, IN + 1)), np.zeros((gates, OUT, OUT))
    for now in x:
        zi, zr = (weight @ now + bias).reshape(gates, OUT), (back @ h).reshape(gates, OUT)
        if layer.cell == "rnn":
            n = np.tanh(zi[0] + zr[0])
            a, own = np.full(OUT, layer.retained), ((1 - layer.retained) * (1 - n**2))[None]
            other, after = own, layer.retained * h + (1 - layer.retained) * n
        else:
            r, a = sigmoid(zi[0] + zr[0]), sigmoid(zi[1] + zr[1])
            n = np.tanh(zi[2] + r * zr[2])
            slope = (1 - a) * (1 - n**2)
            gate = [slope * zr[2] * r * (1 - r), (h - n) * a * (1 - a)]
            own, other, after = np.array([*gate, slope]), np.array([*gate, slope * r]), a * h + (1 - a) * n
        inside = a[:, None] * inside + own[..., None] * np.append(now, 1.0)
        among = a[:, None] * among + other[..., None] * h
        h = after
        rows.append((h, inside, among))
    return map(np.stack, zip(*rows, strict=True))


def test_forward_is_equinoxs_gru():
    layer, (x, _) = make("gru"), segment()
    cell = eqx.nn.GRUCell(IN, OUT, key=jax.random.key(0))
    parts = lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)  # noqa: E731
    new = layer.inputs.weight, layer.recurrent.weight, layer.inputs.bias, jnp.zeros(OUT)
    cell = eqx.tree_at(parts, cell, new)
    expected = jax.lax.scan(lambda h, now: (cell(now, h),) * 2, jnp.zeros(OUT), x)[1]
    np.testing.assert_allclose(jax.vmap(layer, axis_name="time")(x), expected, atol=1e-14)


@pytest.mark.parametrize("name", CELLS)
def test_update_is_every_synapses_own_cascade_of_its_eligibility(name):
    layer, (x, target) = make(name), segment()
    grads, _ = gradient(layer, x, target, trace=TRACE, delay=LATE)
    states, inside, among = simulate(layer, np.asarray(x))
    for attached in (layer, cetsim.attach(layer, TRACE, LATE)):
        np.testing.assert_allclose(jax.vmap(attached, axis_name="time")(x), states, atol=1e-14)
    cascade = lambda one: np.concatenate(  # noqa: E731
        [oracles.cascade(TRACE, one[:, gate], np.asarray(target), 6) for gate in range(one.shape[1])]
    )
    expected = cascade(inside)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(grads.inputs.weight, expected[:, :-1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(grads.inputs.bias, expected[:, -1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(grads.recurrent.weight, cascade(among), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_without_recurrent_weights_the_rule_at_once_is_backprop_through_time(name):
    layer, (x, target) = make(name), segment()
    layer = eqx.tree_at(lambda layer: layer.recurrent.weight, layer, jnp.zeros_like(layer.recurrent.weight))
    (traced, down), (plain, plain_down) = gradient(layer, x, target, **AT_ONCE), gradient(layer, x, target)
    for one, other in ((traced.inputs.weight, plain.inputs.weight), (down, plain_down)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_with_recurrent_weights_it_is_not():
    layer, (x, target) = make("gru"), segment()
    (traced, _), (plain, _) = gradient(layer, x, target, **AT_ONCE), gradient(layer, x, target)
    assert np.abs(traced.inputs.weight - plain.inputs.weight).max() > 1e-2


def test_padding_changes_nothing():
    layer, (x, target) = make("gru"), segment()
    whole, down = gradient(layer, x[:12], target[:12], trace=TRACE, delay=LATE)
    padded, padded_down = gradient(layer, x, target, trace=TRACE, delay=LATE, length=jnp.asarray(12))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    np.testing.assert_allclose(down, padded_down[:12], rtol=0, atol=1e-12)


def test_wrong_use_is_refused():
    key = jax.random.key(0)
    for options, message in (
        (dict(cell="lstm"), "cell"),
        (dict(cell="rnn", retained=1.0), "retained"),
        (dict(cell="gru", retained=0.5), "must be 0 for a GRU"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            RecurrentLayer(IN, OUT, **options, key=key)
        assert "\n" not in str(error.value)
    layer, (x, _) = make("gru"), segment()
    with pytest.raises(ValueError, match="which axis is time"):
        layer(x[0])
    with pytest.raises(ValueError, match=r"must be \[4\]"):
        jax.vmap(layer, axis_name="time")(x[:, :2])
    with pytest.raises(ValueError, match="needs 'reset'"):
        jax.vmap(cetsim.attach(layer, TRACE, LATE, boundary="carry"), axis_name="time")(x)
    events = cetsim.Events(jnp.arange(STEPS), STEPS)
    with pytest.raises(ValueError, match="must be None"):
        jax.vmap(cetsim.attach(layer, TRACE, LATE, events=events), axis_name="time")(x)
