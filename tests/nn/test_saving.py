"""Attached models saved with their traces, and loaded into models with the same ones only; how traces are shown."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import DELAY, DT, TRACE, default, mlp

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FIRTrace, FixedDelay, RandomDelay

BACK = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
OPTIONS = {"overrides": {"layers.2": {"feedback": BACK}}, "form": "authors", "error_gate": 1e-8}


def saved(model) -> io.BytesIO:
    file = io.BytesIO()
    cetsim.save(file, model)
    file.seek(0)
    return file


@pytest.mark.parametrize("boundary", ["reset", "carry"])
def test_a_model_comes_back_with_its_traces(tmp_path, boundary):
    model, other = (default(mlp(seed=seed), boundary=boundary, **OPTIONS) for seed in (0, 1))
    cetsim.save(tmp_path / "model.eqx", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model.eqx"]
    loaded = cetsim.load(str(tmp_path / "model.eqx"), other)
    assert not eqx.tree_equal(cetsim.detach(other), cetsim.detach(model))
    assert eqx.tree_equal(cetsim.detach(loaded), cetsim.detach(model))
    assert loaded.layers[0].synapses is other.layers[0].synapses
    assert b"pickle" not in (tmp_path / "model.eqx").read_bytes()


CHANGES = {
    "trace": (dict(trace=CascadingTrace(3, 0.5000001, DT)), "`trace.delay` is 0.5 in the file and 0.5000001 in"),
    "kind": (dict(trace=ExponentialTrace(0.5, DT)), "`trace.kind` is 'CascadingTrace' in the file and 'Exponential"),
    "order": (
        dict(trace=CascadingTrace(4, 0.5, DT)),
        "`trace.order` is 3 in the file and 4 in `like`: attach the trace",
    ),
    "form": (dict(form="preactivation"), "`form` is 'authors_linear' in the file and 'preactivation' in"),
    "gate": (dict(error_gate=0.0), "`error_gate` is 1e-08 in the file and 0.0 in"),
    "feedback": (dict(overrides={"layers.2": {"feedback": 2 * BACK}}), "layer 'layers.2': `feedback` is"),
    "none": (
        dict(overrides={"layers.2": None}),
        r"on the layers \['layers.0', 'layers.2', 'layers.4'\], `like`",
    ),
    "window": (dict(boundary="carry", window=7), "`window` is None in the file and 7 in"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_loading_into_another_rule_is_refused(change):
    options, message = CHANGES[change]
    options = {"trace": TRACE, "delay": DELAY} | OPTIONS | options
    with pytest.raises(ValueError, match=message):
        cetsim.load(saved(default(mlp(), **OPTIONS)), cetsim.attach(mlp(), **options))


def test_another_delay_or_key_of_random_delays_is_refused():
    attach = lambda delay: cetsim.attach(mlp(), TRACE, delay)  # noqa: E731
    draws = lambda seed: RandomDelay(2.0, 1.0, DT, key=jax.random.key(seed))  # noqa: E731
    cetsim.load(saved(attach(draws(0).at(3))), attach(draws(0)))  # the place in the run is not part of the rule
    for other in (draws(1), FixedDelay(2.0, DT)):
        with pytest.raises(ValueError, match=r"layer 'layers.0': `delay.(kind|key)`"):
            cetsim.load(saved(attach(draws(0))), attach(other))


def test_long_kernels_are_told_apart():
    attach = lambda end: cetsim.attach(mlp(), FIRTrace(jnp.linspace(0, end, 100), DT), DELAY)  # noqa: E731
    cetsim.load(saved(attach(1.0)), attach(1.0))
    with pytest.raises(ValueError, match=r"`trace.taps` is 'float64\[100\] sha256"):
        cetsim.load(saved(attach(1.0)), attach(1.001))


def test_plain_and_attached_models_are_not_mixed():
    assert eqx.tree_equal(cetsim.load(saved(mlp()), mlp(seed=1)), mlp())
    for file, like in ((saved(mlp()), default(mlp())), (saved(default(mlp())), mlp())):
        with pytest.raises(ValueError, match="attach the same first"):
            cetsim.load(file, like)


def test_other_files_and_traced_rules_are_refused(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "plain.eqx", mlp())
    with pytest.raises(ValueError, match=r"plain.eqx' was not written by `cetsim.save`"):
        cetsim.load(tmp_path / "plain.eqx", mlp())
    attach = lambda delay: saved(cetsim.attach(mlp(), CascadingTrace(3, delay, DT), DELAY))  # noqa: E731
    with pytest.raises(ValueError, match="whose values are traced cannot be saved"):
        jax.jit(lambda delay: attach(delay) and 0)(0.5)


def test_equinox_does_not_drop_traces_without_a_word():
    with pytest.raises(RuntimeError) as refused:
        eqx.tree_serialise_leaves(io.BytesIO(), default(mlp()))
    cause = refused.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert str(cause) == "a trace is no array: save an attached model by `cetsim.save`, or `detach` it first"


# How they are shown.


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (
            CascadingTrace(10, 4.0, 0.2),
            "CascadingTrace(delay=4.0 s, order=10, dt=0.2 s, read='before', normalization='area')",
        ),
        (DelayLine(0.4, 0.2), "DelayLine(delay=0.4 s, dt=0.2 s, read='after')"),
        (FixedDelay(0.6, 0.2, max_delay=1.0), "FixedDelay(delay=0.6 s, dt=0.2 s, max_delay=1.0 s, keep_late=False)"),
        (FIRTrace(jnp.array([0.25, 0.75])), "FIRTrace(taps=[0.25, 0.75], dt=0.2 s, read='after')"),
        (FIRTrace(jnp.linspace(0, 1, 9)), "FIRTrace(taps=float64[9] of 0.0 to 1.0, dt=0.2 s, read='after')"),
    ],
)
def test_traces_and_delays_are_shown_by_their_values(shown, text):
    assert repr(shown) == text
    assert text in repr(eqx.nn.Sequential([shown]))


def test_what_is_traced_is_shown_as_traced():
    seen = []
    jax.jit(lambda delay: seen.append(repr(CascadingTrace(3, delay, DT))) or delay)(0.5)
    assert seen[0].startswith("CascadingTrace(delay=traced f")


def test_an_attached_model_shows_its_layers_and_their_rule():
    text = repr(default(mlp(), error_gate=0.5, boundary="carry", window=7))
    assert "TracedBlock(Linear(weight=f64[5,4], bias=f64[5], in_features=4, out_features=5, use_bias=True)" in text
    assert "CascadingTrace(delay=0.5 s, order=3" in text
    assert "form='activation', error_gate=0.5, boundary='carry', window=7 steps)" in text
    grads = jax.tree.map(lambda leaf: leaf if eqx.is_inexact_array(leaf) else None, default(mlp()))
    assert "TracedBlock(Linear(weight=f64[5,4]" in repr(grads)
