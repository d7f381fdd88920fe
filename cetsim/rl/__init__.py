"""Reinforcement learning with late credit: an actor-critic whose actor learns through cascading traces."""

from cetsim.rl import actor_trace, environments
from cetsim.rl.a2c import ActorCriticRun
from cetsim.rl.agent import Hyperparameters, Learner, Settings, without_delay

__all__ = ["ActorCriticRun", "Hyperparameters", "Learner", "Settings", "actor_trace", "environments", "without_delay"]
