"""Makes peers/brian2.npz: a neuron, its filtered input and a cascade behind the eligibility as Brian2's equations.

In an environment of its own, of Python 3.11: `pip install brian2==2.9.0 "numpy<2"`, then
`python tests/spiking/make_brian2.py`. The current is smooth; Brian2 integrates by Runge-Kutta of order 4 at
steps so small that it stands for the continuous solution.

    τ dv/dt = I - v      τ dx̂/dt = x - x̂      e = ψ(v) x̂      dh_k/dt = α (h_(k-1) - h_k), h_0 = e
"""

from pathlib import Path

import numpy as np
from brian2 import Network, NeuronGroup, StateMonitor, defaultclock, prefs, second

TAU, RATE, STEEPNESS, THRESHOLD, EVERY, END, DT = 0.02, 50.0, 3.0, 0.5, 0.004, 0.4, 2e-5
EQUATIONS = """
current = 0.9 + 0.8 * sin(2 * pi * 6 * t / second) : 1
x = 0.5 + 0.5 * cos(2 * pi * 4 * t / second) : 1
dv/dt = (current - v) / (tau * second) : 1
dfiltered/dt = (x - filtered) / (tau * second) : 1
eligibility = filtered / (1 + k * abs(v - theta)) ** 2 : 1
dh1/dt = rate * (eligibility - h1) / second : 1
""" + "\n".join(f"dh{k}/dt = rate * (h{k - 1} - h{k}) / second : 1" for k in range(2, 11))
ORDERS = (2, 3, 6, 10)  # whose last stages are written


def main():
    """Writes the arrays, at times 0, 4 ms, 8 ms, ..."""
    prefs.codegen.target = "numpy"
    defaultclock.dt = DT * second
    names = {"tau": TAU, "rate": RATE, "k": STEEPNESS, "theta": THRESHOLD}
    group = NeuronGroup(1, EQUATIONS, method="rk4", namespace=names)
    recorded = ["v", "filtered", *(f"h{order}" for order in ORDERS)]
    monitor = StateMonitor(group, recorded, record=True, dt=EVERY * second)
    Network(group, monitor).run(END * second, namespace=names)
    rows = {name: getattr(monitor, name)[0] for name in recorded}
    constants = dict(tau=TAU, rate=RATE, steepness=STEEPNESS, threshold=THRESHOLD, every=EVERY)
    np.savez_compressed(Path(__file__).parent / "peers/brian2.npz", **rows, **constants)


if __name__ == "__main__":
    main()
