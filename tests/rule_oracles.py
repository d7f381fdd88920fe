"""Slow oracles of the rule: numpy loops straight from the definitions, with no line of code shared with the library.

Only the weights w(lag) come from the trace under test, which has oracles of its own.
"""

from typing import NamedTuple

import jax
import numpy as np


@jax.jit
def _weights(trace, lags):
    return trace.weights(lags)


def weights(trace, lags) -> np.ndarray:
    """The trace's weight at each lag, [*lags, *trace.shape]; in one size of table, so that each trace compiles once."""
    lags = np.asarray(lags)
    size = -(-lags.size // 512) * 512
    table = np.asarray(_weights(trace, np.resize(lags, size).astype(float)))
    return table[: lags.size].reshape(*lags.shape, *table.shape[1:])


def double_loop(trace, x, gain, signal, arrivals, writes=None, *, start=0, horizon=np.inf):
    """Gradient -ΔW = Σ_r Σ_s w(a_r - t_s) (L(r) ∘ gain(s)) ⊗ x(s) over the signals with start ≤ a_r < horizon.

    `x` is [time, in], `gain` [time, out], `signal` [signals, out] or [signals]. Returns ([out, in], [out]).
    """
    x, gain, signal, arrivals = (np.asarray(array, dtype=float) for array in (x, gain, signal, arrivals))
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    writes = np.arange(len(x)) if writes is None else np.asarray(writes, dtype=float)
    met = weights(trace, arrivals[:, None] - writes[None, :])
    if met.ndim == 3:  # one kernel a post-neuron
        met = met[..., None]
    total = np.zeros((gain.shape[1], x.shape[1]))
    for r in range(len(arrivals)):
        if start <= arrivals[r] < horizon:
            for s in range(len(writes)):
                total += met[r, s] * np.outer(signal[r] * gain[s], x[s])
    return total[:, :-1], total[:, -1]


ACTIVATIONS = {
    "identity": (lambda z: z, np.ones_like),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "softplus": (lambda z: np.log1p(np.exp(z)), lambda z: 1 / (1 + np.exp(-z))),
}


class Layer(NamedTuple):
    """An affine map of every patch of the input, an activation, then a fixed linear map such as pooling.

    `weight`: [out, patch]; `patches`: [positions, patch], places in the flat input, one past its end for padding;
    `pool`: [features, out * positions] or None; `feedback`: weights that errors travel down through, or None.
    """

    weight: np.ndarray
    bias: np.ndarray
    patches: np.ndarray
    activation: str = "identity"
    pool: np.ndarray | None = None
    feedback: np.ndarray | None = None


def dense(linear, activation="identity", feedback=None) -> Layer:
    """The layer of an `eqx.nn.Linear`: one patch, the whole input."""
    weight = np.asarray(linear.weight)
    return Layer(weight, np.asarray(linear.bias), np.arange(weight.shape[1])[None], activation, None, feedback)


def convolution(conv, shape, activation="identity", pool=None) -> Layer:
    """The layer of an `eqx.nn.Conv2d` on an input of `shape` [channels, height, width]."""
    weight = np.asarray(conv.weight)
    (height, width), ((pad, _), _), (stride, _) = weight.shape[2:], conv.padding, conv.stride
    places = np.pad(np.arange(np.prod(shape)).reshape(shape), ((0, 0), (pad, pad), (pad, pad)), constant_values=-1)
    places[places < 0] = np.prod(shape)
    patches = [
        places[:, i : i + height, j : j + width].ravel()
        for i in range(0, places.shape[1] - height + 1, stride)
        for j in range(0, places.shape[2] - width + 1, stride)
    ]
    return Layer(weight.reshape(len(weight), -1), np.asarray(conv.bias).ravel(), np.array(patches), activation, pool)


def average_pool(channels, height, width) -> np.ndarray:
    """Matrix of a 2 x 2 average pool of stride 2."""
    places = np.arange(channels * height * width).reshape(channels, height // 2, 2, width // 2, 2)
    places = places.transpose(0, 1, 3, 2, 4).reshape(-1, 4)
    matrix = np.zeros((len(places), channels * height * width))
    np.put_along_axis(matrix, places, 0.25, axis=1)
    return matrix


class Factors(NamedTuple):
    """What a layer's synapses see: x [time, positions, patch]; f' and ∂ℓ/∂a [time, positions, out]."""

    x: np.ndarray
    derivative: np.ndarray
    error: np.ndarray


def forward(layers, x):
    """Output of the network, and the patches and pre-activations of each layer; `x` is [time, features]."""
    recorded = []
    for layer in layers:
        cut = np.concatenate([x, np.zeros((len(x), 1))], axis=1)[:, layer.patches]
        z = cut @ layer.weight.T + layer.bias
        recorded.append((x.shape[1], cut, z))
        x = ACTIVATIONS[layer.activation][0](z).transpose(0, 2, 1).reshape(len(x), -1)
        x = x if layer.pool is None else x @ layer.pool.T
    return x, recorded


def backward(layers, x, error):
    """Factors of each layer and the input's gradient, errors travelling down undelayed from ∂ℓ/∂output `error`."""
    _, recorded = forward(layers, x)
    factors = []
    for layer, (inputs, cut, z) in zip(layers[::-1], recorded[::-1], strict=True):
        error = error if layer.pool is None else error @ layer.pool
        error = error.reshape(len(x), len(layer.bias), -1).transpose(0, 2, 1)
        derivative = ACTIVATIONS[layer.activation][1](z)
        factors.insert(0, Factors(cut, derivative, error))
        down = (derivative * error) @ (layer.weight if layer.feedback is None else layer.feedback)
        error = np.zeros((len(x), inputs + 1))  # the last one for padding
        for position, places in enumerate(layer.patches):
            np.add.at(error, (slice(None), places), down[:, position])
        error = error[:, :inputs]
    return factors, error


def gain_and_signal(form, factors, error_gate=0.0):
    """The table of forms, and the gate on ‖∂ℓ/∂a‖² of each step."""
    derivative, error = factors.derivative, factors.error
    gain = {"activation": derivative, "preactivation": np.ones_like(derivative), "authors_linear": derivative}[form]
    signal = {"activation": error, "preactivation": derivative * error, "authors_linear": derivative * error}[form]
    if error_gate > 0:
        opened = [np.sum(row**2) > error_gate for row in error]
        gain = gain * np.reshape(opened, (-1, 1, 1))
    return gain, signal


def update(trace, delay_steps, factors, form="activation", error_gate=0.0, horizon=None, signal=None):
    """A layer's gradient over one segment: the double loop, summed over the positions that share its weights."""
    gain, learning = gain_and_signal(form, factors if signal is None else factors._replace(error=signal), error_gate)
    arrivals = np.arange(len(gain)) + delay_steps
    horizon = len(gain) if horizon is None else horizon
    at = [
        double_loop(trace, factors.x[:, p], gain[:, p], learning[:, p], arrivals, horizon=horizon)
        for p in range(gain.shape[1])
    ]
    return sum(weight for weight, _ in at), sum(bias for _, bias in at)


class OnlineLayer:
    """A layer that lives one step at a time: all its past Hebbian factors, and the signals still under way."""

    def __init__(self, trace, delay_steps, form):
        self.trace, self.delay_steps, self.form = trace, delay_steps, form
        self.past, self.under_way, self.now = [], {}, -1

    def step(self, factors):
        """Gradient -L(t) ∘ trace(t) of this step alone, [out, patch + 1], from the factors of one step."""
        self.now += 1
        gain, signal = gain_and_signal(self.form, factors)
        x = np.append(factors.x[0, 0], 1.0)
        self.past.append(np.outer(gain[0, 0], x))
        self.under_way[self.now + self.delay_steps] = signal[0, 0]
        arrived = self.under_way.pop(self.now, np.zeros(gain.shape[-1]))
        lags = self.now - np.arange(self.now + 1)
        remembered = sum(w * e for w, e in zip(weights(self.trace, lags), self.past, strict=True))
        return arrived[:, None] * remembered
