"""The README is short; its example, and those that once stood in it, do what the text around them says."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import ROOT, page, programs

from cetsim import credit

README = ROOT / "README.md"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(source: str) -> dict:
    exec(compile(source, "README.md", "exec"), names := {})
    return names


def one(sources: list[str], word: str) -> str:
    (source,) = (source for source in sources if word in source)
    return source


def test_at_most_700_words_and_the_rule_within_the_first_200():
    text = README.read_text()
    assert len(text.split()) <= 700
    assert "ΔW ∝ −Σ L(t) · trace(t)" in " ".join(text.split()[:200])
    assert "@@" not in text


def test_example_runs_and_differs_from_backprop_only_in_the_gradient():
    (program,) = programs(README)
    names = run(program.source)
    plain = lambda model: names["optax"].softmax_cross_entropy_with_integer_labels(  # noqa: E731
        jax.vmap(model, axis_name="time")(names["x"]), names["labels"]
    )
    np.testing.assert_allclose(names["value"], plain(names["model"]).mean(), rtol=1e-12)
    backprop = eqx.filter_grad(lambda model: plain(model).mean())(names["model"])
    assert jax.tree.structure(names["update"]) == jax.tree.structure(backprop)
    assert not np.allclose(names["update"].layers[0].weight, backprop.layers[0].weight)


def test_example_of_sharper_traces():
    """The balanced readout remembers its delay, and less of what lies around it than the plain cascade."""
    names = run(one(page("concepts/traces.md"), "contrast"))
    lags = np.arange(200)
    plain, balanced, contrast = (np.asarray(names[name].weights(lags)) for name in ("plain", "balanced", "contrast"))
    assert balanced.argmax() == plain.argmax() == 20
    np.testing.assert_allclose(balanced[20], plain[20], rtol=1e-6)
    assert abs(balanced.sum()) < 0.2 * plain.sum()
    assert abs(contrast.sum()) < 1e-2


def test_example_of_rewards_strengthens_what_earned_them():
    """The output unit's bias, whose activity is always 1, goes the way of the rewards that arrive."""
    names = run(one(page("guides/own-model.md"), "dopamine"))
    grown = -names["descend"].layers[-1].bias
    trace, late = names["trace"], names["late"]
    matrix = credit.credit_matrix(trace, late.arrivals(jnp.arange(128)), jnp.arange(128), horizon=128)
    np.testing.assert_allclose(grown, np.full(3, np.asarray(names["dopamine"]) @ np.asarray(matrix).sum(axis=1)))
    assert np.all(grown > 0)
