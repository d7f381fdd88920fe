"""Reinforcement learning with late credit."""

from cetsim.rl import actor_trace

__all__ = ["actor_trace"]
