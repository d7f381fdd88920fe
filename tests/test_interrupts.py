"""SIGINT and SIGTERM: what is being written gets finished; asked twice, a process ends at once."""

import os
import signal
import threading
import time

import pytest
from kill_victim import Victims

from cetsim.sweep import interrupts
from cetsim.sweep.checkpoint import Checkpoints
from cetsim.sweep.interrupts import graceful

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
    assert Checkpoints(tmp_path, {}).latest({"step": 0}) == (step, {"step": step})
    assert not list(tmp_path.glob(".*"))


@BOTH
def test_a_second_signal_ends_it_at_once(victims, signum, status):
    victim = victims.start("deaf", "")
    assert victims.line() == "ready"
    os.kill(victim, signum)
    assert victims.line() == "asked"
    os.kill(victim, signum)
    assert victims.status() == -signum


@BOTH
def test_a_second_signal_ends_a_compiled_program_too(victims, signum, status):
    victim = victims.start("compiled", "")
    assert victims.line() == "ready"
    time.sleep(0.1)
    os.kill(victim, signum)
    time.sleep(0.1)  # signals of one kind that wait together are one
    os.kill(victim, signum)
    assert victims.status() == status


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
        assert asked.status is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first counts
        assert (asked.requested, asked.status) == (signal.SIGTERM, 143)
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
