"""The example in the README runs as it stands, and does what the text around it says."""

import re
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_example_runs_and_differs_from_backprop_only_in_the_gradient():
    source, names = EXAMPLES[0], {}
    exec(compile(source, "README.md", "exec"), names)
    plain = lambda model: names["optax"].softmax_cross_entropy_with_integer_labels(  # noqa: E731
        jax.vmap(model)(names["x"]), names["labels"]
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
    np.testing.assert_allclose(jax.vmap(names["model"])(few), jax.vmap(plain)(few), rtol=1e-12)
    grads = eqx.filter_grad(lambda model: jax.vmap(model)(few).sum())(names["model"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_example_of_control_runs(capsys):
    """With two updates a line in place of a hundred."""
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")
    (source,) = (source for source in EXAMPLES if "ActorCriticRun" in source)
    assert len([line for line in source.splitlines() if line]) <= 15
    exec(compile(source.replace("100)", "2)"), "README.md", "exec"), {})
    assert all(float(line) > 5 for line in capsys.readouterr().out.split())


def test_every_example_is_run():
    assert len(EXAMPLES) == 3


def test_no_placeholder_is_left():
    assert "@@" not in README


def test_every_picture_shown_exists():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert [path for path in pictures if not (Path(__file__).parent.parent / path).exists()] == []
