"""Recurrent layers without spikes, a vanilla RNN and a GRU, whose weights learn by a local rule and from late credit.

A change of weight w of neuron j acts on its own state at once and, through what j keeps of its state, on its own later
ones; that it also acts through other neurons is left out (e-prop's factorisation). So every synapse has an eligibility

    e_ji(t) = a_j(t) e_ji(t-1) + φ_j(t) x_i(t)      a = ∂h_j(t)/∂h_j(t-1)      φ = ∂h_j(t)/∂z_j(t)

which is what its trace takes, z the input of a gate, a without recurrent weights. It needs no future and no other
neuron.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks
from cetsim.nn import SuppliesActivation, TracedBlock
from cetsim.spiking.eligibility import Emitted, is_traced, plain, with_derivative_of, without_derivative
from cetsim.spiking.layers import SynapticWeights
from cetsim.spiking.time import all_steps, own_step

CELLS = {"rnn": 1, "gru": 3}  # and their gates


class RecurrentLayer(SuppliesActivation):
    """A vanilla RNN or a GRU, `[in_features] -> [out_features]`, its state 0 before the first step.

        "rnn":  h(t) = α h(t-1) + (1 - α) tanh(W x(t) + b + U h(t-1))
        "gru":  h(t) = u h(t-1) + (1 - u) n      n = tanh(W_n x(t) + b_n + r U_n h(t-1))
                r = σ(W_r x(t) + b_r + U_r h(t-1))      u = σ(W_u x(t) + b_u + U_u h(t-1))

    It acts on one step, inside `jax.vmap(model, axis_name="time")`, and scans over the steps itself. Plainly
    differentiated it is backprop through time. With traces (`cetsim.attach`) its weights learn by the local rule of
    this module. Errors pass it on their way down through what neurons keep of their own state, and not through U.

    **Arguments:**

    - `in_features`, `out_features`: numbers of inputs and of neurons.
    - `cell`: `"rnn"` or `"gru"`, whose gates are stacked as in `eqx.nn.GRUCell`: r, u, n.
    - `retained`: α, what is left of the state after a step, in [0, 1); of a GRU 0.
    - `key`: for the initial weights, uniform as in `eqx.nn.Linear`.

    **Raises:** ValueError for an argument outside its range. When called: outside a map over time; and, with traces,
    for events, or `boundary="carry"`.

    **Reference:** Bellec et al. (2020), "A solution to the learning dilemma for recurrent networks of spiking neurons";
    Murray (2019), "Local online learning in recurrent networks with random feedback".
    """

    inputs: SynapticWeights | TracedBlock
    recurrent: SynapticWeights | TracedBlock
    cell: str = eqx.field(static=True)
    retained: float = eqx.field(static=True)

    def __init__(self, in_features, out_features, cell="gru", *, retained=0.0, key: Array):
        in_features = checks.require_whole("in_features", in_features)
        out_features = checks.require_whole("out_features", out_features)
        checks.require_in("cell", cell, tuple(CELLS))
        self.cell, self.retained = cell, checks.require_static("retained", retained)
        checks.require_within("retained", self.retained, "[0, 1)")
        if cell == "gru" and self.retained != 0:
            raise ValueError(f"`retained` must be 0 for a GRU, whose update gate says what is kept, got {retained!r}")
        of_inputs, of_recurrent = jax.random.split(key)
        gates = CELLS[cell] * out_features
        self.inputs = SynapticWeights(in_features, gates, True, key=of_inputs)
        self.recurrent = SynapticWeights(out_features, gates, False, key=of_recurrent)

    def __call__(self, x: Shaped[Array | np.ndarray, " inputs"], *, key=None) -> Float[Array, " out"]:
        """The state after one step of a segment that begins at 0; `key` is not used."""
        weights = plain(self.inputs)
        if jnp.shape(x) != (weights.in_features,):
            raise ValueError(f"`x` must be [{weights.in_features}] at each step, got shape {jnp.shape(x)}")
        blocks = [block for block in (self.inputs, self.recurrent) if is_traced(block)]
        for block in blocks:
            _check(block)
        m, rows = all_steps(jnp.append(jnp.asarray(x, weights.weight.dtype), 1.0).astype(weights.weight.dtype))
        states, kept, factors = self._simulate(jax.lax.stop_gradient(rows) if is_traced(self.inputs) else rows)
        output, kept = own_step(m, states), jax.lax.stop_gradient(kept)
        before = jax.lax.stop_gradient(jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]]))
        for block, seen, own in zip((self.inputs, self.recurrent), (rows, before), factors, strict=True):
            if is_traced(block):
                emitted = Emitted(jax.lax.stop_gradient(own_step(m, states)), jnp.ones_like(states[0]))
                local = Local(block.affine, jax.lax.stop_gradient(own), kept)
                output = with_derivative_of(output, block.with_activation(emitted, local)(own_step(m, seen)))
        for block in blocks:
            if block.synapses.length is not None:  # errors of padding would reach back through what neurons keep
                output = jnp.where(m < block.synapses.length, output, jax.lax.stop_gradient(output))
        return output

    def _simulate(self, rows):
        """States of all steps, a of all, and φ of input and recurrent weights, from the inputs of all."""
        inside = jax.vmap(without_derivative(self.inputs))(rows)
        recurrent = without_derivative(self.recurrent)
        respond = {"rnn": self._rnn, "gru": _gru}[self.cell]
        split = lambda gates: gates.reshape(CELLS[self.cell], -1)  # noqa: E731

        def body(h, inside):
            h, *local = respond(h, split(inside), split(recurrent(h)))
            return h, (h, *local)

        out = inside.shape[-1] // CELLS[self.cell]
        _, (states, kept, *factors) = jax.lax.scan(body, jnp.zeros(out, inside.dtype), inside)
        return states, kept, factors

    def _rnn(self, h, inside, back):
        n = jnp.tanh(inside[0] + back[0])
        factor = (1 - self.retained) * (1 - n**2)[None]
        return self.retained * h + (1 - self.retained) * n, jnp.full_like(h, self.retained), factor, factor


def _gru(h, inside, back):
    r, u = jax.nn.sigmoid(inside[:2] + back[:2])
    n = jnp.tanh(inside[2] + r * back[2])
    of_n = (1 - u) * (1 - n**2)
    of_r, of_u = of_n * back[2] * r * (1 - r), (h - n) * u * (1 - u)
    return n + u * (h - n), u, jnp.stack([of_r, of_u, of_n]), jnp.stack([of_r, of_u, of_n * r])


class Local(eqx.Module):
    """Synapses and behind them what a change of their current does to the neurons' own states, u.

        u(t) = a(t) u(t-1) + Σ_gates φ(t) z(t)

    Linear in z = W x, so that its transpose, one recursion backwards over the neurons, gives the weights their
    eligibility, where the literal rule keeps one number for every synapse.

    **Fields:** `synapses`: the layer. `factors`: φ, `[time, gates, out]`. `kept`: a, `[time, out]`.
    """

    synapses: eqx.Module
    factors: Float[Array, "time gates out"]
    kept: Float[Array, "time out"]

    @property
    def weight(self):
        """Of the synapses."""
        return self.synapses.weight

    def __call__(self, x):
        """u at one step, inside the map over time."""
        m, z = all_steps(self.synapses(x))
        driven = jnp.sum(self.factors * z.reshape(self.factors.shape), axis=1)

        def body(u, now):
            kept, driven = now
            u = kept * u + driven
            return u, u

        return own_step(m, jax.lax.scan(body, jnp.zeros_like(driven[0]), (self.kept, driven))[1])


def _check(block: TracedBlock) -> None:
    """Raises ValueError for what the local rule cannot do."""
    name, synapses = f"layer {block.synapses.name!r}", block.synapses
    if synapses.events is not None:
        raise ValueError(f"{name}: neurons run at every step, so `events`, which leaves steps out, must be None")
    if synapses.window is not None:
        raise ValueError(f"{name}: boundary='carry' is for layers whose state goes on; a recurrent one needs 'reset'")
