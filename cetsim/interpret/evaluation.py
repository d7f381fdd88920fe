"""How good a coder is: what it explains, how sparse it is, and what its network loses when it is put in place.

    explained variance = 1 - Σ ‖y - ŷ‖² / Σ ‖y - ȳ‖²,   ȳ the mean of the whole set
    loss recovered = (L_zero - L_spliced) / (L_zero - L_clean)

Sums are over the whole set: a mean of ratios of batches or tokens would be another number. Of a crosscoder they are
also over sites, in the units in which it compares them. Confidence is the standard
error of the jackknife over batches of examples.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cetsim import checks
from cetsim.interpret.coder import Coder
from cetsim.interpret.crosscoder import Crosscoder
from cetsim.interpret.splicing import recovered, summed_losses
from cetsim.interpret.store import Activations

DENSE = 0.1  # share of vectors above which a latent is dense


class Evaluation(NamedTuple):
    """What was found.

    **Fields:** `values`: by name, see `evaluate`. `errors`: their standard errors, where they are of sums over batches.
    `log_frequency`: log10 of the share of vectors in which each latent is active, -inf for a dead one.
    """

    values: dict[str, float]
    errors: dict[str, float]
    log_frequency: np.ndarray


def quality(coder: Coder | Crosscoder, x, y=None, dense: float = DENSE, batch: int = 4096) -> dict[str, Array]:
    """Explained variance, sparsity and cosine on vectors in memory; pure, so that it maps and compiles.

    **Arguments:** `x`: `[vectors, width]`, or a tuple of them for a crosscoder. `y`: what is to be reconstructed; `x`
    by default. `dense`: share of vectors above which a latent is dense. `batch`: vectors at once.

    **Returns:** `explained_variance`, `l0`, `cosine`, `dead`, `dense` (shares of the latents).
    """
    y = x if y is None else y
    mean = jax.tree.map(lambda part: part.mean(0), y)
    count = len(jax.tree.leaves(x)[0])
    whole = count // batch * batch

    def sums(x, y):
        return _sums(coder, x, y, mean)

    cut = lambda tree: jax.tree.map(lambda a: a[:whole].reshape(-1, batch, a.shape[-1]), tree)  # noqa: E731
    total = None
    if whole:
        parts = jax.lax.map(lambda pair: sums(*pair), (cut(x), cut(y)))
        total = jax.tree.map(lambda part: part.sum(0), parts)
    if count > whole:
        rest = sums(*jax.tree.map(lambda a: a[whole:], (x, y)))
        total = rest if total is None else jax.tree.map(jnp.add, total, rest)
    return _ratios(total, dense)


def evaluate(coder: Coder | Crosscoder, store: Activations, model=None, x=None, labels=None, *state,
             axis: int | None = None, logit_scale: float | None = None, dense: float = DENSE,
             batch: int = 256) -> Evaluation:  # fmt: skip
    """All that is measured of a coder on a test set.

    `values` has `explained_variance`, `cosine` (mean over vectors), `l0` (active latents of a vector), `l0_cls` and
    `l0_patches` where the store has class tokens, `l0_image` (latents active anywhere in an example), `dead` (share of
    latents not active once in the whole set), `dense` (share active in more than `dense` of all vectors). Of a
    crosscoder, `explained_variance` is over all sites, and `explained_variance_SITE` of each. With a model there are
    also the cross-entropies `loss_clean`, `loss_spliced`, `loss_zero` and `loss_mean` of the site as it is, as the
    coder has it, at 0 and at its mean, and `loss_recovered`.

    **Arguments:**

    - `coder`: made with `sites`, which are those of the store that it is evaluated on.
    - `store`: of the test set.
    - `model`, `x`, `labels`: the network whose output for `x[i]` is the logits of `labels[i]`, in the store's order;
      none for a crosscoder, which stands for several sites at once.
    - `state`: what the model is called with besides.
    - `axis`: of the site's value along which vectors lie, as in `record`.
    - `logit_scale`: what the outputs are multiplied with, the model's own inverse temperature, such as 100 in CLIP.
      None for outputs that are logits; refused where all lie from -1 to 1, as cosines do.
    - `batch`: examples at once.

    **Raises:** ValueError for a store of other sites or of another model, data that do not go with it, and a crosscoder
    with a model.
    """
    if not isinstance(coder, Coder | Crosscoder) or coder.sites is None:
        raise ValueError("`coder` must be a Coder or a Crosscoder with the names of its `sites`")
    sites, joint = [store.require(name) for name in coder.sites], isinstance(coder, Crosscoder)
    if joint and model is not None:
        raise ValueError("`model` must be None for a crosscoder, which stands for several sites: got one with a model")
    sums = _sums_of_store(coder, store, batch)
    if model is not None:
        if x is None or labels is None or len(x) != store.examples:
            raise ValueError(f"`x` and `labels` must be the store's {store.examples} examples, got {np.shape(x)}")
        store.require_model(model)
        labels = checks.require_labels(labels, store.examples)
        losses = summed_losses(coder, model, x, labels, state, axis, logit_scale, store.mean(sites[1]), batch)
        sums = [of_batch | more for of_batch, more in zip(sums, losses, strict=True)]
    total = {name: sum(of_batch[name] for of_batch in sums) for name in sums[0]}
    names = sites if joint else ()
    values = _measured(total, dense, names)
    others = [{n: total[n] - of_batch[n] for n in total} for of_batch in sums] if len(sums) > 1 else []
    left_out = [_measured(other, dense, names) for other in others]
    errors = {}
    for name in values if left_out else ():
        each = np.array([one[name] for one in left_out])
        errors[name] = float(np.sqrt((len(each) - 1) * np.mean((each - each.mean()) ** 2)))
    for name in ("dead", "dense"):  # not smooth in the batches
        errors.pop(name, None)
    with np.errstate(divide="ignore"):
        return Evaluation(values, errors, np.log10(total["fired"] / total["vectors"]))


def _sums(coder, x, y, mean) -> dict[str, Array]:
    """Sums over vectors of what ratios are made of; `error` and `spread` by site, in the units of a crosscoder."""
    f = coder.encode(x)
    ŷ = coder.decode(f, x)
    pairs = list(zip(*map(jax.tree.leaves, (y, ŷ, mean)), strict=True))
    units = [jnp.asarray(scale, f.dtype) ** 2 for scale in getattr(coder, "scales", (1.0,))]
    norm = lambda vectors: jnp.linalg.norm(vectors, axis=-1)  # noqa: E731
    cosines = [jnp.sum(a * b, -1) / jnp.maximum(norm(a) * norm(b), jnp.finfo(a.dtype).tiny) for a, b, _ in pairs]
    errors = [jnp.sum((a - b) ** 2) * u for (a, b, _), u in zip(pairs, units, strict=True)]
    spreads = [jnp.sum((a - m.astype(a.dtype)) ** 2) * u for (a, _, m), u in zip(pairs, units, strict=True)]
    return {
        "error": jnp.stack(errors),
        "spread": jnp.stack(spreads),
        "cosine": sum(of_site.sum() for of_site in cosines) / len(cosines),
        "fired": jnp.sum(f > 0, axis=0).astype(f.dtype),
        "vectors": jnp.asarray(len(f), f.dtype),
    }


def _ratios(total: dict, dense: float) -> dict:
    share = total["fired"] / total["vectors"]
    return {
        "explained_variance": 1 - total["error"].sum() / total["spread"].sum(),
        "l0": total["fired"].sum() / total["vectors"],
        "cosine": total["cosine"] / total["vectors"],
        "dead": (total["fired"] == 0).mean(dtype=share.dtype),
        "dense": (share > dense).mean(dtype=share.dtype),
    }


def _measured(total: dict, dense: float, sites=()) -> dict[str, float]:
    values = {name: float(value) for name, value in _ratios(total, dense).items()}
    for site, error, spread in zip(sites, total["error"], total["spread"], strict=False):
        values[f"explained_variance_{site}"] = float(1 - error / spread)
    values["l0_image"] = float(total["in_example"] / total["examples"])
    for name in ("cls", "patches"):
        if total[f"{name}_vectors"]:
            values[f"l0_{name}"] = float(total[f"{name}_fired"] / total[f"{name}_vectors"])
    if "clean" in total:
        values |= {f"loss_{n}": float(total[n] / total["examples"]) for n in ("clean", "spliced", "zero", "mean")}
        values["loss_recovered"] = float(recovered(total["clean"], total["spliced"], total["zero"]))
    return values


def _sums_of_store(coder, store: Activations, batch: int) -> list[dict]:
    """Sums of each batch of examples, in float64."""
    sites, widths = coder.sites, _widths(coder)
    tokens, classes = store.tokens[sites[0]], store.classes[sites[0]]
    if len({store.tokens[name] for name in sites}) > 1:
        counts = {name: store.tokens[name] for name in sites}
        raise ValueError(f"the sites of a coder must have as many vectors an example, got {counts}")
    for name, width in zip(sites, widths, strict=True):
        if store.widths[name] != width:
            raise ValueError(f"the coder is of vectors of {width}, site {name!r} of the store has {store.widths[name]}")
    joint = isinstance(coder, Crosscoder)
    means = tuple(store.mean(name) for name in sites)
    mean = means if joint else means[1]

    parts = zip(*(store.batches(name, batch * tokens) for name in sites), strict=True)
    as_float = lambda values: np.asarray(values, float)  # noqa: E731
    sums = lambda part: _sums_of_batch(coder, tuple(map(jnp.asarray, part)), mean, tokens, classes)  # noqa: E731
    return [jax.tree.map(as_float, sums(part)) for part in parts]


@eqx.filter_jit
def _sums_of_batch(coder, vectors: tuple, mean, tokens: int, classes: int) -> dict:
    """Sums over a batch of examples; compiled once for all coders and stores of the same shapes."""
    x, y = (vectors, vectors) if isinstance(coder, Crosscoder) else vectors
    active = (coder.encode(x) > 0).reshape(-1, tokens, coder.latents)
    of_cls, of_patches = active[:, :classes].sum(), active[:, classes:].sum()
    return _sums(coder, x, y, mean) | {
        "in_example": active.any(1).sum(),
        "examples": len(active),
        "cls_fired": of_cls,
        "cls_vectors": len(active) * classes,
        "patches_fired": of_patches,
        "patches_vectors": len(active) * (tokens - classes) if classes else 0,
    }


def _widths(coder) -> list[int]:
    """Widths of the vectors at a coder's sites."""
    if isinstance(coder, Crosscoder):
        return [len(b) for b in coder.b_dec]
    return [coder.W_enc.shape[0], coder.W_dec.shape[1]]
