"""Impulse responses written down from scipy and numpy alone, in steps: what kernels and traces are compared with."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from cetsim import CascadingTrace, DelayLine, DoubleExponentialTrace, ExponentialTrace, FIRTrace

DT = 0.2
READS = ("before", "after")
NORMALIZATIONS = ("area", "peak")


def held_step(lags, read):
    """Ends of the step over which the input at each lag was held, as seen from the read."""
    end = np.maximum(np.asarray(lags, float) + (read == "after"), 0.0)
    return np.maximum(end - 1.0, 0.0), end


def cascade_rate(order, delay, read):
    return (order - 1) / (delay + (0.5 if read == "after" else -0.5))


def cascade(lags, order, delay, read, normalization="area"):
    """Difference of the gamma distribution's values; of its complement above the mean, where P is near 1."""
    rate = cascade_rate(order, delay, read)
    start, end = (rate * t for t in held_step(lags, read))
    below = special.gammainc(order, end) - special.gammainc(order, start)
    above = special.gammaincc(order, start) - special.gammaincc(order, end)
    weights = np.where(end < order, below, above)
    if normalization == "area":
        return weights
    return weights / cascade(np.arange(2 * int(delay) + 3), order, delay, read).max()


def exponential(lags, time_constant, read, normalization="area"):
    q, since = np.exp(-1 / time_constant), np.asarray(lags) - (read == "before")
    return np.where(since >= 0, q ** np.maximum(since, 0.0), 0.0) * (1 - q if normalization == "area" else 1.0)


def double_exponential(lags, decay, rise, ratio, read, normalization="area"):
    def integral(t):
        return ratio * rise * np.exp(-t / rise) - decay * np.exp(-t / decay)

    start, end = held_step(lags, read)
    weights = integral(end) - integral(start)
    if normalization == "area":
        return weights / (decay - ratio * rise)
    start, end = held_step(np.arange(1000), read)
    return weights / np.abs(integral(end) - integral(start)).max()


class Example(NamedTuple):
    """A trace, made when asked for, and its weights: `lags [n] -> [n, *shape]`, in numpy."""

    make: Callable
    weights: Callable


def _example(make, oracle, *parameters, per_neuron):
    """`parameters` are in steps, one list each with an entry for every post-neuron."""
    if not per_neuron:
        parameters = [values[0] for values in parameters]
        return Example(lambda: make(*parameters), lambda lags: oracle(np.asarray(lags), *parameters))
    return Example(
        lambda: make(*map(np.asarray, parameters)),
        lambda lags: np.stack([oracle(np.asarray(lags), *row) for row in zip(*parameters, strict=True)], axis=-1),
    )


def examples(per_neuron=False):
    """Every kind of trace and option, by name; shared or with a kernel for each of three post-neurons."""
    found = {}
    for read, normalization in itertools.product(READS, NORMALIZATIONS):
        options = {"read": read, "normalization": normalization}

        def add(kind, make, oracle, *parameters, options=options):
            found[f"{kind}-{'-'.join(options.values())}"] = _example(
                lambda *p: make(*p, dt=DT, **options),
                lambda lags, *p: oracle(lags, *p, **options),
                *parameters,
                per_neuron=per_neuron,
            )

        for order, delays in {10: [5.0, 1.0, 12.5], 2: [3.0, 1.0, 9.0], 64: [1.0, 4.0, 9.0]}.items():
            if order != 10 and (read == "before") != (normalization == "area"):
                continue  # half of the options for these: every program takes a second to compile
            add(
                f"cascade{order}",
                lambda delay, order=order, **options: CascadingTrace(order, delay * DT, **options),
                lambda lags, delay, order=order, **options: cascade(lags, order, delay, **options),
                delays,
            )
        add("exponential", lambda tau, **o: ExponentialTrace(tau * DT, **o), exponential, [4.0, 0.3, 20.0])
        add(
            "double",
            lambda decay, rise, ratio, **o: DoubleExponentialTrace(decay * DT, rise * DT, ratio, **o),
            double_exponential,
            [8.0, 4.0, 2.0],
            [3.0, 1.0, 5.0],
            [1.0, 2.5, 0.7],
        )
    found["delay_line"] = _example(
        lambda delay: DelayLine(delay * DT, DT, max_delay=8 * DT),
        lambda lags, delay: 1.0 * (lags == delay),
        [3.0, 0.0, 7.0],
        per_neuron=per_neuron,
    )
    taps = np.random.default_rng(3).normal(size=(3, 6))
    found["fir"] = Example(
        lambda: FIRTrace(taps if per_neuron else taps[0], DT),
        lambda lags: np.pad(taps.T if per_neuron else taps[0], [(0, 10**4)] + per_neuron * [(0, 0)])[lags],
    )
    return found


def filtered(weights, e):
    """Σ_j w_j e_{t-j} at every t, of weights `[time, *kernels]` and activity `[time, *shape]`."""
    weights = weights.reshape(weights.shape + (1,) * (e.ndim - weights.ndim))
    return np.stack([np.sum(weights[: t + 1] * e[t::-1], axis=0) for t in range(len(e))])


@jax.jit
def weights(trace, lags):
    return trace.weights(lags)


@jax.jit
def respond(trace, e):
    """Reads of a trace stepped through activity `[time, *shape]` from an empty state."""
    return jax.lax.scan(lambda state, now: trace.step(state, now), trace.init(e.shape[1:]), e)[1]
