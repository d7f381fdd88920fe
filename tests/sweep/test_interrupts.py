"""Processes that are interrupted: asked once they finish what they write, asked twice they end at once, as when killed.

What was killed, in the midst of a write too, goes on from its last checkpoint to the same end.
"""

import os
import random
import signal
import threading
import time

import pytest
from kill_victim import Victims, train

from cetsim.sweep import checkpoint, interrupts
from cetsim.sweep.interrupts import Interrupted, graceful

BOTH = pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(scope="module")
def victims():
    with Victims() as started:
        yield started


@BOTH
def test_a_signal_ends_a_process_after_its_write(victims, tmp_path, signum, status):
    victim = victims.start("polite", tmp_path)
    assert victims.line() == "ready"
    time.sleep(0.05)
    os.kill(victim, signum)
    step = int(victims.line().removeprefix("resume from "))
    assert victims.status() == status
    assert checkpoint.latest(tmp_path, {"step": 0})[:2] == (step, {"step": step})
    assert not list(tmp_path.glob(".*"))


@BOTH
@pytest.mark.parametrize("work", ["deaf", "compiled"])
def test_a_second_signal_ends_it_at_once_unless_it_is_the_echo_of_the_first(victims, work, signum, status):
    """As `timeout` sends it, to the process and to its group: in Python, and in one call outside of it."""
    victim = victims.start(work, "")
    assert victims.line() == "ready"
    time.sleep(0.1)
    for _ in range(3):
        os.kill(victim, signum)
        time.sleep(0.05)  # signals of one kind that wait together are one
    time.sleep(0.3)
    other = signal.SIGTERM if signum == signal.SIGINT else signal.SIGINT
    os.kill(victim, other)
    time.sleep(0.1)
    assert victims.is_alive()
    time.sleep(interrupts.TOGETHER)
    os.kill(victim, signum)
    assert victims.status() == status


@BOTH
def test_what_is_waited_for_is_said_at_once(signum, status, capfd):
    with graceful() as asked:
        asked.work = "steps 4 to 8 of CET(2)"
        signal.raise_signal(signum)
        deadline = time.monotonic() + 10
        while not (said := capfd.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    name = signal.Signals(signum).name
    assert said == f"\n{name}: finishing steps 4 to 8 of CET(2), then writing it down; once more to end at once\n"


def test_a_forked_process_can_be_terminated(victims):
    victims.start("parent", "")
    assert victims.line() == f"{-signal.SIGTERM} None"
    assert victims.status() == 0


def handlers():
    return [signal.getsignal(signum) for signum in interrupts.SIGNALS]


def test_a_signal_is_a_flag_and_handlers_come_back():
    before = handlers()
    with graceful() as asked:
        assert asked.requested is None
        asked.stop_if_requested()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first counts
        assert asked.requested == signal.SIGTERM
        with pytest.raises(Interrupted) as stopped:
            asked.stop_if_requested()
        assert stopped.value.code == 143
    assert handlers() == before
    with pytest.raises(RuntimeError), graceful():
        raise RuntimeError
    assert handlers() == before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with graceful() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked.requested is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone():
    before, seen = handlers(), []

    def work():
        with graceful() as asked:
            seen.append((asked.requested, handlers() == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, True)]


def uninterrupted(folder, steps):
    train(str(folder), str(steps))
    return (folder / "result").read_bytes()


def test_a_run_survives_being_killed(victims, tmp_path):
    """At random moments, and started again each time; a run that is done is followed by another."""
    kills, steps = 20, 120
    expected = uninterrupted(tmp_path / "uninterrupted", steps)
    moments, killed, during_writes, run = random.Random(0), 0, 0, 0
    while killed < kills or not during_writes:
        folder, status, run = tmp_path / str(run), None, run + 1
        while status != 0:
            victim = victims.start("train", folder, steps)
            if killed < kills or not during_writes:
                assert victims.line() == "ready"
                time.sleep(moments.uniform(0.0, 0.05))
                os.kill(victim, signal.SIGKILL)
            status = victims.status()
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            during_writes += any(folder.glob(".checkpoint-*"))
        assert (folder / "result").read_bytes() == expected
        assert not any(folder.glob(".*"))
    print(f"{killed} killed in {run} runs, {during_writes} of them during a write")


def test_a_run_survives_being_killed_anywhere_in_a_write(victims, tmp_path):
    expected = uninterrupted(tmp_path / "uninterrupted", 6)
    points = [
        f"{where} {n}" for where in ("write", "os.fsync", "os.replace", "os.unlink", "os.open") for n in (1, 2, 3)
    ]
    points += [f"write {n}" for n in (4, 5, 6, 7, 8, 16, 17)]
    for point in points:
        folder = tmp_path / point
        victims.start("train", folder, 6, point)
        assert victims.status() == -signal.SIGKILL
        victims.start("train", folder, 6)
        assert victims.status() == 0
        assert (folder / "result").read_bytes() == expected
        assert len(list(folder.glob("checkpoint-*"))) == 2
        assert not list(folder.glob(".*"))
