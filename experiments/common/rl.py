"""Control: an actor that learns from credit that comes late, and a critic that learns by ordinary backprop."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FirstStageCascade, FixedDelay, LayerwiseDelay, sweep
from cetsim.rl import ActorCriticRun, HostRun, Hyperparameters, Settings, environments, from_gymnasium, policy_alignment
from cetsim.spiking import LIF, FastSigmoid
from experiments.common import checks, selection
from experiments.common.conditions import Condition
from experiments.common.hyperparameters import readout
from experiments.common.options import Orders, Sweep

NAMES = {
    "cartpole": "CartPole-v1", "space_invaders": "MinAtar SpaceInvaders", "lunarlander": "LunarLander-v3",
    "pendulum": "Pendulum-v1",
}  # fmt: skip
UNDELAYED = ("no delay", 0)
POINTS = 50  # of a learning curve
MEASURED = 5  # moments at which alignment is measured
ROLLOUTS = 16  # over which alignment is measured
MAX_STEPS = 10_000  # of an episode of the evaluation
DEFAULTS = 2  # raised with every default of the agent that changes, so that older runs are not taken for new ones
EVALUATION_KEY, ALIGNMENT_KEY = 1, 2  # folded into a run's key
REWARD = {"pendulum": 0.1}  # what rewards are multiplied with before they are learned from, so that values are near 1
VALUE = 0.5  # weight of the critic's loss
MEMBRANE, THRESHOLD = 0.4, 0.2  # of spiking neurons: seconds, and in units of the current
PROBABILITY = checks.Rule("0 to 1", lambda v: 0 <= v <= 1)


class Paper(NamedTuple):
    """How an environment is trained in, in the paper (arXiv:2506.14598) unless it is not there: frames of a run,
    environments side by side, steps of each between two updates, and whether observations are split into positive and
    negative parts.
    """

    frames: int
    environments: int
    rollout: int
    split: bool


PAPER = {
    "cartpole": Paper(5_000_000, 4, 128, True),
    "lunarlander": Paper(5_000_000, 4, 128, True),
    "space_invaders": Paper(10_000_000, 32, 32, False),
    "pendulum": Paper(2_000_000, 16, 32, False),  # ours
}
CHOICES = {"orders": (2, 5, 8, 10), "betas": (0.5, 0.7, 0.9, 0.99), "learning_rates": (1e-4, 2.5e-4, 5e-4, 9e-4)}
AUTHORS_CODE = {
    "critic_rate": 1.0,  # one learning rate for both
    "clip_each": False,  # and one clip
    "center_td": None,  # TD errors are sent as they are
    "actor_gradient": "mean",  # their loss is the mean log-probability over steps and environments
    "form": "authors_linear",  # errors of their hidden layers are taken by z, and f' enters the trace besides
    "truncation": "terminate",  # their done flag holds both, and no value is bootstrapped from
    "cascade": "first_stage",  # they take the first row of the exact input matrix for its first column; ET: from lag 0
    "late_flag": True,  # the done flag that cuts λ-traces is read one step later than the TD error
}
_AUTHORS_OWN = {  # by environment; what is not there is as by default
    "cartpole": {"anneal": "critic", "normalization": "peak"},
    "lunarlander": {},
    "space_invaders": {"normalization": "peak", "critic": "conv", "random_lam": (0.1, 0.99)},
}


def authors(environment: str) -> dict:
    """All options of the authors' setting of an environment: those of their code, and of the environment's own."""
    own = {"environment": environment, "frames": PAPER[environment].frames} | _AUTHORS_OWN[environment]
    return AUTHORS_CODE | CHOICES | own


@dataclass(frozen=True)
class Agent:
    """What the agent is: options that name runs. Those that `rl.Settings` and `rl.Hyperparameters` have go there."""

    critic_rate: Annotated[float, checks.ABOVE_ZERO] = 1.0
    """Learning rate of the critic in units of the actor's."""
    environments: Annotated[int | None, checks.COUNT] = None
    """Environments side by side; by default as many as in the paper."""
    rollout: Annotated[int | None, checks.COUNT] = None
    """Steps of each environment between two updates; by default as in the paper."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (256, 256)
    """Units of the hidden layers of actor and critic."""
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
    normalization: Literal["area", "peak"] = "area"
    """Whether the weights of a trace sum to 1, or the largest is 1 (the paper in CartPole and SpaceInvaders)."""
    cascade: Literal["exact", "first_stage"] = "exact"
    """first_stage: input enters the first stage alone, as in the authors' code."""
    truncation: Literal["bootstrap", "terminate"] = "bootstrap"
    """Whether an episode that was broken off is worth what would have come, or nothing, as in the paper."""
    reset_cascade: bool = False
    """Whether synapses forget an episode's activity the moment it ends: that of its last steps before credit comes."""
    late_critic: bool = False
    """Whether the critic too learns through traces from late TD errors."""
    late_flag: bool = False
    """Whether ends of episodes cut λ-traces one step late, as in the authors' code."""
    center_td: float | None = 0.9
    """Decay per update of the running mean of TD errors that is taken off what the actor is sent; None takes none."""
    hold_actor: Annotated[float | None, checks.SHARE] = None
    """Largest mean of a rollout's TD errors, of their root mean square, with which the actor is sent any; None: all."""
    discount: Annotated[float, PROBABILITY] = 0.99
    """Discount γ, 0 to 1."""
    lam: Annotated[float, PROBABILITY] = 0.95
    """Decay λ of the λ-trace and of λ-returns, 0 to 1."""
    entropy: Annotated[float, checks.NOT_NEGATIVE] = 0.01
    """Weight of the entropy bonus."""
    clip_each: bool = True
    """Whether the gradients of actor and critic are clipped each, rather than together, as the authors' are."""
    epsilon: Annotated[float, checks.ABOVE_ZERO] = 1e-5
    """Adam's ε."""
    neurons: Literal["relu", "lif"] = "relu"
    """Hidden neurons of the actor: ReLU, or leaky integrate-and-fire, which learn by e-prop's local rule."""
    derivative: Literal["ideal", "cascade"] = "ideal"
    """How the derivative that errors pass waits for them: as it was, or in the layer's trace at the soma."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        same = self.derivative == "ideal" or self.normalization == "area"
        checks.require("normalization", same, "area where --derivative is cascade", self.normalization)

    @property
    def agent(self) -> "Agent":
        """These options alone."""
        return Agent(**{option.name: getattr(self, option.name) for option in fields(Agent)})

    @property
    def variant(self) -> str:
        """Options of the agent that are not as by default and have no column, such as `"anneal, lam=0.9"`."""
        written = ("critic_rate", "environments", "rollout", "hidden", "form")
        values = {option.name: getattr(self, option.name) for option in fields(Agent) if option.name not in written}
        changed = {name: value for name, value in values.items() if value != getattr(Agent, name)}
        return ", ".join(name if value is True else f"{name}={value}" for name, value in changed.items())


@dataclass(frozen=True)
class Control(Agent, Orders, Sweep):
    """An agent in an environment, trained with several traces from credit that comes late."""

    dt = 0.2  # seconds a step takes

    environment: Literal["cartpole", "space_invaders", "lunarlander", "pendulum"] = "cartpole"
    """CartPole-v1, MinAtar SpaceInvaders (all six actions, 10 % sticky, no limit of time), LunarLander-v3, or
    Pendulum-v1, whose actions are real numbers."""
    frames: Annotated[int, checks.COUNT] = 400_000
    """Length of a run, in steps over all environments."""
    betas: Annotated[tuple[float, ...], checks.INSIDE] = (0.9,)
    """Decays per step of the exponential trace to choose from, between 0 and 1."""
    learning_rates: tuple[float, ...] = (5e-4,)
    """Learning rates to choose from, per trace."""
    selection_frames: Annotated[int, checks.COUNT] = 1_000_000
    """Length of a run that only serves to choose the learning rate and β."""
    episodes: Annotated[int, checks.COUNT] = 100
    """Episodes of the evaluation at the end of a run."""
    batch_conditions: int = 4
    """Runs of one program trained at once."""

    @property
    def dataset(self) -> str:
        """Name of the environment."""
        return NAMES[self.environment]

    @property
    def sides(self) -> tuple[int, int]:
        """Environments side by side, and steps of each between two updates."""
        paper = PAPER[self.environment]
        return self.environments or paper.environments, self.rollout or paper.rollout

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        last = not any(self.signed.values())
        checks.require("cascade", last or self.cascade == "exact", "exact where all stages are read", self.cascade)
        choice = len(self.learning_rates) * len(self.betas) > 1
        name = "selection_frames" if choice and self.selection_frames < self.frames else "frames"
        width, rollout = self.sides
        need = (round(self.longest / self.dt) // rollout + 1) * width * rollout
        why = f"at least {need}: whole updates, longer than the longest delay, {self.longest:g} s"
        checks.require(name, getattr(self, name) >= need, why, getattr(self, name))


@dataclass(frozen=True)
class LateControl(Control):
    """The same where all layers learn from signals that are late by one of several delays."""

    delays: Annotated[tuple[float, ...], checks.steps] = (2.0, 8.0)
    """Delays of credit in seconds, multiples of 0.2 s."""
    selection_delay: Annotated[float, checks.steps] = 8.0
    """The delay at which learning rates and β are chosen, for all delays."""

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        choice = len(self.learning_rates) * len(self.betas) > 1
        return max((*self.delays, self.selection_delay) if choice else self.delays)

    def late(self, **more) -> list[Condition]:
        """Signals without delay, and every trace at every delay; `more` is said of all conditions."""
        late = [(*trace, delay) for delay in self.delays for trace in self.delayed_traces]
        return [Condition(*one, boundary="carry", **more) for one in (UNDELAYED, *late)]


@dataclass(frozen=True)
class Setting:
    """All that runs depend on besides their conditions; what is not as by default names them."""

    environment: str
    measured_on: str
    defaults: int
    agent: Agent = field(default_factory=Agent)
    episodes: int = 100
    dt: float = 0.2
    value: float = VALUE


class Course(selection.Course):
    """Runs of one length; alignment is measured of those on `"test"` alone."""

    static = ("trace", "order", "delay_s", "layers", "beta")
    measured = MEASURED  # moments at which alignment is
    aligned = True  # whether it is

    def __init__(self, options: Control, measured_on: str):
        super().__init__(options, measured_on)
        self.network = "actor and critic " + "-".join(map(str, options.hidden))
        self.on_host, self.unit = options.environment == "lunarlander", 1 / REWARD.get(options.environment, 1.0)
        self.environment = self.open()
        self.frames_per_step = int(np.prod(options.sides))
        self.updates = (options.frames if measured_on == "test" else options.selection_frames) // self.frames_per_step

    def open(self):
        """The environment; ImportError says what to install."""
        return open_environment(self.options)

    def environment_of(self, condition: Condition):
        """The environment as the agent of a condition sees it."""
        return self.environment

    def settings(self) -> Settings:
        """What is compiled into a program."""
        environments, rollout = self.options.sides
        known = _known(Settings, self.options) | dict(environments=environments, rollout=rollout)
        if self.options.neurons == "lif":
            known["neuron"] = LIF(MEMBRANE, THRESHOLD, self.options.dt, surrogate=FastSigmoid(1 / THRESHOLD))
        return Settings(updates=self.updates, **known)

    def hyperparameters(self, condition: Condition) -> Hyperparameters:
        """The condition's trace, delay and rates."""
        options, layers, late = self.options, condition.layers, condition.delay_s
        if layers:
            trace = tuple(self._trace(condition, layer * late) for layer in range(layers))
            delay = LayerwiseDelay.stacked(late, layers, options.dt)
        else:
            trace, delay = self._trace(condition, late), FixedDelay(late, options.dt, late)
        return Hyperparameters(condition.learning_rate, trace, delay, value=VALUE, **_known(Hyperparameters, options))

    def _trace(self, condition: Condition, delay: float):
        options, shape = self.options, (condition.order, delay, self.options.dt)
        if delay == 0 or condition.trace == "delay line":
            return DelayLine(delay, options.dt, delay)
        if condition.trace == "ET":
            read = "after" if options.cascade == "first_stage" else "before"
            return ExponentialTrace.from_decay(condition.beta, options.dt, read, options.normalization)
        kind = FirstStageCascade if options.cascade == "first_stage" else CascadingTrace
        cascade = kind(*shape, "after", options.normalization)
        if condition.trace == "CET":
            return cascade
        # Normalised as the cascade itself.
        size = [trace.weights(round(delay / options.dt)) for trace in (cascade, CascadingTrace(*shape, "after"))]
        return readout(condition.trace, *shape, read="after") * float(size[0] / size[1])

    def training(self, **static) -> sweep.Training:
        """How conditions that differ in learning rate and seed alone are trained, and what is measured of them.

        The trace is the same for all of them, and what depends on it: a constant of their program, so that the steps
        are known of which synapses remember the past.
        """
        condition, on_host = Condition(**static, learning_rate=1.0), self.on_host
        hyper, environment = self.hyperparameters(condition), self.environment_of(condition)
        run = (HostRun if on_host else ActorCriticRun)(environment, self.settings())
        traces = lambda state: (state.agent.hyper.trace, state.agent.hyper.delay)  # noqa: E731

        def with_trace(state):
            return state if on_host else eqx.tree_at(traces, state, (hyper.trace, hyper.delay))

        def init(rate, key):
            return run.init(eqx.tree_at(lambda hyper: hyper.learning_rate, hyper, rate), key), key

        def advance(state, updates):
            agent, progress = run.advance(with_trace(state[0]), updates)
            finished = jnp.sum(progress.finished)
            mean = jnp.where(finished > 0, jnp.sum(progress.returns) / jnp.maximum(finished, 1), jnp.nan)
            measured = {"return": self.unit * mean, "entropy": progress.entropy, "value_loss": progress.value_loss}
            return (agent, state[1]), measured

        def save(state):
            tree, notes = run.save(state[0])
            return (tree, state[1]), notes

        saving = dict(save=save, restore=lambda tree, notes: (run.restore(tree[0], notes), tree[1])) if on_host else {}
        ends = np.unique(np.linspace(0, self.updates, POINTS + 1).round().astype(int))[1:].tolist()
        measured = self._evaluations(run, with_trace, {*ends[POINTS // self.measured - 1 :: POINTS // self.measured]})
        rate = lambda condition: jnp.asarray(condition.learning_rate)  # noqa: E731
        how = dict(frames_per_step=self.frames_per_step, on_host=on_host, **saving)
        return sweep.Training(init, advance, measured, self.updates, ends, rate, **how)

    def _evaluations(self, run, with_trace: Callable, at: set[int]) -> list[sweep.Evaluation]:
        limits = (self.options.episodes,) if self.on_host else (self.options.episodes, MAX_STEPS)

        def returns(state):
            found = self.unit * run.evaluate(state[0], jax.random.fold_in(state[1], EVALUATION_KEY), *limits)
            return {f"{self.measured_on}_return": found.mean(), f"{self.measured_on}_return_sd": found.std()}

        def align(state):
            frames = state[0].agent.step * self.frames_per_step
            key = jax.random.fold_in(jax.random.fold_in(state[1], ALIGNMENT_KEY), frames)
            alignment = policy_alignment(run, with_trace(state[0]), key, ROLLOUTS)
            return {"alignment": {f"layers.{i}": alignment[i] for i in range(alignment.shape[0])}}

        diverged = lambda state: {"diverged": state[0].agent.diverged}  # noqa: E731
        ended = [sweep.Evaluation(function, at=[self.updates]) for function in (returns, diverged)]
        aligned = sweep.Evaluation(align, at=sorted({*at, self.updates}))
        return [aligned, *ended] if self.aligned and self.measured_on == "test" else ended

    def config(self) -> Setting:
        """All that runs depend on besides their conditions."""
        options = self.options
        return Setting(options.environment, self.measured_on, DEFAULTS, options.agent, options.episodes, options.dt)

    def score(self, values: dict[str, float]) -> float:
        """The mean return."""
        return values["validation_return"]

    def columns(self, condition: Condition) -> dict:
        """What rows of a run say besides its condition."""
        more = {"critic_rate": self.options.critic_rate, "variant": self.options.variant}
        return super().columns(condition) | more


def _known(kind: type, options: Agent) -> dict[str, Any]:
    """The agent's options that are fields of a kind of settings."""
    return {field.name: getattr(options, field.name) for field in fields(kind) if hasattr(Agent, field.name)}


def open_environment(options: Control):
    """The environment of the options, observed as in the paper; ImportError says what to install."""
    split = PAPER[options.environment].split
    if options.environment == "lunarlander":
        return from_gymnasium("LunarLander-v3", split=split)
    made = {"cartpole": environments.cartpole, "space_invaders": environments.space_invaders}
    made["pendulum"] = lambda: environments.from_gymnax(NAMES["pendulum"])
    vector_env, factor = made[options.environment](), REWARD.get(options.environment)
    vector_env = vector_env if factor is None else environments.scaled_rewards(vector_env, factor)
    return environments.split_signs(vector_env) if split else vector_env


def run(
    conditions: Callable[[Control], list[Condition]], options: Control, course: Callable[..., Course] = Course
) -> pd.DataFrame | None:
    """Chooses settings, trains what is not finished of `conditions`, of options; rows as of `selection.complete`.

    **Arguments:** `course`: how runs are trained, where that is not as usual.
    """
    with selection.users_errors():
        courses = {measured_on: course(options, measured_on) for measured_on in ("validation", "test")}
        groups = [candidates(options, condition) for condition in conditions(options)]
        for condition in (one for group in groups for one in group):
            courses["test"].hyperparameters(condition)
    return selection.complete(courses, groups)


def candidates(options: Control, condition: Condition) -> list[Condition]:
    """The condition with each learning rate and, for the exponential trace, each β to choose from."""
    betas = options.betas if condition.trace == "ET" else (0.0,)
    return [replace(condition, learning_rate=rate, beta=beta) for beta in betas for rate in options.learning_rates]
