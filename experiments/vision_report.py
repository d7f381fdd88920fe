"""The table and the figure of behavioral-vision, from tidy rows alone."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from experiments import figures
from experiments.options.behavioral_vision import BehavioralVision
from experiments.options.common import STRETCH

PAPER_CITATION = "Learning From the Past with Cascading Eligibility Traces, arXiv:2506.14598"
NAMES = {"digits": "digits (8x8)", "mnist": "MNIST", "cifar10": "CIFAR-10", "tinyimagenet": "TinyImageNet"}
# Published test accuracies at behavioural delays, by dataset: (trace, order) -> {delay in s: accuracy}.
PAPER = {
    "mnist": {
        ("ET", 1): {4.0: 0.95, 10.0: 0.89},
        ("CET", 2): {4.0: 0.97, 10.0: 0.91},
        ("CET", 6): {4.0: 0.98, 10.0: 0.95},
        ("CET", 10): {4.0: 0.98, 10.0: 0.97},
        ("backprop", 0): {0.0: 0.99},
    },
    "cifar10": {
        ("ET", 1): {2.0: 0.62, 10.0: 0.47},
        ("CET", 2): {2.0: 0.66, 10.0: 0.53},
        ("CET", 6): {2.0: 0.74, 10.0: 0.57},
        ("CET", 10): {2.0: 0.77, 10.0: 0.60},
        ("backprop", 0): {0.0: 0.81},
    },
    "tinyimagenet": {
        ("ET", 1): {1.0: 0.0973},
        ("CET", 10): {1.0: 0.3431},
        ("backprop", 0): {0.0: 0.4060},
    },
}


class Results:
    """Final test accuracies of the last rows' dataset, network and form, and what captions say about them.

    Of runs that differ only in length or learning rate the longest counts, then the last in the file.
    `accuracy` maps (trace, order), delay and gate to the accuracy of each seed; a run that diverged has None.
    `place` says what stands for the delay, where something else is varied.
    """

    def __init__(self, rows: list[dict], place: Callable[[dict], Any] = itemgetter("delay_s")):
        tests = [row for row in rows if row["metric"] == "test_accuracy"]
        if not tests:
            raise ValueError("there are no rows of test_accuracy to draw: the experiment has not finished any run")
        self.subject = _subject(tests[-1])
        self.dataset, self.network, self.form, _ = self.subject
        tests = [row for row in tests if _subject(row) == self.subject]
        last: dict[tuple, dict] = {}
        for row in tests:
            key = _condition(row, place), row["seed"]
            if key not in last or row["step"] >= last[key]["step"]:
                last[key] = row
        run = lambda row: (*_condition(row, place), *_subject(row), row["learning_rate"], row["seed"])  # noqa: E731
        diverged = {run(row) for row in rows if row["metric"] == "diverged" and row["value"]}
        self.accuracy, self.rate = defaultdict(dict), {}
        for (condition, seed), row in last.items():
            self.accuracy[condition][seed] = None if run(row) in diverged else row["value"]
            self.rate[condition] = row["learning_rate"]
        self.diverged = sum(value is None for seeds in self.accuracy.values() for value in seeds.values())
        self.steps = sorted({int(row["step"]) for row in last.values()})
        self.seeds = sorted({int(row["seed"]) for row in last.values()})
        self.gates = sorted({gate for (trace, _), _, gate in self.accuracy if trace != "backprop"}, reverse=True)
        self.delays = sorted({delay for (trace, _), delay, _ in self.accuracy if trace != "backprop"})
        self.traces = sorted({key for key, _, _ in self.accuracy}, key=_rank)

    def at(self, key: tuple, delay: float, gate: float) -> list[float | None]:
        """Accuracy of each seed; backprop, which has neither delay nor gate, is the same everywhere."""
        if key[0] == "backprop":
            delay, gate = 0.0, 0.0
        return list(self.accuracy.get((key, delay, gate), {}).values())


def _subject(row: dict) -> tuple:
    return row["dataset"], row["network"], row["form"], row["mode"]


def _condition(row: dict, place: Callable[[dict], Any]) -> tuple:
    return (row["trace"], int(row["order"])), place(row), row["error_gate"]


def _rank(key: tuple) -> tuple:
    trace, order = key
    return ("backprop", "delay line", "CET", "ET").index(trace), -order


def report(rows: list[dict], options: BehavioralVision) -> list[Path]:
    """Prints the table and writes the figure."""
    results = Results(rows)
    print(table(results))
    return draw(results, options.folder)


def table(results: Results) -> str:
    """Accuracy in percent, mean ± standard deviation over seeds, of each trace (rows) at each delay."""
    lines = []
    for gate in results.gates or [0.0]:
        lines += ["", f"Test accuracy in %, {subject(results)}, {figures.gate_name(gate)}, {extent(results)}"]
        lines.append(f"{'delay (s)':<12}" + "".join(f"{delay:>14g}" for delay in results.delays))
        for key in results.traces:
            cells = [cell(results.at(key, delay, gate)) for delay in results.delays]
            lines.append(f"{figures.label(*key):<12}" + "".join(f"{text:>14}" for text in cells))
            published = PAPER.get(results.dataset, {}).get(key)
            if published:
                numbers = [published.get(0.0, published.get(delay)) for delay in results.delays]
                cells = ["" if number is None else f"{100 * number:.0f}" for number in numbers]
                lines.append(f"{'  paper':<12}" + "".join(f"{text:>14}" for text in cells))
        lines.append("learning rate")
        for key in results.traces:
            at = (0.0, 0.0) if key[0] == "backprop" else None
            rates = [results.rate.get((key, *(at or (delay, gate)))) for delay in results.delays]
            cells = ["" if rate is None else f"{rate:g}" for rate in rates]
            lines.append(f"{figures.label(*key):<12}" + "".join(f"{text:>14}" for text in cells))
    if results.dataset in PAPER:
        lines.append(f"paper: {PAPER_CITATION} (made with the error gate, 1e-8)")
    return "\n".join(lines)


def cell(accuracies: list[float | None]) -> str:
    """Mean ± standard deviation in percent, and how many of the runs diverged."""
    values = [100 * value for value in accuracies if value is not None]
    diverged = len(accuracies) - len(values)
    if not accuracies:
        return ""
    if not values:
        return "diverged"
    text = f"{statistics.mean(values):.1f}"
    text += f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return text + (f" ({diverged} div.)" if diverged else "")


def subject(results: Results) -> str:
    """Dataset, network and form of the rule."""
    return f"{NAMES[results.dataset]}, {results.network}, form {results.form}"


def extent(results: Results, images: int = STRETCH) -> str:
    """Seeds and steps, each of so many images."""
    steps = " or ".join(f"{step:,}" for step in results.steps)
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    return f"{seeds}, {steps} steps of {images:,} images"


def draw(results: Results, folder: Path) -> list[Path]:
    """Accuracy against delay, a panel for each error gate; single seeds are dots, bands their range."""
    gates = results.gates or [0.0]
    with figures.new_figure(len(gates), 1.0 + 2.2 * len(gates), sharex=True, sharey=True) as (figure, axes):
        for axis, gate in zip(axes, gates, strict=True):
            _draw_panel(axis, results, gate)
            axis.set_ylabel("test accuracy (%)")
            if len(gates) > 1:
                axis.set_title(figures.gate_name(gate), loc="left")
        axes[-1].set_xlabel("delay of the learning signal (s)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        gate = "" if len(gates) > 1 else f"{figures.gate_name(gates[0])}, "
        note = f"{subject(results)},\n{gate}{extent(results)}.\nLine: mean; dots: seeds; band: their range."
        note += f"\nLeft out: {results.diverged} runs that diverged." if results.diverged else ""
        figures.footnote(figure, note)
        return figures.save(figure, folder, "behavioral-vision")


def _draw_panel(axis, results: Results, gate: float) -> None:
    delays = results.delays
    keys = list(reversed(results.traces))
    for index, (key, style) in enumerate(figures.styles(keys).items()):
        points = [(delay, [100 * v for v in results.at(key, delay, gate) if v is not None]) for delay in delays]
        points = [(delay, values) for delay, values in points if values]
        if not points:
            continue
        x = [delay for delay, _ in points]
        mean = [statistics.mean(values) for _, values in points]
        axis.plot(x, mean, **style, label=figures.label(*key), zorder=1 if key[0] == "backprop" else 3)
        axis.fill_between(
            x,
            [min(v) for _, v in points],
            [max(v) for _, v in points],
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )
        # Dots stand a little beside the delay, so that those of different traces can be told apart.
        shift = 1 + 0.012 * (index - len(keys) / 2)
        seeds = [(delay * shift, value) for delay, values in points for value in values]
        axis.plot(*zip(*seeds, strict=True), ".", color=style["color"], markersize=2.5, alpha=0.6, zorder=2)
    axis.set_xscale("log")
    axis.set_xticks(delays, [f"{delay:g}" for delay in delays])
    axis.minorticks_off()
