"""snnTorch's backprop through time of the network of `benchmarks.spiking`: a step for each line that it reads.

`python -m benchmarks --parts spiking --other OTHER/python` starts it, and takes turns with it. OTHER is an environment
of Python 3.11 with `pip install torch snntorch==1.0.0`. One process on all cores, AdamW and clipping as ours.
"""

import math
import sys

import snntorch
import torch
from snntorch import surrogate

BATCH, STEPS, DT, TAU, THRESHOLD, SIZES = 16, 1000, 0.01, 0.05, 0.1, (784, 256, 10)


def main():
    """Trains a step for each line of its input, and says so."""
    torch.manual_seed(0)
    beta = math.exp(-DT / TAU)
    layers = torch.nn.ModuleList([torch.nn.Linear(*SIZES[:2]), torch.nn.Linear(*SIZES[1:])])
    hidden = snntorch.Leaky(beta, THRESHOLD, surrogate.fast_sigmoid(25.0), reset_mechanism="subtract")
    readout = snntorch.Leaky(beta, reset_mechanism="none")
    optimizer = torch.optim.AdamW(layers.parameters(), 1e-3)
    x = (torch.rand(STEPS, BATCH, SIZES[0]) < 0.1).float()
    labels = torch.randint(0, SIZES[-1], (BATCH,))

    def step():
        v, out, total = torch.zeros(BATCH, SIZES[1]), torch.zeros(BATCH, SIZES[2]), 0.0
        for current in (1 - beta) * layers[0](x):
            spikes, v = hidden(current, v)
            _, out = readout((1 - beta) * layers[1](spikes), out)
            total = total + torch.nn.functional.cross_entropy(out, labels)
        optimizer.zero_grad()
        (total / STEPS).backward()
        torch.nn.utils.clip_grad_norm_(layers.parameters(), 0.5)
        optimizer.step()

    for _ in sys.stdin:
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main()
