"""Options that all experiments on reinforcement learning share."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from experiments.options import rl_paper
from experiments.options.common import (
    require,
    require_each,
    require_orders,
    require_run_flags,
    whole_steps,
)

VARIANTS = (
    *("anneal", "actor_gradient", "critic", "form", "random_lam"),
    *("normalization", "cascade", "truncation", "reset_cascade", "late_critic", "late_flag"),
    *("discount", "lam", "entropy"),
)


@dataclass(frozen=True)
class ReinforcementLearning:
    """An actor that learns from credit that comes late, and a critic that learns by ordinary backprop."""

    name: ClassVar[str] = "rl"
    dt: ClassVar[float] = rl_paper.STEP

    preset: str = "demo"
    """Values of the options that are not given."""
    out: Path = Path("results")
    """Output folder; files go to a folder of the experiment's name in it."""
    environment: Literal["cartpole", "space_invaders", "lunarlander"] = "cartpole"
    """CartPole-v1, MinAtar SpaceInvaders (all six actions, 10 % sticky, no limit of time) or LunarLander-v3."""
    frames: int = 400_000
    """Length of a run, in steps over all environments."""
    seeds: int = 3
    """Number of runs of each condition."""
    orders: tuple[int, ...] = (2, 10)
    """Orders of the cascading traces, 2 to 64."""
    betas: tuple[float, ...] = (0.9,)
    """Decays per step of the exponential trace to choose from, between 0 and 1."""
    learning_rates: tuple[float, ...] = (5e-4,)
    """Learning rates to choose from, per trace."""
    critic_rate: float = 1.0
    """Learning rate of the critic in units of the actor's."""
    selection_frames: int = 1_000_000
    """Length of a run that only serves to choose the learning rate and β."""
    selection_seed: int = 1000
    """Seed of the runs that choose; not one of the seeds reported."""
    environments: int | None = None
    """Environments side by side; by default as many as in the paper."""
    rollout: int | None = None
    """Steps of each environment between two updates; by default as in the paper."""
    hidden: tuple[int, ...] = rl_paper.HIDDEN
    """Units of the hidden layers of actor and critic."""
    discount: float = rl_paper.DISCOUNT
    """Discount γ, 0 to 1."""
    lam: float = rl_paper.LAM
    """Decay λ of the λ-trace and of λ-returns, 0 to 1."""
    entropy: float = rl_paper.ENTROPY
    """Weight of the entropy bonus."""
    normalization: Literal["area", "peak"] = "area"
    """Whether the weights of a trace sum to 1, or the largest is 1 (the paper in CartPole and SpaceInvaders)."""
    cascade: Literal["exact", "first_stage"] = "exact"
    """first_stage: input enters the first stage alone, as in the authors' code."""
    truncation: Literal["bootstrap", "terminate"] = "bootstrap"
    """Whether an episode that was broken off is worth what would have come, or nothing, as in the paper."""
    anneal: Literal["none", "critic", "both"] = "none"
    """Whose learning rate falls to 0 over a run: in the authors' CartPole the critic's."""
    actor_gradient: Literal["mean", "sum"] = "mean"
    """Whether the actor's gradient is a mean over steps, as in the paper, or a sum, which is larger by a rollout."""
    critic: Literal["mlp", "conv"] = "mlp"
    """Networks of the critic: hidden layers as the actor's, or convolutions, for images."""
    form: Literal["activation", "preactivation", "authors_linear"] = "activation"
    """What enters the traces and what they meet (cetsim.credit.synaptic_factors)."""
    random_lam: tuple[float, float] | None = None
    """Ends between which λ of every synapse is drawn, as in the authors' SpaceInvaders; by default --lam in all."""
    reset_cascade: bool = False
    """Whether synapses forget an episode's activity the moment it ends: that of its last steps before credit comes."""
    late_critic: bool = False
    """Whether the critic too learns through traces from late TD errors."""
    late_flag: bool = False
    """Whether ends of episodes cut λ-traces one step late, as in the authors' code."""
    episodes: int = rl_paper.EPISODES
    """Episodes of the evaluation at the end of a run."""
    batch_conditions: int = 4
    """Runs of one program trained at once."""
    shard: str = "1/1"
    """i/n: be the i-th of n processes that share work and output folder; the first waits for all and reports."""
    plot_only: bool = False
    """Redraw the figures from results.csv; run nothing."""
    fresh: bool = False
    """Start over: remove what this experiment wrote to its folder before."""

    @property
    def folder(self) -> Path:
        """Where this experiment writes."""
        return self.out / self.name

    @property
    def paper(self) -> rl_paper.PaperSettings:
        """The paper's settings of the environment."""
        return rl_paper.SETTINGS[self.environment]

    @property
    def frames_of_update(self) -> int:
        """Steps of all environments between two updates."""
        return (self.environments or self.paper.environments) * (self.rollout or self.paper.rollout)

    @property
    def variant(self) -> str:
        """Options of the agent that are not as by default, such as `"anneal, lam=0.9"`."""
        own = {each.name: (getattr(self, each.name), each.default) for each in fields(ReinforcementLearning)}
        own = {name: own[name] for name in VARIANTS if own[name][0] != own[name][1]}
        return ", ".join(name if value is True else f"{name}={value}" for name, (value, _) in own.items())

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        raise NotImplementedError

    def updates(self, frames: int) -> int:
        """Updates of a run of so many frames."""
        return frames // self.frames_of_update

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        require_run_flags(self.plot_only, self.fresh, self.shard)
        for name in ("frames", "seeds", "selection_frames", "episodes", "batch_conditions"):
            require(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("environments", "rollout"):
            value = getattr(self, name)
            require(name, value is None or value >= 1, "at least 1", value)
        require_orders(self.orders)
        require_each("hidden", self.hidden, lambda v: v >= 1, "at least 1", distinct=False)
        require_each("learning_rates", self.learning_rates, lambda v: v > 0, "above 0")
        require_each("betas", self.betas, lambda v: 0 < v < 1, "above 0 and below 1")
        require_each("critic_rate", (self.critic_rate,), lambda v: v > 0, "above 0")
        for name in ("discount", "lam"):
            require_each(name, (getattr(self, name),), lambda v: 0 <= v <= 1, "0 to 1")
        ends = self.random_lam or (0.0, 1.0)
        require("random_lam", 0 <= ends[0] <= ends[1] <= 1, "two ends in 0 to 1, the lower first", ends)
        require_each("entropy", (self.entropy,), lambda v: v >= 0, "at least 0")
        apart = not 0 <= self.selection_seed < self.seeds
        require("selection_seed", apart, f"outside the {self.seeds} seeds reported", self.selection_seed)
        require("selection_seed", self.selection_seed >= 0, "at least 0", self.selection_seed)
        shorter = self.frames if self.choices == 1 else min(self.frames, self.selection_frames)
        need = (round(self.longest / self.dt) // self._rollout + 1) * self.frames_of_update
        name = "frames" if shorter == self.frames else "selection_frames"
        why = f"at least {need}: whole updates, longer than the longest delay, {self.longest:g} s"
        require(name, shorter >= need, why, shorter)

    @property
    def _rollout(self) -> int:
        return self.rollout or self.paper.rollout

    @property
    def choices(self) -> int:
        """Settings that are chosen from for the exponential trace, which has the most."""
        return len(self.learning_rates) * len(self.betas)

    def require_delays(self, name: str, delays: tuple[float, ...]) -> None:
        """Raises ValueError unless delays are whole steps of at least one."""
        require_each(
            name, delays, lambda v: v > 0 and whole_steps(v, self.dt), f"above 0 and a multiple of {self.dt:g} s"
        )
