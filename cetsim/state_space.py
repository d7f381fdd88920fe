"""Exact discretisation of linear cascades, and the operations on their discrete state.

A discrete system is `h ← h + (Φ - I) h + Γ e`, read as `c·h`. The increment Φ - I is kept instead of Φ: adding small
changes to the state holds up in float32 over tens of thousands of steps, multiplying by numbers near 1 does not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammainc
from jaxtyping import Array, Float

from cetsim.kernels import poisson


class LinearSystem(NamedTuple):
    """A discrete linear system with one input and one output.

    **Fields:** `increment`: Φ - I, [stages, stages]. `input`: Γ, [stages]. `output`: c, [stages].
    """

    increment: Float[Array, "stages stages"]
    input: Float[Array, " stages"]
    output: Float[Array, " stages"]


def cascade_system(order: int, rate: Float[Array, ""], gain: Float[Array, ""] | float = 1.0) -> LinearSystem:
    """A cascade of n equal stages under zero-order hold, each stage scaled to unit area (α^-n would overflow).

        Φ_ik = e^(-r) r^(i-k) / (i-k)!  for i ≥ k,      Γ_k = P(k, r),      r = α dt

    **Arguments:** `order`: n ≥ 1. `rate`: r, per step. `gain`: multiplies the last stage where it is read.

    **Reference:** exact discretisation by the matrix exponential of dh/dt = A h + B e.
    """
    rate = jnp.asarray(rate)
    below_diagonal = jnp.stack([poisson(k, rate) for k in range(order)])[1:]
    # An error of the coupling counts once per stage. For slow stages the plain product r e^(-r), r²/2 e^(-r), ... has
    # none to speak of, where the logarithm's 5e-7 made 2e-5 of the response at n = 64; for fast ones it underflows.
    slow = jnp.where(rate < 1.0, rate, 1.0)
    product = jnp.exp(-slow) * jnp.cumprod(slow / jnp.arange(1, order, dtype=rate.dtype))
    column = jnp.concatenate([jnp.expm1(-rate)[None], jnp.where(rate < 1.0, product, below_diagonal)])
    below = jnp.arange(order)[:, None] - jnp.arange(order)[None, :]
    increment = jnp.where(below >= 0, column[jnp.maximum(below, 0)], 0.0)
    stages = jnp.arange(1, order + 1, dtype=rate.dtype)
    return LinearSystem(increment, gammainc(stages, rate), gain * jnp.eye(order, dtype=rate.dtype)[-1])


def shift_system(taps: Float[Array, " taps"]) -> LinearSystem:
    """A finite impulse response as a shift register: stage k holds the input of k steps ago, read after it enters."""
    size = taps.shape[0]
    shift = jnp.eye(size, k=-1, dtype=taps.dtype) - jnp.eye(size, dtype=taps.dtype)
    return LinearSystem(shift, jnp.eye(size, dtype=taps.dtype)[0], taps)


def advance(
    system: LinearSystem, state: Float[Array, "stages *shape"], e: Float[Array, "*shape"]
) -> Float[Array, "stages *shape"]:
    """One step of the discrete system, `h + (Φ - I) h + Γ e`."""
    flow = jnp.tensordot(system.increment, state, axes=1, precision="highest")
    return state + flow + jnp.multiply.outer(system.input, e)


class Powers(NamedTuple):
    """What a chunk of m steps needs of a system.

    **Fields:** `reads`: c Φ^u for u = 0..m, [m + 1, stages]. `kicks`: Φ^u Γ for u = 0..m-1, [m, stages].
    `transition`: Φ^m - I, [stages, stages].
    """

    reads: Float[Array, "steps_plus_one stages"]
    kicks: Float[Array, "steps stages"]
    transition: Float[Array, "stages stages"]


def powers(system: LinearSystem, steps: int) -> Powers:
    """Powers of the system over a chunk of `steps` ≥ 1 steps, by iteration on increments."""

    def body(carry, _):
        read, kick, total = carry
        after = (
            read + jnp.matmul(read, system.increment, precision="highest"),
            kick + jnp.matmul(system.increment, kick, precision="highest"),
            total + system.increment + jnp.matmul(system.increment, total, precision="highest"),
        )
        return after, (read, kick)

    start = (system.output, system.input, jnp.zeros_like(system.increment))
    (last_read, _, transition), (reads, kicks) = jax.lax.scan(body, start, None, length=steps)
    return Powers(jnp.concatenate([reads, last_read[None]]), kicks, transition)
