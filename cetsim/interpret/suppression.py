"""Suppression: which latents hold what a network should not go by, and what switching them off does to each group.

A *group* is the examples of one label with one attribute, such as sevens in red. Where label and attribute agree in
most of the training set, a network may go by the attribute, and errs in groups where they disagree. Latents are ranked
by how far their mean activation differs between groups of equal label; the first m are set to 0, with all else kept:

    x' = x - Σ_{k in the first m} f_k(x) d_k
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim import checks
from cetsim.interpret.edits import _decoder, _token_mask, _tokens
from cetsim.interpret.sites import plain, require_sites
from cetsim.interpret.steering import Readout, on_vectors, outputs_of, require_reads, seen
from cetsim.interpret.store import as_seen
from cetsim.nn import surgery


class GroupAccuracy(NamedTuple):
    """What predictions come to, `[...]` of each set of suppressed latents.

    **Fields:**

    - `average`: share of all examples that are right.
    - `by_group`: of each group's, `[..., groups]`, in the order of `groups`.
    - `worst`: of the group with the lowest.
    - `collateral`: share lost of the examples that are right without suppression; None where these were not given.
    - `groups`: label and attribute of each group, `[groups, 2]`.
    """

    average: np.ndarray
    by_group: np.ndarray
    worst: np.ndarray
    collateral: np.ndarray | None
    groups: np.ndarray


def group_accuracy(predicted, labels, attributes, before=None) -> GroupAccuracy:
    """Accuracies by group.

    **Arguments:** `predicted`: classes `[..., examples]`. `labels`, `attributes`: `[examples]`. `before`: classes
    predicted without suppression, `[examples]`.

    **Raises:** ValueError for other lengths, or no examples.
    """
    labels, attributes = _groups(labels, attributes)
    if np.shape(predicted)[-1:] != labels.shape or (before is not None and np.shape(before) != labels.shape):
        shapes = f"{np.shape(predicted)}" + ("" if before is None else f", and before {np.shape(before)}")
        raise ValueError(f"`predicted` must be [..., {len(labels)}] of the labels, got {shapes}")
    right = np.asarray(predicted) == labels
    groups, of_example = np.unique(np.stack([labels, attributes], 1), axis=0, return_inverse=True)
    of_example = of_example.reshape(-1)
    by_group = np.stack([right[..., of_example == g].mean(-1) for g in range(len(groups))], axis=-1)
    lost = None
    if before is not None:
        had = np.asarray(before) == labels
        lost = (had & ~right).sum(-1) / max(1, had.sum())
    return GroupAccuracy(right.mean(-1), by_group, by_group.min(-1), lost, groups)


def mean_activations(model, site: str, coder, x, *state, axis: int | None = None, batch: int = 256):
    """Each latent's mean over an image's positions, and the share of all positions at which it is above zero.

    **Arguments:** as of `suppress`.

    **Returns:** `[images, latents]`, `[latents]`.

    **Raises:** ValueError for a site or coder that do not go together.
    """
    require_sites(plain(model), [site])
    require_reads(coder, site)
    x, batch = checks.require_examples(x, fetch=False), checks.require_whole("batch", batch)
    parts = [_activity(model, coder, x[i : i + batch], state, site=site, axis=axis) for i in range(0, len(x), batch)]
    mean, active = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2))
    return mean, active.mean(0)


def group_differences(activations, labels, attributes) -> np.ndarray:
    """How far each latent's mean activation differs between groups of equal label, `[latents]`.

    Of each attribute the mean over labels of (mean of the group - mean of the label's groups); of these the largest
    less the smallest. With two attributes it is |mean over labels of the difference|. Labels with one group count for
    nothing.

    **Arguments:** `activations`: `[examples, latents]`, or `[examples, *positions, latents]`, whose mean over positions
    counts. `labels`, `attributes`: `[examples]`, of validation data, in which each label has several attributes.

    **Raises:** ValueError where no label has two groups.
    """
    labels, attributes = _groups(labels, attributes)
    f = np.asarray(checks.require_finite("activations", activations))
    if f.ndim < 2 or len(f) != len(labels):
        raise ValueError(f"`activations` must be [{len(labels)}, ..., latents] of the labels, got shape {f.shape}")
    f = f.reshape(len(f), -1, f.shape[-1]).mean(1, dtype=float)
    kinds = np.unique(attributes)
    total, count = np.zeros((len(kinds), f.shape[-1])), np.zeros(len(kinds))
    for label in np.unique(labels):
        of_kind = {i: f[(labels == label) & (attributes == kind)] for i, kind in enumerate(kinds)}
        means = {i: rows.mean(0) for i, rows in of_kind.items() if len(rows)}
        if len(means) > 1:
            middle = np.mean(list(means.values()), axis=0)
            for i, mean in means.items():
                total[i], count[i] = total[i] + mean - middle, count[i] + 1
    if not count.any():
        raise ValueError("a label must have examples of at least two attributes: nothing tells the attribute apart")
    effects = total[count > 0] / count[count > 0, None]
    return effects.max(0) - effects.min(0)


def frequency_matched(chosen, frequency, rng: np.random.Generator, nearest: int = 5) -> np.ndarray:
    """For each chosen latent another that is active about as often, none twice: a control, `[n]`.

    **Arguments:** `chosen`: latents by number, `[n]`. `frequency`: of all latents, `[latents]`. `nearest`: among how
    many of those nearest in frequency one is drawn.

    **Raises:** ValueError for too few latents.
    """
    chosen, frequency = _chosen(chosen, len(frequency)), np.asarray(frequency, float)
    free = np.setdiff1d(np.arange(len(frequency)), chosen)
    if len(free) < len(chosen):
        raise ValueError(f"`chosen` must be at most half of the {len(frequency)} latents, got {len(chosen)}")
    found = []
    for latent in chosen:
        near = free[np.argsort(np.abs(frequency[free] - frequency[latent]), kind="stable")][:nearest]
        found.append(rng.choice(near))
        free = free[free != found[-1]]
    return np.array(found, int)


def first_of(order, counts, latents: int) -> np.ndarray:
    """Which latents the first m of an order are, for several m: booleans `[len(counts), latents]`.

    **Arguments:** `order`: latents by number, the first to be suppressed first. `counts`: each m, from 0.
    """
    order, masks = _chosen(order, latents), np.zeros((len(counts), latents), bool)
    for mask, count in zip(masks, counts, strict=True):
        if not 0 <= count <= len(order):
            raise ValueError(f"`counts` must be from 0 to the {len(order)} latents of the order, got {count}")
        mask[order[:count]] = True
    return masks


def suppress(model, site: str, coder, masks, x, *state, readout: Readout | None = None, tokens=None,
             axis: int | None = None, batch: int = 256, side_by_side: int = 4) -> np.ndarray:  # fmt: skip
    """Concepts that the model predicts with each set of latents switched off, all sets in one program.

    The same as `edited(model, {site: Clamp(coder, latents, 0.0)})`, a set after the other.

    **Arguments:** `masks`: which latents are switched off, booleans `[sets, latents]`, such as from `first_of`. The
    rest as of `steer`.

    **Returns:** the concept with the largest logit, `[sets, images]`.

    **Raises:** ValueError for masks of another shape, and a site or coder that do not go together.
    """
    masks, latents = np.asarray(masks), _decoder(coder).shape[0]
    if masks.ndim != 2 or masks.shape[1] != latents or masks.dtype != bool or not len(masks):
        raise ValueError(f"`masks` must be booleans [sets, {latents}], got {masks.dtype} of shape {masks.shape}")
    require_sites(plain(model), [site])
    require_reads(coder, site)
    batch, side_by_side = checks.require_whole("batch", batch), checks.require_whole("side_by_side", side_by_side)
    x, readout = checks.require_examples(x, fetch=False), Readout() if readout is None else readout
    batch, found = min(batch, len(x)), []
    for start in range(0, len(x), batch):
        some = jnp.asarray(x[np.minimum(np.arange(start, start + batch), len(x) - 1)])  # the last is filled up
        options = dict(tokens=_tokens(tokens), site=site, axis=axis, side_by_side=side_by_side)
        found.append(np.asarray(_predicted(model, coder, readout, some, jnp.asarray(masks), state, **options)))
    return np.concatenate(found, axis=1)[:, : len(x)]


def retrained(model, layer: str, features, labels, attributes, l2=1e-3):
    """The model with its last layer retrained so that each group weighs the same: the strong baseline.

    Multinomial regression on what goes into the layer, to the minimum of the mean over groups of the mean
    cross-entropy, plus l2 ‖W‖² / 2 of standardised inputs.

    **Arguments:** `layer`: name of an `eqx.nn.Linear` with a bias, whose outputs are the classes. `features`: what it
    gets, `[examples, inputs]`, of validation data. `labels`, `attributes`: `[examples]`.

    **Raises:** ValueError for what is no such layer, or other lengths.

    **Reference:** Kirichenko, Izmailov and Wilson (2023), arXiv:2204.02937, who balance by leaving examples out.
    """
    labels, attributes = _groups(labels, attributes)
    place = require_sites(plain(model), [layer])[layer]
    head, features = place.node, np.asarray(checks.require_finite("features", features), float)
    if not isinstance(head, eqx.nn.Linear) or head.bias is None or np.ndim(head.bias) != 1:
        raise ValueError(f"`layer` must be an eqx.nn.Linear with a bias, got {type(head).__name__} {layer!r}")
    classes, width = head.weight.shape
    if features.shape != (len(labels), width):
        raise ValueError(f"`features` must be [{len(labels)}, {width}], what {layer!r} gets, got {features.shape}")
    checks.require_labels(labels, len(labels), classes)
    checks.require_at_least("l2", l2, 0.0)
    mean, sd = features.mean(0), features.std(0)
    sd = np.where(sd > 1e-6 * max(sd.max(), 1e-12), sd, np.inf)  # what is constant says nothing
    weight, bias = _fitted((features - mean) / sd, labels, _balanced(labels, attributes), classes, l2)
    weight, bias = weight / sd, bias - (weight / sd) @ mean
    fields = [jnp.asarray(new, old.dtype) for new, old in zip((weight, bias), (head.weight, head.bias), strict=True)]
    changed = eqx.tree_at(lambda layer: [layer.weight, layer.bias], head, fields)
    return surgery.update(plain(model), {place.path: lambda node: changed})


@eqx.filter_jit
def _predicted(model, coder, readout, x, masks, state, *, tokens, site, axis, side_by_side):
    """The concept with the largest logit of each image, `[sets, images]`."""
    model, x = eqx.nn.inference_mode(model), as_seen(x, model)
    _, vectors, shape = seen(model, site, coder, x, state, axis)
    f, where = on_vectors(coder.encode, vectors), _token_mask(tokens, vectors.shape[1:-1])

    def without(mask):
        taken = ((f * mask.astype(f.dtype)) @ coder.W_dec).astype(vectors.dtype)
        left = vectors - (taken if where is None else taken * where.astype(taken.dtype))
        return jax.vmap(readout)(outputs_of(model, site, left, shape, x, state, axis)).argmax(-1)

    return jax.lax.map(without, masks, batch_size=side_by_side)


@eqx.filter_jit
def _activity(model, coder, x, state, *, site, axis):
    """Means over positions of the latents, and of whether they are active, `[images, latents]` both."""
    model, x = eqx.nn.inference_mode(model), as_seen(x, model)
    _, vectors, _ = seen(model, site, coder, x, state, axis)
    f = on_vectors(coder.encode, vectors)
    f = f.reshape(len(f), -1, f.shape[-1])
    return f.mean(1), (f > 0).mean(1, dtype=f.dtype)


def _fitted(x, labels, weights, classes: int, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[classes, inputs]` and biases of the regression's minimum."""
    wanted = np.eye(classes)[labels]

    def loss(flat):
        w, b = flat[: classes * x.shape[1]].reshape(classes, -1), flat[classes * x.shape[1] :]
        log = scipy.special.log_softmax(x @ w.T + b, axis=1)
        slope = weights[:, None] * (np.exp(log) - wanted)
        value = -(weights * log[np.arange(len(x)), labels]).sum() + l2 / 2 * (w**2).sum()
        return value, np.concatenate([(slope.T @ x + l2 * w).ravel(), slope.sum(0)])

    start = np.zeros(classes * (x.shape[1] + 1))
    import scipy.optimize  # here, since it changes the filters of warnings

    best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=dict(maxiter=500))
    return best.x[: classes * x.shape[1]].reshape(classes, -1), best.x[classes * x.shape[1] :]


def _balanced(labels, attributes) -> np.ndarray:
    """Weights of examples that sum to 1, and to the same in each group."""
    _, of_example, counts = np.unique(
        np.stack([labels, attributes], 1), axis=0, return_inverse=True, return_counts=True
    )
    return 1 / (counts[of_example.reshape(-1)] * len(counts))


def _groups(labels, attributes) -> tuple[np.ndarray, np.ndarray]:
    labels, attributes = (
        np.asarray(checks.require_numbers(n, v)) for n, v in (("labels", labels), ("attributes", attributes))
    )
    if labels.ndim != 1 or labels.shape != attributes.shape or not len(labels):
        shapes = f"{labels.shape} and {attributes.shape}"
        raise ValueError(f"`labels` and `attributes` must be [examples], at least one, got shapes {shapes}")
    return labels, attributes


def _chosen(chosen, latents: int) -> np.ndarray:
    chosen = np.asarray(chosen)
    if chosen.ndim != 1 or (len(chosen) and not np.issubdtype(chosen.dtype, np.integer)):
        raise ValueError(f"latents must be whole numbers [n], got {checks.shown(chosen)}")
    if len(set(chosen.tolist())) < len(chosen) or not np.isin(chosen, np.arange(latents)).all():
        raise ValueError(f"latents must be different ones of 0 to {latents - 1}, got {checks.shown(chosen)}")
    return chosen.astype(int)
