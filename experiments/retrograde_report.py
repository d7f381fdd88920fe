"""The tables and figures of retrograde-vision, from tidy rows alone."""

import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from experiments import alignment_report, figures
from experiments.options.retrograde_vision import RetrogradeVision
from experiments.vision_report import cell, subject

_SUBJECT = ("dataset", "network", "form", "mode", "update_every")
_SETTING = ("delay_s", "fraction", "gate", "threshold", "derivative", "placement")
# What backprop does not have to wait for, and what a gate settles by itself.
_OF_BACKPROP = ("fraction", "gate", "threshold")
_OF_GATES = ("fraction", "threshold")
TITLES = {
    "delay_s": "delay per layer (s)",
    "fraction": "share of salient images",
    "gate": "kind of gate",
    "derivative": "derivative that errors pass",
    "placement": "when events happen",
}
_RANK = ("backprop", "delay line", "CET", "ET")
NOTE_WIDTH = 62  # letters
PAGE_WIDTH, PAGE_NOTE_WIDTH = 7.0, 130


class Runs:
    """The runs of the last row's dataset, network, form, mode and stretch, and how they can be compared.

    `usual` is the setting of the first run with a trace: what is the same wherever something else is varied.
    """

    def __init__(self, rows: list[dict]):
        by_run = defaultdict(list)
        for row in rows:
            by_run[row["run"]].append(row)
        runs = [_Run(own) for own in by_run.values()]
        last = runs[-1].columns
        self.runs = [run for run in runs if all(run.columns[name] == last[name] for name in _SUBJECT)
                     or (run.trace[0] == "backprop" and _alike(run, last))]  # fmt: skip
        traced = [run for run in self.runs if run.trace[0] != "backprop"] or self.runs
        self.columns = traced[0].columns
        self.usual = {name: self.columns[name] for name in _SETTING}
        self.dataset, self.network, self.form = (self.columns[name] for name in _SUBJECT[:3])
        self.traces = sorted({run.trace for run in self.runs}, key=lambda key: (_RANK.index(key[0]), -key[1]))
        self.seeds = sorted({run.seed for run in self.runs})
        self.steps = max(run.steps for run in self.runs)
        self.diverged = sum(run.diverged for run in self.runs)

    def values(self, name: str) -> list:
        """Values of one thing that is varied while all else is as usual, in the table's order, numbers ascending."""
        found = {run.columns[name]: None for run in self.runs if self._fits(run, name) and run.trace[0] != "backprop"}
        return sorted(found) if name in ("delay_s", "fraction") else list(found)

    def at(self, trace: tuple, name: str = "", value=None) -> dict[int, "_Run"]:
        """The run of each seed, of one trace where `name` has `value` and all else is as usual."""
        wanted = [run for run in self.runs if run.trace == trace and self._fits(run, name)]
        if name and not (trace[0] == "backprop" and name not in _OF_BACKPROP):
            wanted = [run for run in wanted if run.columns[name] == value]
        return {run.seed: run for run in wanted}

    def _fits(self, run: "_Run", free: str) -> bool:
        # Gates that look at no share, and those that have a threshold, differ in these by themselves.
        settled = run.columns["gate"] in ("none", "threshold")
        loose = {free, *(_OF_GATES if free == "gate" and settled else ())}
        fixed = _OF_BACKPROP if run.trace[0] == "backprop" else _SETTING
        return all(run.columns[name] == self.usual[name] for name in fixed if name not in loose)

    @property
    def note(self) -> str:
        """Settings, for a caption."""
        usual, columns = self.usual, self.columns
        many = "s" if len(self.seeds) > 1 else ""
        salient = {"none": "all images", "threshold": f"images of a loss above {usual['threshold']:g}"}.get(
            usual["gate"], f"{100 * usual['fraction']:g} % salient images (gate: {usual['gate']})"
        )
        text = (
            f"{subject(self)}, {self.steps:,} stretches of {columns['update_every']:,} images ({columns['mode']}), "
            f"{salient}, {usual['delay_s']:g} s from layer to layer, {usual['derivative']} derivative, "
            f"{len(self.seeds)} seed{many}"
        )
        return text + (f". Left out: {self.diverged} runs that diverged" if self.diverged else "")


class _Run:
    """One run: its columns, its curves by step, and how it ended."""

    def __init__(self, rows: list[dict]):
        self.columns = rows[0]
        self.trace, self.seed = (rows[0]["trace"], int(rows[0]["order"])), int(rows[0]["seed"])
        self.accuracy = {int(row["step"]): row["value"] for row in rows if row["metric"] == "test_accuracy"}
        self.loss = {int(row["step"]): row["value"] for row in rows if row["metric"] == "train_loss"}
        self.steps = max(self.accuracy)
        ended = {row["metric"]: row["value"] for row in rows if int(row["step"]) == self.steps}
        self.diverged = bool(ended.get("diverged")) or None in self.accuracy.values()
        self.skipped, self.missed = (ended.get(name) or 0 for name in ("skipped", "missed"))

    @property
    def final(self) -> float | None:
        """Accuracy at the end; None if it diverged."""
        return None if self.diverged else self.accuracy[self.steps]


def _alike(run: _Run, last: dict) -> bool:
    """Whether a run of backprop, which has nothing to carry, goes with the others."""
    return all(run.columns[name] == last[name] for name in _SUBJECT if name != "mode")


def report(rows: list[dict], options: RetrogradeVision) -> list[Path]:
    """Prints the tables and writes the figures."""
    runs = Runs(rows)
    print(table(runs))
    usual = [row for row in rows if all(row[n] == runs.usual[n] for n in _SETTING if n != "delay_s")]
    return [*draw_curves(runs, options.folder), *draw_settings(runs, options.folder),
            *alignment_report.draw(usual, options.folder)]  # fmt: skip


def table(runs: Runs) -> str:
    """Accuracy in percent, mean ± standard deviation over seeds, of each trace (rows), over all that is varied."""
    lines = ["", f"Test accuracy in %, {runs.note}"]
    for trace in runs.traces:
        lines.append(f"{figures.label(*trace):<16}{cell([run.final for run in runs.at(trace).values()]):>14}")
    for name, title in TITLES.items():
        values = runs.values(name)
        if len(values) < 2:
            continue
        lines += ["", title, " " * 16 + "".join(f"{_text(value):>14}" for value in values)]
        for trace in runs.traces:
            cells = [cell([run.final for run in runs.at(trace, name, value).values()]) for value in values]
            lines.append(f"{figures.label(*trace):<16}" + "".join(f"{text:>14}" for text in cells))
    skipped, missed = sum(run.skipped for run in runs.runs), sum(run.missed for run in runs.runs)
    lines += [f"stretches skipped, since no image was salient: {skipped:g}"] if skipped else []
    lines += [f"salient images missed for want of a place: {missed:g}"] if missed else []
    return "\n".join(lines)


def _text(value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def draw_curves(runs: Runs, folder: Path) -> list[Path]:
    """Training loss of all images and test accuracy against time, of each trace."""
    with figures.new_figure(2, 4.6, sharex=True) as (figure, axes):
        for key, style in figures.styles(list(reversed(runs.traces))).items():
            own = [run for run in runs.at(key).values() if not run.diverged]
            thin = dict(color=style["color"], linewidth=0.5, alpha=0.6)
            for axis, curves in ((axes[0], [run.loss for run in own]), (axes[1], [_percent(run) for run in own])):
                if not curves:
                    continue
                for curve in curves if len(curves) > 1 else ():
                    axis.plot(list(curve), list(curve.values()), **thin)
                mean = {step: statistics.mean(curve[step] for curve in curves) for step in curves[0]}
                axis.plot(list(mean), list(mean.values()), **style, label=figures.label(*key))
        axes[0].set_ylabel("training loss\n(nats, all images)")
        axes[0].set_yscale("log")
        axes[1].set_ylabel("test accuracy (%)")
        axes[1].set_xlabel(f"updates, one in {runs.columns['update_every']:,} images")
        axes[1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figures.footnote(figure, textwrap.fill(f"{runs.note}. Thick: mean; thin: seeds.", NOTE_WIDTH))
        return figures.save(figure, folder, "retrograde-vision")


def _percent(run: _Run) -> dict[int, float]:
    return {step: 100 * value for step, value in run.accuracy.items()}


def draw_settings(runs: Runs, folder: Path) -> list[Path]:
    """Final accuracy against all that is varied, a panel each; none where nothing is."""
    varied = {name: values for name in TITLES if len(values := runs.values(name)) > 1}
    if not varied:
        return []
    columns = min(3, len(varied))
    rows = -(-len(varied) // columns)
    width = PAGE_WIDTH if columns > 1 else figures.COLUMN_WIDTH
    with figures.new_grid(rows, columns, width, 1.2 + 2.0 * rows, sharey=True) as (figure, axes):
        for axis, (name, values) in zip(axes.flat, varied.items(), strict=False):
            _draw_panel(axis, runs, name, values)
        for axis in axes.flat[len(varied) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("test accuracy (%)")
        names = axes[0, 0].get_legend_handles_labels()
        figure.legend(*names, loc="outside upper center", ncols=len(runs.traces) if columns > 1 else 3)
        note = f"{runs.note}, unless the axis says otherwise. Marks: means; dots: seeds; bars: their range."
        figures.footnote(figure, textwrap.fill(note, PAGE_NOTE_WIDTH if columns > 1 else NOTE_WIDTH))
        return figures.save(figure, folder, "retrograde-settings")


def _draw_panel(axis, runs: Runs, name: str, values: list) -> None:
    numbers = name in ("delay_s", "fraction")
    keys = list(reversed(runs.traces))
    for index, (key, style) in enumerate(figures.styles(keys).items()):
        beside = index - (len(keys) - 1) / 2  # so that traces can be told apart
        points = {}
        for place, value in enumerate(values):
            finals = [100 * run.final for run in runs.at(key, name, value).values() if run.final is not None]
            if finals:
                points[value * 1.02**beside if numbers else place + 0.08 * beside] = finals
        if not points:
            continue
        mean = [statistics.mean(finals) for finals in points.values()]
        style = style if numbers else style | dict(linestyle="", marker=style["marker"] or "_")
        axis.plot(list(points), mean, **style, label=figures.label(*key), zorder=3)
        low, high = ([pick(finals) for finals in points.values()] for pick in (min, max))
        axis.vlines(list(points), low, high, color=style["color"], linewidth=0.8, zorder=2)
        dots = [(x, value) for x, finals in points.items() if len(finals) > 1 for value in finals]
        axis.plot([x for x, _ in dots], [y for _, y in dots], ".", color=style["color"], markersize=2.5, zorder=2)
    axis.set_xlabel(TITLES[name])
    if numbers:
        axis.set_xscale("log")
        axis.set_xticks(values, [f"{value:g}" for value in values], rotation=40 if len(values) > 4 else 0)
        axis.minorticks_off()
    else:
        axis.set_xticks(range(len(values)), values, rotation=20 if len(values) > 3 else 0)
        axis.set_xlim(-0.5, len(values) - 0.5)
