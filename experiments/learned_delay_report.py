"""The table and the figure of learned-delay, from tidy rows alone."""

import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from experiments import figures
from experiments.options.learned_delay import LearnedDelay
from experiments.vision_report import cell, extent, subject

BAND = 0.1  # of the delay, around it
NOTE_WIDTH = 62  # letters
_SUBJECT = ("dataset", "network", "form", "mode", "delay_s", "order", "error_gate", "learning_rate")
_STYLES = {  # methods mostly agree: the wide line shows below the narrow one
    "held": dict(color="#999999"),
    "alignment": dict(color="#56B4E9", linewidth=2.8),
    "perturbation": dict(color="#D55E00", linewidth=1.0),
}
_HELD_RIGHT = dict(color="#000000", linestyle=(0, (2, 1.5)), zorder=4)
_SHORT, _LONG = dict(marker="^", linestyle="-"), dict(marker="v", linestyle=(0, (5, 1)))  # by where a peak starts


def best_peak(delay: float, order: int) -> float:
    """Peak at which the update is best aligned, were images unrelated: (n - 1)/(n - ½) of the delay.

    Every lag but the delay T adds noise of equal size then, so that the cosine goes as w(T)/√Σw². The weight w(T) goes
    as α^n e^(-αT) and Σw² as α: the ratio is largest at α = (n - ½)/T, and the peak is (n - 1)/α.
    """
    return delay * (order - 1) / (order - 0.5)


class Results:
    """All runs of one dataset, network, form, delay, order, gate, learning rate and length, by method and start.

    They are those of the last run in the file with the delay, order and gate asked for, of the last run if none has
    them. Of runs that differ only in how a method was set, the last in the file counts. `runs` maps (method, start in
    s) to a dict for each seed: metric -> [(step, value), ...].
    """

    def __init__(self, rows: list[dict], options: LearnedDelay):
        asked = (options.delay, options.order, options.error_gate)
        fits = [row for row in rows if (row["delay_s"], row["order"], row["error_gate"]) == asked]
        last = (fits or rows)[-1]
        by_run = defaultdict(list)
        for row in rows:
            if [row[name] for name in _SUBJECT] == [last[name] for name in _SUBJECT]:
                by_run[row["run"]].append(row)
        lengths = {run: max(row["step"] for row in of_one) for run, of_one in by_run.items()}
        length = lengths[last["run"]]
        latest = {
            (of_one[0]["method"], of_one[0]["peak_s"], of_one[0]["seed"]): _series(of_one)
            for run, of_one in by_run.items()
            if lengths[run] == length
        }
        self.runs = defaultdict(list)
        for (method, start, _), series in sorted(latest.items(), key=lambda item: (_rank(item[0][0]), *item[0][1:])):
            self.runs[method, start].append(series)
        self.dataset, self.network, self.form, _, self.delay, order, self.gate, self.rate = (
            last[name] for name in _SUBJECT
        )
        self.order, self.steps, self.seeds = int(order), [length], sorted({seed for *_, seed in latest})

    def final(self, key: tuple, metric: str) -> list[float | None]:
        """Last value of each seed; None if the run diverged."""
        runs = self.runs[key]
        return [None if run["diverged"][-1][1] else run[metric][-1][1] for run in runs]

    @property
    def settings(self) -> str:
        """What all runs have in common."""
        trace = figures.label("CET", self.order)
        return f"{subject(self)}, {trace}, {figures.gate_name(self.gate)}, {extent(self)}, learning rate {self.rate:g}"


def _series(rows: list[dict]) -> dict[str, list[tuple]]:
    series = defaultdict(list)
    for row in rows:
        series[row["metric"]].append((row["step"], row["value"]))
    return series


def _rank(method: str) -> int:
    return list(_STYLES).index(method)


def report(rows: list[dict], options: LearnedDelay) -> list[Path]:
    """Prints the table and writes the figure."""
    results = Results(rows, options)
    print(table(results))
    return draw(results, options.folder)


def table(results: Results) -> str:
    """Where each peak ended, how far from the delay, and what the network learned; mean and sd or range over seeds."""
    lines = ["", f"Peak learned for a delay of {results.delay:g} s, {results.settings}"]
    lines.append(
        f"{'method':<14}{'start (s)':>10}{'end (s)':>16}{'error (%)':>24}{'accuracy (%)':>16}{'extra stretches':>17}"
    )
    for (method, start), runs in results.runs.items():
        key = method, start
        peaks, extra = results.final(key, "learned_peak_s"), runs[0]["extra_stretches"][-1][1]
        cells = (
            f"{_mean_sd(peaks):>16}{_errors(peaks, results.delay):>24}{cell(results.final(key, 'test_accuracy')):>16}"
        )
        lines.append(f"{method:<14}{start:>10g}{cells}{extra:>17g}")
    best = best_peak(results.delay, results.order)
    lines.append(f"best aligned if images were unrelated: {best:.3g} s ({100 * (best / results.delay - 1):+.1f} %)")
    lines.append(
        "extra stretches: of 128 images, what learning the peak takes in a run beside what the network learns from"
    )
    return "\n".join(lines)


def _mean_sd(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "diverged"
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def _errors(peaks: list[float | None], delay: float) -> str:
    errors = [100 * (peak / delay - 1) for peak in peaks if peak is not None]
    if not errors:
        return ""
    mean = f"{statistics.mean(errors):+.1f}"
    return mean + (f" ({min(errors):+.1f} to {max(errors):+.1f})" if len(errors) > 1 else "")


def draw(results: Results, folder: Path) -> list[Path]:
    """The peak, and the loss, against the network's updates."""
    with figures.new_figure(2, 5.2, sharex=True) as (figure, (above, below)):
        _draw_peaks(above, results)
        _draw_losses(below, results)
        below.set_xlabel("updates of the network")
        figure.legend(handles=_legend(results), loc="outside upper center", ncols=2)
        best = f"{best_peak(results.delay, results.order):.3g} s"
        note = (
            f"{results.settings}. ▲ starts too short, ▼ too long. Thick: mean over seeds; thin: seeds. Grey band: "
            f"delay ± {100 * BAND:g} %. Dotted: where the update is best aligned if images are unrelated, {best}."
        )
        figures.footnote(figure, textwrap.fill(note, NOTE_WIDTH))
        return figures.save(figure, folder, "learned-delay")


def _legend(results: Results) -> list[Line2D]:
    """A line for each method; starts are told by marks."""
    lines = []
    for method in dict.fromkeys(method for method, _ in results.runs):
        if method == "held":
            lines.append(Line2D([], [], **_HELD_RIGHT, label=f"held right, {results.delay:g} s"))
        name = "held wrong" if method == "held" else f"learned by {method}"
        lines.append(Line2D([], [], **_STYLES[method], label=name))
    return lines


def _style(results: Results, key: tuple) -> dict:
    method, start = key
    if start == results.delay:
        return _HELD_RIGHT
    return _STYLES[method] | (_SHORT if start < results.delay else _LONG)


def _draw_peaks(axis, results: Results) -> None:
    delay = results.delay
    axis.axhspan((1 - BAND) * delay, (1 + BAND) * delay, color="#000000", alpha=0.1, linewidth=0)
    axis.axhline(delay, color="#000000", linewidth=0.9)
    axis.axhline(best_peak(delay, results.order), color="#000000", linewidth=0.9, linestyle=":")
    for key in results.runs:
        if key[0] != "held":
            _draw_seeds(axis, results, key, "learned_peak_s")
    axis.set_yscale("log")
    starts = {start for _, start in results.runs}
    ticks = sorted(starts | {delay * factor for factor in (0.7, 1.4) if min(starts) < delay * factor < max(starts)})
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylabel("peak of the trace (s)")
    axis.set_title(f"a  The peak, for a delay of {delay:g} s", loc="left")


def _draw_losses(axis, results: Results) -> None:
    for key in results.runs:
        _draw_seeds(axis, results, key, "train_loss")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("training loss")
    axis.set_title("b  What the network learns meanwhile", loc="left")


def _draw_seeds(axis, results: Results, key: tuple, metric: str) -> None:
    """Each seed thin, their mean over them; a run that diverged has no line."""
    style = _style(results, key)
    runs = [run[metric] for run in results.runs[key] if not run["diverged"][-1][1]]
    if not runs:
        return
    if metric == "train_loss":
        runs = [_without_rest(run) for run in runs]
    steps = [step for step, _ in runs[0]]
    for run in runs:
        axis.plot(steps, [value for _, value in run], color=style["color"], linewidth=0.5, alpha=0.6, zorder=2)
    mean = [statistics.mean(values) for values in zip(*([v for _, v in run] for run in runs), strict=True)]
    every = max(1, len(steps) // 8)
    first = list(_STYLES).index(key[0]) * every // len(_STYLES)  # marks of different methods stand apart
    axis.plot(steps, mean, **({"zorder": 3} | style), markevery=(first, every))


def _without_rest(losses: list[tuple]) -> list[tuple]:
    """Losses, each a mean over the updates since the one before, less a last one of few updates, which is noise."""
    steps = [0, *(step for step, _ in losses)]
    return losses if steps[-1] - steps[-2] > steps[1] / 2 else losses[:-1]
