"""Progress of a long sweep, told from the host between compiled chunks: a bar in a terminal, a line a run elsewhere."""

import statistics
import time
from collections import deque

from cetsim.extras import require


class Reporter:
    """Shows the runs done, running and left, the rate, the time left and what is trained now; a context manager.

    **Arguments:** `runs`: expected. `steps`: of training, summed over them.
    """

    def __init__(self, runs: int = 0, steps: int = 0):
        self._total, self._work, self._runs, self._running = runs, steps, 0, 0
        self._steps = self._finished = 0  # all, and those of runs that are finished
        self._then = time.monotonic()  # which never goes back
        self._recent: deque[float] = deque(maxlen=60)  # seconds a step
        console, bars = require("rich.console", extra="sweep"), require("rich.progress", extra="sweep")
        text = bars.TextColumn("{task.description}", markup=False)  # names may have brackets
        self._bar = bars.Progress(bars.BarColumn(20), text, console=console.Console(), transient=True)
        self._bar.disable = not self._bar.console.is_terminal
        self._task = self._bar.add_task("", total=max(1, steps))

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def working_on(self, what: str, runs: int, steps: int = 0) -> None:
        """Shows what is trained now, and counts steps made before; what was begun and not finished counts no more."""
        self._running, self._then, self._steps = runs, time.monotonic(), self._finished + steps
        self._show(what)

    def advance(self, steps: int, what: str) -> None:
        """Counts steps of training, and shows what is trained."""
        now = time.monotonic()
        self._recent.append((now - self._then) / steps)
        self._then, self._steps = now, self._steps + steps
        self._show(what)

    def finished(self, lines: list[str]) -> None:
        """Counts runs that are finished, and prints a line of each."""
        self._runs, self._running, self._finished = self._runs + len(lines), 0, self._steps
        self._show("")
        print(*lines, f"[{self._done()}]", sep="\n", flush=True)

    def _show(self, what: str) -> None:
        self._bar.update(self._task, completed=self._steps, description=f"{self._done()}, {what}")

    def _done(self) -> str:
        left = max(0, self._total - self._runs - self._running)
        done = f"{self._runs}/{self._total} runs" + (f", {self._running} running, {left} left" if self._running else "")
        if not self._recent:
            return done
        pace = max(1e-9, statistics.median(self._recent))  # the rare step that waits for compilation says nothing
        rate = f"{1 / pace:,.0f}" if pace <= 0.1 else f"{1 / pace:.2g}"
        return f"{done}, {rate} steps/s, {format_seconds(pace * max(0, self._work - self._steps))} left"


def format_seconds(seconds: float) -> str:
    """Seconds as a reader would say them: 45 s, 12 min, 3.5 h."""
    hours = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 90 else hours
