"""How precisely single latents steer a network, beside single neurons and random directions, at each layer.

A network is trained by backprop, and a sparse autoencoder on each hidden layer. Latents, and the layer's neurons, are
set to multiples of their own 99th percentile on test images: how far do the probabilities of the classes move (S, and
the published threshold of 0.10), and is that more than what random directions of the same norm do? The threshold of S
that 95 % of random directions do not reach is reported beside it, since 0.10 is of 5,000 concepts.

A CLIP's concepts are captions, "a red seven, left": what a latent moves most, the colour, the digit or the place, is
reported too.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cetsim import datasets, interpret
from experiments.common import captions, checks, inside, plots, pretraining, tables
from experiments.common.options import Coders

COLUMNS = {"experiment": "steering", "trace": "backprop", "order": 0, "delay_s": 0.0}  # of the network
NETWORK = {"network": "mlp", "width": 64, "blocks": 4}  # what names no run as it is here
TRANSFORMERS, PARTS = ("vit", "clip"), ("colour", "digit", "place")
EQUAL_CHANGE = 0.2  # of a direction's own concept, at which directions are compared
SCORES = ("score", "power", "specificity", "directional", "polysemanticity")  # of directions, beside random ones
FEWEST = 5  # latents that steer, of which it is told what they move
CLASS, PATCHES = "latents, class token", "latents, patches"  # where they are steered
_STYLES = {
    "latents": dict(color="#0072B2", marker="D"),
    CLASS: dict(color="#009E73", marker="s"),
    PATCHES: dict(color="#CC79A7", marker="v"),
    "neurons": dict(color="#D55E00", marker="o"),
}
_PARTS = {
    part: dict(color="black", marker=marker, markersize=3.5, markerfacecolor=face, linestyle=line)
    for part, marker, face, line in zip(PARTS, "os^", ("black", "white", "white"), ("-", "--", ":"), strict=True)
}


@dataclass(frozen=True)
class Options(Coders):
    """Share of latents and of neurons that steer a network's output, at each hidden layer, beside random directions."""

    preset: Literal["demo", "quick", "vit", "clip", "cifar10"] = "demo"
    """demo: digits, a minute; quick: MNIST, minutes; vit, clip: transformers on MNIST; cifar10: its CNN, an hour."""
    network: Literal["mlp", "cnn", "vit", "clip"] = "mlp"
    """mlp: fully connected; cnn: of CIFAR-10; vit: a vision transformer; clip: of coloured digits, with captions."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (128, 128, 128)
    """Sizes of the hidden layers of the MLP."""
    width: Annotated[int, checks.COUNT] = 64
    """Of the transformer's tokens."""
    blocks: Annotated[int, checks.COUNT] = 4
    """Of the transformer."""
    network_steps: Annotated[int, checks.COUNT] = 500
    """Batches of 128 images that the network is trained on."""
    features: Annotated[int, checks.COUNT] = 100
    """Latents, and neurons, that are steered: drawn from those that are active on test images."""
    images: Annotated[int, checks.COUNT] = 100
    """Test images over which effects are averaged."""
    strengths: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """What a latent is set to, in units of the 99th percentile of its activations above 0; ascending."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        cnn = self.network == "cnn"
        checks.require("network", not cnn or self.dataset == "cifar10", "cnn for cifar10 alone", self.network)
        clip = self.network == "clip" and self.dataset == "cifar10"
        checks.require("network", not clip, "clip for digits or mnist", self.network)
        checks.require("width", self.width % 4 == 0, "a multiple of the 4 heads", self.width)
        ascending = tuple(sorted(self.strengths)) == self.strengths
        checks.require("strengths", ascending, "ascending", " ".join(f"{s:g}" for s in self.strengths))


_QUICK = Options(
    dataset="mnist", hidden=(512, 512, 512), network_steps=1000, latents=1024, k=16, steps=400,
    batch=256,
)  # fmt: skip
PRESETS = {
    "demo": Options(seeds=1),
    "quick": _QUICK,
    "vit": replace(_QUICK, network="vit", latents=256, examples=2000),
    "clip": replace(_QUICK, network="clip", network_steps=2000, latents=256, examples=2000),
    "cifar10": replace(_QUICK, dataset="cifar10", network="cnn", network_steps=780, latents=512, examples=500),
}


def run(options: Options) -> pd.DataFrame:
    """Trains the networks and coders that are missing, and steers them; the rows to report."""
    with inside.users_errors():
        data = datasets.load(options.dataset, options.data_dir)
    subject = cache(partial(subject_of, options, data))
    count = {"mlp": len(options.hidden), "cnn": 4}.get(options.network, options.blocks)
    runs = [inside.Run(f"hidden {i + 1}", seed) for seed in range(options.seeds) for i in range(count)]
    names = ("dataset", "hidden", "network_steps", "examples", "latents", "k", "steps", "batch", "features", "images")
    config = {name: getattr(options, name) for name in (*names, "strengths", *NETWORK)}
    measured = lambda one: measure(options, subject(one.seed), one)  # noqa: E731
    columns = COLUMNS | {"images": options.dataset}
    columns |= {"architecture": options.network} if options.network in TRANSFORMERS else {}
    return inside.sweep_on_host(options, runs, measured, config, columns, NETWORK)


class Subject(NamedTuple):
    """A trained network, the images it takes, its accuracy on those of the test, and what its output means."""

    network: inside.Network
    x: np.ndarray
    test_x: np.ndarray
    accuracy: float
    readout: interpret.Readout


def subject_of(options: Options, data, seed: int) -> Subject:
    """The network of a seed."""
    if options.network == "clip":
        return clip_of(options, datasets.captioned_digits(data), seed)
    image, unroll = data.train_x.shape[1:], options.network == "cnn"
    make = {
        "mlp": inside.mlp(data.train_x[0].size, options.hidden, 10), "cnn": inside.cnn(10),
        "vit": inside.vit(image, options.width, options.blocks, 10),
    }[options.network]  # fmt: skip
    x, test_x = (own.reshape(len(own), -1) if options.network == "mlp" else own for own in (data.train_x, data.test_x))
    network = inside.train_network(make, x, data.train_y, options.network_steps, seed, unroll)
    test_x = test_x[: options.examples]
    accuracy = float((inside.outputs(network, test_x).argmax(1) == data.test_y[: len(test_x)]).mean())
    return Subject(network, x[: options.examples], test_x, accuracy, interpret.Readout(scale=1.0))


def clip_of(options: Options, data: datasets.CaptionedDigits, seed: int) -> Subject:
    """A CLIP's tower of images, whose concepts are all captions; it sees four by eight patches and a class token."""
    image = data.train.x.shape[1:]
    make = pretraining.clip(image, image[1] // 4, options.width, options.blocks)
    x, said = jnp.asarray(data.train.x), jnp.asarray(data.train.captions)
    how = dict(steps=options.network_steps, batch=128, rate=inside.LEARNING_RATE, decay=0.05, augment=False)
    training = pretraining.Pretraining(make, pretraining.matched, x, said, **how)
    model = training.model(eqx.filter_jit(training.advance)(training.init(seed), options.network_steps)[0])
    words = jax.vmap(model.text)(jnp.asarray(datasets.captions_of(datasets.all_facts())))
    sites = {f"blocks.{i}": None for i in range(options.blocks)}
    network = inside.Network(model.vision, (), sites, model.vision.prefix)
    test_x, facts = (own[: options.examples] for own in (data.test.x, data.test.facts))
    accuracy = pretraining.caption_accuracy(model, test_x, facts)["accuracy"]
    readout = interpret.Readout(words, jnp.exp(model.log_scale))
    return Subject(network, data.train.x[: options.examples], test_x, accuracy, readout)


def measure(options: Options, subject: Subject, run) -> list[dict]:
    """Rows of one layer of one network: the coder's quality, and effects of latents and neurons at every strength."""
    network, x, test_x, accuracy, readout = subject
    site, seed = list(network.sites)[int(run.site.split()[1]) - 1], run.seed
    folder = options.folder / "activations"
    store = inside.recorded(folder, network, site, x)
    coder = inside.train_coder(store, site, options.latents, options.k, options.steps, options.batch, seed)
    test = inside.recorded(folder, network, site, test_x, "test")
    found = interpret.evaluate(coder, test).values
    rows = [{"metric": "accuracy", "value": accuracy}]
    rows += [{"metric": name, "value": found[name]} for name in found]
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    tokens, kinds = np.arange(test.tokens[site]), {"latents": (coder, None)}
    if network.classes:
        kinds |= {CLASS: (coder, tokens[: network.classes]), PATCHES: (coder, tokens[network.classes :])}
    for kind, (own, where) in (kinds | {"neurons": (interpret.Neurons(store.widths[site]), None)}).items():
        unit = interpret.percentiles(own, vectors_of(test, site, where))
        alive = np.flatnonzero(unit > 0)
        features = np.sort(rng.permutation(alive)[: options.features])
        strengths = unit[features, None] * np.array(options.strengths)
        images = jnp.asarray(test_x[rng.permutation(len(test_x))[: options.images]])
        moved = [
            interpret.steer(
                network.model, site, each, features, strengths, images, *network.state,
                readout=readout, axis=network.sites[site], tokens=where,
            )
            for each in (own, interpret.RandomDirections(own, key))
        ]  # fmt: skip
        rows += effects(kind, strengths, *moved, readout.concepts, options)
        rows += parts_moved(kind, moved[0], options) if options.network == "clip" else []
    return rows


def parts_moved(kind: str, delta, options: Options) -> list[dict]:
    """Rows of what directions move that steer: the part of a caption whose probabilities, summed over the others,
    change most.
    """
    rows, facts = [], datasets.all_facts()
    for i, strength in enumerate(options.strengths):
        own = interpret.steerability(delta[:, i])
        changes = [(delta[:, i] @ (facts[:, [part]] == np.arange(facts[:, part].max() + 1))) for part in range(3)]
        most = np.argmax([np.abs(change).max(1) for change in changes], axis=0)[own.steerable()]
        found = {f"moves_{name}": np.mean(most == part) for part, name in enumerate(PARTS)} if len(most) else {}
        rows += [{"metric": n, "value": float(v), "kind": kind, "strength": strength} for n, v in found.items()]
    return rows


def vectors_of(store, site: str, tokens, most: int = 20_000) -> np.ndarray:
    """Vectors of a site, at some of its tokens, or at all for None; about so many at most."""
    rows, count = np.arange(store.rows(site)), store.tokens[site]
    rows = rows if tokens is None else rows[np.isin(rows % count, tokens)]
    return store.take(site, rows[:: max(1, len(rows) // most)])


def effects(kind: str, strengths, delta, random, concepts, options: Options) -> list[dict]:
    """Rows of directions of one kind and of random ones, `[features, strengths, classes]`."""
    rows = []
    for i, strength in enumerate(options.strengths):
        own, null = (interpret.steerability(moved[:, i], concepts) for moved in (delta, random))
        threshold = interpret.calibrated(null)
        numbers = {
            "steerable": own.steerable().mean(), "steerable_random": null.steerable().mean(),
            "above_random": own.steerable(threshold).mean(), "threshold": threshold,
            "concepts": len(set(own.top[own.steerable()])),
        }  # fmt: skip
        for name in SCORES:
            for which, of in (("", own), ("_random", null)):
                values = getattr(of, name)
                if values is not None and np.isfinite(values).any():
                    numbers[name + which] = np.nanmean(values)
        rows += [{"metric": n, "value": float(v), "kind": kind, "strength": strength} for n, v in numbers.items()]
    for which, moved in (("", delta), ("_random", random)):
        numbers = at_equal_change(strengths, moved)
        rows += [{"metric": name + which, "value": float(v), "kind": kind} for name, v in numbers.items()]
    return rows


def at_equal_change(strengths, moved) -> dict:
    """Of directions whose own concept, that which they raise most, gains 0.2: how many, and what else moves there."""
    target = moved[np.arange(len(moved)), moved.max(-1).argmax(1)].argmax(1)
    reached, precise = np.full(moved.shape[::2], np.nan), []
    for concept in np.unique(target):
        own = target == concept
        there = interpret.at_target_change(strengths[own], moved[own], int(concept), EQUAL_CHANGE)[1]
        reached[own] = there
        precise += [*interpret.disentanglement(there[~np.isnan(there[:, 0])], int(concept))]
    others = reached.clip(0)
    others[np.arange(len(others)), target] = 0
    arrived = ~np.isnan(reached[:, 0])
    found = {"others_rise": others[arrived].sum(1).mean(), "disentanglement": np.mean(precise)} if arrived.any() else {}
    return {"reach": arrived.mean()} | found


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figure."""
    rows = rows[rows["images"] == rows["images"].iloc[-1]]
    if "architecture" in rows:
        rows = rows[rows["architecture"].fillna("mlp") == (rows["architecture"].fillna("mlp")).iloc[-1]]
    styles = {kind: style for kind, style in _STYLES.items() if kind in set(rows["kind"])}
    name = tables.DATASETS[rows["images"].iloc[0]]
    cell = lambda own, metric, *how: tables.cell(own.loc[own["metric"] == metric, "value"].astype(float), *how)  # noqa: E731
    shown = {"accuracy": "accuracy, %", "explained_variance": "explained, %", "dead": "dead, %", "l0": "L0"}
    shown |= {f"l0_{n}": f"L0, {n}" for n in ("cls", "patches", "image") if f"l0_{n}" in set(rows["metric"])}
    parts = [part for part in PARTS if f"moves_{part}" in set(rows["metric"])]
    scale = lambda metric: (1, 1) if metric.startswith("l0") else ()  # noqa: E731
    body = [(site, [cell(own, m, *scale(m)) for m in shown]) for site, own in rows.groupby("site")]
    head = ["", *shown.values()]
    print(tables.text(f"{name}: coders of each layer", head, body))
    for site, of_site in rows.groupby("site"):
        body = []
        for (kind, strength), own in of_site.dropna(subset=["strength"]).groupby(["kind", "strength"]):
            cells = [cell(own, metric) for metric in ("steerable", "steerable_random", "above_random")]
            cells += [cell(own, "threshold", 1, 4), cell(own, "score", 1, 4), cell(own, "concepts", 1, 1)]
            cells += [cell(own, f"moves_{part}") for part in parts]
            body.append((f"{kind} at {strength:g}", cells))
        head = ["", "S > 0.1, %", "random, %", "> 95 % of random", "threshold", "mean S", "concepts"]
        head += [f"of them {part}, %" for part in parts]
        print(tables.text(f"{name}, {site}: directions that steer", head, body, 18))
        scores = [score for score in SCORES if score in set(of_site["metric"])]
        body = []
        for (kind, strength), own in of_site.dropna(subset=["strength"]).groupby(["kind", "strength"]):
            cells = [cell(own, score + which, 1, 3) for score in scores for which in ("", "_random")]
            body.append((f"{kind} at {strength:g}", cells))
        head = ["means, random behind", *(part for score in scores for part in (score, ""))]
        print(tables.text(f"{name}, {site}: scores", head, body, 18))
    body, equal = [], {"reach": (100, 0), "others_rise": (1, 3), "disentanglement": (1, 3)}
    for (site, kind), own in rows[rows["metric"].str.startswith(tuple(equal))].groupby(["site", "kind"]):
        cells = [cell(own, m + which, *how) for m, how in equal.items() for which in ("", "_random")]
        body.append((f"{site}, {kind}", cells))
    head = ["", "reach it, %", "random, %", "others rise", "random", "disentangled", "random"]
    print(tables.text(f"{name}: where a direction's own class gains {EQUAL_CHANGE:g}", head, body))
    drawn = draw(rows, options, name, styles)
    return drawn + draw_sparsity(rows, options, name) if "l0_cls" in set(rows["metric"]) else drawn


def draw_sparsity(rows: pd.DataFrame, options: Options, name: str) -> list[Path]:
    """How many latents are active at a token of each kind, behind each block."""
    kinds = {"cls": ("class token", _STYLES[CLASS]), "patches": ("patches", _STYLES[PATCHES])}
    with plots.figure() as (figure, axes):
        for kind, (label, style) in kinds.items():
            own = rows[rows["metric"] == f"l0_{kind}"]
            blocks = own["site"].str.split().str[1].astype(int)
            means = own.groupby(blocks)["value"].mean()
            axes[0, 0].plot(means.index, means, **style, label=label)
            axes[0, 0].plot(blocks, own["value"], ".", color=style["color"], markersize=2.5, alpha=0.6)
        axes[0, 0].axhline(options.k, color="#AAAAAA", linewidth=1, linestyle=":", zorder=1)
        axes[0, 0].set_xticks(means.index)
        axes[0, 0].set(xlabel="block", ylabel="active latents (L0)")
        axes[0, 0].set_ylim(0, 1.1 * axes[0, 0].get_ylim()[1])
        note = f"{name}, coders of {options.latents} latents behind each block, {options.k} active on average over all"
        note += f" tokens (dotted), {captions.plural(rows['seed'].nunique(), 'seed')}."
        note += captions.seeds(rows, "Line: mean; dots: seeds.")
        return plots.save(figure, options.folder, "sparsity", note, axes[0, 0], columns=2)


def draw(rows: pd.DataFrame, options: Options, name: str, styles: dict) -> list[Path]:
    """A column for each layer: shares above 0.10 and above random directions, and what they move, against strength."""
    sites = sorted(rows["site"].unique())
    panels = {"steerable": "S > 0.10 (%)", "above_random": "above 95 % of\nrandom directions (%)"}
    parts = {part: look for part, look in _PARTS.items() if f"moves_{part}" in set(rows["metric"])}
    panels |= {"moves": "latents that steer\nby what moves most (%)"} if parts else {}
    size = dict(width=plots.PAGE_WIDTH, height=2.0 * len(panels), sharex=True, sharey=True)
    with plots.figure(len(panels), len(sites), **size) as (figure, axes):
        for column, site in enumerate(sites):
            for row, metric in enumerate(panels):
                axis = axes[row, column]
                for part, look in parts.items() if metric == "moves" else ():
                    own = rows[(rows["site"] == site) & (rows["metric"] == f"moves_{part}")]
                    shares = 100 * own[own["kind"] == "latents"].groupby("strength")["value"].mean()
                    steer = rows[(rows["site"] == site) & (rows["metric"] == "steerable") & (rows["kind"] == "latents")]
                    shares = shares[steer.groupby("strength")["value"].mean() * options.features >= FEWEST]
                    axis.plot(shares.index, shares, **look, label=part)
                for kind, style in styles.items() if metric != "moves" else ():
                    lines = [(metric, kind, style | dict(linestyle="-"))]
                    if row == 0 and kind in ("latents", "neurons"):
                        gray = style | dict(linestyle=(0, (1, 1.5)), marker="", alpha=0.8)
                        lines.append((f"{metric}_random", f"random, norm of {kind}", gray))
                    for which, label, look in lines:
                        own = rows[(rows["site"] == site) & (rows["metric"] == which) & (rows["kind"] == kind)]
                        means = 100 * own.groupby("strength")["value"].mean()
                        axis.plot(means.index, means, **look, label=label)
                        dots = dict(color=style["color"], markersize=2.5, alpha=0.6)
                        if look["marker"]:
                            axis.plot(own["strength"], 100 * own["value"], ".", **dots)
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter("{x:g}")
            axes[0, column].set_title(site, loc="left")
            axes[-1, column].set_xlabel("strength (99th percentiles)")
        for axis, text in zip(axes[:, 0], panels.values(), strict=True):
            axis.set_ylabel(text)
        for axis in axes[1]:
            axis.axhline(5, color="#AAAAAA", linewidth=1, linestyle=":", zorder=1)
        note = f"{name}, {options.latents} latents; {options.features} of them and of the neurons, "
        note += f"{options.images} images, {captions.plural(rows['seed'].nunique(), 'seed')}."
        if parts:
            axes[-1, 0].legend(frameon=False, fontsize=7)
        concepts = "captions" if parts else "classes"
        note += f" S: how far a direction moves the probabilities of the {concepts}; 0.10 is a published threshold."
        note += " Dotted in the second row: chance."
        note += f" Third row: where at least {FEWEST} of the latents steer." if parts else ""
        note += " Hidden i: behind block i." if options.network in TRANSFORMERS else ""
        note += captions.seeds(rows, "Line: mean; dots: seeds.")
        return plots.save(figure, options.folder, "steering", note, axes[0, 0], columns=4)
