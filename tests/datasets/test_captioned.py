"""Captioned digits: a picture shows what its caption says."""

import numpy as np
import pytest

from cetsim import datasets
from cetsim.datasets.captioned import CAPTION_COLOURS, DIGITS, PLACES


def test_pictures_show_what_captions_say():
    digits = datasets.load("digits")
    made = datasets.captioned_digits(digits, seed=3)
    colours = np.array(list(CAPTION_COLOURS.values()))
    for own, y in ((made.train, digits.train_y), (made.test, digits.test_y)):
        assert own.x.shape == (len(y), 3, 8, 16)
        np.testing.assert_array_equal(own.facts[:, 1], y)
        black = made.train.x.min()
        for picture, caption, (colour, digit, place) in list(zip(own.x, own.captions, own.facts, strict=True))[:200]:
            words = [datasets.VOCABULARY[word] for word in caption]
            assert words == ["a", list(CAPTION_COLOURS)[colour], DIGITS[digit], PLACES[place], "<end>"]
            halves = picture[:, :, :8], picture[:, :, 8:]
            assert np.all(halves[1 - place] == black)
            lit = (halves[place] - black).max((1, 2))
            np.testing.assert_allclose(lit / lit.max(), colours[colour] / colours[colour].max(), rtol=1e-5)
    assert len(np.unique(made.train.facts[:, [0, 2]], axis=0)) == len(CAPTION_COLOURS) * 2
    assert abs(made.train.x.mean()) < 1e-4
    assert abs(made.train.x.std() - 1) < 1e-4
    np.testing.assert_array_equal(made.test.x, datasets.captioned_digits(digits, seed=3).test.x)


def test_every_caption_there_is():
    every = datasets.all_facts()
    captions = datasets.captions_of(every)
    assert len(np.unique(captions, axis=0)) == len(every) == 120
    assert captions.argmax(1).tolist() == [4] * 120  # the text is read at its end


def test_images_in_colour_are_refused():
    digits = datasets.load("digits")
    coloured = digits._replace(train_x=np.repeat(digits.train_x, 3, axis=1))
    with pytest.raises(ValueError, match="`digits` must be grey images of 0 to 9, got digits"):
        datasets.captioned_digits(coloured)
