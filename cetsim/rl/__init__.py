"""Reinforcement learning with late credit: an actor-critic whose actor learns through cascading traces."""

from cetsim.rl import actor_trace, environments
from cetsim.rl.a2c import ActorCriticRun, Hyperparameters, Settings, without_delay

__all__ = ["ActorCriticRun", "Hyperparameters", "Settings", "actor_trace", "environments", "without_delay"]
