"""The experiments steering and suppression from end to end, and what they make of numbers."""

import numpy as np
import pandas as pd
import pytest
from experiment import error_of, output_of

from cetsim import datasets
from experiments import steering, suppression
from experiments.common import suppressed

SIZES = [
    "--hidden", 16, 16, "--network-steps", 20, "--latents", 24, "--k", 3,
    "--steps", 10, "--batch", 32, "--seeds", 1,
]  # fmt: skip


def test_steering(tmp_path):
    options = [*SIZES, "--features", 5, "--images", 10, "--strengths", 1, 4, "--out", tmp_path]
    said = output_of("steering", *options)
    assert "digits (8x8), hidden 2: directions that steer" in said
    rows = pd.read_csv(tmp_path / "steering" / "results.csv")
    assert set(rows["site"]) == {"hidden 1", "hidden 2"}
    shares = rows[rows["metric"].isin(["steerable", "steerable_random", "above_random"])]
    assert len(shares) == 2 * 2 * 2 * 3  # sites, kinds, strengths, metrics
    assert shares["value"].between(0, 1).all()
    assert rows.loc[rows["metric"] == "score", "value"].between(0, 2).all()
    again = output_of("steering", *options)  # nothing is run again
    assert "hidden 1, seed 0" not in again
    assert output_of("steering", *options, "--plot-only").count("figure:") == 2


def test_steering_at_tokens_of_a_transformer(tmp_path):
    sizes = ["--network", "vit", "--width", 8, "--blocks", 1, *SIZES[3:]]
    options = [*sizes, "--features", 3, "--images", 5, "--strengths", 4, "--examples", 64, "--out", tmp_path]
    said = output_of("steering", *options)
    assert "L0, cls" in said
    rows = pd.read_csv(tmp_path / "steering" / "results.csv")
    assert set(rows["kind"].dropna()) == {"latents", "neurons", steering.CLASS, steering.PATCHES}
    score = rows[rows["metric"] == "score"].set_index("kind")["value"]
    assert score[steering.PATCHES] == 0  # nothing reads the patches behind the last block
    assert score[steering.CLASS] > 0


def test_steering_a_clip_by_its_captions(tmp_path):
    sizes = ["--network", "clip", "--width", 8, "--blocks", 1, "--network-steps", 2, *SIZES[5:]]
    options = [*sizes, "--features", 3, "--images", 5, "--strengths", 4, "--examples", 64, "--out", tmp_path]
    said = output_of("steering", *options)
    assert "digits (8x8), hidden 1: directions that steer" in said
    rows = pd.read_csv(tmp_path / "steering" / "results.csv")
    assert set(rows["kind"].dropna()) == {"latents", "neurons", steering.CLASS, steering.PATCHES}
    assert set(rows["architecture"]) == {"clip"}


def test_what_directions_move():
    """The first moves red at the cost of blue whatever the digit, the second one digit, the third nothing."""
    facts, options = datasets.all_facts(), steering.Options(strengths=(1.0,))
    delta = np.zeros((3, 1, len(facts)))
    delta[0, 0] = 0.3 * ((facts[:, 0] == 0) / 1.0 - (facts[:, 0] == 1))
    delta[1, 0, facts[:, 1] == 3] = 0.2
    found = {row["metric"]: row["value"] for row in steering.parts_moved("latents", delta, options)}
    assert found == {"moves_colour": 0.5, "moves_digit": 0.5, "moves_place": 0.0}
    assert steering.parts_moved("latents", delta[2:], options) == []


def test_effects_of_directions():
    options = steering.Options(strengths=(1.0, 2.0))
    delta = np.zeros((4, 2, 3))
    delta[0, 1], delta[1, 1] = [0.4, -0.1, -0.3], [-0.3, 0.2, 0.1]
    words = np.eye(3)
    found = steering.effects("latents", np.tile([1.0, 2.0], (4, 1)), delta, delta / 10, words, options)
    value = {(row["metric"], row.get("strength")): row["value"] for row in found}
    assert value["steerable", 2.0] == 0.5
    assert value["above_random", 2.0] == 0.5
    assert value["steerable", 1.0] == value["steerable_random", 2.0] == 0
    assert value["concepts", 2.0] == 2
    assert value["reach", None] == 0.5
    assert value["others_rise", None] == pytest.approx((0.0 + 0.1) / 2)
    assert value["disentanglement", None] == pytest.approx((0.2 / 0.4 + 0.2 / 0.6) / 2)
    assert ("others_rise_random", None) not in value
    assert value["specificity", 2.0] == pytest.approx((0.26 / 0.4 + 0.14 / 0.2) / 2)
    assert value["directional_random", 2.0] == pytest.approx(
        np.mean([0.16 - 0.01 - 0.09, -0.09 + 0.04 + 0.01, 0, 0]) / 100
    )
    far = [np.linalg.norm(own - 3**-0.5) for own in delta[:, 1]]
    assert value["polysemanticity", 2.0] == pytest.approx(np.mean(far))
    plain = steering.effects("latents", np.tile([1.0, 2.0], (4, 1)), delta, delta / 10, None, options)
    assert "polysemanticity" not in {row["metric"] for row in plain}


def test_suppression(tmp_path):
    options = [*SIZES, "--counts", 0, 2, 8, "--out", tmp_path]
    said = output_of("suppression", *options)
    assert "last layer retrained" in said
    rows = pd.read_csv(tmp_path / "suppression" / "results.csv")
    test = rows[(rows["part"] == "test") & (rows["kind"] != "last layer")]
    assert len(test) == 2 * 4 * 3 * 4  # sites, kinds of set, numbers, metrics
    off = rows[rows["metric"] == "switched_off"]
    assert (off.groupby(["site", "kind"])["value"].nunique() == 8).all()  # as many as the largest number, in order
    still = test[test["suppressed"] == 0].groupby("metric")["value"]
    assert (still.nunique() == 1).all()  # nothing off is the network as it is, in every kind and layer
    assert still.first()["collateral"] == 0
    assert output_of("suppression", *options, "--plot-only").count("figure:") == 2


def test_words_are_measured_by_version():
    labels = np.tile(np.arange(10), 3).astype(np.int32)
    attributes = np.repeat([-1, 0, -2], 10)
    attributes[10:20] = (labels[10:20] + 1) % 10
    part = suppressed.Part(np.zeros((30, 1)), labels, attributes, np.repeat(np.arange(3), 10))
    said = labels.copy()
    said[10:15] = attributes[10:15]  # five attacks succeed
    rows = suppressed.accuracies(part, np.stack([said, labels]), said, dict(kind="latents"), [0, 1])
    value = {(row["metric"], row["suppressed"]): row["value"] for row in rows}
    assert value["success", 0] == 0.5
    assert value["attacked", 0] == 0.5
    assert value["clean", 0] == value["neutral", 0] == value["worst", 1] == 1
    assert value["worst", 0] == value["success", 1] == value["collateral", 1] == 0


def test_the_number_of_latents_is_chosen_on_validation_images():
    rows = pd.DataFrame([
        dict(run="a", kind="latents", site="hidden 1", part=part, metric=metric, suppressed=m, value=value)
        for part, metric, values in (
            ("validation", "worst", (0.1, 0.6, 0.5)), ("test", "worst", (0.2, 0.4, 0.7)), ("test", "average", (1, 2, 3))
        )
        for m, value in zip((0, 4, 8), values, strict=True)
    ])  # fmt: skip
    found = suppressed.chosen(rows).set_index("metric")["value"]
    assert found.to_dict() == {"worst": 0.4, "average": 2}


def test_versions_of_words_are_three_groups_a_class():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3, 32, 32)).astype(np.float32), (np.arange(40) % 10).astype(np.int32)
    made = datasets.pasted_words(datasets.Dataset("images", x, y, x, y), 0.5)
    part = suppression.versions(made.test)
    assert part.x.shape == (120, 3, 32, 32)
    assert np.bincount(part.kinds).tolist() == [40, 40, 40]
    np.testing.assert_array_equal(part.x[:40], x)
    np.testing.assert_array_equal(part.attributes[80:], -2)


def test_what_cannot_be_is_refused(capsys):
    assert "at most the 256 latents" in error_of(capsys, "steering", "--k", 300)
    assert "cnn for cifar10 alone" in error_of(capsys, "steering", "--network", "cnn")
    clip = ["--network", "clip", "--dataset", "cifar10"]
    assert "clip for digits or mnist" in error_of(capsys, "steering", *clip)
    assert "a multiple of the 4 heads" in error_of(capsys, "steering", "--width", 10)
    assert "ascending" in error_of(capsys, "steering", "--strengths", 2, 1)
    assert "ascending from 0" in error_of(capsys, "suppression", "--counts", 1, 2)
    assert "to half of the latents" in error_of(capsys, "suppression", "--counts", 0, 200)
    assert "--classes must be 2 or 10" in error_of(capsys, "suppression", "--classes", 3)
