"""Does credit that is blurred in time prefer what stays the same over the blur? Colours that stay while images go by.

Digits are coloured, and the colour gives the label away in 95 % of the training images. Networks learn by backprop and
from credit that comes late, through traces; images come in random order, or in runs of one colour, seconds long. A
trace that remembers when an image was seen only roughly mixes it with its neighbours, which then share its colour and
not its shape. Worst-group accuracy on test images without the shortcut says how far a network goes by colour, and
switching off latents, or retraining the last layer, whether what it needs is there all the same. Controls: backprop
from another seed, backprop stopped where it is as accurate as a blurred trace, and a network that was not trained.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Int

from cetsim import datasets, supervised
from experiments.common import captions, checks, inside, late_networks, plots, suppressed, tables
from experiments.common.options import Coders

RULES = {"backprop": ("backprop", 0)} | late_networks.LATE
CONTROLS = (*late_networks.STOPPED, "another seed", "untrained")
COLUMNS = {"experiment": "colour-runs"}


@dataclass(frozen=True)
class Options(Coders):
    """Worst-group accuracy of every rule on coloured digits whose colour stays for runs of images."""

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in two minutes; quick: MNIST, in an hour."""
    dataset: Literal["digits", "mnist"] = "digits"
    """Images, which are coloured."""
    agreement: Annotated[float, checks.INSIDE] = 0.95
    """Share of training images whose colour is that of their label, five or more or not."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (64, 64)
    """Sizes of the hidden layers."""
    learning_rate: Annotated[float, checks.ABOVE_ZERO] = 1e-3
    """Of the networks."""
    delay: Annotated[float, checks.delays] = 2.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s; traces are set to it."""
    rules: Annotated[tuple[str, ...], checks.WORDS] = ("backprop", "CET(10)", "ET")
    """What networks learn by, and controls: stopped at the accuracy of balanced(10), CET(10) or ET, another seed,
    untrained."""
    run_lengths: Annotated[tuple[int, ...], checks.COUNT] = (1, 16)
    """Images of one colour in a row; 1 shuffles all images."""
    latents: Annotated[int, checks.COUNT] = 128
    """Latents of a coder of the first hidden layer."""
    counts: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
    """Numbers of suppressed latents, from 0 on, ascending; the best on validation images counts."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        for rule in self.rules:
            checks.require("rules", rule in (*RULES, *CONTROLS), f"of {', '.join((*RULES, *CONTROLS))}", rule)
        suppressed.check_counts(self)


PRESETS = {
    "demo": Options(steps=300, seeds=1),
    "quick": replace(
        Options(), dataset="mnist", hidden=(256, 256), network_steps=1000, latents=512, k=16,
        steps=400, batch=256, rules=(*RULES, *CONTROLS), seeds=3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Learned:
    """A network that learned by one rule from one order of images."""

    rule: str
    colour_run: int
    seed: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.rule}, runs of {self.colour_run}, seed {self.seed}"


class RunsOfColours(supervised.SupervisedRun):
    """Training in which the runs of the input order are of one attribute, not of one label."""

    attributes: Int[Array, " examples"]

    def __init__(self, make_model, x, labels, attributes, settings):
        super().__init__(make_model, x, labels, settings)
        self.attributes = jnp.asarray(attributes)
        settings.shown.check(self.attributes, settings.segment)

    def _frames(self, state, steps):
        shown = self.settings.shown
        return shown.frames(state.order, self.attributes, state.step, steps, self.settings.segment)


def run(options: Options) -> pd.DataFrame:
    """Trains the networks that are missing, and suppresses; the rows to report."""
    with inside.users_errors():
        data = datasets.load(options.dataset, options.data_dir)
    coloured = cache(lambda seed: datasets.coloured_digits(data, options.agreement, seed=seed))
    runs = [
        Learned(rule, length, seed)
        for seed in range(options.seeds)
        for length in options.run_lengths
        for rule in options.rules
    ]
    names = ("dataset", "agreement", "hidden", "network_steps", "learning_rate", "delay", "examples", "latents", "k")
    config = {name: getattr(options, name) for name in (*names, "steps", "batch", "counts")}
    trained = cache(lambda one: train(options, coloured(one.seed), one, trained))
    measured = lambda one: measure(options, coloured(one.seed), one, trained(one))  # noqa: E731
    columns = lambda one: COLUMNS | {"images": options.dataset} | traced(options, one)  # noqa: E731
    return inside.sweep_on_host(options, runs, measured, config, columns)


def traced(options: Options, one: Learned) -> dict:
    """Trace, order and delay of a rule, as tables have them."""
    trace, order = RULES.get(one.rule, RULES["backprop"])
    return {"trace": trace, "order": order, "delay_s": 0.0 if trace == "backprop" else options.delay}


def train(options: Options, made, one: Learned, trained: Callable) -> inside.Network:
    """The network of a rule, or of a control; `trained(one)` gives others. Stopped ones are as accurate on average."""
    x, test_x = (own.x.reshape(len(own.x), -1) for own in (made.train, made.test))
    make, order = inside.mlp(x.shape[1], options.hidden, 2), datasets.InputOrder(one.colour_run)
    settings = supervised.Settings(steps=options.network_steps, form="authors_linear", input_order=order)
    run = RunsOfColours(make, x, made.train.labels, made.train.attributes, settings)
    seed = one.seed + 1000 if one.rule == "another seed" else one.seed
    sites = {f"layers.{2 * i + 1}": None for i in range(len(options.hidden))}

    def network(state):
        return inside.Network(eqx.combine(state.params, make(jax.random.key(seed))), (), sites)

    def accuracy(network):
        return float((inside.outputs(network, test_x).argmax(1) == made.test.labels).mean())

    aim = None
    if one.rule in late_networks.STOPPED:
        aim = accuracy(trained(replace(one, rule=late_networks.stopped_at(one.rule))))
    score = lambda state: accuracy(network(state))  # noqa: E731
    return network(late_networks.learned(run, options, one.rule, seed, score, aim))


def measure(options: Options, made, one: Learned, network: inside.Network) -> list[dict]:
    """Rows of a network: accuracies by group as it is, without latents of its first layer, with a new last layer."""
    rng, parts = np.random.default_rng(one.seed), []
    for own in made[2:]:
        rows = rng.permutation(len(own.x))[: options.examples]
        flat = own.x[rows].reshape(len(rows), -1)
        parts.append(suppressed.Part(flat, own.labels[rows], own.attributes[rows], own.attributes[rows]))
    train_x = made.train.x[: options.examples].reshape(-1, parts[0].x.shape[1])
    task = suppressed.Task(network, train_x, *parts)
    rows = suppressed.measure(options, task, inside.Run("hidden 1", one.seed))
    before = inside.outputs(task.network, task.test.x).argmax(1)
    return rows + (suppressed.of_last_layer(task, before) if len(options.hidden) > 1 else [])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a network: accuracy, worst group as it is, with latents off, and with its last layer retrained."""
    key = ["rule", "colour_run", "seed"]
    of = lambda frame, metric: frame[frame["metric"] == metric].groupby(key)["value"].first()  # noqa: E731
    test = rows[(rows["part"] == "test") & (rows["kind"] == "latents") & (rows["suppressed"] == 0)]
    best = suppressed.chosen(rows[rows["kind"] == "latents"])
    found = {
        "average": of(test, "average"), "worst": of(test, "worst"), "suppressed": of(best, "worst"),
        "last layer": of(rows[rows["kind"] == "last layer"], "worst"),
    }  # fmt: skip
    return pd.DataFrame(found).reset_index()


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figure."""
    rows = rows[rows["images"] == rows["images"].iloc[-1]]
    name, found = tables.DATASETS[rows["images"].iloc[0]], summary(rows)
    rules = [rule for rule in (*RULES, *CONTROLS) if rule in set(found["rule"])]
    body = []
    for length in sorted(set(found["colour_run"])):
        for rule in rules:
            own = found[(found["rule"] == rule) & (found["colour_run"] == length)]
            cells = [tables.cell(own[n]) for n in ("average", "worst", "suppressed", "last layer")]
            body.append((f"{rule}, runs of {length:g}", cells))
    head = ["", "average", "worst group", "latents off", "last layer new"]
    print(tables.text(f"Coloured {name}, credit {options.delay:g} s late: test accuracy in %", head, body, 16))
    panels = {"worst": "as they are", "suppressed": "latents off", "last layer": "last layer retrained"}
    with plots.figure(1, len(panels), width=plots.PAGE_WIDTH, height=2.6, sharey=True) as (figure, axes):
        for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
            for rule in rules:
                own = found[found["rule"] == rule]
                means, style = 100 * own.groupby("colour_run")[column].mean(), late_networks.STYLES[rule]
                axis.plot(means.index, means, **style, label=rule)
                axis.plot(own["colour_run"], 100 * own[column], ".", color=style["color"], markersize=2.5, alpha=0.6)
            axis.set_title(title, loc="left")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("images of one colour in a row")
        axes[0, 0].set_ylabel("worst-group accuracy (%)")
        seeds = captions.plural(found["seed"].nunique(), "seed")
        note = f"{name}, credit {options.delay:g} s late, 0.2 s an image, {seeds}."
        note += captions.seeds(found, "Line: mean; dots: seeds.")
        return plots.save(figure, options.folder, "colour-runs", note, axes[0, 0], columns=5)
