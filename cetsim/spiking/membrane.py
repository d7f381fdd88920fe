"""What stands between a layer's synapses and its spikes, as a linear map over time: membrane and adaptation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim.spiking.time import all_steps, low_pass, own_step


class Membrane(eqx.Module):
    """Synapses and behind them what a change of their current does to v - θ - β a, spikes being linearised.

        v(t) = α v(t-1) + (1 - α) z(t)      u(t) = v(t) - β ε(t)      ε(t+1) = ρ ε(t) + ψ(t) u(t)

    Linear in z = W x, so that its transpose, one recursion backwards over the post-neurons, gives the weights their
    eligibility ψ (x̂ - β ε_a), where the literal rule keeps x̂ and ε_a for every synapse.

    **Fields:**

    - `synapses`: the layer.
    - `decay`: α, one or `[out]`.
    - `slopes`: ψ of all steps, `[time, out]`; None without adaptation.
    - `strength`, `adaptation_decay`: β and ρ.
    """

    synapses: eqx.Module
    decay: Float[Array, "..."]
    slopes: Float[Array, "time out"] | None = None
    strength: float = eqx.field(static=True, default=0.0)
    adaptation_decay: float = eqx.field(static=True, default=0.0)

    @property
    def weight(self):
        """Of the synapses."""
        return self.synapses.weight

    def __call__(self, x):
        """u at one step, inside the map over time."""
        m, rows = all_steps(self.synapses(x))
        rows = low_pass(rows, self.decay.astype(rows.dtype), jnp.zeros_like(rows[0]))
        return own_step(m, rows if self.slopes is None else self._adapted(rows))

    def _adapted(self, rows):
        def body(adaptation, now):
            v, slope = now
            u = v - self.strength * adaptation
            return self.adaptation_decay * adaptation + slope * u, u

        return jax.lax.scan(body, jnp.zeros_like(rows[0]), (rows, self.slopes))[1]
