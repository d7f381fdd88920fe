"""How good a coder is: what it explains, how sparse it is, and what its network loses when it is put in place.

    explained variance = 1 - Σ ‖y - ŷ‖² / Σ ‖y - ȳ‖²,   ȳ the mean of the whole set
    loss recovered = (L_zero - L_spliced) / (L_zero - L_clean)

Sums are over the whole set: a mean of ratios of batches or tokens would be another number. Confidence is the standard
error of the jackknife over batches of examples.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from cetsim import checks
from cetsim.interpret.capture import capture, edited
from cetsim.interpret.coder import Coder
from cetsim.interpret.crosscoder import Crosscoder
from cetsim.interpret.edits import Set
from cetsim.interpret.store import Activations, as_seen

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
    mean = jax.tree.map(lambda own: own.mean(0), y)
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


def evaluate(coder: Coder, store: Activations, model=None, x=None, labels=None, *state, axis: int | None = None,
             logit_scale: float | None = None, dense: float = DENSE, batch: int = 256) -> Evaluation:  # fmt: skip
    """All that is measured of an SAE or a transcoder, on a test set.

    `values` has `explained_variance`, `cosine` (mean over vectors), `l0` (active latents of a vector), `l0_cls` and
    `l0_patches` where the store has class tokens, `l0_image` (latents active anywhere in an example), `dead` (share of
    latents not active once in the whole set), `dense` (share active in more than `dense` of all vectors). With a model
    also the cross-entropies `loss_clean`, `loss_spliced`, `loss_zero` and `loss_mean` of the site as it is, as the
    coder has it, at 0 and at its mean, and `loss_recovered`.

    **Arguments:**

    - `coder`: made with `sites`, which are those of the store that it is evaluated on.
    - `store`: of the test set.
    - `model`, `x`, `labels`: the network whose output for `x[i]` is the logits of `labels[i]`, in the store's order.
    - `state`: what the model is called with besides.
    - `axis`: of the site's value along which vectors lie, as in `record`.
    - `logit_scale`: what the outputs are multiplied with, the model's own inverse temperature, such as 100 in CLIP.
      None for outputs that are logits; refused where all lie from -1 to 1, as cosines do.
    - `batch`: examples at once.

    **Raises:** ValueError for a store of other sites or of another model, and data that do not go with it.
    """
    if not isinstance(coder, Coder) or coder.sites is None:
        raise ValueError("`coder` must be a Coder with the names of its `sites`")
    site_in, site_out = (store.require(name) for name in coder.sites)
    sums = _sums_of_store(coder, store, site_in, site_out, batch)
    if model is not None:
        if x is None or labels is None or len(x) != store.examples:
            raise ValueError(f"`x` and `labels` must be the store's {store.examples} examples, got {np.shape(x)}")
        store.require_model(model)
        labels = checks.require_labels(labels, store.examples)
        losses = _losses(coder, model, x, labels, state, axis, logit_scale, store.mean(site_out), batch)
        sums = [own | more for own, more in zip(sums, losses, strict=True)]
    total = {name: sum(own[name] for own in sums) for name in sums[0]}
    values = _measured(total, dense)
    left_out = [_measured({n: total[n] - own[n] for n in total}, dense) for own in sums] if len(sums) > 1 else []
    errors = {}
    for name in values if left_out else ():
        each = np.array([one[name] for one in left_out])
        errors[name] = float(np.sqrt((len(each) - 1) * np.mean((each - each.mean()) ** 2)))
    for name in ("dead", "dense"):  # not smooth in the batches
        errors.pop(name, None)
    with np.errstate(divide="ignore"):
        return Evaluation(values, errors, np.log10(total["fired"] / total["vectors"]))


def recovered(clean, spliced, zero):
    """Loss recovered; nan where setting the site to 0 loses nothing."""
    gap = zero - clean
    return jnp.where(gap != 0, (zero - spliced) / jnp.where(gap != 0, gap, 1), jnp.nan)


def cross_entropies(coder: Coder, model, x, labels, mean, *state, sites=None, axis=None, scale=1.0) -> dict[str, Array]:
    """Cross-entropies summed over examples: `clean`, `spliced`, `zero`, `mean`; pure, so that it maps and compiles.

    **Arguments:** `x`: `[examples, ...]`. `mean`: the site's mean vector. `sites`: of the coder, if it does not name
    them. The rest as of `evaluate`.
    """
    site_in, site_out = sites or coder.sites
    model = eqx.nn.inference_mode(model)

    def one(x, label):
        output, values = capture(model, dict.fromkeys((site_in, site_out)))(x, *state)
        shape = values[site_out].shape
        along = -1 if axis is None or len(shape) == 1 else axis
        seen = coder(jnp.moveaxis(values[site_in], along, -1))
        level = jnp.moveaxis(jnp.broadcast_to(jnp.asarray(mean, seen.dtype), seen.shape), -1, along)
        targets = {"spliced": jnp.moveaxis(seen, -1, along), "zero": jnp.zeros(shape), "mean": level}
        outputs = {"clean": output} | {
            name: edited(model, {site_out: Set(target)})(x, *state) for name, target in targets.items()
        }
        logits = {name: scale * (own[0] if state else own) for name, own in outputs.items()}
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return {name: entropy(own, label) for name, own in logits.items()}, jnp.abs(logits["clean"]).max()

    losses, largest = jax.vmap(one)(as_seen(x, model), labels)
    return jax.tree.map(lambda own: own.sum(0), losses) | {"largest": largest.max()}


def _sums(coder, x, y, mean) -> dict[str, Array]:
    """Sums over vectors of what ratios are made of."""
    f = coder.encode(x)
    ŷ = coder.decode(f, x)
    pairs = list(zip(*map(jax.tree.leaves, (y, ŷ, mean)), strict=True))
    norm = lambda own: jnp.linalg.norm(own, axis=-1)  # noqa: E731
    cosines = [jnp.sum(a * b, -1) / jnp.maximum(norm(a) * norm(b), jnp.finfo(a.dtype).tiny) for a, b, _ in pairs]
    return {
        "error": sum(jnp.sum((a - b) ** 2) for a, b, _ in pairs),
        "spread": sum(jnp.sum((a - m.astype(a.dtype)) ** 2) for a, _, m in pairs),
        "cosine": sum(own.sum() for own in cosines) / len(cosines),
        "fired": jnp.sum(f > 0, axis=0).astype(f.dtype),
        "vectors": jnp.asarray(len(f), f.dtype),
    }


def _ratios(total: dict, dense: float) -> dict:
    share = total["fired"] / total["vectors"]
    return {
        "explained_variance": 1 - total["error"] / total["spread"],
        "l0": total["fired"].sum() / total["vectors"],
        "cosine": total["cosine"] / total["vectors"],
        "dead": (total["fired"] == 0).mean(dtype=share.dtype),
        "dense": (share > dense).mean(dtype=share.dtype),
    }


def _measured(total: dict, dense: float) -> dict[str, float]:
    values = {name: float(value) for name, value in _ratios(total, dense).items()}
    values["l0_image"] = float(total["in_example"] / total["examples"])
    for name in ("cls", "patches"):
        if total[f"{name}_vectors"]:
            values[f"l0_{name}"] = float(total[f"{name}_fired"] / total[f"{name}_vectors"])
    if "clean" in total:
        values |= {f"loss_{n}": float(total[n] / total["examples"]) for n in ("clean", "spliced", "zero", "mean")}
        values["loss_recovered"] = float(recovered(total["clean"], total["spliced"], total["zero"]))
    return values


def _sums_of_store(coder, store: Activations, site_in: str, site_out: str, batch: int) -> list[dict]:
    """Sums of each batch of examples, in float64."""
    tokens, classes = store.tokens[site_in], store.classes[site_in]
    if tokens != store.tokens[site_out]:
        raise ValueError(f"the sites {site_in!r} and {site_out!r} must have as many vectors an example")
    for name, width in ((site_in, coder.W_enc.shape[0]), (site_out, coder.W_dec.shape[1])):
        if store.widths[name] != width:
            raise ValueError(f"the coder is of vectors of {width}, site {name!r} of the store has {store.widths[name]}")
    mean = store.mean(site_out)

    @eqx.filter_jit
    def sums(coder, x, y):
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

    pairs = zip(store.batches(site_in, batch * tokens), store.batches(site_out, batch * tokens), strict=True)
    as_float = lambda own: np.asarray(own, float)  # noqa: E731
    return [jax.tree.map(as_float, sums(coder, jnp.asarray(x), jnp.asarray(y))) for x, y in pairs]


def _losses(coder, model, x, labels, state, axis, logit_scale, mean, batch: int) -> list[dict]:
    """Summed cross-entropies of each batch."""
    scale = 1.0 if logit_scale is None else checks.require_static("logit_scale", logit_scale)

    @eqx.filter_jit
    def sums(coder, model, x, labels, state):
        return cross_entropies(coder, model, x, labels, mean, *state, axis=axis, scale=scale)

    found = []
    for start in range(0, len(x), batch):
        some = slice(start, start + batch)
        own = sums(coder, model, jnp.asarray(x[some]), labels[some], state)
        found.append({name: np.asarray(value, float) for name, value in own.items()})
    if logit_scale is None and max(own["largest"] for own in found) <= 1:
        raise ValueError(
            "the model's outputs all lie from -1 to 1, as cosines do: give `logit_scale`, its own inverse temperature "
            "(1.0 if they are logits)"
        )
    return [{name: value for name, value in own.items() if name != "largest"} for own in found]
