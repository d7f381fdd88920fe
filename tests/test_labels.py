"""What a supervised run takes as images and labels, and what it refuses, against runs on the numbers written out."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from wrong_arguments import Tensor, as_column

import cetsim
from cetsim import metrics
from cetsim.datasets import InputOrder
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun

CLASSES, EXAMPLES = 3, 48
SETTINGS = Settings(steps=4, segment=16)
X = np.random.default_rng(0).normal(size=(EXAMPLES, 5))
LABELS = np.arange(EXAMPLES) % CLASSES
HYPER = Hyperparameters(1e-2, cetsim.CascadingTrace(4, 1.0), cetsim.FixedDelay(1.0))
BYTES = np.random.default_rng(1).integers(0, 256, (EXAMPLES, 5)).astype(np.uint8)


def make_model(key):
    return cetsim.nn.mlp((5, 8, CLASSES), key=key)


def make_run(x=X, labels=LABELS, settings=SETTINGS, model=make_model):
    return SupervisedRun(model, x, labels, settings)


def train(run, steps=2):
    return jit(lambda state: run.advance(state, steps))(run.init(HYPER, jax.random.key(0)))


def assert_same_run(run, other):
    for left, right in zip(jax.tree.leaves(train(run)[1]), jax.tree.leaves(train(other)[1]), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def trained():
    """A run and its state."""
    run = make_run()
    return run, run.init(HYPER, jax.random.key(0))


WRONG_LABELS = [
    (np.where(LABELS == 1, -1, LABELS), "class numbers from 0 to 2, the model having 3 outputs, got -1 of example 1$"),
    (LABELS + 1, "class numbers from 0 to 2, the model having 3 outputs, got 3 of example 2$"),
    (np.where(LABELS == 0, 2**40, LABELS), "got 1099511627776 of example 0$"),
    (LABELS.astype(np.uint8) + 253, "got 253 of example 0$"),
    (LABELS.astype(float), "class numbers of an integer dtype, got float64$"),
    (LABELS.astype(bool), "class numbers of an integer dtype, got bool$"),
    (np.where(LABELS == 0, np.nan, LABELS), "class numbers of an integer dtype, got float64$"),
    (np.eye(CLASSES)[LABELS], r"one class number each, got shape \(48, 3\); take labels.argmax\(axis=1\)"),
    (np.eye(CLASSES, dtype=int)[LABELS], r"one class number each, got shape \(48, 3\); take labels.argmax\(axis=1\)"),
    (LABELS[:, None], r"one class number each, got shape \(48, 1\)$"),
    (LABELS[:-1], "must have one length, got 48 and 47$"),
    (LABELS[:1], "must have one length, got 48 and 1$"),
    (np.array(1), r"one class number each, got shape \(\)$"),
    (["cat", "dog", "cow"] * 16, r"must be a number or an array of numbers, got \['cat'"),
    (np.ma.masked_array(LABELS, LABELS == 2), "must have no masked entries, got 16 of them$"),
    ([0, [1]] * 24, "must be a number or an array of numbers"),
    (None, "must be a number or an array of numbers, got None$"),
]


@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS, ids=range(len(WRONG_LABELS)))
def test_labels_that_are_refused(trained, labels, message):
    run, state = trained
    for call in (
        lambda: make_run(labels=labels),
        lambda: run.evaluate(state, X, labels),
        lambda: run.alignment(state, X, labels),
    ):
        with pytest.raises(ValueError, match=f"`labels` must (be |have ).*{message}|`labels` .*{message}") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [LABELS.tolist(), tuple(LABELS), LABELS.astype(np.uint8), jnp.asarray(LABELS), Tensor(LABELS), as_column(LABELS)],
    ids=["list", "tuple", "uint8", "jax", "tensor", "column"],
)
def test_labels_of_any_kind_are_the_same_run(trained, labels):
    run, state = trained
    same = make_run(labels=labels)
    assert same.labels.dtype == jnp.int32
    np.testing.assert_array_equal(same.labels, LABELS)
    measured, expected = run.evaluate(state, X, labels), run.evaluate(state, X, LABELS)
    assert measured == expected


def test_traced_labels_are_checked_by_shape_and_dtype(trained):
    run, state = trained
    evaluate = jax.jit(lambda labels: run.evaluate(state, X, labels))
    assert evaluate(LABELS)["accuracy"] == run.evaluate(state, X, LABELS)["accuracy"]
    for wrong, message in ((LABELS * 1.0, "an integer dtype"), (LABELS[:1], "one length"), (LABELS[:, None], "shape")):
        with pytest.raises(ValueError, match=f"`labels` .*{message}"):
            evaluate(wrong)


def test_a_model_with_more_outputs_than_there_are_classes_is_taken():
    make_run(labels=np.zeros(EXAMPLES, int))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:, :4], r"^the model must take an example of `x`, float64\[4\], but: "),
        (np.where(X > 2, np.nan, X), r"^`x` must be finite, got nan at index \(\d+, \d\)$"),
        (np.where(X > 2, np.inf, X), r"^`x` must be finite, got inf at index \(\d+, \d\)$"),
        (X.astype(str), "^`x` must be a number or an array of numbers, got array"),
        (X * 1j, "^`x` must be a number or an array of numbers, got array"),
        (np.ma.masked_array(X, X > 2), r"^`x` must have no masked entries, got \d+ of them$"),
        (np.array(1.0), r"^`x` must be \[examples, ...\], got one number"),
        ([[1.0, 2.0], [3.0]], "^`x` must be a number or an array of numbers"),
    ],
)
def test_images_that_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        make_run(x)


def test_a_model_that_makes_no_row_of_logits_is_refused():
    flat = lambda key: eqx.nn.Sequential([eqx.nn.Linear(5, "scalar", key=key)])  # noqa: E731
    with pytest.raises(ValueError, match=r"one logit a class, \[classes\], of an example, got shape \(\)"):
        make_run(model=flat)


@pytest.mark.parametrize("x", [X.tolist(), jnp.asarray(X), Tensor(X)], ids=["list", "jax", "tensor"])
def test_images_of_any_kind(x):
    np.testing.assert_array_equal(make_run(x).x, X)


class TestPrecision:
    """Images in the model's precision, so that neither float64 ones change a float32 model nor bytes a convolution."""

    @staticmethod
    def single(key):
        return jax.tree.map(lambda leaf: leaf.astype(np.float32) if eqx.is_array(leaf) else leaf, make_model(key))

    @pytest.mark.parametrize("boundary", ["reset", "carry"])
    def test_float64_images_into_a_float32_model(self, boundary):
        settings = dataclasses.replace(SETTINGS, boundary=boundary)
        run = make_run(X, settings=settings, model=self.single)
        assert_same_run(run, make_run(X.astype(np.float32), settings=settings, model=self.single))
        state = train(run)[0]
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
        assert run.evaluate(state, X, LABELS) == run.evaluate(state, X.astype(np.float32), LABELS)

    @pytest.mark.parametrize("x", [BYTES, BYTES > 128], ids=["bytes", "booleans"])
    def test_bytes_and_booleans_are_kept_as_they_are_and_seen_as_floats(self, x):
        run, floats = make_run(x), make_run(x.astype(float))
        assert run.x.dtype == x.dtype
        assert_same_run(run, floats)
        state = run.init(HYPER, jax.random.key(0))
        assert run.evaluate(state, x, LABELS) == run.evaluate(state, x.astype(float), LABELS)

    def test_bytes_are_blended_in_floats(self):
        settings = dataclasses.replace(SETTINGS, input_order=InputOrder(interpolation=3))
        assert_same_run(make_run(BYTES, settings=settings), make_run(BYTES.astype(float), settings=settings))

    def test_bytes_into_a_convolution(self):
        x = np.random.default_rng(2).integers(0, 256, (EXAMPLES, 1, 4, 4)).astype(np.uint8)

        def model(key):
            return eqx.nn.Sequential([eqx.nn.Conv2d(1, CLASSES, 4, key=key), eqx.nn.Lambda(jnp.ravel)])

        run, floats = make_run(x, model=model), make_run(x.astype(float), model=model)
        state = run.init(HYPER, jax.random.key(0))
        assert run.evaluate(state, x, LABELS) == floats.evaluate(state, x.astype(float), LABELS)

    def test_tokens_stay_whole_numbers(self):
        def model(key):
            keys = jax.random.split(key)
            return eqx.nn.Sequential([eqx.nn.Embedding(7, 4, key=keys[0]), eqx.nn.Linear(4, CLASSES, key=keys[1])])

        run = make_run(np.arange(EXAMPLES) % 7, model=model)
        state = run.init(HYPER, jax.random.key(0))
        by_hand = jax.vmap(model(jax.random.split(jax.random.key(0))[0]))(jnp.arange(EXAMPLES) % 7)
        expected = np.mean(np.argmax(by_hand, 1) == LABELS)
        assert run.evaluate(state, run.x, LABELS)["accuracy"] == pytest.approx(expected)


class TestImages:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, bool])
    def test_a_blend_of_whole_numbers_is_one_of_floats(self, dtype):
        images = np.random.default_rng(3).integers(0, 200, (20, 2, 3, 5)).astype(dtype)
        kind = InputOrder(interpolation=4, flip=True)
        frames = kind.frames(jax.random.key(1), jnp.arange(20) % 2, 0, 3, 8)
        shown, _ = kind.show(frames, jnp.asarray(images), jnp.arange(20))
        row, following, weight, flip, flip_following = (np.asarray(field)[..., None, None, None] for field in frames)
        left, right = images[row[..., 0, 0, 0]].astype(float), images[following[..., 0, 0, 0]].astype(float)
        left, right = np.where(flip, left[..., ::-1], left), np.where(flip_following, right[..., ::-1], right)
        np.testing.assert_allclose(shown, (1 - weight) * left + weight * right, rtol=1e-12)
        assert np.any(np.asarray(shown) % 1)

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_flips_of_images_with_channels_last_are_refused(self, channels):
        kind, x = InputOrder(flip=True), np.ones((EXAMPLES, 8, 6, channels))
        message = rf"`flip` needs images \[channel, height, width\], got shape \(8, 6, {channels}\), which looks like"
        with pytest.raises(ValueError, match=message):
            make_run(x, settings=dataclasses.replace(SETTINGS, input_order=kind))
        with pytest.raises(ValueError, match=message):
            kind.show(kind.frames(jax.random.key(0), jnp.asarray(LABELS), 0, 1, 8), jnp.asarray(x), jnp.asarray(LABELS))

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 6), (3, 4, 4), (2, 3, 5), (16, 4, 4), (8, 8, 8), (1, 1, 2)])
    def test_flips_of_images_with_channels_first_are_taken(self, shape):
        InputOrder(flip=True).check(LABELS, 8, (EXAMPLES, *shape))

    def test_fewer_labels_than_images_cannot_be_shown(self):
        frames = InputOrder().frames(jax.random.key(0), jnp.asarray(LABELS), 0, 1, 8)
        with pytest.raises(ValueError, match="`x` and `labels` must have one length, got 48 and 47"):
            InputOrder.show.__wrapped__(InputOrder(), frames, jnp.asarray(X), jnp.asarray(LABELS[1:]))


@pytest.mark.parametrize("labels", [LABELS[:, None], LABELS[:1], np.eye(CLASSES)[LABELS]])
def test_accuracy_of_labels_of_another_shape(labels):
    with pytest.raises(ValueError, match=r"`labels` must have shape \(48,\), one a row of logits, got"):
        metrics.accuracy.__wrapped__(jnp.eye(CLASSES)[LABELS], labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
@pytest.mark.parametrize("top", [1, 5])
def test_accuracy_of_small_labels_of_many_classes(dtype, top):
    """Class 256 + k is not class k, though both are one byte."""
    logits = jnp.zeros((4, 300)).at[:, 256:262].set(1.0)
    assert metrics.accuracy(logits, jnp.arange(4, dtype=dtype), top) == 0.0
