"""In which order images are shown, one a step of time: shuffles, runs of one class, blends and flips."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from cetsim import checks

# Not 1: `split` in two gives the keys that `fold_in` gives of 0 and 1, and `permutation` sorts by draws of the second,
# so that flips drawn from `fold_in` of 1 would all fall on the images that come first.
_FLIPS = 2
_CHANNELS = 4  # most that an image, as of a file, has


class Frames(NamedTuple):
    """What is seen at every step of time, the axes of all fields.

    **Fields:**

    - `row`: index of the image being left.
    - `following`: of the image that comes next.
    - `weight`: share of the following one, in [0, 1).
    - `flip`, `flip_following`: whether either is seen in the mirror.
    """

    row: Int[Array, "*time"]
    following: Int[Array, "*time"]
    weight: Float[Array, "*time"]
    flip: Bool[Array, "*time"]
    flip_following: Bool[Array, "*time"]


@dataclasses.dataclass(frozen=True)
class InputOrder:
    """How images become a stream. Every epoch shows every image in an order of its own, cut to whole batches.

    **Fields:**

    - `run_length`: images of one class in a row; 1 shuffles all images. The order within a class and that of the runs
      are random. The last run of a class is shorter where its images are no multiple of `run_length`. Two runs of one
      class may by chance follow each other. Batches cut the stream wherever they end, within runs too.
    - `interpolation`: m, steps of time from one image to the next. Step k = 0, ..., m - 1 shows (1 - k/m) of an image
      and k/m of the next, with the label of the larger share (at one half, of the image being left). The last image
      of an order stays instead; where whole batches end before it, the next epoch cuts in.
    - `flip`: whether images `[channel, height, width]` are mirrored along their width, with odds of one half per image
      and epoch.

    **Raises:** ValueError for lengths that are no whole number or below 1, and a `flip` that is no boolean.
    """

    run_length: int = 1
    interpolation: int = 1
    flip: bool = False

    def __post_init__(self):
        for name in ("run_length", "interpolation"):
            object.__setattr__(self, name, checks.require_whole(name, getattr(self, name)))
        object.__setattr__(self, "flip", checks.require_flag("flip", self.flip))

    def check(self, labels, batch: int, shape: tuple[int, ...] = ()) -> None:
        """Raises ValueError for labels `[examples]` too few for a batch, or for a run of some class.

        **Arguments:** `shape`: of the images, where they are known; what cannot be flipped is refused.
        """
        if self.flip and shape:
            _require_width_last(shape)
        examples, steps = len(labels), self.interpolation
        if examples * steps < batch:
            each = f" of {steps} steps each" if steps > 1 else ""
            raise ValueError(f"a batch of {batch} needs at least as many examples, got {examples}{each}")
        if checks.is_traced(labels):
            return
        classes, counts = np.unique(np.asarray(labels), return_counts=True)
        rarest = np.argmin(counts)
        if self.run_length > counts[rarest]:
            has = f"class {classes[rarest]} with {counts[rarest]} images"
            raise ValueError(f"`run_length` must not exceed the images of any class, got {self.run_length} and {has}")

    def epoch_steps(self, examples: int, batch: int) -> int:
        """Steps of time in an epoch, a whole number of batches."""
        return examples * self.interpolation // batch * batch

    def frames(self, key: Array, labels: Int[Array, " examples"], step, steps: int, batch: int) -> Frames:
        """What `steps` batches show from batch `step` of the run on, however a run is cut into such calls.

        **Arguments:**

        - `key`: of the run's order.
        - `labels`: of all images.
        - `step`: batches shown before; may be traced.
        - `steps`, `batch`: numbers known before tracing.

        **Returns:** frames `[steps, batch]`.
        """
        steps, batch = checks.require_whole("steps", steps, least=0), checks.require_whole("batch", batch)
        examples = labels.shape[0]
        per_epoch = self.epoch_steps(examples, batch) // batch
        epochs = step // per_epoch + jnp.arange((steps + per_epoch - 2) // per_epoch + 1)
        last = (step + steps - 1) // per_epoch

        def of_epoch(epoch):  # one that these batches do not reach costs nothing
            draw = lambda: self._epoch(jax.random.fold_in(key, epoch), labels)  # noqa: E731
            nothing = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw))  # noqa: E731
            return jax.lax.cond(epoch <= last, draw, nothing)

        orders, flips = jax.lax.map(of_epoch, epochs)
        batches = (step % per_epoch + jnp.arange(steps))[:, None]
        epoch, time = batches // per_epoch, batches % per_epoch * batch + jnp.arange(batch)  # time in the epoch
        place = time // self.interpolation
        row, following = orders[epoch, place], orders[epoch, jnp.minimum(place + 1, examples - 1)]
        weight = time % self.interpolation / self.interpolation
        return Frames(row, following, weight, flips[epoch, row], flips[epoch, following])

    def show(
        self, frames: Frames, x: Shaped[Array, "examples ..."], labels: Int[Array, " examples"]
    ) -> tuple[Shaped[Array, "..."], Int[Array, "..."]]:
        """The images and labels of `frames`, along whose axes they lie. What is not asked for costs nothing.

        Images in whole numbers, such as bytes, are blended in floats.

        **Raises:** ValueError for another number of labels than images, or for flips of what is not
        `[examples, channel, height, width]`.
        """
        if x.shape[0] != labels.shape[0]:
            raise ValueError(f"`x` and `labels` must have one length, got {x.shape[0]} and {labels.shape[0]}")
        if self.flip:
            _require_width_last(x.shape)
        images = self._mirror(x[frames.row], frames.flip)
        if self.interpolation == 1:
            return images, labels[frames.row]
        following = self._mirror(x[frames.following], frames.flip_following)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            images, following = images.astype(float), following.astype(float)
        weight = _along(frames.weight, images).astype(images.dtype)
        images = (1 - weight) * images + weight * following
        return images, labels[jnp.where(frames.weight > 0.5, frames.following, frames.row)]

    def _epoch(self, key, labels):
        """Order of all images, and by image whether it is flipped."""
        flips = jnp.zeros(labels.shape, bool)
        if self.flip:  # odds in float32, so that the draws are those of any precision
            flips = jax.random.bernoulli(jax.random.fold_in(key, _FLIPS), jnp.float32(0.5), labels.shape)
        if self.run_length == 1:
            return jax.random.permutation(key, labels.shape[0]), flips
        return self._runs(key, labels), flips

    def _runs(self, key, labels):
        """Order of all images in runs of one class."""
        within, between = jax.random.split(key)
        images = jnp.arange(labels.shape[0])
        by_class = jax.random.permutation(within, images)
        by_class = by_class[jnp.argsort(labels[by_class], stable=True)]
        kinds = labels[by_class]
        place = images - jnp.searchsorted(kinds, kinds).astype(images.dtype)  # of an image among those of its class
        run = jnp.cumsum(place % self.run_length == 0) - 1
        # As many ranks as images, which is at least one for every run; a stable sort keeps each run together.
        return by_class[jnp.argsort(jax.random.permutation(between, images)[run], stable=True)]

    def _mirror(self, images, flip):
        return jnp.where(_along(flip, images), images[..., ::-1], images) if self.flip else images


def _require_width_last(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless images of a shape can be `[examples, channel, height, width]`."""
    if len(shape) != 4:
        raise ValueError(f"`flip` needs images [channel, height, width], got shape {shape[1:]}")
    if shape[3] <= _CHANNELS and shape[3] < min(shape[1:3]):
        raise ValueError(
            f"`flip` needs images [channel, height, width], got shape {shape[1:]}, which looks like "
            "[height, width, channel]: move the channels with np.moveaxis(x, -1, 1)"
        )


def _along(values, images):
    """Values by step of time, made to multiply images."""
    return values.reshape(values.shape + (1,) * (images.ndim - values.ndim))
