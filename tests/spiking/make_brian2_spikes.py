"""Makes peers/brian2_spikes.npz: a neuron that spikes, a synapse onto it and a cascade at the synapse, in Brian2.

In an environment of its own, of Python 3.11: `pip install brian2==2.9.0 "numpy<2"`, then
`python tests/spiking/make_brian2_spikes.py`.
The steps are so small that they stand for continuous time. Presynaptic spikes are impulses of area 1/1000 s.

    τ dv/dt = I - v, v ← v + w q/τ at a presynaptic spike, v ← v - θ at v = θ      τ dx̂/dt = -x̂, x̂ ← x̂ + q/τ
    e = ψ(v) x̂      dh_k/dt = α (h_(k-1) - h_k), h_0 = e
"""

from pathlib import Path

import numpy as np
from brian2 import (
    Network,
    NeuronGroup,
    SpikeGeneratorGroup,
    SpikeMonitor,
    StateMonitor,
    Synapses,
    defaultclock,
    prefs,
    second,
)

TAU, RATE, STEEPNESS, THRESHOLD, DRIVE, WEIGHT, CHARGE = 0.02, 50.0, 3.0, 0.5, 0.8, 1.0, 0.001
EVERY, END, DT = 0.004, 0.1205, 1e-6
SENT = np.array([2, 4, 7, 8, 13, 15, 20, 22, 23, 27]) * EVERY
NEURON = "dv/dt = (drive - v) / (tau * second) : 1"
SYNAPSE = """
dfiltered/dt = -filtered / (tau * second) : 1 (clock-driven)
dh1/dt = rate * (filtered / (1 + k * abs(v_post - theta)) ** 2 - h1) / second : 1 (clock-driven)
dh2/dt = rate * (h1 - h2) / second : 1 (clock-driven)
dh3/dt = rate * (h2 - h3) / second : 1 (clock-driven)
"""


def main():
    """Writes the arrays, at times 0, 4 ms, 8 ms, ..., and the times of all spikes."""
    prefs.codegen.target = "numpy"
    defaultclock.dt = DT * second
    names = dict(tau=TAU, rate=RATE, k=STEEPNESS, theta=THRESHOLD, drive=DRIVE, w=WEIGHT, q=CHARGE)
    neuron = NeuronGroup(1, NEURON, threshold="v > theta", reset="v -= theta", method="exact", namespace=names)
    sender = SpikeGeneratorGroup(1, np.zeros(len(SENT), int), SENT * second)
    on_pre = "filtered += q / tau\nv_post += w * q / tau"
    synapse = Synapses(sender, neuron, SYNAPSE, on_pre=on_pre, method="euler", namespace=names)
    synapse.connect()
    spikes = SpikeMonitor(neuron)
    monitor = StateMonitor(synapse, ["filtered", "h3"], record=True, dt=EVERY * second)
    Network(neuron, sender, synapse, spikes, monitor).run(END * second, namespace=names)
    rows = {"filtered": monitor.filtered[0], "h3": monitor.h3[0], "spikes": np.asarray(spikes.t / second)}
    constants = dict(tau=TAU, rate=RATE, steepness=STEEPNESS, threshold=THRESHOLD, drive=DRIVE, weight=WEIGHT)
    more = dict(charge=CHARGE, every=EVERY, sent=SENT)
    np.savez_compressed(Path(__file__).parent / "peers/brian2_spikes.npz", **rows, **constants, **more)


if __name__ == "__main__":
    main()
