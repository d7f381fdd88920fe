"""Do networks that learn from late local credit learn other features than backprop's?

Networks of one start and one order of images learn by backprop and from credit that comes late, through traces. A
crosscoder, one set of latents for both networks of a pair, says of each latent how much of it belongs to either: the
relative norm r of its decoder rows, 0 for backprop alone, 1 for the other alone. Controls: backprop from another seed,
backprop stopped where it is as accurate as each blurred trace, and a network that was not trained. Beside them, sparse
autoencoders of each network alone: how much few latents explain, how pure their top images are, how much of what they
vary by is the class, how many steer. Images come in random order or in runs of one class, so that blurred credit
is shared by images of a kind.

A latent counts as private only if nothing of it is left at the other network: the direction along which it would best
write there, whatever its decoder says, is shorter than a fifth of that here. Decoders alone find private latents where
there are none (arXiv:2504.02922). The direction is free, since networks of two starts share no axes.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cetsim import datasets, interpret
from experiments.common import captions, checks, inside, late_networks, plots, tables
from experiments.common.late_networks import PAIRS, STYLES
from experiments.common.options import Coders

ALONE, SHARED = 0.9, 0.2  # r above which a latent seems private; share of its length elsewhere below which it is
OFTEN = 50  # vectors on which a latent must be active to count
BINS = 20  # of r
OF_ONE = {  # of coders of one network, as they are drawn, and times what
    "dead": ("latents never\nactive (%)", 100),
    "class_entropy": ("entropy of\nclasses (bits)", 1),
    "class_variance": ("variance between\nclasses (%)", 100),
    "above_random": ("latents above 95 %\nof random (%)", 100),
}
TOP = 20  # images by which a latent's classes are told
STRENGTH = 4.0  # 99th percentiles, at which latents steer
COLUMNS = {"experiment": "features", "trace": "backprop", "order": 0, "delay_s": 0.0}  # of the first of each pair


@dataclass(frozen=True)
class Options(Coders):
    """Relative norms of a crosscoder's latents between backprop and each late rule, and coders of each alone."""

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: digits, in a minute; quick: MNIST, in an hour; cifar10: its CNN, in hours."""
    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Images that the networks learn; CIFAR-10 by the CNN, of whose convolutions 16 pixels of an image are vectors."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (64, 64)
    """Sizes of the hidden layers of the MLP."""
    delay: Annotated[float, checks.delays] = 10.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s; traces are set to it."""
    learning_rate: Annotated[float, checks.ABOVE_ZERO] = 1e-3
    """Of the networks."""
    run_length: Annotated[int, checks.COUNT] = 1
    """Images of one class in a row; 1 shuffles all images."""
    pairs: Annotated[tuple[str, ...], checks.WORDS] = PAIRS
    """Networks that are compared with backprop's."""
    latents: Annotated[int, checks.COUNT] = 128
    """Latents of a coder, and of a crosscoder."""
    frontier: Annotated[tuple[int, ...], checks.COUNT._replace(empty=True)] = ()
    """Other numbers of latents active at a time, whose autoencoders say how much they explain."""
    features: Annotated[int, checks.COUNT] = 100
    """Latents that are steered, over 100 test images."""
    seeds: Annotated[int, checks.COUNT] = 1
    """Number of sets of networks."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        for pair in self.pairs:
            checks.require("pairs", pair in PAIRS, f"of {', '.join(PAIRS)}", pair)


PRESETS = {
    "demo": Options(
        pairs=("delay line", "CET(10)", "ET", "another seed", "untrained"), delay=4.0, steps=300,
    ),
    "quick": Options(
        dataset="mnist", hidden=(512, 512), network_steps=1404, latents=512, k=16, steps=400,
        batch=256, frontier=(4, 64), seeds=3,
    ),
    "cifar10": Options(
        dataset="cifar10", network_steps=3900, latents=512, k=16, steps=400, batch=256, frontier=(4, 64),
        examples=10_000, seeds=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Backprop's network of a seed, and what it is compared with: itself for coders of it alone."""

    pair: str
    seed: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.pair}, seed {self.seed}"


class Found(NamedTuple):
    """What a crosscoder's latents are, of those that are often active, by network (backprop, other)."""

    r: np.ndarray
    lengths: np.ndarray  # [2, latents], of the directions along which they would best write


def run(options: Options) -> pd.DataFrame:
    """Trains the networks and coders that are missing; the rows to report."""
    with inside.users_errors():
        data = datasets.load(options.dataset, options.data_dir)
    if options.dataset != "cifar10":
        x, test_x = (own.reshape(len(own), -1) for own in (data.train_x, data.test_x))
        data = data._replace(train_x=x, test_x=test_x)
    networks = cache(lambda pair, seed: late_networks.kept(options, data, networks, pair, seed))
    names = ("dataset", "hidden", "network_steps", "delay", "learning_rate", "examples", "latents", "k", "steps")
    config = {name: getattr(options, name) for name in (*names, "batch", "features", "run_length", "frontier")}
    pairs = [Pair(pair, seed) for seed in range(options.seeds) for pair in ("backprop", *options.pairs)]
    measured = lambda pair: measure(options, data, networks, pair)  # noqa: E731
    columns = COLUMNS | {"images": options.dataset, "run_length": options.run_length}
    defaults = {"run_length": 1, "frontier": ()}
    return inside.sweep_on_host(options, pairs, measured, config, columns, defaults=defaults)


# What is measured.


def measure(options: Options, data, networks, one: Pair) -> list[dict]:
    """Rows of a pair: its crosscoders, and the coders of its second network alone, at each layer."""
    (first, _), (second, accuracy) = networks("backprop", one.seed), networks(one.pair, one.seed)
    flat = lambda values: values.reshape(-1, values.shape[-1])  # noqa: E731
    ours, theirs = (late_networks.said(network, data.train_x[: options.examples]) for network in (first, second))
    test, rows = late_networks.said(second, data.test_x), [{"metric": "accuracy", "value": accuracy}]
    for i, site in enumerate(second.sites):
        found = alone(options, data, second, site, flat(theirs[site]), test[site], one.seed)
        if one.pair != "backprop":
            found |= together(options, flat(ours[site]), flat(theirs[site]), one.seed)
        for metric, value in found.items():
            values = dict(enumerate(value)) if np.ndim(value) else {None: value}
            where = {"site": f"hidden {i + 1}"}
            rows += [
                {"metric": metric, "value": float(v)} | where | ({} if bin_ is None else {"bin": bin_})
                for bin_, v in values.items()
            ]
    return rows


def together(options: Options, ours, theirs, seed: int) -> dict:
    """Of a crosscoder between two networks: histogram of r, and shares of latents that are private."""
    store = interpret.Activations.of_arrays({"backprop": ours, "other": theirs})
    settings = interpret.Settings(
        steps=options.steps, latents=options.latents, batch=options.batch, dead_after=20 * options.batch
    )
    run = interpret.CoderRun(store, interpret.BatchTopK(options.k), settings, across=("backprop", "other"))
    state = run.init(interpret.Hyperparameters(inside.LEARNING_RATE), jax.random.key(seed))
    crosscoder = run.coder(eqx.filter_jit(run.advance)(state, options.steps)[0])
    r, lengths = of_latents(crosscoder, (ours, theirs))
    quality = interpret.evaluate(crosscoder, store).values
    count = max(1, len(r))
    shares = {"histogram": np.histogram(r, BINS, (0, 1))[0] / count, "often_active": len(r)}
    for name, seems, elsewhere in (
        ("backprop", r < 1 - ALONE, lengths[1] / lengths[0]), ("other", r > ALONE, lengths[0] / lengths[1])
    ):  # fmt: skip
        shares |= {
            f"seems_{name}": seems.mean() if len(r) else 0.0,
            f"private_{name}": (seems & (elsewhere < SHARED)).mean() if len(r) else 0.0,
            f"explained_{name}": quality[f"explained_variance_{name}"],
        }
    return shares


def of_latents(crosscoder, x: tuple) -> Found:
    """Relative norms, and lengths of the directions along which latents would best write at each network.

    That of latent k at site s is the least-squares v in x_s - Σ_{j≠k} f_j d_js ≈ f_k v + c, in the units in which the
    crosscoder compares sites.
    """
    f = np.asarray(eqx.filter_jit(crosscoder.encode)(tuple(map(jnp.asarray, x))), float)
    often = (f > 0).sum(0) >= OFTEN
    centred, lengths = f[:, often] - f[:, often].mean(0), []
    for own, w, b, scale in zip(x, crosscoder.W_dec, crosscoder.b_dec, crosscoder.scales, strict=True):
        w = np.asarray(w, float)
        error = own - np.asarray(b, float) - f @ w
        best = w[often] + (centred.T @ error) / (centred**2).sum(0)[:, None]
        lengths.append(float(scale) * np.linalg.norm(best, axis=1))
    return Found(np.asarray(crosscoder.relative_norms())[often], np.array(lengths))


def alone(options: Options, data, network: inside.Network, site: str, vectors, test, seed: int) -> dict:
    """Of a coder of one network: quality, entropy of the classes of latents' top images, and how many steer.

    **Arguments:** `vectors`: `[vectors, width]`, by which it is trained. `test`: `[images, pixels, width]`.
    """
    flat = test.reshape(-1, test.shape[-1])
    store, tested = (interpret.Activations.of_arrays({site: own}) for own in (vectors, flat))
    coder = inside.train_coder(store, site, options.latents, options.k, options.steps, options.batch, seed)
    quality = interpret.evaluate(coder, tested).values
    found = {name: quality[name] for name in ("explained_variance", "l0", "dead")}
    for k in options.frontier:
        other = inside.train_coder(store, site, options.latents, k, options.steps, options.batch, seed)
        quality = interpret.evaluate(other, tested).values
        found |= {f"explained_variance_{k}": quality["explained_variance"], f"l0_{k}": quality["l0"]}
    parts = [np.asarray(eqx.filter_jit(coder.encode)(jnp.asarray(some))) for some in np.array_split(test, 10)]
    f = np.concatenate(parts).max(1)  # of an image, the pixel where a latent is most active
    tops = interpret.collect([f], TOP).top
    full = tops[(tops >= 0).all(1)]
    entropies = [entropy(data.test_y[top]) for top in full]
    found["class_variance"] = of_class(f, data.test_y)
    unit, rng = interpret.percentiles(coder, flat), np.random.default_rng(seed)
    features = np.sort(rng.permutation(np.flatnonzero(unit > 0))[: options.features])
    images = data.test_x[rng.permutation(len(data.test_x))[:100]]
    how = dict(readout=interpret.Readout(scale=1.0), axis=network.sites[site])
    given = features, STRENGTH * unit[features], images, *network.state
    own, null = (
        interpret.steerability(interpret.steer(network.model, site, each, *given, **how))
        for each in (coder, interpret.RandomDirections(coder, jax.random.key(seed)))
    )
    found |= {"steerable": own.steerable().mean(), "steerable_random": null.steerable().mean()}
    found |= {"above_random": own.steerable(interpret.calibrated(null)).mean()}
    return found | ({"class_entropy": np.mean(entropies)} if len(full) else {})


def of_class(f: np.ndarray, labels: np.ndarray) -> float:
    """Of the variance of latents that are ever active, the share that lies between the means of classes: their mean."""
    f = f[:, f.std(0) > 0].astype(float)
    means = np.stack([f[labels == one].mean(0) for one in np.unique(labels)])
    weights = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(np.mean(weights @ (means - f.mean(0)) ** 2 / f.var(0))) if f.size else 0.0


def entropy(labels) -> float:
    """Of the classes of some images, in bits."""
    shares = np.bincount(labels) / len(labels)
    return float(-np.sum(shares[shares > 0] * np.log2(shares[shares > 0])))


# What came of it.


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figure."""
    rows = tables.like_last(rows, ("images", "run_length"))
    name = tables.DATASETS[rows["images"].iloc[0]]
    name += f" in runs of {run:g} of one class" if (run := rows["run_length"].iloc[0]) > 1 else ""
    cell = lambda own, metric, *how: tables.cell(own.loc[own["metric"] == metric, "value"], *how)  # noqa: E731
    pairs = [pair for pair in ("backprop", *PAIRS) if pair in set(rows["pair"])]
    body = [(pair, [cell(rows[rows["pair"] == pair], "accuracy")]) for pair in pairs]
    print(tables.text(f"{name}: test accuracy of the networks, {options.delay:g} s late", ["", "%"], body))
    for site, own in rows.dropna(subset=["site"]).groupby("site"):
        metrics = ("seems_backprop", "private_backprop", "seems_other", "private_other")
        head = ["beside backprop", "r < 0.1, %", "private, %", "r > 0.9, %", "private, %", "explained, %", "other, %"]
        metrics += ("explained_backprop", "explained_other")
        body = [(p, [cell(own[own["pair"] == p], m) for m in metrics]) for p in pairs if p != "backprop"]
        print(tables.text(f"{name}, {site}: latents of crosscoders", head, body))
        head = ["", "explained, %", "L0", "dead, %", "entropy, bits", "by class, %"]
        head += ["S > 0.1, %", "random, %", "> 95 % random"]
        scales = dict(explained_variance=(), l0=(1, 1), dead=(), class_entropy=(1, 2), class_variance=())
        scales |= dict(steerable=(), steerable_random=(), above_random=())
        body = [(p, [cell(own[own["pair"] == p], m, *how) for m, how in scales.items()]) for p in pairs]
        print(tables.text(f"{name}, {site}: coders of each network", head, body))
        found = {pair: frontier_of(own[own["pair"] == pair]) for pair in pairs}
        if (count := max(map(len, found.values()))) > 1:
            cells = [(p, [f"{100 * e:.0f} at {l0:.0f}" for e, l0 in own.to_numpy()]) for p, own in found.items()]
            head = ["explained, %, at L0", *[""] * count]
            print(tables.text(f"{name}, {site}: coders by number of active latents", head, cells))
    return draw(rows, options, name)


def frontier_of(own: pd.DataFrame) -> pd.DataFrame:
    """Of a layer's and a network's autoencoders L0 and explained variance, a row for each number of active latents."""
    metrics = own["metric"].fillna("").str.extract(r"^(l0|explained_variance)(?:_(\d+))?$")
    found = own.assign(what=metrics[0], k=metrics[1].fillna("own"))
    return found.pivot_table(index="k", columns="what", values="value").sort_values("l0")


def draw(rows: pd.DataFrame, options: Options, name: str) -> list[Path]:
    """A column for each layer: histograms of r, and coders of each network alone."""
    sites, several = sorted(rows["site"].dropna().unique()), rows["metric"].str.startswith("l0_", na=False).any()
    pairs, count = [pair for pair in PAIRS if pair in set(rows["pair"])], 5 + several
    line = STYLES["backprop"]
    size = dict(width=plots.PAGE_WIDTH, height=1.75 * count, sharey="row")
    with plots.figure(count, len(sites), **size) as (figure, axes):
        for column, site in enumerate(sites):
            of_site = rows[rows["site"] == site]
            draw_norms(axes[0, column], of_site, pairs)
            axes[0, column].set_title(site, loc="left")
            if several:
                for pair in ("backprop", *pairs):
                    found, style = frontier_of(of_site[of_site["pair"] == pair]), STYLES[pair]
                    axes[1, column].plot(found["l0"], 100 * found["explained_variance"], **style | dict(markersize=2.5))
                axes[1, column].set_xlabel("active latents (L0)")
                axes[1, column].set_xscale("log", base=2)
                axes[1, column].xaxis.set_major_formatter("{x:g}")
            lower = axes[1 + several :, column]
            for axis, (metric, (_, scale)) in zip(lower, OF_ONE.items(), strict=True):
                draw_dots(axis, of_site, metric, pairs, scale)
                ours = of_site.loc[(of_site["pair"] == "backprop") & (of_site["metric"] == metric), "value"]
                axis.axhline(scale * ours.mean(), color=line["color"], linewidth=1, zorder=1)
                axis.set_xticks([])
            lower[-1].axhline(5, color="#AAAAAA", linewidth=1, linestyle=":", zorder=1)
            lower[-1].set_xticks(range(len(pairs)), pairs, rotation=45, ha="right")
        axes[0, 0].plot([], [], **line, label="backprop alone")
        axes[0, 0].set_ylabel("latents (%)\nlinear below 1")
        if several:
            axes[1, 0].set_ylabel("explained (%)")
        for axis, (ylabel, _) in zip(axes[1 + several :, 0], OF_ONE.values(), strict=True):
            axis.set_ylabel(ylabel)
            axis.set_ylim(-0.04 * axis.get_ylim()[1], 1.04 * axis.get_ylim()[1])
        seeds = captions.plural(rows["seed"].nunique(), "seed")
        note = f"{name}, credit {options.delay:g} s late, {options.latents} latents, {seeds}. First row: crosscoders "
        note += "of backprop's network and another; r: 0 is a latent of backprop's alone, 1 of the other's. Below: "
        note += f"coders of one network (line: backprop). Entropy: of the top {TOP} images of a latent. Last row: "
        note += (
            f"latents that steer, at {STRENGTH:g} times their 99th percentile, more than 95 % of random directions; "
        )
        note += "dotted: chance."
        note += captions.seeds(rows, "Lines: means; dots: seeds.")
        return plots.save(figure, options.folder, "features", note, axes[0, 0], columns=4)


def draw_norms(axis, of_site: pd.DataFrame, pairs: list[str]) -> None:
    """A line a pair: how often latents of a crosscoder have which relative norm."""
    middles = (np.arange(BINS) + 0.5) / BINS
    for pair in pairs:
        bins = of_site[(of_site["pair"] == pair) & (of_site["metric"] == "histogram")]
        bins = bins.groupby("bin")["value"].mean().reindex(range(BINS))
        axis.plot(middles, 100 * bins, **STYLES[pair] | dict(markersize=2.5), label=pair)
    axis.set(xlabel="relative norm r", yscale="symlog")
    axis.yaxis.set_major_formatter("{x:g}")


def draw_dots(axis, of_site: pd.DataFrame, metric: str, pairs: list[str], scale: float) -> None:
    """A dot a seed, above the name of its pair."""
    for place, pair in enumerate(pairs):
        values = scale * of_site.loc[(of_site["pair"] == pair) & (of_site["metric"] == metric), "value"]
        style = {name: value for name, value in STYLES[pair].items() if name != "linestyle"}
        axis.plot([place] * len(values), values, **style | dict(linestyle="", markersize=4), label=f"_{metric}")
