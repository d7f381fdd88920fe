"""CLIP and SigLIP as transformers saves them, and CLIP as open_clip does: both towers, or one."""

import numpy as np

from cetsim.interpret import families
from cetsim.interpret.families import Read, fused, grid, linear, pair, patches, places
from cetsim.interpret.tensors import Tensors

COMMON = dict(num_hidden_layers=12, num_attention_heads=12, hidden_size=768)
OF_CLIP = COMMON | dict(image_size=224, patch_size=32, num_channels=3, hidden_act="quick_gelu", layer_norm_eps=1e-5)
OF_CLIP_TEXT = dict(
    hidden_size=512, num_hidden_layers=12, num_attention_heads=8, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    eos_token_id=49407,
)  # fmt: skip
OF_SIGLIP = COMMON | dict(
    image_size=224, patch_size=16, num_channels=3, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6
)
OF_SIGLIP_TEXT = COMMON | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)


def clip(tensors: Tensors, config: dict, image) -> dict[str, Read]:
    """The towers of transformers's CLIP that the file holds, and the temperature, by our names."""
    parts = {}
    if tensors.any("vision_model."):
        vision = OF_CLIP | config.get("vision_config", {} if "text_config" in config else config)
        parts["vision"] = _clip_vision(tensors, vision, image)
    if tensors.any("text_model."):
        parts["text"] = _clip_text(tensors, OF_CLIP_TEXT | config.get("text_config", config))
    tensors.drop(*(f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text")))  # of older files
    return parts | _numbers(tensors, len(parts), "logit_scale")


def _numbers(tensors: Tensors, towers: int, *names: str) -> dict:
    """What both towers share, where both are there."""
    return {name: tensors.take(name) for name in names} if towers == 2 else {}


def _both(tensors: Tensors) -> bool:
    """Whether both towers are there, which then end in a projection."""
    return tensors.any("vision_model.") and tensors.any("text_model.")


def _grids(config: dict, image) -> tuple:
    """The patch, the image of the model, the grid of the file and that of the model."""
    patch, old = pair(config["patch_size"]), pair(config["image_size"])
    new = old if image is None else pair(image)
    return patch, (config["num_channels"], *new), grid(old, patch), grid(new, patch)


def _projection(tensors: Tensors, source: str, bias: bool) -> tuple[dict, dict]:
    """The layer behind a tower; one that is alone may have none."""
    if not _both(tensors) and not tensors.any(f"{source}."):
        return {}, {}
    arrays = linear(tensors, source, "head", bias)
    return {"classes": 1 if arrays["head.weight"] is None else len(arrays["head.weight"]), "head_bias": bias}, arrays


def _clip_vision(tensors: Tensors, config: dict, image) -> Read:
    patch, shape, old, new = _grids(config, image)
    depth, at = config["num_hidden_layers"], "vision_model."
    arrays = families.blocks(tensors, families.CLIP, f"{at}encoder.layers.", depth)
    arrays |= patches(tensors, f"{at}embeddings.patch_embedding", bias=False)
    table = tensors.take(f"{at}embeddings.position_embedding.weight")
    token = tensors.take(f"{at}embeddings.class_embedding")
    token = None if token is None else token.reshape(1, -1)
    arrays |= places(table, {"cls": token}, old, new, "bicubic")
    arrays |= linear(tensors, f"{at}pre_layrnorm", "norm_pre") | linear(tensors, f"{at}post_layernorm", "norm")
    head, more = _projection(tensors, "visual_projection", bias=False)
    fields = {"image": shape, "patch": patch, "norm_pre": True, "patch_bias": False}
    return Read(families.common(config, arrays) | fields | head, arrays | more)


def _text(tensors: Tensors, config: dict) -> Read:
    """What CLIP's and SigLIP's text towers have in common."""
    at = "text_model."
    arrays = families.blocks(tensors, families.CLIP, f"{at}encoder.layers.", config["num_hidden_layers"])
    arrays["embed.weight"] = tensors.take(f"{at}embeddings.token_embedding.weight")
    arrays["positions"] = tensors.take(f"{at}embeddings.position_embedding.weight")
    arrays |= linear(tensors, f"{at}final_layer_norm", "norm")
    return Read(families.common(config, arrays) | _lengths(arrays), arrays)


def _lengths(arrays: dict) -> dict:
    sizes = {"vocabulary": "embed.weight", "length": "positions"}
    return {name: 1 if arrays[of] is None else len(arrays[of]) for name, of in sizes.items()}


def _clip_text(tensors: Tensors, config: dict) -> Read:
    made, arrays = _text(tensors, config)
    eos = config["eos_token_id"]
    pool = {"pool": "argmax"} if eos == 2 else {"pool": "eos", "eos": eos}  # 2 stood in old files, and was wrong
    head, more = _projection(tensors, "text_projection", bias=False)
    return Read(made | pool | head, arrays | more)


def siglip(tensors: Tensors, config: dict, image) -> dict[str, Read]:
    """The towers of transformers's SigLIP that the file holds, temperature and bias, by our names."""
    parts = {}
    if tensors.any("vision_model."):
        vision = OF_SIGLIP | config.get("vision_config", {} if "text_config" in config else config)
        parts["vision"] = _siglip_vision(tensors, vision, image)
    if tensors.any("text_model."):
        made, arrays = _text(tensors, OF_SIGLIP_TEXT | config.get("text_config", config))
        head, more = _projection(tensors, "text_model.head", bias=True)
        parts["text"] = Read(made | {"pool": "last", "causal": False} | head, arrays | more)
    tensors.drop(*(f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text")))
    return parts | _numbers(tensors, len(parts), "logit_scale", "logit_bias")


def _siglip_vision(tensors: Tensors, config: dict, image) -> Read:
    patch, shape, old, new = _grids(config, image)
    depth, at = config["num_hidden_layers"], "vision_model."
    arrays = families.blocks(tensors, families.CLIP, f"{at}encoder.layers.", depth)
    arrays |= patches(tensors, f"{at}embeddings.patch_embedding")
    table = tensors.take(f"{at}embeddings.position_embedding.weight")
    arrays |= places(table, {}, old, new, "bicubic") | linear(tensors, f"{at}post_layernorm", "norm")
    fields = {"image": shape, "patch": patch, "class_token": False, "pool": "attention"}
    if not config.get("vision_use_head", True):
        return Read(families.common(config, arrays) | fields | {"pool": "none"}, arrays)
    reader = tensors.take(f"{at}head.probe")
    arrays["pool.reader"] = None if reader is None else reader[0]
    heads = tuple(f"pool.attention.{part}_proj" for part in ("query", "key", "value"))
    arrays |= fused(tensors, f"{at}head.attention.in_proj", heads)
    arrays |= linear(tensors, f"{at}head.attention.out_proj", "pool.attention.output_proj")
    arrays |= linear(tensors, f"{at}head.layernorm", "pool.norm")
    for source, target in (("fc1", "layers.0"), ("fc2", "layers.2")):
        arrays |= linear(tensors, f"{at}head.mlp.{source}", f"pool.mlp.{target}")
    return Read(families.common(config, arrays) | fields, arrays)


def open_clip(tensors: Tensors, config: dict, image) -> dict[str, Read]:
    """Both towers of open_clip's CLIP, of its default kind.

    **Raises:** ValueError for a file without a configuration, or with one of another kind.
    """
    config = config.get("model_cfg", config)
    if not {"vision_cfg", "text_cfg"} <= config.keys():
        raise ValueError(f"{tensors.path}: open_clip_config.json must lie beside it, with `vision_cfg` and `text_cfg`")
    vision, text, mlp = config["vision_cfg"], config["text_cfg"], "quick_gelu" if config.get("quick_gelu") else "gelu"
    _refuse_other_kinds(tensors.path, vision, text)
    parts = {"vision": _open_clip_vision(tensors, vision, image, mlp), "text": _open_clip_text(tensors, text, mlp)}
    tensors.drop("attn_mask")
    shared = ("logit_scale", "logit_bias") if config.get("init_logit_bias") is not None else ("logit_scale",)
    return parts | _numbers(tensors, 2, *shared)


# With these values a tower is of the default kind.
PLAIN = dict(
    attentional_pool=False, no_ln_pre=False, pos_embed_type="learnable", final_ln_after_pool=False, pool_type="tok",
    embed_cls=False, no_causal_mask=False, proj_bias=False, proj_type="linear",
)  # fmt: skip
OTHER = ("timm_model_name", "hf_model_name", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "act_kwargs",
         "scale_attn_inner", "scale_attn", "scale_fc")  # fmt: skip


def _refuse_other_kinds(path, vision: dict, text: dict) -> None:
    plain = PLAIN | dict.fromkeys(OTHER)
    for name, given in (*vision.items(), *text.items()):
        allowed = ("tok", "argmax") if name == "pool_type" else (plain.get(name, given), False)
        if name in plain and given not in allowed:
            raise ValueError(f"{path}: `{name}` must be as in OpenAI's CLIP, got {given!r}")


def _open_clip_vision(tensors: Tensors, config: dict, image, mlp: str) -> Read:
    width, depth = config.get("width", 768), config.get("layers", 12)
    patch, old = pair(config.get("patch_size", 16)), pair(config.get("image_size", 224))
    new = old if image is None else pair(image)
    scales = config.get("ls_init_value") is not None
    arrays = families.blocks(tensors, families.OPEN_CLIP, "visual.transformer.resblocks.", depth, scales=scales)
    arrays |= patches(tensors, "visual.conv1", bias=False)
    table, token = tensors.take("visual.positional_embedding"), tensors.take("visual.class_embedding")
    token = None if token is None else token.reshape(1, -1)
    arrays |= places(table, {"cls": token}, grid(old, patch), grid(new, patch), "antialiased")
    arrays |= linear(tensors, "visual.ln_pre", "norm_pre") | linear(tensors, "visual.ln_post", "norm")
    head, more = _matrix(tensors, "visual.proj")
    eps = (config.get("norm_kwargs") or {}).get("eps", 1e-5)
    fields = {"image": (3, *new), "patch": patch, "norm_pre": True, "patch_bias": False}
    fields |= {"width": width, "depth": depth, "heads": width // config.get("head_width", 64), "mlp": mlp, "eps": eps}
    fields |= {"hidden": families.hidden(arrays, width), "layer_scale": 1.0 if scales else None}
    return Read(fields | head, arrays | more)


def _open_clip_text(tensors: Tensors, config: dict, mlp: str) -> Read:
    width, depth = config.get("width", 512), config.get("layers", 12)
    if config.get("ls_init_value") is not None:
        raise ValueError(f"{tensors.path}: `ls_init_value` of the text tower must be None, got another")
    at = "" if "token_embedding.weight" in tensors else "text."
    arrays = families.blocks(tensors, families.OPEN_CLIP, f"{at}transformer.resblocks.", depth)
    arrays["embed.weight"] = tensors.take(f"{at}token_embedding.weight")
    arrays["positions"] = tensors.take(f"{at}positional_embedding")
    arrays |= linear(tensors, f"{at}ln_final", "norm")
    head, more = _matrix(tensors, f"{at}text_projection")
    eps = (config.get("norm_kwargs") or {}).get("eps", 1e-5)
    fields = {"width": width, "depth": depth, "heads": config.get("heads", 8), "mlp": mlp, "eps": eps, "pool": "argmax"}
    fields |= {"hidden": families.hidden(arrays, width)} | _lengths(arrays)
    return Read(fields | head, arrays | more)


def _matrix(tensors: Tensors, name: str) -> tuple[dict, dict]:
    """A projection that stands as a matrix `[width, classes]`."""
    matrix = tensors.take(name)
    transposed = None if matrix is None else np.ascontiguousarray(matrix.T)
    return {"classes": 1 if matrix is None else matrix.shape[1], "head_bias": False}, {"head.weight": transposed}
