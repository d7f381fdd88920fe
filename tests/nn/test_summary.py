"""The table of an attached model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import DELAY, DT, TRACE, convnet, default, mlp

import cetsim
from cetsim import (
    CascadingTrace,
    DelayLine,
    Events,
    ExponentialTrace,
    FIRTrace,
    FixedDelay,
    LayerwiseDelay,
    RandomDelay,
)

KEY = jax.random.key(0)


def nbytes(tree):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def test_rows_of_a_segment_that_starts_empty():
    traces = TRACE, ExponentialTrace(0.5, DT), DelayLine(0.4, DT)
    table = cetsim.summary(cetsim.attach(mlp(), traces, LayerwiseDelay.stacked(0.2, 3)))
    assert [row.layer for row in table] == ["layers.0", "layers.2", "layers.4"]
    assert [(row.kind, row.weight) for row in table] == [("Linear", (5, 4)), ("Linear", (3, 5)), ("Linear", (2, 3))]
    assert [row.trace for row in table] == ["DelayLine", "ExponentialTrace", "CascadingTrace(3)"]  # from the top down
    assert [row.peak for row in table] == [0.4, 0.2, 0.5]
    assert [row.delay for row in table] == [0.4, 0.2, 0.0]
    assert [row.window for row in table] == [None] * 3
    assert [row.literal_bytes for row in table] == [3 * 25 * 8, 1 * 18 * 8, 3 * 8 * 8]
    assert [row.kept_bytes for row in table] == [0] * 3


@pytest.mark.parametrize("events", [None, Events(jnp.array([1.0, 4.0]), 11)])
def test_rows_of_a_stream_say_what_is_kept(events):
    model = default(convnet(), boundary="carry", window=7, events=events)
    state = cetsim.streaming_init(model, jnp.ones((2, 4, 4)))
    for row, known in zip(cetsim.summary(model, state), cetsim.summary(model), strict=True):
        assert row.window == 7
        assert row.kept_bytes == nbytes(state[row.layer]) > 0
        assert known.kept_bytes is None
    assert [row.kind for row in cetsim.summary(model)] == ["Conv2d", "Conv2d", "Linear"]


def test_rows_of_other_layers_and_traces():
    layers = [eqx.nn.Embedding(7, 3, key=KEY), eqx.nn.WeightNorm(eqx.nn.Linear(3, 2, key=KEY))]
    traces = FIRTrace(jnp.array([0.1, 0.2, -0.7]), DT), CascadingTrace(3, jnp.array([0.4, 0.8, 1.2]), DT)
    late = {"layers.0": RandomDelay(2.0, 1.0, DT), "layers.1": RandomDelay(2.0, 0.5, DT, "gamma")}
    table = cetsim.summary(cetsim.attach(eqx.nn.Sequential(layers), traces, late))
    assert [(row.kind, row.weight) for row in table] == [("Embedding", (7, 3)), ("WeightNorm(Linear)", (2, 3))]
    assert [row.peak for row in table] == [(0.4, 1.2), 0.4]
    assert [row.delay for row in table] == [(1.5, 2.5), 2.0]
    assert [row.literal_bytes for row in table] == [3 * 21 * 8, 3 * (6 + 2) * 8]


def test_what_is_traced_is_said_to_be():
    found = []

    @jax.jit
    def attach(delay):
        late = FixedDelay(delay, DT, max_delay=2.0)
        model = cetsim.attach(mlp(), CascadingTrace(3, delay, DT), late, boundary="carry", window=5)
        found.append(cetsim.summary(model))
        return delay

    attach(0.6)
    assert [(row.peak, row.delay, row.window) for row in found[0]] == [(None, None, 5)] * 3
    assert "traced" in str(found[0])


def test_it_is_shown_as_a_table():
    lines = repr(cetsim.summary(default(mlp()))).splitlines()
    head = "layer", "kind", "weight", "trace", "peak, s", "delay, s", "window, steps", "literal", "kept"
    assert lines[0].split("  ")[0] == "layer"
    assert [cell.strip() for cell in lines[0].split("  ") if cell.strip()] == list(head)
    first = [cell.strip() for cell in lines[2].split("  ") if cell.strip()]
    assert first == ["layers.0", "Linear", "5 x 4", "CascadingTrace(3)", "0.5", "0.6", "reset", "600 B", "0 B"]
    assert len(lines) == 5
    assert "14.4 kB" in str(cetsim.summary(default(eqx.nn.Sequential([eqx.nn.Linear(99, 6, key=KEY)]))))


def test_models_without_traces_and_states_of_others_are_refused():
    with pytest.raises(ValueError, match="the model has no traces: a summary is of what `attach` returns"):
        cetsim.summary(mlp())
    model = default(mlp(), boundary="carry", window=3)
    state = cetsim.streaming_init(model, jnp.ones(4))
    with pytest.raises(ValueError, match=r"the state must have the layers \['layers.0', 'layers.2', 'layers.4'\], got"):
        cetsim.summary(model, {"layers.0": state["layers.0"]})


def test_the_delay_of_a_summary_is_that_of_its_layer():
    assert [row.delay for row in cetsim.summary(cetsim.attach(mlp(), TRACE, DELAY))] == [0.6] * 3
