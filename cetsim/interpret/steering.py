"""Steering: what setting one latent, or one neuron, does to what a network says, and how precisely.

    x' = x + (s - f_k(x)) d_k,   Δp_c = mean over images of softmax(logits(x'))_c - softmax(logits(x))_c

f_k is the latent's activation and d_k its direction; all else that x says is kept, a coder's error included. Concepts
are the classes of a classifier, or the words that an image embedding is compared with.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret.capture import capture, edited
from cetsim.interpret.edits import Set, _decoder, _token_mask, _tokens
from cetsim.interpret.sites import plain, require_sites
from cetsim.interpret.store import as_seen

THRESHOLD = 0.1  # of S, published for 5,000 words
QUANTILE = 0.95  # of the null's S, above which a direction steers more than chance


class Readout(eqx.Module):
    """Logits of concepts from what a model says.

        logits = scale output,   or   scale cos(output, t_c)   with concepts

    **Arguments:**

    - `concepts`: t, embeddings of words `[concepts, width]`; None where the output is one number a class.
    - `scale`: inverse temperature, above 0: 100 in CLIP. None for outputs that are logits; needed with concepts.

    **Raises:** ValueError for concepts of no length, or without a scale.
    """

    concepts: Float[Array, "concepts width"] | None
    scale: Float[Array, ""] | None

    def __init__(self, concepts=None, scale=None):
        if scale is not None:
            checks.require_above("scale", scale, 0.0)
            checks.require_one_number("scale", scale)
        elif concepts is not None:
            raise ValueError("`scale` must be given with `concepts`: the model's inverse temperature, 100 in CLIP")
        self.scale = None if scale is None else jnp.asarray(scale, float)
        self.concepts = None if concepts is None else _unit_rows("concepts", concepts)

    def __call__(self, output: Float[Array, " width"]) -> Float[Array, " concepts"]:
        """The logits."""
        if self.concepts is not None:
            output = self.concepts.astype(output.dtype) @ (output / jnp.linalg.norm(output))
        return output if self.scale is None else output * self.scale.astype(output.dtype)


class Neurons(eqx.Module):
    """The entries of a site's vectors in the place of a coder: latent k is entry k, its direction the unit vector.

    **Arguments:** `width`: of the vectors.
    """

    W_dec: Float[Array, "width width"]

    def __init__(self, width: int):
        self.W_dec = jnp.eye(checks.require_whole("width", width))

    def encode(self, x):
        """The entries themselves."""
        return x

    def decode(self, f, x=None):
        """The vector that has these entries."""
        return f


class RandomDirections(eqx.Module):
    """A coder's latents with random directions of the same norms: the null that steering is compared with.

    A latent's activation is the coder's, so that an edit is as large as the latent's own.

    **Arguments:** `coder`: has `encode` and `W_dec` `[latents, d]`, as `Neurons` have. `key`: of the directions.
    """

    coder: eqx.Module
    W_dec: Float[Array, "latents d"]

    def __init__(self, coder, key: Array):
        rows = _decoder(coder)
        random = jax.random.normal(key, rows.shape, rows.dtype)
        self.coder = coder
        self.W_dec = random * (jnp.linalg.norm(rows, axis=1) / jnp.linalg.norm(random, axis=1))[:, None]

    def encode(self, x):
        """The coder's latents."""
        return self.coder.encode(x)

    def decode(self, f, x=None):
        """What latents would stand for."""
        return f @ self.W_dec


class Steerability(NamedTuple):
    """How far and how precisely each direction moves concepts, from its Δp.

    **Fields:** `[...]`, of each direction (and strength):

    - `delta`: Δp, `[..., concepts]`.
    - `score`: S = Σ_c Δp_c², at most 2. Steerable where above a threshold.
    - `power`: max_c Δp_c.
    - `specificity`: S / power; nan where nothing moves.
    - `directional`: Σ_c Δp_c |Δp_c|.
    - `top`: the concept whose Δp is largest, by number.
    - `polysemanticity`: ‖Σ_c Δp_c t_c - t̄/‖t̄‖‖, t̄ = Σ_c t_c; None where concepts have no embeddings t.

    **Reference:** arXiv:2504.08729.
    """

    delta: np.ndarray
    score: np.ndarray
    power: np.ndarray
    specificity: np.ndarray
    directional: np.ndarray
    top: np.ndarray
    polysemanticity: np.ndarray | None

    def steerable(self, threshold=THRESHOLD) -> np.ndarray:
        """Whether S is above a threshold. See `calibrated` for one that goes with few classes."""
        return self.score > threshold


def steerability(delta, concepts=None) -> Steerability:
    """The measures of Δp.

    **Arguments:** `delta`: `[..., concepts]`, from `steer`. `concepts`: their embeddings `[concepts, width]`, scaled to
    norm 1 here, or None.

    **Raises:** ValueError for concepts of another number.
    """
    delta = np.asarray(checks.require_finite("delta", delta), float)
    score, power = (delta**2).sum(-1), delta.max(-1)
    poly = None
    if concepts is not None:
        t = np.asarray(_unit_rows("concepts", concepts), float)
        if len(t) != delta.shape[-1]:
            raise ValueError(f"`concepts` must be as many as `delta` has, {delta.shape[-1]}, got {len(t)}")
        mean = t.sum(0)
        poly = np.linalg.norm(delta @ t - mean / np.linalg.norm(mean), axis=-1)
    specificity = np.divide(score, power, out=np.full(score.shape, np.nan), where=power > 0)
    directional = (delta * np.abs(delta)).sum(-1)
    return Steerability(delta, score, power, specificity, directional, delta.argmax(-1), poly)


def calibrated(null: Steerability, quantile=QUANTILE) -> float:
    """The threshold of S that this share of random directions does not reach.

    The published 0.10 is of 5,000 words. Among few classes random directions pass it: forcing one of C classes that
    come equally often gives S = 1 - 1/C.
    """
    checks.require_within("quantile", quantile, "(0, 1)")
    return float(np.quantile(null.score, quantile))


def percentiles(coder, vectors, q=99.0, batch: int = 4096) -> np.ndarray:
    """Each latent's q-th percentile over the vectors on which it is above zero: the unit of strengths, `[latents]`.

    Over all vectors it would be 0 for most latents. One that is never above zero has 0.

    **Arguments:** `vectors`: `[vectors, d]`. `batch`: of them at once.

    **Raises:** ValueError for vectors of another shape.
    """
    checks.require_within("q", q, "[0, 100]")
    vectors = np.asarray(checks.require_finite("vectors", vectors))
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"`vectors` must be [vectors, d], at least one, got shape {vectors.shape}")
    parts = [np.asarray(_encoded(coder, vectors[i : i + batch])) for i in range(0, len(vectors), batch)]
    f = np.concatenate(parts)
    return np.array([np.percentile(of_latent[of_latent > 0], q) if (of_latent > 0).any() else 0.0 for of_latent in f.T])


def steer(model, site: str, coder, features, strengths, x, *state, readout: Readout | None = None, tokens=None,
          axis: int | None = None, batch: int = 128, side_by_side: int = 16) -> np.ndarray:  # fmt: skip
    """Δp of every concept for each feature set to each of its strengths, all in one compiled program.

    What stands before the site runs once for all features; behind it, `side_by_side` features and `batch` images at a
    time, which bounds memory.

    **Arguments:**

    - `model`: acts on one example, as `model(x, *state)`.
    - `site`: whose value is edited, by name.
    - `coder`: has `encode` and `decode` of vectors, and `W_dec` `[latents, d]`: a `Coder` of the site, `Neurons`, or
      `RandomDirections`.
    - `features`: latents by number, `[n]`.
    - `strengths`: what each is set to, `[n]`, or `[n, m]` for m strengths each. See `percentiles`.
    - `x`: images, `[images, ...]`.
    - `readout`: concepts from the model's output; None for classes whose logits it gives.
    - `tokens`, `axis`: as of `Clamp`: which vectors of the site are edited, all by default, and where they lie.

    **Returns:** Δp, the mean over images, `[*strengths, concepts]`.

    **Raises:** ValueError for features that the coder lacks, strengths of another shape, outputs between -1 and 1
    without a scale, and a site or coder that do not go together.
    """
    features, strengths = _paired(coder, features, strengths)
    require_sites(plain(model), [site])
    require_reads(coder, site)
    batch, side_by_side = checks.require_whole("batch", batch), checks.require_whole("side_by_side", side_by_side)
    x, readout = checks.require_examples(x, fetch=False), Readout() if readout is None else readout
    batch, flat = min(batch, len(x)), jnp.asarray(strengths.reshape(len(features), -1))
    total, largest = 0.0, 0.0
    for start in range(0, len(x), batch):
        rows = np.arange(start, start + batch)
        weights = jnp.asarray(rows < len(x), jnp.result_type(float))  # the last batch is filled up with others
        some = jnp.asarray(x[np.minimum(rows, len(x) - 1)])
        options = dict(tokens=_tokens(tokens), site=site, axis=axis, side_by_side=side_by_side)
        found, size = _summed(model, coder, readout, some, weights, jnp.asarray(features), flat, state, **options)
        total, largest = total + np.asarray(found, float), max(largest, float(size))
    require_logits(readout, largest)
    return (total / len(x)).reshape(*strengths.shape, -1)


def at_target_change(strengths, delta, target: int, change) -> tuple[np.ndarray, np.ndarray]:
    """Strengths at which the target's Δp first reaches `change`, and Δp of all concepts there, by interpolation.

    Directions are compared at an equal change of the target: which moves the concepts that should stay least? Δp starts
    at 0 without an edit, which counts as strength 0.

    **Arguments:** `strengths`: `[n, m]`, ascending. `delta`: `[n, m, concepts]`. `target`: number of a concept.
    `change`: of its probability, above 0, or below 0 for a fall.

    **Returns:** `[n]` and `[n, concepts]`; nan where a direction does not get there.

    **Raises:** ValueError for shapes that do not go together.
    """
    s, delta = np.asarray(strengths, float), np.asarray(delta, float)
    if s.ndim != 2 or delta.shape[:2] != s.shape or not 0 <= target < delta.shape[-1] or change == 0:
        shapes = f"strengths {s.shape}, delta {delta.shape}, target {target}, change {change:g}"
        raise ValueError(f"`delta` must be [n, m, concepts] of `strengths` [n, m] with the target, got {shapes}")
    s = np.concatenate([np.zeros((len(s), 1)), s], axis=1)
    delta = np.concatenate([np.zeros((len(s), 1, delta.shape[-1])), delta], axis=1)
    along = delta[..., target] * np.sign(change)
    reached = along >= abs(change)
    at, found = np.full(len(s), np.nan), np.full((len(s), delta.shape[-1]), np.nan)
    for n in np.flatnonzero(reached.any(1)):
        i = int(reached[n].argmax())
        share = (abs(change) - along[n, i - 1]) / (along[n, i] - along[n, i - 1])
        at[n] = s[n, i - 1] + share * (s[n, i] - s[n, i - 1])
        found[n] = delta[n, i - 1] + share * (delta[n, i] - delta[n, i - 1])
    return at, found


def disentanglement(delta, target: int, stay=None) -> np.ndarray:
    """|Δp_target| / (|Δp_target| + Σ_stay |Δp_c|): 1 where nothing else moves.

    Probabilities sum to 1: where all other concepts should stay, the best that can be is 1/2.

    **Arguments:** `delta`: `[..., concepts]`. `target`: by number. `stay`: concepts that should stay; all others by
    default.
    """
    size = np.abs(np.asarray(delta, float))
    stay = [c for c in range(size.shape[-1]) if c != target] if stay is None else list(stay)
    if target in stay or not stay:
        raise ValueError(f"`stay` must be at least one concept and not the target, {target}, got {stay}")
    total = size[..., target] + size[..., stay].sum(-1)
    return np.divide(size[..., target], total, out=np.full(total.shape, np.nan), where=total > 0)


@eqx.filter_jit
def _summed(model, coder, readout, x, weights, features, strengths, state, *, tokens, site, axis, side_by_side):
    """Δp summed over images, `[features, strengths, concepts]`, and the size of the largest output."""
    model, x = eqx.nn.inference_mode(model), as_seen(x, model)
    said, vectors, shape = seen(model, site, coder, x, state, axis)
    f = on_vectors(lambda v: coder.encode(v)[features], vectors)
    p = jax.nn.softmax(jax.vmap(readout)(said))
    mask, rows = _token_mask(tokens, vectors.shape[1:-1]), coder.W_dec[features].astype(vectors.dtype)

    def moved_by(pair):
        index, strength = pair
        offset = (strength.astype(f.dtype) - f[..., index])[..., None] * rows[index]
        moved = vectors + (offset if mask is None else offset * mask.astype(offset.dtype))
        logits = jax.vmap(readout)(outputs_of(model, site, moved, shape, x, state, axis))
        return jnp.tensordot(weights.astype(p.dtype), jax.nn.softmax(logits) - p, 1)

    index = jnp.broadcast_to(jnp.arange(len(features))[:, None], strengths.shape)
    found = jax.lax.map(moved_by, (index.reshape(-1), strengths.reshape(-1)), batch_size=side_by_side)
    return found.reshape(*strengths.shape, -1), jnp.abs(said).max()


def seen(model, site: str, coder, x, state: tuple, axis: int | None):
    """What the model and its site say of images: outputs, vectors `[images, *positions, d]`, and the value's shape."""
    outputs, values = jax.vmap(lambda one: capture(model, site)(one, *state))(x)
    outputs, value = outputs[0] if state else outputs, values[site]
    if axis is None and value.ndim > 3:
        raise ValueError(f"`axis` must say along which axis of {list(value.shape[1:])} the coder's vectors lie")
    vectors = jnp.moveaxis(value, _behind_images(axis), -1)
    if vectors.shape[-1] != coder.W_dec.shape[1]:
        raise ValueError(f"the coder acts on vectors of {coder.W_dec.shape[1]}, got {vectors.shape[-1]} at {site!r}")
    return outputs, vectors, value.shape[1:]


def outputs_of(model, site: str, vectors, shape, x, state: tuple, axis: int | None):
    """What the model says with these vectors at its site; what stands before the site is dead code."""
    values = jnp.moveaxis(vectors, -1, _behind_images(axis))

    def one(value, image):
        output = edited(model, {site: Set(value.reshape(shape))})(image, *state)
        return output[0] if state else output

    return jax.vmap(one)(values, x)


def on_vectors(function, vectors):
    """A function of a vector, of all of an array `[..., d]`."""
    flat = jax.vmap(function)(vectors.reshape(-1, vectors.shape[-1]))
    return flat.reshape(*vectors.shape[:-1], -1)


def require_reads(coder, site: str) -> None:
    """Raises ValueError for a coder of other sites: a transcoder writes what it does not read."""
    inner = getattr(coder, "coder", coder)
    names = getattr(inner, "sites", None)
    if names is not None and set(names) != {site}:
        raise ValueError(f"the coder must read and write site {site!r}, got one of {' and '.join(map(repr, names))}")


def require_logits(readout: Readout, largest: float) -> None:
    """Raises ValueError for outputs that look like cosines, without a scale."""
    if readout.scale is None and largest <= 1:
        raise ValueError(
            "the model's outputs all lie from -1 to 1, as cosines do: give `readout=Readout(scale=...)`, its own "
            "inverse temperature (1.0 if they are logits)"
        )


def _behind_images(axis: int | None) -> int:
    """The axis of a value along which vectors lie, where images are in front."""
    return -1 if axis is None else axis + 1 if axis >= 0 else axis


@eqx.filter_jit
def _encoded(coder, vectors):
    return on_vectors(coder.encode, jnp.asarray(vectors))


def _paired(coder, features, strengths):
    latents = _decoder(coder).shape[0]
    features = np.asarray(checks.require_within("features", features, f"[0, {latents - 1}]"))
    strengths = np.asarray(checks.require_finite("strengths", strengths), np.result_type(float))
    if features.ndim != 1 or not len(features) or not np.issubdtype(features.dtype, np.integer):
        raise ValueError(f"`features` must be whole numbers [n], at least one, got {checks.shown(features)}")
    if strengths.ndim not in (1, 2) or len(strengths) != len(features) or not strengths.size:
        raise ValueError(f"`strengths` must be [{len(features)}] or [{len(features)}, m], got shape {strengths.shape}")
    return features, strengths


def _unit_rows(name: str, rows):
    rows = jnp.asarray(checks.require_finite(name, rows), float)
    if rows.ndim != 2 or not bool(jnp.all(jnp.linalg.norm(rows, axis=1) > 0)):
        raise ValueError(f"`{name}` must be [concepts, width] with no row of zeros, got shape {rows.shape}")
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
