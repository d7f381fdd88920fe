"""Vision and video transformers as the library transformers saves them: ViT, DINOv2, ViViT and V-JEPA 2."""

from cetsim.interpret import families
from cetsim.interpret.families import Read, grid, linear, pair, patches, places
from cetsim.interpret.tensors import Tensors

# What a configuration leaves out is as the library's own default.
DEFAULTS = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, image_size=224, patch_size=16, num_channels=3,
    qkv_bias=True, hidden_act="gelu", layer_norm_eps=1e-6,
)  # fmt: skip
OF_VIT = DEFAULTS | dict(layer_norm_eps=1e-12)
OF_DINOV2 = DEFAULTS | dict(patch_size=14, use_swiglu_ffn=False)
OF_VIVIT = DEFAULTS | dict(num_frames=32, tubelet_size=(2, 16, 16), hidden_act="gelu_fast")
OF_VJEPA2 = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, crop_size=256, patch_size=16, tubelet_size=2,
    frames_per_clip=64, in_chans=3, qkv_bias=True, hidden_act="gelu", layer_norm_eps=1e-6,
)  # fmt: skip


def _fields(config: dict, arrays: dict) -> dict:
    """What all of these models are made with."""
    return families.common(config, arrays) | {"qkv_bias": config["qkv_bias"]}


def vit(tensors: Tensors, config: dict, image) -> Read:
    """ViT, with a classifier, with BERT's pooler, or alone."""
    config, at = OF_VIT | config, "vit." if tensors.any("vit.") else ""
    return _image(tensors, config, image, families.VIT, at, "bicubic", "cls")


def dinov2(tensors: Tensors, config: dict, image) -> Read:
    """DINOv2, with registers or without, with a classifier (of the class token and the patches' mean) or without."""
    config = OF_DINOV2 | config
    at = next((name for name in ("dinov2.", "dinov2_with_registers.") if tensors.any(name)), "")
    registers = "registers" in config.get("model_type", "") or f"{at}embeddings.register_tokens" in tensors
    names, how = families.DINOV2, "antialiased" if registers else "bicubic"
    if gate := config["use_swiglu_ffn"]:
        names = names._replace(first="mlp.weights_in", last="mlp.weights_out")
    made, arrays = _image(tensors, config, image, names, at, how, "cls_mean", scales=True, gate=gate)
    made |= {"layer_scale": 1.0} | ({"mlp": "swiglu"} if gate else {})
    if registers:
        tokens = tensors.take(f"{at}embeddings.register_tokens")
        arrays["registers"] = None if tokens is None else tokens[0]
        made["registers"] = 1 if tokens is None else len(tokens[0])
    return Read(made, arrays)


def _image(tensors, config, image, names, at: str, how: str, classified: str, **options) -> Read:
    """A transformer of images; `classified`: the pool in front of a classifier."""
    patch, old = pair(config["patch_size"]), pair(config["image_size"])
    new = old if image is None else pair(image)
    parts = dict(qkv_bias=config["qkv_bias"]) | options
    arrays = families.blocks(tensors, names, f"{at}encoder.layer.", config["num_hidden_layers"], **parts)
    arrays |= patches(tensors, f"{at}embeddings.patch_embeddings.projection")
    table, prefix = (tensors.take(f"{at}embeddings.{name}") for name in ("position_embeddings", "cls_token"))
    arrays |= places(table, {"cls": prefix}, grid(old, patch), grid(new, patch), how)
    arrays |= linear(tensors, f"{at}layernorm", "norm")
    tensors.drop(f"{at}embeddings.mask_token")  # in front of training by masks alone
    fields = _fields(config, arrays) | {"image": (config["num_channels"], *new), "patch": patch}
    head, more = _head(tensors, at, classified)
    return Read(fields | head, arrays | more)


def _head(tensors: Tensors, at: str, classified: str) -> tuple[dict, dict]:
    """The classifier or the pooler that there is."""
    for source, target, options in (
        ("classifier", "head", {"pool": classified}),
        (f"{at}pooler.dense", "head.layers.0", {"head_tanh": True}),
    ):
        if tensors.any(f"{source}."):
            arrays = linear(tensors, source, target)
            weight = arrays[f"{target}.weight"]
            return options | {"classes": 1 if weight is None else len(weight)}, arrays
    return {}, {}


def vivit(tensors: Tensors, config: dict, image) -> Read:
    """ViViT, with a classifier, with BERT's pooler, or alone.

    **Raises:** ValueError for another image size: the library's own code cannot stretch positions over time and space.
    """
    config, at = OF_VIVIT | config, "vivit." if tensors.any("vivit.") else ""
    size, tubelet = pair(config["image_size"]), tuple(config["tubelet_size"])
    if image is not None and pair(image) != size:
        raise ValueError(f"`image` must be {size}: ViViT's positions cannot be stretched, got {pair(image)}")
    video = (config["num_frames"], config["num_channels"], *size)
    parts = dict(qkv_bias=config["qkv_bias"])
    arrays = families.blocks(tensors, families.VIT, f"{at}encoder.layer.", config["num_hidden_layers"], **parts)
    arrays |= patches(tensors, f"{at}embeddings.patch_embeddings.projection")
    table, prefix = (tensors.take(f"{at}embeddings.{name}") for name in ("position_embeddings", "cls_token"))
    cells = grid((video[0], *size), tubelet)
    arrays |= places(table, {"cls": prefix}, cells, cells, "bicubic") | linear(tensors, f"{at}layernorm", "norm")
    head, more = _head(tensors, at, "cls")
    return Read(_fields(config, arrays) | {"image": video, "patch": tubelet} | head, arrays | more)


def vjepa2(tensors: Tensors, config: dict, image) -> Read:
    """The encoder of V-JEPA 2, whose tokens are returned; its predictor is left out.

    **Raises:** ValueError for a file with the attentive classifier, which is not read.
    """
    config, at = OF_VJEPA2 | config, "vjepa2." if tensors.any("vjepa2.") else ""
    if tensors.any("pooler."):
        raise ValueError(f"{tensors.path} holds V-JEPA 2's attentive classifier, which is not read: use its encoder")
    size = pair(config["crop_size"] if image is None else image)
    parts = dict(qkv_bias=config["qkv_bias"])
    arrays = families.blocks(tensors, families.VJEPA2, f"{at}encoder.layer.", config["num_hidden_layers"], **parts)
    arrays |= patches(tensors, f"{at}encoder.embeddings.patch_embeddings.proj")
    arrays |= linear(tensors, f"{at}encoder.layernorm", "norm")
    tensors.drop(f"{at}predictor.")
    sizes = {
        "image": (config["frames_per_clip"], config["in_chans"], *size),
        "patch": (config["tubelet_size"], *pair(config["patch_size"])),
    }
    return Read(_fields(config, arrays) | sizes | {"position": "rotary", "class_token": False, "pool": "none"}, arrays)
