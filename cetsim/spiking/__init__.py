"""Spiking neurons whose synapses learn through traces.

- Surrogates ψ of a spike: `FastSigmoid`, `ArcTan`, `Boxcar`, `Gaussian`, all an `AbstractSurrogate`.
- Neurons: `LIF`, `ALIF`, `LeakyIntegrator`, all an `AbstractNeuron`, stepped from a `NeuronState`.
- Layers: `SpikingLayer`, feedforward or recurrent, to which `cetsim.attach` gives traces; its `SynapticWeights` and
  `LayerState`.
- Without spikes: `RecurrentLayer`, a vanilla RNN or a GRU that learns by the same local rule.
- `plot_spikes`: a raster, and membrane potentials.
- Codes: `rate_code` and `latency_code` make spikes of numbers, `firing_rate` counts them.
"""

from cetsim.spiking.codes import firing_rate, latency_code, rate_code
from cetsim.spiking.layers import ERRORS, FACTORS, LayerState, SpikingLayer, SynapticWeights
from cetsim.spiking.lif import ALIF, LIF
from cetsim.spiking.neurons import AbstractNeuron, LeakyIntegrator, NeuronState
from cetsim.spiking.recurrent import CELLS, RecurrentLayer
from cetsim.spiking.surrogates import AbstractSurrogate, ArcTan, Boxcar, FastSigmoid, Gaussian
from cetsim.spiking.views import plot_spikes

__all__ = [
    "ALIF",
    "CELLS",
    "ERRORS",
    "FACTORS",
    "LIF",
    "AbstractNeuron",
    "AbstractSurrogate",
    "ArcTan",
    "Boxcar",
    "FastSigmoid",
    "Gaussian",
    "LayerState",
    "LeakyIntegrator",
    "NeuronState",
    "RecurrentLayer",
    "SpikingLayer",
    "SynapticWeights",
    "firing_rate",
    "latency_code",
    "plot_spikes",
    "rate_code",
]
