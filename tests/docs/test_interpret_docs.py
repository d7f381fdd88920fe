"""The code of docs/interpret.md runs, block after block, and does what the text around it says."""

import numpy as np
from pages import page

BLOCKS = page("guides/interpret.md")


def test_the_guide_runs_from_training_to_what_breaks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, printed = {}, ""
    for block in BLOCKS:
        exec(compile(block.replace("1000", "300"), "interpret.md", "exec"), names)
        text = capsys.readouterr().out
        assert text
        printed += text
    assert "layers.1  Lambda  float" in printed
    accuracy = (names["logits"].argmax(-1) == names["digits"].test_y).mean()
    assert accuracy > 0.7  # learned, though credit came late
    assert names["values"]["layers.1"].shape == (len(names["test_x"]), 48)
    assert names["purity"][names["chosen"]] >= 8
    assert f"unit {names['chosen']}: " in printed
    assert (tmp_path / "units.html").read_text().count("<article") == int((~names["units"].dead).sum())
    assert not np.array_equal(names["recall"](names["model"]), np.zeros(10))
    assert np.ptp(names["losses"]) > 0
    patching, score = names["patching"], names["score"]
    whole = score(names["model"](names["a"])) - score(names["model"](names["b"]))
    np.testing.assert_allclose(patching.exact.source - patching.exact.without, whole, rtol=1e-6)
    np.testing.assert_allclose(patching.effects["layers.3"], patching.exact.effects["layers.3"], rtol=1e-6, atol=1e-9)
    assert np.abs(patching.error["layers.1"]).max() > 0
    assert abs(names["gradients"].gap) < 0.05 * abs(names["gradients"].total)
