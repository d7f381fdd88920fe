"""Equinox models whose gradients are their traces' updates."""

from cetsim.nn.attach import BOUNDARIES, FORMS, attach, detach, layer_names
from cetsim.nn.batch_norm import BatchNorm
from cetsim.nn.block import SuppliesActivation, TracedBlock, streaming_init, streaming_value_and_grad
from cetsim.nn.centering import center, centered, follow, mean_inputs
from cetsim.nn.cnn import cnn
from cetsim.nn.conv import AvgPool2d, Conv2d
from cetsim.nn.init import xavier
from cetsim.nn.mlp import mlp
from cetsim.nn.resnet import resnet20
from cetsim.nn.saving import load, save
from cetsim.nn.summary import Summary, summary
from cetsim.nn.synapse import DERIVATIVES, Synapses

__all__ = [
    "BOUNDARIES",
    "DERIVATIVES",
    "FORMS",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Summary",
    "SuppliesActivation",
    "Synapses",
    "TracedBlock",
    "attach",
    "center",
    "centered",
    "cnn",
    "detach",
    "follow",
    "layer_names",
    "load",
    "mean_inputs",
    "mlp",
    "resnet20",
    "save",
    "streaming_init",
    "streaming_value_and_grad",
    "summary",
    "xavier",
]
