"""The paper's settings of reinforcement learning, environment by environment (arXiv:2506.14598)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperSettings:
    """How the paper trains in one environment.

    **Fields:** `frames`: of a run, over all environments. `environments`: side by side. `rollout`: steps of each
    between two updates. `split`: whether observations are split into positive and negative parts. `anneal`: whether the
    learning rate falls to 0. `normalization`: of traces.
    """

    frames: int
    environments: int
    rollout: int
    split: bool
    anneal: bool
    normalization: str


SETTINGS = {
    "cartpole": PaperSettings(5_000_000, 4, 128, split=True, anneal=True, normalization="peak"),
    "lunarlander": PaperSettings(5_000_000, 4, 128, split=True, anneal=False, normalization="area"),
    "space_invaders": PaperSettings(10_000_000, 32, 32, split=False, anneal=False, normalization="peak"),
}
HIDDEN = (256, 256)
DISCOUNT, LAM, ENTROPY, VALUE = 0.99, 0.95, 0.01, 0.5
LEARNING_RATES = (1e-4, 2.5e-4, 5e-4, 9e-4)
BETAS = (0.5, 0.7, 0.9, 0.99)  # of the exponential trace, per step
ORDERS = (2, 5, 8, 10)
EPISODES = 100  # of an evaluation
STEP, RETROGRADE_STEP = 0.2, 0.3  # seconds
RETROGRADE_DELAY = 120.0  # seconds from layer to layer: 400 steps
AUTHORS_CODE = {
    "critic_rate": 1.0,  # the critic's learning rate is the actor's
    "truncation": "terminate",  # an episode that is broken off counts as one that ended
    "cascade": "first_stage",  # which alone is fed
    "late_flag": True,  # ends of episodes come a step later than TD errors
}
"""Options of the experiments by which they do as the authors' code does."""
