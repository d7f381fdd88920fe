"""SIGINT and SIGTERM as a flag, so that a run stops between two compiled chunks with everything written."""

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 1.0  # seconds within which a second signal is the first one's echo: `timeout` sends it to the group as well
_undo: list[
    Callable[[], object]
] = []  # in each forked process, which would share the pipe and outlive being terminated


class Interrupts:
    """What was asked of the process.

    **Fields:** `requested`: the first signal that came, or None. `work`: what is finished before it ends, in words.
    """

    requested: signal.Signals | None = None
    work: str = "what it is doing"

    @property
    def status(self) -> int | None:
        """Exit status that tells of the signal, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
        return None if self.requested is None else 128 + self.requested


@contextlib.contextmanager
def graceful() -> Iterator[Interrupts]:
    """Within it SIGINT and SIGTERM set `requested`; a second one, a second later or more, ends the process at once.

    The caller looks at `requested` between chunks of work, finishes what it writes and exits with `status`. What the
    process waits for is said at once. Signals that the process ignores, as under nohup, stay ignored. Processes forked
    meanwhile are ended by signals as ever. Outside the main thread, which alone may handle signals, it does nothing.
    Handlers are as before afterwards.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(signum, frame):
        interrupts.requested = interrupts.requested or signal.Signals(signum)

    # None is a handler that was not set from Python, and could not be set again.
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: old for signum, old in before.items() if old not in (signal.SIG_IGN, None)}
    # A handler is called only when the main thread is back from what it runs, which may be minutes; until then all
    # signals would count as one. But their numbers are written to a pipe as they come, which another thread reads.
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=_watch, args=(read, interrupts, before), name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def restore():
        for signum, old in before.items():
            signal.signal(signum, old)
        signal.set_wakeup_fd(wakeup)

    _undo_in_forked()
    _undo.append(restore)
    try:
        for signum in before:
            signal.signal(signum, handle)
        yield interrupts
    finally:
        if restore in _undo:  # not in a forked process, which has called it
            _undo.remove(restore)
            restore()
        os.close(write)
        watcher.join()
        os.close(read)


def _watch(read: int, interrupts: Interrupts, signals) -> None:
    """Says what is waited for at the first signal, and ends the process at a second one."""
    came: dict[int, float] = {}  # when the first of each kind did
    while numbers := os.read(read, 1):
        number = numbers[0]
        if number in came and time.monotonic() - came[number] >= TOGETHER:
            os._exit(128 + number)
        if number in signals and not came:
            name = signal.Signals(number).name
            text = f"\n{name}: finishing {interrupts.work}, then writing it down; once more to end at once\n"
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, text.encode())
        if number in signals:
            came.setdefault(number, time.monotonic())


@functools.cache  # since it cannot be taken back, once
def _undo_in_forked() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: [_undo.pop()() for _ in list(_undo)])
