"""Makes peers/same_network.npz: the small network of docs/guides/spiking.md in snnTorch and Brian2.

In an environment of its own, of Python 3.11: `pip install torch snntorch==1.0.0 brian2==2.9.0 "numpy<2"`, then
`python tests/spiking/make_same_network.py`. 20 inputs, 30 recurrent neurons and a leaky readout of 2, without biases.
"""

import math
from pathlib import Path

import brian2
import numpy as np
import snntorch
import torch
from brian2 import NeuronGroup, SpikeGeneratorGroup, SpikeMonitor, StateMonitor, Synapses, ms

STEPS = 40


# The guide prints these two functions.
def in_snntorch(x, w_in, w_rec, w_out):
    beta = math.exp(-0.01 / 0.05)
    hidden = snntorch.Leaky(beta, threshold=0.3, reset_mechanism="subtract")
    readout = snntorch.Leaky(beta, reset_mechanism="none")
    v, spikes, logits, rows = torch.zeros(30), torch.zeros(30), torch.zeros(2), []
    for now in x:  # [time, inputs]
        spikes, v = hidden((1 - beta) * (w_in @ now + w_rec @ spikes), v)
        _, logits = readout((1 - beta) * (w_out @ spikes), logits)
        rows.append((spikes, logits))
    return [torch.stack(row) for row in zip(*rows, strict=True)]


def in_brian2(x, w_in, w_rec, w_out):
    brian2.defaultclock.dt, alpha = 10 * ms, math.exp(-0.01 / 0.05)
    names = dict(tau=50 * ms, theta=0.3, alpha=alpha)
    leak = "dv/dt = -v / tau : 1"
    hidden = NeuronGroup(30, leak, threshold="v > theta", reset="v -= theta / alpha", method="exact", namespace=names)
    readout = NeuronGroup(2, leak, method="exact", namespace=names)
    when, which = np.nonzero(x)
    parts = [sender := SpikeGeneratorGroup(20, which, when * 10 * ms), hidden, readout]
    for source, target, weights in ((sender, hidden, w_in), (hidden, hidden, w_rec), (hidden, readout, w_out)):
        parts.append(Synapses(source, target, "w : 1", on_pre="v_post += w * (1 - alpha) / alpha", namespace=names))
        parts[-1].connect()
        parts[-1].w = weights.T.ravel()
    parts += [spikes := SpikeMonitor(hidden), v := StateMonitor(readout, "v", True, when="after_groups")]
    brian2.Network(parts).run((len(x) + 2) * 10 * ms)
    rows = np.zeros((len(x) + 2, 30))
    rows[np.round(spikes.t / (10 * ms)).astype(int), spikes.i] = 1
    return rows[1:-1], v.v.T[2:]  # what a spike causes is there one step later


def main():
    """Writes what goes in and what comes out."""
    brian2.prefs.codegen.target = "numpy"
    rng = np.random.default_rng(0)
    x = (rng.random((STEPS, 20)) < 0.3) * 1.0
    weights = [1.5 * rng.normal(size=shape) / np.sqrt(shape[1]) for shape in ((30, 20), (30, 30), (2, 30))]
    inputs = dict(x=x, w_in=weights[0], w_rec=weights[1], w_out=weights[2])
    arrays = dict(inputs)
    arrays["snntorch_spikes"], arrays["snntorch_logits"] = in_snntorch(
        *(torch.tensor(array, dtype=torch.float32) for array in inputs.values())
    )
    arrays["brian2_spikes"], arrays["brian2_logits"] = in_brian2(**inputs)
    np.savez_compressed(Path(__file__).parent / "peers/same_network.npz", **arrays)


if __name__ == "__main__":
    main()
