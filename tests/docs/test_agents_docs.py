"""The examples of docs/guides/agents.md run, one after the other, and do what the text around them says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "agents.md").read_text()
TRAINING, REAL, KEEPING, LOOKING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_an_agent_is_trained_kept_and_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    names = {}
    small = TRAINING.replace("1000", "3").replace("episodes=20", "episodes=2")
    for source in (small, REAL.replace(", 10)", ", 1)"), KEEPING, LOOKING):
        exec(compile(source, "agents.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "Gaussian(low=(-2.0,), high=(2.0,))" in printed
    for a, b in zip(jax.tree.leaves(names["agent"]), jax.tree.leaves(names["state"].agent), strict=True):
        np.testing.assert_array_equal(a, b)
    with Image.open("episode.gif") as film:
        assert film.n_frames == -(-len(names["frames"]) // 5)
    assert f"{len(names['frames']) - 1} steps" in printed
