"""The code of docs/interpret-coders.md runs, one piece after the other, and does what the text around it says."""

import numpy as np
from pages import page


def test_the_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for source in page("guides/interpret-coders.md"):
        exec(compile(source, "interpret-coders.md", "exec"), names)
    found = names["found"].values
    assert found["explained_variance"] > 0.6
    assert found["loss_recovered"] > 0.8
    assert found["l0"] <= 8
    assert names["purity"][names["chosen"]] >= 8
    assert (tmp_path / "latents.html").read_text().count("<article") == int((~names["latents"].dead).sum())
    lost = names["confidence"](names["model"]) - names["confidence"](names["silenced"])
    assert np.argmax(lost) == names["stands_for"]  # what breaks is what it stands for
    assert lost[names["stands_for"]] > 0.02
    assert names["both"].keys() >= {"explained_variance_layers.1", "explained_variance_layers.3", "dead", "l0"}
    x = names["jnp"].asarray(names["test"].array("layers.1"))
    np.testing.assert_array_equal(names["again"](x), names["coder"](x))
    assert len(names["table"].runs) == 4
    assert np.all((names["shared"] >= 0) & (names["shared"] <= 1))
    printed = capsys.readouterr().out
    assert "layers.1" in printed
    assert "the same coder: True" in printed
