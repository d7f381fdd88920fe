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
from cetsim.interpret.lens import attention_patterns, direct_logits, logit_lens
from cetsim.interpret.sites import Site, Sites, sites

__all__ = [
    "ABLATIONS",
    "Ablate",
    "Add",
    "Clamp",
    "Effects",
    "Estimate",
    "IntegratedGradients",
    "Set",
    "Site",
    "Sites",
    "Splice",
    "ablation",
    "activation_patching",
    "attention_patterns",
    "attribution_patching",
    "capture",
    "direct_logits",
    "edited",
    "integrated_gradients",
    "logit_lens",
    "path_patching",
    "sites",
]

# Sparse coders.
from cetsim.interpret.coder import Coder
from cetsim.interpret.crosscoder import Crosscoder, latent_scaling
from cetsim.interpret.evaluation import Evaluation, cross_entropies, evaluate, quality, recovered
from cetsim.interpret.formats import load_coder, load_prisma, load_saelens, save_coder
from cetsim.interpret.sparsity import BatchTopK, Gated, JumpReLU, ReLU, TopK
from cetsim.interpret.store import Activations, record
from cetsim.interpret.training import CoderRun, CoderState, Hyperparameters, Settings

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
