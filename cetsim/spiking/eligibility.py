"""What attaching traces to a layer of neurons means: the eligibility of its synapses is e(t) = ψ(v(t)) x̂(t).

The forward pass is the neurons' own, without derivatives in traced weights. Then every `TracedBlock` is called with x̂
as its input and an activation whose value is the spike and whose derivative is ψ: all of the rule, its delays, streams
and signals, is the one that other layers obey.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.nn import TracedBlock
from cetsim.spiking.lif import ALIF
from cetsim.spiking.membrane import Membrane
from cetsim.spiking.time import low_pass_of_constants, own_step


class Emitted(eqx.Module):
    """The activation of one step, or of many: a spike that has been computed, with the slope ψ."""

    spike: Float[Array, "*steps out"]
    slope: Float[Array, "*steps out"]

    def __call__(self, z):
        """The spike, whose derivative by `z` is ψ."""
        return _emitted(z, self.spike, self.slope)


@jax.custom_jvp
def _emitted(z, spike, slope):
    return spike.astype(z.dtype)


@_emitted.defjvp
def _emitted_jvp(primals, tangents):
    return _emitted(*primals), primals[2].astype(primals[0].dtype) * tangents[0]


def is_traced(synapses) -> bool:
    """Whether a layer's synapses have a trace."""
    return isinstance(synapses, TracedBlock)


def plain(synapses):
    """The synapses themselves, also where they have a trace."""
    return synapses.affine if is_traced(synapses) else synapses


def without_derivative(synapses):
    """The synapses themselves, with weights that are constants if they have a trace."""
    if not is_traced(synapses):
        return synapses
    weights, rest = eqx.partition(synapses.affine, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(weights), rest)


def through(layer, block: TracedBlock, m, rows, start, emitted: Emitted, slopes):
    """The output with its derivative by traced weights and, as `layer.errors` says, by what comes in; x̂ at last.

    **Arguments:** `block`: of the weights. `rows`: what comes in at all steps. `start`: x̂ before them, None for 0.
    `slopes`: ψ of all steps.
    """
    decay = jax.lax.stop_gradient(layer.neuron.decay)
    if layer.errors == "unrolled":
        adapts = isinstance(layer.neuron, ALIF) and layer.adaptation_factor == "exact"
        more = (slopes, layer.neuron.adaptation, layer.neuron.adaptation_decay) if adapts else ()
        return block.with_activation(emitted, Membrane(block.affine, decay, *more))(own_step(m, rows)), None
    before = jnp.zeros_like(rows[0]) if start is None else start
    filtered = low_pass_of_constants(jax.lax.stop_gradient(rows), decay.astype(rows.dtype), before)
    x = with_derivative_of(own_step(m, filtered), own_step(m, rows))
    return block.with_activation(emitted)(x), None if start is None else filtered[-1]


@jax.custom_jvp
def with_derivative_of(value, other):
    """`value`, and on the way back the derivatives of both."""
    return value


@with_derivative_of.defjvp
def _with_derivative_of_jvp(primals, tangents):
    return with_derivative_of(*primals), tangents[0] + tangents[1]


def check(layer, state) -> None:
    """Raises ValueError for what the rule of a traced layer cannot do."""
    approximate = not isinstance(layer.neuron, ALIF) or layer.adaptation_factor == "approximate"
    for block, filtered in ((layer.inputs, state.inputs), (layer.recurrent, state.recurrent)):
        if not is_traced(block):
            continue
        name, stream = f"layer {block.synapses.name!r}", block.synapses.window is not None
        checks.require_same_dt(f"{name}: neurons and trace", layer.neuron.dt, block.synapses.trace.dt)
        if block.synapses.events is not None:
            raise ValueError(f"{name}: neurons run at every step, so `events`, which leaves steps out, must be None")
        if stream and layer.errors == "unrolled":
            raise ValueError(f"{name}: boundary='carry' needs errors='instant': unrolled ones come from the future")
        if layer.errors == "instant" and layer.neuron.shape:
            raise ValueError(f"{name}: errors='instant' needs one time constant, got {layer.neuron.shape} of them")
        if layer.errors == "instant" and not approximate:
            raise ValueError(f"{name}: an ALIF with errors='instant' needs adaptation_factor='approximate'")
        if stream and filtered is None:
            raise ValueError(f"{name}: its state must come from `init` of the attached layer, got another's")
    if is_traced(layer.recurrent) and layer.recurrent.feedback.value is not None:
        raise ValueError(f"layer {layer.recurrent.synapses.name!r}: no errors pass recurrent weights: drop `feedback`")
