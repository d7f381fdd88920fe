"""What is shown when: every order against a literal loop on the host, and the same frames however a run is cut."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim.datasets import Frames, InputOrder

EXAMPLES, BATCH, EPOCHS = 53, 8, 20
COUNTS = (11, 19, 16, 7)  # images of each class
KEY = jax.random.key(7)
PLAIN = InputOrder()
ALL = InputOrder(run_length=4, interpolation=3, flip=True)
KINDS = (PLAIN, InputOrder(run_length=4), InputOrder(interpolation=3), InputOrder(flip=True), ALL)


def labels_of(seed=0):
    """Labels of 53 images of 4 classes, in no order."""
    return jnp.asarray(np.random.default_rng(seed).permutation(np.repeat(np.arange(4), COUNTS)))


def images(dtype=float):
    """53 images of 2 channels, 3 high and 5 wide."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(EXAMPLES, 2, 3, 5)), dtype)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def compiled(kind, key, labels, step, steps, batch):
    return kind.frames(key, labels, step, steps, batch)


def frames(kind, step, steps, batch=BATCH, labels=None, key=KEY):
    return compiled(kind, key, labels_of() if labels is None else labels, step, steps, batch)


def orders(kind, epochs=EPOCHS, labels=None):
    """Images of whole epochs `[epochs, examples]`: with a batch of one, an epoch is cut off nowhere."""
    return np.asarray(frames(kind, 0, epochs * EXAMPLES, 1, labels).row).reshape(epochs, EXAMPLES)


def runs(order, labels):
    """Lengths of the segments of one class in an order, by class."""
    lengths = {}
    for kind, segment in itertools.groupby(np.asarray(labels)[order].tolist()):
        lengths.setdefault(kind, []).append(len(list(segment)))
    return lengths


class TestShuffle:
    @pytest.mark.parametrize("step", [0, 1, 5, 6, 40])
    def test_the_plain_order_is_the_one_that_committed_results_were_made_with(self, step):
        """`train` as of 0.1.0, bit for bit: the whole epochs around the batches asked for, and what is cut of them."""
        steps, per_epoch = 14, EXAMPLES // BATCH
        epochs = [jax.random.permutation(jax.random.fold_in(KEY, epoch), EXAMPLES) for epoch in range(10)]
        rows = np.stack(epochs)[:, : per_epoch * BATCH].reshape(-1, BATCH)
        shown = frames(PLAIN, step, steps)
        np.testing.assert_array_equal(shown.row, rows[step : step + steps])
        assert not np.any(shown.weight)
        assert not np.any(shown.flip | shown.flip_following)

    def test_the_first_images_by_number(self):
        """Numbers, in case `permutation` itself ever changes."""
        assert orders(PLAIN)[0, :8].tolist() == [37, 1, 39, 2, 40, 48, 25, 32]

    @pytest.mark.parametrize("kind", [PLAIN, InputOrder(run_length=4), InputOrder(run_length=7)], ids=str)
    def test_every_epoch_is_a_permutation_of_its_own(self, kind):
        shown = orders(kind)
        np.testing.assert_array_equal(np.sort(shown, 1), np.tile(np.arange(EXAMPLES), (EPOCHS, 1)))
        assert len({tuple(order) for order in shown.tolist()}) == EPOCHS

    @pytest.mark.parametrize("kind", [PLAIN, ALL], ids=str)
    def test_the_same_key_gives_the_same_frames_and_another_key_others(self, kind):
        first, again, other = (frames(kind, 3, 6, key=jax.random.key(seed)) for seed in (1, 1, 2))
        for left, right in zip(first, again, strict=True):
            np.testing.assert_array_equal(left, right)
        assert not np.array_equal(first.row, other.row)

    @pytest.mark.parametrize(("kind", "batch"), [(PLAIN, BATCH), (ALL, BATCH), (PLAIN, EXAMPLES), (ALL, 1)], ids=str)
    def test_pieces_of_any_length_join(self, kind, batch):
        cuts = (0, 1, 2, 9, 10, 17, 24, 31)
        whole = frames(kind, 0, cuts[-1], batch)
        pieces = [frames(kind, start, stop - start, batch) for start, stop in itertools.pairwise(cuts)]
        for name, field, *parts in zip(Frames._fields, whole, *pieces, strict=True):
            assert field.shape == (cuts[-1], batch)
            np.testing.assert_array_equal(field, np.concatenate(parts), err_msg=name)

    def test_runs_of_a_program_mapped_over_keys_and_steps(self):
        keys, steps = jax.random.split(KEY, 3), jnp.array([0, 5, 17])
        together = jax.vmap(lambda key, step: ALL.frames(key, labels_of(), step, 6, BATCH))(keys, steps)
        for i in range(3):
            for field, alone in zip(together, frames(ALL, steps[i], 6, key=keys[i]), strict=True):
                np.testing.assert_array_equal(field[i], alone)


class TestRuns:
    @pytest.mark.parametrize("length", [2, 4, 7])
    def test_segments_of_a_class_are_whole_runs_and_one_rest(self, length):
        for order in orders(InputOrder(length)):
            for kind, lengths in runs(order, labels_of()).items():
                assert sum(lengths) == COUNTS[kind]
                rest = COUNTS[kind] % length
                uneven = [n % length for n in lengths if n % length]  # of several runs side by side, too
                assert uneven == ([rest] if rest else [])

    @pytest.mark.parametrize("length", [2, 4])
    def test_against_a_loop_on_the_host(self, length):
        labels = np.asarray(labels_of())
        for epoch, order in enumerate(orders(InputOrder(length))[:3]):
            within, between = jax.random.split(jax.random.fold_in(KEY, epoch))
            shuffled = np.asarray(jax.random.permutation(within, EXAMPLES))
            cut = []
            for kind in range(4):
                mine = [image for image in shuffled.tolist() if labels[image] == kind]
                cut += [mine[start : start + length] for start in range(0, len(mine), length)]
            rank = np.asarray(jax.random.permutation(between, EXAMPLES))
            expected = [image for place in np.argsort(rank[: len(cut)]) for image in cut[place]]
            assert order.tolist() == expected

    def test_classes_that_are_not_numbered_from_0_or_are_missing(self):
        labels = 5 * labels_of() + 3
        for order, same in zip(orders(InputOrder(4), labels=labels), orders(InputOrder(4)), strict=True):
            np.testing.assert_array_equal(order, same)

    def test_any_run_and_any_image_may_come_first(self):
        """Over 4000 epochs, within 6σ: a class begins as often as it has runs, each of its images as any other."""
        first = orders(InputOrder(4), 4000)[:, 0]
        labels, epochs = np.asarray(labels_of()), len(first)
        many = np.array([-(-count // 4) for count in COUNTS])
        for kind, share in enumerate(many / many.sum()):
            mine = first[labels[first] == kind]
            assert abs(len(mine) - epochs * share) < 6 * np.sqrt(epochs * share * (1 - share))
            each = share / COUNTS[kind]
            for image in np.flatnonzero(labels == kind):
                assert abs(np.sum(mine == image) - epochs * each) < 6 * np.sqrt(epochs * each)

    def test_one_run_of_a_whole_class(self):
        labels = jnp.tile(jnp.arange(3), 4)
        shown = InputOrder(4).frames(KEY, labels, 0, 12, 1).row[:, 0]
        assert sorted(runs(shown, labels).items()) == [(0, [4]), (1, [4]), (2, [4])]


class TestShow:
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-6)])
    def test_against_a_loop_on_the_host(self, kind, dtype, rtol):
        x, labels, steps = np.asarray(images(dtype)), np.asarray(labels_of()), 50
        shown, seen = jax.jit(lambda f: kind.show(f, images(dtype), labels_of()))(frames(kind, 0, steps))
        assert shown.dtype == dtype
        m, per_epoch = kind.interpolation, EXAMPLES * kind.interpolation // BATCH
        epochs = steps // per_epoch + 1
        order = orders(InputOrder(kind.run_length))
        expected, names = [], []
        for epoch in range(epochs):
            flip_key = jax.random.fold_in(jax.random.fold_in(KEY, epoch), 2)
            flips = np.asarray(jax.random.bernoulli(flip_key, np.float32(0.5), (EXAMPLES,))) & kind.flip
            view = [np.flip(image, -1) if flips[i] else image for i, image in enumerate(x)]
            for place, (one, two) in enumerate(zip(order[epoch], [*order[epoch][1:], order[epoch][-1]], strict=True)):
                for k in range(m):
                    if place * m + k < per_epoch * BATCH:
                        expected.append((1 - k / m) * view[one] + (k / m) * view[two])
                        names.append(labels[two if 2 * k > m else one])
        shape = (steps, BATCH, 2, 3, 5)
        np.testing.assert_allclose(shown, np.stack(expected[: steps * BATCH]).reshape(shape), rtol, atol=rtol)
        np.testing.assert_array_equal(seen, np.reshape(names[: steps * BATCH], (steps, BATCH)))

    @pytest.mark.parametrize(("m", "left"), [(2, 2), (3, 2), (4, 3)])
    def test_the_label_is_the_left_images_up_to_one_half(self, m, left):
        kind = InputOrder(interpolation=m)
        shown = frames(kind, 0, m, 1)
        labels = kind.show(shown, images(), jnp.arange(EXAMPLES))[1][:, 0]
        one, two = shown.row[0, 0], shown.following[0, 0]
        assert labels.tolist() == [one] * left + [two] * (m - left)
        np.testing.assert_allclose(shown.weight[:, 0], np.arange(m) / m)

    def test_the_last_image_of_an_order_stays(self):
        x, shown = images(), frames(ALL, 3 * EXAMPLES - 3, 4, 1)
        last, first = shown.row[0, 0], shown.row[3, 0]
        assert first != last
        seen, _ = ALL.show(shown, x, labels_of())
        for step in (1, 2):
            np.testing.assert_allclose(seen[step], seen[0], rtol=1e-12)

    def test_an_image_keeps_its_flip_for_an_epoch_and_draws_anew_in_the_next(self):
        shown = frames(ALL, 0, 2 * ALL.epoch_steps(EXAMPLES, 1), 1)
        drawn = [{}, {}]
        for step, (row, following, _, flip, flip_following) in enumerate(zip(*map(np.ravel, shown), strict=True)):
            epoch = drawn[step // (3 * EXAMPLES)]
            assert epoch.setdefault(int(row), flip) == flip
            assert epoch.setdefault(int(following), flip_following) == flip_following
        assert drawn[0].keys() == drawn[1].keys() == set(range(EXAMPLES))
        assert drawn[0] != drawn[1]

    @pytest.mark.parametrize("run_length", [1, 4])
    def test_flips_are_even_and_know_nothing_of_the_order(self, run_length):
        """Within 6σ over 400 epochs: as many in the first half of an epoch as in the second."""
        flips = frames(InputOrder(run_length, flip=True), 0, 400 * EXAMPLES, 1).flip.reshape(400, EXAMPLES)
        for half in (flips[:, :26], flips[:, 26:]):
            assert abs(np.mean(half) - 0.5) < 6 * 0.5 / np.sqrt(half.size)

    def test_the_plain_case_is_a_gather_and_nothing_else(self):
        """A scan over all frames compiles to the program of one that indexes by their rows."""
        x, labels = images(), labels_of()

        def program(read):
            def scan(step):
                shown = PLAIN.frames(KEY, labels, step, 14, BATCH)
                return jax.lax.scan(lambda carry, one: (carry, read(one)), None, shown)[1]

            whole = jax.jit(scan).lower(0).compile()
            return whole.as_text().count(" = "), whole.memory_analysis().temp_size_in_bytes

        gather = program(lambda one: (x[one.row], labels[one.row]))
        assert program(lambda one: PLAIN.show(one, x, labels)) == gather
        blends = InputOrder(interpolation=2)
        assert program(lambda one: blends.show(one, x, labels)) > gather  # so that the count tells


class TestBadInput:
    @pytest.mark.parametrize("name", ["run_length", "interpolation"])
    @pytest.mark.parametrize("value", [0, -2, True, 1.5, 2.0])
    def test_lengths(self, name, value):
        wanted = "at least 1" if type(value) is int else "a whole number"
        made = InputOrder()
        object.__setattr__(made, name, value)  # since under pytest beartype refuses a float first
        with pytest.raises(ValueError, match=f"`{name}` must be {wanted}, got {value}"):
            made.__post_init__()

    def test_lengths_are_checked_when_an_input_order_is_made(self):
        with pytest.raises(ValueError, match="`interpolation` must be at least 1, got 0"):
            InputOrder(interpolation=0)

    def test_a_run_longer_than_the_rarest_class(self):
        InputOrder(run_length=7).check(labels_of(), BATCH)
        with pytest.raises(
            ValueError, match="must not exceed the images of any class, got 8 and class 3 with 7 images"
        ):
            InputOrder(run_length=8).check(labels_of(), BATCH)

    def test_a_batch_longer_than_an_epoch(self):
        PLAIN.check(labels_of(), EXAMPLES)
        with pytest.raises(ValueError, match=r"batch of 54 needs at least as many examples, got 53$"):
            PLAIN.check(labels_of(), 54)
        InputOrder(interpolation=2).check(labels_of(), 2 * EXAMPLES)
        with pytest.raises(ValueError, match="batch of 107 needs at least as many examples, got 53 of 2 steps each"):
            InputOrder(interpolation=2).check(labels_of(), 107)

    def test_traced_labels_are_not_counted(self):
        jax.jit(lambda labels: InputOrder(run_length=8).check(labels, BATCH) or labels)(labels_of())

    def test_flips_of_what_is_no_image(self):
        kind, flat = InputOrder(flip=True), images().reshape(EXAMPLES, -1)
        with pytest.raises(ValueError, match=r"`flip` needs images \[channel, height, width\], got shape \(30,\)"):
            kind.show(frames(kind, 0, 1), flat, labels_of())

    def test_no_batches(self):
        for batch in (BATCH, EXAMPLES):
            assert frames(ALL, 2, 0, batch).row.shape == (0, batch)


def test_steps_of_an_epoch():
    assert PLAIN.epoch_steps(53, 8) == 48
    assert InputOrder(interpolation=3).epoch_steps(53, 8) == 152
    assert InputOrder(run_length=4, flip=True).epoch_steps(53, 53) == 53
