"""Coloured digits at a place, with captions, "a red seven, left": a world small enough for a CLIP of one's own."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from cetsim.datasets.published import Dataset
from cetsim.datasets.shortcuts import unit_range

CAPTION_COLOURS = {
    "red": (1.0, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.25, 0.35, 1.0), "yellow": (1.0, 0.95, 0.1),
    "purple": (0.7, 0.15, 0.9), "white": (1.0, 1.0, 1.0),
}  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("left", "right")
VOCABULARY = ("a", *CAPTION_COLOURS, *DIGITS, *PLACES, "<end>")  # the end of a text is the largest number


class Captioned(NamedTuple):
    """Images and what their captions say.

    **Fields:** `x`: `[n, 3, height, 2 * height]`. `captions`: numbers of words in `VOCABULARY`, `[n, 5]`. `facts`:
    numbers of colour, digit and place, `[n, 3]`.
    """

    x: Float32[np.ndarray, "n 3 height width"]
    captions: Int32[np.ndarray, "n 5"]
    facts: Int32[np.ndarray, "n 3"]


class CaptionedDigits(NamedTuple):
    """A training and a test set."""

    name: str
    train: Captioned
    test: Captioned


def captioned_digits(digits: Dataset, seed: int = 0) -> CaptionedDigits:
    """Each digit once, in a colour and in one half of a black picture twice as wide, both drawn at random.

    Pixels are standardised by the training set's mean and deviation.

    **Arguments:** `digits`: grey images of digits, such as MNIST. `seed`: of colours and places.

    **Raises:** ValueError for images in colour, or labels that are no digits.
    """
    if digits.train_x.shape[1] != 1 or max(digits.train_y.max(), digits.test_y.max()) > 9:
        raise ValueError(f"`digits` must be grey images of 0 to 9, got {digits.name} of {digits.train_x.shape[1:]}")
    rng = np.random.default_rng(seed)
    train, test = (_drawn(unit_range(x), y, rng) for x, y in _sets(digits))
    mean, sd = train.x.mean(dtype=float), train.x.std(dtype=float)
    scaled = (own._replace(x=((own.x - mean) / sd).astype(np.float32)) for own in (train, test))
    return CaptionedDigits(f"captioned {digits.name}", *scaled)


def captions_of(facts) -> Int32[np.ndarray, "n 5"]:
    """Captions of colours, digits and places `[n, 3]`, as numbers of words: a COLOUR DIGIT PLACE <end>."""
    facts = np.asarray(facts)
    first = np.array([VOCABULARY.index(words[0]) for words in (tuple(CAPTION_COLOURS), DIGITS, PLACES)])
    words = np.full((len(facts), 5), VOCABULARY.index("a"), np.int32)
    words[:, 1:4], words[:, 4] = facts + first, len(VOCABULARY) - 1
    return words


def all_facts() -> Int32[np.ndarray, "captions 3"]:
    """Every colour, digit and place there is, each combination once."""
    return np.indices((len(CAPTION_COLOURS), len(DIGITS), len(PLACES))).reshape(3, -1).T.astype(np.int32)


def _sets(digits: Dataset):
    return (digits.train_x, digits.train_y), (digits.test_x, digits.test_y)


def _drawn(grey, labels, rng) -> Captioned:
    colours, places = rng.integers(len(CAPTION_COLOURS), size=len(grey)), rng.integers(2, size=len(grey))
    coloured = grey * np.array(list(CAPTION_COLOURS.values()), np.float32)[colours][:, :, None, None]
    wide = np.zeros((*coloured.shape[:3], 2, coloured.shape[3]), np.float32)
    wide[np.arange(len(grey)), :, :, places] = coloured
    facts = np.stack([colours, labels, places], 1).astype(np.int32)
    return Captioned(wide.reshape(*wide.shape[:3], -1), captions_of(facts), facts)
