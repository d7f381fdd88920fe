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

# Sparse coders, steering, suppression, transformers and published weights into them.
from cetsim.interpret import weights
from cetsim.interpret.clip import Clip, TextTransformer
from cetsim.interpret.coder import Coder
from cetsim.interpret.crosscoder import Crosscoder, latent_scaling
from cetsim.interpret.evaluation import Evaluation, evaluate, quality
from cetsim.interpret.formats import load_coder, load_prisma, load_saelens, save_coder
from cetsim.interpret.settings import Hyperparameters, Settings
from cetsim.interpret.sparsity import BatchTopK, Gated, JumpReLU, ReLU, TopK
from cetsim.interpret.splicing import cross_entropies, recovered
from cetsim.interpret.steering import (
    Neurons,
    RandomDirections,
    Readout,
    Steerability,
    at_target_change,
    calibrated,
    disentanglement,
    percentiles,
    steer,
    steerability,
)
from cetsim.interpret.store import Activations, record
from cetsim.interpret.suppression import (
    GroupAccuracy,
    first_of,
    frequency_matched,
    group_accuracy,
    group_differences,
    mean_activations,
    retrained,
    suppress,
)
from cetsim.interpret.training import CoderRun, CoderState
from cetsim.interpret.transformer import Attention
from cetsim.interpret.vit import VisionTransformer
from cetsim.interpret.weights import Family, models

__all__ += [
    "Activations",
    "Attention",
    "BatchTopK",
    "Clip",
    "Coder",
    "CoderRun",
    "CoderState",
    "Crosscoder",
    "Evaluation",
    "Family",
    "Gated",
    "GroupAccuracy",
    "Hyperparameters",
    "JumpReLU",
    "Neurons",
    "RandomDirections",
    "ReLU",
    "Readout",
    "Settings",
    "Steerability",
    "TextTransformer",
    "TopK",
    "VisionTransformer",
    "at_target_change",
    "calibrated",
    "cross_entropies",
    "disentanglement",
    "evaluate",
    "first_of",
    "frequency_matched",
    "group_accuracy",
    "group_differences",
    "latent_scaling",
    "load_coder",
    "load_prisma",
    "load_saelens",
    "mean_activations",
    "models",
    "percentiles",
    "quality",
    "record",
    "recovered",
    "retrained",
    "save_coder",
    "steer",
    "steerability",
    "suppress",
    "weights",
]
