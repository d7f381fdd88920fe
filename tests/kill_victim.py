"""Processes to be killed: run as a script it forks one for each line that it reads, so that each starts at once."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

SIZE = 20_000  # numbers of the state, enough for a kill to meet a write halfway


class Victims:
    """Starts processes that do the `WORK` of this file, one at a time; a context manager."""

    def __enter__(self):
        # A backend has threads, which do not survive a fork: no platform has this name, so that starting one raises.
        env = os.environ | {"JAX_PLATFORMS": "none_such"}
        command = [sys.executable, __file__]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._victim, self._waited = None, False
        return self

    def __exit__(self, *_):
        if self._victim is not None:  # a test failed
            os.kill(self._victim, signal.SIGKILL)
        self._server.communicate(timeout=60)
        assert self._server.returncode == 0

    def start(self, work: str, *arguments) -> int:
        """Starts a process; returns its id."""
        print(json.dumps([work, *map(str, arguments)]), file=self._server.stdin, flush=True)
        self._victim = int(self.line())
        return self._victim

    def line(self) -> str:
        """What the process says next."""
        return self._server.stdout.readline().strip()

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return Path(f"/proc/{self._victim}/stat").read_text().split()[2] != "Z"

    def line_or_exit(self) -> str | None:
        """What the process says next; None once it has ended, after which there is no `status`."""
        if not self._waited:
            print("wait", file=self._server.stdin, flush=True)
            self._waited = True
        line = self.line()
        if line.startswith("exit "):
            self._victim, self._waited = None, False
            return None
        return line

    def status(self) -> int:
        """The exit status of the process once it has ended, below 0 for a signal. Until then its id is its own."""
        print("wait", file=self._server.stdin, flush=True)
        while not (line := self.line()).startswith("exit "):
            assert line, "the server of victims has ended"
        self._victim = None
        return int(line.split()[1])


def train(folder: str, steps: str, die: str = "") -> None:
    """A run of random steps that depend on all before, with a checkpoint after each; its end is in `result`."""
    import numpy as np

    from cetsim.sweep import checkpoint

    bits, folder = np.random.PCG64(0), Path(folder)
    state = {"x": np.zeros(SIZE), "sums": np.zeros(int(steps))}
    found = checkpoint.latest(folder, state)
    start, state, bits.state = found if found else (0, state, bits.state)
    print("ready", flush=True)
    _die_at(die)
    for step in range(start, int(steps)):
        x = 0.9 * state["x"] + np.random.Generator(bits).random(SIZE)
        sums = np.where(np.arange(int(steps)) == step, x.sum(), state["sums"])
        state = {"x": x, "sums": sums}
        checkpoint.save(folder, step + 1, state, bits.state)
    (folder / "result").write_bytes(state["x"].tobytes() + state["sums"].tobytes())


def adding(folder: str, name: str, count: str) -> None:
    """Records two runs after the other, and says when they are."""
    from cetsim.sweep.records import Records

    records, padding = Records(folder), "x" * 3000
    for index in range(int(count)):
        own = [f"{name}-{index}-{part}" for part in range(2)]
        records.add([{"schema": 2, "hash": key, "config": {}, "columns": {"x": padding}, "rows": []} for key in own])
        sys.stdout.write(f"{index}\n")  # one write, so that a kill leaves no half of a line
        sys.stdout.flush()


def holding(folder: str, shard: str) -> None:
    """Has a folder until it is killed."""
    from cetsim.sweep.hosts import claimed

    with claimed(folder, shard):
        print("held", flush=True)
        time.sleep(60)


def sweep(folder: str, pause: str = "0", die: str = "", runs: str = "16") -> None:
    """A sweep with a checkpoint after each chunk; with a pause, in the midst of each, it says where it is."""
    from programs import CONDITIONS, Walk, batches

    from cetsim.sweep import progress, provenance
    from cetsim.sweep.hosts import claimed
    from cetsim.sweep.records import Records
    from cetsim.sweep.runner import Runner

    def watch(what, slots, step):
        if float(pause) and what == "advance":
            sys.stdout.write(f"{step}\n")
            sys.stdout.flush()
            time.sleep(float(pause))

    Walk.watch, Walk.room = watch, SIZE
    provenance.describe = dict  # it would start a backend
    progress.Reporter.finished = lambda self, lines: None
    with claimed(folder):
        records = Records(folder)
        print("ready", flush=True)
        _die_at(die)
        Runner(Walk, records, 0.0).run(batches(CONDITIONS[: int(runs)]))


def _die_at(point: str) -> None:
    """Has the process kill itself at the n-th call of a function, `"os.fsync 3"`, or piece of a file, `"write 3"`.

    Records are written by halves for it.
    """
    if not point:
        return
    from cetsim.sweep import records

    where, count = point.split()
    left = int(count)

    def counted():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "write":

        def in_pieces(path, content, real=records.write_atomic):
            content = content if isinstance(content, list) else [content[:100].encode(), content[100:].encode()]
            real(path, (piece for piece in content if counted() is None))

        records.write_atomic = in_pieces
        return
    name = where.removeprefix("os.")
    real = getattr(os, name)

    def dying(*arguments, **options):
        counted()
        return real(*arguments, **options)

    setattr(os, name, dying)


def polite(folder: str) -> None:
    """Saves until it is asked to stop, then says with which step it did."""
    from cetsim.sweep import checkpoint, interrupts

    with interrupts.graceful() as asked:
        print("ready", flush=True)
        step = 0
        while asked.requested is None:
            step += 1
            checkpoint.save(Path(folder), step, {"step": step})
        print(f"resume from {step}", flush=True)
        asked.stop_if_requested()


def deaf(_: str) -> None:
    """Does not stop when it is asked to."""
    from cetsim.sweep import interrupts

    with interrupts.graceful() as asked:
        print("ready", flush=True)
        while asked.requested is None:
            time.sleep(0.001)
        time.sleep(60)


def compiled(_: str) -> None:
    """Is in one call outside Python, as a compiled program is, for longer than anyone waits."""
    import hashlib

    from cetsim.sweep import interrupts

    with interrupts.graceful():
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def parent(_: str) -> None:
    """Has a forked process within `graceful`, which a signal must end, and no signal of which may count here."""
    from cetsim.sweep import interrupts

    with interrupts.graceful() as asked:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(1)
        time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), asked.requested, flush=True)


WORK = {work.__name__: work for work in (train, sweep, adding, holding, polite, deaf, compiled, parent)}


def _serve() -> None:
    import programs  # noqa: F401
    import rich.progress  # noqa: F401

    for line in sys.stdin:
        if line == "wait\n":
            print("exit", os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]), flush=True)
            continue
        work, *arguments = json.loads(line)
        read, write = os.pipe()
        victim = os.fork()
        if victim == 0:
            os.read(read, 1)  # until its id has been told
            signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes may ignore it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            warnings.simplefilter("error")  # a checkpoint that is passed over was not written in one step
            status = 1
            try:
                WORK[work](*arguments)
                status = 0
            except SystemExit as end:
                status = end.code
            except BaseException:
                traceback.print_exc()
                print("failed", flush=True)  # for who waits for a line
            sys.stdout.flush()
            os._exit(status)
        print(victim, flush=True)
        os.write(write, b"-")
        os.close(read)
        os.close(write)


if __name__ == "__main__":
    _serve()
