"""How the peak of a cascade is learned while the network learns: which way to move it, and by how much.

The logarithm θ of the peak goes down a slope g, its steps scaled by all slopes so far (AdaGrad),

    θ ← θ - η g_t / √(g_1² + ... + g_t²)

Two slopes are known here:

    alignment       d/dθ of minus the mean cosine between the trace's update and the true gradient
    perturbation    (ℓ(θ + σ) - ℓ(θ - σ)) / 2σ, ℓ the loss after some updates made with the peak e^θ

The first differentiates through the kernel; the second sees two scalars, from the same network and the same images,
and no more. Neither its scale nor the delay need be known. Slopes tell most while the peak is wrong and the network
learns fast, and are mostly noise once it is slow: what came early should weigh more, which the sum of squares does.
On MNIST a first step η of 15 % brought all six runs by perturbation within 9 % of the delay; of 10 %, all but one,
which was 10.3 % short when its steps had become small.

Rejected: steps of one size by the sign of g, which late noise moves as much as early knowledge did, up to 12 % off on
MNIST. Adam, which overshot by its momentum and was then held there by its memory of large slopes, a third off. The
derivative of the loss after a few updates: after one it says little of the delay and much of what all lags share, so
that the peak drifts; after ten the loss is so rough a function of the peak that its slope at a point says less than
the difference of two points.

**Reference:** Duchi, Hazan and Singer (2011), "Adaptive Subgradient Methods", for the scale of the steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim.traces import CascadingTrace
from cetsim.train import SupervisedRun, TrainState
from experiments.options.common import DT, STRETCH

BOUNDS = math.log(DT), math.log((STRETCH - 1) * DT)  # of the logarithm of a peak in seconds


@dataclass(frozen=True)
class Rule:
    """How a peak is learned; compiled into a program.

    **Fields:** `method`: `"alignment"` or `"perturbation"`. `order`: of the cascade. `step_size`: η. `stretches`: that
    come next, over which the cosine or the loss is averaged. `horizon`: updates tried before the loss is taken.
    `distance`: σ.
    """

    method: str
    order: int
    step_size: float
    stretches: int
    horizon: int = 0
    distance: float = 0.0

    @property
    def cost(self) -> int:
        """Stretches of images that one step of the peak takes, beside those the network learns from."""
        return self.stretches if self.method == "alignment" else 2 * (self.horizon + self.stretches)


class Learner(NamedTuple):
    """What is learned of a peak. **Fields:** `log_peak`: θ, of seconds. `squares`: sum of all squared slopes."""

    log_peak: Float[Array, "..."]
    squares: Float[Array, "..."]


def begin(peak: Float[Array, "..."]) -> Learner:
    """The learner that has seen nothing yet, of a peak in seconds."""
    return Learner(jnp.log(peak), jnp.zeros_like(peak))


def learn(run: SupervisedRun, rule: Rule, state: TrainState, learner: Learner) -> tuple[TrainState, Learner]:
    """One step of the peak: returns the state with its trace set to the new one, its network as it was."""
    g = slope(run, rule, state, learner.log_peak)
    g = jnp.where(jnp.isfinite(g), g, 0.0)  # a network that diverged tells nothing
    squares = learner.squares + g**2
    step = rule.step_size * g / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    learner = Learner(jnp.clip(learner.log_peak - step, *BOUNDS), squares)
    return with_peak(state, rule.order, learner.log_peak), learner


def slope(run: SupervisedRun, rule: Rule, state: TrainState, log_peak: Float[Array, ""]) -> Float[Array, ""]:
    """How what should fall grows with the logarithm of the peak."""
    if rule.method == "alignment":
        return -derivative(lambda at: mean_alignment(run, rule, state, at), log_peak)
    return difference(lambda at: loss_after(run, rule, state, at), log_peak, rule.distance)


def derivative(function: Callable, at: Float[Array, ""]) -> Float[Array, ""]:
    """Slope of a function of one number, forward: the kernel's slope is carried through all that follows from it."""
    return jax.jvp(function, (at,), (jnp.ones_like(at),))[1]


def difference(function: Callable, at: Float[Array, ""], distance: float) -> Float[Array, ""]:
    """Slope between the points `distance` above and below: exact for a parabola, whatever the distance."""
    above, below = jax.lax.map(function, jnp.stack([at + distance, at - distance]))
    return (above - below) / (2 * distance)


def mean_alignment(run: SupervisedRun, rule: Rule, state: TrainState, log_peak: Float[Array, ""]) -> Float[Array, ""]:
    """Cosine between a trace's update and the true gradient, averaged over layers and the stretches that come next."""
    tuned = with_peak(state, rule.order, log_peak)
    cosines = jax.lax.map(lambda stretch: run.alignment(tuned, *stretch), coming(run, state, rule.stretches))
    return jnp.mean(jnp.stack(list(cosines.values())))


def loss_after(run: SupervisedRun, rule: Rule, state: TrainState, log_peak: Float[Array, ""]) -> Float[Array, ""]:
    """Loss that `rule.horizon` updates with a trace of that peak lead to, on the stretches that come after them."""
    after, _ = run.advance(with_peak(state, rule.order, log_peak), rule.horizon)
    x, labels = coming(run, after, rule.stretches)
    return run.evaluate(after, x.reshape(-1, *x.shape[2:]), labels.reshape(-1))["loss"]


def with_peak(state: TrainState, order: int, log_peak: Float[Array, ""]) -> TrainState:
    """The state with a cascade of that peak as its tabulated trace."""
    trace = CascadingTrace(order, jnp.exp(log_peak), DT).tabulate(STRETCH)
    return eqx.tree_at(lambda state: state.hyper.trace.taps, state, trace.taps)


def coming(run: SupervisedRun, state: TrainState, stretches: int) -> tuple[Array, Array]:
    """Images and labels of the stretches that the network sees next, `[stretches, batch, ...]`."""
    shown, batch = run.settings.shown, run.settings.batch
    frames = shown.frames(state.order, run.labels, state.step, stretches, batch)
    return shown.show(frames, run.x, run.labels)
