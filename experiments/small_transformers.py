"""Transformers that are small enough to be trained here, for what needs one: a ViT, and a CLIP on captioned digits.

The ViT learns classes from moved and mirrored images. The CLIP learns which caption, "a red seven, left", goes with
which picture of a coloured digit; it is measured by the caption of all 120 that it takes for a test image's. A run that
was interrupted goes on. Networks are written beside the table, as `path_of` and `maker` say; the ViT takes images as
`pretraining.standardised` makes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import equinox as eqx
import jax.numpy as jnp
import pandas as pd

import cetsim
from cetsim import datasets, sweep
from experiments.common import captions, checks, inside, plots, pretraining, tables
from experiments.common.options import Files
from experiments.common.selection import reported

COLUMNS = {"experiment": "small-transformers", "trace": "backprop", "order": 0, "delay_s": 0.0}
EVALUATIONS = 20
PIXELS = {"vit": "standardised by channel", "clip": "as loaded"}  # of runs' inputs; another word, another run
PARTS, KINDS = ("colour", "digit", "place"), {"vit": "ViT", "clip": "CLIP, captions"}


@dataclass(frozen=True)
class Options(Files):
    """A small ViT, or a CLIP on captioned coloured digits, trained by backprop and kept."""

    preset: Literal["demo", "quick", "cifar10"] = "demo"
    """demo: a ViT on digits, a minute; quick: a CLIP on MNIST's digits, twenty minutes; cifar10: a ViT, two hours."""
    data_dir: Path | None = None
    """Folder with the dataset's files as published; by default they are downloaded (digits needs none)."""
    model: Literal["vit", "clip"] = "vit"
    """vit: a classifier; clip: two towers, on coloured digits and their captions."""
    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Images; a clip takes digits or mnist."""
    patch: Annotated[int, checks.COUNT] = 2
    """Side of a patch in pixels."""
    width: Annotated[int, checks.COUNT] = 32
    """Of the tokens."""
    blocks: Annotated[int, checks.COUNT] = 2
    """Of each tower."""
    steps: Annotated[int, checks.COUNT] = 400
    """Batches."""
    batch: Annotated[int, checks.COUNT] = 128
    """Images of a batch."""
    learning_rate: Annotated[float, checks.ABOVE_ZERO] = 3e-3
    """Largest of the schedule."""
    weight_decay: Annotated[float, checks.NOT_NEGATIVE] = 0.05
    """Of AdamW."""
    augment: bool = False
    """Move images by up to 4 pixels and mirror them."""
    seeds: Annotated[int, checks.COUNT] = 1
    """Number of networks."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("width", self.width % 4 == 0, "a multiple of the 4 heads", self.width)
        side = {"digits": 8, "mnist": 28, "cifar10": 32}[self.dataset]
        checks.require("patch", side % self.patch == 0, f"a divisor of the image's {side} pixels", self.patch)
        coloured = self.model == "clip" and self.dataset == "cifar10"
        checks.require("dataset", not coloured, "digits or mnist for a clip", self.dataset)
        checks.require("augment", not (self.augment and self.dataset != "cifar10"), "off for digits", self.augment)


PRESETS = {
    "demo": Options(),
    "quick": Options(
        model="clip", dataset="mnist", patch=7, width=64, blocks=4, steps=4000, learning_rate=1e-3
    ),
    "cifar10": Options(
        dataset="cifar10", patch=4, width=128, blocks=5, steps=18_720, batch=64, learning_rate=1e-3,
        augment=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A network of a seed."""

    seed: int

    def __str__(self) -> str:
        """In words."""
        return f"seed {self.seed}"


def run(options: Options) -> pd.DataFrame:
    """Trains the networks that are missing, and keeps them; the rows to report."""
    with inside.users_errors():
        trained, evaluate = prepared(options)

        def measured(state) -> dict:
            model = trained.model(state)
            if int(state.step) == options.steps:
                cetsim.save(path_of(options, int(state.seed)), model)
            return evaluate(model)

        start, every = (lambda one, _: trained.init(one.seed)), max(1, options.steps // EVALUATIONS)
        how = dict(hyperparameters=lambda one: one, on_host=True)
        training = sweep.Training(start, eqx.filter_jit(trained.advance), measured, options.steps, every, **how)
        names = ("model", "dataset", "patch", "width", "blocks", "batch", "learning_rate", "weight_decay", "augment")
        config = {name: getattr(options, name) for name in names} | {"pixels": PIXELS[options.model]}
        columns = COLUMNS | {"images": options.dataset, "network": options.model}
        runs = [Run(seed) for seed in range(options.seeds)]
        how = dict(config=config, columns=columns, describe=str, batch=1, fresh=options.fresh)
        table = sweep.run(options.folder, runs, training, **how)
    return reported(table, options)


def prepared(options: Options) -> tuple[pretraining.Pretraining, Callable]:
    """The training, and what is measured of a model on test images."""
    data = datasets.load(options.dataset, options.data_dir)
    steps = dict(steps=options.steps, batch=options.batch, rate=options.learning_rate, decay=options.weight_decay)
    make, steps["augment"] = maker(options, data), options.augment
    if options.model == "vit":
        loss, evaluate, train_y = pretraining.classified, pretraining.accuracy, data.train_y
        x, test = (pretraining.standardised(data, images) for images in (data.train_x, data.test_x))
        test = (test, data.test_y)
    else:
        captioned = datasets.captioned_digits(data)
        loss, evaluate, train_y = pretraining.matched, pretraining.caption_accuracy, captioned.train.captions
        x, test = captioned.train.x, (captioned.test.x, captioned.test.facts)
    trained = pretraining.Pretraining(make, loss, jnp.asarray(x), jnp.asarray(train_y), **steps)
    return trained, lambda model: evaluate(model, *test)


def maker(options: Options, data) -> Callable:
    """How a network of these options is made, of a key."""
    channels, height, width = data.train_x.shape[1:]
    if options.model == "vit":
        return pretraining.vit((channels, height, width), options.patch, options.width, options.blocks, 10)
    return pretraining.clip((3, height, 2 * width), options.patch, options.width, options.blocks)


def path_of(options: Options, seed: int) -> Path:
    """The file of a trained network; `cetsim.load(path, maker(options, data)(key))` reads it."""
    return options.folder / f"{options.model}-{options.dataset}-{options.steps}-{seed}.eqx"


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure: accuracy against steps."""
    rows = rows[(rows["images"] == options.dataset) & (rows["network"] == options.model)]
    last, name = rows[rows["step"] == rows["step"].max()], tables.DATASETS[options.dataset]
    shown = {"accuracy": "accuracy, %"} | {n: f"{n}, %" for n in PARTS if n in set(rows["metric"])}
    values = [tables.cell(last.loc[last["metric"] == metric, "value"].astype(float)) for metric in shown]
    print(tables.text(f"{name}: test images", ["", *shown.values()], [(KINDS[options.model], values)]))
    files = [file for seed in range(options.seeds) if (file := path_of(options, seed)).exists()]
    print(*(f"network: {file}" for file in files), sep="\n")
    with plots.figure() as (figure, axes):
        for (metric, label), colour in zip(shown.items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False):
            own = rows[rows["metric"] == metric]
            plots.curves(axes[0, 0], own, style=dict(color=colour), name=label.partition(",")[0], scale=100)
        axes[0, 0].set(xlabel="step", ylabel="right (%)")
        note = f"{name}, {KINDS[options.model]}; {captions.plural(rows['seed'].nunique(), 'seed')}."
        return plots.save(figure, options.folder, "small-transformers", note, axes[0, 0], columns=4)
