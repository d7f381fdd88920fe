"""Each family of traces tuned with one budget: ET, two exponentials (LTP and LTD), CET."""

import statistics
import textwrap
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from experiments import figures, vision_study
from experiments.final_runs import FinalRuns, values_of
from experiments.options.common import DT
from experiments.options.tuned_traces import TunedTraces
from experiments.trace_families import FAMILIES, REFERENCES, candidates, untuned
from experiments.vision_conditions import Condition
from experiments.vision_report import cell
from experiments.vision_training import make_trace

NAMES = {"double exponential": "two exponentials"}
KERNEL_SPAN = 2.5  # kernels are drawn up to this many delays
_MEMBER = ("trace", "order", "delay_s", "peak_s", "rise_s", "ratio")
_STYLED_AS = (("ET", 1), ("double exponential", 2), ("CET", 10), ("delay line", 0), ("backprop", 0))


def groups(options: TunedTraces) -> list[list[Condition]]:
    """Backprop, and at each delay the delay line and every family, once with its candidates and once untuned."""
    wanted = [[untuned(options, "backprop", 0.0)]]
    for delay in options.delays:
        wanted.append([untuned(options, "delay line", delay)])
        wanted += [candidates(options, family, delay) for family in FAMILIES]
        wanted += [[untuned(options, family, delay)] for family in FAMILIES]
    return wanted


class Outcome:
    """What came of each family at each delay: runs of the member chosen and of the untuned one.

    Where a file holds several members chosen of a family, as after a change of the candidates, the last one counts.
    """

    def __init__(self, finals: FinalRuns, options: TunedTraces):
        self.finals, self.options = finals, options
        self.members = finals.by(_member)
        self.delays = sorted({run["delay_s"] for run in finals.runs if run["trace"] != "backprop"})

    def untuned(self, family: str, delay: float) -> list[dict]:
        """Runs of the family's member that is set by the delay alone."""
        return self.members.get(_member(asdict(untuned(self.options, family, delay))), [])

    def tuned(self, family: str, delay: float) -> list[dict]:
        """Runs of the member chosen, which may be the untuned one."""
        plain = _member(asdict(untuned(self.options, family, delay)))
        chosen = [
            member
            for member in map(_member, self.finals.runs)
            if (member[0], member[2]) == (family, delay) and member != plain
        ]
        return self.members[chosen[-1]] if chosen else self.members.get(plain, [])


def _member(of: dict) -> tuple:
    """What tells a trace at a delay from others."""
    return tuple(of[name] for name in _MEMBER)


def report(rows: list[dict], options: TunedTraces) -> list[Path]:
    """Prints the table and writes the figure."""
    outcome = Outcome(FinalRuns(rows, options), options)
    print(table(outcome))
    return draw(outcome, options.folder)


def describe(run: dict) -> tuple[str, str]:
    """A trace and its parameters, in words."""
    peak, rise = f"{run['peak_s']:.3g}", f"{run['rise_s']:.3g}"
    match run["trace"]:
        case "ET":
            return "ET", f"τ {peak} s"
        case "CET":
            return figures.label("CET", run["order"]), f"peak {peak} s"
        case "double exponential":
            return "two exponentials", f"τ {peak}, {rise} s, ρ {run['ratio']:.3g}"
        case _:
            return run["trace"], ""


def table(outcome: Outcome) -> str:
    """Accuracy in percent of each family tuned and untuned, and what was chosen, at each delay."""
    lines = []
    for delay in outcome.delays:
        lines += ["", f"Test accuracy in %, delay {delay:g} s, {outcome.finals.note}"]
        lines.append(f"{'':<34}{'accuracy':>12}{'learning rate':>16}")
        for family in FAMILIES:
            lines.append(_line(f"{NAMES.get(family, family)}, tuned", outcome.tuned(family, delay)))
            lines.append(_line("  set by the delay", outcome.untuned(family, delay)))
        lines += [_line(name, outcome.untuned(name, delay)) for name in REFERENCES]
    return "\n".join(lines)


def _line(name: str, runs: list[dict]) -> str:
    if not runs:
        return f"{name:<34}"
    accuracy = cell([run["accuracy"] for run in runs])
    parameters = " ".join(describe(runs[0])) if runs[0]["trace"] in FAMILIES else ""
    return f"{name:<34}{accuracy:>12}{runs[0]['learning_rate']:>16g}   {parameters}".rstrip()


def draw(outcome: Outcome, folder: Path) -> list[Path]:
    """Accuracy of each family at each delay, and the kernels chosen."""
    delays = outcome.delays
    heights = [1.9] * len(delays) + [1.2] * len(delays)
    with figures.new_figure(2 * len(delays), 1.1 + sum(heights), height_ratios=heights) as (figure, axes):
        for axis, delay in zip(axes, delays, strict=False):
            _draw_accuracies(axis, outcome, delay)
        for axis, delay in zip(axes[len(delays) :], delays, strict=True):
            _draw_kernels(axis, outcome, delay)
        axes[len(delays) - 1].set_xlabel("test accuracy (%)")
        axes[-1].set_xlabel("time since the activity (s)")
        note = f"{outcome.finals.note}. Bars and dots: means and seeds of the traces chosen on held-out images, each "
        note += "among as many of its family. Open circles: means of those set by the delay alone. Weights relative "
        note += "to that at the delay (dashed)."
        figures.footnote(figure, textwrap.fill(note, 58))
        return figures.save(figure, folder, "tuned-traces")


def _colours() -> dict[str, str]:
    return {trace: style["color"] for (trace, _), style in figures.styles(_STYLED_AS).items()}


def _draw_accuracies(axis, outcome: Outcome, delay: float) -> None:
    names, labels = [*reversed(REFERENCES), *reversed(FAMILIES)], []
    for level, name in enumerate(names):
        colour, chosen = _colours()[name], outcome.tuned(name, delay if name != "backprop" else 0.0)
        labels.append("\n".join(describe(chosen[0])).strip() if chosen else NAMES.get(name, name))
        values = [100 * value for value in values_of(chosen)]
        if values:
            axis.plot([statistics.mean(values)] * 2, [level - 0.3, level + 0.3], color=colour, linewidth=2)
            axis.plot(values, [level] * len(values), ".", color=colour, markersize=4, alpha=0.7)
        plain = values_of(outcome.untuned(name, delay))
        if name in FAMILIES and plain:
            axis.plot(100 * statistics.mean(plain), level, "o", color=colour, markersize=5.5, markerfacecolor="none")
    axis.set_yticks(range(len(names)), labels, fontsize=6.5, linespacing=1.05)
    axis.set_title(f"delay {delay:g} s", loc="left")


def _draw_kernels(axis, outcome: Outcome, delay: float) -> None:
    """Weights in units of that at the delay, which is what a trace is to remember: all else is blur."""
    lags = np.arange(1, round(KERNEL_SPAN * delay / DT) + 1)
    for family in FAMILIES:
        for run in outcome.tuned(family, delay)[:1]:
            trace = make_trace(Condition(**{name: run[name] for name in _MEMBER}))
            right = float(trace.weights(round(delay / DT)))
            axis.plot(lags * DT, np.asarray(trace.weights(lags)) / right, color=_colours()[family])
    axis.axvline(delay, color=_colours()["delay line"], linestyle=(0, (2, 1.5)), linewidth=1, zorder=1)
    axis.axhline(0, color="black", linewidth=0.5, zorder=1)
    axis.set_ylabel("relative weight")
    axis.set_title(f"traces chosen at {delay:g} s (colours as above)", loc="left")


STUDY = vision_study.Study(groups, report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
