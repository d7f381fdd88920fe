"""Spiking neurons whose synapses learn through traces.

- Surrogates ψ of a spike: `FastSigmoid`, `ArcTan`, `Boxcar`, `Gaussian`, all an `AbstractSurrogate`.
- Neurons: `LIF`, `ALIF`, `LeakyIntegrator`, all an `AbstractNeuron`, stepped from a `NeuronState`.
"""

from cetsim.spiking.neurons import ALIF, LIF, AbstractNeuron, LeakyIntegrator, NeuronState
from cetsim.spiking.surrogates import AbstractSurrogate, ArcTan, Boxcar, FastSigmoid, Gaussian

__all__ = [
    "ALIF",
    "LIF",
    "AbstractNeuron",
    "AbstractSurrogate",
    "ArcTan",
    "Boxcar",
    "FastSigmoid",
    "Gaussian",
    "LeakyIntegrator",
    "NeuronState",
]
