"""How runs ended, a dict each, gathered from tidy rows: what reports start from that compare settings of traces."""

from collections import defaultdict
from collections.abc import Callable

from experiments import figures
from experiments.options.common import STRETCH
from experiments.options.vision import Vision
from experiments.vision_report import extent, subject

_SUBJECT = ("dataset", "network", "form", "mode", "steps")
_TRACE = ("trace", "order", "delay_s", "peak_s", "rise_s", "ratio")


class FinalRuns:
    """The ends of all runs of one dataset, network, form, mode, length and error gate, and what captions say of them.

    They are those of the last run in the file that has the length and the gate of the options, or else of the last
    run of all. Of runs that differ only in learning rate the last counts. Each of `runs` has its columns, its `steps`
    and at its end `accuracy` and the `alignment` of the first layer; None if it diverged.

    **Arguments:** `rows`: of runs measured on the test set. `options`: with an `error_gate`.
    """

    def __init__(self, rows: list[dict], options: Vision):
        by_run = defaultdict(list)
        for row in rows:
            by_run[row["run"]].append(row)
        runs = [_end(of_one) for of_one in by_run.values()]
        asked = options.error_gate, options.steps * STRETCH // options.update_every
        gated = [run for run in runs if run["trace"] != "backprop"] or runs
        last = next((run for run in reversed(gated) if (run["error_gate"], run["steps"]) == asked), gated[-1])
        self.dataset, self.network, self.form, self.mode, _ = (last[name] for name in _SUBJECT)
        self.gate = last["error_gate"]
        alike: dict[tuple, dict] = {}
        for run in runs:
            gate_fits = run["trace"] == "backprop" or run["error_gate"] == self.gate
            if gate_fits and all(run[name] == last[name] for name in _SUBJECT):
                key = *(run[name] for name in _TRACE), run["seed"]
                alike.pop(key, None)  # so that runs stay in the order of the file
                alike[key] = run
        self.runs, self.steps = list(alike.values()), [last["steps"]]
        self.seeds, self.rates = (sorted({run[name] for run in self.runs}) for name in ("seed", "learning_rate"))
        self.diverged = sum(run["accuracy"] is None for run in self.runs)

    def by(self, key: Callable[[dict], object]) -> dict:
        """Lists of runs, seed by seed, by `key` of a run; a key of None leaves a run out."""
        grouped = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run["seed"]):
            if key(run) is not None:
                grouped[key(run)].append(run)
        return dict(grouped)

    @property
    def note(self) -> str:
        """Settings of the runs, for a caption."""
        rates, several = ", ".join(f"{rate:g}" for rate in self.rates), len(self.rates) > 1
        rate = f"learning rates chosen on held-out images ({rates})" if several else f"learning rate {rates}"
        lost = f". Left out: {self.diverged} runs that diverged" if self.diverged else ""
        return f"{subject(self)}, {figures.gate_name(self.gate)}, {extent(self)}, {rate}{lost}"


def _end(rows: list[dict]) -> dict:
    """One run from its rows."""
    steps = max(row["step"] for row in rows if row["metric"] == "test_accuracy")
    at_end = [row for row in rows if row["step"] == steps]
    values = {metric: [row["value"] for row in at_end if row["metric"] == metric]
              for metric in ("test_accuracy", "alignment", "diverged")}  # fmt: skip
    diverged = any(values["diverged"]) or None in values["test_accuracy"]
    return rows[0] | {
        "order": int(rows[0]["order"]),
        "steps": int(steps),
        "seed": int(rows[0]["seed"]),
        "accuracy": None if diverged else values["test_accuracy"][0],
        "alignment": None if diverged or not values["alignment"] else values["alignment"][0],
    }


def values_of(runs: list[dict], metric: str = "accuracy") -> list[float]:
    """Values of the runs that have one: those that diverged have none."""
    return [run[metric] for run in runs if run[metric] is not None]
