"""The tables and figures of experiments on reinforcement learning, from tidy rows alone."""

import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments import figures
from experiments.options.rl import ReinforcementLearning
from experiments.rl_conditions import UNDELAYED
from experiments.vision_report import PAPER_CITATION, cell

# Published mean returns at behavioural delays, by environment: (trace, order) -> {delay in s: return}.
PAPER = {
    "CartPole-v1": {
        ("ET", 1): {64.0: 120, 128.0: 159},
        ("CET", 2): {64.0: 365, 128.0: 244},
        ("CET", 5): {64.0: 486, 128.0: 406},
        ("CET", 8): {64.0: 490, 128.0: 468},
        ("CET", 10): {64.0: 493, 128.0: 493},
        UNDELAYED: {0.0: 493},
    },
    "LunarLander-v3": {  # the paper's is LunarLander-v2
        ("ET", 1): {32.0: 107, 128.0: -14},
        ("CET", 2): {32.0: 173, 128.0: 148},
        ("CET", 5): {32.0: 211, 128.0: 184},
        ("CET", 8): {32.0: 236, 128.0: 192},
        ("CET", 10): {32.0: 224, 128.0: 192},
        UNDELAYED: {0.0: 254},
    },
    "MinAtar SpaceInvaders": {
        ("ET", 1): {8.0: 34},
        ("CET", 2): {8.0: 52},
        ("CET", 5): {8.0: 66},
        ("CET", 8): {8.0: 62},
        ("CET", 10): {8.0: 85},
        UNDELAYED: {0.0: 298},
    },
}
_RANK = (UNDELAYED[0], "delay line", "CET", "ET")
_SUBJECT = ("dataset", "network", "critic_rate", "variant")
NOTE_WIDTH, PAGE_NOTE_WIDTH, PAGE_WIDTH = 62, 130, 7.0  # letters, letters, inches


class Runs:
    """The runs of the last row's environment and networks, the longest of each condition, and what captions say."""

    def __init__(self, rows: list[dict]):
        by_run = defaultdict(list)
        for row in rows:
            by_run[row["run"]].append(row)
        runs = [_Run(own) for own in by_run.values()]
        last = runs[-1].columns
        runs = [
            run for run in runs if all((run.columns.get(name) or "") == (last.get(name) or "") for name in _SUBJECT)
        ]
        self.frames = max(run.frames for run in runs)
        kept = {(run.trace, run.delay, run.seed): run for run in runs if run.frames == self.frames}
        self.runs = list(kept.values())
        self.environment, self.critic_rate, self.variant = last["dataset"], last["critic_rate"], last.get("variant")
        self.retrograde = any(run.columns["scenario"] == "retrograde" for run in self.runs)
        self.traces = sorted({run.trace for run in self.runs}, key=lambda key: (_RANK.index(key[0]), -key[1]))
        self.delays = sorted({run.delay for run in self.runs if run.trace != UNDELAYED})
        self.seeds = sorted({run.seed for run in self.runs})
        self.layers = sorted({layer for run in self.runs for layer in run.alignment})
        self.diverged = sum(run.diverged for run in self.runs)

    def at(self, trace: tuple, delay: float) -> list["_Run"]:
        """The runs of a trace at a delay, seed by seed; those without delay belong to every delay."""
        found = [run for run in self.runs if run.trace == trace and (run.delay == delay or trace == UNDELAYED)]
        return sorted(found, key=lambda run: run.seed)

    @property
    def note(self) -> str:
        """Settings, for a caption."""
        many = "s" if len(self.seeds) > 1 else ""
        text = (
            f"{self.environment}, {self.runs[0].columns['network']}, {self.frames:,} frames, "
            f"critic's learning rate {self.critic_rate:g} times the actor's, {len(self.seeds)} seed{many}"
        )
        text += f", options: {self.variant}" if self.variant else ""
        return text + (f". Left out: {self.diverged} runs that diverged" if self.diverged else "")


class _Run:
    """One run: its columns, its learning curve, its cosines by layer and how it ended."""

    def __init__(self, rows: list[dict]):
        self.columns = rows[0]
        self.trace, self.seed = (rows[0]["trace"], int(rows[0]["order"])), int(rows[0]["seed"])
        self.delay = rows[0]["delay_s"]
        by_metric = defaultdict(dict)
        for row in rows:
            by_metric[row["metric"], row.get("layer") or ""][int(row["step"])] = row["value"]
        self.curve = {step: value for step, value in by_metric["return", ""].items() if value is not None}
        self.alignment = {
            layer: [value for value in values.values() if value is not None]
            for (metric, layer), values in by_metric.items()
            if metric == "alignment"
        }
        self.frames = max(by_metric["return", ""])
        self.diverged = bool(by_metric["diverged", ""].get(self.frames))
        (self.final,) = by_metric["test_return", ""].values() or (None,)
        self.final = None if self.diverged else self.final


def report(rows: list[dict], options: ReinforcementLearning) -> list[Path]:
    """Prints the tables and writes the figures."""
    runs = Runs(rows)
    print(table(runs))
    paths = draw_final(runs, options) if len(runs.delays) > 1 else []
    return [*paths, *draw_curves(runs, options), *draw_alignment(runs, options)]


def table(runs: Runs) -> str:
    """Return of an evaluation, mean ± standard deviation over seeds, and mean cosines, by trace (rows) and delay."""
    head = " " * 16 + "".join(f"{f'{delay:g} s':>16}" for delay in runs.delays)
    lines = ["", f"Mean return after training, {runs.note}", head]
    for trace in runs.traces:
        cells = [cell([_hundredth(run.final) for run in runs.at(trace, delay)]) for delay in runs.delays]
        lines.append(f"{figures.label(*trace):<16}" + "".join(f"{text:>16}" for text in cells))
    for layer in runs.layers:
        lines += ["", f"Cosine of the late and the undelayed policy gradient, {layer}", head]
        for trace in runs.traces:
            cells = [_mean(_cosines(runs.at(trace, delay), layer)) for delay in runs.delays]
            cells = ["" if value is None else f"{value:.3f}" for value in cells]
            lines.append(f"{figures.label(*trace):<16}" + "".join(f"{text:>16}" for text in cells))
    return "\n".join(lines)


def _hundredth(value: float | None) -> float | None:
    return None if value is None else value / 100  # cells are in percent


def _cosines(runs: list[_Run], layer: str) -> list[float]:
    """Of each run, the mean over the moments at which it was measured."""
    return [statistics.mean(run.alignment[layer]) for run in runs if run.alignment.get(layer)]


def _mean(values: list[float]) -> float | None:
    return statistics.mean(values) if values else None


def draw_final(runs: Runs, options: ReinforcementLearning) -> list[Path]:
    """Return after training against the delay, of each trace, with the paper's where it is known."""
    paper = PAPER.get(runs.environment, {}) if not runs.retrograde else {}
    with figures.new_figure(height=3.4) as (figure, (axis,)):
        for key, style in figures.styles(list(reversed(runs.traces))).items():
            finals = {
                delay: [run.final for run in runs.at(key, delay) if run.final is not None] for delay in runs.delays
            }
            finals = {delay: values for delay, values in finals.items() if values}
            if not finals:
                continue
            axis.plot(list(finals), [statistics.mean(v) for v in finals.values()], **style, label=figures.label(*key))
            low, high = ([pick(values) for values in finals.values()] for pick in (min, max))
            axis.vlines(list(finals), low, high, color=style["color"], linewidth=0.8)
            theirs = {delay: value for delay, value in paper.get(key, {}).items() if delay in runs.delays}
            axis.plot(list(theirs), list(theirs.values()), linestyle="", marker=style["marker"], markersize=7,
                      markerfacecolor="none", color=style["color"], alpha=0.7)  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(runs.delays, [f"{delay:g}" for delay in runs.delays])
        axis.minorticks_off()
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.set_xlabel("delay of credit (s)")
        axis.set_ylabel(f"mean return of {options.episodes} episodes")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        note = f"{runs.note}." + (" Marks: means; bars: range of seeds." if len(runs.seeds) > 1 else "")
        note += (
            f" Hollow: published ({PAPER_CITATION})." if any(set(v) & set(runs.delays) for v in paper.values()) else ""
        )
        figures.footnote(figure, textwrap.fill(note, NOTE_WIDTH))
        return figures.save(figure, options.folder, options.name)


def draw_curves(runs: Runs, options: ReinforcementLearning) -> list[Path]:
    """Return of the episodes that ended, against frames, a panel for each delay."""
    columns = min(3, len(runs.delays))
    rows, wide = -(-len(runs.delays) // columns), columns > 1
    width = PAGE_WIDTH if wide else figures.COLUMN_WIDTH
    with figures.new_grid(rows, columns, width, 1.2 + 2.0 * rows, sharey=True, sharex=True) as (figure, axes):
        for axis, delay in zip(axes.flat, runs.delays, strict=False):
            for key, style in figures.styles(list(reversed(runs.traces))).items():
                own = [run for run in runs.at(key, delay) if not run.diverged and run.curve]
                _draw_curves(axis, own, style, figures.label(*key))
            axis.set_title(f"{delay:g} s from layer to layer" if runs.retrograde else f"{delay:g} s late")
        for axis in axes.flat[len(runs.delays) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("return of an episode")
        for axis in axes[-1]:
            axis.set_xlabel("frames")
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        names = axes[0, 0].get_legend_handles_labels()
        figure.legend(*names, loc="outside upper center", ncols=len(runs.traces) if wide else 3)
        note = f"{runs.note}." + (" Thick: mean; thin: seeds." if len(runs.seeds) > 1 else "")
        figures.footnote(figure, textwrap.fill(note, PAGE_NOTE_WIDTH if wide else NOTE_WIDTH))
        return figures.save(figure, options.folder, f"{options.name}-curves")


def _draw_curves(axis, runs: list[_Run], style: dict, name: str) -> None:
    if not runs:
        return
    for run in runs if len(runs) > 1 else ():
        axis.plot(list(run.curve), list(run.curve.values()), color=style["color"], linewidth=0.4, alpha=0.5)
    shared = sorted(set.intersection(*(set(run.curve) for run in runs)))
    mean = [statistics.mean(run.curve[step] for run in runs) for step in shared]
    every = max(1, len(shared) // 6)
    axis.plot(shared, mean, **style, markevery=every, label=name)


def draw_alignment(runs: Runs, options: ReinforcementLearning) -> list[Path]:
    """Cosine of the late and the undelayed policy gradient against the delay, or the layer; none where not measured."""
    if not runs.layers:
        return []
    several = len(runs.delays) > 1
    columns = len(runs.layers) if several else 1
    width = PAGE_WIDTH if several else figures.COLUMN_WIDTH
    names = {layer: f"layer {index + 1}" for index, layer in enumerate(runs.layers)}
    with figures.new_grid(1, columns, width, 3.0, sharey=True) as (figure, axes):
        for key, style in figures.styles([trace for trace in reversed(runs.traces) if trace != UNDELAYED]).items():
            if several:
                for axis, layer in zip(axes[0], runs.layers, strict=True):
                    points = {delay: _mean(_cosines(runs.at(key, delay), layer)) for delay in runs.delays}
                    _draw_points(axis, points, style, figures.label(*key))
                    axis.set_title(names[layer])
                    axis.set_xscale("log")
                    axis.set_xticks(runs.delays, [f"{delay:g}" for delay in runs.delays])
                    axis.minorticks_off()
                    axis.set_xlabel("delay of credit (s)")
            else:
                points = {name: _mean(_cosines(runs.at(key, runs.delays[0]), layer)) for layer, name in names.items()}
                _draw_points(axes[0, 0], points, style, figures.label(*key))
        axes[0, 0].set_ylabel("cosine with the\nundelayed policy gradient")
        legend = axes[0, 0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=len(runs.traces) if several else 3)
        note = f"{runs.note}. Mean over seeds and training, weights held."
        figures.footnote(figure, textwrap.fill(note, PAGE_NOTE_WIDTH if several else NOTE_WIDTH))
        return figures.save(figure, options.folder, f"{options.name}-alignment")


def _draw_points(axis, points: dict, style: dict, name: str) -> None:
    points = {place: value for place, value in points.items() if value is not None}
    if points:
        axis.plot(list(points), list(points.values()), **style, label=name)
