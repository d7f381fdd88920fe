"""Seeing inside networks: sites, what they say, and what happens when they say something else."""

from cetsim.interpret.capture import capture, edited
from cetsim.interpret.edits import ABLATIONS, Ablate, Add, Clamp, Set, Splice
from cetsim.interpret.sites import Site, Sites, sites

__all__ = [
    "ABLATIONS",
    "Ablate",
    "Add",
    "Clamp",
    "Set",
    "Site",
    "Sites",
    "Splice",
    "capture",
    "edited",
    "sites",
]
