"""Learning as it goes: `SupervisedRun` in the mode carry is a literal simulation, one step of time after another.

The simulation is numpy from the definitions: every synapse keeps its own trace, stepped through time; errors wait in a
queue until they are due; weights change by an AdamW written out here. It shares with the library the trace's `step`,
the schedule of the learning rate, initial weights and the order of the images.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cetsim
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun

DT, LATE = 0.2, 3  # signals come 3 steps late
SIZES = (6, 5, 3)
STEPS = 40  # of time
RATE, DECAY = 0.03, 0.01
TRACES = {
    "CET(3)": cetsim.CascadingTrace(3, LATE * DT, DT),
    "ET": cetsim.ExponentialTrace(LATE * DT, DT),
    "delay line": cetsim.DelayLine(LATE * DT, DT),
}
ACTIVATIONS = {
    "tanh": (jnp.tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (jax.nn.relu, lambda z: np.maximum(z, 0.0), lambda z: (z > 0) * 1.0),
}
FORMS = ("activation", "preactivation", "authors_linear")
GATE = 0.4  # of the errors of single steps: closes on about half of them


class Online:
    """A network with one hidden layer that lives one step of time at a time."""

    def __init__(self, weights, trace, activation, form, gate, settings):
        self.weights = [np.array(w) for w in weights]  # [out, in + 1] of each layer, the bias last
        self.trace, self.activation, self.form, self.gate = trace, activation, form, gate
        self.settings = settings
        self.traces = [trace.init(w.shape, compensated=False) for w in self.weights]
        self.queues = [[np.zeros(len(w)) for _ in range(LATE)] for w in self.weights]
        self.summed = [np.zeros_like(w) for w in self.weights]
        self.first, self.second = ([np.zeros_like(w) for w in self.weights] for _ in range(2))
        self.updates, self.closed = 0, []

    def step(self, x, label):
        """What happens in one step of time, without the change of weights."""
        _, f, slope = ACTIVATIONS[self.activation]
        inputs = [np.append(x, 1.0)]
        hidden = self.weights[0] @ inputs[0]
        inputs.append(np.append(f(hidden), 1.0))
        logits = self.weights[1] @ inputs[1]
        odds = np.exp(logits - logits.max())
        error = (odds / odds.sum() - np.eye(len(logits))[label]) / self.settings.segment  # the loss is a batch's mean
        slopes = [slope(hidden), np.ones_like(logits)]
        errors = [self.weights[1][:, :-1].T @ error, error]  # of the activations
        for layer in range(2):
            self._synapses(layer, inputs[layer], slopes[layer], errors[layer])

    def _synapses(self, layer, x, slope, error):
        """Every synapse of a layer: the signal due now meets the trace as it is now."""
        gain = np.ones_like(slope) if self.form == "preactivation" else slope
        signal = error if self.form == "activation" else slope * error
        closed = self.gate > 0 and np.sum(error**2) <= self.gate
        self.closed.append(closed)
        e = np.zeros((len(gain), len(x))) if closed else np.outer(gain, x)
        self.traces[layer], remembered = _step(self.trace, self.traces[layer], e)
        self.queues[layer].append(signal)
        due = self.queues[layer].pop(0)
        self.summed[layer] += due[:, None] * np.asarray(remembered)

    def update(self):
        """Changes the weights by all that was learned since the last time, by AdamW on the clipped gradient."""
        norm = np.sqrt(sum(np.sum(g**2) for g in self.summed))
        # optax counts in int32, of which the schedule is a float32: 1e-8 from one in float64.
        rate = RATE * float(self.settings.schedule(jnp.asarray(self.updates, jnp.int32)))
        self.updates += 1
        share = 1.0 if norm <= self.settings.clip else self.settings.clip / norm
        for i, weights in enumerate(self.weights):
            gradient = share * self.summed[i]
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            mean = self.first[i] / (1 - 0.9**self.updates)
            size = np.sqrt(self.second[i] / (1 - 0.999**self.updates))
            weights -= rate * (mean / (size + 1e-8) + DECAY * weights)
        self.summed = [np.zeros_like(w) for w in self.weights]


@eqx.filter_jit
def _step(trace, state, e):
    return trace.step(state, e)


@eqx.filter_jit
def _advance(run, state):
    return run.advance(state, 1)[0]


def weights_of(params):
    """[out, in + 1] of each layer."""
    layers = [layer for layer in params.layers if isinstance(layer, eqx.nn.Linear)]
    return [np.concatenate([layer.weight, layer.bias[:, None]], axis=1) for layer in layers]


def problem():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, SIZES[-1], 64).astype(np.int32)
    return 1.5 * np.eye(SIZES[-1], SIZES[0])[labels] + rng.normal(size=(64, SIZES[0])), labels


MODELS = {
    name: lambda key, f=f: cetsim.nn.mlp(SIZES, f, key=key)  # made once, so that programs are compiled once
    for name, (f, _, _) in ACTIVATIONS.items()
}


def start(trace, form="activation", gate=0.0, activation="tanh", update_every=1, tabulated=False):
    """A run that has not begun, its simulation, and the images of every step of time, `[updates, update_every]`."""
    settings = Settings(
        steps=STEPS // update_every, segment=update_every, form=form, boundary="carry", clip=0.3, window=STEPS
    )
    run = SupervisedRun(MODELS[activation], *problem(), settings)
    kept = trace.tabulate(STEPS) if tabulated else trace
    hyper = Hyperparameters(RATE, kept, cetsim.FixedDelay(LATE * DT, DT, max_delay=LATE * DT), gate, DECAY)
    state = run.init(hyper, jax.random.key(2))
    online = Online(weights_of(state.params), trace, activation, form, gate, settings)
    return run, state, online, np.asarray(run._frames(state, settings.steps).row)


def assert_same_weights_after_every_update(run, state, online, rows):
    begin, closes = weights_of(state.params), online.gate > 0
    for batch in rows:
        for row in batch:
            online.step(np.asarray(run.x[row]), int(run.labels[row]))
        online.update()
        state = _advance(run, state)
        for mine, theirs in zip(online.weights, weights_of(state.params), strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-10)
    for before, after in zip(begin, online.weights, strict=True):
        assert np.abs(after - before).max() > 0.1  # they have learned
    assert (0.1 < np.mean(online.closed) < 0.9) == closes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_learning_at_every_step(trace, form):
    for gate in (0.0, GATE):
        assert_same_weights_after_every_update(*start(trace, form, gate))


def test_learning_at_every_step_with_rectifiers():
    for form in FORMS[::2]:
        assert_same_weights_after_every_update(*start(TRACES["CET(3)"], form, GATE, "relu"))


@pytest.mark.parametrize("form", FORMS)
def test_learning_every_four_steps_from_tables_of_weights(form):
    """As experiments do it, where all traces share one program; errors of a mean over 4 are a quarter as large."""
    for trace in TRACES.values():
        for gate in (0.0, GATE / 4**2):
            assert_same_weights_after_every_update(*start(trace, form, gate, update_every=4, tabulated=True))
