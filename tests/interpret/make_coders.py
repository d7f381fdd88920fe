"""Makes `coders/`: small coders by the real SAELens, and one file as Prisma writes them, with what they compute.

Run in an environment of its own, of Python 3.11 with `pip install sae-lens`: python tests/interpret/make_coders.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from sae_lens.saes import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    Transcoder,
    TranscoderConfig,
)  # fmt: skip

FOLDER = Path(__file__).parent / "coders"
IN, OUT, LATENTS = 6, 5, 16

MADE = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "uncentred": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 3}),
    "topk_rescaled": (TopKSAE, TopKSAEConfig, {"k": 3, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "transcoder": (Transcoder, TranscoderConfig, {"d_out": OUT, "apply_b_dec_to_input": False}),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig, {"d_out": OUT, "apply_b_dec_to_input": False}),
    "jumprelu_transcoder": (
        JumpReLUTranscoder, JumpReLUTranscoderConfig, {"d_out": OUT, "apply_b_dec_to_input": False}
    ),
}  # fmt: skip


class PrismaConfig:
    """Stands for the configuration object that Prisma pickles beside its weights."""

    def __init__(self):
        self.d_in, self.dtype = IN, torch.float32


def write_prisma(name: str, weights: dict, config: dict) -> None:
    """Writes a folder as Prisma does."""
    (FOLDER / name).mkdir(exist_ok=True)
    torch.save({"cfg": PrismaConfig(), "state_dict": weights}, FOLDER / name / "weights.pt")
    width, latents = weights["W_enc"].shape
    common = {"architecture": "standard", "d_in": width, "d_sae": latents, "normalize_activations": None}
    (FOLDER / name / "config.json").write_text(json.dumps(common | config))


def weights_of(width: int, latents: int) -> dict:
    """Of a coder, at random."""
    shapes = dict(W_enc=(width, latents), b_enc=(latents,), W_dec=(latents, width), b_dec=(width,))
    return {name: torch.randn(*shape) for name, shape in shapes.items()}


@torch.no_grad()
def main() -> None:
    """Writes everything."""
    torch.manual_seed(0)
    x = torch.randn(7, IN)
    FOLDER.mkdir(exist_ok=True)
    seen = {"x": x.numpy()}
    for name, (kind, config, options) in MADE.items():
        coder = kind(config(d_in=IN, d_sae=LATENTS, dtype="float32", device="cpu", **options))
        for field, weight in coder.named_parameters():
            weight.copy_(0.5 * torch.randn_like(weight))
            if field == "threshold":
                weight.abs_()
        coder.save_model(FOLDER / name)
        seen[f"{name}.f"], seen[f"{name}.y"] = coder.encode(x).numpy(), coder(x).numpy()
    weights, relu = weights_of(IN, LATENTS), {"activation_fn_str": "relu", "activation_fn_kwargs": {}}
    for name, config in (
        ("prisma", relu),
        ("prisma_topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}),
    ):
        write_prisma(name, weights, config)
        f = torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
        if name == "prisma_topk":
            f = torch.zeros_like(f).scatter(1, f.topk(3).indices, f.topk(3).values)
        seen[f"{name}.f"], seen[f"{name}.y"] = f.numpy(), (f @ weights["W_dec"] + weights["b_dec"]).numpy()
    np.savez(FOLDER / "seen.npz", **seen)
    torch.manual_seed(1)  # so that it can be made alone
    write_prisma("prisma_clip", weights_of(16, 40), relu)  # of the width of tests/golden/vit/open_clip


if __name__ == "__main__":
    main()
