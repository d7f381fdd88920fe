"""The worked example of docs/adding-an-experiment.md: its file alone makes an experiment."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from experiment import copied, output_of, require_same_pictures

import experiments
from experiments.common import command_line

DOCS = Path(__file__).parents[2] / "docs" / "guides" / "adding-an-experiment.md"
SMALL = ("--orders", "2", "--seeds", "1", "--steps", "2")


@pytest.fixture
def width(tmp_path, monkeypatch):
    """The name of the experiment, found in a folder that stands beside the others."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "width.py").write_text(source)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path / "code")])
    yield "width"
    sys.modules.pop("experiments.width", None)


def test_a_file_is_an_experiment(width, tmp_path):
    assert width in command_line.names()
    assert "Test accuracy of every trace at one delay. Presets: demo." in command_line.listing()
    for units in (4, 8):
        text = output_of(width, *SMALL, "--hidden", units, "--out", tmp_path)
        assert f"MLP 64-{units}-10" in text
    rows = pd.read_csv(tmp_path / width / "results.csv")
    assert rows["run"].nunique() == 2 * 4
    again = copied(tmp_path / width, tmp_path / "again")
    for folder in (tmp_path / width, again):
        text = output_of(width, "--plot-only", "--out", folder.parent)
        assert re.search(r"^units +4 +8$", text, re.MULTILINE)
    assert require_same_pictures(tmp_path / width, again) == ["width.pdf", "width.png"]


def test_every_experiment_has_its_row():
    listed = set(re.findall(r"`(\w+)\.py`", DOCS.read_text()))
    assert listed >= {name.replace("-", "_") for name in command_line.names()}
