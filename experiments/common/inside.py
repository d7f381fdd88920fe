"""What experiments inside networks share: a network trained by backprop, and a coder of one of its sites."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cetsim import interpret, nn, supervised, sweep
from experiments.common.selection import reported, users_errors

LEARNING_RATE = 1e-3  # of networks and of coders
AHEAD = 5  # steps of a network with convolutions that are compiled into one program


@dataclass(frozen=True)
class Run:
    """One layer, by name, of the network of a seed."""

    site: str
    seed: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.site}, seed {self.seed}"


class Network(NamedTuple):
    """A trained network: `sites` are its hidden layers, with the axis along which their vectors lie.

    `classes` is the number of class tokens in front of a transformer's others.
    """

    model: eqx.Module
    state: tuple
    sites: dict[str, int | None]
    classes: int = 0


def train_network(make: Callable, x, labels, steps: int, seed: int = 0, unroll: bool = False) -> Network:
    """A network of layers in a row, or a vision transformer, trained by backprop.

    **Arguments:** `make`: of a key. `unroll`: for networks with convolutions, which XLA runs slowly in a loop on CPU.
    """
    model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(make), jax.random.key(seed))
    form = "preactivation" if hasattr(model, "blocks") else "activation"  # either is backprop where nothing is late
    run = supervised.SupervisedRun(make, x, labels, supervised.Settings(steps=steps, form=form))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no trace")  # all learns by backprop
        state = advance(run, run.init(supervised.backprop(LEARNING_RATE), jax.random.key(seed)), steps, unroll)
    return finished(make, seed, state, x)


def advance(run: supervised.SupervisedRun, state, steps: int, unroll: bool = False):
    """The state after so many steps; `unroll` as of `train_network`."""
    done = 0
    while done < steps:
        ahead = min(AHEAD, steps - done) if unroll else steps
        (state, _), done = _advance(run, state, ahead, unroll), done + ahead
    return state


_advance = eqx.filter_jit(lambda run, state, steps, unroll: run.advance(state, steps, unroll))


def finished(make: Callable, seed: int, state, x) -> Network:
    """The network that a run from a seed has come to; `x`: images, of which one is looked at."""
    model, _ = eqx.nn.make_with_state(make)(jax.random.key(seed))
    model = eqx.nn.inference_mode(eqx.combine(state.params, eqx.filter(model, eqx.is_inexact_array, inverse=True)))
    buffers = (state.buffers,) if jax.tree.leaves(state.buffers) else ()
    if hasattr(model, "blocks"):
        return Network(model, buffers, {f"blocks.{i}": None for i in range(len(model.blocks))}, model.prefix)
    found = interpret.sites(model, jnp.asarray(x[0]), *buffers)
    hidden = [f"layers.{i}" for i, layer in enumerate(model.layers) if getattr(layer, "fn", None) is jax.nn.relu]
    return Network(model, buffers, {name: -1 if len(found[name].shape) == 3 else None for name in hidden})


def mlp(inputs: int, hidden, classes: int) -> Callable:
    """A function of a key that makes an MLP."""
    return lambda key: nn.mlp((inputs, *hidden, classes), key=key)


def cnn(classes: int) -> Callable:
    """A function of a key that makes the CNN of CIFAR-10."""
    return lambda key: nn.cnn(classes=classes, layout="channels_last", key=key)


def vit(image: tuple[int, int, int], width: int, blocks: int, classes: int) -> Callable:
    """A function of a key that makes a vision transformer that sees four by four patches, and a class token."""
    patch = image[1] // 4
    return lambda key: interpret.VisionTransformer(image, patch, width, blocks, 4, classes=classes, key=key)


def train_coder(store, site: str, latents: int, k: int, steps: int, batch: int, seed: int = 0):
    """A BatchTopK autoencoder of a site."""
    settings = interpret.Settings(steps=steps, latents=latents, batch=batch, dead_after=20 * batch)
    run = interpret.CoderRun(store, interpret.BatchTopK(k), settings, inputs=site)
    state = run.init(interpret.Hyperparameters(LEARNING_RATE), jax.random.key(seed))
    return run.coder(eqx.filter_jit(run.advance)(state, steps)[0])


def recorded(folder: Path, network: Network, site: str, x, part: str = "train"):
    """Activations of images of a part of the data at a site, kept in a folder."""
    name = f"{site}-{interpret.store.digest(network.model)}-{part}-{len(x)}"
    how = dict(axis=network.sites[site], classes=network.classes)
    return interpret.record(folder / name, network.model, site, x, *network.state, **how)


def captured(network: Network, site: str, x, batch: int = 500) -> np.ndarray:
    """What a site says of images, `[images, ...]`."""
    run = partial(_captured, network.model, network.state, site)
    return np.concatenate([np.asarray(run(jnp.asarray(x[i : i + batch]))) for i in range(0, len(x), batch)])


def outputs(network: Network, x, batch: int = 500) -> np.ndarray:
    """What the network says of images."""
    said = partial(_outputs, network.model, network.state)
    return np.concatenate([np.asarray(said(jnp.asarray(x[i : i + batch]))) for i in range(0, len(x), batch)])


# Networks are arguments, not closures: those of one shape share a program.
@eqx.filter_jit
def _captured(model, state: tuple, site: str, x):
    seen = interpret.capture(model, site, stop_at=site)
    return jax.vmap(lambda one: seen(one, *state)[0])(x)


@eqx.filter_jit
def _outputs(model, state: tuple, x):
    call = lambda one: model(one, *state)  # noqa: E731
    return jax.vmap(lambda one: call(one)[0] if state else call(one))(x)


def sweep_on_host(
    options, runs: list, measured: Callable, config: dict, columns: dict | Callable, defaults: dict | None = None
) -> pd.DataFrame:
    """Makes the runs that are missing, each measured by plain Python; the rows to report.

    **Arguments:** `runs`: dataclasses that say what they are as text. `measured`: of a run, gives its rows. `config`:
    what rows depend on besides, `defaults`: what of it names no run. `columns`: of all rows of a run, or a function of
    it.
    """
    still = dict(steps=1, hyperparameters=lambda run: run, on_host=True)
    training = sweep.Training(lambda run, key: run, lambda run, steps: (run, {}), measured, **still)
    with users_errors():
        how = dict(config=config, columns=columns, defaults=defaults, describe=str, batch=1, fresh=options.fresh)
        table = sweep.run(options.folder, runs, training, **how)
    return reported(table, options)
