"""What a network loses when a coder stands in place of a site: cross-entropies, and the share of the loss recovered."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from cetsim import checks
from cetsim.interpret.capture import capture, edited
from cetsim.interpret.coder import Coder
from cetsim.interpret.edits import Set
from cetsim.interpret.store import as_seen


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
        logits = {name: scale * (output[0] if state else output) for name, output in outputs.items()}
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return {name: entropy(values, label) for name, values in logits.items()}, jnp.abs(logits["clean"]).max()

    losses, largest = jax.vmap(one)(as_seen(x, model), labels)
    return jax.tree.map(lambda loss: loss.sum(0), losses) | {"largest": largest.max()}


def summed_losses(coder, model, x, labels, state, axis, logit_scale, mean, batch: int) -> list[dict]:
    """Summed cross-entropies of each batch."""
    scale = 1.0 if logit_scale is None else checks.require_static("logit_scale", logit_scale)

    @eqx.filter_jit
    def sums(coder, model, x, labels, state):
        return cross_entropies(coder, model, x, labels, mean, *state, axis=axis, scale=scale)

    found = []
    for start in range(0, len(x), batch):
        some = slice(start, start + batch)
        of_batch = sums(coder, model, jnp.asarray(x[some]), labels[some], state)
        found.append({name: np.asarray(value, float) for name, value in of_batch.items()})
        if not np.isfinite(found[-1]["clean"]):
            where, got = f"{start} to {min(some.stop, len(x)) - 1}", found[-1]["clean"]
            raise ValueError(f"the model's loss must be finite, got {got} on examples {where}")
    if logit_scale is None and max(of_batch["largest"] for of_batch in found) <= 1:
        raise ValueError(
            "the model's outputs all lie from -1 to 1, as cosines do: give `logit_scale`, its own inverse temperature "
            "(1.0 if they are logits)"
        )
    return [{name: value for name, value in of_batch.items() if name != "largest"} for of_batch in found]
