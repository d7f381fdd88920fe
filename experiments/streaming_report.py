"""The tables and figures of streaming-vision, from tidy rows alone."""

import statistics
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from experiments import figures
from experiments.options.common import DT, STRETCH
from experiments.options.streaming_vision import StreamingVision
from experiments.vision_report import cell, extent, subject

MODES = {"reset": "stretches start empty", "carry": "time goes on"}
AXES = {
    "delay_s": "delay of the signal (s)",
    "run_length": "run of a class (images)",
    "interpolation": "steps per image",
    "update_every": "images per update",
}
NOTE_WIDTH = 62  # letters
_SUBJECT = ("dataset", "network", "form", "gate")


class Place(NamedTuple):
    """All that is varied but the trace."""

    mode: str
    delay_s: float
    run_length: int = 1
    interpolation: int = 1
    update_every: int = STRETCH


class Streams:
    """Final test accuracies of one dataset, network, form and gate, and what captions say about them.

    They are those of the last run in the file with the options' gate, of the last run if none has it. Of runs that
    differ only in length or learning rate the longest counts, then the last in the file. `accuracy` maps
    (trace, order) and place to the accuracy of each seed; a run that diverged has None.
    """

    def __init__(self, rows: list[dict], options: StreamingVision):
        ends = _ends(rows)
        last = next((end for end in reversed(ends) if end["gate"] == options.error_gate), ends[-1])
        self.dataset, self.network, self.form, self.gate = (last[name] for name in _SUBJECT)
        kept: dict[tuple, dict] = {}
        for end in sorted(filter(self._is_of, ends), key=lambda end: end["stretches"]):
            kept[(end["trace"], end["order"]), end["place"], end["seed"]] = end
        self.accuracy = defaultdict(dict)
        for (key, place, seed), end in kept.items():
            self.accuracy[key, place][seed] = end["value"]
        self.steps, self.seeds, self.rates = (
            sorted({end[name] for end in kept.values()}) for name in ("stretches", "seed", "learning_rate")
        )
        self.diverged = sum(end["value"] is None for end in kept.values())
        self.traces = sorted({key for key, _ in self.accuracy}, key=_rank)
        self.places = {place for (trace, _), place in self.accuracy if trace != "backprop"}
        self.modes = [mode for mode in MODES if any(place.mode == mode for place in self.places)]
        varied = {place.delay_s for place in self.places if place != Place(place.mode, place.delay_s)}
        self.order_delay = options.order_delay if options.order_delay in varied else max(varied, default=None)

    def _is_of(self, end: dict) -> bool:
        gate = self.gate if end["trace"] != "backprop" else end["gate"]
        return tuple(end[name] for name in _SUBJECT) == (self.dataset, self.network, self.form, gate)

    def line(self, varied: str, mode: str) -> dict[float, Place]:
        """The places in one mode where nothing but `varied` is varied, by its value."""
        plain = Place(mode, self.order_delay)
        same = lambda place: varied == "delay_s" or place.delay_s == plain.delay_s  # noqa: E731
        alike = lambda place: plain._replace(**{varied: getattr(place, varied)}) == place  # noqa: E731
        return {getattr(place, varied): place for place in sorted(self.places) if same(place) and alike(place)}

    def at(self, key: tuple, place: Place) -> dict[int, float | None]:
        """Accuracy by seed; of backprop, which has no delay, in the other mode if it was not run in this."""
        if key[0] != "backprop":
            return self.accuracy.get((key, place), {})
        found = (self.accuracy.get((key, place._replace(mode=mode, delay_s=0.0))) for mode in (place.mode, *MODES))
        return next(filter(None, found), {})

    @property
    def note(self) -> str:
        """Settings of the runs, for a caption."""
        rates, several = ", ".join(f"{rate:g}" for rate in self.rates), len(self.rates) > 1
        rate = f"learning rates chosen on held-out images ({rates})" if several else f"learning rate {rates}"
        return f"{subject(self)}, {figures.gate_name(self.gate)}, {extent(self)}, {rate}"


def _ends(rows: list[dict]) -> list[dict]:
    """The last test accuracy of each run, its place, its gate as of 128 images, and its length in as many."""
    diverged = {row["run"] for row in rows if row["metric"] == "diverged" and row["value"]}
    last: dict[str, dict] = {}
    for row in rows:
        if row["metric"] == "test_accuracy":
            last[row["run"]] = max(last.get(row["run"], row), row, key=lambda row: row["step"])
    return [
        row
        | {
            "value": None if row["run"] in diverged else row["value"],
            "place": Place(*(row[name] for name in Place._fields)),
            "gate": float(f"{row['error_gate'] * (row['update_every'] / STRETCH) ** 2:.6g}"),
            "stretches": row["step"] * row["update_every"] // STRETCH,
        }
        for row in last.values()
    ]


def _rank(key: tuple) -> tuple:
    trace, order = key
    return ("backprop", "delay line", "CET", "ET").index(trace), -order


def report(rows: list[dict], options: StreamingVision) -> list[Path]:
    """Prints the tables and writes the figures."""
    streams = Streams(rows, options)
    print(tables(streams))
    return draw(streams, options.folder)


def tables(streams: Streams) -> str:
    """Accuracy in percent, mean ± standard deviation over seeds, of each trace (rows) by all that is varied."""
    lines = ["", f"Test accuracy in %, {streams.note}"]
    for varied in filter(lambda each: _is_varied(streams, each), AXES):
        title = AXES[varied] + ("" if varied == "delay_s" else f", delay {streams.order_delay:g} s")
        for mode in ["carry"] if varied == "update_every" else streams.modes:
            line = streams.line(varied, mode)
            found = {key: [streams.at(key, place) for place in line.values()] for key in streams.traces}
            lines += _block(f"{title}: {mode}, {MODES[mode]}", line, found)
        if varied != "update_every" and len(streams.modes) > 1:
            line = streams.line(varied, "carry")
            lines += _block(f"{title}: carry less reset", line, _costs(streams, line))
    return "\n".join(lines)


def _is_varied(streams: Streams, varied: str) -> bool:
    """Whether there is something to compare: one delay is enough, since it is compared between modes and traces."""
    values = max(len(streams.line(varied, mode)) for mode in streams.modes)
    return values > (0 if varied == "delay_s" else 1)


def _block(title: str, line: dict, found: dict[tuple, list[dict]]) -> list[str]:
    lines = ["", title, " " * 12 + "".join(f"{value:>14g}" for value in line)]
    for key, columns in found.items():
        texts = [cell(list(seeds.values())) for seeds in columns]
        lines.append(f"{figures.label(*key):<12}" + "".join(f"{text:>14}" for text in texts))
    return lines


def _costs(streams: Streams, line: dict) -> dict[tuple, list[dict]]:
    """What carrying changes, seed by seed."""
    costs = {}
    for key in streams.traces:
        if key[0] == "backprop":
            continue
        pairs = [[streams.at(key, place._replace(mode=mode)) for mode in ("carry", "reset")] for place in line.values()]
        costs[key] = [
            {seed: on[seed] - off[seed] for seed in on if None not in (on[seed], off.get(seed))} for on, off in pairs
        ]
    return costs


def draw(streams: Streams, folder: Path) -> list[Path]:
    """Accuracy against delay, against the order of images, and against the images of an update."""
    alike = f"Weights change every {STRETCH} images."
    blended = f"With n steps of {DT:g} s per image, blended into the next, the same time shows 1/n as many images."
    updates = "The same images in all: fewer to an update make more updates; the error gate is scaled to match."
    files = [
        ("streaming-vision", ["delay_s"], streams.modes, alike),
        ("input-order", ["run_length", "interpolation"], streams.modes, f"{alike} {blended}"),
        ("update-every", ["update_every"], ["carry"], updates),
    ]
    paths = []
    for name, varied, modes, text in files:
        rows = [each for each in varied if _is_varied(streams, each)]
        if rows:
            paths += _draw(streams, folder, name, rows, modes, text)
    return paths


def _draw(streams: Streams, folder: Path, name: str, rows: list[str], modes: list[str], text: str) -> list[Path]:
    """One figure: a row of panels for each thing varied, a column for each mode."""
    height = 1.3 + 1.7 * len(rows)
    with figures.new_grid(len(rows), len(modes), figures.COLUMN_WIDTH, height, sharey=True) as (figure, axes):
        for varied, row in zip(rows, axes, strict=True):
            for mode, axis in zip(modes, row, strict=True):
                _draw_panel(axis, streams, varied, streams.line(varied, mode))
                axis.set_xlabel(AXES[varied])
            row[0].set_ylabel("test accuracy (%)")
        for mode, axis in zip(modes, axes[0], strict=True):
            axis.set_title(f"{mode}: {MODES[mode]}", loc="left", fontsize=7)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        lost = f" Left out: {streams.diverged} runs that diverged." if streams.diverged else ""
        at = "" if "delay_s" in rows else f" Delay {streams.order_delay:g} s."
        note = f"{streams.note}.{at} {text} Line: mean; dots: seeds; band: their range.{lost}"
        figures.footnote(figure, textwrap.fill(note, NOTE_WIDTH))
        return figures.save(figure, folder, name)


def _draw_panel(axis, streams: Streams, varied: str, line: dict[float, Place]) -> None:
    keys, ratio = list(reversed(streams.traces)), max(line, default=1) / min(line, default=1)
    for index, (key, style) in enumerate(figures.styles(keys).items()):
        found = {x: [100 * v for v in streams.at(key, place).values() if v is not None] for x, place in line.items()}
        points = [(x, values) for x, values in found.items() if values]
        if not points:
            continue
        x = [x for x, _ in points]
        axis.plot(x, [statistics.mean(values) for _, values in points], **style, label=figures.label(*key), zorder=3)
        low, high = [min(values) for _, values in points], [max(values) for _, values in points]
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        # Dots stand a little beside their place, so that those of different traces can be told apart.
        shift = ratio ** (0.012 * (index - len(keys) / 2))
        seeds = [(x * shift, value) for x, values in points for value in values]
        axis.plot(*zip(*seeds, strict=True), ".", color=style["color"], markersize=2.5, alpha=0.6, zorder=2)
    axis.set_xscale("log")
    axis.set_xticks(list(line), [f"{value:g}" for value in line])
    axis.minorticks_off()
