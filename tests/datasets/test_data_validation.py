"""Part of a training set held out for validation."""

import numpy as np
import pytest
from test_data import assert_types

from cetsim import datasets


def small():
    x = np.arange(20, dtype=np.float32).reshape(20, 1, 1, 1)
    return datasets.Dataset("small", x, np.arange(20, dtype=np.int32), -x[:5], -np.arange(5, dtype=np.int32))


def test_split_validation_divides_the_training_set():
    split = datasets.split_validation(small(), 0.25, seed=1)
    assert_types(split)
    assert split.name == "small"
    assert (len(split.train_y), len(split.test_y)) == (15, 5)
    assert sorted([*split.train_y, *split.test_y]) == list(range(20))  # each once, the old test set gone
    np.testing.assert_array_equal(split.train_x[:, 0, 0, 0], split.train_y)
    np.testing.assert_array_equal(split.test_x[:, 0, 0, 0], split.test_y)


def test_split_validation_is_the_last_part_of_a_seeded_shuffle():
    order = [
        *datasets.split_validation(small(), 0.25, seed=1).train_y,
        *datasets.split_validation(small(), 0.25, 1).test_y,
    ]
    narrow = datasets.split_validation(small(), 0.1, seed=1)
    assert [*narrow.train_y, *narrow.test_y] == order
    assert order != list(range(20))
    assert [*datasets.split_validation(small(), 0.1, seed=2).train_y] != [*narrow.train_y]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_validation_fraction_out_of_range(fraction):
    wanted = r"in \(0, 1\)" if np.isfinite(fraction) else "finite"
    with pytest.raises(ValueError, match=f"`fraction` must be {wanted}, got {fraction}"):
        datasets.split_validation(small(), fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_validation_fraction_that_leaves_a_part_empty(fraction):
    with pytest.raises(ValueError, match=f"leave both parts an example, got {fraction} of 20"):
        datasets.split_validation(small(), fraction, seed=0)
