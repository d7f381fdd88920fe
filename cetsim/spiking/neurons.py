"""Leaky integrate-and-fire neurons, stepped exactly: between spikes and steps of their input they decay as e^(-t/τ)."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks, steps
from cetsim.spiking.surrogates import AbstractSurrogate, FastSigmoid


class NeuronState(eqx.Module):
    """What neurons are in after a step.

    **Fields:**

    - `v`: membrane potential. `spike`: 1 where the neuron spiked at this step, else 0.
    - `silent`: steps for which it cannot spike yet.
    - `adaptation`: a, what raises the threshold; 0 where nothing does.
    """

    v: Float[Array, "*neurons"]
    spike: Float[Array, "*neurons"]
    silent: Float[Array, "*neurons"]
    adaptation: Float[Array, "*neurons"]


class AbstractNeuron(eqx.Module):
    """A neuron whose membrane is a leaky integrator, v ← α v + (1 - α) I + ..., α = e^(-dt/τ), I held over the step.

    Its time constant, one or one per neuron, is constant or, with `learn_time_constant`, a parameter, kept as log τ so
    that it stays above 0. It learns by plain backprop, undelayed, also in a layer that has a trace.

    **Fields:** `dt`: a step, in seconds. `constant`: τ where it is not learned. `log_time_constant`: log τ where it is.
    """

    dt: eqx.AbstractVar[float]
    constant: eqx.AbstractVar[float | tuple[float, ...] | None]
    log_time_constant: eqx.AbstractVar[Float[Array, "..."] | None]

    @property
    def time_constant(self) -> Float[Array, "..."]:
        """τ of the membrane, in seconds."""
        if self.constant is None:
            return jnp.exp(self.log_time_constant)
        return steps.constant(self.constant)

    @property
    def decay(self) -> Float[Array, "..."]:
        """α = e^(-dt/τ), what is left of v after a step."""
        return jnp.exp(-self.dt / self.time_constant)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the time constant: `()` for one shared by all neurons, `(neurons,)` for one each."""
        return np.shape(self.log_time_constant if self.constant is None else self.constant)

    def init(self, shape: tuple[int, ...], dtype=float) -> NeuronState:
        """Neurons at rest: v = 0 and no spike before.

        **Raises:** ValueError for a shape that does not end in that of the time constants.
        """
        shape = tuple(shape)
        if shape[len(shape) - len(self.shape) :] != self.shape:
            raise ValueError(f"`shape` must end in the shape {self.shape} of the time constants, got {shape}")
        return NeuronState(*(jnp.zeros(shape, dtype) for _ in range(4)))

    def step(self, state: NeuronState, current: Shaped[Array | np.ndarray, "*neurons"]):
        """One step of dt with the input current held over it; returns `(state, output)`."""
        if jnp.shape(current) != state.v.shape:
            raise ValueError(f"`current` must have the state's shape {state.v.shape}, got {jnp.shape(current)}")
        state, output, _ = self.respond(state, jnp.asarray(current, state.v.dtype))
        return state, output

    @abc.abstractmethod
    def respond(self, state, current):
        """`step`, and the slope of the output: `(state, output, ψ)`."""

    def _leaked(self, v, current):
        decay = self.decay.astype(v.dtype)
        return decay * v + (1 - decay) * current


class LeakyIntegrator(AbstractNeuron):
    """A membrane without spikes, a readout: v ← α v + (1 - α) I, and v is its output.

    **Arguments:** `time_constant`, `dt`, `learn_time_constant`: as in `LIF`.
    """

    log_time_constant: Float[Array, "..."] | None
    constant: float | tuple[float, ...] | None = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(self, time_constant=0.02, dt=0.001, learn_time_constant=False):
        self.dt = _dt(dt)
        self.constant, self.log_time_constant = _time_constant(time_constant, self.dt, learn_time_constant)

    def respond(self, state, current):
        """`step`, and the slope of the output, which is 1."""
        v = self._leaked(state.v, current)
        return eqx.tree_at(lambda state: state.v, state, v), v, jnp.ones_like(v)


class LIF(AbstractNeuron):
    """Leaky integrate-and-fire neuron with reset by subtraction.

        v(t) = α v(t-1) + (1 - α) I(t) - θ z(t-1)      z(t) = H(v(t) - θ)      α = e^(-dt/τ)

    A spike's reset comes with the next step, is not differentiated, and leaves v linear in the input. While refractory
    the neuron integrates but cannot spike, and its slope ψ is 0.

    **Arguments:**

    - `time_constant`: τ, in seconds, at least dt; one, or `[neurons]`.
    - `threshold`: θ, above 0 (rest is 0), in units of v, which are those of the current.
    - `dt`: length of a step, in seconds.
    - `refractory`: time after a spike without another one, in seconds, a multiple of dt.
    - `surrogate`: ψ, the derivative that stands in for the spike's.
    - `learn_time_constant`: whether τ is a parameter.

    **Raises:** ValueError for an argument outside its range.

    **Reference:** Bellec et al. (2020), "A solution to the learning dilemma for recurrent networks of spiking neurons".
    """

    log_time_constant: Float[Array, "..."] | None
    constant: float | tuple[float, ...] | None = eqx.field(static=True)
    surrogate: AbstractSurrogate
    threshold: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    refractory_steps: int = eqx.field(static=True)

    def __init__(
        self,
        time_constant=0.02,
        threshold=1.0,
        dt=0.001,
        refractory=0.0,
        surrogate: AbstractSurrogate | None = None,
        learn_time_constant=False,
    ):
        self.dt = _dt(dt)
        self.constant, self.log_time_constant = _time_constant(time_constant, self.dt, learn_time_constant)
        self.threshold, self.refractory_steps, self.surrogate = _spiking(threshold, refractory, surrogate, self.dt)

    def respond(self, state, current):
        """`step`, and the slope ψ(v - θ) of the spike."""
        v = self._leaked(state.v, current) - self.threshold * jax.lax.stop_gradient(state.spike)
        spike, slope, silent = _fire(self, v - self.threshold, state.silent)
        return NeuronState(v, spike, silent, state.adaptation), spike, slope


class ALIF(AbstractNeuron):
    """Adaptive LIF neuron, whose threshold rises with each of its spikes and decays again.

        a(t) = ρ a(t-1) + z(t-1)      z(t) = H(v(t) - θ - β a(t))      ρ = e^(-dt/τ_a)

    v as in `LIF`. The reset is not differentiated, the adaptation is.

    **Arguments:** as in `LIF`, and

    - `adaptation_time_constant`: τ_a, in seconds, at least dt.
    - `adaptation`: β, at least 0, by how much a spike raises the threshold.

    **Raises:** ValueError for an argument outside its range.

    **Reference:** Bellec et al. (2018), "Long short-term memory and learning-to-learn in networks of spiking neurons".
    """

    log_time_constant: Float[Array, "..."] | None
    constant: float | tuple[float, ...] | None = eqx.field(static=True)
    surrogate: AbstractSurrogate
    threshold: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    refractory_steps: int = eqx.field(static=True)
    adaptation_time_constant: float = eqx.field(static=True)
    adaptation: float = eqx.field(static=True)

    def __init__(
        self,
        time_constant=0.02,
        threshold=1.0,
        dt=0.001,
        refractory=0.0,
        surrogate: AbstractSurrogate | None = None,
        learn_time_constant=False,
        *,
        adaptation_time_constant=0.2,
        adaptation=0.1,
    ):
        self.dt = _dt(dt)
        self.constant, self.log_time_constant = _time_constant(time_constant, self.dt, learn_time_constant)
        self.threshold, self.refractory_steps, self.surrogate = _spiking(threshold, refractory, surrogate, self.dt)
        self.adaptation_time_constant = checks.require_static("adaptation_time_constant", adaptation_time_constant)
        _require_resolved("adaptation_time_constant", self.adaptation_time_constant, self.dt)
        self.adaptation = checks.require_static("adaptation", adaptation)
        checks.require_at_least("adaptation", self.adaptation, 0.0)

    @property
    def adaptation_decay(self) -> float:
        """ρ = e^(-dt/τ_a), what is left of the adaptation after a step."""
        return math.exp(-self.dt / self.adaptation_time_constant)

    def respond(self, state, current):
        """`step`, and the slope ψ(v - θ - β a) of the spike."""
        v = self._leaked(state.v, current) - self.threshold * jax.lax.stop_gradient(state.spike)
        adaptation = self.adaptation_decay * state.adaptation + state.spike
        spike, slope, silent = _fire(self, v - self.threshold - self.adaptation * adaptation, state.silent)
        return NeuronState(v, spike, silent, adaptation), spike, slope


def _fire(neuron: LIF | ALIF, u, silent):
    """The spike of a neuron that is u above its threshold, its slope, and for how many steps it is silent from now."""
    ready = jax.lax.stop_gradient(silent == 0).astype(u.dtype)
    spike = ready * neuron.surrogate(u)
    slope = ready * neuron.surrogate.slope(jax.lax.stop_gradient(u))
    after = jnp.where(spike > 0, neuron.refractory_steps, jnp.maximum(silent - 1, 0))
    return spike, slope, jax.lax.stop_gradient(after.astype(u.dtype))


def _dt(dt) -> float:
    checks.require_dt(dt)
    return float(dt)


def _time_constant(time_constant, dt: float, learned):
    """τ as a constant, out of an optimiser's reach, and log τ as a parameter; the one that it is not is None."""
    _require_resolved("time_constant", time_constant, dt)
    if np.ndim(time_constant) > 1:
        raise ValueError(f"`time_constant` must be one number or [neurons], got shape {np.shape(time_constant)}")
    if checks.require_flag("learn_time_constant", learned):
        return None, jnp.log(steps.constant(time_constant))
    if checks.is_traced(time_constant):
        raise ValueError("a `time_constant` that is traced must be learned: say learn_time_constant=True")
    numbers = np.asarray(time_constant, dtype=float)
    return tuple(numbers.tolist()) if numbers.ndim else float(numbers), None


def _require_resolved(name: str, seconds, dt: float) -> None:
    """Raises ValueError unless a time constant is at least dt: what decays faster is not resolved by the steps."""
    checks.require_above(name, seconds, 0.0, " s")
    if not checks.is_traced(seconds) and np.any(np.asarray(seconds, dtype=float) < dt * (1 - 1e-6)):
        raise ValueError(f"`{name}` must be at least dt = {dt:g} s, got {checks.shown(seconds)}")


def _spiking(threshold, refractory, surrogate, dt: float):
    """The arguments that all spiking neurons share, checked."""
    threshold = checks.require_static("threshold", threshold)
    checks.require_above("threshold", threshold, 0.0)
    refractory = checks.require_static("refractory", refractory)
    checks.require_whole_steps("refractory", refractory, dt)
    surrogate = FastSigmoid() if surrogate is None else surrogate
    checks.require_instance("surrogate", surrogate, AbstractSurrogate, "a surrogate such as spiking.FastSigmoid()")
    return threshold, round(refractory / dt), surrogate
