"""The example in the README runs as it stands, and does what the text around it says."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import credit, sweep

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_example_runs_and_differs_from_backprop_only_in_the_gradient():
    source, names = EXAMPLES[0], {}
    exec(compile(source, "README.md", "exec"), names)
    plain = lambda model: names["optax"].softmax_cross_entropy_with_integer_labels(  # noqa: E731
        jax.vmap(model, axis_name="time")(names["x"]), names["labels"]
    )
    np.testing.assert_allclose(names["value"], plain(names["model"]).mean(), rtol=1e-12)
    backprop = eqx.filter_grad(lambda model: plain(model).mean())(names["model"])
    assert jax.tree.structure(names["update"]) == jax.tree.structure(backprop)
    assert not np.allclose(names["update"].layers[0].weight, backprop.layers[0].weight)


def test_example_of_events_runs():
    """In a program such as the first one, with four events."""
    names = {"times": np.array([3, 40, 600, 1279])}
    for source in (EXAMPLES[0], EXAMPLES[1]):
        exec(compile(source, "README.md", "exec"), names)
    plain = names["eqx"].nn.MLP(8, 3, width_size=32, depth=2, key=jax.random.key(0))
    few = names["x"][:4]
    np.testing.assert_allclose(jax.vmap(names["model"], axis_name="time")(few), jax.vmap(plain)(few), rtol=1e-12)
    grads = eqx.filter_grad(lambda model: jax.vmap(model, axis_name="time")(few).sum())(names["model"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_example_of_sharper_traces_runs():
    """The balanced readout remembers its delay, and less of what lies around it than the plain cascade."""
    names = {}
    (source,) = (source for source in EXAMPLES if "balanced" in source)
    for example in (EXAMPLES[0], source):
        exec(compile(example, "README.md", "exec"), names)
    lags = np.arange(200)
    plain, sharp, contrast = (np.asarray(names[name].weights(lags)) for name in ("trace", "sharp", "contrast"))
    assert sharp.argmax() == plain.argmax() == 20
    np.testing.assert_allclose(sharp[20], plain[20], rtol=1e-6)
    assert abs(sharp.sum()) < 0.2 * plain.sum()
    assert abs(contrast.sum()) < 1e-2


def test_example_of_rewards_strengthens_what_earned_them():
    """The output unit's bias, whose activity is always 1, goes the way of the rewards that arrive."""
    names = {}
    (source,) = (source for source in EXAMPLES if "dopamine" in source)
    for example in (EXAMPLES[0], source):
        exec(compile(example, "README.md", "exec"), names)
    grown = -names["descend"].layers[-1].bias
    trace, late = names["trace"], names["late"]
    matrix = credit.credit_matrix(trace, late.arrivals(jnp.arange(128)), jnp.arange(128), horizon=128)
    np.testing.assert_allclose(grown, np.full(3, np.asarray(names["dopamine"]) @ np.asarray(matrix).sum(axis=1)))
    assert np.all(grown > 0)


def test_example_of_control_runs(capsys):
    """With two updates a line in place of a hundred."""
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")
    (source,) = (source for source in EXAMPLES if "ActorCriticRun" in source)
    assert len([line for line in source.splitlines() if line]) <= 15
    exec(compile(source.replace("100)", "2)"), "README.md", "exec"), {})
    assert all(float(line) > 5 for line in capsys.readouterr().out.split())


def test_example_of_a_sweep_runs(tmp_path, monkeypatch, capsys):
    """Shorter than in the README, in float32 as everywhere but in tests."""
    (source,) = (source for source in EXAMPLES if "sweep.run" in source)
    monkeypatch.chdir(tmp_path)
    exec(compile(source.replace("300", "20"), "README.md", "exec"), names := {})
    assert len(names["table"]) == 24
    accuracy = names["table"].final("accuracy").reshape(2, 2, 2, 3)
    assert accuracy[1, 0, 1].mean() > accuracy[0, 1, 0].mean()
    assert list(sweep.load("results/orders").records) == list(names["table"].records)


def test_whole_runs_in_a_batch_end_within_the_spread_of_seeds_of_those_alone(tmp_path, monkeypatch, capsys):
    (source,) = (source for source in EXAMPLES if "sweep.run" in source)
    monkeypatch.chdir(tmp_path)
    exec(compile(source.replace("300", "60").replace("order=(2, 10)", "order=(10,)"), "README.md", "exec"), names := {})
    together = names["table"].final("accuracy").reshape(-1, 3)
    alone = sweep.run("results/alone", names["conditions"], names["training"], batch=1).final("accuracy").reshape(-1, 3)
    assert np.all(np.abs(together - alone).max(axis=1) <= together.std(axis=1, ddof=1))


def test_every_example_is_run():
    assert len(EXAMPLES) == 6


def test_no_placeholder_is_left():
    assert "@@" not in README.read_text()


def test_every_picture_shown_exists():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text())
    assert pictures
    assert [path for path in pictures if not (Path(__file__).parents[2] / path).exists()] == []
