"""How much of a layer few active latents explain, and what the network loses: five sparsities at each layer.

A network is trained by backprop. At every hidden layer, sparse autoencoders of five kinds are trained on what it says,
each at several strengths, and measured on the test set: explained variance and loss recovered against L0, the active
latents of a vector. Coders that differ in site, strength and seed are trained side by side.
"""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pandas as pd

from cetsim import datasets, interpret, nn, supervised, sweep
from experiments.common import checks, plots, tables
from experiments.common.options import Files
from experiments.common.selection import reported, users_errors

KINDS = ("ReLU", "TopK", "BatchTopK", "JumpReLU", "Gated")
METRICS = {"explained_variance": "explained variance (%)", "loss_recovered": "loss recovered (%)"}
COLUMNS = {"experiment": "sae-frontier", "trace": "backprop", "order": 0, "delay_s": 0.0}  # of the network
_STYLES = {
    "ReLU": dict(color="#D55E00", marker="o"),
    "TopK": dict(color="#56B4E9", marker="s"),
    "BatchTopK": dict(color="#0072B2", marker="D"),
    "JumpReLU": dict(color="#009E73", marker="v"),
    "Gated": dict(color="#CC79A7", marker="^"),
}


@dataclass(frozen=True)
class Options(Files):
    """Explained variance and loss recovered of sparse autoencoders against their L0, at each hidden layer."""

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, in two minutes; quick: MNIST, in a quarter of an hour; cifar10: the same of its CNN, in hours."""
    data_dir: Path | None = None
    """Folder with the dataset's files as published; by default they are downloaded (digits needs none)."""
    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Images that the network learns; CIFAR-10 by the CNN, of whose convolutions each pixel is a vector."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (128, 128)
    """Sizes of the hidden layers of the MLP."""
    network_steps: Annotated[int, checks.COUNT] = 500
    """Batches of 128 images that the network is trained on."""
    examples: Annotated[int, checks.COUNT] = 60_000
    """Training images whose activations are recorded, at most."""
    latents: Annotated[int, checks.COUNT] = 256
    """Latents of a coder."""
    steps: Annotated[int, checks.COUNT] = 500
    """Steps of a coder."""
    batch: Annotated[int, checks.COUNT] = 256
    """Vectors of a step."""
    learning_rate: Annotated[float, checks.ABOVE_ZERO] = 1e-3
    """Of the coders."""
    kinds: Annotated[tuple[Literal[KINDS], ...], checks.WORDS] = KINDS
    """Sparsities compared."""
    k: tuple[int, ...] = (4, 8, 16)
    """Active latents of TopK and BatchTopK."""
    l1: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (0.5, 1.5, 4.0)
    """Weights of the L1 penalty of ReLU and Gated."""
    l0: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (1.0, 4.0, 16.0)
    """Weights of the L0 penalty of JumpReLU."""
    seeds: Annotated[int, checks.COUNT] = 3
    """Number of coders of each condition."""
    batch_conditions: Annotated[int, checks.COUNT] = 18
    """Coders trained side by side at most."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.each("k", self.k, lambda v: 1 <= v <= self.latents, f"from 1 to the {self.latents} latents")


_QUICK = Options(
    preset="quick", dataset="mnist", hidden=(512, 512), network_steps=2000, latents=1024, steps=1000, batch=512,
    k=(8, 16, 32, 64), l1=(1.0, 3.0, 8.0), l0=(4.0, 16.0, 64.0), examples=20_000, batch_conditions=6,
)  # fmt: skip
PRESETS = {
    "demo": Options(),
    "quick": _QUICK,
    "cifar10": replace(_QUICK, preset="cifar10", dataset="cifar10", network_steps=3900, examples=2000),
}


@dataclass(frozen=True)
class Coder:
    """One coder: its kind, its strength (k, or the penalty's weight), its site and what is random."""

    kind: str
    strength: float
    site: str
    seed: int = 0


class Network(NamedTuple):
    """A trained network, its hidden sites with the axis along which their vectors lie, and a test set."""

    model: eqx.Module
    state: tuple
    sites: dict[str, int | None]
    test_x: jax.Array
    test_y: jax.Array


def strengths(options: Options, kind: str) -> tuple[float, ...]:
    """What is varied of a kind, from little to much."""
    return tuple(map(float, options.k)) if "TopK" in kind else options.l0 if kind == "JumpReLU" else options.l1


def conditions(options: Options, site: str) -> list[Coder]:
    """Every kind at every strength and seed; those that share a program stand together."""
    strong = [(kind, strength) for kind in options.kinds for strength in strengths(options, kind)]
    return [Coder(*which, site, seed) for which in strong for seed in range(options.seeds)]


def sparsity(kind: str, strength: float):
    """The sparsity of a condition."""
    return getattr(interpret, kind)(int(strength) if "TopK" in kind else strength)


def train_network(options: Options, dataset) -> Network:
    """The network that is opened, trained by backprop."""
    flat = options.dataset != "cifar10"
    train_x, test_x = (x.reshape(len(x), -1) if flat else x for x in (dataset.train_x, dataset.test_x))
    sizes = (train_x[0].size, *options.hidden, 10)
    make = (lambda key: nn.mlp(sizes, key=key)) if flat else (lambda key: nn.cnn(key=key))
    run = supervised.SupervisedRun(make, train_x, dataset.train_y, supervised.Settings(steps=options.network_steps))
    state = run.init(supervised.backprop(1e-3), jax.random.key(0))
    advance, done = eqx.filter_jit(run.advance), 0
    while done < options.network_steps:  # networks with convolutions are slow in a loop on CPU
        steps = options.network_steps if flat else min(5, options.network_steps - done)
        (state, _), done = advance(state, steps, not flat), done + steps
    model, _ = eqx.nn.make_with_state(make)(jax.random.key(0))
    model = eqx.nn.inference_mode(eqx.combine(state.params, eqx.filter(model, eqx.is_inexact_array, inverse=True)))
    buffers = () if flat else (state.buffers,)
    example = (jnp.asarray(test_x[0]), *buffers)
    found = interpret.sites(model, *example)
    hidden = [name for name, site in found.items() if site.kind == "Lambda" and site.fault is None and site.shape]
    sites = {name: 0 if len(found[name].shape) == 3 else None for name in hidden}
    return Network(model, buffers, sites, jnp.asarray(test_x), jnp.asarray(dataset.test_y))


def run(options: Options) -> pd.DataFrame:
    """Trains the network and the coders that are missing; the rows to report."""
    names = ("dataset", "hidden", "network_steps", "examples", "latents", "steps", "batch", "learning_rate")
    how = dict(config={name: getattr(options, name) for name in names}, batch=options.batch_conditions)
    how |= dict(columns=COLUMNS | {"images": options.dataset}, static=["kind", "site"], describe=describe)
    trained = {}
    with users_errors():
        dataset = datasets.load(options.dataset, options.data_dir)
        network = train_network(options, dataset)
        x = dataset.train_x[: options.examples]
        images = {"train": x if options.dataset == "cifar10" else x.reshape(len(x), -1)}
        images["test"] = network.test_x[: options.examples]
        for site in network.sites:
            stores = {name: record(options, network, site, name, coders) for name, coders in images.items()}
            make, fresh = partial(training, options, network, stores), options.fresh and not trained
            table = sweep.run(options.folder, conditions(options, site), make, stage=site, fresh=fresh, **how)
            trained |= table.records
    return reported(sweep.Table(trained), options)


def describe(coder: Coder) -> str:
    """A coder in words."""
    return f"{coder.kind} {coder.strength:g} at {coder.site}, seed {coder.seed}"


def record(options: Options, network: Network, site: str, name: str, x):
    """Activations of the training or test images at one site."""
    path = options.folder / "activations" / f"{site}-{name}-{interpret.store.digest(network.model)}-{len(x)}"
    return interpret.record(path, network.model, site, x, *network.state, axis=network.sites[site])


def training(options: Options, network: Network, stores: dict, kind: str, site: str) -> sweep.Training:
    """How coders of one kind are trained at one site, and what is measured of them."""
    steps, test = options.steps, (network.test_x[: options.examples], network.test_y[: options.examples])
    settings = interpret.Settings(
        steps=steps, latents=options.latents, batch=options.batch, dead_after=20 * options.batch
    )
    run = interpret.CoderRun(stores["train"], sparsity(kind, strengths(options, kind)[0]), settings, inputs=site)
    mean = jnp.asarray(stores["test"].mean(site))
    losses = eqx.Partial(_losses, run, network.model, network.state, mean, network.sites[site])
    parts = [tuple(coders[i : i + 1000] for coders in test) for i in range(0, len(test[0]), 1000)]
    measured = [
        sweep.Evaluation(eqx.Partial(_quality, run, run.arrays(stores["test"])), at=[steps], prefix="test_"),
        sweep.Evaluation(losses, at=[steps], over=parts, prefix="test_loss_"),
    ]
    hyper = lambda one: interpret.Hyperparameters(options.learning_rate, sparsity(one.kind, one.strength))  # noqa: E731
    return sweep.Training(run.init, run.advance, measured, steps, steps, hyper)


# Runs and networks are arguments, not closures: their arrays would be constants of the program otherwise.
def _quality(run, x, state):
    return run.evaluate(state, x)


def _losses(run, model, buffers, mean, axis, state, x, labels):
    found = interpret.cross_entropies(run.coder(state), model, x, labels, mean, *buffers, axis=axis)
    return {name: found[name] / len(labels) for name in ("clean", "spliced", "zero", "mean")}


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a coder, with what was measured of it; loss recovered is of the whole test set's losses."""
    rows = rows[rows["metric"].str.startswith("test_")]
    wide = rows.pivot_table(index=["run", "site", "kind", "strength", "seed"], columns="metric", values="value")
    wide = wide.rename(columns=lambda name: name.removeprefix("test_")).reset_index()
    gap = wide["loss_zero"] - wide["loss_clean"]
    return wide.assign(loss_recovered=(wide["loss_zero"] - wide["loss_spliced"]) / gap)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure."""
    ends = measured(rows)
    for site, of_site in ends.groupby("site"):
        body = []
        for (kind, strength), coders in of_site.groupby(["kind", "strength"]):
            cells = [tables.cell(coders["l0"], 1, 1), tables.cell(coders["explained_variance"])]
            cells += [tables.cell(coders["loss_recovered"]), tables.cell(coders["dead"])]
            body.append((f"{kind} {strength:g}", cells))
        head = ["", "L0", "explained, %", "recovered, %", "dead, %"]
        print(tables.text(f"{tables.DATASETS[options.dataset]}, {site}, {options.latents} latents", head, body, 16))
    return draw(ends, options)


def draw(ends: pd.DataFrame, options: Options) -> list[Path]:
    """A column for each layer: explained variance and loss recovered against L0."""
    sites = sorted(ends["site"].unique())
    width = plots.PAGE_WIDTH if len(sites) > 1 else plots.COLUMN_WIDTH
    with plots.figure(len(METRICS), len(sites), width, 4.4, sharex="col") as (figure, axes):
        for (row, metric), (column, site) in itertools.product(enumerate(METRICS), enumerate(sites)):
            axis = axes[row, column]
            for kind in (kind for kind in KINDS if kind in set(ends["kind"])):
                coders, style = ends[(ends["site"] == site) & (ends["kind"] == kind)], _STYLES[kind]
                means = coders.groupby("strength")[["l0", metric]].mean().sort_values("l0")
                axis.plot(means["l0"], 100 * means[metric], **style, label=kind)
                axis.plot(coders["l0"], 100 * coders[metric], ".", color=style["color"], markersize=2.5, alpha=0.6)
            axis.set_xscale("log")
            axes[row, 0].set_ylabel(METRICS[metric])
            axes[0, column].set_title(site, loc="left")
            axes[-1, column].set_xlabel("active latents of a vector (L0)")
        note = f"{tables.DATASETS[options.dataset]}, {options.latents} latents, {options.steps:,} steps of "
        note += f"{options.batch} vectors.{plots.seeds(ends, ' Line: mean; dots: seeds.')}"
        return plots.save(figure, options.folder, "sae-frontier", note, axes[0, 0], columns=5)
