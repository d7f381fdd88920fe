"""Centred activity: the update of a network that computes W(x - m) + b, and biases that keep the unit's input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy

from cetsim import CascadingTrace, FixedDelay, gates, nn
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from experiments import centering
from experiments.common import crosstalk, plots

STEPS = 16
HYPER = Hyperparameters(1e-2, CascadingTrace(4, 0.8), FixedDelay(0.8))


def runs():
    """A plain run, one whose weights alone are centred, and one whose biases follow."""
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(2 + rng.normal(size=(60, 5))), jnp.asarray(rng.integers(0, 3, 60))
    kinds = {None: SupervisedRun, "weights": centering.CentredWeights, "bias": SupervisedRun}
    for how, kind in kinds.items():
        settings = Settings(steps=4, segment=STEPS, form="authors_linear", centering=None if how is None else 0.0)
        yield kind(lambda key: nn.mlp((5, 6, 3), key=key), x, labels, settings)


def test_the_update_is_the_sum_over_centred_activity():
    """Of every signal that arrives with what its trace holds of all earlier steps, as loops have it."""
    _, _, centred = runs()
    state, x, labels = centred.init(HYPER, jax.random.key(1)), centred.x[:STEPS], centred.labels[:STEPS]
    model = eqx.combine(state.params, centred._template())
    _, found, _ = centred._gradient(model, state, None, x, labels)
    found = nn.center(found, means := centred._means(model, x, state.buffers))
    weights, late = np.asarray(HYPER.trace.weights(jnp.arange(STEPS))), 4
    for name, factors in crosstalk.factors_of(model, None, x, labels, "authors_linear").items():
        seen, gain, signal = (np.asarray(factor)[:, 0] for factor in factors)
        layer = found.layers[int(name.rpartition(".")[2])]
        of_weight, of_bias = np.zeros(layer.weight.shape), np.zeros(layer.bias.shape)
        for s in range(STEPS - late):
            for at in range(s + late + 1):
                g = signal[s] * gain[at] * weights[s + late - at]
                of_weight += np.outer(g, seen[at] - seen.mean(axis=0))
                of_bias += g
        np.testing.assert_allclose(means[name], seen.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(layer.weight, of_weight, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(layer.bias, of_bias, rtol=1e-9, atol=1e-13)


def test_a_bias_that_follows_keeps_what_its_unit_gets_from_the_mean():
    """The input of the first layer's units for the mean image moves by the optimiser's step of the bias alone."""
    _, alone, centred = runs()
    moved = []
    for run in (alone, centred):
        state = run.init(HYPER, jax.random.key(1))
        x = run._frames(state, 1)
        x, _ = run.settings.shown.show(jax.tree.map(lambda leaf: leaf[0], x), run.x, run.labels)
        after, _ = eqx.filter_jit(run.advance)(state, 1)
        old, new, mean = state.params.layers[0], after.params.layers[0], x.mean(axis=0)
        moved.append((new.weight @ mean + new.bias) - (old.weight @ mean + old.bias))
        step = new.bias - old.bias
    np.testing.assert_allclose(moved[1], step + (new.weight - old.weight) @ mean, atol=1e-15)
    rate = 1e-2 * float(run.settings.schedule(0))
    assert np.all(np.abs(moved[1]) < 1.01 * rate)  # one Adam step of a bias
    assert np.abs(moved[0]).max() > 2 * rate  # those of five weights, for a mean of 2


def test_a_running_mean_learns_from_a_stream_and_from_salient_images():
    plain, _, _ = runs()
    for boundary, salience in (("carry", None), ("reset", gates.QuantileGate(0.25))):
        settings = Settings(steps=4, segment=STEPS, boundary=boundary, centering=0.9)
        run = SupervisedRun(plain.make_model, plain.x, plain.labels, settings)
        hyper = Hyperparameters(1e-2, CascadingTrace(4, 0.8), FixedDelay(0.8), salience=salience)
        state, losses = eqx.filter_jit(run.advance)(run.init(hyper, jax.random.key(1)), 4)
        assert np.isfinite(losses).all()
        assert state.optimizer.weight == pytest.approx(1 - 0.9**4)
        assert set(state.optimizer.means) == {"layers.0", "layers.2"}
    with pytest.raises(ValueError, match=r"`centering` must be in \[0, 1\), got 1"):
        Settings(steps=4, centering=1.0)


@pytest.mark.parametrize("ways", [(), ("bias",), ("running", "weights"), centering.Options.ways])
def test_the_ways_asked_for_are_trained_beside_the_plain_one(ways):
    options = centering.Options(ways=ways, orders=(2,), balanced=(3,), contrasts=(4,))
    options.check()
    found = [(one.trace, one.order, one.centering) for (one,) in centering.conditions(options)]
    traces = [("backprop", 0), *options.delayed_traces]
    assert sorted(found) == sorted((*trace, way) for trace in traces for way in ("", *ways))


def test_the_preset_of_one_way_trains_that_way():
    found = [one.centering for (one,) in centering.conditions(centering.PRESETS["cifar10"])]
    assert set(found) == {"", "bias"}
    assert len(found) == 2 * (2 + len(centering.PRESETS["cifar10"].delayed_traces) - 1)


def ended(ways, trace: str, order: int) -> list[dict]:
    """A row for each way in which a trace ended."""
    row = dict(dataset="digits", network="MLP 64-8-10", form="activation", boundary="reset", metric="test_accuracy")
    row |= dict(trace=trace, order=order, delay_s=10.0 * (trace != "backprop"), learning_rate=1e-3, step=400, seed=0)
    return [row | dict(run=f"{trace}{order}{way}", centering=way, value=0.5) for way in ways]


@pytest.mark.parametrize("ways", [(), ("bias",), ("running",), ("weights", "running"), tuple(centering.HOW)[1:]])
def test_what_was_not_trained_is_neither_told_nor_drawn(ways, tmp_path, monkeypatch, capsys):
    shown = {}

    def save(figure, folder, name, note, axis):
        shown["note"], shown["names"] = note, axis.get_legend_handles_labels()[1]
        shown["bars"] = sum(len(bars) for bars in axis.containers)
        return []

    monkeypatch.setattr(plots, "save", save)
    # One cascade was trained the plain way alone, and the trace that is drawn first in all others.
    rows = [*ended(("", *ways), "backprop", 0), *ended(ways or [""], "ET", 1), *ended([""], "CET", 2)]
    centering.report(tidy(rows), centering.Options(ways=ways, out=tmp_path))
    printed, words = capsys.readouterr().out, {centering.HOW[way] for way in ("", *ways)}
    assert sorted(shown["names"]) == sorted(words)
    assert shown["bars"] == len(rows)
    for way, name in centering.HOW.items():
        assert (name in printed) == (name in words)
        assert (name.capitalize() in shown["note"] or f"; {name}" in shown["note"]) == (way in ways)
    assert "nan" not in printed


def test_a_way_is_asked_for_once(capsys, tmp_path):
    message = "--ways must be different from each other, got bias bias"
    assert message in error_of(capsys, "centering", "--ways", "bias", "bias", "--out", tmp_path)


def test_the_experiment_ends_with_a_table_and_a_figure(tmp_path):
    small = "centering --steps 3 --seeds 1 --hidden 8 --orders 2 --balanced 3 --delay 2"
    text = output_of(*small.split(), "--out", tmp_path)
    for words in ("plain", "weights centred", "bias follows", "running mean", "CET(2)", "balanced(3)", "backprop"):
        assert words in text
    again = copied(tmp_path / "centering", tmp_path / "again")
    assert "delay line" in output_of(*small.split(), "--plot-only", "--out", again.parent)
    require_same_pictures(tmp_path / "centering", again)
