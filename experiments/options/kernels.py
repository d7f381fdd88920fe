"""Options of kernels."""

from dataclasses import dataclass
from pathlib import Path

from experiments.options.common import require, require_each, require_orders, require_run_flags, whole_steps


@dataclass(frozen=True)
class Kernels:
    """What a trace remembers: impulse responses, their width against order, and their Laplace transforms."""

    out: Path = Path("results")
    """Output folder; files go to OUT/kernels."""
    delay: float = 4.0
    """Lag of the largest weight in seconds (for ET the time constant), a multiple of dt."""
    dt: float = 0.04
    """Length of a step in seconds, above 0 and at most a tenth of the delay."""
    orders: tuple[int, ...] = (2, 6, 10, 32, 64)
    """Orders of the cascading traces, 2 to 64."""
    plot_only: bool = False
    """Redraw the figure from results.csv; compute nothing."""
    fresh: bool = False
    """Start over: remove what this experiment wrote to its folder before."""

    @property
    def folder(self) -> Path:
        """Where this experiment writes."""
        return self.out / "kernels"

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        require_run_flags(self.plot_only, self.fresh)
        require_each("delay", (self.delay,), lambda v: v > 0, "above 0")
        require(
            "dt",
            0 < self.dt <= self.delay / 10,
            f"above 0 and at most delay/10 = {self.delay / 10:g}",
            self.dt,
        )
        require("delay", whole_steps(self.delay, self.dt), f"a multiple of dt = {self.dt:g} s", self.delay)
        require_orders(self.orders)


PRESETS: dict[str, Kernels] = {}
