"""The conditions of experiments on reinforcement learning, and the config that names a run."""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FirstStageCascade, FixedDelay, LayerwiseDelay
from cetsim.rl import Hyperparameters, Settings, environments, from_gymnasium
from cetsim.rl.environments import Environment
from cetsim.rl.vector_env import HostEnvironment
from experiments.options import rl_paper
from experiments.options.rl import ReinforcementLearning

NAMES = {"cartpole": "CartPole-v1", "space_invaders": "MinAtar SpaceInvaders", "lunarlander": "LunarLander-v3"}
UNDELAYED = ("no delay", 0)


@dataclass(frozen=True)
class RLCondition:
    """One run: what synapses remember, when signals come, a learning rate and a seed.

    `delay_s` is that of all layers, or, `retrograde`, of each after the layer above. `beta` is the decay per step of
    the exponential trace, 0 for others.
    """

    trace: str
    order: int
    delay_s: float
    retrograde: bool = False
    beta: float = 0.0
    learning_rate: float = 0.0
    seed: int = 0


def traces_of(options: ReinforcementLearning) -> list[tuple[str, int]]:
    """What is compared, by kind and order."""
    return [UNDELAYED, ("ET", 1), *(("CET", order) for order in options.orders), ("delay line", 0)]


def candidates(options: ReinforcementLearning, condition: RLCondition) -> list[RLCondition]:
    """The condition with each learning rate and, for the exponential trace, each β to choose from."""
    betas = options.betas if condition.trace == "ET" else (0.0,)
    rates = options.learning_rates
    return [replace(condition, learning_rate=rate, beta=beta) for beta in betas for rate in rates]


@dataclass(frozen=True)
class Stage:
    """Runs of one length: those that choose (`"validation"`), or those reported (`"test"`). `frames`: of a run."""

    measured_on: str
    options: ReinforcementLearning
    frames: int
    unit: ClassVar[str] = "frames"

    @property
    def updates(self) -> int:
        """Updates of a run."""
        return self.options.updates(self.frames)

    @property
    def steps(self) -> int:
        """Frames of a run: whole updates."""
        return self.updates * self.options.frames_of_update

    @property
    def lanes(self) -> int:
        """Conditions trained at once at most: one in a simulator on the host."""
        return 1 if self.options.environment == "lunarlander" else self.options.batch_conditions

    def settings(self) -> Settings:
        """What is compiled into a program."""
        options = self.options
        return Settings(
            updates=self.updates,
            environments=options.environments or options.paper.environments,
            rollout=options.rollout or options.paper.rollout,
            hidden=options.hidden,
            critic=options.critic,
            form=options.form,
            actor_gradient=options.actor_gradient,
            anneal=options.anneal,
            random_lam=options.random_lam,
            truncation=options.truncation,
            reset_cascade=options.reset_cascade,
            late_critic=options.late_critic,
            late_flag=options.late_flag,
        )

    def hyperparameters(self, condition: RLCondition, learning_rate=None) -> Hyperparameters:
        """The condition's trace, delay and rates, its learning rate replaced by `learning_rate` if given."""
        options, layers = self.options, len(self.options.hidden) + 1
        rate = condition.learning_rate if learning_rate is None else learning_rate
        if condition.retrograde:
            waits = [layer * condition.delay_s for layer in range(layers)]
            trace = tuple(self._trace(condition, wait) for wait in waits)
            delay = LayerwiseDelay.stacked(condition.delay_s, layers, options.dt)
        else:
            trace = self._trace(condition, condition.delay_s)
            delay = FixedDelay(condition.delay_s, options.dt, condition.delay_s)
        return Hyperparameters(
            rate, trace, delay, options.discount, options.lam, options.entropy, rl_paper.VALUE, options.critic_rate
        )

    def _trace(self, condition: RLCondition, delay: float):
        options = self.options
        if delay == 0 or condition.trace == "delay line":
            return DelayLine(delay, options.dt, delay)
        if condition.trace == "ET":
            read = "after" if options.cascade == "first_stage" else "before"
            return ExponentialTrace.from_decay(condition.beta, options.dt, read, options.normalization)
        kind = FirstStageCascade if options.cascade == "first_stage" else CascadingTrace
        return kind(condition.order, delay, options.dt, "after", options.normalization)

    @property
    def network(self) -> str:
        """Names of the networks with their sizes."""
        return "actor and critic " + "-".join(map(str, self.options.hidden))

    def columns(self, condition: RLCondition) -> dict:
        """What all rows of a run have in common."""
        scenario = "retrograde" if condition.retrograde else "behavioral"
        columns = {
            "experiment": self.options.name,
            "scenario": "none" if condition.trace == UNDELAYED[0] else scenario,
            "dataset": NAMES[self.options.environment],
            "network": self.network,
            "form": self.options.form,
            "mode": "carry",
            "critic_rate": self.options.critic_rate,
            "variant": self.options.variant,
        }
        return columns | {name: value for name, value in asdict(condition).items() if name != "retrograde"}

    def config(self, condition: RLCondition) -> dict:
        """Everything a run depends on; its hash names the run."""
        names = ("critic_rate", "discount", "lam", "entropy", "normalization", "cascade", "episodes")
        own = {name: getattr(self.options, name) for name in names} | {"value": rl_paper.VALUE, "dt": self.options.dt}
        split = self.options.paper.split
        columns = self.columns(condition)
        del columns["variant"]  # says again what is in the settings and below
        return columns | {"measured_on": self.measured_on, "split": split, "settings": asdict(self.settings())} | own


def open_environment(options: ReinforcementLearning) -> Environment | HostEnvironment:
    """The environment of the options, observed as in the paper.

    **Raises:** ImportError, with what to install.
    """
    split = options.paper.split
    if options.environment == "lunarlander":
        return from_gymnasium("LunarLander-v3", split=split)
    own = environments.cartpole() if options.environment == "cartpole" else environments.space_invaders()
    return environments.split_signs(own) if split else own
