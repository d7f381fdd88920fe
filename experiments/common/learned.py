"""Something of a trace that is learned from the task while a network learns: shared by the peak and the readout.

What is learned, θ, goes down slopes g, each of its numbers scaled by all the slopes it has seen (AdaGrad),

    θ ← θ - η g_t / √(g_1² + ... + g_t²)

Perturbation needs no more than two scalars: (ℓ(θ + σ d) - ℓ(θ - σ d)) / 2σ · d, where d are random signs and ℓ is the
loss after some updates. Of a single number that is the difference of two points.

**Reference:** Duchi, Hazan and Singer (2011), "Adaptive Subgradient Methods"; Spall (1992), "Multivariate stochastic
approximation using a simultaneous perturbation gradient approximation".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import sweep
from cetsim.supervised import SupervisedRun, TrainState
from experiments.common import checks, vision
from experiments.common.conditions import Condition
from experiments.common.hyperparameters import hyperparameters
from experiments.common.options import Gate, Vision

RULE = ("trace", "order", "delay_s", "method", "learn_every", "step_size", "segments", "horizon", "perturbation")


@dataclass(frozen=True)
class Learned(Gate, Vision):
    """Something of a trace that is learned from the task while an MLP learns."""

    learning_rates: tuple[float, ...] = (1e-3,)
    """Peak learning rate of the network, one: it is not chosen here."""
    learn_every: Annotated[int, checks.COUNT] = 10
    """Updates of the network between two steps of what is learned of the trace."""
    segments: Annotated[int, checks.COUNT] = 4
    """Segments of 128 images, those that come next, over which what should fall is averaged."""
    horizon: Annotated[int, checks.COUNT] = 10
    """Updates that perturbation tries before it looks at the loss."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("network", self.network == "mlp", "mlp here", self.network)
        rates = self.learning_rates
        checks.require("learning_rates", len(rates) == 1, "one: it is not chosen here", rates)
        most = f"at most --steps, {self.steps}"
        checks.require("learn_every", self.learn_every <= self.steps, most, self.learn_every)


class Knob(NamedTuple):
    """What is learned of a trace, by a rule: a condition with a method.

    - `start(rule, condition)`: θ before the first step; `kept(θ)`: θ within its bounds.
    - `weights(rule, θ)`: the weights of the trace over a segment.
    - `slope(run, rule, state, θ)`: how what should fall grows with θ, by methods that know the true gradient.
    - `measured(θ)`: what is recorded of it, at `every_move` of it or as often as accuracy.
    """

    start: Callable
    weights: Callable
    slope: Callable
    kept: Callable
    measured: Callable
    every_move: bool


class Learner(NamedTuple):
    """What is learned. **Fields:** `value`: θ. `squares`: sum of its squared slopes. `key`: of directions to try."""

    value: Float[Array, "..."]
    squares: Float[Array, "..."]
    key: Array


class LearningState(TrainState):
    """All that a run is at one moment, with what is learned of its trace."""

    learner: Learner


def learn(knob: Knob, run: SupervisedRun, rule: Condition, state: LearningState) -> LearningState:
    """One step of θ: returns the state with its trace set to the new one, its network as it was."""
    learner = state.learner
    key, direction = jax.random.split(learner.key)
    if rule.method == "perturbation":
        loss = lambda value: loss_after(run, rule, with_weights(state, knob.weights(rule, value)))  # noqa: E731
        slope = difference(loss, learner.value, rule.perturbation, direction)
    else:
        slope = knob.slope(run, rule, state, learner.value)
    slope = jnp.where(jnp.isfinite(slope), slope, 0.0)  # a network that diverged tells nothing
    squares = learner.squares + slope**2
    value = knob.kept(learner.value - rule.step_size * slope / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)))
    return replace(with_weights(state, knob.weights(rule, value)), learner=Learner(value, squares, key))


def difference(function: Callable, at: Float[Array, "..."], distance: float, key: Array) -> Float[Array, "..."]:
    """Slope along random signs between two points: of one number exact for a parabola, whatever the distance."""
    signs = jnp.where(jax.random.bernoulli(key, shape=at.shape), 1.0, -1.0)
    above, below = jax.lax.map(function, at + distance * jnp.stack([signs, -signs]))
    return (above - below) / (2 * distance) * signs


def loss_after(run: SupervisedRun, rule: Condition, state: TrainState) -> Float[Array, ""]:
    """Loss that `rule.horizon` updates lead to, on the segments that come after them."""
    later, _ = run.advance(state, rule.horizon)
    x, labels = coming(run, later, rule.segments)
    return run.evaluate(later, x.reshape(-1, *x.shape[2:]), labels.reshape(-1))["loss"]


def coming(run: SupervisedRun, state: TrainState, segments: int) -> tuple[Array, Array]:
    """Images and labels of the segments that the network sees next, `[segments, images, ...]`."""
    input_order, segment = run.settings.shown, run.settings.segment
    frames = input_order.frames(state.order, run.labels, state.step, segments, segment)
    return input_order.show(frames, run.x, run.labels)


def with_weights(state: TrainState, weights: Float[Array, " lags"]) -> TrainState:
    """The state with these weights as its tabulated trace."""
    return eqx.tree_at(lambda state: state.hyper.trace.taps, state, weights)


def by_every_method(options: Learned, held: Condition) -> list[Condition]:
    """The condition with what it holds learned by every method; what a method does not use does not name its runs."""
    names = ("learn_every", "step_size", "segments")
    used = {method: names + ("horizon", "perturbation") * (method == "perturbation") for method in options.methods}
    return [replace(held, method=m, **{name: getattr(options, name) for name in used[m]}) for m in used]


class Course(vision.Course):
    """Trains as its parent does, moving what is learned on the way."""

    static = (*vision.Course.static, *RULE)

    def __init__(self, knob: Knob, *arguments):
        super().__init__(*arguments)
        self.knob = knob

    def training(self, **static) -> sweep.Training:
        """How conditions of one rule are trained, and what is measured of them."""
        knob, rule = self.knob, Condition(**{name: static.pop(name) for name in RULE})
        run, learned = self.supervised(**static), rule.method != "held"
        steps, every = run.settings.steps, rule.learn_every or 1
        ends, at = self.points(steps, every)
        moves = [*range(every, steps, every), steps] if learned else ends
        # Segments of images that a step of what is learned takes, beside those the network learns from.
        extra = len(moves) * (rule.segments * (1 + (rule.method == "perturbation")) + 2 * rule.horizon) * learned
        often = [0, *(moves if knob.every_move else at)] if learned else [steps] * knob.every_move
        measured = [
            *self.evaluations(run, at),
            sweep.Evaluation(lambda state: knob.measured(state.learner.value), at=often),
            sweep.Evaluation(lambda state: {"extra_stretches": jnp.asarray(float(extra))}, at=[steps]),
        ]
        start = lambda condition: (hyperparameters(condition), knob.start(rule, condition))  # noqa: E731
        advance = eqx.Partial(_advance, knob, run, rule)
        return sweep.Training(eqx.Partial(_init, run), advance, measured, steps, moves, start)


def _init(run, start, key):
    hyper, value = start
    learner = Learner(value, jnp.zeros_like(value), jax.random.fold_in(key, 1))
    return LearningState(**vars(run.init(hyper, key)), learner=learner)


def _advance(knob, run, rule, state, steps):
    """The state after `steps` updates, before which the trace moves, and their losses."""
    state, losses = run.advance(state if rule.method == "held" else learn(knob, run, rule, state), steps)
    return state, {"train_loss": losses}
