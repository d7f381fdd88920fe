"""Transformer blocks whose attention is taken apart: queries, keys, values, patterns and results of heads are sites."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret import hooks
from cetsim.interpret.positions import rotated

Rotation = tuple  # cosines and sines, [tokens, width of a head]


def quick_gelu(x):
    """x σ(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}
MLPS = (*ACTIVATIONS, "swiglu")


class Linear(eqx.nn.Linear):
    """A linear layer of one token, whose product is written so that XLA need not transpose what many tokens make."""

    def __call__(self, x, *, key=None):
        """W x + b, `[in] -> [out]`."""
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class HeadsLinear(Linear):
    """The layer behind the heads. Its site `results` is what each head adds to the token, `[heads, out]`.

    The results are computed one by one only where they are captured or edited.
    """

    results: eqx.nn.Identity
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, key):
        super().__init__(width, width, key=key)
        self.results, self.heads = eqx.nn.Identity(), heads

    def __call__(self, x, *, key=None):
        """W x + b of what the heads have gathered, `[heads * width of a head] -> [out]`."""
        if not hooks.is_hooked(self.results):
            return super().__call__(x)
        by_head = self.weight.reshape(len(self.weight), self.heads, -1)
        results = self.results(jnp.einsum("hd,ohd->ho", x.reshape(self.heads, -1), by_head))
        return results.sum(0) + self.bias


class Attention(eqx.Module):
    """Attention of tokens among themselves, `[tokens, width] -> [tokens, width]`.

    **Sites:** `queries`, `keys` (turned already, where positions are rotary), `values` and `mixed`, the values that a
    head's pattern mixes: `[tokens, heads, width of a head]`. `pattern`: `[heads, queries, keys]`, whose rows sum to 1.
    `output_proj.results`: `[tokens, heads, width]`, whose sum over heads and the bias of `output_proj` are what the
    attention returns. The layers `query_proj`, `key_proj`, `value_proj` and `output_proj`: `[tokens, width]`.
    """

    query_proj: Linear
    key_proj: Linear
    value_proj: Linear
    queries: eqx.nn.Identity
    keys: eqx.nn.Identity
    values: eqx.nn.Identity
    pattern: eqx.nn.Identity
    mixed: eqx.nn.Identity
    output_proj: HeadsLinear
    heads: int = eqx.field(static=True)
    causal: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, qkv_bias: bool = True, causal: bool = False, *, key):
        if width % heads:
            raise ValueError(f"`width` must be a multiple of the {heads} heads, got {width}")
        keys = jax.random.split(key, 4)
        linear = functools.partial(Linear, width, width, use_bias=qkv_bias)
        self.query_proj, self.key_proj, self.value_proj = (linear(key=key) for key in keys[:3])
        self.output_proj = HeadsLinear(width, heads, key=keys[3])
        self.queries, self.keys, self.values, self.pattern, self.mixed = (eqx.nn.Identity() for _ in range(5))
        self.heads, self.causal = heads, causal

    def __call__(self, x: Float[Array, "tokens width"], rotation: Rotation | None = None):
        """What each token has gathered from others; `rotation`: by which queries and keys are turned."""
        return self.gather(x, x, rotation)

    def gather(self, readers, x, rotation: Rotation | None = None):
        """What each of some `readers` `[readers, width]` gathers from the tokens `x`."""
        queries, keys, values = (
            jax.vmap(layer)(tokens).reshape(len(tokens), self.heads, -1)
            for layer, tokens in ((self.query_proj, readers), (self.key_proj, x), (self.value_proj, x))
        )
        if rotation is not None:
            queries, keys = rotated(queries, *rotation), rotated(keys, *rotation)
        queries, keys, values = self.queries(queries), self.keys(keys), self.values(values)
        scores = jnp.einsum("qhd,khd->hqk", queries * queries.shape[-1] ** -0.5, keys)
        if self.causal:
            ahead = jnp.arange(len(x)) > jnp.arange(len(readers))[:, None]
            scores = jnp.where(ahead, -jnp.inf, scores)
        pattern = self.pattern(jax.nn.softmax(scores, axis=-1))
        mixed = self.mixed(jnp.einsum("hqk,khd->qhd", pattern, values))
        return jax.vmap(self.output_proj)(mixed.reshape(len(mixed), -1))


class Scale(eqx.Module):
    """LayerScale: what a part of a block says, `[tokens, width]`, times a learned number each."""

    weight: Float[Array, " width"]

    def __call__(self, x):
        """The scaled tokens."""
        return x * self.weight


class SwiGLU(eqx.Module):
    """A perceptron of one token with a gate, W_3 (silu(W_1 x) W_2 x); its site `hidden` is what W_3 reads."""

    gate: Linear
    up: Linear
    hidden: eqx.nn.Identity
    down: Linear

    def __init__(self, width: int, hidden: int, *, key):
        keys = jax.random.split(key, 3)
        self.gate, self.up = Linear(width, hidden, key=keys[0]), Linear(width, hidden, key=keys[1])
        self.down, self.hidden = Linear(hidden, width, key=keys[2]), eqx.nn.Identity()

    def __call__(self, x, *, key=None):
        """`[width] -> [width]`."""
        return self.down(self.hidden(jax.nn.silu(self.gate(x)) * self.up(x)))


def perceptron(width: int, hidden: int, kind: str, *, key):
    """The second part of a block, a module of one token: two layers with an activation, or a `SwiGLU`."""
    checks.require_in("mlp", kind, MLPS)
    if kind == "swiglu":
        return SwiGLU(width, hidden, key=key)
    first, last = jax.random.split(key)
    layers = [Linear(width, hidden, key=first), eqx.nn.Lambda(ACTIVATIONS[kind]), Linear(hidden, width, key=last)]
    return eqx.nn.Sequential(layers)


class Block(eqx.Module):
    """x + attention(norm(x)), and what comes of it, `middle`, plus mlp(norm(middle)): `[tokens, width]`.

    `scale1` and `scale2` are None without LayerScale.
    """

    norm1: eqx.nn.LayerNorm
    attention: Attention
    scale1: Scale | None
    middle: eqx.nn.Identity
    norm2: eqx.nn.LayerNorm
    mlp: eqx.Module
    scale2: Scale | None

    def __init__(
        self, width: int, heads: int, hidden: int, mlp: str, *, eps, qkv_bias=True, layer_scale=None, causal=False, key
    ):
        keys = jax.random.split(key)
        self.norm1, self.norm2 = (eqx.nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.attention = Attention(width, heads, qkv_bias, causal, key=keys[0])
        self.mlp, self.middle = perceptron(width, hidden, mlp, key=keys[1]), eqx.nn.Identity()
        scale = lambda: None if layer_scale is None else Scale(jnp.full(width, layer_scale, float))  # noqa: E731
        self.scale1, self.scale2 = scale(), scale()

    def __call__(self, x: Float[Array, "tokens width"], rotation: Rotation | None = None):
        """The stream behind the block."""
        part = self.attention(jax.vmap(self.norm1)(x), rotation)
        x = self.middle(x + (part if self.scale1 is None else self.scale1(part)))
        part = jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))
        return x + (part if self.scale2 is None else self.scale2(part))


class AttentionPool(eqx.Module):
    """One learned reader gathers from all tokens, `[tokens, width] -> [width]`; what it has gathered is perceived."""

    reader: Float[Array, "1 width"]
    attention: Attention
    norm: eqx.nn.LayerNorm
    mlp: eqx.Module

    def __init__(self, width: int, heads: int, hidden: int, mlp: str, *, eps, key):
        keys = jax.random.split(key, 3)
        self.reader = 0.02 * jax.random.normal(keys[0], (1, width))
        self.attention = PoolingAttention(width, heads, key=keys[1])
        self.norm, self.mlp = eqx.nn.LayerNorm(width, eps=eps), perceptron(width, hidden, mlp, key=keys[2])

    def __call__(self, x: Float[Array, "tokens width"]):
        """What the tokens are, in one vector."""
        gathered = self.attention(x, self.reader)[0]
        return gathered + self.mlp(self.norm(gathered))


class PoolingAttention(Attention):
    """Attention of learned readers to tokens: sites as in `Attention`, of readers where those are of tokens."""

    def __call__(self, x: Float[Array, "tokens width"], readers: Float[Array, "readers width"]):
        """What each reader has gathered, `[readers, width]`."""
        return self.gather(readers, x)
