"""Actors with and without state: what they hold from step to step, and what their synapses see of a rollout.

Layers of ReLU, an `eqx.nn.Sequential`, hold nothing. Neurons of a `SpikingActor` do, and of their synapses

    x̂(t) = α x̂(t-1) + (1 - α) x(t)      e(t) = ψ(v(t)) x̂(t)

x is what comes into a layer, ψ the surrogate's slope, and e, which enters the trace, e-prop's eligibility. Errors go
down at once, as if membranes had no memory (`errors="instant"` of `cetsim.spiking.SpikingLayer`): L = Wᵀ (ψ ∘ L) with
W, ψ and L of the layer above.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cetsim.rl import networks
from cetsim.spiking import LeakyIntegrator
from cetsim.spiking.eligibility import Emitted, with_derivative_of
from cetsim.spiking.neurons import AbstractNeuron, NeuronState

HIDDEN_KEY = 1  # folded into an actor's key


class LayerMemory(eqx.Module):
    """What a layer holds after a step. **Fields:** `neuron`: of its neurons. `filtered`: x̂, of what came in."""

    neuron: NeuronState
    filtered: Float[Array, "environments inputs"]


class Response(NamedTuple):
    """What a layer does in all steps. **Fields:** `filtered`: x̂. `output`: of its neurons. `slope`: ψ."""

    filtered: Float[Array, "*time environments inputs"]
    output: Float[Array, "*time environments out"]
    slope: Float[Array, "*time environments out"]


class SpikingActor(eqx.Module):
    """Layers without biases, spiking neurons between them, leaky integrators behind the last.

    **Fields:** `layers`: from the bottom up. `neurons`: behind each.
    """

    layers: tuple[eqx.nn.Linear, ...]
    neurons: tuple[AbstractNeuron, ...]

    def rest(self, environments: int) -> list[LayerMemory]:
        """All neurons at rest, in so many environments."""
        found = []
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            out, inputs = layer.weight.shape
            state = neuron.init((environments, out), layer.weight.dtype)
            found.append(LayerMemory(state, jnp.zeros((environments, inputs), layer.weight.dtype)))
        return found

    def step(self, memory: list[LayerMemory], x: Float[Array, "environments size"]):
        """One step: `(memory, outputs)`."""
        after = []
        for layer, neuron, held in zip(self.layers, self.neurons, memory, strict=True):
            held, x, _ = _respond(neuron, held, x, x @ layer.weight.T)
            after.append(held)
        return after, x

    def respond(self, rollout) -> list[Response]:
        """What each layer does in a rollout, from what was held before it; at rest again where an episode has ended."""
        found, x = [], rollout.observation
        for layer, neuron, held in zip(self.layers, self.neurons, rollout.memory, strict=True):

            def body(held, now, neuron=neuron):
                x, current, alive = now
                held, output, slope = _respond(neuron, held, x, current)
                return forget(held, alive == 0), Response(held.filtered, output, slope)

            _, response = jax.lax.scan(body, held, (x, x @ layer.weight.T, rollout.alive))
            found.append(response)
            x = response.output
        return found


def make(sizes: tuple[int, ...], neuron: AbstractNeuron | None, *, key: Array) -> eqx.nn.Sequential | SpikingActor:
    """An actor from an observation to a policy's outputs, of layers of ReLU (`networks.actor`) or of this neuron.

    Outputs of spiking neurons are leaky integrators of their time constant. Weights of hidden layers are He-normal, so
    that currents are as large as what comes in, for which thresholds are set; those of the outputs are as of ReLU.
    """
    network = networks.actor(sizes, key=key)
    if neuron is None:
        return network
    *hidden, last = (layer for layer in network.layers if isinstance(layer, eqx.nn.Linear))
    he = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
    keys = jax.random.split(jax.random.fold_in(key, HIDDEN_KEY), len(hidden))
    weights = [he(own, layer.weight.shape) for own, layer in zip(keys, hidden, strict=True)]
    hidden = eqx.tree_at(lambda hidden: [layer.weight for layer in hidden], hidden, weights)
    neurons = (neuron,) * len(hidden) + (LeakyIntegrator(neuron.constant, neuron.dt),)
    return SpikingActor((*hidden, last), neurons)


def rest(actor: eqx.nn.Sequential | SpikingActor, environments: int) -> list[LayerMemory] | None:
    """What an actor holds at rest, in so many environments; None if it holds nothing."""
    return actor.rest(environments) if isinstance(actor, SpikingActor) else None


def forget(memory: LayerMemory | list[LayerMemory] | None, ended: Bool[Array, " environments"]):
    """The memory with all at rest in environments whose episode has ended."""
    return jax.tree.map(lambda leaf: jnp.where(ended[:, None], 0, leaf), memory)


def step(actor: eqx.nn.Sequential | SpikingActor, memory, observations: Float[Array, "environments size"]):
    """One step of every environment: `(memory, outputs)`."""
    if isinstance(actor, SpikingActor):
        return actor.step(memory, observations)
    return memory, jax.vmap(actor)(observations)


def outputs(actor: eqx.nn.Sequential | SpikingActor, rollout) -> Float[Array, "time environments outputs"]:
    """Outputs in a rollout. Their derivative by weights of spiking neurons is e-prop's: ψ x̂, errors go down at once."""
    if not isinstance(actor, SpikingActor):
        return networks.outputs(actor, rollout.observation)
    x = rollout.observation
    for layer, seen in zip(actor.layers, jax.tree.map(jax.lax.stop_gradient, actor).respond(rollout), strict=True):
        z = with_derivative_of(seen.filtered, x) @ layer.weight.T
        x = Emitted(seen.output, seen.slope)(z)
    return x


def factors_of_policy(actor: eqx.nn.Sequential | SpikingActor, policy, rollout) -> list[networks.Factors]:
    """The factors of each layer, from the bottom up, of the log-probability of the actions taken."""
    if not isinstance(actor, SpikingActor):
        return networks.factors_of_policy(actor, policy, rollout.observation, rollout.action)
    responses = actor.respond(rollout)
    slopes = [response.slope for response in responses[:-1]] + [None]
    error = policy.score(responses[-1].output, rollout.action)
    return networks.sent_down(actor.layers, [response.filtered for response in responses], slopes, error)


def _respond(neuron: AbstractNeuron, held: LayerMemory, x, current):
    """One step of a layer: what it holds after it, its output and its slope."""
    decay = neuron.decay.astype(x.dtype)
    state, output, slope = neuron.respond(held.neuron, current)
    return LayerMemory(state, decay * held.filtered + (1 - decay) * x), output, slope
