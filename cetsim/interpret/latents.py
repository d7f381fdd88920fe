"""What the latents of a coder stand for, gathered batch by batch over a data set."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cetsim import checks

BINS = np.linspace(-4.0, 4.0, 33)  # edges of the histograms of log10 activations


class Latents(NamedTuple):
    """How often and how strongly latents are active, and on which examples most.

    **Fields:** all `[latents, ...]` but for the last two.

    - `frequency`: share of vectors (examples, or their positions) on which a latent is above zero.
    - `mean`, `maximum`: of its activation where it is above zero; 0 where it never is.
    - `histogram`: `[latents, bins]`, vectors by log10 of the activation, between the edges `BINS`; what lies outside
      counts in the first or the last.
    - `top`: `[latents, k]`, numbers of the examples on which it is strongest at any position, the strongest first; -1
      where fewer than k have it above zero.
    - `strength`: `[latents, k]`, its activation there.
    - `maps`: `[latents, k, *positions]`, its activations at the positions of these examples.
    - `examples`, `vectors`: how many were seen.
    """

    frequency: np.ndarray
    mean: np.ndarray
    maximum: np.ndarray
    histogram: np.ndarray
    top: np.ndarray
    strength: np.ndarray
    maps: np.ndarray
    examples: int
    vectors: int

    @property
    def dead(self) -> np.ndarray:
        """Whether a latent was never above zero, `[latents]`."""
        return self.frequency == 0


def collect(batches: Iterable, k: int = 12) -> Latents:
    """What each latent does over a data set, of which only what is returned is kept in memory.

    **Arguments:**

    - `batches`: activations `[examples, latents]`, or `[examples, *positions, latents]` such as tokens or pixels, one
      array after the other in the order of the examples.
    - `k`: how many examples to keep of each latent.

    **Returns:** `Latents`.

    **Raises:** ValueError for no examples, batches of different shapes, and activations that are below zero or not
    finite.
    """
    k = checks.require_whole("k", k)
    found, seen = None, 0
    for batch in batches:
        batch = _checked(batch, seen)
        if found is None:
            found = _empty(batch.shape, k)
        if batch.shape[1:] != (*found.maps.shape[2:], len(found.top)):
            shape = (*found.maps.shape[2:], len(found.top))
            raise ValueError(f"batches must all be [examples, *{list(shape)}] as the first, got {list(batch.shape)}")
        found = _added(found, batch, seen)
        seen += len(batch)
    if not seen:
        raise ValueError("`batches` must hold at least one example, got none")
    active = found.histogram.sum(1)
    vectors = seen * int(np.prod(found.maps.shape[2:]))
    mean = found.mean / np.maximum(active, 1)
    return found._replace(frequency=active / vectors, mean=mean, examples=seen, vectors=vectors)


def _checked(batch, seen: int) -> np.ndarray:
    batch = np.asarray(checks.require_numbers("batches", batch))
    if batch.ndim < 2:
        raise ValueError(f"`batches` must be [examples, ..., latents], got shape {batch.shape}")
    wrong = ~(np.isfinite(batch) & (batch >= 0))
    if wrong.any():
        place = np.unravel_index(np.argmax(wrong), wrong.shape)
        where = f"of latent {place[-1]} on example {seen + place[0]}"
        raise ValueError(f"activations of latents must be finite and at least 0, got {batch[place]} {where}")
    return batch


def _empty(shape: tuple[int, ...], k: int) -> Latents:
    latents, positions = shape[-1], shape[1:-1]
    zeros = np.zeros(latents)
    maps, histogram = np.zeros((latents, k, *positions), np.float32), np.zeros((latents, len(BINS) - 1), np.int64)
    top, strength = np.full((latents, k), -1), np.zeros((latents, k))
    return Latents(zeros, zeros, zeros, histogram, top, strength, maps, 0, 0)


def _added(found: Latents, batch: np.ndarray, seen: int) -> Latents:
    """With another batch; `mean` is a sum until the end."""
    latents, k = found.top.shape
    by_latent = np.moveaxis(batch, -1, 0)  # [latents, examples, *positions]
    strength = by_latent.reshape(latents, len(batch), -1).max(2)
    both = np.concatenate([found.strength, strength], axis=1)
    # A stable sort: of equal ones the earlier example comes first, however the data are cut into batches.
    best = np.argsort(-both, axis=1, kind="stable")[:, :k]
    rows = np.arange(latents)[:, None]
    numbers = np.concatenate([found.top, np.broadcast_to(np.arange(seen, seen + len(batch)), strength.shape)], axis=1)
    maps = np.stack([_chosen(found.maps[i], by_latent[i], best[i]) for i in range(latents)])
    top, strength = np.where(both > 0, numbers, -1)[rows, best], both[rows, best]
    return found._replace(
        mean=found.mean + by_latent.reshape(latents, -1).sum(1, dtype=float),
        maximum=np.maximum(found.maximum, strength[:, 0]),
        histogram=found.histogram + _histogram(by_latent.reshape(latents, -1)),
        top=top,
        strength=strength,
        maps=np.where((top >= 0).reshape(*top.shape, *[1] * (maps.ndim - 2)), maps, 0),
    )


def _chosen(kept: np.ndarray, new: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The maps numbered `best` of those kept and the new ones behind them."""
    k = len(kept)
    return np.stack([kept[i] if i < k else new[i - k] for i in best])


def _histogram(values: np.ndarray) -> np.ndarray:
    """Of log10 of what is above zero, `[latents, bins]`."""
    latents, active = np.nonzero(values > 0)[0], values[values > 0]
    bins = np.clip(np.digitize(np.log10(active), BINS) - 1, 0, len(BINS) - 2)
    counts = np.bincount(latents * (len(BINS) - 1) + bins, minlength=len(values) * (len(BINS) - 1))
    return counts.reshape(len(values), -1)
