"""Leaky integrate-and-fire neurons, with a fixed and with an adaptive threshold."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.spiking.neurons import AbstractNeuron, NeuronState, checked_dt, checked_time_constant, require_resolved
from cetsim.spiking.surrogates import AbstractSurrogate, FastSigmoid


class LIF(AbstractNeuron):
    """Leaky integrate-and-fire neuron with reset by subtraction.

        v(t) = α v(t-1) + (1 - α) I(t) - θ z(t-1)      z(t) = H(v(t) - θ)      α = e^(-dt/τ)

    A spike's reset comes with the next step, is not differentiated, and leaves v linear in the input. While refractory
    the neuron integrates but cannot spike, and its slope ψ is 0.

    **Arguments:**

    - `time_constant`: τ, in seconds, at least dt; one, or `[neurons]`.
    - `threshold`: θ, above 0 (rest is 0), in units of v, which are those of the current.
    - `dt`: length of a step, in seconds.
    - `refractory`: time after a spike without another one, in seconds, a multiple of dt; two spikes are at least dt
      further apart (in Brian2 they can be exactly that far).
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
        surrogate=None,
        learn_time_constant=False,
    ):
        self.dt = checked_dt(dt)
        self.constant, self.log_time_constant = checked_time_constant(time_constant, self.dt, learn_time_constant)
        self.threshold, self.refractory_steps, self.surrogate = _spiking(threshold, refractory, surrogate, self.dt)

    def respond(self, state, current):
        """`step`, and the slope ψ(v - θ) of the spike."""
        v = self.leaked(state.v, current) - self.threshold * jax.lax.stop_gradient(state.spike)
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
        surrogate=None,
        learn_time_constant=False,
        *,
        adaptation_time_constant=0.2,
        adaptation=0.1,
    ):
        self.dt = checked_dt(dt)
        self.constant, self.log_time_constant = checked_time_constant(time_constant, self.dt, learn_time_constant)
        self.threshold, self.refractory_steps, self.surrogate = _spiking(threshold, refractory, surrogate, self.dt)
        self.adaptation_time_constant = checks.require_static("adaptation_time_constant", adaptation_time_constant)
        require_resolved("adaptation_time_constant", self.adaptation_time_constant, self.dt)
        self.adaptation = checks.require_static("adaptation", adaptation)
        checks.require_at_least("adaptation", self.adaptation, 0.0)

    @property
    def adaptation_decay(self) -> float:
        """ρ = e^(-dt/τ_a), what is left of the adaptation after a step."""
        return math.exp(-self.dt / self.adaptation_time_constant)

    def respond(self, state, current):
        """`step`, and the slope ψ(v - θ - β a) of the spike."""
        v = self.leaked(state.v, current) - self.threshold * jax.lax.stop_gradient(state.spike)
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


def _spiking(threshold, refractory, surrogate, dt: float):
    """The arguments that all spiking neurons share, checked."""
    threshold = checks.require_static("threshold", threshold)
    checks.require_above("threshold", threshold, 0.0)
    refractory = checks.require_static("refractory", refractory)
    checks.require_whole_steps("refractory", refractory, dt)
    surrogate = FastSigmoid() if surrogate is None else surrogate
    checks.require_instance("surrogate", surrogate, AbstractSurrogate, "a surrogate such as spiking.FastSigmoid()")
    return threshold, round(refractory / dt), surrogate
