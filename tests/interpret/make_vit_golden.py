"""Makes `tests/golden/vit/`: tiny random transformers of the real libraries, and what they compute.

Each folder holds the weights and the configuration as the library writes them, and `seen.npz`: images or videos `x`,
the `output`, what enters the first block and leaves each one, `hidden.i`, the patterns of attention where the library
tells them, and for another size of image, `large.x`, its positions interpolated by the library, `large.output`.

Run in an environment of its own, of Python 3.11 with `pip install torch==2.14.1 torchvision==0.29.1`, then
`pip install transformers==5.24.0 timm==1.0.31 open_clip_torch==3.3.0 safetensors`:

    python tests/interpret/make_vit_golden.py [FAMILY ...]
"""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
import transformers as hf
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[1] / "golden" / "vit"
WIDTH, HEADS, MLP, PATCH, SIZE, LARGE = 16, 2, 24, 4, 12, (16, 20)
HF = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=MLP)
IMAGE = dict(image_size=SIZE, patch_size=PATCH)
TEXT = dict(vocab_size=30, max_position_embeddings=7, eos_token_id=29, bos_token_id=28, pad_token_id=1)
VIDEO = dict(frames=4, tubelet=2)


def randomised(model, seed: int):
    """The model with random weights large enough that everything in it matters, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        norm = "norm" in name or "ln_" in name
        if name in ("logit_scale", "logit_bias"):
            weight.data = 0.5 * noise
        elif norm and name.endswith("weight"):
            weight.data = 1 + 0.2 * noise
        elif weight.ndim > 1 and "embed" not in name and "token" not in name:
            weight.data = noise / weight[0].numel() ** 0.5
        else:
            weight.data = 0.4 * noise
    return model.eval()


def images(seed: int, size=(SIZE, SIZE)):
    """Two images `[2, 3, height, width]`."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def captions(seed: int):
    """Three captions that end at different places: `[3, 7]`."""
    ids = torch.randint(2, 28, (3, 7), generator=torch.Generator().manual_seed(seed))
    for row, end in enumerate((6, 3, 5)):
        ids[row, end:], ids[row, 0] = 1, 28
        ids[row, end] = 29
    return ids


class Watch:
    """Notes what enters the first of some blocks, and what each returns."""

    def __init__(self, blocks):
        self.hidden = []
        blocks[0].register_forward_pre_hook(lambda _, args: self.hidden.append(args[0]))
        for block in blocks:
            block.register_forward_hook(lambda _, args, out: self.hidden.append(out[0] if type(out) is tuple else out))

    def take(self, prefix: str) -> dict:
        """By name, and forgets."""
        seen, self.hidden = {f"{prefix}hidden.{i}": value for i, value in enumerate(self.hidden)}, []
        return seen


def keep(name: str, seen: dict) -> None:
    """Writes what was seen, and says how large the folder is."""
    arrays = {key: value.numpy() if torch.is_tensor(value) else np.asarray(value) for key, value in seen.items()}
    np.savez_compressed(FOLDER / name / "seen.npz", **arrays)
    size = sum(path.stat().st_size for path in (FOLDER / name).iterdir())
    print(f"{name}: {size / 1024:.0f} KB, {', '.join(arrays)}")


def keep_config(name: str, file: str, config: dict, model) -> None:
    """Writes weights and configuration as timm and open_clip do."""
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
    (FOLDER / name / "config.json").unlink(missing_ok=True)
    (FOLDER / name / file).write_text(json.dumps(config, indent=1))
    weights = "model.safetensors" if file == "config.json" else "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, FOLDER / name / weights)


def patterns(outputs, prefix: str = "") -> dict:
    """Patterns of attention by block."""
    return {f"{prefix}pattern.{i}": value for i, value in enumerate(outputs.attentions)}


def hugging_face(name: str, model, blocks, read, x, large=None, **options) -> None:
    """One of transformers's, its output by `read`."""
    model = randomised(model, seed=sum(map(ord, name)))
    model.save_pretrained(FOLDER / name)
    watch = Watch(blocks(model))
    outputs = model(x, output_attentions=True)
    seen = {"x": x, "output": read(outputs)} | watch.take("") | patterns(outputs)
    if large is not None:
        seen |= {"large.x": large, "large.output": read(model(large, **options))}
    keep(name, seen)


def of_hugging_face() -> None:
    """ViT, DINOv2, with registers, ViViT and V-JEPA 2."""
    eager, layers = dict(attn_implementation="eager"), lambda model: model.base_model.layers
    logits, pooled = lambda out: out.logits, lambda out: out.pooler_output
    more = dict(interpolate_pos_encoding=True)
    config = hf.ViTConfig(**HF, **IMAGE, num_labels=5, **eager)
    hugging_face("vit", hf.ViTForImageClassification(config), layers, logits, images(0), images(1, LARGE), **more)
    hugging_face("vit_pooler", hf.ViTModel(config), layers, pooled, images(2))
    encoder = lambda model: model.base_model.encoder.layer  # noqa: E731
    dino = HF | IMAGE | dict(mlp_ratio=2) | eager
    hugging_face("dinov2", hf.Dinov2Model(hf.Dinov2Config(**dino)), encoder, pooled, images(3), images(4, LARGE))
    config = hf.Dinov2Config(**dino, use_swiglu_ffn=True, num_labels=5)
    hugging_face("dinov2_swiglu", hf.Dinov2ForImageClassification(config), encoder, logits, images(5))
    config = hf.Dinov2WithRegistersConfig(**dino, num_register_tokens=3)
    model = hf.Dinov2WithRegistersModel(config)
    hugging_face("dinov2_registers", model, encoder, pooled, images(6), images(7, LARGE))
    video = torch.randn(2, VIDEO["frames"], 3, SIZE, SIZE, generator=torch.Generator().manual_seed(8))
    tubelet = [VIDEO["tubelet"], PATCH, PATCH]
    config = hf.VivitConfig(**HF, image_size=SIZE, num_frames=VIDEO["frames"], tubelet_size=tubelet, **eager)
    hugging_face("vivit", hf.VivitForVideoClassification(config), layers, logits, video)
    small = dict(pred_hidden_size=12, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_num_mask_tokens=2)
    base = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, mlp_ratio=2, patch_size=PATCH)
    base |= dict(crop_size=SIZE, frames_per_clip=VIDEO["frames"], tubelet_size=VIDEO["tubelet"]) | small | eager
    hugging_face("vjepa2", hf.VJEPA2Model(hf.VJEPA2Config(**base)), encoder, lambda out: out.last_hidden_state, video)


def two_towers(name: str, model, blocks_of) -> None:
    """CLIP and SigLIP of transformers."""
    model = randomised(model, seed=sum(map(ord, name)))
    model.save_pretrained(FOLDER / name)
    x, ids, large = images(10), captions(11), images(12, LARGE)
    watches = {tower: Watch(blocks_of(model, tower)) for tower in ("vision", "text")}
    out = model(pixel_values=x, input_ids=ids, output_attentions=True)
    seen = {"x": x, "ids": ids, "logits": out.logits_per_image}
    embedded = {"vision": model.get_image_features(x), "text": model.get_text_features(ids)}
    for tower, watch in watches.items():
        embeds = embedded[tower]
        seen |= {f"{tower}.output": getattr(embeds, "pooler_output", embeds)}
        watch.hidden = watch.hidden[: len(watch.hidden) // 2]  # the model ran, and then the tower alone
        seen |= watch.take(f"{tower}.") | patterns(getattr(out, f"{tower}_model_output"), f"{tower}.")
    embeds = model.get_image_features(large, interpolate_pos_encoding=True)
    keep(name, seen | {"large.x": large, "large.output": getattr(embeds, "pooler_output", embeds)})


def of_towers() -> None:
    """CLIP, its vision tower alone, and SigLIP."""
    eager = dict(attn_implementation="eager")
    towers = dict(text_config=HF | TEXT, vision_config=HF | IMAGE)
    blocks_of = lambda model, tower: getattr(model, f"{tower}_model").encoder.layers  # noqa: E731
    two_towers("clip", hf.CLIPModel(hf.CLIPConfig(**towers, projection_dim=10, **eager)), blocks_of)
    two_towers("siglip", hf.SiglipModel(hf.SiglipConfig(**towers, **eager)), blocks_of)
    model = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**HF, **IMAGE, projection_dim=10, **eager))
    read = lambda out: out.image_embeds  # noqa: E731
    hugging_face("clip_vision", model, lambda model: model.vision_model.encoder.layers, read, images(13))


TIMM = dict(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=HEADS, dynamic_img_size=True)
TIMM_KINDS = {
    "timm": dict(num_classes=5, mlp_ratio=1.5),
    "timm_registers": dict(
        num_classes=5, mlp_ratio=1.5, reg_tokens=3, no_embed_class=True, init_values=0.3, global_pool="avg"
    ),
    "timm_attention": dict(num_classes=0, mlp_ratio=1.5, class_token=False, global_pool="map"),
    "timm_swiglu": dict(num_classes=0, mlp_ratio=1.5, pre_norm=True),
}  # fmt: skip


def of_timm() -> None:
    """ViTs of timm, one of them as DINO's."""
    for i, (name, options) in enumerate(TIMM_KINDS.items()):
        swiglu = dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU) if "swiglu" in name else {}
        model = randomised(timm.models.VisionTransformer(**TIMM, **options, **swiglu), seed=20 + i)
        written = {key: value for key, value in options.items() if key not in ("num_classes", "global_pool")}
        config = {"num_classes": options["num_classes"], "global_pool": options.get("global_pool", "token")}
        args = {key: value for key, value in TIMM.items() if key != "dynamic_img_size"} | written
        keep_config(name, "config.json", {"architecture": "vit_small_patch4_12"} | config | {"model_args": args}, model)
        watch, x, large = Watch(model.blocks), images(30 + i), images(40 + i, LARGE)
        seen = {"x": x, "output": model(x)} | watch.take("") | {"large.x": large, "large.output": model(large)}
        keep(name, seen)
    # DINO's network is timm's without a head; its code interpolates by a scale that is a little larger.
    model = randomised(timm.models.VisionTransformer(**TIMM, mlp_ratio=1.5, num_classes=0), seed=29)
    keep_config("dino", "config.json", {}, model)
    (FOLDER / "dino" / "config.json").unlink()
    watch, x, large = Watch(model.blocks), images(50), images(51, LARGE)
    seen = {"x": x, "output": model(x)} | watch.take("")
    side, old = SIZE // PATCH, model.pos_embed.data
    scale = tuple((size // PATCH + 0.1) / side for size in LARGE)
    table = old[:, 1:].reshape(1, side, side, WIDTH).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, scale_factor=scale, mode="bicubic")
    grown = timm.models.VisionTransformer(**TIMM | dict(img_size=LARGE), mlp_ratio=1.5, num_classes=0)
    table = torch.cat([old[:, :1], table.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], 1)
    grown.load_state_dict(model.state_dict() | {"pos_embed": table})
    keep("dino", seen | {"large.x": large, "large.output": grown.eval()(large)})


def of_open_clip() -> None:
    """A CLIP of open_clip."""
    vision = dict(image_size=SIZE, layers=2, width=WIDTH, head_width=WIDTH // HEADS, patch_size=PATCH, mlp_ratio=1.5)
    text = dict(context_length=7, vocab_size=30, width=WIDTH, heads=HEADS, layers=2, mlp_ratio=1.5)
    config = dict(embed_dim=10, quick_gelu=True, vision_cfg=vision, text_cfg=text)
    model = randomised(open_clip.CLIP(**config), seed=60)
    keep_config("open_clip", "open_clip_config.json", {"model_cfg": config}, model)
    x, ids, large = images(61), captions(62), images(63, LARGE)
    ids[:, 0] = 27  # the largest number ends a caption
    watches = {"vision": Watch(model.visual.transformer.resblocks), "text": Watch(model.transformer.resblocks)}
    seen = {"x": x, "ids": ids, "vision.output": model.encode_image(x), "text.output": model.encode_text(ids)}
    for tower, watch in watches.items():
        seen |= watch.take(f"{tower}.")
    seen["logits"] = model.get_logits(x, ids)[0]
    grown = open_clip.CLIP(**config | dict(vision_cfg=vision | dict(image_size=LARGE)))
    state = model.state_dict()
    open_clip.model.resize_pos_embed(state, grown)
    grown.load_state_dict(state)
    keep("open_clip", seen | {"large.x": large, "large.output": grown.eval().encode_image(large)})


MAKERS = {"hugging_face": of_hugging_face, "towers": of_towers, "timm": of_timm, "open_clip": of_open_clip}

if __name__ == "__main__":
    with torch.no_grad():
        for family in sys.argv[1:] or MAKERS:
            MAKERS[family]()
