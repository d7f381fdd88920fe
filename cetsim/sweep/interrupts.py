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
_restore: list[Callable[[], None]] = []  # in each forked process, which would share the pipe and outlive its end


class Interrupted(SystemExit):
    """A sweep stopped because SIGINT or SIGTERM came; all is written. **Attributes:** `code`: 130 or 143."""


class Interrupts:
    """What was asked of the process."""

    requested: signal.Signals | None = None  # the first that came
    work: str = "what it is doing"  # which is finished before it ends

    def stop_if_requested(self) -> None:
        """Raises Interrupted if a signal came, with the exit status that shells have for it."""
        if self.requested is not None:
            raise Interrupted(128 + self.requested)


@contextlib.contextmanager
def graceful() -> Iterator[Interrupts]:
    """Within it SIGINT and SIGTERM set `requested`; a second one, a second later or more, ends the process at once.

    The caller looks at it between chunks of work, with all written. What the process waits for is said at once. Signals
    that it ignores, as under nohup, stay ignored. Processes forked meanwhile are ended by signals as ever. Outside the
    main thread, which alone may handle signals, it does nothing. Handlers are as before afterwards.
    """
    asked = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(signum, frame):
        asked.requested = asked.requested or signal.Signals(signum)

    # None is a handler that was not set from Python, and could not be set again.
    before = {s: old for s in SIGNALS if (old := signal.getsignal(s)) not in (signal.SIG_IGN, None)}
    # A handler is called only when the main thread is back from what it runs, which may be minutes; until then all
    # signals would count as one. But their numbers are written to a pipe as they come, which another thread reads.
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=_watch, args=(read, asked, before), name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def restore():
        for signum, old in before.items():
            signal.signal(signum, old)
        signal.set_wakeup_fd(wakeup)

    _restore_in_forked()
    _restore.append(restore)
    try:
        for signum in before:
            signal.signal(signum, handle)
        yield asked
    finally:
        restore()
        _restore.remove(restore)
        os.close(write)
        watcher.join()
        os.close(read)


def _watch(read: int, asked: Interrupts, signals) -> None:
    """Says what is waited for at the first signal, and ends the process at a second one."""
    came: dict[int, float] = {}  # when the first of each kind did
    while number := os.read(read, 1):
        if (signum := number[0]) not in signals:
            continue
        if not came:
            what = f"finishing {asked.work}, then writing it down; once more to end at once"
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, f"\n{signal.Signals(signum).name}: {what}\n".encode())
        if time.monotonic() - came.setdefault(signum, time.monotonic()) >= TOGETHER:
            os._exit(128 + signum)


@functools.cache  # since it cannot be taken back, once
def _restore_in_forked() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: [restore() for restore in reversed(_restore)])
