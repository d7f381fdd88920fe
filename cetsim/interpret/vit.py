"""A vision or video transformer that is like the published ones by its arguments."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret import positions
from cetsim.interpret.transformer import MLPS, AttentionPool, Block, Linear

POOLS = ("cls", "mean", "cls_mean", "attention", "none")
POSITIONS = ("learned", "sincos", "rotary")
NORMS = ("tokens", "pooled")


class Patches(eqx.Module):
    """Cuts an image into patches, or a video into tubelets, and makes a token of each: `[patches, width]`."""

    linear: Linear
    size: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, channels: int, size: tuple[int, ...], width: int, bias: bool = True, *, key):
        self.linear = Linear(channels * math.prod(size), width, use_bias=bias, key=key)
        self.size = size

    def __call__(self, x):
        """Tokens of an image `[channels, height, width]` or a video `[frames, channels, height, width]`, row by row."""
        if len(self.size) == 2:
            x = x[None]  # an image is a film of one frame
        frames, channels, height, width = x.shape
        t, p, q = (1, *self.size)[-3:]
        cut = x.reshape(frames // t, t, channels, height // p, p, width // q, q)
        cut = cut.transpose(0, 3, 5, 2, 1, 4, 6)  # place in the grid, channel, place in the patch
        return jax.vmap(self.linear)(cut.reshape(-1, channels * t * p * q))


class VisionTransformer(eqx.Module):
    """A transformer of one image `[channels, height, width]`, or of one video `[frames, channels, height, width]`.

    Map it over a batch by `jax.vmap`. `interpret.sites(model, x)` lists what can be captured and edited: beside the
    modules of each block (see `interpret.Attention`), `tokens`, what enters the first block, and `pooled`, what the
    head reads.

    **Arguments:**

    - `image`: shape of one input. `patch`: the side of a patch, or its sides; of a video `(frames, rows, columns)`.
    - `width`, `depth`, `heads`: of the blocks. `hidden`: units of their perceptrons, by default four times the width.
    - `classes`: outputs of the head, a linear layer behind the pool; None for no head.
    - `mlp`: `"gelu"`, `"gelu_tanh"`, `"quick_gelu"` or `"swiglu"`.
    - `position`: `"learned"`, `"sincos"` (of images) or `"rotary"` (see `positions.rotations`).
    - `class_token`: whether one stands in front. `registers`: tokens behind it that have no position.
    - `pool`: `"cls"`, `"mean"` of the patches, `"cls_mean"` one after the other, `"attention"` of a learned reader to
      all tokens, or `"none"`, with which the tokens are returned.
    - `norm`: whether the last norm is of all `"tokens"`, or of what is `"pooled"`. `norm_pre`: whether there is one in
      front of the blocks too, as in CLIP. `eps`: of all norms.
    - `layer_scale`: the first value of LayerScale, None for no LayerScale.
    - `patch_bias`, `qkv_bias`, `head_bias`: whether these layers have biases.
    - `head_tanh`: whether what the head says goes through a tanh, as in BERT's pooler.

    **Raises:** ValueError for sizes that do not divide each other, words that are not among those above, and pools that
    need a class token where there is none.

    **References:** Dosovitskiy et al., An image is worth 16x16 words (2021); Arnab et al., ViViT (2021); Darcet et al.,
    Vision transformers need registers (2024).
    """

    embed: Patches
    cls: Float[Array, "1 width"] | None
    registers: Float[Array, "registers width"] | None
    positions: Float[Array, "patches width"] | None
    tokens: eqx.nn.Identity
    norm_pre: eqx.nn.LayerNorm | None
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm | None
    pool: AttentionPool | None
    norm_pooled: eqx.nn.LayerNorm | None
    pooled: eqx.nn.Identity
    head: eqx.Module | None
    image: tuple[int, ...] = eqx.field(static=True)
    position: str = eqx.field(static=True)
    pooling: str = eqx.field(static=True)

    def __init__(
        self,
        image: tuple[int, ...],
        patch: int | tuple[int, ...],
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        classes: int | None = None,
        mlp: str = "gelu",
        position: str = "learned",
        class_token: bool = True,
        registers: int = 0,
        pool: str = "cls",
        norm: str = "tokens",
        norm_pre: bool = False,
        eps: float = 1e-6,
        layer_scale: float | None = None,
        patch_bias: bool = True,
        qkv_bias: bool = True,
        head_bias: bool = True,
        head_tanh: bool = False,
        key: Array,
    ):
        self.image = tuple(checks.require_whole("image", size) for size in image)
        patch = (patch,) * (len(self.image) - 1) if isinstance(patch, int) else tuple(patch)
        _check(self.image, patch, pool, class_token, mlp, position, norm)
        hidden = 4 * width if hidden is None else hidden
        keys = jax.random.split(key, depth + 6)
        channels = self.image[-3]
        small = lambda key, count: 0.02 * jax.random.normal(key, (count, width))  # noqa: E731
        self.embed = initial(Patches(channels, patch, width, patch_bias, key=keys[0]), keys[0])
        self.cls, self.registers = small(keys[1], 1) if class_token else None, None
        if registers:
            self.registers = small(keys[2], registers)
        self.position, self.pooling = position, pool
        self.positions = small(keys[3], math.prod(self.grid)) if position == "learned" else None
        parts = dict(eps=eps, qkv_bias=qkv_bias, layer_scale=layer_scale)
        blocks = (Block(width, heads, hidden, mlp, key=key, **parts) for key in keys[6:])
        self.blocks = tuple(initial(block, key) for block, key in zip(blocks, keys[6:], strict=True))
        norms = {name: eqx.nn.LayerNorm(width, eps=eps) for name in ("pre", *NORMS)}
        self.norm_pre = norms["pre"] if norm_pre else None
        self.norm, self.norm_pooled = (norms[name] if norm == name else None for name in NORMS)
        self.pool = None
        if pool == "attention":
            kind = "gelu" if mlp == "swiglu" else mlp
            self.pool = initial(AttentionPool(width, heads, hidden, kind, eps=eps, key=keys[4]), keys[4])
        self.tokens, self.pooled, self.head = eqx.nn.Identity(), eqx.nn.Identity(), None
        if classes is not None:
            read = 2 * width if pool == "cls_mean" else width
            head = initial(Linear(read, classes, use_bias=head_bias, key=keys[5]), keys[5])
            self.head = eqx.nn.Sequential([head, eqx.nn.Lambda(jnp.tanh)]) if head_tanh else head
        if position != "learned":  # refuse widths that do not go with it now
            self._places(float)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along rows and columns, of a video along frames first."""
        sizes = self.image[1:] if len(self.image) == 3 else (self.image[0], *self.image[2:])
        return tuple(size // side for size, side in zip(sizes, self.embed.size, strict=True))

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: the class token and the registers."""
        return sum(0 if tokens is None else len(tokens) for tokens in (self.cls, self.registers))

    def __call__(self, x, *, key=None):
        """Logits or the pooled token, `[classes]` or `[width]`; `[tokens, width]` where nothing is pooled.

        **Raises:** ValueError for an input of another shape than `image`.
        """
        if x.shape != self.image:
            raise ValueError(f"the model takes inputs of shape {self.image}, got {x.shape}")
        x = self.embed(x)
        positions, rotation = self._places(x.dtype)
        x = x if positions is None else x + positions
        x = jnp.concatenate([tokens for tokens in (self.cls, self.registers) if tokens is not None] + [x])
        x = self.tokens(x)
        x = x if self.norm_pre is None else jax.vmap(self.norm_pre)(x)
        for block in self.blocks:
            x = block(x, rotation)
        x = x if self.norm is None else jax.vmap(self.norm)(x)
        x = self._pool(x)
        if self.norm_pooled is not None:
            x = self.norm_pooled(x) if x.ndim == 1 else jax.vmap(self.norm_pooled)(x)
        x = self.pooled(x)
        if self.head is None:
            return x
        return self.head(x) if x.ndim == 1 else jax.vmap(self.head)(x)

    def _places(self, dtype):
        """What is added to the patches, and by what queries and keys are turned; None where nothing is."""
        if self.position == "learned":
            return self.positions, None
        width = self.embed.linear.out_features
        if self.position == "sincos":
            return jnp.asarray(positions.sincos(self.grid, width), dtype), None
        return None, positions.rotations(self.grid, self.prefix, width // self.blocks[0].attention.heads)

    def _pool(self, x):
        if self.pooling == "none":
            return x
        if self.pooling == "attention":
            return self.pool(x)
        mean = x[self.prefix :].mean(0)
        return {"cls": x[0], "mean": mean, "cls_mean": jnp.concatenate([x[0], mean])}[self.pooling]


def _check(image, patch, pool: str, class_token: bool, mlp: str, position: str, norm: str) -> None:
    """Raises ValueError for arguments that do not go together."""
    checks.require_in("pool", pool, POOLS)
    checks.require_in("position", position, POSITIONS)
    checks.require_in("norm", norm, NORMS)
    checks.require_in("mlp", mlp, MLPS)
    if len(image) not in (3, 4):
        raise ValueError(f"`image` must be [channels, height, width], or of a video frames first, got {image}")
    sizes = image[1:] if len(image) == 3 else (image[0], *image[2:])
    if len(patch) != len(sizes) or any(size % side for size, side in zip(sizes, patch, strict=True)):
        raise ValueError(f"`patch` must divide the input's sides {sizes}, got {patch}")
    if "cls" in pool and not class_token:
        raise ValueError(f"pool={pool!r} needs class_token=True")
    if norm == "pooled" and pool == "cls_mean":
        raise ValueError("pool='cls_mean' has its norm before it, norm='tokens'")


def initial(module, key):
    """The module with the weights of its layers Xavier-uniform and their biases 0, as for the first ViT."""
    is_linear = lambda node: isinstance(node, Linear)  # noqa: E731
    leaves, structure = jax.tree.flatten(module, is_leaf=is_linear)
    pairs = zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    new = [_xavier(leaf, leaf_key) if is_linear(leaf) else leaf for leaf, leaf_key in pairs]
    return jax.tree.unflatten(structure, new)


def _xavier(layer: Linear, key):
    weight = jax.nn.initializers.xavier_uniform()(key, layer.weight.shape, layer.weight.dtype)
    layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    return layer if layer.bias is None else eqx.tree_at(lambda layer: layer.bias, layer, jnp.zeros_like(layer.bias))
