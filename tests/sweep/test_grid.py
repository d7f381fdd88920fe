"""Grids, and the batches that they come in: every condition once, whatever the sizes."""

import itertools
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetsim.sweep.grid import digest, grid, in_batches, parse_shard


class Numbered(NamedTuple):
    """A run as far as batches know of it."""

    group: str
    number: int


RUNS = st.lists(st.builds(Numbered, st.sampled_from("abc"), st.integers(0, 10**6)), unique=True, max_size=60)


def test_a_grid_is_every_combination_and_the_last_axis_varies_fastest():
    assert grid(trace=("ET", "CET"), seed=range(2)) == [
        {"trace": "ET", "seed": 0},
        {"trace": "ET", "seed": 1},
        {"trace": "CET", "seed": 0},
        {"trace": "CET", "seed": 1},
    ]
    assert grid(rates=iter([[0.1, 0.2], [0.1]])) == [{"rates": [0.1, 0.2]}, {"rates": [0.1]}]
    assert grid() == [{}]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"seed": ()}, "the axis `seed` must have values, none of them twice, got \\[\\]"),
        ({"seed": (0, 1), "rate": iter(())}, "the axis `rate` must have values"),
        ({"rate": (0.1, 0.2, 0.1)}, r"the axis `rate` must have values, none of them twice, got \[0.1, 0.2, 0.1\]"),
        ({"on": (1, True)}, "the axis `on` must have values, none of them twice"),
        ({"sizes": ([3], [4], [3])}, "the axis `sizes` must have values, none of them twice"),
    ],
)
def test_an_axis_needs_values_that_differ(axes, message):
    with pytest.raises(ValueError, match=message):
        grid(**axes)


@given(RUNS, st.integers(1, 20), st.integers(1, 4))
def test_every_run_is_in_one_batch(runs, size, multiple):
    batches = in_batches(runs, size, multiple)
    assert Counter(run for batch, _ in batches for run in batch) == Counter(runs)
    group_of = lambda batch: batch[0][0].group  # noqa: E731
    for group, alike in itertools.groupby(batches, group_of):  # those of a group follow each other
        alike = list(alike)
        together = [run for batch, _ in alike for run in batch]
        assert together == [run for run in runs if run.group == group]
        (width,) = {width for _, width in alike}
        assert width % multiple == 0
        assert all(1 <= len(batch) <= size for batch, _ in alike)
        longest = max(len(batch) for batch, _ in alike)
        assert width - multiple < longest <= width  # no slot more than is needed
        assert len(alike) == -(-len(together) // size)  # as few batches as can be
    groups = [group for group, _ in itertools.groupby(map(group_of, batches))]
    assert groups == list(dict.fromkeys(run.group for run in runs))


def test_batches_of_a_group_are_even():
    runs = lambda count: [Numbered("a", number) for number in range(count)]  # noqa: E731
    sizes = lambda count: [len(batch) for batch, _ in in_batches(runs(count), 16)]  # noqa: E731
    assert [sizes(17), sizes(16), sizes(40), sizes(0)] == [[9, 8], [16], [14, 14, 12], []]


@pytest.mark.parametrize(("text", "expected"), [("1/1", (1, 1)), ("2/3", (2, 3)), ("12/12", (12, 12))])
def test_a_shard(text, expected):
    assert parse_shard(text) == expected


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "", "1/2/3", "1.0/2", " 1/2", "1/2 ", "/", "²/3", "+1/2"]
)
def test_mistakes_in_a_shard(text):
    with pytest.raises(ValueError, match="--shard must be i/n with 1 <= i <= n, got"):
        parse_shard(text)


def test_a_hash_is_of_the_values_alone():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert len({digest({"a": value}) for value in (1, 1.5, True, "1", None, [1])}) == 6
