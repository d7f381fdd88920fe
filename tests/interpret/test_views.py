"""What latents stand for, counted by hand; pictures of them; and the page, read back from its own bytes."""

import base64
import io
import re
from html.parser import HTMLParser

import inside_networks as networks
import numpy as np
import pytest

from cetsim import interpret
from cetsim.interpret.latents import BINS
from cetsim.interpret.pictures import png

pillow = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'cetsim[data]'")

RNG = np.random.default_rng(0)
# [examples, tokens, latents]: latent 3 is dead, latent 4 active on two examples, and strengths are often equal.
ACTIVE = np.maximum(np.round(RNG.normal(size=(20, 5, 6)), 1), 0)
ACTIVE[..., 3] = 0
ACTIVE[..., 4] = 0
ACTIVE[[7, 2], [1, 4], 4] = [0.5, 2.0]
IMAGES = RNG.uniform(size=(20, 8, 8))
LABELS = RNG.integers(0, 3, 20)


def gathered(cuts=(20,), k=4, active=ACTIVE):
    return interpret.collect(np.split(active, np.cumsum(cuts)[:-1]), k=k)


def test_latents_are_counted_as_by_hand():
    got = gathered()
    for latent in range(6):
        values = ACTIVE[..., latent]
        active = values[values > 0]
        assert got.frequency[latent] == active.size / 100
        assert got.maximum[latent] == values.max()
        np.testing.assert_allclose(got.mean[latent], active.mean() if active.size else 0, rtol=1e-12)
        np.testing.assert_array_equal(got.histogram[latent], np.histogram(np.log10(active), BINS)[0])
        order = sorted(range(20), key=lambda i, v=values: (-v[i].max(), i))
        want = [i for i in order if values[i].max() > 0][:4]
        assert got.top[latent].tolist() == want + [-1] * (4 - len(want))
        assert got.strength[latent].tolist() == [values[i].max() for i in want] + [0] * (4 - len(want))
        maps = [values[i] for i in want] + [np.zeros(5)] * (4 - len(want))
        np.testing.assert_allclose(got.maps[latent], maps, rtol=1e-6)
    assert got.dead.tolist() == [False, False, False, True, False, False]
    assert (got.examples, got.vectors) == (20, 100)


@pytest.mark.parametrize("cuts", [(1, 19), (3, 3, 3, 3, 3, 5), (19, 1)])
def test_cutting_the_data_otherwise_changes_nothing(cuts):
    for one, other in zip(gathered(), gathered(cuts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_examples_without_positions_and_with_two_axes_of_them_are_gathered():
    flat = gathered(active=ACTIVE[:, 0])
    assert flat.maps.shape == (6, 4)
    assert flat.vectors == 20
    square = gathered(active=ACTIVE[:, :4].reshape(20, 2, 2, 6))
    assert square.maps.shape == (6, 4, 2, 2)
    np.testing.assert_allclose(square.maps[0, 0], ACTIVE[square.top[0, 0], :4, 0].reshape(2, 2), rtol=1e-6)


def test_strengths_beyond_the_histogram_count_in_its_ends():
    got = interpret.collect([np.array([[1e-9, 1e7, 1.0]])], k=1)
    assert got.histogram[0, 0] == got.histogram[1, -1] == 1
    assert got.histogram[2, 16] == 1


def nan_at(place):
    values = ACTIVE.copy()
    values[place] = np.nan
    return values


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "`batches` must hold at least one example, got none"),
        ([np.ones(3)], r"`batches` must be \[examples, ..., latents\], got shape \(3,\)"),
        ([ACTIVE, ACTIVE[:, :4]], r"batches must all be \[examples, \*\[5, 6\]\] as the first, got \[20, 4, 6\]"),
        ([ACTIVE, nan_at((3, 1, 2))], "must be finite and at least 0, got nan of latent 2 on example 23"),
        ([-ACTIVE], "must be finite and at least 0, got -"),
        (["much"], "`batches` must be a number or an array of numbers, got 'much'"),
    ],
)
def test_activations_that_are_none_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        interpret.collect(batches)


def test_heat_maps_fill_each_patch_with_its_activation():
    tokens = np.arange(7.0)
    got = interpret.heat_map(tokens, (4, 6), grid=(2, 3), skip=1)
    np.testing.assert_array_equal(got, np.kron(tokens[1:].reshape(2, 3), np.ones((2, 2))))
    square = interpret.heat_map(tokens[:5], (4, 4), skip=1)
    np.testing.assert_array_equal(square, np.kron(tokens[1:5].reshape(2, 2), np.ones((2, 2))))
    np.testing.assert_array_equal(interpret.heat_map(np.eye(2), (4, 2)), [[1, 0], [1, 0], [0, 1], [0, 1]])
    # 5 pixels of 2 patches: the middle one lies in the second.
    np.testing.assert_array_equal(interpret.heat_map(np.array([[1.0, 2.0]]), (1, 5)), [[1, 1, 2, 2, 2]])
    for refused in (
        lambda: interpret.heat_map(tokens, (4, 4)),
        lambda: interpret.heat_map(tokens, (4, 6), grid=(2, 2), skip=1),
        lambda: interpret.heat_map(tokens, (4, 4), skip=7),
    ):
        with pytest.raises(ValueError, match=r"tokens less . must fill a grid, a square one by default, got"):
            refused()
    with pytest.raises(ValueError, match=r"a map must be \[tokens\], or \[rows, columns\] without grid and skip"):
        interpret.heat_map(np.eye(2), (4, 4), skip=1)


def test_decoder_images_are_rows_seen_through_the_weights():
    coder, weight = networks.coder(4), RNG.normal(size=(4, 6))
    got = interpret.decoder_images(coder, (2, 3), weight)
    np.testing.assert_allclose(got[5], (np.asarray(coder.W_dec)[5] @ weight).reshape(2, 3), rtol=1e-12)
    np.testing.assert_allclose(interpret.decoder_images(coder.W_dec, (2, 2)), coder.W_dec.reshape(6, 2, 2))
    with pytest.raises(ValueError, match=r"decoder and weight must give pictures of \(2, 2\), got \(6,\) pixels"):
        interpret.decoder_images(coder, (2, 2), weight)


def drawn(figure):
    """The figure as pixels, and the arrays that its axes show."""
    figure.savefig(file := io.BytesIO(), format="png", dpi=60)
    shown = [[image.get_array() for image in axis.images] for axis in figure.axes]
    return np.asarray(pillow.open(file).convert("L")), shown


def test_plots_show_what_they_are_given():
    latents = gathered()
    pixels, shown = drawn(interpret.plot_top_images(latents, [0, 4], IMAGES, skip=1))
    assert pixels.std() > 1
    assert [len(images) for images in shown] == [2] * 4 + [2, 2, 0, 0]  # latent 4 has two examples
    np.testing.assert_allclose(shown[4][0], IMAGES[2])
    np.testing.assert_allclose(shown[4][1], interpret.heat_map(ACTIVE[2, :, 4], (8, 8), skip=1), rtol=1e-6)
    _, shown = drawn(interpret.plot_decoder_images(IMAGES[:12], which=[3, 0, 11]))
    np.testing.assert_allclose([images[0] for images in shown], IMAGES[[3, 0, 11]])
    pixels, _ = drawn(interpret.plot_densities(latents))
    assert pixels.std() > 1
    assert "5 of 6 latents, 1 dead" in interpret.plot_densities(latents).axes[0].get_title()


def test_attention_is_a_sheet_of_heads_over_the_image():
    patterns = RNG.dirichlet(np.ones(5), size=(2, 5))
    figure = interpret.plot_attention({"a": patterns, "b": patterns[:1]}, IMAGES[0], query=2, skip=1)
    _, shown = drawn(figure)
    assert [len(images) for images in shown] == [2, 2, 2, 0]
    np.testing.assert_allclose(shown[1][1], interpret.heat_map(patterns[1, 2], (8, 8), skip=1))
    assert figure.axes[1].get_title() == f"a head 1 ({patterns[1, 2, 0]:.0%} skipped)"
    _, shown = drawn(interpret.plot_attention(patterns))
    np.testing.assert_allclose([images[0] for images in shown], patterns)
    for wrong, query in ((patterns[0], 0), (patterns, 5)):
        with pytest.raises(ValueError, match=r"patterns must be \[heads, queries, keys\] with the query among them"):
            interpret.plot_attention(wrong, query=query)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3), (5, 3, 4), (1, 1)])
def test_pictures_are_written_as_they_are(shape):
    picture = np.round(RNG.uniform(size=shape) * 255) / 255
    with pillow.open(io.BytesIO(png(picture))) as read:
        read.load()
        np.testing.assert_array_equal(np.asarray(read), np.round(picture * 255).astype(int))
    with pytest.raises(ValueError, match=r"a picture must be \[height, width\]"):
        png(np.ones((2, 2, 2)))


class Reader(HTMLParser):
    """The articles of a page: their attributes, words, and images."""

    def __init__(self):
        super().__init__()
        self.articles, self.linked, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "img", "input", "rect"):
            self.open.append(tag)
        if tag == "article":
            self.articles.append({"data": attrs, "words": "", "images": []})
        if tag == "img":
            head, _, data = attrs["src"].partition(",")
            assert head == "data:image/png;base64"
            self.articles[-1]["images"].append((attrs, np.asarray(pillow.open(io.BytesIO(base64.b64decode(data))))))
        self.linked += [attrs[name] for name in ("href", "src") if name in attrs and tag != "img"]

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.articles:
            self.articles[-1]["words"] += data


def read(path):
    text = path.read_text()
    reader = Reader()
    reader.feed(text.replace("<!doctype html>", ""))
    assert reader.open == []
    assert reader.linked == []
    assert not re.search(r"https?://|@import|url\(", text)
    return text, reader.articles


def test_the_page_shows_each_latent_and_nothing_from_elsewhere(tmp_path):
    latents = gathered()
    path = interpret.page(
        tmp_path / "page.html", latents, IMAGES, title="<b> & co", about={"site": "blocks.0"}, labels=LABELS,
        class_names=["cat", "<dog>", "owl"], pictures=RNG.normal(size=(6, 4, 4)), effects=np.eye(6, 3), skip=1,
    )  # fmt: skip
    text, articles = read(path)
    assert list(tmp_path.iterdir()) == [path]
    assert "<title>&lt;b&gt; &amp; co</title>" in text
    assert "<dt>site</dt><dd>blocks.0</dd>" in text
    assert "5 shown of 6, 1 dead" in text
    assert [article["data"]["data-latent"] for article in articles] == ["0", "1", "2", "4", "5"]
    fourth = articles[3]
    assert float(fourth["data"]["data-frequency"]) == 0.02
    assert float(fourth["data"]["data-maximum"]) == 2.0
    assert "active on 2.000%, mean 1.25, at most 2" in fourth["words"]
    (decoder, *tops) = fourth["images"]
    assert decoder[0]["alt"] == "decoder of 4"
    assert [attrs["alt"] for attrs, _ in tops] == [
        f"example 2, {['cat', '<dog>', 'owl'][LABELS[2]]}", "", f"example 7, {['cat', '<dog>', 'owl'][LABELS[7]]}", ""
    ]  # fmt: skip
    np.testing.assert_array_equal(tops[0][1], np.round(IMAGES[2] * 255).astype(int))
    opacity = tops[1][1][..., 3]
    want = 0.75 * interpret.heat_map(ACTIVE[2, :, 4], (8, 8), skip=1) / 2.0
    np.testing.assert_allclose(opacity / 255, want, atol=0.003)
    assert "for cat" in articles[0]["words"]
    classes, counts = np.unique(LABELS[latents.top[0]], return_counts=True)
    assert (
        f"{counts.max()} of the top 4 are {['cat', '<dog>', 'owl'][classes[counts.argmax()]]}" in articles[0]["words"]
    )


def test_a_page_of_chosen_latents_without_positions_in_colour(tmp_path):
    latents = gathered(active=ACTIVE[:, 0])
    colour = (RNG.uniform(size=(20, 8, 8, 3)) * 255).astype(np.uint8)
    text, articles = read(interpret.page(tmp_path / "page.html", latents, colour, which=[3, 1]))
    assert [article["data"]["data-latent"] for article in articles] == ["3", "1"]
    assert articles[0]["images"] == []
    assert 'id="heat"' not in text
    np.testing.assert_array_equal(articles[1]["images"][0][1], colour[latents.top[1, 0]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": IMAGES[:19]}, "`images` must be the 20 examples that were collected, got 19"),
        ({"images": IMAGES * 2}, r"`images` must be in \[0, 1\], got"),
        ({"images": IMAGES[:, None]}, r"`images` must be \[examples, height, width\] or"),
        ({"labels": LABELS[:3]}, "`labels` must have 20 rows, got 3"),
        ({"effects": np.ones((5, 3))}, "`effects` must have 6 rows, got 5"),
        ({"pictures": np.ones((5, 3, 3))}, "`pictures` must have 6 rows, got 5"),
        ({"which": [6]}, r"`which` must be latents from 0 to 5, got \[6\]"),
        (
            {"latents": gathered(active=0 * ACTIVE)},
            "at least one of the 6 latents must be active to be shown, got none",
        ),
        ({"grid": (2, 2)}, "5 tokens less 0 must fill a grid, a square one by default, got 2 x 2"),
    ],
)
def test_a_page_of_what_does_not_go_together_is_refused_and_nothing_is_lost(given, message, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    given = {"latents": gathered(), "images": IMAGES, "skip": 0 if "grid" in given else 1} | given
    with pytest.raises(ValueError, match=message):
        interpret.page(path, **given)
    assert path.read_text() == "before"
