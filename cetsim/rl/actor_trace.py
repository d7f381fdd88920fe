"""The actor's λ-trace over a cascade: what an actor-critic's synapses remember of their eligibility.

For one environment, with L the gradient of the log-policy, td the TD error and m whether the episode went on, all as
they *arrive* at step t (late by one delay; m_t = 0 if the transition that td_t belongs to ended the episode),

    e_t = γλ m_{t-1} e_{t-1} + L_t ∘ trace_t          gradient = -Σ_t td_t e_t

`literal` steps every synapse through time. The other two take a chunk of time at once: in the gradient L_u ∘ trace_u is
weighed by R_u, in the λ-trace after it by Q_u,

    R_t = td_t + γλ m_t R_{t+1}        Q_t = Π_{v>t} γλ m_{v-1}
    Σ td e = γλ m_{-1} R_0 e + Σ_u R_u L_u ∘ trace_u        e ← γλ m_{-1} Q_0 e + Σ_u Q_u L_u ∘ trace_u

They differ in what they keep of the past: `chunked` the stages of every synapse, `windowed` the factors of the steps
that the kernel reaches back to. `cheaper` knows which costs less.

Environments are mapped outside, with `jax.vmap`. Biases are synapses with input 1. Activity and signals may be of any
dtype, such as spikes as bool or uint8: all is computed in that of the state, the trace's; time is counted in
at least float32.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from cetsim import credit
from cetsim.traces import AbstractTrace


class ActorState(eqx.Module):
    """What one layer's synapses carry from chunk to chunk.

    **Fields:**

    - `stages`: of the cascade, `[stages, out, in]`.
    - `eligibility`: e.
    - `alive`: m of the last step.
    """

    stages: Float[Array, "stages out inputs"]
    eligibility: Float[Array, "out inputs"]
    alive: Float[Array, ""]


class WindowState(eqx.Module):
    """The same where the past is kept as factors.

    **Fields:**

    - `x`: `[window, in]`, and `gain`: `[window, out]`, of the last steps.
    - `resets`: how often the cascade has been emptied since each, `[window]`.
    - `eligibility`, `alive`: as above.
    """

    x: Float[Array, "window inputs"]
    gain: Float[Array, "window out"]
    resets: Int[Array, " window"]
    eligibility: Float[Array, "out inputs"]
    alive: Float[Array, ""]


class Arriving(eqx.Module):
    """What reaches a layer at each step of a chunk, late.

    **Fields:**

    - `signal`: L, `[time, out]`.
    - `td_error`: `[time]`.
    - `alive`: m, `[time]`, 0 where the transition that the TD error belongs to ended an episode.
    """

    signal: Shaped[Array, "time out"]
    td_error: Shaped[Array, " time"]
    alive: Shaped[Array, " time"]


def init(trace: AbstractTrace, out: int, inputs: int) -> ActorState:
    """A layer with no past."""
    stages = trace.init((out, inputs), compensated=False)
    return ActorState(stages, jnp.zeros((out, inputs), stages.dtype), jnp.ones((), stages.dtype))


def init_window(trace: AbstractTrace, window: int, out: int, inputs: int) -> WindowState:
    """A layer with no past, whose kernel reaches back `window` steps."""
    dtype = jax.tree.leaves(trace)[0].dtype
    x, gain, eligibility = (jnp.zeros(shape, dtype) for shape in ((window, inputs), (window, out), (out, inputs)))
    return WindowState(x, gain, jnp.zeros(window, int), eligibility, jnp.ones((), dtype))


def cheaper(stages: int, window: int, steps: int, out: int, inputs: int) -> str:
    """`"chunked"` or `"windowed"`, whichever takes fewer multiplications in a chunk of `steps`."""
    synapses, rows = out * inputs, window + steps
    chunked = stages * synapses * (steps + 2 + stages) + 2 * steps * (steps * out + synapses)
    windowed = 2 * rows * (steps * out + synapses)
    return "chunked" if chunked < windowed else "windowed"


def literal(
    trace: AbstractTrace,
    decay,
    state: ActorState,
    x: Shaped[Array, "time inputs"],
    gain: Shaped[Array, "time out"],
    arriving: Arriving,
    emptied: Bool[Array, " time"] | None = None,
) -> tuple[ActorState, Float[Array, "out inputs"]]:
    """The rule from its definition, stepped through a chunk; it alone takes a `decay` or a kernel per synapse.

    **Arguments:**

    - `decay`: γλ, one number or `[out, in]`.
    - `x`, `gain`: presynaptic activity and the post-synaptic factor at each step, undelayed.
    - `arriving`: what comes at each step.
    - `emptied`: steps after which the cascade is emptied, undelayed; none if None.

    **Returns:** `(state after the chunk, gradient)`.

    **Raises:** ValueError for activity or signals of a wider dtype than the state's.
    """
    x, gain, arriving = _cast(state, x, gain, arriving)
    emptied = jnp.zeros(x.shape[0], bool) if emptied is None else emptied

    def step(state, now):
        x, gain, arriving, emptied = now
        stages, remembered = trace.step(state.stages, gain[:, None] * x[None, :])
        stages = jnp.where(emptied, 0, stages)
        eligibility = decay * state.alive * state.eligibility + arriving.signal[:, None] * remembered
        return ActorState(stages, eligibility, arriving.alive), -arriving.td_error * eligibility

    state, gradients = jax.lax.scan(step, state, (x, gain, arriving, emptied))
    return state, jnp.sum(gradients, axis=0)


def chunked(
    trace: AbstractTrace,
    decay,
    state: ActorState,
    x: Shaped[Array, "time inputs"],
    gain: Shaped[Array, "time out"],
    arriving: Arriving,
    emptied: Bool[Array, " time"] | None = None,
) -> tuple[ActorState, Float[Array, "out inputs"]]:
    """The same over one chunk at once, each synapse's stages touched once. Arguments as in `literal`, one `decay`."""
    x, gain, arriving = _cast(state, x, gain, arriving)
    resets = None if emptied is None else _counted(emptied)
    update = lambda arriving: credit.chunk_update(trace, state.stages, x, gain, arriving, resets)  # noqa: E731
    stages, _ = update(arriving.signal)
    returns, eligibility = _both(lambda arriving: update(arriving)[1], decay, state, arriving)
    return ActorState(stages, eligibility, arriving.alive[-1]), -returns


def windowed(
    trace: AbstractTrace,
    decay,
    state: WindowState,
    x: Shaped[Array, "time inputs"],
    gain: Shaped[Array, "time out"],
    arriving: Arriving,
    emptied: Bool[Array, " time"] | None = None,
) -> tuple[WindowState, Float[Array, "out inputs"]]:
    """The same from the factors of the past: λ = Kᵀ(R L), then backprop's own matmul. Arguments as in `chunked`."""
    x, gain, arriving = _cast(state, x, gain, arriving)
    past, steps = state.x.shape[0], x.shape[0]
    clock = jnp.promote_types(x.dtype, jnp.float32)  # whatever the state is kept in
    now, written = jnp.arange(steps, dtype=clock), jnp.arange(-past, steps, dtype=clock)
    since = _counted(jnp.zeros(steps, bool) if emptied is None else emptied)
    resets = jnp.concatenate([-state.resets, since])  # counted from the start of the chunk
    met = since[:-1, None] == resets[None, :-1]
    matrix = credit.credit_matrix(trace, now, written, regular=True) * met.astype(x.dtype)
    xs, gains = jnp.concatenate([state.x, x]), jnp.concatenate([state.gain, gain])

    def update(arriving):
        return jnp.matmul((gains * credit.remember(matrix, arriving)).T, xs, precision="highest")

    returns, eligibility = _both(update, decay, state, arriving)
    older = (resets[-1] - resets[:-1])[steps:]
    return WindowState(xs[steps:], gains[steps:], older, eligibility, arriving.alive[-1]), -returns


def _cast(state: ActorState | WindowState, x, gain, arriving: Arriving):
    """Activity and what arrives in the state's dtype: in their own, sums of spikes would overflow or be rounded."""
    dtype = state.eligibility.dtype

    def cast(array):
        if jnp.promote_types(array.dtype, dtype) != dtype:
            raise ValueError(f"the trace must be at least as wide as what it meets, {array.dtype}, got {dtype}")
        return array.astype(dtype)

    return jax.tree.map(cast, (x, gain, arriving))


def _counted(emptied: Bool[Array, " time"]) -> Int[Array, " edges"]:
    """How often the cascade was emptied since the start of a chunk, before each step and after the last."""
    return jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(emptied)])


def _both(update, decay, state, arriving: Arriving):
    """Σ td e of a chunk and e after it, from `update(weighed signals)`, which gives Σ w L ∘ trace."""
    weights = jnp.stack(weights_of_steps(decay, arriving))  # R and Q
    sums = jax.vmap(update)(weights[:, :, None] * arriving.signal)
    return decay * state.alive * weights[:, 0, None, None] * state.eligibility + sums


def weights_of_steps(decay, arriving: Arriving) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
    """How much L ∘ trace of each step of a chunk counts in the gradient, R, and in the trace after it, Q."""
    returns = returns_of(decay, arriving.td_error, arriving.alive)
    # What the last flag cuts lies in the next chunk.
    factors = jnp.concatenate([decay * arriving.alive[:-1], jnp.ones(1, arriving.alive.dtype)])
    return returns, jnp.cumprod(factors[::-1])[::-1]


def returns_of(decay, td_error: Float[Array, " time"], alive: Float[Array, " time"]) -> Float[Array, " time"]:
    """Sums of what comes, R_t = td_t + γλ m_t R_{t+1}, from nothing after the last step."""

    def back(later, now):
        td_error, alive = now
        returns = td_error + decay * alive * later
        return returns, returns

    return jax.lax.scan(back, jnp.zeros((), td_error.dtype), (td_error, alive), reverse=True)[1]
