"""A layer of spiking neurons in NumPy loops, with e-prop's eligibility of every synapse from its recursion."""

from typing import NamedTuple

import numpy as np
import rule_oracles as oracles


class Run(NamedTuple):
    """Of all steps: spikes (of a readout v), slopes `[time, out]`, and the eligibilities of the weights.

    `inputs`: `[time, out, in + 1]`, the bias last; `recurrent`: `[time, out, out]`.
    """

    spikes: np.ndarray
    slopes: np.ndarray
    inputs: np.ndarray
    recurrent: np.ndarray


def simulate(layer, x, factor="exact") -> Run:
    """Steps the neurons of an untraced `SpikingLayer` and the eligibility vectors ε_v, ε_a of Bellec et al. (2020)."""
    weight, bias = np.asarray(layer.inputs.weight), layer.inputs.bias
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias)
    recurrent = np.zeros((len(weight),) * 2) if layer.recurrent is None else np.asarray(layer.recurrent.weight)
    neuron, late, out = layer.neuron, layer.delay_steps, len(weight)
    decay = np.broadcast_to(np.exp(-neuron.dt / np.asarray(neuron.time_constant)), (out,))
    theta, beta, rho = getattr(neuron, "threshold", None), getattr(neuron, "adaptation", 0.0), 0.0
    if beta:
        rho = np.exp(-neuron.dt / neuron.adaptation_time_constant)
    v = z = a = silent = np.zeros(out)
    width = weight.shape[1] + 1 + out
    fast, slow, rows = np.zeros((out, width)), np.zeros((out, width)), []
    for t in range(len(x)):
        own = rows[t - late][0] if late and t >= late else np.zeros(out)
        seen = np.concatenate([x[t], [1.0], own])
        v = decay * v + (1 - decay) * (weight @ x[t] + bias + recurrent @ own)
        fast = decay[:, None] * fast + (1 - decay)[:, None] * seen
        if theta is None:
            rows.append((v, np.ones(out), fast.copy()))
            continue
        v, a = v - theta * z, rho * a + z
        u = v - theta - beta * a
        z, slope = (u > 0) * (silent == 0) * 1.0, np.asarray(neuron.surrogate.slope(u)) * (silent == 0)
        silent = np.where(z > 0, neuron.refractory_steps, np.maximum(silent - 1, 0))
        vector = fast - (beta * slow if factor == "exact" else 0)
        rows.append((z, slope, slope[:, None] * vector))
        slow = rho * slow + slope[:, None] * vector
    spikes, slopes, factors = map(np.stack, zip(*rows, strict=True))
    return Run(spikes, slopes, factors[..., : weight.shape[1] + 1], factors[..., weight.shape[1] + 1 :])


def cascade(trace, eligibility, signal, delay_steps):
    """Gradient Σ_t L(t) trace(t) of one segment: the trace of every synapse, and signals `delay_steps` late."""
    steps = len(signal)
    table, total = oracles.weights(trace, np.arange(steps)), np.zeros(eligibility.shape[1:])
    for now in range(delay_steps, steps):
        remembered = np.tensordot(table[now::-1], eligibility[: now + 1], axes=1)
        total += signal[now - delay_steps][:, None] * remembered
    return total
