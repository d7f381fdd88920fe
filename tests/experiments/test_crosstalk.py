"""The parts of an update: predicted from means and variances, and measured."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from experiment import copied, output_of, require_same_pictures

import cetsim
from cetsim import CascadingTrace, FixedDelay
from experiments.common import crosstalk


@pytest.mark.parametrize("form", ["activation", "preactivation", "authors_linear", "authors"])
def test_factors_and_update_are_those_of_the_rule(form):
    """Of an attached model's gradient, and the plain gradient of what arrives."""
    rng = np.random.default_rng(0)
    model = cetsim.nn.mlp((5, 6, 4, 3), key=jax.random.key(0))
    x, labels = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.integers(0, 3, 20))
    trace, late = CascadingTrace(4, 0.8, readout="balanced"), 4

    def loss(model, weights):
        logits = jax.vmap(model, axis_name="time")(x)
        return -jnp.mean(weights * jax.nn.log_softmax(logits)[jnp.arange(20), labels])

    update = eqx.filter_grad(lambda m: loss(cetsim.attach(m, trace, FixedDelay(0.8), form=form), 1.0))(model)
    truth = eqx.filter_grad(lambda m: loss(m, jnp.arange(20) < 16))(model)
    found = crosstalk.by_layer(model, None, x, labels, trace.weights(jnp.arange(20)), late, form)
    right = trace.weights(late)
    for name, layer in cetsim.metrics.alignment(update, truth).items():
        np.testing.assert_allclose(found["alignment"][name], layer, rtol=1e-9)
        index = int(name.rpartition(".")[2])
        theirs, own = update.layers[index].weight, right * truth.layers[index].weight
        wanted = jnp.sum((theirs - own) ** 2) / jnp.sum(own**2)
        np.testing.assert_allclose(found["crosstalk"][name], wanted, rtol=1e-9)


@pytest.mark.parametrize("layout", cetsim.nn.conv.LAYOUTS)
@pytest.mark.parametrize("form", ["activation", "preactivation", "authors"])
def test_factors_of_convolutions_are_those_of_the_rule(form, layout):
    """Summed at once they are the gradient, and through a trace the update of an attached model."""
    steps, rng = 8, np.random.default_rng(0)
    make = functools.partial(cetsim.nn.cnn, (2, 4, 4), (3, 4), hidden=5, classes=3, layout=layout)
    model, state = eqx.nn.make_with_state(make)(key=jax.random.key(0))
    x, labels = jnp.asarray(rng.normal(size=(steps, 2, 4, 4))), jnp.asarray(rng.integers(0, 3, steps))
    trace, late = CascadingTrace(4, 0.4), FixedDelay(0.4)

    def gradient(attach):
        def loss(model):
            logits, _ = jax.vmap(attach(model), (0, None), (0, None), axis_name="time")(
                x, jax.tree.map(jnp.copy, state)
            )
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(steps), labels])

        return eqx.filter_grad(loss)(model)

    at_once, late = gradient(lambda m: m), gradient(lambda m: cetsim.attach(m, trace, late, form=form))
    pairs = np.array(
        [[(u + 2 < steps) * float(trace.weights(abs(u + 2 - s))) * (s <= u + 2) for s in range(8)] for u in range(8)]
    )
    found = crosstalk.factors_of(model, state, x, labels, form)
    assert len(found) == 4
    for name, (seen, gain, signal) in found.items():
        for grads, rows in ((at_once, signal), (late, jnp.einsum("us,upo->spo", pairs, signal))):
            wanted = grads.layers[int(name.rpartition(".")[2])].weight
            wanted = wanted.transpose(0, 2, 3, 1) if wanted.ndim == 4 else wanted
            assert np.any(np.asarray(wanted) != 0)
            np.testing.assert_allclose(
                crosstalk.summed(rows, gain, seen), wanted.reshape(len(wanted), -1), rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("places", [1, 3, 5])  # of 5 by each pair
@pytest.mark.parametrize("readout", ["last", "balanced"])
def test_the_prediction_is_the_mean_over_random_segments(readout, places):
    """Of independent activity and errors, both with means; the expected square and its parts' sum, at 6 sigma."""
    trace, late, steps = CascadingTrace(6, 2.0, readout=readout), 10, 40
    weights, means = trace.weights(jnp.arange(steps)), np.array([0.3, -0.2, 0.5])

    def segment(key):
        keys = jax.random.split(key, 3)
        x = jnp.abs(jax.random.normal(keys[0], (steps, places, 7)))
        gain = (jax.random.uniform(keys[1], (steps, places, 3)) < 0.6) * 1.0
        signal = means + jax.random.normal(keys[2], (steps, places, 3))
        parts = crosstalk.split(x, gain, signal, weights, late)
        own = weights[late] ** 2 * jnp.sum(crosstalk.summed(*(f[: steps - late] for f in (signal, gain, x))) ** 2)
        return jnp.stack([parts["crosstalk"] * own, sum(parts[part] for part in crosstalk.PARTS) * own])

    found = np.asarray(jax.jit(jax.vmap(segment))(jax.random.split(jax.random.key(1), 4000)))
    difference = found[:, 0] - found[:, 1]
    assert abs(difference.mean()) < 6 * difference.std() / np.sqrt(len(found))
    assert found[:, 0].mean() > 0


@pytest.mark.parametrize("readout", ["last", "balanced"])
def test_what_lies_along_the_gradient_is_predicted_where_large_errors_go_with_large_activity(readout):
    """As of a ReLU, whose error is 0 where its gain is: the mean of g·c over random segments, at 6 sigma."""
    trace, late, steps = CascadingTrace(6, 2.0, readout=readout), 10, 40
    weights = trace.weights(jnp.arange(steps))
    right = weights[late]

    def segment(key):
        keys = jax.random.split(key, 3)
        size = jnp.abs(jax.random.normal(keys[0], (steps, 1)))
        x = size * jnp.abs(jax.random.normal(keys[1], (steps, 7)))
        gain = (jax.random.uniform(keys[1], (steps, 3)) < 0.6) * 1.0
        signal = size * gain * jax.random.normal(keys[2], (steps, 3))
        parts = crosstalk.split(*(factor[:, None] for factor in (x, gain, signal)), weights, late)
        arrived = (signal * gain)[: steps - late].T @ x[: steps - late]
        lags = late + jnp.arange(steps)[:, None] - jnp.arange(steps)[None]
        met = (lags >= 0) & (lags != late) & (jnp.arange(steps) < steps - late)[:, None]
        wrong = (gain * (jnp.where(met, weights[jnp.clip(lags, 0, steps - 1)], 0).T @ signal)).T @ x
        return jnp.stack([jnp.sum(arrived * wrong), parts["along"] * right * jnp.sum(arrived**2)])

    found = np.asarray(jax.jit(jax.vmap(segment))(jax.random.split(jax.random.key(3), 4000)))
    difference = found[:, 0] - found[:, 1]
    assert abs(difference.mean()) < 6 * difference.std() / np.sqrt(len(found))
    assert difference.std() / np.sqrt(len(found)) < 0.1 * abs(found[:, 0].mean())


def test_a_delay_line_has_no_crosstalk():
    rng = np.random.default_rng(2)
    x, gain, signal = (jnp.asarray(rng.normal(size=(12, 2, n))) for n in (4, 3, 3))
    found = crosstalk.split(x, gain, signal, jnp.zeros(12).at[5].set(1.0), 5)
    assert [float(found[part]) for part in crosstalk.PARTS] == [0.0] * 4
    for name in ("predicted", "alignment", "centred"):
        assert float(found[name]) == pytest.approx(1.0)
    assert float(found["lost"]) > 0


def test_the_experiment_predicts_and_draws(tmp_path):
    small = ("--orders", "4", "--balanced", "4", "--contrasts", "4", "--delay", "2", "--steps", "2", "--seeds", "1")
    text = output_of("crosstalk", *small, "--hidden", "6", "--out", tmp_path)
    assert "layers.0: crosstalk predicted within a factor of" in text
    rows = pd.read_csv(tmp_path / "crosstalk" / "results.csv")
    own = rows[rows["metric"] == "predicted"]
    assert own["layer"].nunique() == 2
    assert set(zip(own["trace"], own["order"], strict=True)) == {
        *(("ET", 1), ("CET", 4), ("balanced", 4), ("CET - ET", 4), ("delay line", 0))
    }
    again = copied(tmp_path / "crosstalk", tmp_path / "again")
    output_of("crosstalk", "--plot-only", "--out", again.parent)
    require_same_pictures(tmp_path / "crosstalk", again)
