"""The experiment spiking-vision: how images become spikes in time, what is run, and its command line at a tiny size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment import error_of, output_of

from cetsim.supervised import Settings
from experiments import spiking_vision
from experiments.spiking_vision import PRESETS, SHOWN, Network, Options, SpikingRun

TINY = (
    *("spiking-vision", "--codes", "latency", "rate", "--delays", "0.4", "--orders", "2", "--hidden", "6"),
    *("--seeds", "1", "--steps", "2"),
)


def run_of(code, images=3):
    x, labels = np.random.default_rng(0).random((images, 5)), np.arange(images)
    make = lambda key: Network((5, 4, images), "unrolled", key)  # noqa: E731
    return SpikingRun(make, x, labels, Settings(1, images), code)


@pytest.mark.parametrize("code", spiking_vision.CODES)
def test_images_are_seen_one_after_the_other(code):
    run = run_of(code)
    spikes = np.asarray(run.spikes(run.x, jax.random.key(1))).reshape(3, SHOWN, 5)
    if code == "latency":
        np.testing.assert_array_equal(spikes.sum(axis=1), 1)
        np.testing.assert_array_equal(spikes.argmax(axis=1), np.round((1 - np.asarray(run.x)) * (SHOWN - 1)))
    else:
        expected = spiking_vision.MOST * np.asarray(run.x)
        assert np.all(np.abs(spikes.mean(axis=1) - expected) < 6 * np.sqrt(0.25 / SHOWN))


def test_evaluation_does_not_count_its_padding():
    run = run_of("latency")
    state = run.init(spiking_vision.hyperparameters(spiking_vision.Condition(learning_rate=1e-3)), jax.random.key(0))
    measured = run.evaluate(state, run.x, run.labels)
    model = Network((5, 4, 3), "unrolled", jax.random.split(jax.random.key(0))[0])
    logits = run.logits(model, jnp.concatenate([run.x, jnp.zeros((17, 5))]), jax.random.key(0))[:3].mean(axis=1)
    np.testing.assert_allclose(measured["accuracy"], np.mean(np.argmax(logits, axis=1) == np.arange(3)))
    losses = -jax.nn.log_softmax(logits)[np.arange(3), np.arange(3)]
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-6)


def test_every_trace_is_run_at_every_delay_under_every_code():
    found = [one for (one,) in spiking_vision.conditions(Options(delays=(0.2, 4.0), orders=(2, 10), balanced=(10,)))]
    kinds = {("ET", 1), ("CET", 2), ("CET", 10), ("balanced", 10), ("delay line", 0), ("e-prop", 1)}
    late = {(c.code, c.delay_s, c.trace, c.order) for c in found if c.trace != "backprop"}
    assert late == {(code, delay, *kind) for code in ("rate", "latency") for delay in (0.2, 4.0) for kind in kinds}
    assert [c.code for c in found if c.trace == "backprop"] == ["rate", "latency"]
    assert {c.errors for c in found if c.trace == "e-prop"} == {"instant"}
    assert all(preset.steps * preset.seeds > 0 for preset in PRESETS.values())


def test_command_line_trains_and_draws(tmp_path):
    out = output_of(*TINY, "--out", tmp_path)
    assert "latency code, digits (8x8), LIF 64-6-10" in out
    for name in ("backprop", "delay line", "CET(2)", "ET", "e-prop"):
        assert name in out
    assert sorted(path.name for path in (tmp_path / "spiking-vision").glob("*.p*")) == [
        "spiking-vision.pdf",
        "spiking-vision.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--delays", "0.25"), "--delays must be multiples of the 0.2 s of an image"),
        (("--delays", "26"), "--delays must be at most 25.4 s"),
        (("--hidden", "8", "8"), "--hidden must be one number of neurons"),
        (("--codes", "rate", "rate"), "--codes must be different from each other"),
        (("--form", "preactivation"), "--form must be activation here"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, "spiking-vision", *arguments, "--out", tmp_path)
