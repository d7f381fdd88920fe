"""How families of published transformers name their arrays and say how they are built.

Each reader takes the arrays and the configuration of a file, and returns what a model is made with and its arrays by
the model's own names.
"""

import math
from typing import NamedTuple

import numpy as np

from cetsim.interpret.positions import resampled
from cetsim.interpret.tensors import Tensors

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


class Read(NamedTuple):
    """A model of one of our classes.

    **Fields:** `made`: arguments of its class. `arrays`: by the names of its leaves, None where the file lacks them.
    """

    made: dict
    arrays: dict[str, np.ndarray | None]


class Names(NamedTuple):
    """How a family calls the parts of a block; `{}.weight` and `{}.bias` stand behind all but the scales."""

    query: str
    key: str
    value: str
    output: str
    norm1: str
    norm2: str
    first: str
    last: str
    scale1: str = ""
    scale2: str = ""


VIT = Names(
    *(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attention.output.dense", "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense",
)  # fmt: skip
DINOV2 = VIT._replace(
    norm1="norm1", norm2="norm2", first="mlp.fc1", last="mlp.fc2",
    scale1="layer_scale1.lambda1", scale2="layer_scale2.lambda1",
)  # fmt: skip
VJEPA2 = DINOV2._replace(
    **{part: f"attention.{part}" for part in ("query", "key", "value")}, output="attention.proj", scale1="", scale2=""
)
CLIP = Names(
    *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"
)
TIMM = Names(
    *("attn.qkv",) * 3, "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2", scale1="ls1.gamma", scale2="ls2.gamma"
)
OPEN_CLIP = Names(
    *("attn.in_proj",) * 3, "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", scale1="ls_1.gamma",
    scale2="ls_2.gamma",
)  # fmt: skip


def linear(tensors: Tensors, source: str, target: str, bias: bool = True) -> dict:
    """A layer's weight and bias, by our name."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{target}.{part}": tensors.take(f"{source}.{part}") for part in parts}


def fused(tensors: Tensors, source: str, targets: tuple[str, ...], bias: bool = True) -> dict:
    """Layers whose weights stand in one array, one below the other, by our names."""
    arrays, dot = {}, "_" if source.endswith("in_proj") else "."
    for part in ("weight", "bias") if bias else ("weight",):
        whole = tensors.take(f"{source}{dot}{part}")
        cut = [None] * len(targets) if whole is None else np.split(whole, len(targets))
        arrays |= {f"{target}.{part}": array for target, array in zip(targets, cut, strict=True)}
    return arrays


def block(tensors: Tensors, names: Names, source: str, target: str, *, qkv_bias=True, scales=False, gate=False) -> dict:
    """Arrays of a block; `gate`: whether its perceptron is a SwiGLU whose gate and other half stand in one array."""
    heads = tuple(f"{target}.attention.{part}_proj" for part in ("query", "key", "value"))
    if names.query == names.key:
        arrays = fused(tensors, f"{source}.{names.query}", heads, qkv_bias)
    else:
        sources = (f"{source}.{name}" for name in (names.query, names.key, names.value))
        arrays = {}
        for name, head in zip(sources, heads, strict=True):
            arrays |= linear(tensors, name, head, qkv_bias)
    arrays |= linear(tensors, f"{source}.{names.output}", f"{target}.attention.output_proj")
    for norm in ("norm1", "norm2"):
        arrays |= linear(tensors, f"{source}.{getattr(names, norm)}", f"{target}.{norm}")
    if gate:
        arrays |= fused(tensors, f"{source}.{names.first}", (f"{target}.mlp.gate", f"{target}.mlp.up"))
        arrays |= linear(tensors, f"{source}.{names.last}", f"{target}.mlp.down")
    else:
        arrays |= linear(tensors, f"{source}.{names.first}", f"{target}.mlp.layers.0")
        arrays |= linear(tensors, f"{source}.{names.last}", f"{target}.mlp.layers.2")
    if scales:
        for scale in ("scale1", "scale2"):
            arrays[f"{target}.{scale}.weight"] = tensors.take(f"{source}.{getattr(names, scale)}")
    return arrays


def patches(tensors: Tensors, source: str, bias: bool = True) -> dict:
    """The convolution that cuts patches, as a linear layer of each."""
    arrays = linear(tensors, source, "embed.linear", bias)
    weight = arrays["embed.linear.weight"]
    return arrays if weight is None else arrays | {"embed.linear.weight": weight.reshape(len(weight), -1)}


def places(table, prefix: dict, old: tuple, new: tuple, how: str, placed: bool = True) -> dict:
    """Positions of the patches, on another grid if need be, and the tokens in front, to which theirs are added.

    **Arguments:** `table`: `[..., places, width]`. `prefix`: tokens in front, `[..., tokens, width]` by our name, in
    order. `placed`: whether these have places in the table, before the patches. None is what the file lacks.
    """
    if table is None or any(tokens is None for tokens in prefix.values()):
        return {"positions": None} | prefix
    table, arrays = table.reshape(-1, table.shape[-1]), {}
    for name, tokens in prefix.items():
        arrays[name] = tokens.reshape(-1, tokens.shape[-1])
        if placed:
            arrays[name], table = arrays[name] + table[: len(arrays[name])], table[len(arrays[name]) :]
    return arrays | {"positions": resampled(table, old, new, how)}


def blocks(tensors: Tensors, names: Names, source: str, depth: int, target: str = "blocks", **options) -> dict:
    """Arrays of all blocks."""
    arrays = {}
    for i in range(depth):
        arrays |= block(tensors, names, f"{source}{i}", f"{target}.{i}", **options)
    return arrays


def hidden(arrays: dict, width: int) -> int:
    """Units of the blocks' perceptrons; four times the width where the file does not say."""
    names = ("blocks.0.mlp.layers.0.weight", "blocks.0.mlp.gate.weight")
    return next((len(arrays[name]) for name in names if arrays.get(name) is not None), 4 * width)


def common(config: dict, arrays: dict) -> dict:
    """What models of the transformers library are made with."""
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": hidden(arrays, config["hidden_size"]),
        "mlp": activation(config["hidden_act"]),
        "eps": config["layer_norm_eps"],
    }


def grid(image: tuple, patch: tuple) -> tuple[int, ...]:
    """Patches along the sides of an image."""
    return tuple(size // side for size, side in zip(image, patch, strict=True))


def square(count: int) -> tuple[int, int]:
    """Rows and columns of a square grid of patches.

    **Raises:** ValueError for a number that is no square.
    """
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"the grid of {count} patches is no square: its image size must stand in the configuration")
    return side, side


def pair(size) -> tuple[int, int]:
    """Height and width, of a number or of both."""
    return (size, size) if isinstance(size, int) else tuple(size)


def activation(name: str) -> str:
    """An activation of transformers, as we call it.

    **Raises:** ValueError for one that no published family has.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"`hidden_act` must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
