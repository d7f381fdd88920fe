"""Traces and delays layer by layer, by name and by order; what is told; what overrides leave to backprop."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import DELAY, DT, TRACE, affine_gradients, assert_same, default, gradients, mlp, mlp_oracle, segment

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay, LayerwiseDelay

KEYS = jax.random.split(jax.random.key(0), 12)


def linear(inputs=3, outputs=3, key=0):
    return eqx.nn.Linear(inputs, outputs, key=KEYS[key])


def delays(model):
    """Seconds by layer of an attached model."""
    return {row.layer: row.delay for row in cetsim.summary(model)}


def numbered():
    """Layers in a dict, whose keys JAX sorts as words: l1, l10, l11, l2."""
    return {f"l{i}": linear(key=i) for i in range(1, 12)}


def test_keys_with_numbers_go_by_these_and_the_user_is_told():
    stacked = LayerwiseDelay.stacked(2.0, 11)
    with pytest.warns(UserWarning, match=r"`delay` goes by the order of .*\n  l1: FixedDelay\(delay=20.0 s"):
        attached = cetsim.attach(numbered(), CascadingTrace(4, 2.0), stacked, form="preactivation")
    assert delays(attached) == {f"l{i}": 2.0 * (11 - i) for i in range(1, 12)}
    assert cetsim.layer_names(numbered()) == [f"l{i}" for i in range(1, 12)]


class HeadFirst(eqx.Module):
    """A model whose readout is declared before its body."""

    head: eqx.nn.Linear
    body: eqx.nn.Sequential

    def __init__(self):
        self.head, self.body = linear(3, 2), eqx.nn.Sequential([linear(key=1), eqx.nn.Lambda(jnp.tanh), linear(key=2)])

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


def test_a_head_that_is_declared_first_is_told_of_and_given_by_name():
    by_order = LayerwiseDelay.stacked(2.0, 3)
    with pytest.warns(UserWarning, match=r"may not be the order of calls. Give it by name(.|\n)*head: .*delay=4.0 s"):
        default_at(HeadFirst(), by_order)
    for given in ({"head": FixedDelay(0.0), "body.layers.2": FixedDelay(2.0), "body.layers.0": FixedDelay(4.0)},
                  {"head": FixedDelay(0.0), "body": FixedDelay(2.0), "body.layers.0": FixedDelay(4.0)}):  # fmt: skip
        for delay in (given, LayerwiseDelay(given), LayerwiseDelay(given).at(jnp.asarray(3))):
            assert delays(default_at(HeadFirst(), delay)) == {"head": 0.0, "body.layers.0": 4.0, "body.layers.2": 2.0}


def default_at(model, delay):
    return cetsim.attach(model, TRACE, delay, form="preactivation")


def test_traces_and_delays_by_name_are_those_layers_update():
    model, (x, target) = mlp(), segment()
    traces = {"layers.0": TRACE, "layers.2": DelayLine(0.2, DT), "layers": ExponentialTrace(0.5, DT)}
    late = {"layers.4": FixedDelay(0.2, DT), "layers.2": FixedDelay(0.0, DT), "layers.0": FixedDelay(0.6, DT)}
    grads, _ = gradients(model, x, target, lambda m: cetsim.attach(m, traces, late))
    layers = mlp_oracle(model)
    output, _ = oracles.forward(layers, np.asarray(x))
    factors, _ = oracles.backward(layers, np.asarray(x), output - np.asarray(target))
    rules = (traces["layers.0"], 3), (traces["layers.2"], 0), (traces["layers"], 1)
    wanted = [oracles.update(*rule, layer) for rule, layer in zip(rules, factors, strict=True)]
    assert_same(affine_gradients(grads), wanted)


def test_one_chain_of_calls_needs_no_names():
    for model in (mlp(), eqx.nn.MLP(4, 2, 5, 2, key=KEYS[0]), {"net": mlp()}):
        attached = cetsim.attach(model, (TRACE,) * 3, LayerwiseDelay.stacked(0.2, 3), form="preactivation")
        assert sorted(delays(attached).values()) == [0.0, 0.2, 0.4]


def test_traces_by_order_are_told_of_too():
    with pytest.warns(UserWarning, match="`trace` goes by the order of the model's tree"):
        cetsim.attach([linear(), linear()], (TRACE, TRACE), DELAY, form="preactivation")


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        (
            "trace",
            {"layers.1": TRACE},
            "`trace` names the layer 'layers.1'; the model has layers.0, layers.2",
        ),
        ("delay", {"layers.0": DELAY}, "`delay` names no delay for layer 'layers.2'; it has layers.0"),
    ],
)
def test_names_that_do_not_fit_are_refused(option, given, message):
    with pytest.raises(ValueError, match=message):
        cetsim.attach(mlp(), **({"trace": TRACE, "delay": DELAY} | {option: given}))


def test_what_overrides_leave_or_give_needs_no_name():
    overrides = {"layers.2": None, "layers.4": {"delay": FixedDelay(0.2, DT)}}
    attached = cetsim.attach(mlp(), TRACE, {"layers.0": DELAY}, overrides=overrides)
    assert delays(attached) == {"layers.0": 0.6, "layers.4": 0.2}


def test_delays_by_name_are_checked():
    with pytest.raises(ValueError, match=r"must have one `?dt`?, got"):
        LayerwiseDelay({"a": FixedDelay(1.0, 0.2), "b": FixedDelay(1.0, 0.1)})
    with pytest.raises(ValueError, match="must be cetsim's delays"):
        LayerwiseDelay({})


# Parameters without a trace.


class Mixed(eqx.Module):
    """A low-rank matrix, a recurrent cell and norms beside layers in lists and dicts."""

    low: jax.Array
    cell: eqx.nn.GRUCell
    layers: list
    named: dict

    def __init__(self):
        self.low, self.cell = jnp.ones((3, 1)), eqx.nn.GRUCell(3, 3, key=KEYS[0])
        self.layers = [linear(), eqx.nn.LayerNorm(3)]
        self.named = {"last": eqx.nn.Sequential([linear(), eqx.nn.GroupNorm(1, 3)])}


def test_what_has_no_trace_is_named_until_overrides_say_so():
    named = (
        r"no trace: low \(array\), cell \(GRUCell\), layers.1 \(LayerNorm\), named.last.layers.1 \(GroupNorm\)\. What"
    )
    with pytest.warns(UserWarning, match=named) as told:
        default(Mixed(), form="preactivation")
    (said,) = (str(warning.message) for warning in told)
    silent = eval(said.partition("overrides=")[2])  # as a user would copy it
    for overrides in (silent, silent | {"cell": None, "named": None}, {"": None}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attached = default(Mixed(), form="preactivation", overrides=overrides)
    assert attached.layers[0] is not None
    with pytest.warns(UserWarning, match=r"no trace: cell \(GRUCell\), layers.1"):
        default(Mixed(), form="preactivation", overrides={"low": None, "named": None})


def test_frozen_and_statistical_arrays_are_not_told_of():
    """Batch norm's running statistics are no parameters, nor are whole numbers."""
    norm = eqx.nn.BatchNorm(3, "time", channelwise_affine=False, mode="batch")
    assert default([linear(), norm, jnp.arange(3)], form="preactivation") is not None


def test_overrides_of_a_module_hold_for_its_layers():
    model = default(HeadFirst(), form="preactivation", overrides={"body": {"error_gate": 0.5}, "body.layers.2": None})
    assert [float(row.synapses.error_gate) for row in (model.head, model.body.layers[0])] == [0.0, 0.5]
    assert isinstance(model.body.layers[2], eqx.nn.Linear)
    model = default(HeadFirst(), form="preactivation", overrides={"body": None})
    assert jax.tree.structure(model.body) == jax.tree.structure(HeadFirst().body)
    with pytest.raises(ValueError, match="`overrides` names the layer 'bod'; the model has head"):
        default(HeadFirst(), overrides={"bod": None})


def test_one_object_in_two_places_is_two_layers():
    """As in Equinox, where a tree holds copies: tie weights by `eqx.nn.Shared`."""
    one = linear(4, 4)
    model = eqx.nn.Sequential([one, eqx.nn.Lambda(jnp.tanh), one])
    attached = default(model)
    assert cetsim.layer_names(model) == ["layers.0", "layers.2"]
    assert [attached.layers[i].activation is None for i in (0, 2)] == [False, True]
    assert eqx.tree_equal(cetsim.detach(attached), model)
