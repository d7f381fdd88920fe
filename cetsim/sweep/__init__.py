"""Sweeps that survive: grids of conditions, their records, what they are resumed from."""

from cetsim.sweep.batches import grid
from cetsim.sweep.hosts import initialize
from cetsim.sweep.sweep import run
from cetsim.sweep.training import Training
from cetsim.sweep.writers import Table, load, to_tensorboard, to_wandb

__all__ = ["Table", "Training", "grid", "initialize", "load", "run", "to_tensorboard", "to_wandb"]
