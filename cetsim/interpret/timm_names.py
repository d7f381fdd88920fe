"""ViTs as timm and DINO name them."""

import math
import re

from cetsim.interpret import families
from cetsim.interpret.families import Read, fused, grid, linear, pair, patches, places, square
from cetsim.interpret.tensors import Tensors

POOLS = {"token": "cls", "avg": "mean", "map": "attention", "": "none"}
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # by width, where a head is not 64 numbers wide


def timm(tensors: Tensors, config: dict, image) -> Read:
    """timm's ViT: with registers, LayerScale, SwiGLU, a norm in front, and pools of every kind."""
    return _read(tensors, config, image, "antialiased")


def dino(tensors: Tensors, config: dict, image) -> Read:
    """DINO's ViT, whose names are timm's; it interpolates positions otherwise."""
    return _read(tensors, config, image, "dino")


def _read(tensors: Tensors, config: dict, image, how: str) -> Read:
    name, args = config.get("architecture", ""), config.get("model_args", {})
    arrays = patches(tensors, "patch_embed.proj", bias=not args.get("pre_norm", tensors.any("norm_pre.")))
    if arrays["embed.linear.weight"] is None:
        tensors.require_all()
    width, channels, *patch = tensors.arrays["patch_embed.proj.weight"].shape
    patch = tuple(patch)
    places_, size = _places(tensors, config, image, patch, how)
    parts = _parts(tensors, args)
    arrays |= places_ | families.blocks(tensors, families.TIMM, "blocks.", tensors.count("blocks."), **parts)
    made = {
        "image": (channels, *size),
        "patch": patch,
        "width": width,
        "depth": tensors.count("blocks."),
        "heads": args.get("num_heads", HEADS.get(width, max(1, width // 64))),
        "hidden": families.hidden(arrays, width),
        "mlp": "swiglu" if parts["gate"] else "quick_gelu" if "quickgelu" in name else "gelu",
        "eps": 1e-5 if "clip" in name else 1e-6,
        "class_token": "cls" in arrays,
        "registers": len(arrays.get("registers", ())),
        "patch_bias": "embed.linear.bias" in arrays,
        "qkv_bias": parts["qkv_bias"],
        "layer_scale": 1.0 if parts["scales"] else None,
    }
    for source, target, key in (("norm_pre", "norm_pre", "norm_pre"), ("fc_norm", "norm_pooled", "norm")):
        if tensors.any(f"{source}."):
            arrays |= linear(tensors, source, target)
            made[key] = True if key == "norm_pre" else "pooled"
    if "norm" not in made:
        arrays |= linear(tensors, "norm", "norm")
    pool = config.get("global_pool", args.get("global_pool", _guess(tensors)))
    if pool not in POOLS:
        raise ValueError(f"`global_pool` must be one of {', '.join(map(repr, POOLS))}, got {pool!r}")
    made["pool"] = POOLS[pool]
    if made["pool"] == "attention":
        arrays |= _attention_pool(tensors)
    if config.get("num_classes", tensors.any("head.")):
        arrays |= linear(tensors, "head", "head")
        weight = arrays["head.weight"]
        made |= {"classes": 1 if weight is None else len(weight)}
    return Read(made, arrays)


def _parts(tensors: Tensors, args: dict) -> dict:
    """What stands in each block."""
    first, last = (tensors.arrays.get(f"blocks.0.mlp.{part}.weight") for part in ("fc1", "fc2"))
    return {
        "qkv_bias": args.get("qkv_bias", True),
        "scales": bool(args.get("init_values", tensors.any("blocks.0.ls1."))),
        "gate": first is not None and last is not None and len(first) == 2 * last.shape[1],
    }


def _places(tensors: Tensors, config: dict, image, patch: tuple, how: str) -> tuple[dict, tuple[int, int]]:
    """Tokens in front and positions, and the size of the image."""
    args = config.get("model_args", {})
    named = re.search(r"_reg\d", config.get("architecture", "")) is not None
    # Without arguments, the arrays tell; timm's own defaults have a class token.
    read = how == "dino" or config.get("global_pool") == "token" or bool(args)
    has = {
        "cls_token": args.get("class_token", read or "cls_token" in tensors),
        "reg_token": args.get("reg_tokens", named or "reg_token" in tensors),
    }
    ours = {"cls_token": "cls", "reg_token": "registers"}
    prefix = {ours[name]: tensors.take(name) for name, there in has.items() if there}
    if tensors.missing:
        tensors.require_all()
    if (table := tensors.take("pos_embed")) is None:
        tensors.require_all()
    behind = table.shape[1] - sum(tokens.shape[1] for tokens in prefix.values())
    placed = not args.get("no_embed_class", math.isqrt(max(behind, 0)) ** 2 != behind)
    patches = behind if placed else table.shape[1]
    old = grid(pair(args["img_size"]), patch) if "img_size" in args else square(patches)
    size = tuple(map(math.prod, zip(old, patch, strict=True))) if image is None else pair(image)
    return places(table, prefix, old, grid(size, patch), how, placed), size


def _guess(tensors: Tensors) -> str:
    """How tokens are pooled, where the configuration does not say."""
    if tensors.any("attn_pool."):
        return "map"
    return "token" if "cls_token" in tensors and not tensors.any("fc_norm.") else "avg"


def _attention_pool(tensors: Tensors) -> dict:
    """Arrays of the pool by attention."""
    reader = tensors.take("attn_pool.latent")
    arrays = {"pool.reader": None if reader is None else reader[0]}
    for source, target in (("q", "query_proj"), ("proj", "output_proj")):
        arrays |= linear(tensors, f"attn_pool.{source}", f"pool.attention.{target}")
    arrays |= fused(tensors, "attn_pool.kv", ("pool.attention.key_proj", "pool.attention.value_proj"))
    arrays |= linear(tensors, "attn_pool.norm", "pool.norm")
    for source, target in (("fc1", "layers.0"), ("fc2", "layers.2")):
        arrays |= linear(tensors, f"attn_pool.mlp.{source}", f"pool.mlp.{target}")
    return arrays
