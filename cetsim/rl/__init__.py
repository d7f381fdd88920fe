"""Reinforcement learning with late credit: an actor-critic whose actor learns through cascading traces."""

from cetsim.rl import actor_trace, environments, policies, reservoirs
from cetsim.rl.a2c import ActorCriticRun
from cetsim.rl.agent import Learner
from cetsim.rl.alignment import policy_alignment
from cetsim.rl.host import HostRun
from cetsim.rl.saving import Policy, load_agent, load_policy, policy_of, save_agent, save_policy
from cetsim.rl.settings import Hyperparameters, Settings, undelayed, without_delay
from cetsim.rl.vector_env import from_gymnasium

__all__ = [
    "ActorCriticRun",
    "HostRun",
    "Hyperparameters",
    "Learner",
    "Policy",
    "Settings",
    "actor_trace",
    "environments",
    "from_gymnasium",
    "load_agent",
    "load_policy",
    "policies",
    "policy_alignment",
    "policy_of",
    "reservoirs",
    "save_agent",
    "save_policy",
    "undelayed",
    "without_delay",
]
