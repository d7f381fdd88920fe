"""The tables and figures of control: returns and alignment, by trace and delay."""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.common import captions, plots, tables
from experiments.common.rl import MEASURED, NAMES, PAPER, UNDELAYED, Control

_SUBJECT = ("dataset", "network", "critic_rate", "variant")


def select(rows: pd.DataFrame) -> pd.DataFrame:
    """What the runs of the last row's environment and networks ended with, the longest of them."""
    ends = tables.finals(rows, "test_return")
    ends = ends[(ends[list(_SUBJECT)] == ends[list(_SUBJECT)].iloc[-1]).all(axis=1)]
    ends = ends[ends["step"] == ends["step"].max()]
    return ends.drop_duplicates(["trace", "order", "delay_s", "seed"], keep="last")


def alignment(rows: pd.DataFrame, ends: pd.DataFrame) -> pd.DataFrame:
    """Of each run and layer, the mean cosine over the moments at which it was measured."""
    found = rows[(rows["metric"] == "alignment") & rows["run"].isin(ends["run"])]
    mean = found.groupby(["run", "layer"], as_index=False, sort=False)["value"].mean()
    return mean.merge(ends.drop(columns=["value", "layer", "metric"]), on="run")


def report(rows: pd.DataFrame, options: Control) -> list[Path]:
    """Prints the tables and writes the figures."""
    ends = select(rows)
    delays = sorted(set(ends.loc[ends["trace"] != UNDELAYED[0], "delay_s"])) or [0.0]
    spread, aligned = (tables.everywhere(frame, "delay_s", delays) for frame in (ends, alignment(rows, ends)))
    retrograde = (ends["scenario"] == "retrograde").any()
    dataset = ends["dataset"].iloc[0] + (" LIF" if _spiking(ends) else "")
    paper = None if retrograde else tables.published(dataset, "mean return", delays=delays)
    title = f"Mean return after training, {captions.agent(ends)}{captions.left_out(ends)}"
    print(tables.table(title, spread, "delay_s", "delay (s)", paper, scale=1))
    for layer, part in aligned.groupby("layer"):
        title = f"Cosine of the late and the undelayed policy gradient, {layer}"
        print(tables.table(title, part, "delay_s", "delay (s)", scale=1, digits=3))
    paths = plots.left_out(options.name, "one delay") if len(delays) < 2 else draw_final(spread, paper, options)
    paths += draw_curves(rows, spread, delays, retrograde, options)
    return paths + draw_alignment(aligned[aligned["trace"] != UNDELAYED[0]], ends, options)


def _spiking(frame: pd.DataFrame) -> bool:
    """Whether the actor's hidden neurons spike."""
    return "neurons=lif" in frame["variant"].iloc[0]


def draw_final(spread: pd.DataFrame, paper: pd.DataFrame | None, options: Control) -> list[Path]:
    """Return after training against the delay, of each trace."""
    shown = dict(frame=spread, x="delay_s", xlabel="delay of credit (s)", band=False, apart=0.012, paper=paper)
    note = f"{captions.agent(spread)}{captions.seeds(spread, 'Marks: means; dots: seeds; bars: their range.')}"
    note += captions.left_out(spread)
    if paper is not None and len(paper):
        frames = next(PAPER[key].frames for key, name in NAMES.items() if name == spread["dataset"].iloc[0])
        known = not _spiking(spread)
        note += captions.published(length=f"of runs of {frames / 1e6:g}M frames" if known else captions.UNSTATED)
    from_zero = lambda axes: axes[0, 0].set_ylim(bottom=min(0.0, axes[0, 0].get_ylim()[0]))  # noqa: E731
    ylabel, how = f"mean return of {options.episodes} episodes", dict(height=2.2, finish=from_zero)
    return plots.panels(options.folder, options.name, note, [shown], ylabel, **how)


def draw_curves(rows: pd.DataFrame, spread: pd.DataFrame, delays: list, retrograde: bool, options: Control):
    """Return of the episodes that ended, against frames, a panel for each delay; returns the figure's paths."""
    columns, keys, returns = min(3, len(delays)), tables.traces(spread)[::-1], rows[rows["metric"] == "return"]
    shown = []
    for delay in delays:
        sound = spread.loc[(spread["delay_s"] == delay) & ~spread["lost"], "run"]
        title = f"{delay:g} s from layer to layer" if retrograde else f"{delay:g} s late"
        shown.append(dict(frame=returns[returns["run"].isin(sound)], keys=keys, marks=6, title=title, xlabel="frames"))

    def set_ticks(axes):
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(4))
        axes[0, 0].xaxis.set_major_formatter(EngFormatter(sep=""))

    note = f"{captions.agent(spread)}{captions.seeds(spread, 'Thick: mean; thin: seeds.')}{captions.left_out(spread)}"
    how = dict(columns=columns, names=len(keys) if columns > 1 else 3, draw=plots.curves_of_traces, finish=set_ticks)
    name = f"{options.name}-curves"
    return plots.panels(options.folder, name, note, shown, "return of an episode", sharex=True, **how)


def draw_alignment(aligned: pd.DataFrame, ends: pd.DataFrame, options: Control) -> list[Path]:
    """Cosine of the late and the undelayed policy gradient against the delay, or the layer; none where not measured."""
    name = f"{options.name}-alignment"
    if aligned["value"].isna().all():
        return plots.left_out(name, "it was not measured")
    layers, keys = sorted(set(aligned["layer"])), tables.traces(aligned)[::-1]
    several, aligned = aligned["delay_s"].nunique() > 1, aligned.assign(place=aligned["layer"].map(layers.index) + 1)
    same = dict(frame=aligned, x="place", xlabel="layer of the actor", keys=keys, linear=True)
    delay = dict(x="delay_s", xlabel="delay of credit (s)", linear=False)
    shown = [same | delay | dict(frame=part, title=f"layer {i}") for i, part in aligned.groupby("place")]
    shown, note = shown if several else [same], captions.agent(ends)
    note += f" Each cosine is a mean over {MEASURED} moments of training, at which weights were held still."
    size = dict(columns=len(shown), height=1.8, names=len(keys) if several else 3)
    size["width"] = plots.PAGE_WIDTH if several else plots.COLUMN_WIDTH
    ylabel = "cosine with the\nundelayed policy gradient"
    return plots.panels(options.folder, name, note + captions.seeds(ends), shown, ylabel, **size)
