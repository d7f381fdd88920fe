"""Layers of neurons, and what attaching traces to them means: the synapses' eligibility is ψ(v(t)) x̂(t)."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks, steps
from cetsim.nn import SuppliesActivation, TracedBlock
from cetsim.spiking import eligibility
from cetsim.spiking.eligibility import Emitted, is_traced, plain, with_derivative_of, without_derivative
from cetsim.spiking.neurons import AbstractNeuron, NeuronState
from cetsim.spiking.time import all_steps, own_step

ERRORS = ("unrolled", "instant")
FACTORS = ("exact", "approximate")


class SynapticWeights(eqx.nn.Linear):
    """Weights of a layer, and a bias that is a synapse with an input of its own, behind the others."""

    def __call__(self, x: Float[Array, " inputs"], *, key=None):
        """W x, or W x[:-1] + b x[-1] with a bias; `key` is not used."""
        return self.weight @ x if self.bias is None else self.weight @ x[:-1] + self.bias * x[-1]


class LayerState(eqx.Module):
    """What a layer is in after a step.

    **Fields:**

    - `neuron`: of its neurons.
    - `own`: their last spikes that recurrent synapses have not seen yet, `[steps, out]`, oldest first.
    - `inputs`, `recurrent`: x̂, the filtered inputs of its synapses, where their trace goes on from segment to segment
      (`boundary="carry"`); else None, since eligibility starts empty in every segment.
    """

    neuron: NeuronState
    own: Float[Array, "steps out"]
    inputs: Float[Array, " inputs"] | None
    recurrent: Float[Array, " out"] | None


class SpikingLayer(SuppliesActivation):
    """Neurons behind weights, `[in_features] -> [out_features]`; with `recurrent_delay` also among themselves.

        I(t) = W x(t) + b + U z(t - d)

    A layer acts on one step, inside `jax.vmap(model, axis_name="time")`, and scans over the steps itself. Plainly
    differentiated it is backprop through time with surrogate gradients, the reset not differentiated. With traces
    (`cetsim.attach`, form `"activation"`) what enters them is e-prop's eligibility of a neuron,

        e(t) = ψ(v(t)) x̂(t)      x̂(t) = α x̂(t-1) + (1 - α) x(t)

    x the presynaptic spikes, or any currents (nothing here needs 0 or 1), x̂ what is left of them in the membrane.
    Recurrent weights see the layer's own spikes d ago; that a spike also acts through other neurons is left out
    (e-prop's approximation).

    **Arguments:**

    - `in_features`, `out_features`: numbers of presynaptic inputs and of neurons.
    - `neuron`: their dynamics.
    - `recurrent_delay`: d, in seconds, a multiple of dt above 0; None for a feedforward layer.
    - `use_bias`: whether there is a bias b.
    - `errors`: how errors pass a traced layer on their way down. `"unrolled"`: back through the time that the membrane
      integrates over, as in backprop through time. `"instant"`: at once, as if the membrane had no memory, for streams
      (where what comes after a segment is not known) and where the layer's trace stands for that memory.
    - `adaptation_factor`: of a traced `ALIF`. `"exact"`: e(t) = ψ (x̂ - β ε_a), ε_a how the adaptation depends on the
      weight. `"approximate"`: without ε_a.
    - `key`: for the initial weights, uniform as in `eqx.nn.Linear`.

    **Raises:** ValueError for an argument outside its range. When called: outside a map over time; and, with traces,
    for events, in a stream for a call without the neurons' state, and for `"instant"` errors with one
    time constant per neuron or an exact adaptation factor.

    **Reference:** Bellec et al. (2020), "A solution to the learning dilemma for recurrent networks of spiking neurons".
    """

    inputs: SynapticWeights | TracedBlock
    recurrent: SynapticWeights | TracedBlock | None
    neuron: AbstractNeuron
    delay_steps: int = eqx.field(static=True)
    errors: str = eqx.field(static=True)
    adaptation_factor: str = eqx.field(static=True)

    def __init__(
        self,
        in_features,
        out_features,
        neuron,
        *,
        recurrent_delay=None,
        use_bias=True,
        errors="unrolled",
        adaptation_factor="exact",
        key: Array,
    ):
        in_features = checks.require_whole("in_features", in_features)
        out_features = checks.require_whole("out_features", out_features)
        checks.require_instance("neuron", neuron, AbstractNeuron, "a neuron such as spiking.LIF()")
        if neuron.shape not in ((), (out_features,)):
            raise ValueError(f"`neuron` must have one time constant or {out_features}, got shape {neuron.shape}")
        checks.require_in("errors", errors, ERRORS)
        checks.require_in("adaptation_factor", adaptation_factor, FACTORS)
        of_inputs, of_recurrent = jax.random.split(key)
        self.inputs = SynapticWeights(
            in_features, out_features, checks.require_flag("use_bias", use_bias), key=of_inputs
        )
        self.recurrent, self.delay_steps = None, 0
        if recurrent_delay is not None:
            recurrent_delay = checks.require_static("recurrent_delay", recurrent_delay)
            checks.require_above(
                "recurrent_delay", recurrent_delay, 0.0, " s: a spike acts on the next step at the soonest"
            )
            checks.require_whole_steps("recurrent_delay", recurrent_delay, neuron.dt)
            self.delay_steps = int(steps.from_seconds("recurrent_delay", recurrent_delay, neuron.dt))
            self.recurrent = SynapticWeights(out_features, out_features, False, key=of_recurrent)
        self.neuron, self.errors, self.adaptation_factor = neuron, errors, adaptation_factor

    def init(self) -> LayerState:
        """The layer at rest."""
        weights = plain(self.inputs)
        (out, width), dtype = weights.weight.shape, weights.weight.dtype
        inputs = jnp.zeros(width + (weights.bias is not None), dtype) if _goes_on(self.inputs) else None
        recurrent = jnp.zeros(out, dtype) if _goes_on(self.recurrent) else None
        return LayerState(self.neuron.init((out,), dtype), jnp.zeros((self.delay_steps, out), dtype), inputs, recurrent)

    def step(self, state: LayerState, x: Shaped[Array | np.ndarray, " inputs"]):
        """One step without a map over time, for a loop that simulates: `(state, output)`. It is not for learning."""
        state, outputs, _ = self._simulate(state, self._rows(x)[None])
        return state, outputs[0]

    def __call__(self, x: Shaped[Array | np.ndarray, " inputs"], *, key=None) -> Float[Array, " out"]:
        """The output at one step of a segment that begins at rest; `key` is not used."""
        for block in (self.inputs, self.recurrent):
            if _goes_on(block):
                raise ValueError(
                    f"layer {block.synapses.name!r}: with boundary='carry' neurons go on from segment to segment too: "
                    "call `output, state = layer.run(x, state)`, the first state from `layer.init()`"
                )
        return self._run(x, self.init())[0]

    def run(self, x: Shaped[Array | np.ndarray, " inputs"], state: LayerState):
        """The output at one step of a segment that begins with the neurons in `state`, and their state after it.

        All steps share both states: `jax.vmap(model, axis_name="time", in_axes=(0, None), out_axes=(0, None))`. No
        derivative passes them, and with `boundary="reset"` no eligibility.
        """
        for block in (self.inputs, self.recurrent):
            if is_traced(block) and block.synapses.length is not None:
                raise ValueError(f"layer {block.synapses.name!r}: `length` leaves the state after padding unknown")
        return self._run(x, state)

    def _run(self, x, state: LayerState):
        eligibility.check(self, state)
        state = jax.lax.stop_gradient(state)
        m, rows = all_steps(self._rows(x))
        after, outputs, slopes = self._simulate(state, jax.lax.stop_gradient(rows) if is_traced(self.inputs) else rows)
        output, slopes = own_step(m, outputs), jax.lax.stop_gradient(slopes)
        emitted = Emitted(*(own_step(m, values) for values in (jax.lax.stop_gradient(outputs), slopes)))
        inputs = recurrent = None
        if is_traced(self.inputs):
            traced, inputs = eligibility.through(self, self.inputs, m, rows, state.inputs, emitted, slopes)
            output = with_derivative_of(output, traced)
        if is_traced(self.recurrent):
            seen = jnp.concatenate([state.own, jax.lax.stop_gradient(outputs)])[: len(rows)]
            traced, recurrent = eligibility.through(self, self.recurrent, m, seen, state.recurrent, emitted, slopes)
            output = with_derivative_of(output, traced)
        for block in (self.inputs, self.recurrent):
            if is_traced(block) and block.synapses.length is not None:  # errors of padding would reach back through v
                output = jnp.where(m < block.synapses.length, output, jax.lax.stop_gradient(output))
        after = dataclasses.replace(after, inputs=inputs, recurrent=recurrent)
        return output, jax.lax.stop_gradient(after)

    def _rows(self, x):
        """The inputs of the synapses: `x`, and 1 for a bias."""
        weights = plain(self.inputs)
        if jnp.shape(x) != (weights.in_features,):
            raise ValueError(f"`x` must be [{weights.in_features}] at each step, got shape {jnp.shape(x)}")
        x = jnp.asarray(x, weights.weight.dtype)
        return x if weights.bias is None else jnp.append(x, jnp.ones((), x.dtype))

    def _simulate(self, state: LayerState, rows):
        """State after the steps, outputs and slopes of all, from the inputs of all; no derivative in traced weights."""
        currents = jax.vmap(without_derivative(self.inputs))(rows)
        recurrent = None if self.recurrent is None else without_derivative(self.recurrent)

        def body(state, current):
            neuron, own = state
            if recurrent is not None:
                current = current + recurrent(own[0])
            neuron, output, slope = self.neuron.respond(neuron, current)
            if recurrent is not None:
                own = jnp.concatenate([own[1:], output[None]])
            return (neuron, own), (output, slope)

        (neuron, own), (outputs, slopes) = jax.lax.scan(body, (state.neuron, state.own), currents)
        return dataclasses.replace(state, neuron=neuron, own=own), outputs, slopes


def _goes_on(synapses) -> bool:
    """Whether their trace goes on from segment to segment."""
    return is_traced(synapses) and synapses.synapses.window is not None
