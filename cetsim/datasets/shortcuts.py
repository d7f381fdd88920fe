"""Data with a shortcut: what is seen besides the label agrees with it in training, and not in the test.

*Coloured digits* have the structure of Waterbirds. *Pasted words* are typographic attacks on CIFAR-10.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from cetsim import checks
from cetsim.datasets.font import HEIGHT, WIDTH, glyph
from cetsim.datasets.published import Dataset

COLOURS = {
    2: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    10: (
        (0.12, 0.47, 0.71), (1.0, 0.5, 0.05), (0.17, 0.63, 0.17), (0.84, 0.15, 0.16), (0.58, 0.4, 0.74),
        (0.55, 0.34, 0.29), (0.89, 0.47, 0.76), (0.5, 0.5, 0.5), (0.74, 0.74, 0.13), (0.09, 0.75, 0.81),
    ),
}  # fmt: skip
WORDS = ("PLANE", "AUTO", "BIRD", "CAT", "DEER", "DOG", "FROG", "HORSE", "SHIP", "TRUCK")  # of CIFAR-10's classes
NEUTRAL = ("MUSIC", "LEMON", "RIVER", "CHALK")  # that name no class
NO_WORD, NEUTRAL_WORD = -1, -2


class Grouped(NamedTuple):
    """Images with what should be told, and what is seen besides.

    **Fields:** `x`: `[n, channels, height, width]`. `labels`, `attributes`: `[n]`; a group is the images that agree in
    both.
    """

    x: Float32[np.ndarray, "n channels height width"]
    labels: Int32[np.ndarray, "n"]
    attributes: Int32[np.ndarray, "n"]


class Shortcut(NamedTuple):
    """A training set with a shortcut, and sets without: labels and attributes agree as often as chance has it."""

    name: str
    train: Grouped
    validation: Grouped
    test: Grouped


class Attacked(NamedTuple):
    """The same images without a word, with a class's that is not theirs, and with a word that names none.

    Attributes are the class of the word, `NO_WORD` or `NEUTRAL_WORD`.
    """

    clean: Grouped
    attacked: Grouped
    neutral: Grouped


class PastedWords(NamedTuple):
    """A training set in which words tell the class, and sets in three versions each."""

    name: str
    train: Grouped
    validation: Attacked
    test: Attacked


def coloured_digits(digits: Dataset, agreement=0.95, classes: int = 2, validation=0.1,
                    seed: int = 0) -> Shortcut:  # fmt: skip
    """Digits in colours that give the label away in training.

    With two classes the label is whether the digit is 5 or more, and colours are red and green: four groups, as in
    Waterbirds. With ten the label is the digit, each with a colour of its own: a hundred groups. In validation and test
    set every label has all colours equally often. Pixels are standardised by the training set's mean and deviation.

    For colours that stay while images go by, show the training set by the attribute:
    `InputOrder(run_length=16).frames(key, train.attributes, ...)`.

    **Arguments:** `digits`: grey images of digits, such as MNIST. `agreement`: share of each label's training images
    that have its colour, above 0; the others have the other colours equally often. `classes`: 2 or 10. `validation`:
    share of the training images that is held out. `seed`: of what is random.

    **Raises:** ValueError for images in colour, labels that are no digits, or an argument outside its range.
    """
    if classes not in COLOURS:
        raise ValueError(f"`classes` must be 2 or 10, got {checks.shown(classes)}")
    checks.require_within("agreement", agreement, "(0, 1]")
    if digits.train_x.shape[1] != 1 or max(digits.train_y.max(), digits.test_y.max()) > 9:
        raise ValueError(f"`digits` must be grey images of 0 to 9, got {digits.name} of {digits.train_x.shape[1:]}")
    rng, colours = np.random.default_rng(seed), np.array(COLOURS[classes], np.float32)
    held, kept = _held_out(len(digits.train_y), validation, rng)
    grey, grey_test = unit_range(digits.train_x), unit_range(digits.test_x)
    label_of = lambda y: (y >= 5).astype(np.int32) if classes == 2 else y.astype(np.int32)  # noqa: E731
    parts = {}
    for name, x, y, share in (
        ("train", grey[kept], digits.train_y[kept], agreement),
        ("validation", grey[held], digits.train_y[held], None),
        ("test", grey_test, digits.test_y, None),
    ):
        labels = label_of(y)
        attributes = _attributes(labels, classes, share, rng)
        parts[name] = Grouped(x * colours[attributes][:, :, None, None], labels, attributes)
    mean, sd = parts["train"].x.mean(dtype=float), parts["train"].x.std(dtype=float)
    parts = {name: own._replace(x=((own.x - mean) / sd).astype(np.float32)) for name, own in parts.items()}
    return Shortcut(f"coloured {digits.name}", **parts)


def pasted_words(images: Dataset, share=0.5, validation=0.1, seed: int = 0) -> PastedWords:
    """CIFAR-10 with words: half of the training images bear the name of their class, in white on black.

    A network that reads learns to go by the words, as one that saw captions in its images did. Validation and test
    images come in three versions: without a word, with that of another class (an attack), and with one of no class.

    **Arguments:** `images`: of ten classes, three channels and at least 32 x 32 pixels. `share`: of the training images
    that bear their word. `validation`, `seed`: as of `coloured_digits`.

    **Raises:** ValueError for other images, or an argument outside its range.
    """
    shape = images.train_x.shape[1:]
    if shape[0] != 3 or min(shape[1:]) < 32 or max(images.train_y.max(), images.test_y.max()) > 9:
        raise ValueError(f"`images` must be of 10 classes, [3, 32, 32] or larger, got {images.name} of {list(shape)}")
    checks.require_within("share", share, "[0, 1]")
    rng = np.random.default_rng(seed)
    held, kept = _held_out(len(images.train_y), validation, rng)
    ends = [f(images.train_x, axis=(0, 2, 3)) for f in (np.min, np.max)]  # black and white, by channel
    y = images.train_y[kept]
    words = np.where(rng.uniform(size=len(y)) < share, y, NO_WORD).astype(np.int32)
    train = Grouped(_pasted(images.train_x[kept], words, ends, rng), y, words)

    def versions(x, y) -> Attacked:
        other = ((y + rng.integers(1, 10, len(y))) % 10).astype(np.int32)
        kinds = [np.full(len(y), NO_WORD, np.int32), other, np.full(len(y), NEUTRAL_WORD, np.int32)]
        return Attacked(*(Grouped(_pasted(x, words, ends, rng), y, words) for words in kinds))

    test = versions(images.test_x, images.test_y)
    return PastedWords(f"words on {images.name}", train, versions(images.train_x[held], images.train_y[held]), test)


def _held_out(count: int, share, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows held out, and the others."""
    checks.require_within("validation", share, "(0, 1)")
    held = round(share * count)
    if not 0 < held < count:
        raise ValueError(f"`validation` must leave both parts an example, got {share!r} of {count}")
    order = rng.permutation(count)
    return order[:held], order[held:]


def _attributes(labels, kinds: int, agreement, rng) -> np.ndarray:
    """An attribute for each label: its own for a share of them, the others in turn; all in turn for None."""
    found = np.empty(len(labels), np.int32)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        turn = np.arange(len(rows))
        if agreement is None:
            found[rows] = (turn + rng.integers(kinds)) % kinds
            continue
        agree = round(agreement * len(rows))
        found[rows[:agree]] = label
        found[rows[agree:]] = (label + 1 + turn[: len(rows) - agree] % (kinds - 1)) % kinds
    return found


def unit_range(x) -> np.ndarray:
    """Pixels from 0 to 1."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low)


def _pasted(x, words, ends, rng) -> np.ndarray:
    """A copy of the images with the words of classes, or a neutral one, at random places."""
    x = np.array(x, np.float32)
    black, white = (end.astype(np.float32)[:, None, None] for end in ends)
    for image, word in zip(x, words, strict=True):
        if word == NO_WORD:
            continue
        text = NEUTRAL[rng.integers(len(NEUTRAL))] if word == NEUTRAL_WORD else WORDS[word]
        ink = written(text)
        top, left = (int(rng.integers(size - own + 1)) for size, own in zip(image.shape[1:], ink.shape, strict=True))
        place = (slice(None), slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
        image[place] = np.where(ink[None], white, black)
    return x


def written(text: str) -> np.ndarray:
    """A word as a strip of pixels, true where there is ink, `[9, 6 letters + 1]`.

    **Raises:** ValueError for other letters than A to Z.
    """
    strip = np.zeros((HEIGHT + 2, (WIDTH + 1) * len(text) + 1), bool)
    for i, letter in enumerate(text):
        strip[1:-1, 1 + (WIDTH + 1) * i : (WIDTH + 1) * (i + 1)] = glyph(letter)
    return strip
