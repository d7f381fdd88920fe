"""Neurons as leaky integrators, stepped exactly: v decays as e^(-t/τ), and its input is held over a step."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks, steps


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

    def leaked(self, v, current):
        """α v + (1 - α) I."""
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
        self.dt = checked_dt(dt)
        self.constant, self.log_time_constant = checked_time_constant(time_constant, self.dt, learn_time_constant)

    def respond(self, state, current):
        """`step`, and the slope of the output, which is 1."""
        v = self.leaked(state.v, current)
        return eqx.tree_at(lambda state: state.v, state, v), v, jnp.ones_like(v)


def checked_dt(dt) -> float:
    """The length of a step in seconds."""
    checks.require_dt(dt)
    return float(dt)


def checked_time_constant(time_constant, dt: float, learned):
    """τ as a constant, out of an optimiser's reach, and log τ as a parameter; the one that it is not is None."""
    require_resolved("time_constant", time_constant, dt)
    if np.ndim(time_constant) > 1:
        raise ValueError(f"`time_constant` must be one number or [neurons], got shape {np.shape(time_constant)}")
    if checks.require_flag("learn_time_constant", learned):
        return None, jnp.log(steps.constant(time_constant))
    if checks.is_traced(time_constant):
        raise ValueError("a `time_constant` that is traced must be learned: say learn_time_constant=True")
    numbers = np.asarray(time_constant, dtype=float)
    return tuple(numbers.tolist()) if numbers.ndim else float(numbers), None


def require_resolved(name: str, seconds, dt: float) -> None:
    """Raises ValueError unless a time constant is at least dt: what decays faster is not resolved by the steps."""
    checks.require_above(name, seconds, 0.0, " s")
    if not checks.is_traced(seconds) and np.any(np.asarray(seconds, dtype=float) < dt * (1 - 1e-6)):
        raise ValueError(f"`{name}` must be at least dt = {dt:g} s, got {checks.shown(seconds)}")
