"""What traces cost in a spiking network, next to backprop through time of the same network with the same surrogates.

784 inputs, 256 leaky integrate-and-fire neurons and a leaky readout of 10, 16 sequences of 1,000 steps. A step with
traces walks through segments of a stream, each of which forgets what lies further back than its traces reach;
backprop through time keeps all 1,000 steps.
"""

import contextlib
import statistics
import subprocess
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import cetsim
from benchmarks import measure
from benchmarks.programs import optimizer
from cetsim import spiking

BATCH, STEPS, SEGMENT, DT = 16, 1000, 250, 0.01
SIZES, DELAY, ORDER = (784, 256, 10), 0.2, 10


class Network(eqx.Module):
    """One hidden layer of neurons and a leaky readout."""

    hidden: spiking.SpikingLayer
    readout: spiking.SpikingLayer

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.hidden = spiking.SpikingLayer(*SIZES[:2], spiking.LIF(0.05, 0.1, DT), errors="instant", key=one)
        self.readout = spiking.SpikingLayer(*SIZES[1:], spiking.LeakyIntegrator(0.05, DT), errors="instant", key=two)

    def init(self):
        """Neurons at rest."""
        return self.hidden.init(), self.readout.init()

    def __call__(self, x, states):
        """Logits of one step, and the neurons after the segment."""
        spikes, hidden = self.hidden.run(x, states[0])
        logits, readout = self.readout.run(spikes, states[1])
        return logits, (hidden, readout)


def loss(model, x, labels, neurons):
    """Mean cross-entropy over sequences and all `STEPS` steps, of those in `x` `[batch, time, in]`; and the neurons."""
    over_time = jax.vmap(Network.__call__, (None, 0, None), (0, None), axis_name="time")
    logits, neurons = jax.vmap(over_time, (None, 0, 0))(model, x.astype(jnp.float32), neurons)
    labels = jnp.broadcast_to(labels[:, None], logits.shape[:2])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses) / (BATCH * STEPS), neurons


def at_rest(model):
    """The neurons of all sequences."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (BATCH, *leaf.shape)), model.init())


def backprop(model, x, labels):
    """Gradient through all steps."""
    return eqx.filter_grad(lambda model: loss(model, x, labels, at_rest(model))[0])(model)


def traced(model, x, labels):
    """The update of CET(10), signals and peak 0.2 s late, segment by segment."""
    trace, late = cetsim.CascadingTrace(ORDER, DELAY, DT), cetsim.FixedDelay(DELAY, DT)
    model = cetsim.attach(model, trace, late, boundary="carry")
    stream = cetsim.streaming_init(model, x[0, 0].astype(jnp.float32), model.init(), batch=BATCH)

    def body(carry, start):
        stream, neurons, total = carry
        segment = jax.lax.dynamic_slice_in_dim(x, start, SEGMENT, axis=1)
        differentiate = cetsim.streaming_value_and_grad(loss, has_aux=True)
        (_, neurons), grads, stream = differentiate(model, stream, segment, labels, neurons)
        grads = eqx.filter(cetsim.detach(grads), eqx.is_inexact_array)
        return (stream, neurons, jax.tree.map(jnp.add, total, grads)), None

    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(cetsim.detach(model), eqx.is_inexact_array))
    return jax.lax.scan(body, (stream, at_rest(model), nothing), jnp.arange(0, STEPS, SEGMENT))[0][2]


def step_with(gradient):
    """A training step by `gradient(model, x, labels)`."""
    template = eqx.filter(Network(jax.random.key(0)), eqx.is_inexact_array, inverse=True)

    def step(params, state, x, labels):
        grads = gradient(eqx.combine(params, template), x, labels)
        updates, state = optimizer().update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@contextlib.contextmanager
def in_snntorch(python: Path):
    """A function that makes a step in snnTorch, by another Python, in a process that stays."""
    command = [python, Path(__file__).with_name("spiking_snntorch.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def step() -> None:
            process.stdin.write("\n")
            process.stdin.flush()
            if process.stdout.readline() != "done\n":
                raise RuntimeError(f"snnTorch made no step: {command[1]} ended with {process.wait()}")

        yield step
        process.stdin.close()


def cost_of_a_spiking_step(rounds: int, other: Path | None = None) -> list[dict]:
    """Time and peak memory of a step with traces as multiples of backprop through time; `other`: has snnTorch."""
    params = eqx.filter(Network(jax.random.key(0)), eqx.is_inexact_array)
    x = jax.random.uniform(jax.random.key(1), (BATCH, STEPS, SIZES[0])) < 0.1
    labels = jax.random.randint(jax.random.key(2), (BATCH,), 0, SIZES[-1])
    arguments = params, optimizer().init(params), x, labels
    calls, memory = {}, {}
    for name, gradient in (("backprop through time", backprop), ("traces", traced)):
        program = jax.jit(step_with(gradient)).lower(*arguments).compile()
        calls[name] = partial(program, *arguments)
        memory[name] = measure.peak_bytes(program) / 2**20
    with contextlib.nullcontext() if other is None else in_snntorch(other) as theirs:
        calls |= {} if theirs is None else {"snnTorch": theirs}
        times, (base, ours) = measure.interleaved(calls, rounds, 1), memory
    peers = [
        {
            "name": f"spiking step, {name} / snnTorch's backprop through time",
            "value": measure.ratio(times, name, "snnTorch"),
            "unit": "x time",
            "wanted": "-",
            "from": {"seconds": {name: statistics.median(own) for name, own in times.items()}},
        }
        for name in (memory if "snnTorch" in times else ())
    ]
    return [
        *peers,
        {
            "name": "spiking step, traces / backprop through time",
            "value": measure.ratio(times, ours, base),
            "unit": "x time",
            "wanted": "at most 1.25",
            "from": {"seconds": {name: statistics.median(own) for name, own in times.items()}},
        },
        {
            "name": "spiking step, traces / backprop through time",
            "value": memory[ours] / memory[base],
            "unit": "x peak memory",
            "wanted": "at most 0.5",
            "from": {"MiB": memory},
        },
    ]
