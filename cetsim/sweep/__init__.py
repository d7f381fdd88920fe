"""Sweeps that survive: grids of conditions, their records, what they are resumed from."""

from cetsim.sweep.grid import grid
from cetsim.sweep.hosts import initialize
from cetsim.sweep.sweep import run
from cetsim.sweep.table import Table, choose, load
from cetsim.sweep.training import Evaluation, Training

__all__ = ["Evaluation", "Table", "Training", "choose", "grid", "initialize", "load", "run"]
