"""Grids, and the batches that they come in: every condition once, whatever the sizes."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cetsim.sweep.files import digest
from cetsim.sweep.grid import grid, in_batches, parse_shard, share

CONDITIONS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**6)), unique=True, max_size=60)


def group_of(condition):
    return condition[0]


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
        ({"seed": ()}, "the axis `seed` must have at least one value, got none"),
        ({"seed": (0, 1), "rate": iter(())}, "the axis `rate` must have at least one value"),
        ({"rate": (0.1, 0.2, 0.1)}, r"the axis `rate` must not repeat a value, got \[0.1, 0.2, 0.1\]"),
        ({"on": (1, True)}, "the axis `on` must not repeat a value"),
        ({"sizes": ([3], [4], [3])}, "the axis `sizes` must not repeat a value"),
    ],
)
def test_an_axis_needs_values_that_differ(axes, message):
    with pytest.raises(ValueError, match=message):
        grid(**axes)


@given(CONDITIONS, st.integers(1, 20), st.integers(1, 4))
def test_every_condition_is_in_one_batch(conditions, size, multiple):
    batches = in_batches(conditions, group_of, size, multiple)
    assert Counter(itertools.chain(*(batch.conditions for batch in batches))) == Counter(conditions)
    for group, own in itertools.groupby(batches, lambda batch: batch.group):  # those of a group follow each other
        own = list(own)
        together = [condition for batch in own for condition in batch.conditions]
        assert together == [condition for condition in conditions if group_of(condition) == group]
        (width,) = {batch.width for batch in own}
        assert width % multiple == 0
        assert all(1 <= len(batch.conditions) <= size for batch in own)
        longest = max(len(batch.conditions) for batch in own)
        assert width - multiple < longest <= width  # no lane more than is needed
        assert len(own) == -(-len(together) // size)  # as few batches as can be
    groups = [group for group, _ in itertools.groupby(batch.group for batch in batches)]
    assert groups == list(dict.fromkeys(map(group_of, conditions)))


def test_batches_of_a_group_are_even():
    sizes = lambda count: [len(batch.conditions) for batch in in_batches(range(count), type, 16)]  # noqa: E731
    assert [sizes(17), sizes(16), sizes(40), sizes(0)] == [[9, 8], [16], [14, 14, 12], []]


@pytest.mark.parametrize(("size", "got"), [(0, "0"), (-3, "-3")])
def test_a_batch_has_room_for_one_at_least(size, got):
    with pytest.raises(ValueError, match=f"`size` must be at least 1, got {got}"):
        in_batches([1, 2], bool, size)


@given(CONDITIONS, st.integers(1, 5), st.integers(1, 7))
def test_shares_are_the_whole(conditions, size, count):
    batches = in_batches(conditions, group_of, size)
    parts = [share(batches, f"{index + 1}/{count}") for index in range(count)]
    assert Counter(itertools.chain(*parts)) == Counter(batches)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


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
