"""Coloured digits and pasted words: what agrees with what, what stays as it was, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import datasets
from cetsim.datasets import font, shortcuts

RNG = np.random.default_rng(0)


def grey(count=400, test=200, classes=10):
    def images(n):
        return RNG.uniform(0, 1, (n, 1, 6, 5)).astype(np.float32), (np.arange(n) % classes).astype(np.int32)

    return datasets.Dataset("small", *images(count), *images(test))


def colour_images(count=60, test=40):
    def images(n):
        return RNG.normal(size=(n, 3, 32, 36)).astype(np.float32), (np.arange(n) % 10).astype(np.int32)

    return datasets.Dataset("colours", *images(count), *images(test))


@pytest.mark.parametrize("classes", [2, 10])
def test_colours_agree_with_labels_in_training_and_are_balanced_elsewhere(classes):
    digits = grey()
    made = datasets.coloured_digits(digits, 0.9, classes, validation=0.25, seed=3)
    assert made.name == "coloured small"
    assert [len(part.x) for part in made[1:]] == [300, 100, 200]
    assert (made.train.x.dtype, made.train.labels.dtype, made.train.attributes.dtype) == (
        np.float32, np.int32, np.int32
    )  # fmt: skip
    for label in range(classes):
        agree = made.train.attributes[made.train.labels == label] == label
        assert abs(agree.sum() - 0.9 * len(agree)) <= 0.5
        for part in (made.validation, made.test):
            counts = np.bincount(part.attributes[part.labels == label], minlength=classes)
            assert counts.max() - counts.min() <= 1
    expected = digits.test_y >= 5 if classes == 2 else digits.test_y
    np.testing.assert_array_equal(made.test.labels, expected)
    # The image is the digit times its colour, standardised by the training set.
    x = made.test.x * (span := _span(made, digits, classes)) + _mean(made, digits, classes)
    unit = (digits.test_x - digits.test_x.min()) / np.ptp(digits.test_x)
    colours = np.array(shortcuts.COLOURS[classes])[made.test.attributes]
    np.testing.assert_allclose(x, unit * colours[:, :, None, None], atol=1e-5)
    assert span > 0
    np.testing.assert_allclose([made.train.x.mean(), made.train.x.std()], [0, 1], atol=1e-4)


def _raw(made, digits, classes):
    """Training images before they were standardised, found by their labels and shapes: moments alone are needed."""
    unit = (digits.train_x - digits.train_x.min()) / np.ptp(digits.train_x)
    held, kept = shortcuts._held_out(len(unit), 0.25, np.random.default_rng(3))
    assert set(held) | set(kept) == set(range(len(unit)))
    return unit[kept] * np.array(shortcuts.COLOURS[classes])[made.train.attributes][:, :, None, None]


def _span(made, digits, classes):
    return _raw(made, digits, classes).std()


def _mean(made, digits, classes):
    return _raw(made, digits, classes).mean()


def test_colours_of_ten_classes_that_disagree_are_all_others():
    made = datasets.coloured_digits(grey(2000), 0.5, 10)
    odd = made.train.attributes[(made.train.labels == 4) & (made.train.attributes != 4)]
    assert set(odd) == set(range(10)) - {4}


def test_a_colour_that_stays_while_images_go_by():
    made = datasets.coloured_digits(grey(), 0.9)
    order = datasets.InputOrder(run_length=6)
    frames = order.frames(jax.random.key(0), jnp.asarray(made.train.attributes), 0, 5, 60)
    shown = made.train.attributes[np.asarray(frames.row).ravel()]
    changes = np.flatnonzero(np.diff(shown)) + 1
    assert len(changes) < len(shown) / 6
    assert sorted(np.bincount(shown)) == sorted(np.bincount(made.train.attributes[np.asarray(frames.row).ravel()]))


def test_words_are_pasted_where_they_should_be():
    images = colour_images()
    made = datasets.pasted_words(images, 0.5, validation=0.5, seed=1)
    kept = shortcuts._held_out(60, 0.5, np.random.default_rng(1))[1]
    white, black = images.train_x.max((0, 2, 3)), images.train_x.min((0, 2, 3))
    seen = 0
    for image, plain, label, word in zip(made.train.x, images.train_x[kept], *made.train[1:], strict=True):
        if word == shortcuts.NO_WORD:
            np.testing.assert_array_equal(image, plain)
            continue
        assert word == label
        ink = shortcuts.written(shortcuts.WORDS[word])
        changed = np.argwhere((image != plain).any(0))
        top, left = changed.min(0)
        strip = image[:, top : top + ink.shape[0], left : left + ink.shape[1]]
        np.testing.assert_array_equal(strip, np.where(ink, white[:, None, None], black[:, None, None]))
        rest = np.array(image)
        rest[:, top : top + ink.shape[0], left : left + ink.shape[1]] = plain[
            :, top : top + ink.shape[0], left : left + ink.shape[1]
        ]
        np.testing.assert_array_equal(rest, plain)
        seen += 1
    assert 5 < seen < 25
    test = made.test
    np.testing.assert_array_equal(test.clean.x, images.test_x)
    assert np.all(test.attacked.attributes != test.attacked.labels)
    assert set(test.attacked.attributes) <= set(range(10))
    assert set(test.neutral.attributes) == {shortcuts.NEUTRAL_WORD}
    for version in (test.attacked, test.neutral):
        assert np.all((version.x != images.test_x).any((1, 2, 3)))
        np.testing.assert_array_equal(version.labels, images.test_y)


def test_letters_are_all_different_and_words_fit():
    glyphs = {letter: font.glyph(letter) for letter in font._ROWS}
    assert len(glyphs) == 26
    assert len({g.tobytes() for g in glyphs.values()}) == 26
    picture = "\n".join("".join(".#"[int(p)] for p in row) for row in glyphs["T"])
    assert picture == "#####\n" + "\n".join(["..#.."] * 6)
    assert max(shortcuts.written(word).shape[1] for word in shortcuts.WORDS + shortcuts.NEUTRAL) <= 32


def test_the_same_seed_gives_the_same_images_and_another_gives_others():
    digits, images = grey(), colour_images()
    for make, data in ((datasets.coloured_digits, digits), (datasets.pasted_words, images)):
        one, same, other = (make(data, seed=seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one.train.x, same.train.x)
        assert not np.array_equal(one.train.attributes, other.train.attributes)


def test_what_cannot_be_is_refused():
    digits, images = grey(), colour_images()
    refused = [
        (lambda: datasets.coloured_digits(images), "grey images"),
        (lambda: datasets.coloured_digits(digits, 0.0), r"\(0, 1\]"),
        (lambda: datasets.coloured_digits(digits, classes=3), "2 or 10"),
        (lambda: datasets.coloured_digits(digits, validation=1e-6), "leave both parts"),
        (lambda: datasets.pasted_words(digits), "10 classes"),
        (lambda: datasets.pasted_words(images, share=1.5), r"\[0, 1\]"),
        (lambda: shortcuts.written("é"), "A to Z"),
    ]
    for call, why in refused:
        with pytest.raises(ValueError, match=why):
            call()
