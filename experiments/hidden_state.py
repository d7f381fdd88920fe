"""Control without velocities: a fixed random reservoir remembers, and what is behind it learns from late credit.

Of CartPole an agent sees the two positions, of Acrobot the two angles, of LunarLander, the paper's task, the position,
the angle and whether legs touch the ground. Alone they do not say where things move. A
reservoir is a fixed random recurrent network, of rates or of spiking neurons, one for each seed, at rest before each
episode; only what is behind it learns. That is the actor of the other experiments, layers of ReLU and a linear readout
to the policy. The critic sees what the actor sees.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator

from cetsim.rl import environments, from_gymnasium, reservoirs
from cetsim.rl.reservoirs import Reservoir
from experiments.common import captions, checks, plots, returns, rl, tables
from experiments.common.conditions import Condition

WORDS = {
    "whole": "whole state",
    "positions": "positions alone",
    "rate": "reservoir of rates",
    "spiking": "spiking reservoir",
}
SEEN = ("positions", "rate", "spiking")
RESERVOIR_KEY = 3  # folded into the key of a run's seed


class Task(NamedTuple):
    """An environment whose velocities are hidden.

    **Fields:**

    - `name`: in gymnax or, of LunarLander, in Gymnasium.
    - `seen`: places of positions in an observation; `units`: of each, about its range.
    - `time_constant`: of a reservoir's neurons, in seconds.
    - `gains`: by kind, what a reservoir's inputs are weighed with. In LunarLander, whose positions change little
      from step to step, rates of gain 1 do not tell velocities.
    """

    name: str
    seen: tuple[int, ...]
    units: tuple[float, ...]
    time_constant: float
    gains: dict[str, float]


TASKS = {
    "cartpole": Task("CartPole-v1", (0, 2), (2.4, 0.2), 0.2, {"rate": 1.0, "spiking": 4.0}),
    "acrobot": Task("Acrobot-v1", (0, 1, 2, 3), (1.0,) * 4, 0.4, {"rate": 1.0, "spiking": 2.0}),
    "lunarlander": Task("LunarLander-v3", (0, 1, 4, 6, 7), (1.0,) * 5, 0.2, {"rate": 0.1, "spiking": 4.0}),
}
PAPERS = {"positions": "LunarLander-v2 POMDP without reservoir", "rate": "LunarLander-v2 POMDP with reservoir"}


@dataclass(frozen=True)
class Options(rl.LateControl):
    """Control without velocities, learned from late credit, with and without a fixed random reservoir.

    An actor-critic acts every 0.2 s, and its signals reach the actor's synapses --delays seconds later. It sees
    positions alone, or what a reservoir holds of them. Compared are the exponential trace, cascades with their peak at
    the delay, a delay line, and signals without delay.
    """

    preset: Literal["demo", "quick", "acrobot", "lunarlander"] = "demo"
    """demo: CartPole at one delay, in minutes; quick: at two, with three seeds; acrobot: the same of Acrobot;
    lunarlander: the paper's task at one delay, in hours."""
    environment: Literal["cartpole", "acrobot", "lunarlander"] = "cartpole"
    """CartPole-v1, Acrobot-v1 or LunarLander-v3, without velocities."""
    views: Annotated[tuple[Literal["whole", "positions", "rate", "spiking"], ...], checks.WORDS] = SEEN
    """What agents see: a whole state, its positions alone, or these through a reservoir of rates or of spikes."""
    reservoir: Annotated[int, checks.COUNT] = 128
    """Neurons of a reservoir."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers of actor and critic, which are behind the reservoir."""
    frames: int = 1_000_000
    """Length of a run, in steps over all environments."""

    @property
    def dataset(self) -> str:
        """Name of the environment."""
        return f"{TASKS[self.environment].name} without velocities"

    @property
    def sides(self) -> tuple[int, int]:
        """Environments side by side, and steps of each between two updates: by default as in the paper's CartPole."""
        paper = rl.PAPER["cartpole"]
        return self.environments or paper.environments, self.rollout or paper.rollout


PRESETS = {
    "demo": Options(
        views=("positions", "rate"), delays=(4.0,), orders=(10,), seeds=1, frames=500_000, learning_rates=(1e-3,)
    ),
    "quick": Options(),
    "acrobot": Options(environment="acrobot"),
    "lunarlander": Options(environment="lunarlander", delays=(8.0,), orders=(5,), hidden=(256, 256), frames=2_000_000),
}


@dataclass(frozen=True)
class Setting(rl.Setting):
    """All that runs depend on besides their conditions."""

    reservoir: int = 128
    task: Task | None = None


class Course(rl.Course):
    """Runs of agents that see what the conditions' views leave; each seed has a reservoir of its own."""

    static = (*rl.Course.static, "view", "seed")
    aligned = False

    def open(self):
        """The whole environment, None where it is opened as it is seen."""
        return None if self.on_host else environments.from_gymnax(TASKS[self.options.environment].name)

    def environment_of(self, condition: Condition):
        """The environment in the condition's view, in positive and negative parts where there is no reservoir."""
        view, task = condition.view, TASKS[self.options.environment]
        reservoir = self.reservoir(view, condition.seed) if view in task.gains else None
        if self.on_host:
            wrap = None if view == "whole" else reservoirs.wrapper(task.seen, reservoir)
            return from_gymnasium(task.name, split=reservoir is None, wrap=wrap)
        seen = self.environment if view == "whole" else reservoirs.hidden(self.environment, task.seen)
        return environments.split_signs(seen) if reservoir is None else reservoirs.remembered(seen, reservoir)

    def reservoir(self, kind: str, seed: int) -> Reservoir:
        """That of a seed."""
        task, key = TASKS[self.options.environment], jax.random.fold_in(jax.random.key(seed), RESERVOIR_KEY)
        how = dict(time_constant=task.time_constant, dt=self.options.dt, gain=task.gains[kind] / np.array(task.units))
        return Reservoir(len(task.seen), self.options.reservoir, kind, **how, key=key)

    def config(self) -> Setting:
        """All that runs depend on besides their conditions."""
        more = dict(reservoir=self.options.reservoir, task=TASKS[self.options.environment])
        return Setting(**vars(super().config()), **more)


def conditions(options: Options) -> list[Condition]:
    """In every view every trace at every delay, and signals without delay."""
    return [condition for view in options.views for condition in options.late(view=view)]


run = partial(rl.run, conditions, course=Course)


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints a table for each view, and writes the figures of returns after training and on the way."""
    views = [view for view in WORDS if (rows["view"] == view).any()]
    if "whole" in views:
        rows = rows.assign(dataset=rows["dataset"].str.removesuffix(" without velocities"))  # the views say which
    ends = {view: returns.select(rows[rows["view"] == view]) for view in views}
    frame = pd.concat(ends.values())
    delays = sorted(set(frame.loc[frame["trace"] != rl.UNDELAYED[0], "delay_s"])) or [0.0]
    shown = {view: tables.everywhere(own, "delay_s", delays) for view, own in ends.items()}
    for view, own in shown.items():
        title = f"Mean return after training, {WORDS[view]}, {captions.agent(own)}{captions.left_out(own)}"
        print(tables.table(title, own, "delay_s", "delay (s)", scale=1))
        if options.environment == "lunarlander" and view in PAPERS:
            paper = tables.published(PAPERS[view], "mean return")
            found = (f"{tables.label(one.trace, one.order)} {one.value:g}" for one in paper.itertuples())
            print(f"paper, at a delay that is not known here: {', '.join(found)}")
    frame = pd.concat(shown.values())
    frame["view"] = frame["view"].map(WORDS).str.replace(" ", "\n", n=1)
    return [*draw_final(frame, delays, options), *draw_curves(rows, shown, delays, options)]


def draw_final(frame: pd.DataFrame, delays: list[float], options: Options) -> list[Path]:
    """Return after training in each view, a panel a delay."""
    late = [(frame[frame["delay_s"] == delay], f"{delay:g} s late") for delay in delays]
    panels = [dict(frame=own, x="view", xlabel="", band=False, apart=0.08, title=title) for own, title in late]
    note = f"{captions.agent(frame)}{captions.seeds(frame, 'Marks: means; dots: seeds; bars: their range.')}"
    note += captions.left_out(frame)
    ylabel, how = f"mean return of {options.episodes} episodes", dict(width=plots.PAGE_WIDTH, columns=len(delays))
    return plots.panels(options.folder, options.name, note, panels, ylabel, names=len(tables.traces(frame)), **how)


def draw_curves(rows: pd.DataFrame, shown: dict[str, pd.DataFrame], delays: list[float], options: Options):
    """Return of the episodes that ended, against frames: a row a delay, a column a view; the figure's paths."""
    panels, returned = [], rows[rows["metric"] == "return"]
    for delay in delays:
        for view, own in shown.items():
            sound = own.loc[(own["delay_s"] == delay) & ~own["lost"], "run"]
            panel = dict(frame=returned[returned["run"].isin(sound)], keys=tables.traces(own)[::-1], marks=6)
            panels.append(panel | dict(title=f"{WORDS[view]}, {delay:g} s late", xlabel="frames"))

    def set_ticks(axes):
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(4))
        axes[0, 0].xaxis.set_major_formatter(EngFormatter(sep=""))

    frame = pd.concat(shown.values())
    note = f"{captions.agent(frame)}{captions.seeds(frame, 'Thick: mean; thin: seeds.')}{captions.left_out(frame)}"
    how = dict(columns=len(shown), names=len(panels[0]["keys"]), draw=plots.curves_of_traces, finish=set_ticks)
    name = f"{options.name}-curves"
    return plots.panels(options.folder, name, note, panels, "return of an episode", sharex=True, **how)
