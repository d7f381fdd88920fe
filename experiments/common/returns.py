"""The tables and figures of control: returns and cosines, by trace and delay."""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.common import plots, tables
from experiments.common.rl import UNDELAYED, Control

_SUBJECT = ("dataset", "network", "critic_rate", "variant")


def select(rows: pd.DataFrame) -> pd.DataFrame:
    """What the runs of the last row's environment and networks ended with, the longest of them."""
    ends = tables.finals(rows, "test_return")
    ends = ends[(ends[list(_SUBJECT)] == ends[list(_SUBJECT)].iloc[-1]).all(axis=1)]
    ends = ends[ends["step"] == ends["step"].max()]
    return ends.drop_duplicates(["trace", "order", "delay_s", "seed"], keep="last")


def settings(ends: pd.DataFrame) -> str:
    """What the runs have in common, for captions."""
    first = ends.iloc[-1]
    variant = f", options: {first['variant']}" if first["variant"] else ""
    return (
        f"{first['dataset']}, {first['network']}, {ends['step'].iloc[0]:,} frames, critic's learning rate "
        f"{first['critic_rate']:g} times the actor's, {tables.plural(ends['seed'].nunique(), 'seed')}{variant}"
    )


def cosines(rows: pd.DataFrame, ends: pd.DataFrame) -> pd.DataFrame:
    """Of each run and layer, the mean cosine over the moments at which it was measured."""
    found = rows[(rows["metric"] == "alignment") & rows["run"].isin(ends["run"])]
    mean = found.groupby(["run", "layer"], as_index=False, sort=False)["value"].mean()
    return mean.merge(ends.drop(columns=["value", "layer", "metric"]), on="run")


def report(rows: pd.DataFrame, options: Control) -> list[Path]:
    """Prints the tables and writes the figures."""
    ends = select(rows)
    late = ends[ends["trace"] != UNDELAYED[0]]
    delays = sorted(set(late["delay_s"])) or [0.0]
    retrograde = (ends["scenario"] == "retrograde").any()
    paper = tables.published(ends["dataset"].iloc[0], "mean return") if not retrograde else None
    paper = paper if paper is None else tables.everywhere(paper, "delay_s", delays)
    spread = tables.everywhere(ends, "delay_s", delays)
    aligned = tables.everywhere(cosines(rows, ends), "delay_s", delays)
    title = f"Mean return after training, {settings(ends)}.{tables.left_out(ends)}"
    print(tables.table(title, spread, "delay_s", "delay (s)", paper, scale=1))
    for layer, own in aligned.groupby("layer"):
        title = f"Cosine of the late and the undelayed policy gradient, {layer}"
        print(tables.table(title, own, "delay_s", "delay (s)", scale=1, digits=3))
    paths = plots.left_out(options.name, "one delay") if len(delays) < 2 else draw_final(spread, paper, options)
    paths += draw_curves(rows, spread, delays, retrograde, options)
    return paths + draw_alignment(aligned[aligned["trace"] != UNDELAYED[0]], ends, options)


def draw_final(spread: pd.DataFrame, paper: pd.DataFrame | None, options: Control) -> list[Path]:
    """Return after training against the delay, of each trace."""
    with plots.figure(height=3.4) as (figure, axes):
        axis = axes[0, 0]
        plots.means(axis, spread, "delay_s", band=False, paper=paper)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.set_xlabel("delay of credit (s)")
        axis.set_ylabel(f"mean return of {options.episodes} episodes")
        note = f"{settings(spread)}.{plots.seeds(spread, 'Marks: means; dots: seeds; bars: their range.')}"
        shown = paper is not None and paper["delay_s"].isin(spread["delay_s"]).any()
        note += tables.left_out(spread) + (plots.HOLLOW if shown else "")
        return plots.save(figure, options.folder, options.name, note, axis)


def draw_curves(rows: pd.DataFrame, spread: pd.DataFrame, delays: list, retrograde: bool, options: Control):
    """Return of the episodes that ended, against frames, a panel for each delay; returns the figure's paths."""
    columns, returns = min(3, len(delays)), rows[rows["metric"] == "return"]
    count, wide = -(-len(delays) // columns), columns > 1
    width, keys = plots.PAGE_WIDTH if wide else plots.COLUMN_WIDTH, tables.traces(spread)[::-1]
    with plots.figure(count, columns, width, 1.2 + 2.0 * count, sharey=True, sharex=True) as (figure, axes):
        for axis, delay in zip(axes.flat, delays, strict=False):
            sound = spread[(spread["delay_s"] == delay) & ~spread["lost"]]
            for key, style in plots.styles(keys).items():
                own = returns[returns["run"].isin(tables.of_trace(sound, key)["run"])]
                every = max(1, own["step"].nunique() // 6)
                plots.curves(axis, own, style=style, name=tables.label(*key), markevery=every)
            axis.set_title(f"{delay:g} s from layer to layer" if retrograde else f"{delay:g} s late")
        for axis in axes.flat[len(delays) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("return of an episode")
        for axis in axes[-1]:
            axis.set_xlabel("frames")
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        note = f"{settings(spread)}.{plots.seeds(spread, 'Thick: mean; thin: seeds.')}"
        note += tables.left_out(spread)
        names = len(keys) if wide else 3
        return plots.save(figure, options.folder, f"{options.name}-curves", note, axes[0, 0], names)


def draw_alignment(aligned: pd.DataFrame, ends: pd.DataFrame, options: Control) -> list[Path]:
    """Cosine of the late and the undelayed policy gradient against the delay, or the layer; none where not measured."""
    name = f"{options.name}-alignment"
    if aligned["value"].isna().all():
        return plots.left_out(name, "it was not measured")
    layers = sorted(set(aligned["layer"]))
    aligned, several = aligned.assign(place=aligned["layer"].map(layers.index) + 1), aligned["delay_s"].nunique() > 1
    panels = {f"layer {i + 1}": aligned[aligned["place"] == i + 1] for i in range(len(layers))} if several else {
        "": aligned}  # fmt: skip
    width, keys = plots.PAGE_WIDTH if several else plots.COLUMN_WIDTH, tables.traces(aligned)[::-1]
    with plots.figure(1, len(panels), width, 3.0, sharey=True) as (figure, axes):
        for axis, (title, own) in zip(axes[0], panels.items(), strict=True):
            plots.means(axis, own, "delay_s" if several else "place", keys=keys, linear=not several)
            axis.set(title=title, xlabel="delay of credit (s)" if several else "layer of the actor")
        axes[0, 0].set_ylabel("cosine with the\nundelayed policy gradient")
        note = f"{settings(ends)}. Mean over training, weights held.{plots.seeds(ends)}"
        return plots.save(figure, options.folder, name, note, axes[0, 0], len(keys) if several else 3)
