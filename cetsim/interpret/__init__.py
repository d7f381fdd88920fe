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
