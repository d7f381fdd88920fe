"""Layers written out in numpy, and the update of their weights from the definition: e(t) = f'(z(t)) ∂z(t)/∂W."""

import itertools

import numpy as np
import rule_oracles as oracles


def convolution(x, weight, stride, padding, dilation, groups):
    """z[o, p] = Σ_ck W[o, c, k] x[c of o's group, stride p + dilation k - padding], in any number of dimensions."""
    x = np.pad(x, ((0, 0), *padding))
    size = [1 + (n - d * (k - 1) - 1) // s for n, k, s, d in zip(x.shape[1:], weight.shape[2:], stride, dilation)]  # noqa: B905
    z = np.zeros((len(weight), *size))
    each = weight.shape[1]
    for o, c in itertools.product(range(len(weight)), range(each)):
        channel = x[o * groups // len(weight) * each + c]
        for p in itertools.product(*map(range, size)):
            for k in itertools.product(*map(range, weight.shape[2:])):
                at = tuple(s * i + d * j for s, i, d, j in zip(stride, p, dilation, k))  # noqa: B905
                z[(o, *p)] += weight[(o, c, *k)] * channel[at]
    return z


def conv(layer, x, weight):
    """What an `eqx.nn.Conv` with a padding of numbers makes of `x` without its bias."""
    padding = [(0, 0)] * layer.num_spatial_dims if layer.padding_mode != "ZEROS" else layer.padding
    if layer.padding_mode == "CIRCULAR":
        x = np.pad(x, ((0, 0), *layer.padding), mode="wrap")
    return convolution(x, weight, layer.stride, padding, layer.dilation, layer.groups)


def transposed(layer, x, weight):
    """An `eqx.nn.ConvTranspose`: zeros between the inputs, then a convolution of stride 1."""
    spread = np.zeros((len(x), *(s * (n - 1) + 1 for s, n in zip(layer.stride, x.shape[1:]))))  # noqa: B905
    spread[(slice(None), *(slice(None, None, s) for s in layer.stride))] = x
    sizes = zip(layer.kernel_size, layer.dilation, layer.padding, layer.output_padding, strict=True)
    padding = [(d * (k - 1) - low, d * (k - 1) - high + more) for k, d, (low, high), more in sizes]
    return convolution(spread, weight, (1,) * len(padding), padding, layer.dilation, layer.groups)


def linear(layer, x, weight):
    """W x."""
    return weight @ np.reshape(x, weight.shape[1])


def embedding(layer, x, weight):
    """The row of the table at place x."""
    return weight[int(x)]


def update(layer, apply, x, target, trace, delay_steps, form="activation"):
    """Gradients of weight, bias and input of `tanh(layer(x))` under ½ Σ (a - target)², by loops.

    The input's is not late: errors travel down at once. An embedding's input has none.
    """
    weight = np.asarray(layer.weight)
    bias = getattr(layer, "bias", None)
    units = np.eye(weight.size).reshape(-1, *weight.shape)
    slopes = np.stack([np.stack([apply(layer, row, unit).ravel() for unit in units], axis=-1) for row in x])
    z = np.stack([apply(layer, row, weight) + (0 if bias is None else np.asarray(bias)) for row in x])
    channels = np.reshape(np.arange(z[0].size) // (z[0].size // len(np.atleast_1d(z[0]))), -1)
    if bias is not None:  # a synapse whose input is 1
        ones = np.eye(bias.size)[channels] if z[0].ndim else np.ones((1, 1))
        slopes = np.concatenate([slopes, np.broadcast_to(ones, (len(x), *ones.shape))], axis=-1)
    z = z.reshape(len(x), -1)
    derivative, error = 1 - np.tanh(z) ** 2, np.tanh(z) - np.asarray(target).reshape(z.shape)
    gain = np.ones_like(z) if form == "preactivation" else derivative
    signal = error if form == "activation" else derivative * error
    total = np.zeros(slopes.shape[-1])
    for r, s in itertools.product(range(len(x)), repeat=2):
        if r + delay_steps < len(x):
            met = oracles.weights(trace, [r + delay_steps - s])[0]
            total += met * (signal[r] * gain[s]) @ slopes[s]
    bias = None if bias is None else total[weight.size :].reshape(bias.shape)
    return total[: weight.size].reshape(weight.shape), bias, _errors_below(layer, apply, x, derivative * error)


def _errors_below(layer, apply, x, error):
    """∂ℓ/∂x of every step, from ∂ℓ/∂z, by what each entry of the input adds to z."""
    shape, size = np.shape(x)[1:], np.size(x[0])
    if hasattr(layer, "num_embeddings"):
        return None
    each = np.stack([apply(layer, unit.reshape(shape), np.asarray(layer.weight)).ravel() for unit in np.eye(size)])
    return (error @ each.T).reshape(np.shape(x))
