"""A layer that learns from signals that are under way: what arrives in a rollout, and what is carried to the next."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import credit
from cetsim.delays import FixedDelay
from cetsim.rl import actor_trace
from cetsim.rl.actor_trace import ActorState, Arriving, WindowState
from cetsim.rl.networks import Factors
from cetsim.traces import AbstractTrace


class Options(NamedTuple):
    """How layers learn.

    **Fields:**

    - `form`: of the rule.
    - `derivative`: whether errors are passed on with f' as it was (`"ideal"`), before any delay, or come late and are
      passed on with what a `"cascade"` at the soma, the layer's trace, still holds of f' (θ̂).
    - `reset`: whether the cascade is emptied where an episode ends.
    - `late_flag`: whether the ends of episodes come one step later than the TD errors.
    """

    form: str = "activation"
    derivative: str = "ideal"
    reset: bool = False
    late_flag: bool = False


EXACT = Options()


class LayerState(eqx.Module):
    """One layer in one environment.

    **Fields:**

    - `synapses`: λ-traces, and stages or factors of the past.
    - `under_way`: what was sent in the last steps, `[max delay, ...]`.
    - `soma`: stages of the cascade that remembers f', None where there is none.
    """

    synapses: ActorState | WindowState
    under_way: Arriving
    soma: Float[Array, "*environments stages out"] | None = None


def init(
    trace: AbstractTrace, delay: FixedDelay, out: int, inputs: int, window: int | None, options: Options = EXACT
) -> LayerState:
    """A layer with no past, and nothing under way.

    **Arguments:** `window`: steps of the past whose factors are kept; None to keep the stages of every synapse instead.
    """
    if window is None:
        synapses = actor_trace.init(trace, out, inputs)
    else:
        synapses = actor_trace.init_window(trace, window, out, inputs)
    room, dtype = delay.max_steps + options.late_flag, synapses.eligibility.dtype
    silence = Arriving(jnp.zeros((room, out), dtype), jnp.zeros(room, dtype), jnp.ones(room, dtype))
    soma = trace.init((out,), compensated=False) if options.derivative == "cascade" else None
    return LayerState(synapses, silence, soma)


def learn(
    trace: AbstractTrace,
    delay: FixedDelay,
    decay,
    state: LayerState,
    factors: Factors,
    td_error: Float[Array, " time"],
    alive: Float[Array, " time"],
    options: Options = EXACT,
    travelled=0.0,
) -> tuple[LayerState, Float[Array, "out inputs"], Float[Array, "time out"]]:
    """What a rollout adds to a layer's gradient, -Σ td e over what arrives in it, and the state after it.

    **Arguments:**

    - `decay`: γλ, one number or, for layers that keep the stages of every synapse, `[out, in]`.
    - `factors`: what the synapses saw.
    - `td_error`, `alive`: of each step, as they are sent; `alive` is 0 where the step ended an episode.
    - `travelled`: steps by which errors are late already when they are sent, as those of a layer above that has a
      cascade for f'.

    **Returns:** the state, the gradient, and the errors that are passed on, before this layer's weights: f' ∘ L of each
    step as it is sent or, with a cascade, θ̂ ∘ L as it arrives.
    """
    gain, signal = credit.synaptic_factors(options.form, factors.derivative, factors.error)
    cascade = options.derivative == "cascade"
    sent = Arriving(factors.error if cascade else signal, td_error, alive)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]), state.under_way, sent)
    steps, room = td_error.shape[0], state.under_way.td_error.shape[0]
    first = room - delay.steps.astype(int)
    come = lambda rows, first: jax.lax.dynamic_slice_in_dim(rows, first, steps)  # noqa: E731
    signal, emptied = come(both.signal, first + jnp.asarray(travelled, int)), alive == 0 if options.reset else None
    soma, slope, error = state.soma, factors.derivative, factors.error
    if cascade:
        error = signal
        soma, slope = _recall(trace, soma, factors.derivative, emptied)
        _, signal = credit.synaptic_factors(options.form, factors.derivative, error, remembered=slope)
    arriving = Arriving(signal, come(both.td_error, first), come(both.alive, first - options.late_flag))
    update = actor_trace.windowed
    if isinstance(state.synapses, ActorState):
        update = actor_trace.literal if jnp.ndim(decay) else actor_trace.chunked
    synapses, gradient = update(trace, decay, state.synapses, factors.x, gain, arriving, emptied)
    under_way = jax.tree.map(lambda rows: rows[steps:], both)
    return LayerState(synapses, under_way, soma), gradient, error if slope is None else slope * error


def _recall(trace: AbstractTrace, soma, derivative, emptied):
    """The cascade that remembers slopes, after these, and what it holds of them at each step, θ̂."""
    if derivative is None:
        return soma, None

    def step(soma, now):
        slope, emptied = now
        soma, remembered = trace.step(soma, slope.astype(soma.dtype))
        return jnp.where(emptied, 0, soma), remembered

    emptied = jnp.zeros(derivative.shape[0], bool) if emptied is None else emptied
    return jax.lax.scan(step, soma, (derivative, emptied))
