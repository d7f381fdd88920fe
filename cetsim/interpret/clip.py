"""CLIP's text tower, and both towers together."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret.transformer import Block, Linear
from cetsim.interpret.vit import VisionTransformer, initial

TEXT_POOLS = ("eos", "argmax", "last")


class TextTransformer(eqx.Module):
    """A transformer of one text, whole numbers `[tokens]`, at most as many as it has positions.

    Sites as of a `VisionTransformer`: `embed`, `tokens`, `blocks.i` and what is in them, `norm`, `pooled`, `head`.

    **Arguments:**

    - `vocabulary`: how many tokens there are. `length`: of the longest text.
    - `width`, `depth`, `heads`, `hidden`, `mlp`, `eps`: of the blocks, as of a `VisionTransformer`.
    - `classes`: outputs of the head, a linear layer with a bias if `head_bias`; None for no head.
    - `causal`: whether tokens see only those before them.
    - `pool`: which token is read: `"eos"`, the first that is `eos`; `"argmax"`, the largest number (OpenAI's
      vocabulary ends with the end of text); or `"last"`.

    **Raises:** ValueError for words that are not among those above, and `eos` without its number.

    **Reference:** Radford et al., Learning transferable visual models from natural language supervision (2021).
    """

    embed: eqx.nn.Embedding
    positions: Float[Array, "length width"]
    tokens: eqx.nn.Identity
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    pooled: eqx.nn.Identity
    head: Linear | None
    pooling: str = eqx.field(static=True)
    eos: int | None = eqx.field(static=True)

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        classes: int | None = None,
        mlp: str = "quick_gelu",
        causal: bool = True,
        pool: str = "argmax",
        eos: int | None = None,
        eps: float = 1e-5,
        head_bias: bool = False,
        key: Array,
    ):
        checks.require_in("pool", pool, TEXT_POOLS)
        if (pool == "eos") != (eos is not None):
            raise ValueError(f"pool='eos' and the number of that token, `eos`, go together, got {pool!r} and {eos}")
        keys = jax.random.split(key, depth + 3)
        embed = 0.02 * jax.random.normal(keys[0], (vocabulary, width))
        self.embed = eqx.nn.Embedding(weight=embed)
        self.positions = 0.01 * jax.random.normal(keys[1], (length, width))
        hidden = 4 * width if hidden is None else hidden
        block = functools.partial(Block, width, heads, hidden, mlp, eps=eps, causal=causal)
        self.blocks = tuple(initial(block(key=key), key) for key in keys[3:])
        self.norm, self.head = eqx.nn.LayerNorm(width, eps=eps), None
        if classes is not None:
            self.head = initial(Linear(width, classes, use_bias=head_bias, key=keys[2]), keys[2])
        self.tokens, self.pooled, self.pooling, self.eos = eqx.nn.Identity(), eqx.nn.Identity(), pool, eos

    def __call__(self, ids, *, key=None):
        """A text `[tokens]` in one vector, `[classes]` or `[width]`.

        **Raises:** ValueError for more tokens than there are positions.
        """
        if not 1 <= len(ids) <= len(self.positions):
            raise ValueError(f"a text must be 1 to {len(self.positions)} tokens, got {len(ids)}")
        x = self.tokens(jax.vmap(self.embed)(ids) + self.positions[: len(ids)])
        for block in self.blocks:
            x = block(x)
        x = jax.vmap(self.norm)(x)
        last = {"eos": ids == self.eos, "argmax": ids, "last": jnp.arange(len(ids))}[self.pooling]
        x = self.pooled(x[jnp.argmax(last)])
        return x if self.head is None else self.head(x)


class Clip(eqx.Module):
    """Two towers whose vectors are compared: how well one image goes with some texts.

    **Arguments:** `vision`, `text`: the towers. `log_scale`: logarithm of what cosines are multiplied by, the inverse
    temperature. `bias`: what is added to them (SigLIP), or None.

    **Reference:** Radford et al., Learning transferable visual models from natural language supervision (2021).
    """

    vision: VisionTransformer
    text: TextTransformer
    log_scale: Float[Array, ""]
    bias: Float[Array, ""] | None = None

    def __call__(self, image, texts, *, key=None) -> Float[Array, " texts"]:
        """Logits of one image for each of some texts, `[texts, tokens]`: scaled cosines."""
        cosines = jax.vmap(lambda ids: unit(self.text(ids)))(texts) @ unit(self.vision(image))
        logits = cosines * jnp.exp(self.log_scale)
        return logits if self.bias is None else logits + self.bias


def unit(vector):
    """The vector at length 1."""
    return vector / jnp.linalg.norm(vector)
