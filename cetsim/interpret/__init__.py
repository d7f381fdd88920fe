"""Seeing inside networks: sites, what they say, and what happens when they say something else."""

from cetsim.interpret.attribution import (
    Effects,
    Estimate,
    IntegratedGradients,
    ablation,
    activation_patching,
    attribution_patching,
    integrated_gradients,
    path_patching,
)
from cetsim.interpret.capture import capture, edited
from cetsim.interpret.edits import ABLATIONS, Ablate, Add, Clamp, Set, Splice
from cetsim.interpret.latents import Latents, collect
from cetsim.interpret.lens import attention_patterns, direct_logits, logit_lens
from cetsim.interpret.page import page
from cetsim.interpret.sites import Site, Sites, sites
from cetsim.interpret.views import (
    decoder_images,
    heat_map,
    plot_attention,
    plot_decoder_images,
    plot_densities,
    plot_top_images,
)

__all__ = [
    "ABLATIONS",
    "Ablate",
    "Add",
    "Clamp",
    "Effects",
    "Estimate",
    "IntegratedGradients",
    "Latents",
    "Set",
    "Site",
    "Sites",
    "Splice",
    "ablation",
    "activation_patching",
    "attention_patterns",
    "attribution_patching",
    "capture",
    "collect",
    "decoder_images",
    "direct_logits",
    "edited",
    "heat_map",
    "integrated_gradients",
    "logit_lens",
    "page",
    "path_patching",
    "plot_attention",
    "plot_decoder_images",
    "plot_densities",
    "plot_top_images",
    "sites",
]

# Sparse coders.
from cetsim.interpret.coder import Coder
from cetsim.interpret.crosscoder import Crosscoder, latent_scaling
from cetsim.interpret.evaluation import Evaluation, evaluate, quality
from cetsim.interpret.formats import load_coder, load_prisma, load_saelens, save_coder
from cetsim.interpret.settings import Hyperparameters, Settings
from cetsim.interpret.sparsity import BatchTopK, Gated, JumpReLU, ReLU, TopK
from cetsim.interpret.splicing import cross_entropies, recovered
from cetsim.interpret.store import Activations, record
from cetsim.interpret.training import CoderRun, CoderState

__all__ += [
    "Activations",
    "BatchTopK",
    "Coder",
    "CoderRun",
    "CoderState",
    "Crosscoder",
    "Evaluation",
    "Gated",
    "Hyperparameters",
    "JumpReLU",
    "ReLU",
    "Settings",
    "TopK",
    "cross_entropies",
    "evaluate",
    "latent_scaling",
    "load_coder",
    "load_prisma",
    "load_saelens",
    "quality",
    "record",
    "recovered",
    "save_coder",
]
