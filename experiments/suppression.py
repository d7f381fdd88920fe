"""Does switching off latents mend a network that goes by a shortcut? Worst-group accuracy against their number.

A network is trained by backprop on coloured digits, whose colour gives the label away in 95 % of the training images,
or on CIFAR-10 with the names of classes pasted on half of the images. On each hidden layer a sparse autoencoder is
trained. Its latents are ranked by how far their mean activation differs between groups of equal label, on validation
images; the first m are switched off, and accuracies by group are measured on test images. Beside them: random latents,
latents active as often, neurons ranked likewise, and the last layer retrained on balanced validation groups.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd

from cetsim import datasets
from cetsim.datasets import shortcuts
from experiments.common import captions, checks, inside, plots, suppressed, tables
from experiments.common.options import Coders
from experiments.common.suppressed import Part, Task

COLUMNS = {"experiment": "suppression", "trace": "backprop", "order": 0, "delay_s": 0.0}  # of the network
KINDS = {"latents": "ranked latents", "neurons": "ranked neurons", "matched": "active as often", "random": "random"}
_STYLES = tuple(
    dict(color=color, marker=marker)
    for color, marker in zip(("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9"), "os^Dv<", strict=True)
)


@dataclass(frozen=True)
class Options(Coders):
    """Worst-group accuracy against the number of suppressed latents, at each hidden layer, beside controls."""

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: coloured digits, in a minute; quick: coloured MNIST, in minutes; cifar10: pasted words, in an hour."""
    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Images: digits and MNIST are coloured, CIFAR-10 has words pasted on and is learned by the CNN."""
    classes: Annotated[int, checks.COUNT] = 2
    """Labels of coloured digits: 2 (five or more) or 10 (the digit)."""
    agreement: Annotated[float, checks.INSIDE] = 0.95
    """Share of training images whose colour is that of their label; of CIFAR-10's that bear their word, half of it."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (128, 128, 128, 128)
    """Sizes of the hidden layers of the MLP."""
    network_steps: Annotated[int, checks.COUNT] = 300
    """Batches of 128 images that the network is trained on."""
    counts: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    """Numbers of suppressed latents, from 0 on, ascending, at most half of the latents."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("classes", self.classes in shortcuts.COLOURS, "2 or 10", self.classes)
        suppressed.check_counts(self)


_QUICK = Options(dataset="mnist", hidden=(256, 256, 256, 256), network_steps=1000, latents=512, k=16, batch=256)
PRESETS = {
    "demo": Options(seeds=2),
    "quick": _QUICK,
    "cifar10": replace(_QUICK, dataset="cifar10", network_steps=1170, examples=1000, latents=256, seeds=1),
}


def run(options: Options) -> pd.DataFrame:
    """Trains the networks and coders that are missing, and suppresses; the rows to report."""
    with inside.users_errors():
        data = datasets.load(options.dataset, options.data_dir)
    task = cache(partial(make_task, options, data))
    count = 4 if options.dataset == "cifar10" else len(options.hidden)
    runs = [inside.Run(f"hidden {i + 1}", seed) for seed in range(options.seeds) for i in range(count)]
    names = ("dataset", "classes", "agreement", "hidden", "network_steps", "examples", "latents", "k", "steps", "batch")
    config = {name: getattr(options, name) for name in (*names, "counts")}
    measured = lambda one: suppressed.measure(options, task(one.seed), one)  # noqa: E731
    return inside.sweep_on_host(options, runs, measured, config, COLUMNS | {"images": options.dataset})


def make_task(options: Options, data, seed: int) -> Task:
    """The images and the network of a seed."""
    if options.dataset == "cifar10":
        made = datasets.pasted_words(data, options.agreement / 2, seed=seed)
        train, validation, test = made.train, *map(versions, made[2:])
        make, shaped = inside.cnn(10), lambda x: x
    else:
        made = datasets.coloured_digits(data, options.agreement, options.classes, seed=seed)
        train, (validation, test) = made.train, (Part(*own, own.attributes) for own in made[2:])
        make, shaped = inside.mlp(train.x[0].size, options.hidden, options.classes), lambda x: x.reshape(len(x), -1)
    x, unroll = shaped(train.x), options.dataset == "cifar10"
    network = inside.train_network(make, x, train.labels, options.network_steps, seed, unroll)
    rng, parts = np.random.default_rng(seed), []
    for part in (validation, test):
        rows = rng.permutation(len(part.x))[: options.examples]
        parts.append(Part(shaped(part.x[rows]), *(own[rows] for own in part[1:])))
    return Task(network, x[: options.examples], *parts)


def versions(attacked) -> Part:
    """Clean, attacked and neutral images in one part, whose groups are these versions of each class."""
    own = [np.concatenate([getattr(part, name) for part in attacked]) for name in ("x", "labels", "attributes")]
    return Part(*own, np.repeat(np.arange(3), len(attacked.clean.x)))


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure."""
    rows = rows[rows["images"] == rows["images"].iloc[-1]]
    name = tables.DATASETS[rows["images"].iloc[0]]
    shown = {"worst": "worst group", "average": "average", "collateral": "collateral"}
    shown |= {m: m for m in ("success", "clean") if m in set(rows["metric"])}
    cells = lambda own: [tables.cell(own.loc[own["metric"] == metric, "value"]) for metric in shown]  # noqa: E731
    test = rows[rows["part"] == "test"]
    still = test[(test["kind"] == "latents") & (test["suppressed"] == 0) & (test["site"] == "hidden 1")]
    body = [("network as it is", ["", *cells(still)])]
    body.append(("last layer retrained", ["", *cells(test[test["kind"] == "last layer"])]))
    for (kind, site), own in suppressed.chosen(rows).groupby(["kind", "site"]):
        numbers = own.loc[own["metric"] == "worst", "suppressed"]
        body.append((f"{kind}, {site}", [tables.cell(numbers, 1, 1), *cells(own)]))
    head = ["", "suppressed", *shown.values()]
    title = f"{name}: test accuracy in % with as many off as is best on validation images"
    print(tables.text(title, head, body))
    counts = sorted(test.loc[test["kind"] == "latents", "suppressed"].unique())
    body = []
    for (kind, site), own in test[(test["metric"] == "worst") & (test["kind"] != "last layer")].groupby(
        ["kind", "site"]
    ):
        at = [tables.cell(own.loc[own["suppressed"] == m, "value"]) for m in counts]
        body.append((f"{kind}, {site}", at))
    print(tables.text(f"{name}: worst group in % by number of latents off", ["", *map("{:g}".format, counts)], body))
    return draw(test, options, name)


def draw(test: pd.DataFrame, options: Options, name: str) -> list[Path]:
    """Accuracies against the number of latents off, a line a layer: ranked latents, ranked neurons, and controls."""
    panels = {"worst": "worst group (%)", "average": "average (%)"}
    if "success" in set(test["metric"]):
        panels = {"worst": panels["worst"], "success": "attacks that succeed (%)", "clean": "clean images (%)"}
    sites = sorted(test.loc[test["kind"] != "last layer", "site"].unique())
    size = dict(width=plots.PAGE_WIDTH, height=1.1 + 1.6 * len(panels), sharex=True, sharey="row")
    with plots.figure(len(panels), len(KINDS), **size) as (figure, axes):
        for row, (metric, ylabel) in zip(axes, panels.items(), strict=True):
            of_metric = test[test["metric"] == metric]
            row[0].set_ylabel(ylabel)
            for axis, kind in zip(row, KINDS, strict=True):
                for style, site in zip(_STYLES, sites, strict=False):
                    own = of_metric[(of_metric["site"] == site) & (of_metric["kind"] == kind)]
                    means = 100 * own.groupby("suppressed")["value"].mean()
                    axis.plot(means.index, means, label=site, markersize=3, **style)
                    dots = dict(color=style["color"], markersize=2, alpha=0.5)
                    axis.plot(own["suppressed"], 100 * own["value"], ".", **dots)
                mended = 100 * of_metric.loc[of_metric["kind"] == "last layer", "value"].mean()
                axis.axhline(mended, color="black", linestyle=(0, (5, 2)), linewidth=0.8, label="last layer retrained")
                axis.set_xscale("symlog", base=2, linthresh=1)
                axis.xaxis.set_major_formatter("{x:g}")
        for axis, words in zip(axes[0], KINDS.values(), strict=True):
            axis.set_title(words, loc="left")
        for axis in axes[-1]:
            axis.set_xlabel("number switched off")
        seeds = captions.plural(test["seed"].nunique(), "seed")
        task = "the name of a class is pasted on images" if len(panels) > 2 else "colours tell the label in training"
        note = (
            f"{name}, {task}; {options.latents} latents, {seeds}.{captions.seeds(test, 'Lines: means; dots: seeds.')}"
        )
        return plots.save(figure, options.folder, "suppression", note, axes[0, 0], columns=5)
