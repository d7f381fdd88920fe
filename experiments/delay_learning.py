"""How the peak of a cascade is learned while the network learns: which way to move it, and by how much.

The logarithm of the peak moves by steps of a given size against the sign of a slope. Two slopes are known here:

    alignment       d/dθ of minus the mean cosine between the trace's update and the true gradient
    perturbation    (ℓ(θ + σ) - ℓ(θ - σ)) / 2σ, ℓ the loss after some updates made with the peak e^θ

The first differentiates through the kernel; the second sees two scalars, from the same network and the same images,
and no more. Slopes shrink a hundredfold while a network learns, and at a wrong peak they are small: their sign is all
that is used, so that neither matters, and the size of the steps falls to 0, so that noise averages out.

Rejected: the derivative of the loss after a few updates. One update tells little of the delay and much of what all
lags share, so that the peak drifts; after ten, loss is so rough a function of the peak that its slope at a point says
less than the difference of two points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

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

    **Fields:** `method`: `"alignment"` or `"perturbation"`. `order`: of the cascade. `stretches`: that come next, over
    which the cosine or the loss is averaged. `horizon`: updates tried before the loss is taken. `distance`: σ.
    """

    method: str
    order: int
    stretches: int
    horizon: int = 0
    distance: float = 0.0

    @property
    def cost(self) -> int:
        """Stretches of images that one step of the peak takes, beside those the network learns from."""
        return self.stretches if self.method == "alignment" else 2 * (self.horizon + self.stretches)


def learn(run: SupervisedRun, rule: Rule, state: TrainState, log_peak: Float[Array, ""], size):
    """One step of the peak, of `size` in its logarithm; the network stays as it is.

    **Returns:** `(state, log_peak)`, the state with its trace set to the new peak.
    """
    worse = jnp.sign(slope(run, rule, state, log_peak))
    log_peak = jnp.clip(log_peak - size * jnp.where(jnp.isnan(worse), 0.0, worse), *BOUNDS)
    return with_peak(state, rule.order, log_peak), log_peak


def step_size(largest: float, progress: float) -> float:
    """Size of a step: the largest one at first, then down a cosine to 0 at the end of the run (`progress` 0 to 1)."""
    return largest * 0.5 * (1 + math.cos(math.pi * progress))


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
