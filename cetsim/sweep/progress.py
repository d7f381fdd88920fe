"""Progress of a long sweep, told from the host between compiled chunks: a bar in a terminal, a line a run elsewhere."""

import functools
import statistics
import time
from collections import deque

from cetsim.extras import require


class Reporter:
    """Shows the runs done, running and left, the rate, the time left and what is trained now; a context manager.

    Work is counted in steps of training, summed over the runs that are trained at once.

    **Arguments:** `runs`: expected, of `steps` each.
    """

    def __init__(self, runs: int = 0, steps: int = 0):
        self._total, self._work = runs, runs * steps
        self._steps = self._finished = 0.0  # all, and those of runs that are finished
        self._runs = self._running = 0
        self._then = time.monotonic()  # which never goes back
        self._recent: deque[float] = deque(maxlen=60)  # seconds a step
        self._what, self._bar = "", None

    def __enter__(self):
        console = require("rich.console", extra="sweep").Console()
        if console.is_terminal:
            bars = require("rich.progress", extra="sweep")
            plain = functools.partial(bars.TextColumn, markup=False)  # names may have brackets
            columns = (plain("{task.fields[done]}"), bars.BarColumn(20), plain("{task.description}"))
            self._bar = bars.Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=max(1, self._work), done="")
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def working_on(self, what: str, runs: int) -> None:
        """Names what is trained now, so many runs at once; what was begun before and not finished counts no more."""
        self._what, self._running, self._then, self._steps = what, runs, time.monotonic(), self._finished
        self._show()

    def advance(self, steps: float, metric: str = "", timed: bool = True) -> None:
        """Counts steps of training, but for those made before this process began `timed`, and tells a metric."""
        now = time.monotonic()
        if steps and timed:
            self._recent.append((now - self._then) / steps)
        self._then, self._steps = now, self._steps + steps
        self._show(metric)

    def finished(self, runs: int, lines: list[str]) -> None:
        """Counts runs that are finished and prints what is to be said of them, if anything."""
        self._runs, self._running, self._finished = self._runs + runs, 0, self._steps
        self._show()
        if lines and self._bar is not None:
            self._bar.console.print("\n".join(lines), highlight=False, markup=False)
        elif lines:
            print("\n".join(lines), f"[{self._done()}]", sep="\n", flush=True)

    def _show(self, metric: str = "") -> None:
        if self._bar is not None:
            what = ", ".join(part for part in (self._what, metric) if part)
            self._bar.update(self._task, completed=self._steps, done=self._done(), description=what)

    def _done(self) -> str:
        done = f"{self._runs}/{self._total} runs"
        if self._running:
            done += f", {self._running} running, {max(0, self._total - self._runs - self._running)} left"
        if not self._recent:
            return done
        longest = 5 * statistics.median(self._recent)  # the rare step that waits for compilation says nothing
        pace = max(1e-9, statistics.mean(seconds for seconds in self._recent if seconds <= longest))
        rate = f"{1 / pace:,.0f}" if pace <= 0.1 else f"{1 / pace:.2g}"
        return f"{done}, {rate} steps/s, {format_seconds(pace * max(0, self._work - self._steps))} left"


def format_seconds(seconds: float) -> str:
    """Seconds as a reader would say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
