"""The code of docs/guides/steer.md and robust.md runs, and does what the text around it says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from pages import ROOT, run_guide

from cetsim import interpret

GUIDE = (ROOT / "docs" / "guides" / "steer.md").read_text()


def test_steer(capsys):
    names, printed = run_guide("steer.md", capsys)
    found, null = names["found"], names["null"]
    assert found.score.shape == (40, 3)
    assert found.score[:, 2].max() > 0.1
    assert found.score[:, 2].mean() > null.score[:, 2].mean()  # more than chance
    reached = names["reached"]
    assert len(reached)
    np.testing.assert_allclose(names["there"][reached, names["target"]], 0.2)
    assert names["score"].shape == (len(reached),)
    assert (names["score"] <= 0.5 + 1e-6).all()  # probabilities sum to 1
    assert "above chance" in printed
    assert "(5,)" in printed


def test_what_would_make_the_published_number_runs_on_a_tiny_clip_and_coder(capsys):
    """A CLIP made by open_clip, a coder in a folder as Prisma writes them, and pictures and words at random."""
    (program,) = re.findall(r'^```py title="with published weights"\n(.*?)^```', GUIDE, re.MULTILINE | re.DOTALL)
    tests, rng = ROOT / "tests", np.random.default_rng(0)
    for name, tiny in (
        ('"laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"', repr(str(tests / "golden" / "vit" / "open_clip"))),
        ('"folder-of-the-coder"', repr(str(tests / "interpret" / "coders" / "prisma_clip"))),
        ("// 20", "// 2"),
    ):
        assert name in program
        program = program.replace(name, tiny)
    tokens, pictures = rng.integers(3, 28, (9, 7)), rng.normal(size=(4, 3, 12, 12)).astype(np.float32)
    names = dict(np=np, jax=jax, interpret=interpret, tokens=jnp.asarray(tokens), pictures=pictures)
    exec(compile(program, "steer.md", "exec"), names)
    assert names["moved"].shape == (20, 9)
    assert "published: 10.5 %" in capsys.readouterr().out


def test_robust(capsys):
    names, printed = run_guide("robust.md", capsys)
    test, found = names["test"], names["found"]
    assert found.groups.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found.worst[0] < found.average[0] - 0.05  # it goes by the colour
    mended = names["jax"].vmap(names["mended"])(names["jnp"].asarray(names["flat"](test))).argmax(-1)
    np.testing.assert_array_equal(mended, names["said"][names["best"]])
    again = interpret.group_accuracy(names["again"], test.labels, test.attributes)
    assert again.worst > found.worst[0]
    assert "last layer retrained" in printed


def test_the_finding_is_told_in_under_800_words():
    """Tables do not count."""
    lines = (ROOT / "docs" / "guides" / "late-features.md").read_text().splitlines()
    assert 500 < sum(len(line.split()) for line in lines if not line.startswith("|")) < 800
