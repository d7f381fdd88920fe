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
    - `reset`: whether the cascade is emptied where an episode ends.
    - `late_flag`: whether the ends of episodes come one step later than the TD errors.
    """

    form: str = "activation"
    reset: bool = False
    late_flag: bool = False


EXACT = Options()


class LayerState(eqx.Module):
    """One layer in one environment.

    **Fields:** `synapses`: λ-traces, and stages or factors of the past. `under_way`: what was sent in the last steps,
    `[max delay, ...]`.
    """

    synapses: ActorState | WindowState
    under_way: Arriving


def init(
    trace: AbstractTrace, delay: FixedDelay, out: int, inputs: int, window: int | None, late_flag: bool = False
) -> LayerState:
    """A layer with no past, and nothing under way.

    **Arguments:** `window`: steps of the past whose factors are kept; None to keep the stages of every synapse instead.
    `late_flag`: see `Options`.
    """
    if window is None:
        synapses = actor_trace.init(trace, out, inputs)
    else:
        synapses = actor_trace.init_window(trace, window, out, inputs)
    room, dtype = delay.max_steps + late_flag, synapses.eligibility.dtype
    silence = Arriving(jnp.zeros((room, out), dtype), jnp.zeros(room, dtype), jnp.ones(room, dtype))
    return LayerState(synapses, silence)


def learn(
    trace: AbstractTrace,
    delay: FixedDelay,
    decay,
    state: LayerState,
    factors: Factors,
    td_error: Float[Array, " time"],
    alive: Float[Array, " time"],
    options: Options = EXACT,
) -> tuple[LayerState, Float[Array, "out inputs"]]:
    """What a rollout adds to a layer's gradient, -Σ td e over what arrives in it, and the state after it.

    **Arguments:**

    - `decay`: γλ, one number or, for layers that keep the stages of every synapse, `[out, in]`.
    - `factors`: what the synapses saw.
    - `td_error`, `alive`: of each step, as they are sent; `alive` is 0 where the step ended an episode.
    """
    gain, signal = credit.synaptic_factors(options.form, factors.derivative, factors.error)
    sent = Arriving(signal, td_error, alive)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]), state.under_way, sent)
    steps, room = td_error.shape[0], state.under_way.td_error.shape[0]
    first = room - delay.steps.astype(int)
    come = lambda rows, first: jax.lax.dynamic_slice_in_dim(rows, first, steps)  # noqa: E731
    arriving = Arriving(
        come(both.signal, first), come(both.td_error, first), come(both.alive, first - options.late_flag)
    )
    update = actor_trace.windowed
    if isinstance(state.synapses, ActorState):
        update = actor_trace.literal if jnp.ndim(decay) else actor_trace.chunked
    emptied = alive == 0 if options.reset else None
    synapses, gradient = update(trace, decay, state.synapses, factors.x, gain, arriving, emptied)
    return LayerState(synapses, jax.tree.map(lambda rows: rows[steps:], both)), gradient
