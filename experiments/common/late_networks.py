"""Networks that learn by backprop and from late credit, from one start and one order of images, and their controls."""

import hashlib
import json
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import cetsim
from cetsim import datasets, interpret, supervised
from experiments.common import inside, plots
from experiments.common.conditions import Condition
from experiments.common.hyperparameters import hyperparameters

LATE = {"delay line": ("delay line", 0), "CET(10)": ("CET", 10), "balanced(10)": ("balanced", 10), "ET": ("ET", 1)}
STOPPED = {f"stopped at {name}": LATE[name] for name in ("balanced(10)", "CET(10)", "ET")}
PAIRS = (*LATE, *STOPPED, "another seed", "untrained")
STYLES = (
    {name: plots.styles([rule])[rule] for name, rule in ({"backprop": ("backprop", 0)} | LATE).items()}
    | {
        name: plots.styles([rule])[rule] | dict(linestyle=":", markerfacecolor="white")
        for name, rule in STOPPED.items()
    }
    | {
        name: dict(color=colour, marker=marker, linestyle="--")
        for name, colour, marker in (("another seed", "#000000", "x"), ("untrained", "#CC79A7", "v"))
    }
)  # of networks in figures
NETWORKS = "checkpoints/networks"  # those that were trained, in the experiment's folder
PIXELS = 16  # of an image, the same in all, that are looked at behind a convolution


def kept(options, data, networks: Callable, pair: str, seed: int):
    """`network`, where an interrupted one has left it in a file: of CIFAR-10 it takes a quarter of an hour."""
    if pair in ("untrained", "another seed"):
        return network(options, data, networks, pair, seed)
    names = ("dataset", "hidden", "network_steps", "delay", "learning_rate", "run_length")
    which = [pair, seed, *(getattr(options, name) for name in names)]
    name = hashlib.sha256(json.dumps(which).encode()).hexdigest()[:16]
    path = options.folder / NETWORKS / f"{name}.eqx"
    if path.exists():
        like = networks("untrained", seed)[0]
        (model, state), accuracy = cetsim.load(path, ((like.model, like.state), 0.0))
        return like._replace(model=model, state=state), accuracy
    found, accuracy = network(options, data, networks, pair, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    cetsim.save(path, ((found.model, found.state), accuracy))
    return found, accuracy


def network(options, data, networks: Callable, pair: str, seed: int):
    """The network of a rule, or of a control, and its test accuracy; `networks(pair, seed)` gives others.

    "stopped at CET(10)" is backprop's, when it is as accurate as CET(10)'s: after the update that comes nearest on the
    way there.
    """
    if pair == "another seed":
        return networks("backprop", seed + 1000)
    convolves, order = options.dataset == "cifar10", datasets.InputOrder(options.run_length)
    make = inside.cnn(10) if convolves else inside.mlp(data.train_x[0].size, options.hidden, 10)
    form = "authors" if convolves else "authors_linear"
    settings = supervised.Settings(steps=options.network_steps, form=form, input_order=order)
    run = supervised.SupervisedRun(make, data.train_x, data.train_y, settings)
    tested = [slice(i, i + 1000) for i in range(0, len(data.test_y), 1000)]
    weights = [len(data.test_y[part]) for part in tested]

    def score(state):
        each = [float(_accuracy(run, state, data.test_x[part], data.test_y[part])) for part in tested]
        return float(np.average(each, weights=weights))

    aim = networks(stopped_at(pair), seed)[1] if pair in STOPPED else None
    state = learned(run, options, pair, seed, score, aim, unroll=convolves)
    return inside.finished(make, seed, state, data.train_x), score(state)


def stopped_at(pair: str) -> str:
    """The rule as accurate as which backprop is stopped."""
    return pair.removeprefix("stopped at ")


def learned(run, options, pair: str, seed: int, score: Callable, aim: float | None, unroll: bool = False):
    """The state of a supervised run that learned by a rule, or as a control: stopped where its `score` is `aim`."""
    trace, order = LATE.get(pair, ("backprop", 0))
    late, gate = (options.delay, 1e-8) if pair in LATE else (0.0, 0.0)
    condition = Condition(trace, order, late, options.learning_rate, seed, peak_s=late, error_gate=gate)
    state = run.init(hyperparameters(condition), jax.random.key(seed))
    ahead = lambda state, steps: inside.advance(run, state, steps, unroll)  # noqa: E731
    if pair in STOPPED:
        return stopped(ahead, score, state, aim, options.network_steps)
    return state if pair == "untrained" else ahead(state, options.network_steps)


def stopped(ahead: Callable, score: Callable, state, aim: float, most: int):
    """The state on the way to a score, of the last before it and the first behind it the one that is nearer.

    Steps are doubled until the aim is reached, and halved between there and the state before; where scores go up and
    down, this is one of several places where they pass it. Where they never do, the nearer of the last two looked at.
    """
    before = after = (score(state), state)  # scored once each: of a CNN that takes as long as a hundred steps
    apart = steps = 0
    while after[0] < aim and steps < most:
        apart = min(max(1, 2 * apart), most - steps)
        there = ahead(after[1], apart)
        before, after, steps = after, (score(there), there), steps + apart
    while apart > 1 and after[0] >= aim:
        half = apart // 2
        there = ahead(before[1], half)
        if (found := score(there)) < aim:
            before, apart = (found, there), apart - half
        else:
            after, apart = (found, there), half
    return min(after, before, key=lambda one: abs(one[0] - aim))[1]


# Runs and networks are arguments, not closures: those of one shape share a program.
_accuracy = eqx.filter_jit(lambda run, state, x, labels: run.evaluate(state, x, labels)["accuracy"])


@eqx.filter_jit
def _seen(model, state: tuple, sites: tuple, x):
    capture = interpret.capture(model, list(sites))
    return jax.vmap(lambda one: capture(one, *state)[1])(x)


def said(network: inside.Network, x, batch: int = 500) -> dict[str, np.ndarray]:
    """What hidden layers say of images, `[images, pixels, width]` each: of some pixels, or one where it has none."""
    rng, parts, sites = np.random.default_rng(0), [], tuple(network.sites)
    pixels: dict[str, np.ndarray] = {}
    for start in range(0, len(x), batch):
        seen = _seen(network.model, network.state, sites, jnp.asarray(x[start : start + batch]))
        values = {name: np.asarray(v) for name, v in seen.items()}
        values = {name: v.reshape(len(v), -1, v.shape[-1]) for name, v in values.items()}
        for name, v in values.items():
            pixels.setdefault(name, np.sort(rng.permutation(v.shape[1])[:PIXELS]))
        parts.append({name: v[:, pixels[name]] for name, v in values.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in network.sites}
