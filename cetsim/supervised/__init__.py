"""Supervised learning from late credit: a run is `init`, `advance` and `evaluate`, pure in (hyperparameters, key).

A whole run is their composition, so that progress, checkpoints and curves sit between calls of `advance`. Every
hyperparameter is an array leaf: runs that differ in them share one compiled program, one after another or vmapped
together (in the reset mode kinds of trace too, by `trace.tabulate`).
"""

from cetsim.supervised.run import SupervisedRun, TrainState
from cetsim.supervised.settings import Hyperparameters, Settings, backprop

__all__ = ["Hyperparameters", "Settings", "SupervisedRun", "TrainState", "backprop"]
