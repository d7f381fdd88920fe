"""Readouts under noise, unequal stages and limits: stages and noise against closed forms and draws."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures

from cetsim import CascadingTrace, FixedDelay, nn
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from experiments import robustness
from experiments.common import crosstalk
from experiments.common.conditions import Condition

LATE, DT = 10, 0.2
BALANCED = Condition("balanced", 6, LATE * DT, peak_s=LATE * DT)


@pytest.mark.parametrize("order", [3, 10])
def test_equal_stages_are_the_cascades(order):
    expected = CascadingTrace(order, LATE * DT, DT, readout=np.eye(order)).weights(jnp.arange(100)).T
    np.testing.assert_allclose(robustness.stages(order, LATE, 0.0, 0, 100), expected, rtol=1e-10, atol=1e-14)


def test_two_unequal_stages_are_a_difference_of_exponentials():
    """The integral over a step of α1 α2 (e^(-α1 t) - e^(-α2 t)) / (α2 - α1), from lag 1 on."""
    found = robustness.stages(2, LATE, 0.3, 4, 60)
    a, b = (1 / (LATE - 0.5)) * np.exp(0.3 * np.random.default_rng([4, 2]).standard_normal(2))
    step = lambda rate: np.exp(-rate * np.arange(59)) * -np.expm1(-rate) / rate  # noqa: E731
    np.testing.assert_allclose(found[1, 1:], a * b * (step(a) - step(b)) / (b - a), rtol=1e-10)
    np.testing.assert_allclose(found[0, 1:], a * step(a), rtol=1e-10)
    assert found[0, 0] == found[1, 0] == 0


def test_the_balanced_readout_is_the_librarys():
    for order in (3, 6, 10):
        c, weights = robustness.readout(replace(BALANCED, order=order))
        trace = CascadingTrace(order, LATE * DT, DT, readout="balanced", peaked=order >= 6)
        np.testing.assert_allclose((c @ weights)[:128], trace.weights(jnp.arange(128)), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("more", [{"noise": 0.03}, {"rates_spread": 0.2, "seed": 1}])
def test_informed_readouts_balance_what_a_segment_meets(more):
    c, weights = robustness.readout(replace(BALANCED, readout="informed", **more))
    assert c @ weights[:, LATE] == pytest.approx(weights[-1, LATE], rel=1e-9)
    often = robustness.pairs(LATE, weights.shape[1])
    off = (c @ weights) * often
    assert abs(off.sum() - off[LATE]) < 0.02 * np.abs(off).sum()


def test_lags_are_met_as_often_as_a_count_says():
    often = robustness.pairs(LATE, 200)
    met = np.zeros(200)
    for arrives in range(LATE, 128):  # the signal of step arrives - LATE
        met[: arrives + 1] += 1  # meets all that was written up to then
    np.testing.assert_allclose(often, met / met[LATE])


def test_limits_hold_and_fewer_limits_are_never_worse():
    def cost(c, weights):
        often = robustness.pairs(LATE, weights.shape[1])
        w = c @ weights / weights[-1, LATE]
        squares = np.sum(np.delete(often * w**2, LATE)) + robustness.RHO * np.sum(np.delete(often * w, LATE)) ** 2
        scale = np.sum(often * weights**2) / len(c) / weights[-1, LATE] ** 2
        return squares + robustness.ETA * np.sum(c**2) * scale

    found = {
        name: robustness.readout(replace(BALANCED, order=5, readout=name)) for name in ("none lowers", "one change")
    }
    free, weights = robustness.readout(replace(BALANCED, order=5, readout="informed"))
    raising, changing = (found[name][0] for name in ("none lowers", "one change"))
    assert np.all(raising >= 0)
    signs = np.sign(changing[np.abs(changing) > 1e-9])
    assert signs[0] == -1
    assert np.count_nonzero(np.diff(signs)) == 1
    last = np.eye(5)[-1]
    assert cost(free, weights) < cost(changing, weights) < cost(raising, weights) <= cost(last, weights) * (1 + 1e-6)
    for bound in (2.0, 4.0):
        c, weights = robustness.readout(replace(BALANCED, readout=f"norm {bound:g}"))
        assert 0.9 * bound < np.linalg.norm(c) <= bound
        assert c @ weights[:, LATE] == pytest.approx(weights[-1, LATE], rel=1e-9)


def run_of(steps=16):
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(np.abs(rng.normal(size=(60, 5)))), jnp.asarray(rng.integers(0, 3, 60))
    made = lambda key: nn.mlp((5, 6, 3), key=key)  # noqa: E731
    settings = Settings(steps=4, segment=steps, form="authors_linear")
    hyper = Hyperparameters(1e-2, CascadingTrace(4, 0.8), FixedDelay(0.8))
    return SupervisedRun(made, x, labels, settings), robustness.NoisyRun(made, x, labels, settings), hyper


def test_no_noise_changes_nothing():
    plain, noisy, hyper = run_of()
    states = [
        eqx.filter_jit(run.advance)(run.init(h, jax.random.key(1)), 3)[0]
        for run, h in ((plain, hyper), (noisy, robustness.NoisyHyperparameters(hyper, 0.0, 0.0)))
    ]
    for left, right in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_noise_of_an_update_is_that_of_its_stages():
    """Its variance over 4,000 draws, within 6 sigma of the literal sum over stages; biases have theirs."""
    plain, noisy, hyper = run_of()
    state = noisy.init(robustness.NoisyHyperparameters(hyper, 0.3, 0.7), jax.random.key(1))
    x, labels = plain.x[:16], plain.labels[:16]
    model = eqx.combine(state.params, noisy._template())

    def update(step):
        at = eqx.tree_at(lambda s: s.step, state, step)
        grads = noisy._gradient(model, at, None, x, labels)[1]
        return jnp.concatenate([grads.layers[2].weight, grads.layers[2].bias[:, None]], axis=1)

    drawn = np.asarray(jax.jit(jax.vmap(update))(jnp.arange(4000)))
    factors = crosstalk.factors_of(model, None, x, labels, "authors_linear")["layers.2"]
    seen, gain, signal = (factor[:, 0] for factor in factors)
    e = np.asarray(gain)[:, :, None] * np.concatenate([seen, np.ones((16, 1))], axis=1)[:, None, :]  # [time, out, in]
    power = np.sum(np.asarray(signal)[: 16 - 4] ** 2, axis=0)[:, None]  # of signals that arrive, 4 steps late
    wanted = power * (0.3 * e.var(axis=0) + 0.7 * e.mean(axis=0) ** 2)
    found = drawn.var(axis=0)
    assert np.all(np.abs(found - wanted) < 6 * wanted * np.sqrt(2 / 4000) + 1e-18)
    mean = np.asarray(plain._gradient(model, plain.init(hyper, jax.random.key(1)), None, x, labels)[1].layers[2].weight)
    assert np.all(np.abs(drawn.mean(axis=0)[:, :-1] - mean) <= 6 * np.sqrt(wanted[:, :-1] / 4000) + 1e-15)


def test_noise_adds_up_over_stages_as_the_two_numbers_say():
    condition = replace(BALANCED, noise=0.1)
    c, weights = robustness.readout(condition)
    hyper = robustness.noisy(condition)
    varying = sum((0.1 * c[k]) ** 2 * np.sum(weights[k] ** 2) for k in range(6))
    assert float(hyper.varying) == pytest.approx(varying)
    assert float(hyper.constant) == pytest.approx(np.sum((0.1 * c) ** 2), rel=0.02)  # stages have unit area
    assert float(robustness.noisy(replace(BALANCED, trace="delay line", order=0)).varying) == 0


def test_the_experiment_ends_with_tables_and_a_figure(tmp_path):
    small = "robustness --steps 3 --seeds 1 --hidden 8 --balanced 3 --noises 0.1 --spreads 0.2 --norms 2 --delay 2"
    text = output_of(*small.split(), "--out", tmp_path)
    for words in ("noise of every stage", "spread of the rates", "balanced 3, informed", "last of 3", "‖c‖", "norm 2"):
        assert words in text
    folder = tmp_path / "robustness"
    assert {path.name for path in folder.glob("robustness.*")} == {"robustness.png", "robustness.pdf"}
    again = copied(folder, tmp_path / "again")
    assert "balanced 3, one change" in output_of(*small.split(), "--plot-only", "--out", again.parent)
    require_same_pictures(folder, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--noises", "0"), "--noises must be above 0, got 0"),
        (("--spreads", "1"), "--spreads must be above 0 and below 1, got 1"),
        (("--norms", "1"), "--norms must be above 1, the last stage's, got 1"),
        (("--balanced", "2"), "--balanced must be 3 to 64, got 2"),
        (("--delay", "30"), "--delay must be at most 25.4 s"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    assert message in error_of(capsys, "robustness", *arguments)
