"""Progress of a long experiment: a bar where there is a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows the current work, runs done of all, and the time left. Work is counted in steps of training."""

    def __init__(self):
        self._expected: dict[str, tuple[int, int]] = {}  # stage -> runs, steps
        self._steps = self._runs = 0
        self._began = time.monotonic()
        console = Console()
        self._bar = None
        if console.is_terminal:
            texts = TextColumn("{task.fields[runs]}"), TextColumn("{task.description}")
            left = TimeRemainingColumn(elapsed_when_finished=True), TextColumn("left")
            self._bar = Progress(texts[0], BarColumn(20), *left, texts[1], console=console, transient=True)
            self._task = self._bar.add_task("", total=None, runs="")

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
        if self._bar is not None:
            self._bar.update(self._task, total=max(1, self._total(1)), runs=self._done())

    def working_on(self, what: str) -> None:
        """Names the current work."""
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self, steps: int) -> None:
        """Counts steps of training, summed over the conditions that are trained at once."""
        self._steps += steps
        if self._bar is not None:
            self._bar.update(self._task, completed=self._steps)

    def finished(self, runs: int, lines: list[str]) -> None:
        """Counts runs that are finished and prints what is to be said of them."""
        self._runs += runs
        if self._bar is not None:
            self._bar.update(self._task, runs=self._done())
            self._bar.console.print("\n".join(lines), highlight=False, markup=False)
        else:
            print("\n".join(lines), f"[{self._done()} runs, {self._left()}]", sep="\n", flush=True)

    def _total(self, index: int) -> int:
        return sum(work[index] for work in self._expected.values())

    def _done(self) -> str:
        return f"{self._runs}/{self._total(0)}"

    def _left(self) -> str:
        per_step = (time.monotonic() - self._began) / max(1, self._steps)
        return f"about {format_seconds(per_step * (self._total(1) - self._steps))} left"


def format_seconds(seconds: float) -> str:
    """Seconds as a reader would say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
