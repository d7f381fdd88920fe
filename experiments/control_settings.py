"""What of a setting makes control learn from late credit: ours and the authors', with one thing changed at a time.

Beside the returns it is measured, along the way:

- how far the late update points along the policy gradient that comes at once;
- how far TD errors are from centred: their mean in units of their root mean square. A blurred trace multiplies it
  with activity of all lags, which a sharp one does not;
- what share the actor has of the gradient that is clipped, by its norm.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.ticker import EngFormatter

from cetsim import sweep
from experiments.common import captions, checks, plots, rl, selection, tables
from experiments.common.conditions import Condition
from experiments.common.selection import users_errors

BASES = ("ours", "authors")
NOW = "clipped each, TD errors less their running mean"  # our defaults since
_BEFORE = dict(clip_each=False, center_td=None)  # of both bases, and our defaults until this experiment
_AUTHORS = _BEFORE | dict(  # what theirs has and ours has not
    normalization="peak", cascade="first_stage", truncation="terminate", late_flag=True, form="authors_linear",
    anneal="critic",
)  # fmt: skip
_WORDS = {
    "normalization": "weights with a peak of 1", "cascade": "input to the first stage alone",
    "truncation": "ends without bootstrap", "late_flag": "late flag of ends", "form": "authors' form of the rule",
    "anneal": "falling rate of the critic",
}  # fmt: skip
_MORE = {
    "TD errors less their running mean": dict(center_td=0.9),
    "critic at 10 times the rate": dict(critic_rate=10.0),
    "actor and critic clipped each": dict(clip_each=True),
    NOW: dict(clip_each=True, center_td=0.9),
    "sum of gradients, entropy × 128": dict(actor_gradient="sum", entropy=1.28),
    "synapses forget at an episode's end": dict(reset_cascade=True),
    "late critic": dict(late_critic=True),
    "Adam's ε 1e-8": dict(epsilon=1e-8),
    "slopes remembered in a cascade": dict(derivative="cascade"),
    "actor held until TD errors are centred": dict(hold_actor=0.1),
    "clipped each, actor held until TD errors are centred": dict(clip_each=True, hold_actor=0.1),
}
CHANGES = {
    "ours": {"": _BEFORE}
    | {words: _BEFORE | changed for words, changed in _MORE.items()}
    | {f"+ {words}": _BEFORE | {name: _AUTHORS[name]} for name, words in _WORDS.items()},
    "authors": {"": _AUTHORS}
    | {f"- {words}": _AUTHORS | {name: getattr(rl.Agent, name)} for name, words in _WORDS.items()},
}
TD_MEAN, SHARE = "mean of TD errors", "actor's share"


@dataclass(frozen=True)
class Options(rl.Control):
    """What of a setting makes control learn from late credit: ours and the authors', one thing changed at a time.

    Cascades with one learning rate for actor and critic, beside the same agent without delay.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: ours and the authors' setting of CartPole at one delay, in minutes; quick: all changes, in hours."""
    bases: tuple[Literal["ours", "authors"], ...] = ("ours", "authors")
    """Whose setting is changed."""
    changes: Literal["none", "all"] = "all"
    """none: leave the settings as they are."""
    orders: tuple[int, ...] = (10,)
    """Orders of the cascading traces, 2 to 64."""
    delays: Annotated[tuple[float, ...], checks.steps] = (8.0, 64.0)
    """Delays of credit in seconds, multiples of 0.2 s."""
    long_delays: Annotated[tuple[float, ...], checks.steps, checks.OPTIONAL] = (128.0,)
    """Delays at which there is one seed, for twice as many frames."""

    @property
    def longest(self) -> float:
        """The longest delay of any signal, in seconds."""
        return max(self.delays)

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        checks.require("environment", self.environment != "lunarlander", "simulated in JAX", self.environment)
        checks.require("learning_rates", len(self.learning_rates) == 1, "one rate", self.learning_rates)
        for name in ("balanced", "sharp", "contrasts"):
            given = getattr(self, name)
            checks.require(name, not given, "left out: cascades alone are compared", given)


PRESETS = {
    "demo": Options(changes="none", seeds=1, frames=500_000, delays=(8.0,), long_delays=()),
    "quick": Options(frames=1_000_000),
}


class Course(rl.Course):
    """Runs of one setting, named in a column; alignment and TD errors are measured ten times."""

    measured = 10

    def __init__(self, options: Options, measured_on: str, base: str, change: str):
        super().__init__(options, measured_on)
        self.named = {"base": base, "change": change}

    def _evaluations(self, run, with_trace, at: set[int]) -> list[sweep.Evaluation]:
        def signals(state):
            key = jax.random.fold_in(jax.random.fold_in(state[1], rl.ALIGNMENT_KEY), state[0].agent.step)
            return signals_of(run, with_trace(state[0]), key)

        return [*super()._evaluations(run, with_trace, at), sweep.Evaluation(signals, at=sorted({*at, self.updates}))]

    def columns(self, condition: Condition) -> dict[str, Any]:
        """What rows of a run say besides its condition."""
        return super().columns(condition) | {"form": "", "variant": ""} | self.named


def signals_of(run, state, key) -> dict[str, jax.Array]:
    """What is learned from in some rollouts from where the run is, weights held.

    - mean of TD errors, in units of their root mean square;
    - actor's share: its norm of the gradient of both, before the clip, mean over rollouts.
    """
    learner, agent = run.learner, state.agent
    size = lambda tree: optax.tree.norm(tree, squared=True)  # noqa: E731

    def go_on(carry, key):
        vector_env, layers, sums = carry
        vector_env, rollout = run.roll_out(agent.params, vector_env, key)
        error, _ = learner.td_errors(agent.hyper, learner.networks(agent.params).critic, rollout)
        now = eqx.tree_at(lambda agent: agent.layers, agent, layers)
        layers, gradient, _ = learner.gradient(now, rollout)
        share = jnp.sqrt(size(gradient.actor) / size(gradient))
        return (vector_env, layers, sums + jnp.stack([jnp.mean(error), jnp.mean(error**2), share])), None

    start = state.vector_env, agent.layers, jnp.zeros(3)
    (_, _, sums), _ = jax.lax.scan(go_on, start, jax.random.split(key, rl.ROLLOUTS))
    first, second, share = sums / rl.ROLLOUTS
    return {TD_MEAN: first / jnp.sqrt(second), SHARE: share}


def settings(options: Options) -> list[tuple[str, str, Options]]:
    """Whose setting, what is changed of it, in words, and the options that say so; those without a change first."""
    found = []
    for base in options.bases:
        changes = CHANGES[base] if options.changes == "all" else {"": CHANGES[base][""]}
        found += [(base, words, replace(options, **changed)) for words, changed in changes.items()]
    return sorted(found, key=lambda setting: setting[1] != "")


def run(options: Options) -> pd.DataFrame:
    """Trains what is not finished: all settings at one delay after the other, then without delay, then at long ones."""
    cascades = lambda delays: [("CET", order, delay) for delay in delays for order in options.orders]  # noqa: E731
    longer = replace(options, frames=2 * options.frames, seeds=1, delays=options.long_delays)
    work = [(options, one) for one in (*cascades(options.delays), (*rl.UNDELAYED, 0.0))]
    work += [(longer, one) for one in cascades(options.long_delays)]
    records, fresh = {}, options.fresh
    for number, (these, one) in enumerate(work):
        for place, (base, change, changed) in enumerate(settings(these)):
            with users_errors():
                course = Course(changed, "test", base, change)
            rate, stage = options.learning_rates[0], f"{number}-{place}"
            runs = [Condition(*one, rate, seed, boundary="carry") for seed in range(these.seeds)]
            table = selection.train(course, runs, stage=stage, batch=options.batch_conditions, fresh=fresh)
            records, fresh = records | table.records, False
    return selection.reported(sweep.Table(records), options)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table and writes the figures."""
    rows = rows.assign(change=rows["change"].astype(object).where(rows["change"].notna(), ""))
    ends = tables.finals(rows, "test_return")
    delays, names = sorted(set(ends["delay_s"])), list(dict.fromkeys(zip(ends["base"], ends["change"], strict=True)))
    names.sort(key=lambda name: BASES.index(name[0]))
    body = []
    for name in names:
        values = [of_setting(ends, *name).query("delay_s == @delay")["value"] for delay in delays]
        body.append((words(*name), [tables.cell(some, 1.0) if len(some) else "" for some in values]))
    head = ["", *("no delay" if delay == 0 else f"{delay:g} s" for delay in delays)]
    print(tables.text(f"Mean return after training, {ends['dataset'].iloc[0]}", head, body, width=16))
    return [*draw_returns(ends, names, delays, options), *draw_course(rows, options)]


def of_setting(frame: pd.DataFrame, base: str, change: str) -> pd.DataFrame:
    """The rows of one setting."""
    return frame[(frame["base"] == base) & (frame["change"] == change)]


def words(base: str, change: str) -> str:
    """Name of a setting."""
    return change or {"ours": "ours until now", "authors": "the authors'"}[base]


def draw_returns(ends: pd.DataFrame, names: list[tuple[str, str]], delays: list[float], options: Options) -> list[Path]:
    """Return of every setting, a dot a seed, a panel a delay."""
    how = dict(width=plots.PAGE_WIDTH, height=0.9 + 0.17 * len(names), sharey=True, sharex=True)
    with plots.figure(1, len(delays), **how) as (figure, axes):
        for axis, delay in zip(axes[0], delays, strict=True):
            for row, name in enumerate(names[::-1]):
                values = of_setting(ends, *name).query("delay_s == @delay")["value"]
                style = dict(color="#0072B2" if name[0] == "ours" else "#D55E00")
                axis.plot(values, [row] * len(values), ".", markersize=4, alpha=0.7, **style)
                axis.plot([values.mean()], [row], "|", markersize=9, **style)
            steps = ends.loc[ends["delay_s"] == delay, "step"].max()
            axis.set_title("no delay" if delay == 0 else f"{delay:g} s late", loc="left")
            axis.set_xlabel(f"return after {round(steps / 1e6, 1):g}M frames")
            axis.grid(axis="y", linewidth=0.3, alpha=0.5)
        axes[0, 0].set_yticks(range(len(names)), [words(*name) for name in names[::-1]])
        axes[0, 0].set_xlim(left=0)
        counts = ends.groupby("delay_s")["seed"].nunique()
        seeds = ", ".join(f"{count} at {delay:g} s" for delay, count in counts.items() if delay)
        note = f"{ends['dataset'].iloc[0]}, {tables.label('CET', options.orders[0])}, one learning rate of "
        note += f"{options.learning_rates[0]:g} for actor and critic. Dots: seeds ({seeds}); line: mean."
        return plots.save(figure, options.folder, options.name, note + captions.left_out(ends))


def draw_course(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Along the way of our settings, until now and now, and of the authors': return, cosine, what is learned from."""
    rows = rows[rows["change"].isin(["", NOW]) & (rows["delay_s"] > 0)]
    delays, last = sorted(set(rows["delay_s"])), f"layers.{len(options.hidden)}"
    aligned = rows["metric"] == "alignment"
    shown = {
        "return": rows[rows["metric"] == "return"],
        "cosine, top layer": rows[aligned & (rows["layer"] == last)],
        "cosine, first layer": rows[aligned & (rows["layer"] == "layers.0")],
        "mean TD error": rows[rows["metric"] == TD_MEAN],
        SHARE: rows[rows["metric"] == SHARE],
    }
    shown = {name: frame for name, frame in shown.items() if len(frame)}  # older tables have no share
    how = dict(width=plots.PAGE_WIDTH, height=1.0 + 1.2 * len(shown), sharex="col", sharey="row")
    with plots.figure(len(shown), len(delays), **how) as (figure, axes):
        for row, (name, frame) in zip(axes, shown.items(), strict=True):
            for axis, delay in zip(row, delays, strict=True):
                for one, label, color in (
                    (("ours", ""), "ours until now", "#0072B2"),
                    (("ours", NOW), "ours now", "#009E73"),
                    (("authors", ""), "authors", "#D55E00"),
                ):
                    runs = of_setting(frame[frame["delay_s"] == delay], *one)
                    if len(runs):
                        plots.curves(axis, runs, style=dict(color=color), name=label)
                axis.xaxis.set_major_formatter(EngFormatter(sep=""))
                axis.axhline(0, color="#999999", linewidth=0.5)
            row[0].set_ylabel(name)
        for axis, delay in zip(axes[0], delays, strict=True):
            axis.set_title(f"{delay:g} s late", loc="left")
        for axis in axes[-1]:
            axis.set_xlabel("frames")
        note = (
            f"{rows['dataset'].iloc[0]}, {tables.label('CET', options.orders[0])}. Cosine: of the late update with the "
        )
        note += "policy gradient at once, weights held; mean TD error: in units of its root mean square. "
        if SHARE in shown:
            note += "Actor's share: its norm of the gradient of actor and critic, before the clip. "
        note += "Thick: mean; thin: seeds."
        return plots.save(figure, options.folder, f"{options.name}-course", note, axes[0, 0])
