"""Each family of traces tuned with one budget: ET, two exponentials (LTP and LTD), CET."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd

from experiments.common import captions, checks, plots, tables, vision
from experiments.common.checks import DT
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.hyperparameters import make_trace
from experiments.common.options import MNIST, Delays, Gate, Orders, Vision

FAMILIES = ("ET", "double exponential", "CET")
ASKED_FOR = ("balanced", "sharp", "CET - ET")  # families besides, where options or rows have them
REFERENCES = ("delay line", "backprop")  # nothing in them to tune but the learning rate
ORDERS = {  # untuned
    "ET": 1, "double exponential": 2, "CET": 10, "balanced": 10, "sharp": 10, "CET - ET": 10,
    "delay line": 0, "backprop": 0,
}  # fmt: skip
UNTUNED_RISE = 0.5
NAMES = {"double exponential": "two exponentials"}
_CONSTANTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 16.0)
KERNEL_SPAN = 2.5  # kernels are drawn up to this many delays
LEAST = 1e-3  # weight at the delay, of a kernel's largest, that the others can be drawn relative to
_MEMBER = ("trace", "order", "delay_s", "peak_s", "rise_s", "ratio")  # what tells a trace at a delay from others
_COLOURS = {trace: style["color"] for (trace, _), style in plots.styles(ORDERS.items()).items()}


@dataclass(frozen=True)
class Options(Delays, Orders, Gate, Vision):
    """Accuracy of ET, of two exponentials (LTP and LTD) and of CET, each tuned with one budget.

    At each delay every family of traces has the same number of candidates, and each of them the same learning rates.
    The best on held-out training images is reported, beside the family's member that is set to the delay untuned.
    Cascades read with signs and CET less ET are families besides, where --balanced, --sharp and --contrasts name
    orders.
    Two exponentials, e^(-t/τ1) - ρ e^(-t/τ2), are told by where they peak, by τ2/τ1 (--rises) and by the share of LTP
    that LTD takes back by coming before it (--depressions).
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in less than half an hour."""
    time_constants: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = _CONSTANTS
    """Candidates of ET, in delays; as many as --orders times --peaks (--balanced, --sharp and --contrasts too, if
    given), and --rises times --depressions times --peaks."""
    orders: tuple[int, ...] = (2, 4, 6, 8, 10, 20)
    """Orders of the cascading traces, 2 to 64."""
    peaks: Annotated[tuple[float, ...], checks.peaks] = (0.85, 1.0)
    """Where cascades and two exponentials peak, in delays; one that blurs much is at its best with an early peak. That
    of CET less ET is of the cascade, and the time constant of ET."""
    rises: Annotated[tuple[float, ...], checks.Rule("above 0 and at most 0.99", lambda v: 0 < v <= 0.99)] = (0.5, 0.9)
    """Time constant τ2 of the exponential that is taken away, in those of the other, τ1; near 1 it tends to CET(2)."""
    depressions: Annotated[tuple[float, ...], checks.Rule("0 to 0.95", lambda v: 0 <= v <= 0.95)] = (0.0, 0.5, 0.8)
    """Early LTD before LTP: 0 for none (a ratio ρ of 1), 1 for as much as all LTP (ρ = τ1/τ2, no area left)."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        budget, peaks = len(self.time_constants), len(self.peaks)
        for name, counts, more in (
            ("orders", (len(self.orders), peaks), "--peaks"),
            ("balanced", (len(self.balanced) or budget / peaks, peaks), "--peaks"),
            ("sharp", (len(self.sharp) or budget / peaks, peaks), "--peaks"),
            ("contrasts", (len(self.contrasts) or budget / peaks, peaks), "--peaks"),
            ("rises", (len(self.rises), len(self.depressions), peaks), "--depressions and --peaks"),
        ):
            same = f"as many with {more} as the {budget} of --time-constants: every family has the same budget"
            checks.require(name, math.prod(counts) == budget, same, " x ".join(map(str, counts)))


PRESETS = {
    "demo": Options(steps=300, selection_steps=300, learning_rates=(1e-3, 3e-3)),
    "quick": Options(delays=(4.0, 10.0), steps=1170, selection_steps=1170, learning_rates=(3e-4, 1e-3), **MNIST),
}


def families(traces) -> tuple[str, ...]:
    """The families compared, of which `traces` are some."""
    found = set(traces)
    return (*FAMILIES, *(family for family in ASKED_FOR if family in found))


def candidates(options: Options, family: str, delay: float) -> list[Condition]:
    """The members of a family to choose from, as many of each family."""
    if family == "double exponential":
        shapes = [(rise, depression) for rise in options.rises for depression in options.depressions]
        return [two_exponentials(options, delay, share, *shape) for shape in shapes for share in options.peaks]
    orders = {"ET": (1,), "CET": options.orders, **options.signed}[family]
    peaks = [round(s * delay, 9) for s in (options.time_constants if family == "ET" else options.peaks)]
    return [set_to_delay(options, family, order, delay, peak_s=peak) for order in orders for peak in peaks]


def untuned(options: Options, family: str, delay: float) -> Condition:
    """The member of a family that is set by the delay alone: ET's time constant is the delay, the others peak there."""
    if family == "double exponential":
        return two_exponentials(options, delay, 1.0, UNTUNED_RISE, 0.0)
    return set_to_delay(options, family, ORDERS[family], delay if family != "backprop" else 0.0)


def two_exponentials(options: Options, delay: float, share: float, rise: float, depression: float) -> Condition:
    """e^(-t/τ1) - ρ e^(-t/τ2), which peaks at T, a share of the delay.

        τ2 = rise τ1,    ρ = 1 + depression (τ1/τ2 - 1),    T - dt/2 = ln(ρ τ1/τ2) τ1 τ2/(τ1 - τ2)

    T - dt/2 is the middle of the step that the weight at lag T is of, as for cascades. The area that LTP leaves
    is (1 - depression) (τ1 - τ2).
    """
    ratio = 1 + depression * (1 / rise - 1)
    decay = (share * delay - DT / 2) * (1 - rise) / (rise * math.log(ratio / rise))
    shape = {"peak_s": round(decay, 9), "rise_s": round(rise * decay, 9), "ratio": round(ratio, 9)}
    return set_to_delay(options, "double exponential", 2, delay, **shape)


def conditions(options: Options) -> list[list[Condition]]:
    """Backprop, and at each delay the delay line and every family, once with its candidates and once untuned."""
    wanted, compared = [[untuned(options, "backprop", 0.0)]], families(dict(options.delayed_traces))
    for delay in options.delays:
        wanted.append([untuned(options, "delay line", delay)])
        wanted += [candidates(options, family, delay) for family in compared]
        wanted += [[untuned(options, family, delay)] for family in compared]
    return wanted


run = partial(vision.run, conditions)


def select(rows: pd.DataFrame, options: Options) -> pd.DataFrame:
    """What runs of the length and gate asked for ended with; of those that differ in learning rate the last."""
    asked = dict(step=options.steps, error_gate=options.error_gate)
    ends = tables.like_last(tables.finals(rows), (*tables.SUBJECT, *asked), **asked)
    return tables.latest(ends, (*_MEMBER, "seed"))


def set_by_delay(ends: pd.DataFrame, options: Options, family: str, delay: float) -> pd.DataFrame:
    """Runs of the family's member that is set by the delay alone."""
    plain = untuned(options, family, delay)
    return ends[(ends[list(_MEMBER)] == pd.Series({name: getattr(plain, name) for name in _MEMBER})).all(axis=1)]


def tuned(ends: pd.DataFrame, options: Options, family: str, delay: float) -> pd.DataFrame:
    """Runs of the member chosen, which may be the untuned one; of several chosen in a file the last."""
    plain = set_by_delay(ends, options, family, delay)
    members = ends[(ends["trace"] == family) & (ends["delay_s"] == delay)].drop(plain.index)
    if members.empty:
        return plain
    last = members[list(_MEMBER)].iloc[-1]
    return members[(members[list(_MEMBER)] == last).all(axis=1)]


def describe(member: pd.Series) -> tuple[str, str]:
    """A trace and its parameters, in words."""
    trace, peak, rise = member["trace"], f"{member['peak_s']:.3g}", f"{member['rise_s']:.3g}"
    words = {"ET": f"τ {peak} s", "double exponential": f"τ {peak}, {rise} s, ρ {member['ratio']:.3g}"}
    words["CET - ET"] = f"peak and τ {peak} s"
    words |= dict.fromkeys(REFERENCES, "")
    return NAMES.get(trace) or tables.label(trace, member["order"]), words.get(trace, f"peak {peak} s")


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the tables and writes the figure."""
    ends = select(rows, options)
    delays = sorted(set(ends.loc[ends["trace"] != "backprop", "delay_s"]))
    for delay in delays:
        body = []
        for family in families(ends["trace"]):
            body.append(_line(f"{NAMES.get(family, family)}, tuned", tuned(ends, options, family, delay)))
            body.append(_line("  set by the delay", set_by_delay(ends, options, family, delay)))
        body += [_line(name, set_by_delay(ends, options, name, delay)) for name in REFERENCES]
        title = f"Test accuracy in %, delay {delay:g} s, {captions.settings(ends)}.{captions.left_out(ends)}"
        print(tables.text(title, ["", "accuracy", "learning rate", "parameters"], body, width=16))
    return draw(ends, options, delays)


def _line(name: str, runs: pd.DataFrame) -> tuple[str, list[str]]:
    words = [f"   {' '.join(describe(one))}" * (one["trace"] not in REFERENCES) for _, one in runs[:1].iterrows()]
    return name, [tables.cell(runs["value"]), *(f"{rate:g}" for rate in runs["learning_rate"][:1]), *words]


def draw(ends: pd.DataFrame, options: Options, delays: list[float]) -> list[Path]:
    """Accuracy of each family at each delay, and the kernels chosen."""
    high = 1.9 + 0.5 * max(0, len(families(ends["trace"])) - 4)  # of labels of two lines
    heights = [high] * len(delays) + [1.2] * len(delays)
    with plots.figure(len(heights), height=1.1 + sum(heights), height_ratios=heights) as (figure, axes):
        for index, delay in enumerate(delays):
            _draw_accuracies(axes[index, 0], ends, options, delay)
            _draw_kernels(axes[len(delays) + index, 0], ends, options, delay)
        axes[len(delays) - 1, 0].set_xlabel("test accuracy (%)")
        axes[-1, 0].set_xlabel("time since the activity (s)")
        note = f"{captions.settings(ends)}.{captions.seeds(ends, 'Bars: means; dots: seeds.')} Each trace is the best "
        note += "of equally many of its family, by held-out images; τ: time constants, ρ: size of the faster "
        note += f"exponential. Open circles: set by the delay alone.{captions.published(ends, 'Open squares')} "
        note += f"Below, weights relative to that at the delay (dashed).{captions.left_out(ends)}"
        return plots.save(figure, options.folder, "tuned-traces", note)


def _draw_accuracies(axis, ends: pd.DataFrame, options: Options, delay: float) -> None:
    names, labels = [*reversed(REFERENCES), *reversed(families(ends["trace"]))], []
    for level, name in enumerate(names):
        colour, chosen = _COLOURS[name], tuned(ends, options, name, delay if name != "backprop" else 0.0)
        labels.append("\n".join(describe(chosen.iloc[0])).strip() if len(chosen) else NAMES.get(name, name))
        values = 100 * chosen["value"].dropna()
        if len(values):
            axis.plot([values.mean()] * 2, [level - 0.3, level + 0.3], color=colour, linewidth=2)
            axis.plot(values, [level] * len(values), ".", color=colour, markersize=4, alpha=0.7)
        plain = 100 * set_by_delay(ends, options, name, delay)["value"].dropna()
        paper = tables.published(ends["dataset"].iloc[0], "test accuracy")
        paper = 100 * tables.of_trace(paper[paper["delay_s"].isin([delay, 0.0])], (name, ORDERS[name]))["value"]
        axis.plot(paper, [level] * len(paper), "s", color=colour, markersize=5, markerfacecolor="none", label="_paper")
        if name not in REFERENCES and len(plain):
            axis.plot(plain.mean(), level, "o", color=colour, markersize=5.5, markerfacecolor="none")
    axis.set_yticks(range(len(names)), labels, fontsize=6.5, linespacing=1.05)
    axis.set_title(f"delay {delay:g} s", loc="left")


def _draw_kernels(axis, ends: pd.DataFrame, options: Options, delay: float) -> None:
    """Weights in units of that at the delay, which is what a trace is to remember: all else is blur.

    A trace that remembers next to nothing of the delay is left out, as CET(2) - ET is where both are set to it.
    """
    lags = np.arange(1, round(KERNEL_SPAN * delay / DT) + 1)
    for family in families(ends["trace"]):
        for member in tuned(ends, options, family, delay)[:1].to_dict("records"):
            trace = make_trace(Condition(**{name: member[name] for name in _MEMBER}))
            weights, right = np.asarray(trace.weights(lags)), float(trace.weights(round(delay / DT)))
            if abs(right) > LEAST * np.abs(weights).max():
                axis.plot(lags * DT, weights / right, color=_COLOURS[family])
    axis.axvline(delay, color=_COLOURS["delay line"], linestyle=(0, (2, 1.5)), linewidth=1, zorder=1)
    axis.axhline(0, color="black", linewidth=0.5, zorder=1)
    axis.set_ylabel("relative weight")
    axis.set_title(f"traces chosen at {delay:g} s (colours as above)", loc="left")
