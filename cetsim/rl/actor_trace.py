"""The actor's λ-trace over a cascade: what an actor-critic's synapses remember of their eligibility.

For one environment, with L the gradient of the log-policy, td the TD error and m whether the episode went on, all as
they *arrive* at step t (late by one delay; m_t = 0 if the transition that td_t belongs to ended the episode),

    e_t = γλ m_{t-1} e_{t-1} + L_t ∘ trace_t          gradient = -Σ_t td_t e_t

`literal` steps every synapse through time. `chunked` touches each synapse's state once a chunk: in the sum over a chunk
L_u ∘ trace_u is weighed by R_u, in the trace after it by Q_u,

    R_t = td_t + γλ m_t R_{t+1}        Q_t = Π_{v>t} γλ m_{v-1}
    Σ td e = γλ m_{-1} R_0 e + Σ_u R_u L_u ∘ trace_u        e ← γλ m_{-1} Q_0 e + Σ_u Q_u L_u ∘ trace_u

Environments are mapped outside, with `jax.vmap`. Biases are synapses with input 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import credit
from cetsim.traces import AbstractTrace


class ActorState(eqx.Module):
    """What one layer's synapses carry from chunk to chunk.

    **Fields:** `stages`: of the cascade, `[stages, out, in]`. `eligibility`: e. `alive`: m of the last step.
    """

    stages: Float[Array, "stages out inputs"]
    eligibility: Float[Array, "out inputs"]
    alive: Float[Array, ""]


class Arriving(eqx.Module):
    """What reaches a layer at each step of a chunk, late.

    **Fields:** `signal`: L, `[time, out]`. `td_error`: `[time]`. `alive`: m, `[time]`, 0 where the transition that the
    TD error belongs to ended an episode.
    """

    signal: Float[Array, "time out"]
    td_error: Float[Array, " time"]
    alive: Float[Array, " time"]


def init(trace: AbstractTrace, out: int, inputs: int) -> ActorState:
    """A layer with no past."""
    stages = trace.init((out, inputs), compensated=False)
    return ActorState(stages, jnp.zeros((out, inputs), stages.dtype), jnp.ones((), stages.dtype))


def literal(
    trace: AbstractTrace,
    decay,
    state: ActorState,
    x: Float[Array, "time inputs"],
    gain: Float[Array, "time out"],
    arriving: Arriving,
) -> tuple[ActorState, Float[Array, "out inputs"]]:
    """The rule from its definition, stepped through a chunk; it alone takes a `decay` or a kernel per synapse.

    **Arguments:** `decay`: γλ, one number or `[out, in]`. `x`, `gain`: presynaptic activity and the post-synaptic
    factor at each step, undelayed. `arriving`: what comes at each step.

    **Returns:** `(state after the chunk, gradient)`.
    """

    def step(state, now):
        x, gain, arriving = now
        stages, remembered = trace.step(state.stages, gain[:, None] * x[None, :])
        eligibility = decay * state.alive * state.eligibility + arriving.signal[:, None] * remembered
        return ActorState(stages, eligibility, arriving.alive), -arriving.td_error * eligibility

    state, gradients = jax.lax.scan(step, state, (x, gain, arriving))
    return state, jnp.sum(gradients, axis=0)


def chunked(
    trace: AbstractTrace,
    decay,
    state: ActorState,
    x: Float[Array, "time inputs"],
    gain: Float[Array, "time out"],
    arriving: Arriving,
) -> tuple[ActorState, Float[Array, "out inputs"]]:
    """The same over one chunk at once, each synapse's state touched once. Arguments as in `literal`, one `decay`."""
    weights = jnp.stack(weights_of_steps(decay, arriving))  # R and Q
    weighed = weights[:, :, None] * arriving.signal
    update = lambda arriving: credit.chunk_update(trace, state.stages, x, gain, arriving)  # noqa: E731
    stages, sums = jax.vmap(update, out_axes=(None, 0))(weighed)
    returns, eligibility = decay * state.alive * weights[:, 0, None, None] * state.eligibility + sums
    return ActorState(stages, eligibility, arriving.alive[-1]), -returns


def weights_of_steps(decay, arriving: Arriving) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
    """How much L ∘ trace of each step of a chunk counts in the gradient, R, and in the trace after it, Q."""

    def back(later, now):
        td_error, alive = now
        returns = td_error + decay * alive * later
        return returns, returns

    td_error, alive = arriving.td_error, arriving.alive
    _, returns = jax.lax.scan(back, jnp.zeros((), td_error.dtype), (td_error, alive), reverse=True)
    # What the last flag cuts lies in the next chunk.
    factors = jnp.concatenate([decay * alive[:-1], jnp.ones(1, alive.dtype)])
    return returns, jnp.cumprod(factors[::-1])[::-1]
