"""Options of tuned-traces."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.options.common import require, require_delays, require_each, require_orders
from experiments.options.peaks import require_peaks
from experiments.options.vision import Vision


@dataclass(frozen=True)
class TunedTraces(Vision):
    """Accuracy of ET, of two exponentials (LTP and LTD) and of CET, each tuned with one budget.

    At each delay every family of traces has the same number of candidates, and each of them the same learning rates.
    The best on held-out training images is reported, beside the family's member that is set to the delay untuned.
    Two exponentials, e^(-t/τ1) - ρ e^(-t/τ2), are told by where they peak, by τ2/τ1 (--rises) and by the share of LTP
    that LTD takes back by coming before it (--depressions). Options given here override the preset's.
    """

    name: ClassVar[str] = "tuned-traces"

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in less than half an hour."""
    delays: tuple[float, ...] = (2.0, 6.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless carried."""
    time_constants: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 16.0)
    """Candidates of ET, in delays; as many as --orders times --peaks, and --rises times --depressions times --peaks."""
    orders: tuple[int, ...] = (2, 4, 6, 8, 10, 20)
    """Orders of the cascading traces, 2 to 64."""
    peaks: tuple[float, ...] = (0.85, 1.0)
    """Where CET and two exponentials peak, in delays; one that blurs much is at its best with an early peak."""
    rises: tuple[float, ...] = (0.5, 0.9)
    """Time constant τ2 of the exponential that is taken away, in those of the other, τ1; near 1 it tends to CET(2)."""
    depressions: tuple[float, ...] = (0.0, 0.5, 0.8)
    """Early LTD before LTP: 0 for none (a ratio ρ of 1), 1 for as much as all LTP (ρ = τ1/τ2, no area left)."""
    error_gate: float = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        super().check()
        alone = self.selection_delay is None
        require("selection_delay", alone, "left out: traces are tuned at each delay", self.selection_delay)
        require_each("error_gate", (self.error_gate,), lambda v: v >= 0, "at least 0")
        require_delays("delays", self.delays, self.mode)
        require_each("time_constants", self.time_constants, lambda v: v > 0, "above 0")
        require_orders(self.orders)
        require_each("rises", self.rises, lambda v: 0 < v <= 0.99, "above 0 and at most 0.99")
        require_each("depressions", self.depressions, lambda v: 0 <= v <= 0.95, "0 to 0.95")
        require_peaks("peaks", self.peaks, self.delays, self.mode)
        self._check_budget()

    def _check_budget(self) -> None:
        """One budget for every family."""
        budget, peaks = len(self.time_constants), len(self.peaks)
        same = f"as many with --peaks as the {budget} of --time-constants: every family has the same budget"
        require("orders", len(self.orders) * peaks == budget, same, f"{len(self.orders)} x {peaks}")
        shapes = len(self.rises) * len(self.depressions)
        got = f"{len(self.rises)} x {len(self.depressions)} x {peaks}"
        require("rises", shapes * peaks == budget, f"with --depressions {same}", got)


PRESETS = {
    "demo": TunedTraces(steps=300, selection_steps=300, learning_rates=(1e-3, 3e-3)),
    "quick": TunedTraces(
        preset="quick", dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1,
        delays=(4.0, 10.0), steps=1170, selection_steps=1170, learning_rates=(3e-4, 1e-3),
    ),
}  # fmt: skip
