"""The code of docs/guides/published-vits.md runs, block after block, on tiny networks in place of published ones."""

from pathlib import Path

from pages import run_guide

GOLDEN = Path(__file__).parents[1] / "golden" / "vit"
TINY = {"facebook/dinov2-small": "dinov2_registers", "openai/clip-vit-large-patch14": "clip"}


def test_the_guide_opens_networks_and_trains_one(capsys):
    def tiny(source: str) -> str:
        for name, folder in TINY.items():
            source = source.replace(f'"{name}"', repr(str(GOLDEN / folder)))
        return source.replace("image=224", "image=16").replace("range(300)", "range(100)")

    names, printed = run_guide("published-vits.md", capsys, tiny)
    assert "(4, 4) patches behind 4 tokens of other kinds" in printed
    assert "blocks.1.attention.output_proj.results" in printed
    assert names["results"].shape == (8, 20, 2, 16)
    assert names["moved"].shape == (2,)
    assert names["moved"].min() > 1e-3
    assert names["probabilities"].shape == (2, 4)
    assert names["accuracy"] > 0.5  # ten classes, though credit came late
