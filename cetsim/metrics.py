"""What is measured of a run: accuracy, and how far a rule's update points along the true gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from cetsim import checks


def accuracy(logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"], top: int = 1) -> Float[Array, ""]:
    """Share of examples whose label's logit is among the `top` largest.

    **Raises:** ValueError for `top` below 1 or above the number of classes, or another number of labels than examples.
    """
    top = checks.require_whole("top", top)
    if jnp.shape(labels) != logits.shape[:-1]:
        raise ValueError(f"`labels` must have shape {logits.shape[:-1]}, one a row of logits, got {jnp.shape(labels)}")
    labels = jnp.asarray(labels)
    if not top <= logits.shape[-1]:
        raise ValueError(f"`top` must be 1 to the number of classes, {logits.shape[-1]}, got {top}")
    if top == 1:
        return jnp.mean(jnp.argmax(logits, axis=-1).astype(int) == labels.astype(int), dtype=logits.dtype)
    _, largest = jax.lax.top_k(logits, top)
    return jnp.mean(jnp.any(largest.astype(int) == labels[:, None].astype(int), axis=-1), dtype=logits.dtype)


def cosine(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, ""]:
    """Cosine of the angle between two arrays taken as vectors; 0 where one of them is 0."""
    squares = jnp.sum(a**2), jnp.sum(b**2)
    sizes = [jnp.sqrt(jnp.where(square > 0, square, 1.0)) for square in squares]  # a slope at 0 would be infinite
    return jnp.sum(a * b) / (sizes[0] * sizes[1])


def alignment(update, gradient) -> dict[str, Float[Array, ""]]:
    """Cosine between a rule's update and the true gradient, per layer, of the weights alone (not the biases).

    **Arguments:** `update`, `gradient`: trees of one structure, such as the gradients of a plain Equinox model
    (`cetsim.nn.detach` makes one of an attached model's).

    **Returns:** by layer name, such as `layers.0`.

    **Raises:** ValueError if the structures differ or hold no layer with a `weight`.

    **Reference:** arXiv:2506.14598, figures of gradient alignment.
    """
    if jax.tree.structure(update) != jax.tree.structure(gradient):
        raise ValueError("`update` and `gradient` must have one structure: `detach` what came of an attached model")
    leaves, _ = jax.tree_util.tree_flatten_with_path(update)
    pairs = zip(leaves, jax.tree.leaves(gradient), strict=True)
    names = ((jax.tree_util.keystr(path, simple=True, separator="."), a, b) for (path, a), b in pairs)
    cosines = {name.rpartition(".")[0]: cosine(a, b) for name, a, b in names if name.rpartition(".")[2] == "weight"}
    if not cosines:
        raise ValueError("there is no layer with a `weight` to compare")
    return cosines
