"""Makes peers/brian2_adapting.npz: when neurons spike that rest, adapt, or both, driven by a sine, in Brian2.

In an environment of its own, of Python 3.11: `pip install brian2==2.9.0 "numpy<2"`, then
`python tests/spiking/make_brian2_adapting.py`.
The steps are so small that they stand for continuous time.

    τ dv/dt = I(t) - v      τ_a da/dt = -a      v ← v - θ, a ← a + 1 where v > θ + β a, not within R of a spike before
"""

from pathlib import Path

import numpy as np
from brian2 import Network, NeuronGroup, SpikeMonitor, defaultclock, prefs, second

TAU, SLOW, THRESHOLD, MEAN, SWING, FREQUENCY = 0.02, 0.1, 0.5, 0.9, 0.5, 7.0
ADAPTATION, REFRACTORY = (0.0, 0.3, 0.3), (0.012, 0.0, 0.04)  # of each neuron, the second in seconds
END, DT = 0.4, 2e-6
NEURON = """
dv/dt = (mean + swing * sin(2 * pi * frequency * t / second) - v) / (tau * second) : 1
da/dt = -a / (slow * second) : 1
beta : 1 (constant)
rest : second (constant)
"""


def main():
    """Writes the times of all spikes, by neuron."""
    prefs.codegen.target = "numpy"
    defaultclock.dt = DT * second
    names = dict(tau=TAU, slow=SLOW, theta=THRESHOLD, mean=MEAN, swing=SWING, frequency=FREQUENCY)
    how = dict(threshold="v > theta + beta * a", reset="v -= theta\na += 1", refractory="rest", method="euler")
    neurons = NeuronGroup(len(ADAPTATION), NEURON, namespace=names, **how)
    neurons.beta, neurons.rest = ADAPTATION, REFRACTORY * second
    spikes = SpikeMonitor(neurons)
    Network(neurons, spikes).run(END * second, namespace=names)
    found = {f"spikes_{i}": np.asarray(spikes.t / second)[np.asarray(spikes.i) == i] for i in range(len(ADAPTATION))}
    each = dict(adaptation=ADAPTATION, refractory=REFRACTORY)
    constants = dict(tau=TAU, slow=SLOW, threshold=THRESHOLD, mean=MEAN, swing=SWING, frequency=FREQUENCY, end=END)
    np.savez_compressed(Path(__file__).parent / "peers/brian2_adapting.npz", **found, **each, **constants)
    print({name: len(times) for name, times in found.items()})


if __name__ == "__main__":
    main()
