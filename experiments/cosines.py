"""Cosines between updates and true gradients, by trace, delay, layer and step, gathered from tidy rows."""

import re
from collections import Counter, defaultdict

from experiments import figures
from experiments.options.common import STRETCH
from experiments.vision_report import extent, subject

_SUBJECT = ("dataset", "network", "form", "mode")
_SETTING = ("error_gate", "update_every", "run_length", "interpolation", "spread_s", "distribution")
_TRACES = ("ET", "CET", "double exponential", "delay line")


class Cosines:
    """Cosines of the runs that one figure can show, and what captions say about them.

    They are of the last row's dataset, network, form and mode, and of the gate, presentation, spread and ratio of peak
    to delay that most of these runs have (the first in the file of several). Runs that diverged and backprop, which
    is its own gradient, are left out. Of runs that differ only in length or learning rate the longest counts, then the
    last in the file.

    **Raises:** ValueError if no run is left.
    """

    def __init__(self, rows: list[dict]):
        diverged = {_run(row) for row in rows if row["metric"] == "diverged" and row["value"]}
        rows = [row for row in rows if row["metric"] == "alignment" and row["trace"] != "backprop"]
        sound = [row for row in rows if _run(row) not in diverged and row["value"] is not None]
        if not sound:
            raise ValueError("there are no cosines to draw: no run with a trace has been finished without diverging")
        rows = _of_one_setting(sound)
        self._curves = _longest(rows)
        self.dataset, self.network, self.form, self.mode = (rows[-1][name] for name in _SUBJECT)
        # One run for several traces: they were measured at the weights of another rule.
        together = len({(_run(row), row["trace"], row["order"]) for row in rows}) > len({_run(row) for row in rows})
        self.where = f"{'All are' if together else 'Each is'} measured at the weights of "
        self.where += "the same run, of backprop." if together else "its own run."
        self.gate, self.rates = rows[-1]["error_gate"], sorted({row["learning_rate"] for row in rows})
        self.peak_ratio, self.images = _peak_ratio(rows[-1]), int(rows[-1].get("update_every") or STRETCH)
        self.traces = sorted({trace for trace, _, _ in self._curves}, key=_rank)
        self.delays, self.seeds = (sorted({where[i] for where in self._curves}) for i in (1, 2))
        self.layers = sorted({row["layer"] for row in rows}, key=_depth)
        self.orders = [order for kind, order in self.traces if kind == "CET"]
        self.steps = sorted({max(steps) for layers in self._curves.values() for steps in layers.values()})

    def along(self, trace: tuple, delay: float, layer: str) -> dict[int, list[float]]:
        """The cosine of each seed by training step."""
        points = defaultdict(list)
        for seed in self.seeds:
            for step, value in self._curves.get((trace, delay, seed), {}).get(layer, {}).items():
                points[step].append(value)
        return dict(sorted(points.items()))

    def at_end(self, trace: tuple, delay: float, layer: str) -> list[float]:
        """The cosine of each seed after training."""
        curves = [self._curves.get((trace, delay, seed), {}).get(layer, {}) for seed in self.seeds]
        return [steps[max(steps)] for steps in curves if steps]

    def names(self) -> dict[str, str]:
        """The layers from the images up, with names for readers."""
        if self.network.startswith("MLP"):
            names = [*(f"hidden {i + 1}" for i in range(len(self.layers) - 1)), "output"]
        elif self.network.startswith("CNN"):
            names = [*(f"conv {i + 1}" for i in range(len(self.layers) - 2)), "hidden", "output"]
        else:
            names = [_name_in_resnet(layer) for layer in self.layers]
        return dict(zip(self.layers, names, strict=True))

    def note(self) -> str:
        """Settings of the runs, for a caption."""
        rates, several = ", ".join(f"{rate:g}" for rate in self.rates), len(self.rates) > 1
        rate = f"learning rates chosen on held-out images ({rates})" if several else f"learning rate {rates}"
        return f"{subject(self)}, {figures.gate_name(self.gate)}, {extent(self, self.images)}, {rate}"


def _run(row: dict):
    """What tells a run's rows from others'; tables of version 0.1.0 do not name runs."""
    of_older = ("trace", "order", "delay_s", "error_gate", "learning_rate", "seed", *_SUBJECT)
    return row.get("run") or tuple(row[name] for name in of_older)


def _of_one_setting(rows: list[dict]) -> list[dict]:
    rows = [row for row in rows if all(row[name] == rows[-1][name] for name in _SUBJECT)]
    counts = Counter({_run(row): _setting(row) for row in rows}.values())
    return [row for row in rows if _setting(row) == counts.most_common(1)[0][0]]


def _setting(row: dict) -> tuple:
    return *(row.get(name) or None for name in _SETTING), _peak_ratio(row)


def _peak_ratio(row: dict) -> float:
    return round((row.get("peak_s") or row["delay_s"]) / row["delay_s"], 6) if row["delay_s"] else 1.0


def _longest(rows: list[dict]) -> dict[tuple, dict]:
    """(trace, order), delay and seed -> {layer: {step: cosine}}, of the longest run there."""
    runs: dict[tuple, dict] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        where = (row["trace"], int(row["order"])), row["delay_s"], int(row["seed"]), _run(row)
        runs[where][row["layer"]][int(row["step"])] = row["value"]
    longest: dict[tuple, tuple] = {}
    for (*where, _), layers in runs.items():
        steps = max(max(steps) for steps in layers.values())
        if steps >= longest.get(tuple(where), (0,))[0]:
            longest[tuple(where)] = steps, layers
    return {where: layers for where, (_, layers) in longest.items()}


def _rank(trace: tuple) -> tuple:
    return _TRACES.index(trace[0]), trace[1]


def _depth(layer: str) -> tuple:
    """Sorts the names of layers from the images up: by their numbers, a ResNet's ends around its blocks."""
    return {"stem": -1, "head": 1}.get(layer, 0), [int(digits) for digits in re.findall(r"\d+", layer)]


def _name_in_resnet(layer: str) -> str:
    numbers = [int(digits) + 1 for digits in re.findall(r"\d+", layer)]
    return "block {} conv {}".format(*numbers) if numbers else {"stem": "stem", "head": "output"}[layer]
