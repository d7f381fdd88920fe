"""Every number that a public constructor takes, given as users give them: a program, whose output is what went wrong.

It stands beside its test because pytest checks annotated types at every call, and users' programs do not.
"""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import cetsim
from cetsim import datasets, gates, metrics, nn, rl, supervised
from cetsim.datasets import InputOrder

TRACE, LATE = cetsim.CascadingTrace(4, 2.0), cetsim.FixedDelay(2.0)
X, LABELS = np.ones((40, 3), np.float32), np.arange(40) % 2
DATASET = datasets.Dataset(
    "small", X[:, :, None, None], LABELS.astype(np.int32), X[:2, :, None, None], np.zeros(2, np.int32)
)
RUN = supervised.SupervisedRun(
    lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key), X, LABELS, supervised.Settings(steps=4, segment=8)
)


def split(fraction=0.5, seed=0):
    return datasets.split_validation(DATASET, fraction, seed)


def agent(**options):
    return rl.Hyperparameters(**{"learning_rate": 0.5, "trace": TRACE, "delay": LATE} | options)


def conv(**options):
    options = {"in_channels": 1, "out_channels": 1} | options
    return nn.Conv2d(**options, layout="channels_first", key=jax.random.key(0))


def cnn(**options):
    made = nn.cnn((1, 2, 2), (1,), **{"hidden": 2, "classes": 2} | options, key=jax.random.key(0))
    return made.layers[-1], made.layers[-3]


def norm(**options):
    # Its index is another in every one that is made.
    made = nn.BatchNorm(2, layout="channels_first", **options)
    return made.memory, made.eps


def settings(**options):
    return supervised.Settings(**{"steps": 10} | options)


# (function, argument, a value that is right, other arguments)
NUMBERS = [
    (cetsim.CascadingTrace, "delay", 2.0, {}),
    (cetsim.CascadingTrace, "dt", 0.5, {}),
    (cetsim.FirstStageCascade, "delay", 2.0, {}),
    (cetsim.CascadingTrace.from_rate, "rate", 2.0, {}),
    (cetsim.CascadingTrace.from_rate, "dt", 0.5, {"rate": 1.0}),
    (cetsim.ExponentialTrace, "time_constant", 2.0, {}),
    (cetsim.ExponentialTrace, "dt", 0.5, {}),
    (cetsim.ExponentialTrace.from_decay, "decay", 0.5, {}),
    (cetsim.ExponentialTrace.from_decay, "dt", 0.5, {"decay": 0.5}),
    (cetsim.DoubleExponentialTrace, "decay", 8.0, {}),
    (cetsim.DoubleExponentialTrace, "rise", 1.0, {}),
    (cetsim.DoubleExponentialTrace, "ratio", 0.5, {}),
    (cetsim.DoubleExponentialTrace, "dt", 0.5, {}),
    (cetsim.DelayLine, "delay", 2.0, {}),
    (cetsim.DelayLine, "dt", 0.5, {}),
    (cetsim.DelayLine, "max_delay", 8.0, {}),
    (cetsim.FIRTrace, "dt", 0.5, {"taps": [1.0]}),
    (cetsim.FixedDelay, "delay", 2.0, {}),
    (cetsim.FixedDelay, "dt", 0.5, {}),
    (cetsim.FixedDelay, "max_delay", 8.0, {}),
    (cetsim.RandomDelay, "mean", 2.0, {"spread": 1.0}),
    (cetsim.RandomDelay, "spread", 1.0, {"mean": 2.0}),
    (cetsim.RandomDelay, "dt", 0.5, {"mean": 2.0, "spread": 1.0}),
    (cetsim.RandomDelay, "max_delay", 8.0, {"mean": 2.0, "spread": 1.0}),
    (cetsim.LayerwiseDelay.stacked, "per_layer", 2.0, {"layers": 2}),
    (cetsim.LayerwiseDelay.stacked, "dt", 0.5, {"per_layer": 2.0, "layers": 2}),
    (cetsim.LayerwiseDelay.stacked, "max_per_layer", 8.0, {"per_layer": 2.0, "layers": 2}),
    (gates.QuantileGate, "fraction", 0.5, {}),
    (gates.RandomGate, "fraction", 0.5, {}),
    (gates.ThresholdGate, "threshold", 2.0, {}),
    (gates.ThresholdGate, "room", 0.5, {"threshold": 1.0}),
    (gates.RunningGate, "fraction", 0.5, {}),
    (gates.RunningGate, "rate", 0.5, {}),
    (gates.RunningGate, "start", 2.0, {}),
    (gates.RunningGate, "room", 0.5, {}),
    (supervised.Hyperparameters, "learning_rate", 0.5, {"trace": TRACE, "delay": LATE}),
    (supervised.Hyperparameters, "error_gate", 0.5, {"learning_rate": 0.5, "trace": TRACE, "delay": LATE}),
    (supervised.Hyperparameters, "weight_decay", 0.5, {"learning_rate": 0.5, "trace": TRACE, "delay": LATE}),
    (supervised.backprop, "learning_rate", 0.5, {}),
    (supervised.backprop, "dt", 0.5, {"learning_rate": 0.5}),
    (settings, "warmup", 0.5, {}),
    (settings, "floor", 0.5, {}),
    (settings, "clip", 2.0, {}),
    (split, "fraction", 0.5, {}),
    (agent, "learning_rate", 0.5, {}),
    (agent, "discount", 0.5, {}),
    (agent, "lam", 0.5, {}),
    (agent, "entropy", 0.5, {}),
    (agent, "value", 0.5, {}),
    (agent, "critic_rate", 0.5, {}),
    (rl.Settings, "clip", 2.0, {"updates": 3}),
    (norm, "memory", 2.0, {}),
    (norm, "eps", 0.5, {}),
    (TRACE.window, "tail", 0.5, {}),
]
WHOLE = [
    (cetsim.CascadingTrace, "order", 3, {}),
    (cetsim.FirstStageCascade, "order", 3, {}),
    (cetsim.CascadingTrace.from_rate, "order", 3, {"rate": 1.0}),
    (TRACE.tabulate, "size", 3, {}),
    (cetsim.LayerwiseDelay.stacked, "layers", 3, {"per_layer": 2.0}),
    (cetsim.Events, "steps", 3, {"times": [0, 2]}),
    (InputOrder, "run_length", 3, {}),
    (InputOrder, "interpolation", 3, {}),
    (settings, "steps", 3, {}),
    (settings, "segment", 3, {}),
    (settings, "window", 3, {}),
    (split, "seed", 3, {}),
    (rl.Settings, "updates", 3, {}),
    (rl.Settings, "environments", 3, {"updates": 3}),
    (rl.Settings, "rollout", 3, {"updates": 3}),
    (rl.Settings, "window", 3, {"updates": 3}),
    (conv, "in_channels", 3, {}),
    (conv, "out_channels", 3, {}),
    (conv, "kernel_size", 3, {}),
    (conv, "stride", 3, {}),
    (cnn, "hidden", 3, {}),
    (cnn, "classes", 3, {}),
    (lambda sizes: nn.mlp((2, sizes, 2), key=jax.random.key(0)), "sizes", 3, {}),
    (lambda top: metrics.accuracy(jnp.eye(4), jnp.arange(4), top), "top", 3, {}),
    (lambda steps: RUN.settings.shown.frames(jax.random.key(0), RUN.labels, 0, steps, 8), "steps", 3, {}),
    (lambda batch: RUN.settings.shown.frames(jax.random.key(0), RUN.labels, 0, 3, batch), "batch", 3, {}),
]
FLAGS = [
    (cetsim.FixedDelay, "keep_late", True, {}),
    (cetsim.RandomDelay, "keep_late", True, {"mean": 2.0, "spread": 1.0}),
    (InputOrder, "flip", True, {}),
    (rl.Settings, "late_critic", True, {"updates": 3}),
]
# Arguments that may be arrays, one entry a post-neuron.
ARRAYS = [
    (cetsim.CascadingTrace, "delay", [2.0, 3.0], {}),
    (cetsim.CascadingTrace.from_rate, "rate", [2.0, 3.0], {}),
    (cetsim.ExponentialTrace, "time_constant", [2.0, 3.0], {}),
    (cetsim.ExponentialTrace.from_decay, "decay", [0.5, 0.25], {}),
    (cetsim.DoubleExponentialTrace, "ratio", [0.5, 0.25], {}),
    (cetsim.DelayLine, "delay", [2.0, 3.0], {}),
    (cetsim.FIRTrace, "taps", [2.0, 3.0], {}),
    (TRACE.weights, "lags", [2.0, 3.0], {}),
]


class Tensor:
    """What another library's array is to NumPy."""

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)


def as_column(value):
    """A pandas column of Python objects, or the plain list where there is no pandas."""
    try:
        import pandas
    except ImportError:
        return value
    return pandas.Series(value, dtype=object)


def wrong_numbers(value):
    text = str(value)
    masked = np.ma.masked_array([value, value], [False, True])
    many = [text, np.str_(text), text.encode(), True, np.bool_(True), 1j, {}, (), [value, text], masked]
    return [*many, np.timedelta64(2, "s"), np.array(text), jax.random.key(0), float("nan"), np.float64(1e300)]


def wrong_wholes(value):
    return [str(value), value + 0.5, float(value), np.float32(value), True, np.bool_(True), [value], 1j, {}, -1]


WRONG = {"numbers": wrong_numbers, "whole": wrong_wholes, "flags": lambda value: ["false", 0, 1, 1.0, [], "True"]}
RIGHT = {
    "numbers": lambda v: [
        np.float32(v),
        np.float64(v),
        np.array(v),
        jnp.asarray(v),
        *([int(v)] if v == int(v) else []),
    ],
    "whole": lambda v: [np.int64(v), np.uint8(v), np.array(v), jnp.int32(v)],
    "flags": lambda v: [np.bool_(v)],
    "arrays": lambda v: [tuple(v), np.array(v), np.float32(v), jnp.asarray(v), Tensor(v), as_column(v)],
}


def faults_of(kind, function, name, value, others):
    """In words, the wrong values that are taken or refused otherwise than in a line, and right ones that are not."""
    label = f"{getattr(function, '__qualname__', function)}({name}="
    for wrong in WRONG[kind](value) if kind in WRONG else [[str(v) for v in value], [[value[0]], value], None]:
        try:
            function(**{name: wrong}, **others)
        except ValueError as error:
            if f"`{name}`" not in str(error) or "\n" in str(error):
                yield f"{label}{wrong!r}): {error}"
        except Exception as error:
            yield f"{label}{wrong!r}): {type(error).__name__}: {error}"
        else:
            yield f"{label}{wrong!r}): taken"
    expected = function(**{name: value}, **others)
    for right in RIGHT[kind](value):
        try:
            same = eqx.tree_equal(function(**{name: right}, **others), expected)
        except Exception as error:
            yield f"{label}{right!r}): {type(error).__name__}: {error}"
        else:
            if not same:
                yield f"{label}{right!r}): not the same as of {value!r}"


def main():
    tables = {"numbers": NUMBERS, "whole": WHOLE, "flags": FLAGS, "arrays": ARRAYS}
    print(json.dumps([fault for kind, table in tables.items() for row in table for fault in faults_of(kind, *row)]))


if __name__ == "__main__":
    main()
