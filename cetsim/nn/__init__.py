"""Equinox models whose gradients are their traces' updates."""

from cetsim.nn.attach import BOUNDARIES, attach, detach, layer_names
from cetsim.nn.block import TracedBlock, streaming_init, streaming_value_and_grad
from cetsim.nn.mlp import mlp
from cetsim.nn.synapse import Synapses

__all__ = [
    "BOUNDARIES",
    "Synapses",
    "TracedBlock",
    "attach",
    "detach",
    "layer_names",
    "mlp",
    "streaming_init",
    "streaming_value_and_grad",
]
