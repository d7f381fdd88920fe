"""Test accuracy against the spread of the delay: credit that comes sooner or later from image to image."""

import statistics
import textwrap
from functools import partial
from pathlib import Path

from experiments import figures, vision_study
from experiments.options.common import DT, STRETCH
from experiments.options.random_delay import RandomDelay
from experiments.vision_conditions import Condition, base_condition, delayed_traces
from experiments.vision_report import PAPER_CITATION, Results, cell, extent, subject

# Published test accuracies on CIFAR-10 at a mean of 2 s: (trace, order) -> {spread in s: accuracy}.
PAPER_MEAN = 2.0
PAPER_CIFAR10 = {("ET", 1): {0.0: 0.62, 4.0: 0.64}, ("CET", 10): {0.0: 0.72, 4.0: 0.65}}
NOTE_WIDTH = 62  # letters
_SD = 12**0.5  # spread of a uniform distribution over its standard deviation


def groups(options: RandomDelay) -> list[list[Condition]]:
    """Every trace, set to the mean delay, at every spread of every distribution; without spread they are one."""
    delays = [("", 0.0)] if 0 in options.spreads else []
    delays += [(name, spread) for name in options.distributions for spread in options.spreads if spread > 0]
    return [
        [_condition(options, trace, order, name, spread)]
        for name, spread in delays
        for trace, order in delayed_traces(options.orders)
    ]


def _condition(options: RandomDelay, trace: str, order: int, distribution: str, spread: float) -> Condition:
    delay = {"spread_s": spread, "distribution": distribution}
    return base_condition(options, trace, order, options.mean, error_gate=options.error_gate, **delay)


def report(rows: list[dict], options: RandomDelay) -> list[Path]:
    """Prints the table and writes the figure, of the mean delay and gate asked for where there are rows of them."""
    wanted = [row for row in rows if (row["delay_s"], row["error_gate"]) == (options.mean, options.error_gate)]
    mean, gate = (options.mean, options.error_gate) if wanted else (rows[-1]["delay_s"], rows[-1]["error_gate"])
    rows = [row for row in rows if (row["delay_s"], row["error_gate"]) == (mean, gate)]
    results = Results(rows, place=_delay_of)
    print(table(results, mean))
    return draw(results, mean, options.folder)


def _delay_of(row: dict) -> tuple[str, float]:
    return row.get("distribution") or "", row.get("spread_s") or 0.0


def _distributions(results: Results) -> dict[str, list[tuple[str, float]]]:
    """What is drawn in each panel: the delays of a distribution, the fixed delay among all of them."""
    names = [name for name in ("uniform", "gamma") if any(name == of for of, _ in results.delays)]
    return {name: [delay for delay in results.delays if delay[0] in ("", name)] for name in names or [""]}


def table(results: Results, mean: float) -> str:
    """Accuracy in percent, mean ± standard deviation over seeds, of each trace (rows) at each spread."""
    lines, (gate, *_) = [], results.gates
    for name, delays in _distributions(results).items():
        title = f"Test accuracy in %, {subject(results)}, {figures.gate_name(gate)}, {extent(results)}"
        lines += ["", title, f"{_title(name)}, mean {mean:g} s, {_rates(results)}"]
        lines.append(f"{'spread (s)':<12}" + "".join(f"{spread:>14g}" for _, spread in delays))
        lines.append(f"{'sd (s)':<12}" + "".join(f"{spread / _SD:>14.2f}" for _, spread in delays))
        for key in results.traces:
            cells = [cell(results.at(key, delay, gate)) for delay in delays]
            lines.append(f"{figures.label(*key):<12}" + "".join(f"{text:>14}" for text in cells))
            published = PAPER_CIFAR10.get(key) if (results.dataset, mean) == ("cifar10", PAPER_MEAN) else None
            if published and name != "gamma":
                cells = [f"{100 * published[spread]:.0f}" if spread in published else "" for _, spread in delays]
                lines.append(f"{'  paper':<12}" + "".join(f"{text:>14}" for text in cells))
    if any(line.startswith("  paper") for line in lines):
        lines.append(f"paper: {PAPER_CITATION} (made with the error gate, 1e-8)")
    return "\n".join(lines)


def _title(distribution: str) -> str:
    return {"": "fixed delay", "uniform": "uniform delays", "gamma": "gamma distributed delays"}[distribution]


def _rates(results: Results) -> str:
    rates = sorted(set(results.rate.values()))
    if len(rates) == 1:
        return f"learning rate {rates[0]:g}"
    return f"learning rates chosen on held-out images, {rates[0]:g} to {rates[-1]:g}"


def draw(results: Results, mean: float, folder: Path) -> list[Path]:
    """Accuracy against spread, a panel for each distribution; single seeds are dots, bands their range."""
    panels = _distributions(results)
    with figures.new_figure(len(panels), 1.5 + 2.0 * len(panels), sharex=True, sharey=True) as (figure, axes):
        for axis, (name, delays) in zip(axes, panels.items(), strict=True):
            _draw_panel(axis, results, delays)
            axis.set_title(_title(name), loc="left")
            axis.set_ylabel("test accuracy (%)")
        axes[-1].set_xlabel("spread of the delay (s)")
        upper = axes[0].secondary_xaxis("top", functions=(lambda s: s / _SD, lambda sd: sd * _SD))
        spreads = sorted({spread for _, spread in results.delays})
        upper.set_xticks([s / _SD for s in spreads], [f"{s / _SD:.2f}" for s in spreads])
        upper.set_xlabel("standard deviation of the delay (s)")
        upper.spines["top"].set_visible(True)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        figures.footnote(figure, _note(results, mean))
        return figures.save(figure, folder, "random-delay")


def _draw_panel(axis, results: Results, delays: list[tuple[str, float]]) -> None:
    keys = list(reversed(results.traces))
    spreads = [spread for _, spread in delays]
    for index, (key, style) in enumerate(figures.styles(keys).items()):
        points = [(s, [100 * v for v in results.at(key, delay, results.gates[0]) if v is not None])
                  for s, delay in zip(spreads, delays, strict=True)]  # fmt: skip
        points = [(spread, values) for spread, values in points if values]
        if not points:
            continue
        x = [spread for spread, _ in points]
        axis.plot(x, [statistics.mean(v) for _, v in points], **style, label=figures.label(*key), zorder=3)
        low, high = [min(v) for _, v in points], [max(v) for _, v in points]
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        # Dots stand a little beside the spread, so that those of different traces can be told apart.
        shift = 0.008 * (max(spreads) or 1.0) * (index - len(keys) / 2)
        seeds = [(spread + shift, value) for spread, values in points for value in values]
        axis.plot(*zip(*seeds, strict=True), ".", color=style["color"], markersize=2.5, alpha=0.6, zorder=2)
    axis.set_xticks(spreads, [f"{spread:g}" for spread in spreads])


def _note(results: Results, mean: float) -> str:
    text = (
        f"{subject(results)}, {figures.gate_name(results.gates[0])}, {extent(results)}, {_rates(results)}. "
        f"Mean delay and traces' peaks (ET: time constant): {mean:g} s. Spread: full width of uniform delays; "
        "gamma distributed ones have the same standard deviation. "
    )
    if results.subject[-1] == "reset":
        text += f"Signals that come after the end of their stretch of {STRETCH * DT:g} s are lost. "
    text += "Line: mean; dots: seeds; band: their range."
    text += f" Left out: {results.diverged} runs that diverged." if results.diverged else ""
    return textwrap.fill(text, NOTE_WIDTH)


STUDY = vision_study.Study(groups, report)
prepare, run, redraw = (partial(step, STUDY) for step in (vision_study.prepare, vision_study.run, vision_study.redraw))
