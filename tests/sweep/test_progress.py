"""What is told of a sweep's progress: in a terminal all the time, elsewhere once for each batch, and no more."""

import functools
import io

import pytest
import rich.console
from programs import CONDITIONS, Walk, batches, walk, words

from cetsim.sweep import progress
from cetsim.sweep.progress import Reporter, format_seconds
from cetsim.sweep.records import Records
from cetsim.sweep.runner import Runner

FEW = CONDITIONS[:6]


class Clock:
    """A clock in place of the reporter's."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch):
    """What is written to a terminal."""
    out, console = io.StringIO(), rich.console.Console
    monkeypatch.setattr(rich.console, "Console", functools.partial(console, force_terminal=True, file=out, width=150))
    return out


def test_elsewhere_the_lines_and_one_summary(clock, capsys):
    with Reporter(6, 600) as reporter:
        reporter.working_on("four", 4)
        for _ in range(4):
            clock.now += 2.0
            reporter.advance(100, "four, loss 0.5")
        assert capsys.readouterr() == ("", "")
        reporter.finished(["one: [0.5]", "two: 0.25", "three: 1", "four: 2"])
        summary = "[4/6 runs, 50 steps/s, 4 s left]"
        assert capsys.readouterr() == (f"one: [0.5]\ntwo: 0.25\nthree: 1\nfour: 2\n{summary}\n", "")
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_a_bar_that_tells_the_metric_too(clock, terminal, capsys):
    with Reporter(6, 600) as reporter:
        reporter.working_on("CET(2), seed 0 and 1 more", 2)
        clock.now += 2.0
        reporter.advance(100, "CET(2), seed 0 and 1 more, loss 0.0625")
        reporter.finished(["one: [b]0.5[/b]", "another: :warning: 0.25"])
        reporter.working_on("CET(2), seed 3 [/b] and 1 more", 2)
        clock.now += 3.0
        reporter.advance(100, "CET(2), seed 3 [/b] and 1 more, loss 0.125")
    shown = terminal.getvalue()
    assert "one: [b]0.5[/b]\n" in shown
    assert "another: :warning: 0.25\n" in shown
    assert "2/6 runs, 2 running, 2 left, 40 steps/s, 10 s left, CET(2), seed 3 [/b] and 1 more, loss 0.125" in shown
    assert capsys.readouterr() == ("", "")


def test_what_was_made_before_counts_and_does_not_tell_the_rate(clock, capsys):
    reporter = Reporter(1, 100)
    reporter.working_on("one", 1)
    reporter.working_on("one", 1, 80)
    clock.now += 5.0
    reporter.advance(10, "one")
    reporter.finished(["ended"])
    assert capsys.readouterr().out == "ended\n[1/1 runs, 2 steps/s, 5 s left]\n"


def test_the_rare_step_that_compiles_does_not_count(clock, capsys):
    reporter = Reporter(2, 200)
    reporter.working_on("one", 1)
    for seconds in (300.0, *[1.0] * 9):
        clock.now += seconds
        reporter.advance(10, "one")
    reporter.finished(["ended"])
    assert capsys.readouterr().out == "ended\n[1/2 runs, 10 steps/s, 10 s left]\n"


def test_what_failed_together_and_is_trained_again_counts_once(clock, capsys):
    reporter = Reporter(4, 400)
    reporter.working_on("two", 2)
    clock.now += 10.0
    reporter.advance(100, "two")  # and fails
    for name in ("one", "the other"):
        reporter.working_on(name, 1)
        clock.now += 10.0
        reporter.advance(100, name)
        reporter.finished([name])
    assert capsys.readouterr().out.endswith("[2/4 runs, 10 steps/s, 20 s left]\n")


def test_of_a_sweep(tmp_path, capsys, monkeypatch):
    walk(tmp_path, FEW[:3])  # done before
    capsys.readouterr()
    shown = []
    monkeypatch.setattr(Reporter, "_show", lambda self, what: shown.append((what, self._done())))
    Runner(Walk, Records(tmp_path)).run(batches(FEW))
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [words(condition) for condition in FEW[3:]]
    assert all(" (0 s)" in line for line in lines)
    assert summary.startswith("[3/3 runs, ")
    assert summary.endswith(" steps/s, 0 s left]")
    what, done = shown[3]
    assert what.startswith(f"{words(FEW[3])} and 2 more, walk ")
    assert done.startswith("0/3 runs, 3 running, 0 left, ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (720.0, "12 min"), (12600.0, "3.5 h")]
)
def test_seconds_as_a_reader_would_say_them(seconds, text):
    assert format_seconds(seconds) == text
