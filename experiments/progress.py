"""Progress of a long experiment: a bar where there is a terminal, plain lines elsewhere."""

import statistics
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Reporter:
    """Shows the current work, runs done of all, and the time left. Work is counted in steps of training."""

    def __init__(self):
        self._expected: dict[str, tuple[int, int]] = {}  # stage -> runs, steps
        self._steps = self._runs = 0
        self._then = time.monotonic()
        self._recent: deque[float] = deque(maxlen=60)  # seconds a step
        console = Console()
        self._bar = None
        if console.is_terminal:
            columns = (TextColumn("{task.fields[done]}"), BarColumn(20), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=None, done="")

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def expect(self, stage: str, runs: list, steps: int) -> None:
        """Sets the work of a stage: its runs, of `steps` each."""
        self._expected[stage] = len(runs), len(runs) * steps
        self._show()

    def working_on(self, what: str) -> None:
        """Names the current work."""
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self, steps: int) -> None:
        """Counts steps of training, summed over the conditions that are trained at once."""
        now = time.monotonic()
        self._recent.append((now - self._then) / steps)
        self._then = now
        self._steps += steps
        self._show()

    def finished(self, runs: int, lines: list[str]) -> None:
        """Counts runs that are finished and prints what is to be said of them."""
        self._runs += runs
        self._show()
        if self._bar is not None:
            self._bar.console.print("\n".join(lines), highlight=False, markup=False)
        else:
            print("\n".join(lines), f"[{self._done()}]", sep="\n", flush=True)

    def _show(self) -> None:
        if self._bar is not None:
            total = max(1, self._total(1))
            self._bar.update(self._task, completed=self._steps, total=total, done=self._done())

    def _total(self, index: int) -> int:
        return sum(work[index] for work in self._expected.values())

    def _done(self) -> str:
        done = f"{self._runs}/{self._total(0)} runs"
        if not self._recent:
            return done
        longest = 5 * statistics.median(self._recent)  # the rare step that waits for compilation says nothing
        pace = statistics.mean(seconds for seconds in self._recent if seconds <= longest)
        return f"{done}, {format_seconds(pace * (self._total(1) - self._steps))} left"


def format_seconds(seconds: float) -> str:
    """Seconds as a reader would say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
