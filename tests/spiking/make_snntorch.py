"""Makes peers/snntorch.npz: two layers of leaky neurons in snnTorch, their spikes and their gradients.

In an environment of its own, of Python 3.11: `pip install torch snntorch==1.0.0`, then
`python tests/spiking/make_snntorch.py`.
snnTorch does not scale its input by 1 - β; here it is scaled before. Its surrogates compute in float32.
"""

import itertools
from pathlib import Path

import numpy as np
import snntorch
import torch
from snntorch import surrogate

STEPS, SIZES, BETAS, THRESHOLD, SLOPE = 40, (6, 8, 3), (0.9, 0.8), 0.3, 5.0


def main():
    """Writes the arrays."""
    rng = np.random.default_rng(0)
    x = torch.tensor((rng.random((STEPS, SIZES[0])) < 0.4) * 1.0, dtype=torch.float32)
    weights = [
        torch.tensor(rng.normal(size=(after, before)), dtype=torch.float32, requires_grad=True)
        for before, after in itertools.pairwise(SIZES)
    ]
    signal = torch.tensor(rng.normal(size=(STEPS, SIZES[-1])), dtype=torch.float32)
    options = dict(threshold=THRESHOLD, spike_grad=surrogate.fast_sigmoid(SLOPE), reset_mechanism="subtract")
    neurons = [snntorch.Leaky(beta=torch.tensor(beta), **options) for beta in BETAS]
    membranes, spikes, potentials = [torch.zeros(n) for n in SIZES[1:]], ([], []), ([], [])
    for now in x:
        for i, (weight, neuron, beta) in enumerate(zip(weights, neurons, BETAS, strict=True)):
            now, membranes[i] = neuron((1 - beta) * (weight @ now), membranes[i])
            spikes[i].append(now)
            potentials[i].append(membranes[i])
    torch.sum(signal * torch.stack(spikes[1])).backward()
    arrays = dict(x=x, signal=signal, beta=np.array(BETAS), threshold=THRESHOLD, slope=SLOPE)
    for i in (0, 1):
        arrays |= {f"weight_{i}": weights[i], f"gradient_{i}": weights[i].grad}
        arrays |= {f"spikes_{i}": torch.stack(spikes[i]), f"v_{i}": torch.stack(potentials[i])}
    arrays = {name: np.asarray(torch.as_tensor(array).detach()) for name, array in arrays.items()}
    np.savez_compressed(Path(__file__).parent / "peers/snntorch.npz", **arrays)


if __name__ == "__main__":
    main()
