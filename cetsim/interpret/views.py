"""Pictures of what is inside: top images, heat maps, decoder images, densities, and where attention looks."""

import math

import numpy as np

from cetsim import checks, extras
from cetsim.interpret.latents import Latents


def heat_map(activations, image: tuple[int, int], *, grid: tuple[int, int] | None = None, skip: int = 0) -> np.ndarray:
    """Activations of one example at its positions, as a map of the size of the image: each fills its patch.

    **Arguments:**

    - `activations`: `[tokens]`, or `[rows, columns]` of a layer of pixels.
    - `image`: height and width of the picture.
    - `grid`: rows and columns of patches; None where tokens make a square.
    - `skip`: tokens before those of patches, such as a class token.

    **Returns:** `[height, width]`.

    **Raises:** ValueError where the tokens do not fill the grid.
    """
    values, skip = np.asarray(activations), checks.require_whole("skip", skip, least=0)
    if values.ndim == 1:
        values = _gridded(values, grid, skip)
    elif values.ndim != 2 or grid is not None or skip:
        raise ValueError(f"a map must be [tokens], or [rows, columns] without grid and skip, got shape {values.shape}")
    # Each pixel takes the value of the patch that its middle lies in.
    rows, columns = (
        ((np.arange(size) + 0.5) * count / size).astype(int) for size, count in zip(image, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def decoder_images(decoder, image: tuple[int, ...], weight=None) -> np.ndarray:
    """The pictures that latents write, or that a layer of pixels must see to be moved along them.

    **Arguments:**

    - `decoder`: a coder, or its `W_dec` `[latents, d]`.
    - `image`: shape of a picture, in the order in which it is raveled.
    - `weight`: of the layer whose output the coder decodes, `[d, pixels]`; None for a coder of the pixels themselves.

    **Returns:** `[latents, *image]`.

    **Raises:** ValueError for shapes that do not go together.
    """
    rows = np.asarray(getattr(decoder, "W_dec", decoder))
    pixels = rows if weight is None else rows @ np.asarray(weight)
    if rows.ndim != 2 or pixels.shape[1] != math.prod(image):
        raise ValueError(f"decoder and weight must give pictures of {image}, got {pixels.shape[1:]} pixels")
    return pixels.reshape(-1, *image)


def plot_top_images(latents: Latents, which, images, *, grid: tuple[int, int] | None = None, skip: int = 0):
    """A figure with a row of top images for each latent, its activations laid over them where it has positions.

    **Arguments:**

    - `latents`: from `collect`. `which`: numbers of latents.
    - `images`: `[examples, height, width]` or `[examples, height, width, 3]`, those that `collect` saw.
    - `grid`, `skip`: of tokens, as in `heat_map`.

    **Returns:** a `matplotlib.figure.Figure`.

    **Raises:** ValueError for latents or images that there are not; ImportError without matplotlib.
    """
    which, images = _which(len(latents.top), which), require_images(images, latents)
    figure, rows = _sheet(len(which), latents.top.shape[1], 1.0)
    for row, latent in zip(rows, which, strict=True):
        row[0].set_title(f"latent {latent}", fontsize=7, loc="left")
        for place, (axis, example) in enumerate(zip(row, latents.top[latent], strict=True)):
            if example < 0:
                continue
            axis.imshow(images[example], cmap="gray", vmin=0, vmax=1)
            if latents.maps.ndim > 2:
                over = heat_map(latents.maps[latent, place], images.shape[1:3], grid=grid, skip=skip)
                axis.imshow(over, cmap="inferno", alpha=0.5, vmin=0, vmax=float(latents.maximum[latent]))
    return figure


def plot_decoder_images(pictures, which=None):
    """A figure of decoder images, blue below zero and red above, each by its own largest entry.

    **Arguments:** `pictures`: from `decoder_images`, `[latents, height, width]`. `which`: numbers of latents, None for
    all.

    **Raises:** ValueError for pictures of other shapes; ImportError without matplotlib.
    """
    pictures = np.asarray(pictures)
    if pictures.ndim != 3:
        raise ValueError(f"`pictures` must be [latents, height, width], got shape {pictures.shape}")
    which = _which(len(pictures), range(len(pictures)) if which is None else which)
    columns = min(len(which), 10)
    figure, axes = _sheet(math.ceil(len(which) / columns), columns, 1.0)
    for axis, latent in zip(axes.ravel(), which, strict=False):
        size = float(np.abs(pictures[latent]).max()) or 1.0
        axis.imshow(pictures[latent], cmap="RdBu_r", vmin=-size, vmax=size)
        axis.set_title(str(latent), fontsize=7)
    return figure


def plot_densities(latents: Latents):
    """A figure of how many latents are active how often, by log10 of the frequency, dead ones apart.

    **Raises:** ImportError without matplotlib.
    """
    figure = extras.require("matplotlib.figure", extra="interpret").Figure(figsize=(5, 3), layout="constrained")
    axis, alive = figure.subplots(), latents.frequency[~latents.dead]
    if alive.size:
        axis.hist(np.log10(alive), bins=40, color="tab:blue")
    axis.set_xlabel("log10 of the share of vectors on which a latent is active")
    axis.set_ylabel("latents")
    axis.set_title(f"{alive.size} of {latents.frequency.size} latents, {int(latents.dead.sum())} dead", fontsize=9)
    return figure


def plot_attention(
    patterns, image=None, *, query: int = 0, grid: tuple[int, int] | None = None, skip: int = 0, title: str = ""
):
    """A sheet with one picture a head: what a query attends to, over the image, or the whole pattern without one.

    **Arguments:**

    - `patterns`: `[heads, queries, keys]`, from `attention_patterns`, or a dict of them by layer, a row each.
    - `image`: `[height, width]` or `[height, width, 3]`, in 0 to 1; None shows queries by keys.
    - `query`: the token that looks. `grid`, `skip`: of the keys, as in `heat_map`. What is skipped is left out of the
      picture, and its weight is written above it.

    **Returns:** a `matplotlib.figure.Figure`.

    **Raises:** ValueError for patterns of other shapes or a query that there is not; ImportError without matplotlib.
    """
    rows = patterns if isinstance(patterns, dict) else {title: patterns}
    rows = {name: np.asarray(pattern) for name, pattern in rows.items()}
    for name, pattern in rows.items():
        if pattern.ndim != 3 or not 0 <= query < pattern.shape[1]:
            shape = f"{pattern.shape} and query {query}"
            raise ValueError(f"patterns must be [heads, queries, keys] with the query among them, got {name} {shape}")
    figure, sheet = _sheet(len(rows), max(len(pattern) for pattern in rows.values()), 1.6)
    for row, (name, pattern) in zip(sheet, rows.items(), strict=True):
        for head, axis in enumerate(row[: len(pattern)]):
            skipped = float(pattern[head, query, :skip].sum())
            label = f"{name} head {head}" + (f" ({skipped:.0%} skipped)" if image is not None and skip else "")
            axis.set_title(label.strip(), fontsize=7)
            if image is None:
                axis.imshow(pattern[head], cmap="viridis", vmin=0)
                continue
            over = heat_map(pattern[head, query], np.shape(image)[:2], grid=grid, skip=skip)
            axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1)
            axis.imshow(over, cmap="inferno", alpha=0.6, vmin=0)
    return figure


def require_images(images, latents: Latents) -> np.ndarray:
    """The images in 0 to 1, as many as the latents were collected on.

    **Raises:** ValueError for another number or shape of images, or entries outside 0 to 1 (0 to 255 of bytes).
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(
            f"`images` must be [examples, height, width] or [examples, height, width, 3], got shape {images.shape}"
        )
    if len(images) != latents.examples:
        raise ValueError(f"`images` must be the {latents.examples} examples that were collected, got {len(images)}")
    images = images / 255 if images.dtype == np.uint8 else images
    checks.require_within("images", images, "[0, 1]")
    return images


def _which(count: int, which) -> list[int]:
    which = [checks.require_whole("which", latent, least=0) for latent in which]
    if not which or max(which) >= count:
        raise ValueError(f"`which` must be latents from 0 to {count - 1}, got {checks.shown(which)}")
    return which


def _gridded(tokens: np.ndarray, grid: tuple[int, int] | None, skip: int) -> np.ndarray:
    """Tokens as rows and columns."""
    patches = len(tokens) - skip
    side = math.isqrt(max(patches, 0))
    rows, columns = grid or (side, side)
    if rows * columns != patches or patches < 1:
        got = f"{rows} x {columns}"
        raise ValueError(f"{len(tokens)} tokens less {skip} must fill a grid, a square one by default, got {got}")
    return tokens[skip:].reshape(rows, columns)


def _sheet(rows: int, columns: int, inches: float):
    """A figure and its axes, `[rows, columns]`, without ticks."""
    figure = extras.require("matplotlib.figure", extra="interpret").Figure(
        figsize=(inches * columns + 0.2, (inches + 0.2) * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes
