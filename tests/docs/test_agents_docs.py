"""The examples of docs/guides/agents.md run, one after the other, and do what the text around them says."""

import jax
import numpy as np
import pytest
from pages import page
from PIL import Image

BASELINES, TRAINING, KEEPING, LOOKING, REAL, HIDDEN = page("guides/agents.md")


def test_an_agent_beside_its_baselines(capsys):
    """With two updates a run in place of all."""
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")
    exec(compile(BASELINES.replace("1000", "2"), "agents.md", "exec"), {})
    lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _, _ in lines] == ["no delay", "perfect memory", "CET(10)", "ET"]
    assert all(5 < float(value) <= 500 for _, _, value in lines)


def test_spiking_neurons_and_reservoirs(capsys):
    """With two updates a run in place of all."""
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'cetsim[rl]'")
    exec(compile(HIDDEN.replace("1000", "2"), "agents.md", "exec"), {})
    lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _, _ in lines] == [
        "all is seen", "all is seen, spiking neurons", "positions", "positions, a reservoir",
    ]  # fmt: skip
    assert all(5 < float(value) <= 500 for _, _, value in lines)


def test_an_agent_is_trained_kept_and_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    names = {}
    small = TRAINING.replace("1000", "3").replace("episodes=20", "episodes=2")
    for source in (small, KEEPING, LOOKING):
        exec(compile(source, "agents.md", "exec"), names)
    exec(compile(REAL.replace(", 10)", ", 1)"), "agents.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "the agent is as it was: True" in printed
    assert "Gaussian(low=(-2.0,), high=(2.0,))" in printed
    for a, b in zip(jax.tree.leaves(names["agent"]), jax.tree.leaves(names["state"].agent), strict=True):
        np.testing.assert_array_equal(a, b)
    with Image.open("episode.gif") as film:
        assert film.n_frames == -(-len(names["frames"]) // 5)
    assert f"{len(names['frames']) - 1} steps" in printed
