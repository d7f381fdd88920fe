"""Where jax is told to promote no dtype by itself, all works as where it does, in either precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim import gates, metrics
from cetsim.datasets import InputOrder
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun

TRACES = {
    "cascade": lambda **o: cetsim.CascadingTrace(4, 1.0, **o),
    "wide": lambda **o: cetsim.CascadingTrace(8, 10.0, **o),
    "per_neuron": lambda **o: cetsim.CascadingTrace(3, [1.0, 2.0, 3.0], **o),
    "rate": lambda **o: cetsim.CascadingTrace.from_rate(3.0, 4, **o),
    "exponential": lambda **o: cetsim.ExponentialTrace(1.0, **o),
    "decay": lambda **o: cetsim.ExponentialTrace.from_decay(0.9, **o),
    "double": lambda **o: cetsim.DoubleExponentialTrace(1.0, 0.5, **o),
    "first_stage": lambda **o: cetsim.FirstStageCascade(4, 1.0, **o),
    "line": lambda **_: cetsim.DelayLine(1.0),
    "fir": lambda **_: cetsim.FIRTrace([0.0, 1.0, 0.5]),
}
GATES = {
    "all": lambda: gates.NoGate(),
    "quantile": lambda: gates.QuantileGate(0.1, "random"),
    "random": lambda: gates.RandomGate(0.1),
    "threshold": lambda: gates.ThresholdGate(0.5),
    "running": lambda: gates.RunningGate(0.1),
}
X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
LABELS = np.arange(24) % 3
PRECISIONS = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])


def make_model(key):
    return cetsim.nn.mlp((5, 4, 3), key=key)


def hyper():
    return Hyperparameters(1e-2, cetsim.DelayLine(0.4), cetsim.FixedDelay(0.4))


def same_in_strict(make, use, x64):
    """Traces `use(make())` with and without jax's own promotion, which is decided while tracing: no need to compute."""
    shapes = []
    with jax.enable_x64(x64):
        for promotion in ("standard", "strict"):
            with jax.numpy_dtype_promotion(promotion):
                made = make()
                shapes.append(eqx.filter_eval_shape(lambda made=made: use(made)))
    assert eqx.tree_equal(*shapes)


def everything(trace):
    state = trace.init((3,))
    steps = [trace.step(state, e) for e in (jnp.ones(3), np.ones(3), np.ones(3, np.uint8), np.ones(3, bool), X[0, :3])]
    lags = np.arange(9), jnp.arange(9), jnp.arange(9.0), 3, [1.5, 2.0]
    return [trace.weights(each) for each in lags], steps, trace.system(), trace.window(), trace.tabulate(9)


@PRECISIONS
@pytest.mark.parametrize("options", [{}, {"normalization": "peak", "read": "after"}], ids=["default", "peak-after"])
@pytest.mark.parametrize("name", TRACES)
def test_traces(name, options, x64):
    same_in_strict(lambda: TRACES[name](**options), everything, x64)


@PRECISIONS
@pytest.mark.parametrize("name", GATES)
def test_gates(name, x64):
    for dtype in (np.float32, np.float64):
        loss = np.linspace(0.0, 3.0, 20).astype(dtype)

        def select(gate, loss=loss):
            return gate.select(jnp.asarray(loss), gate.init(), jax.random.key(0))

        same_in_strict(GATES[name], select, x64)


@PRECISIONS
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_input_orders(dtype, x64):
    images = np.random.default_rng(1).integers(0, 9, (24, 1, 3, 5)).astype(dtype)

    def show(kind):
        labels = jnp.asarray(LABELS)
        return kind.show(kind.frames(jax.random.key(0), labels, jnp.zeros((), int), 3, 8), jnp.asarray(images), labels)

    same_in_strict(lambda: InputOrder(2, 3, flip=True), show, x64)


@PRECISIONS
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_metrics(dtype, x64):

    def measure(labels):
        logits = jnp.asarray(X)
        cosine = metrics.cosine(logits[0], logits[1])
        return cosine, [metrics.accuracy(logits, jnp.asarray(labels), top) for top in (1, 2)]

    same_in_strict(lambda: LABELS.astype(dtype), measure, x64)


@PRECISIONS
@pytest.mark.parametrize("boundary", ["reset", "carry"])
@pytest.mark.parametrize("x", [X, X.astype(np.float64), X > 0, (X > 0).astype(np.uint8)], ids=lambda x: str(x.dtype))
def test_runs_begin_and_are_evaluated(x, boundary, x64):
    """Images of any precision, into a model of that of jax."""

    def make():
        settings = Settings(steps=4, segment=8, boundary=boundary)
        return SupervisedRun(make_model, x, LABELS, settings), hyper()

    def use(made):
        training, hyper = made
        state = training.init(hyper, jax.random.key(0))
        return training.evaluate(state, x, LABELS), training.settings.schedule(jnp.zeros(()))

    same_in_strict(make, use, x64)


@PRECISIONS
def test_an_update_is_applied(x64):
    """All of an update but the rule: the optimizer with its schedule, and the counts."""

    def update(made):
        training, hyper = made
        state = training.init(hyper, jax.random.key(0))
        return training._updated(state, jnp.ones(()), jax.tree.map(jnp.ones_like, state.params), {}).params

    make = lambda: (SupervisedRun(make_model, X, LABELS, Settings(steps=4, segment=8)), hyper())  # noqa: E731
    same_in_strict(make, update, x64)
