"""Progress of a long sweep, told from the host between compiled chunks: a bar in a terminal, a line a run elsewhere."""

import functools
import statistics
import time
from collections import deque

from cetsim.extras import require


class Reporter:
    """Shows the runs done, running and left, the rate, the time left and what is trained now; a context manager.

    Work is counted in steps of training, summed over the runs that are trained at once. What is read of the clock never
    goes back.
    """

    def __init__(self):
        self._expected: dict[str, tuple[int, int]] = {}  # stage -> runs, steps
        self._steps = self._finished = 0.0  # all, and those of runs that are finished
        self._runs = self._running = 0
        self._then = time.monotonic()
        self._recent: deque[float] = deque(maxlen=60)  # seconds a step
        self._what, self._bar = "", None

    def __enter__(self):
        console = require("rich.console", extra="sweep").Console()
        if console.is_terminal:
            bars = require("rich.progress", extra="sweep")
            plain = functools.partial(bars.TextColumn, markup=False)  # names may have brackets
            columns = (plain("{task.fields[done]}"), bars.BarColumn(20), plain("{task.description}"))
            self._bar = bars.Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=None, done="")
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def expect(self, stage: str, runs: int, steps: int) -> None:
        """Sets the work of a stage: its runs, of `steps` each."""
        self._expected[stage] = runs, runs * steps
        self._show()

    def working_on(self, what: str, runs: int) -> None:
        """Names what is trained now, so many runs at once; what was begun before and not finished counts no more."""
        self._what, self._running, self._then = what, runs, time.monotonic()
        self._steps = self._finished
        self._show()

    def advance(self, steps: float, metric: str = "") -> None:
        """Counts steps of training and tells a metric as it is now."""
        now = time.monotonic()
        if steps:
            self._recent.append((now - self._then) / steps)
        self._then = now
        self._steps += steps
        self._show(metric)

    def skip(self, steps: float) -> None:
        """Counts steps that were made before this process began."""
        self._steps += steps
        self._show()

    def finished(self, runs: int, lines: list[str]) -> None:
        """Counts runs that are finished and prints what is to be said of them, if anything."""
        self._runs += runs
        self._running, self._finished = 0, self._steps
        self._show()
        if not lines:
            return
        if self._bar is not None:
            self._bar.console.print("\n".join(lines), highlight=False, markup=False)
        else:
            print("\n".join(lines), f"[{self._done()}]", sep="\n", flush=True)

    def _show(self, metric: str = "") -> None:
        if self._bar is None:
            return
        what = ", ".join(part for part in (self._what, metric) if part)
        total = max(1, self._total(1))
        self._bar.update(self._task, completed=self._steps, total=total, done=self._done(), description=what)

    def _total(self, index: int) -> int:
        return sum(work[index] for work in self._expected.values())

    def _done(self) -> str:
        total = self._total(0)
        done = f"{self._runs}/{total} runs"
        if self._running:
            done += f", {self._running} running, {max(0, total - self._runs - self._running)} left"
        if not self._recent:
            return done
        longest = 5 * statistics.median(self._recent)  # the rare step that waits for compilation says nothing
        pace = statistics.mean(seconds for seconds in self._recent if seconds <= longest)
        return f"{done}, {_rate(pace)}, {format_seconds(pace * max(0, self._total(1) - self._steps))} left"


def _rate(pace: float) -> str:
    """Steps a second, of so many seconds each."""
    rate = 1 / max(pace, 1e-9)
    return f"{rate:,.0f} steps/s" if rate >= 10 else f"{rate:.2g} steps/s"


def format_seconds(seconds: float) -> str:
    """Seconds as a reader would say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
