"""How much of a layer few active latents explain, and what the network loses: five sparsities at each layer.

A network is trained by backprop. At every hidden layer, sparse autoencoders of five kinds are trained on what it says,
each at several strengths, and measured on the test set: explained variance and loss recovered against L0, the active
latents of a vector. Coders that differ in site, strength and seed are trained side by side.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pandas as pd

from cetsim import datasets, interpret, sweep
from experiments.common import captions, checks, inside, plots, tables
from experiments.common.options import Coders
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
class Options(Coders):
    """Explained variance and loss recovered of sparse autoencoders against their L0, at each hidden layer."""

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, in two minutes; quick: MNIST, in half an hour; cifar10: its CNN, in a quarter."""
    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Images that the network learns; CIFAR-10 by the CNN, of whose convolutions each pixel is a vector."""
    network_steps: Annotated[int, checks.COUNT] = 500
    """Batches of 128 images that the network is trained on."""
    examples: Annotated[int, checks.COUNT] = 60_000
    """Training images whose activations are recorded, at most."""
    vectors: Annotated[int, checks.COUNT] = 10_000_000
    """Vectors of a site that are recorded, at most; of fewer images where one has many, as at a convolution."""
    test_images: Annotated[int, checks.COUNT] = 10_000
    """Test images on which coders are measured, at most."""
    steps: Annotated[int, checks.COUNT] = 500
    """Steps of a coder."""
    learning_rate: Annotated[float, checks.ABOVE_ZERO] = 1e-3
    """Of the coders."""
    kinds: Annotated[tuple[Literal["ReLU", "TopK", "BatchTopK", "JumpReLU", "Gated"], ...], checks.WORDS] = KINDS
    """Sparsities compared."""
    k: tuple[int, ...] = (4, 8, 16)
    """Active latents of TopK and BatchTopK."""
    l1: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (0.05, 0.12, 0.3)
    """Weights of the L1 penalty of ReLU and Gated, times the root of a site's width."""
    l0: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (0.001, 0.003, 0.01)
    """Weights of the L0 penalty of JumpReLU, times a site's width: shares of the mean squared norm."""
    seeds: Annotated[int, checks.COUNT] = 3
    """Number of coders of each condition."""
    batch_conditions: Annotated[int, checks.COUNT] = 18
    """Coders trained side by side at most."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.each("k", self.k, lambda v: 1 <= v <= self.latents, f"from 1 to the {self.latents} latents")


_QUICK = Options(
    dataset="mnist", hidden=(512, 512), network_steps=2000, latents=512, steps=400, batch=256,
    k=(8, 16, 32), l1=(0.04, 0.1, 0.25), l0=(0.0003, 0.001, 0.003), examples=20_000, batch_conditions=9,
)  # fmt: skip
_CIFAR10 = replace(
    _QUICK, dataset="cifar10", network_steps=390, latents=256, steps=300, batch=128,
    examples=10_000, vectors=400_000, test_images=500,
)  # fmt: skip
PRESETS = {"demo": Options(seeds=1), "quick": _QUICK, "cifar10": _CIFAR10}


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


def conditions(options: Options, sites) -> list[Coder]:
    """Every kind at every strength, site and seed; those that share a program stand together."""
    return [
        Coder(kind, strength, site, seed)
        for site in sites
        for kind in options.kinds
        for strength in strengths(options, kind)
        for seed in range(options.seeds)
    ]


def strengths(options: Options, kind: str) -> tuple[float, ...]:
    """What is varied of a kind, from little to much."""
    return tuple(map(float, options.k)) if "TopK" in kind else options.l0 if kind == "JumpReLU" else options.l1


def sparsity(kind: str, strength: float, width: int):
    """The sparsity of a condition at a site of some width; penalties are in units that go with it."""
    if "TopK" in kind:
        return getattr(interpret, kind)(int(strength))
    return getattr(interpret, kind)(strength * (width if kind == "JumpReLU" else width**0.5))


def train_network(options: Options, dataset) -> Network:
    """The network that is opened, trained by backprop."""
    flat = options.dataset != "cifar10"
    train_x, test_x = (x.reshape(len(x), -1) if flat else x for x in (dataset.train_x, dataset.test_x))
    make = inside.mlp(train_x[0].size, options.hidden, 10) if flat else inside.cnn(10)
    trained = inside.train_network(make, train_x, dataset.train_y, options.network_steps, unroll=not flat)
    return Network(trained.model, trained.state, trained.sites, jnp.asarray(test_x), jnp.asarray(dataset.test_y))


def run(options: Options) -> pd.DataFrame:
    """Trains the network and the coders that are missing; the rows to report."""
    with users_errors():
        dataset = datasets.load(options.dataset, options.data_dir)
        network = train_network(options, dataset)
        x = dataset.train_x[: options.examples]
        x = x if options.dataset == "cifar10" else x.reshape(len(x), -1)
        for i, (site, axis) in enumerate(network.sites.items()):
            seen = x[: max(1, options.vectors // tokens(network, site))]
            of_site = [one for one in conditions(options, [site]) if one.site == site]
            how = dict(static=["kind", "site"], columns=COLUMNS | {"images": options.dataset})
            how |= dict(config=config(options), batch=options.batch_conditions, fresh=options.fresh and i == 0)
            stores = record(options, network, site, axis, seen)
            table = sweep.run(
                options.folder,
                of_site,
                lambda kind, site, stores=stores, axis=axis: training(options, network, kind, site, axis, stores),
                describe=lambda one: f"{one.kind} {one.strength:g} at {one.site}, seed {one.seed}",
                stage=site,
                **how,
            )
        every = sweep.load(options.folder)
        names = {(one.kind, one.strength, one.site, one.seed) for one in conditions(options, network.sites)}
        named = lambda record: tuple(record["columns"].get(n) for n in ("kind", "strength", "site", "seed"))  # noqa: E731
        table = sweep.Table({key: record for key, record in every.records.items() if named(record) in names})
    return reported(table, options)


def record(options: Options, network: Network, site: str, axis: int | None, x):
    """Activations of training and test images at one site."""
    folder, sets = options.folder / "activations", {"train": x, "test": network.test_x[: options.test_images]}
    short = lambda images: interpret.store.digest(network.model) + f"-{len(images)}"  # noqa: E731
    return {
        name: interpret.record(
            folder / f"{site}-{name}-{short(images)}", network.model, site, images, *network.state, axis=axis
        )
        for name, images in sets.items()
    }


def tokens(network: Network, site: str) -> int:
    """How many vectors an image has at a site."""
    shape = interpret.sites(network.model, network.test_x[0], *network.state)[site].shape
    return 1 if len(shape) < 3 else shape[0] * shape[1]


def config(options: Options) -> dict:
    """All that runs depend on besides their conditions."""
    names = ("dataset", "hidden", "network_steps", "examples", "vectors", "test_images", "latents", "steps", "batch")
    names += ("learning_rate",)
    return {name: getattr(options, name) for name in names}


def training(options: Options, network: Network, kind: str, site: str, axis, stores) -> sweep.Training:
    """How coders of one kind are trained at one site, and what is measured of them."""
    settings = interpret.Settings(
        steps=options.steps, latents=options.latents, batch=options.batch, dead_after=20 * options.batch
    )
    width = stores["train"].widths[site]
    any_of_kind = sparsity(kind, strengths(options, kind)[0], width)
    run = interpret.CoderRun(stores["train"], any_of_kind, settings, inputs=site)
    losses = eqx.Partial(_losses, run, network.model, network.state, jnp.asarray(stores["test"].mean(site)), axis)
    test = network.test_x[: options.test_images], network.test_y[: options.test_images]
    part = max(1, 50_000 // stores["test"].tokens[site])  # images whose vectors are held at once
    parts = [tuple(array[i : i + part] for array in test) for i in range(0, len(test[0]), part)]
    at = [options.steps]
    measured = [
        sweep.Evaluation(eqx.Partial(_quality, run, run.arrays(stores["test"])), at=at, prefix="test_"),
        sweep.Evaluation(losses, at=at, over=parts, prefix="test_loss_"),
    ]
    hyper = lambda one: interpret.Hyperparameters(  # noqa: E731
        options.learning_rate, sparsity(one.kind, one.strength, width)
    )
    return sweep.Training(run.init, run.advance, measured, options.steps, options.steps, hyper)


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
        for (kind, strength), own in of_site.groupby(["kind", "strength"]):
            cells = [tables.cell(own["l0"], 1, 1), tables.cell(own["explained_variance"])]
            cells += [tables.cell(own["loss_recovered"]), tables.cell(own["dead"])]
            body.append((f"{kind} {strength:g}", cells))
        head = ["", "L0", "explained, %", "recovered, %", "dead, %"]
        print(tables.text(f"{tables.DATASETS[options.dataset]}, {site}, {options.latents} latents", head, body, 16))
    return draw(ends, options)


def draw(ends: pd.DataFrame, options: Options) -> list[Path]:
    """A column for each layer: explained variance and loss recovered against L0."""
    sites = sorted(ends["site"].unique(), key=lambda site: int(site.rpartition(".")[2]))
    size = dict(width=max(plots.COLUMN_WIDTH, 2.4 * len(sites)), height=4.4, sharex="col")
    size["width"] = plots.PAGE_WIDTH if len(sites) > 1 else plots.COLUMN_WIDTH
    with plots.figure(len(METRICS), len(sites), **size) as (figure, axes):
        for column, site in enumerate(sites):
            for row, (metric, name) in enumerate(METRICS.items()):
                axis = axes[row, column]
                for kind in [kind for kind in KINDS if kind in set(ends["kind"])]:
                    own = ends[(ends["site"] == site) & (ends["kind"] == kind)]
                    means = own.groupby("strength")[["l0", metric]].mean().sort_values("l0")
                    axis.plot(means["l0"], 100 * means[metric], **_STYLES[kind], label=kind)
                    axis.plot(
                        own["l0"], 100 * own[metric], ".", color=_STYLES[kind]["color"], markersize=2.5, alpha=0.6
                    )
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter("{x:g}")
                if column == 0:
                    axis.set_ylabel(name)
            axes[0, column].set_title(f"hidden layer {column + 1} ({site})", loc="left")
            axes[-1, column].set_xlabel("active latents (L0)")
        note = f"{tables.DATASETS[options.dataset]}, a network trained by backprop; sparse autoencoders of "
        note += f"{options.latents} latents, {options.steps:,} steps of {options.batch} vectors, "
        note += f"{captions.plural(ends['seed'].nunique(), 'seed')}.{captions.seeds(ends, 'Line: mean; dots: seeds.')}"
        return plots.save(figure, options.folder, "sae-frontier", note, axes[0, 0], columns=5)
