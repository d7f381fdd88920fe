"""What a local rule loses against backprop through time: recurrent networks that match a stimulus with an earlier one.

A pattern is seen for 0.1 s, then nothing for a pause, then a pattern again; while it is there, and for 0.1 s after it,
the network says whether it is the same. It must hold the first one over the pause. By e-prop's factorisation a synapse
sees only what its own neuron keeps: a GRU's gate keeps much, a leaky neuron what its leak leaves, a vanilla one
nothing, so that nothing of what it did before the pause is ever credited, although its weights may hold a pattern.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay, attach, detach, spiking, sweep
from experiments.common import captions, checks, plots, tables
from experiments.common.conditions import Condition, from_record, recorded
from experiments.common.options import Sweep
from experiments.common.selection import reported, users_errors

DT, SEEN, ANSWERED = 0.05, 2, 2  # seconds a step; steps that a pattern is seen, and that answers follow it
PATTERNS, INPUTS, NOISE = 4, 8, 0.1  # number of patterns, their size, noise of every input
BATCH, TESTED = 64, 2000  # sequences
CELLS = {"rnn": ("rnn", 0.0), "leaky rnn": ("rnn", 0.9), "gru": ("gru", 0.0)}
WORDS = {"rnn": "vanilla RNN", "leaky rnn": "leaky RNN", "gru": "GRU"}


@dataclass(frozen=True)
class Options(Sweep):
    """What a local rule loses against backprop through time, in recurrent networks without spikes.

    A delayed match to sample. Compared are backprop through time, e-prop's local rule at once (no delay), and that with
    credit --delay seconds late: by a cascade with its peak at the delay, and by an exponential trace.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: one pause and one seed, in a minute; quick: two pauses and three seeds, in some minutes."""
    cells: Annotated[tuple[Literal["rnn", "leaky rnn", "gru"], ...], checks.WORDS] = tuple(CELLS)
    """Networks: vanilla, leaky (0.5 s), and gated."""
    pauses: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (0.25,)
    """Time between the patterns in seconds, multiples of 0.05 s."""
    delay: Annotated[float, checks.ABOVE_ZERO] = 0.5
    """Delay of credit in seconds, a multiple of 0.05 s."""
    order: Annotated[int, checks.ORDER] = 10
    """Order of the cascade, 2 to 64."""
    hidden: Annotated[int, checks.COUNT] = 64
    """Number of neurons."""
    steps: Annotated[int, checks.COUNT] = 200
    """Updates, of 64 sequences each."""
    learning_rates: tuple[float, ...] = (3e-3,)
    """Adam's learning rate, one."""
    seeds: int = 1

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("learning_rates", len(self.learning_rates) == 1, "one", self.learning_rates)
        for name, values in (("pauses", self.pauses), ("delay", (self.delay,))):
            whole = all(checks.whole_steps(value, DT) for value in values)
            checks.require(name, whole, f"multiples of {DT:g} s", getattr(self, name))


PRESETS = {
    "demo": Options(),
    "quick": Options(pauses=(0.1, 0.5), steps=500, seeds=3),
}


def sequences(key, pause_s: float, count: int):
    """Inputs `[count, time, INPUTS]` and whether the patterns match, `[count]`, which they do half of the time."""
    first, match, other, noise = jax.random.split(key, 4)
    shown = jax.random.randint(first, (count,), 0, PATTERNS)
    same = jax.random.bernoulli(match, 0.5, (count,))
    second = jnp.where(same, shown, (shown + jax.random.randint(other, (count,), 1, PATTERNS)) % PATTERNS)
    patterns = jax.random.normal(jax.random.key(0), (PATTERNS, INPUTS))  # of all runs
    pause = jnp.zeros((round(pause_s / DT), count, INPUTS))
    spread = lambda which: jnp.broadcast_to(patterns[which], (SEEN, count, INPUTS))  # noqa: E731
    x = jnp.concatenate([spread(shown), pause, spread(second), jnp.zeros((ANSWERED, count, INPUTS))])
    return jnp.swapaxes(x + NOISE * jax.random.normal(noise, x.shape), 0, 1), same.astype(int)


def logits(model, x):
    """Of the steps that count, `[count, SEEN + ANSWERED, 2]`."""
    return jax.vmap(jax.vmap(model, axis_name="time"))(x)[:, -SEEN - ANSWERED :]


def network(cell: str, hidden: int, key):
    """A recurrent layer and a linear readout."""
    one, two = jax.random.split(key)
    kind, retained = CELLS[cell]
    layer = spiking.RecurrentLayer(INPUTS, hidden, kind, retained=retained, key=one)
    return eqx.nn.Sequential([layer, eqx.nn.Linear(hidden, 2, key=two)])


def rule(condition: Condition):
    """What makes the model of a loss from a plain one."""
    late = FixedDelay(condition.delay_s, DT, keep_late=True)
    match condition.trace:
        case "backprop":
            return lambda model: model
        case "CET":
            trace = CascadingTrace(condition.order, condition.delay_s, DT)
        case "ET":
            trace = ExponentialTrace(condition.delay_s, DT)
        case _:  # e-prop, at once
            trace = DelayLine(0.0, DT)
    return lambda model: attach(model, trace, late)


def train(condition: Condition, hidden: int, steps: int) -> list[dict]:
    """Trains one network; rows of its loss on the way and its accuracy on sequences of its own."""
    losses, accuracy = course(replace(condition, seed=0), hidden, steps)(jax.random.key(condition.seed))
    size = max(1, steps // 20)
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(losses), -(-steps // size))]
    rows = [{"metric": "train_loss", "step": min((i + 1) * size, steps), "value": v} for i, v in enumerate(means)]
    return [*rows, {"metric": "test_accuracy", "step": steps, "value": float(accuracy)}]


@cache
def course(condition: Condition, hidden: int, steps: int):
    """One program for all seeds, of a key: losses of every update, and accuracy after them."""
    adam, learned = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(condition.learning_rate)), rule(condition)
    static = eqx.filter(network(condition.cell, hidden, jax.random.key(0)), eqx.is_inexact_array, inverse=True)

    def loss(params, x, same):
        found = logits(learned(eqx.combine(params, static)), x)
        every = jnp.broadcast_to(same[:, None], found.shape[:2])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, every))

    def update(carry, key):
        params, state = carry
        value, grads = eqx.filter_value_and_grad(loss)(params, *sequences(key, condition.pause_s, BATCH))
        grads = detach(grads) if condition.trace != "backprop" else grads
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def trained(key):
        of_weights, of_updates, of_test = jax.random.split(key, 3)
        params = eqx.filter(network(condition.cell, hidden, of_weights), eqx.is_inexact_array)
        start = params, adam.init(params)
        (params, _), losses = jax.lax.scan(update, start, jax.random.split(of_updates, steps))
        x, same = sequences(of_test, condition.pause_s, TESTED)
        answers = jnp.argmax(jnp.mean(logits(eqx.combine(params, static), x), axis=1), axis=-1)
        return losses, jnp.mean(answers == same)

    return trained


def conditions(options: Options) -> list[Condition]:
    """Every rule in every network at every pause."""
    rules = (("backprop", 0, 0.0), ("e-prop", 0, 0.0), ("CET", options.order, options.delay), ("ET", 1, options.delay))
    rate = options.learning_rates[0]
    return [
        Condition(*own, rate, seed, cell=cell, pause_s=pause)
        for cell in options.cells
        for pause in options.pauses
        for own in rules
        for seed in range(options.seeds)
    ]


def run(options: Options) -> pd.DataFrame:
    """Trains what is not finished; the rows to report."""
    measured = partial(train, hidden=options.hidden, steps=options.steps)
    nothing = sweep.Training(
        lambda kernel, key: kernel, lambda kernel, steps: (kernel, {}), measured, 1, hyperparameters=from_record,
        on_host=True,
    )  # fmt: skip
    with users_errors():
        how = dict(config={"steps": options.steps, "hidden": options.hidden}, defaults=recorded(Condition()))
        named = {"experiment": options.name, "network": f"{options.hidden} neurons"}
        how |= dict(columns=named, batch=1, fresh=options.fresh, shard=options.shard)
        table = sweep.run(options.folder, map(recorded, conditions(options)), nothing, **how)
    return reported(table, options)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints a table for each network and writes the figure of accuracy against the pause."""
    ends = tables.finals(rows)
    panels = []
    for cell, frame in ends.groupby("cell", sort=False):
        print(tables.table(f"Test accuracy in %, {WORDS[cell]}", frame, "pause_s", "pause (s)"))
        panels.append(dict(frame=frame, x="pause_s", xlabel="pause (s)", scale=100, title=WORDS[cell]))
    late = ends.loc[ends["delay_s"] > 0, "delay_s"].iloc[-1]
    seeds = captions.plural(ends["seed"].nunique(), "seed")
    note = (
        f"{ends['network'].iloc[0]}, {ends['step'].iloc[0]:,} updates of {BATCH} sequences, {seeds}. backprop: "
        f"through time; e-prop: the local rule without delay; CET and ET: with credit {late:g} s late. Chance is 50 %."
        f"{captions.seeds(ends)}{captions.left_out(ends)}"
    )
    return plots.panels(
        options.folder, "delayed-match", note, panels, "test accuracy (%)", columns=len(panels), finish=_chance
    )


def _chance(axes) -> None:
    for axis in axes.flat:
        axis.axhline(50, color="#999999", linewidth=0.6, zorder=0)
