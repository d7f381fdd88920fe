"""The paper's settings of reinforcement learning, environment by environment (arXiv:2506.14598)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperSettings:
    """How the paper trains in one environment.

    **Fields:** `frames`: of a run, over all environments. `environments`: side by side. `rollout`: steps of each
    between two updates. `split`: whether observations are split into positive and negative parts. `anneal`: whose
    learning rate falls to 0. `normalization`: of traces. `critic`: its networks. `random_lam`: ends between which λ of
    every synapse is drawn.
    """

    frames: int
    environments: int
    rollout: int
    split: bool
    anneal: str
    normalization: str
    critic: str = "mlp"
    random_lam: tuple[float, float] | None = None


SETTINGS = {
    "cartpole": PaperSettings(5_000_000, 4, 128, split=True, anneal="critic", normalization="peak"),
    "lunarlander": PaperSettings(5_000_000, 4, 128, split=True, anneal="none", normalization="area"),
    "space_invaders": PaperSettings(
        10_000_000,
        32,
        32,
        split=False,
        anneal="none",
        normalization="peak",
        critic="conv",
        random_lam=(0.1, 0.99),
    ),
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
    "critic_rate": 1.0,  # one learning rate for both
    "actor_gradient": "mean",  # their loss is the mean log-probability over steps and environments
    "form": "authors_linear",  # errors of their hidden layers are taken by z, and f' enters the trace besides
    "truncation": "terminate",  # their done flag holds both, and no value is bootstrapped from
    "cascade": "first_stage",  # they take the first row of the exact input matrix for its first column; ET: from lag 0
    "late_flag": True,  # the done flag that cuts λ-traces is read one step later than the TD error
}
"""Options of the experiments by which they do as the authors' code does, in every environment."""


def authors(environment: str) -> dict:
    """All options of the authors' setting of an environment: those of their code, and of the environment's own."""
    own = SETTINGS[environment]
    return AUTHORS_CODE | {
        "environment": environment,
        "frames": own.frames,
        "anneal": own.anneal,  # CartPole alone, and there the critic alone
        "normalization": own.normalization,  # LunarLander's traces have unit area, the others' a largest weight of 1
        "critic": own.critic,  # SpaceInvaders: convolutions of 16, 32 and 32 channels, then 512 units
        "random_lam": own.random_lam,  # SpaceInvaders: each synapse its own λ, whatever the trace
        "orders": ORDERS,
        "betas": BETAS,
        "learning_rates": LEARNING_RATES,
    }
