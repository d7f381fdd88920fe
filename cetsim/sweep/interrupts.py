"""SIGINT and SIGTERM as a flag, so that a run stops between two compiled chunks with everything written."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """What was asked of the process. **Fields:** `requested`: the first signal that came, or None."""

    requested: signal.Signals | None = None

    @property
    def status(self) -> int | None:
        """Exit status that tells of the signal, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
        return None if self.requested is None else exit_status(self.requested)


def exit_status(signum: int) -> int:
    """Exit status of a process that a signal has ended."""
    return 128 + signum


@contextlib.contextmanager
def graceful() -> Iterator[Interrupts]:
    """Within it SIGINT and SIGTERM set `requested`; a second one of the same kind ends the process at once.

    The caller looks at `requested` between chunks of work, finishes what it writes and exits with `status`. Signals
    that the process ignores, as under nohup, stay ignored. Processes forked meanwhile are ended by signals as ever.
    Outside the main thread, which alone may handle signals, it does nothing. Handlers are as before afterwards.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(signum, frame):
        interrupts.requested = interrupts.requested or signal.Signals(signum)
        signal.signal(signum, signal.SIG_DFL)

    # None is a handler that was not set from Python, and could not be set again.
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: old for signum, old in before.items() if old not in (signal.SIG_IGN, None)}

    def restore():
        for signum, old in before.items():
            signal.signal(signum, old)

    with _second_signals_end(), _undone_in_children(restore):
        try:
            for signum in before:
                signal.signal(signum, handle)
            yield interrupts
        finally:
            restore()


@contextlib.contextmanager
def _second_signals_end() -> Iterator[None]:
    """Ends the process at the second signal of a kind while a compiled program keeps handlers from being called.

    Python calls a handler only when the main thread is back from what it runs, which may be minutes; until then both
    signals would count as one. But it writes their numbers to a pipe as they come, and another thread reads that.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch():
        seen = set()
        while numbers := os.read(read, 1):
            if numbers[0] in seen:
                os._exit(exit_status(numbers[0]))
            seen |= {numbers[0]} & set(SIGNALS)

    watcher = threading.Thread(target=watch, name="second signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        with _undone_in_children(lambda: signal.set_wakeup_fd(before)):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        watcher.join()
        os.close(read)


_undo: list[Callable[[], object]] = []


@contextlib.contextmanager
def _undone_in_children(undo: Callable[[], object]) -> Iterator[None]:
    """Calls `undo` in each process forked within it, which would share the pipe and outlive being terminated."""
    _register()
    _undo.append(undo)
    try:
        yield
    finally:
        if undo in _undo:  # not in a child, which has called it
            _undo.remove(undo)


@functools.cache  # since it cannot be taken back, once
def _register() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_undo_all)


def _undo_all() -> None:
    while _undo:
        _undo.pop()()
