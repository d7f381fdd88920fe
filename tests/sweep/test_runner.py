"""The loop of a sweep: its numbers are those of a literal loop, whatever failed beside them or came in between."""

import signal

import numpy as np
import pytest
from programs import CONDITIONS, Walk, batches, expected, key_of, literal, measured, recorded, run_of, walk, words

from cetsim.sweep import runner
from cetsim.sweep.grid import digest, grid
from cetsim.sweep.interrupts import Interrupted
from cetsim.sweep.records import Records
from cetsim.sweep.runner import Infeasible, Runner

FEW = CONDITIONS[:6]  # of one kind


class Watch:
    """What was asked of the program; `do` is called with it."""

    def __init__(self):
        self.seen = []
        self.do = lambda what, slots, step: None

    def __call__(self, what, slots, step):
        self.seen.append((what, [words(slot) for slot in slots], step))
        self.do(what, slots, step)

    def of(self, what):
        return [slots for kind, slots, _ in self.seen if kind == what]

    def steps(self):
        return [step for what, _, step in self.seen if what == "advance"]


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(Walk, "watch", watch)
    return watch


class Clock:
    """A clock in place of the runner's."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    return clock


def stop_at(step, times=1):
    """Sends SIGTERM in the midst of a chunk."""
    left = [times]

    def do(what, slots, at):
        if what == "advance" and at == step and left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGTERM)

    return do


def fail_for(condition, where, kind=RuntimeError):
    """Raises where the condition is among the slots."""

    def do(what, slots, step):
        if what == where and condition in slots and step in (0, 12):
            raise kind("what went wrong")

    return do


def records_by_words(folder):
    return {words(record["columns"]): record for record in Records(folder).records.values()}


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoints/*/*"))


# What is recorded.


@pytest.mark.parametrize(("size", "every"), [(1, 60.0), (3, 0.0), (100, 60.0)])
def test_rows_are_those_of_a_literal_loop(tmp_path, size, every):
    walk(tmp_path, every=every, size=size)
    assert measured(tmp_path) == expected()
    assert not (tmp_path / "checkpoints").exists()


def test_a_record_has_all_that_names_and_explains_a_run(tmp_path):
    walk(tmp_path, FEW, size=4, multiple=4)
    for (index, condition), record in zip(enumerate(FEW), Records(tmp_path).records.values(), strict=True):
        assert record["hash"] == digest(record["config"])
        assert (record["config"], record["columns"]) == ({"walk": 1} | condition, condition)
        assert {"schema", "wall_s", "finished", "versions", "git", "device"} < record.keys()
        assert "error" not in record
        assert record["rows"][-1] == {"metric": "wall_s", "step": 18, "value": record["wall_s"]}
        keys = [key_of(condition) for condition in FEW[index - index % 3 :][:3]]
        assert record["batch"] == {"width": 4, "of": keys, "slot": index % 3}


def test_batches_depend_on_the_grid_alone(tmp_path, watch):
    walk(tmp_path / "whole")
    whole, made = watch.of("begin"), watch.of("made")
    assert len(whole) == 6
    assert len(made) == 2  # a program for each kind
    watch.seen.clear()
    records = Records(tmp_path / "parts")
    for first in (1, 2, 0):
        Runner(Walk, records).run(batches()[first::3])
    assert sorted(watch.of("begin")) == sorted(whole)
    of = lambda folder: {name: r["batch"] for name, r in records_by_words(folder).items()}  # noqa: E731
    assert of(tmp_path / "parts") == of(tmp_path / "whole")


def test_what_is_left_of_a_batch_is_trained_in_its_slots(tmp_path, watch):
    one, two, three = FEW[:3]
    runner = Runner(Walk, Records(tmp_path))
    runner.run([([run_of(two)], 1)])  # recorded before, in another batch
    runner.run([([run_of(one), run_of(two), run_of(three)], 4)])
    assert watch.of("begin") == [[words(two)], [words(condition) for condition in (one, two, three, one)]]
    assert records_by_words(tmp_path)[words(three)]["batch"]["slot"] == 2
    assert measured(tmp_path) == expected(FEW[:3])


def test_what_is_recorded_is_not_trained_again(tmp_path, watch):
    walk(tmp_path)
    before = recorded(tmp_path)
    watch.seen.clear()
    walk(tmp_path)
    assert watch.seen == []
    assert recorded(tmp_path) == before


def test_slots_that_overflow_leave_the_others_alone(tmp_path):
    conditions = grid(kind=("a",), scale=(1.0, 1.7e308), seed=range(2))
    walk(tmp_path, conditions, size=4)
    assert measured(tmp_path) == expected(conditions)
    lost = [name for name, rows in measured(tmp_path).items() if any(row["value"] is None for row in rows)]
    assert lost == ["a 1.7e+308 0"]


# Interrupted and taken up again.


@pytest.mark.parametrize("step", Walk.ends)
@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_batch_goes_on_where_it_was_stopped(tmp_path, watch, step, every):
    watch.do = stop_at(step)
    with pytest.raises(Interrupted) as stopped:
        walk(tmp_path, FEW, every)
    assert stopped.value.code == 143
    assert watch.steps()[-1] == step
    assert Records(tmp_path).records.keys() == ({key_of(condition) for condition in FEW[:3]} if step == 18 else set())
    watch.seen.clear()
    walk(tmp_path, FEW, every)
    left = [end for end in Walk.ends if end > step]
    assert watch.steps() == [*left, *Walk.ends]
    assert measured(tmp_path) == expected(FEW)
    assert not (tmp_path / "checkpoints").exists()


def test_stopped_after_every_chunk(tmp_path, watch):
    watch.do = lambda what, *_: signal.raise_signal(signal.SIGINT) if what == "advance" else None
    for attempt in range(10):
        with pytest.raises(Interrupted) as stopped:
            walk(tmp_path, FEW)
        assert stopped.value.code == 130
        assert len(watch.steps()) == attempt + 1
    walk(tmp_path, FEW)
    assert measured(tmp_path) == expected(FEW)


def test_seconds_count_both_parts(tmp_path, watch, clock):
    took = {"begin": 1.0, "advance": 5.0}

    def do(what, slots, step):
        clock.now += took.get(what, 0.0)
        stop(what, slots, step)

    watch.do, stop = do, stop_at(8)
    with pytest.raises(Interrupted):
        walk(tmp_path, FEW[:2])
    clock.now += 1e6  # of which nothing was training
    walk(tmp_path, FEW[:2])
    assert [record["wall_s"] for record in Records(tmp_path).records.values()] == [(1 + 10 + 1 + 15) / 2] * 2


def test_a_checkpoint_of_other_slots_is_not_gone_on_from(tmp_path, watch):
    watch.do = stop_at(8)
    with pytest.raises(Interrupted):
        walk(tmp_path, FEW, size=3)
    watch.seen.clear()
    walk(tmp_path, FEW, size=2)
    assert watch.steps() == [*Walk.ends] * 3
    assert measured(tmp_path) == expected(FEW)


# Conditions that fail.


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyError])
@pytest.mark.parametrize("where", ["begin", "advance"])
@pytest.mark.parametrize("every", [0.0, 60.0])
def test_a_condition_that_fails_is_recorded_and_the_others_finish(tmp_path, watch, where, kind, every, capsys):
    watch.do = fail_for(FEW[1], where, kind)
    walk(tmp_path, FEW, every)
    error = f"{kind.__name__}: {kind('what went wrong')}"
    record = records_by_words(tmp_path)[words(FEW[1])]
    assert record["error"] == error
    assert [(row["metric"], row["value"]) for row in record["rows"]] == [("wall_s", 0.0), ("failed", 1.0)]
    assert record["batch"]["slot"] == 1
    assert measured(tmp_path).pop(words(FEW[1])) == [{"metric": "failed", "step": 0, "value": 1.0}]
    others = [condition for condition in FEW if condition != FEW[1]]
    assert {name: rows for name, rows in measured(tmp_path).items() if name != words(FEW[1])} == expected(others)
    assert not (tmp_path / "checkpoints").exists()
    assert f"{words(FEW[1])}: failed: {error}\n" in capsys.readouterr().out


def test_what_failed_is_tried_again(tmp_path, watch):
    watch.do = fail_for(FEW[1], "advance")
    walk(tmp_path, FEW)
    watch.seen.clear()
    walk(tmp_path, FEW)
    assert watch.of("begin") == [[words(FEW[1])] * 3]
    assert "error" in records_by_words(tmp_path)[words(FEW[1])]
    watch.do = lambda *_: None
    walk(tmp_path, FEW)
    assert measured(tmp_path) == expected(FEW)
    assert "error" not in records_by_words(tmp_path)[words(FEW[1])]


def test_a_program_that_cannot_be_made_fails_its_conditions(tmp_path, watch):
    bad = [condition for condition in CONDITIONS if condition["kind"] == "a"]
    watch.do = lambda what, slots, step: 1 / (what != "made" or slots[0]["kind"] != "a")
    walk(tmp_path)
    errors = {name: record["error"] for name, record in records_by_words(tmp_path).items() if "error" in record}
    assert errors == {words(condition): "ZeroDivisionError: division by zero" for condition in bad}
    good = [condition for condition in CONDITIONS if condition not in bad]
    assert {name: rows for name, rows in measured(tmp_path).items() if name not in errors} == expected(good)
    watch.do = lambda *_: None
    walk(tmp_path)
    assert measured(tmp_path) == expected()


@pytest.mark.parametrize("where", ["save", "restore"])
def test_a_state_that_cannot_be_kept_is_the_fault_of_training(tmp_path, monkeypatch, watch, where):
    def fail(*_):
        raise ValueError("no such world")

    monkeypatch.setattr(Walk, where, fail)
    if where == "restore":
        watch.do = stop_at(8)
        with pytest.raises(Interrupted):
            walk(tmp_path, FEW[:1], 0.0)
    walk(tmp_path, FEW[:1], 0.0)
    assert records_by_words(tmp_path)[words(FEW[0])]["error"] == "ValueError: no such world"
    assert not (tmp_path / "checkpoints").exists()


def test_an_interruption_while_conditions_are_trained_one_by_one(tmp_path, watch):
    fail, stop = fail_for(FEW[1], "advance"), stop_at(16)

    def do(*seen):
        fail(*seen)
        stop(*seen)  # in the first that is trained alone: together they do not come so far

    watch.do = do
    with pytest.raises(Interrupted):
        walk(tmp_path, FEW[:3])
    assert measured(tmp_path) == {}
    assert len(checkpoints(tmp_path)) == 1
    watch.seen.clear()
    walk(tmp_path, FEW[:3])
    assert watch.steps() == [4, 8, 12, 18, 4, 8, 12, *Walk.ends]  # together, the rest of the first, the second, third
    assert {name: rows for name, rows in measured(tmp_path).items() if name != words(FEW[1])} == {
        words(condition): literal(condition) for condition in (FEW[0], FEW[2])
    }
    assert not (tmp_path / "checkpoints").exists()


def test_a_sweep_that_cannot_be_stops_and_says_so(tmp_path, watch):
    watch.do = fail_for(FEW[1], "advance", Infeasible)
    with pytest.raises(Infeasible, match="what went wrong"):
        walk(tmp_path, FEW)
    assert Records(tmp_path).records == {}


def test_a_keyboard_interrupt_is_no_failure(tmp_path, watch):
    watch.do = fail_for(FEW[1], "advance", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path, FEW)
    assert Records(tmp_path).records == {}


# When checkpoints are made.


CHUNK = 8.0  # seconds


def saves(folder, monkeypatch, watch, clock, every, costs, chunks=600):
    """When checkpoints are made, of which each takes so long, and when they are done."""
    times = []

    def save(folder, step, tree, notes):
        begun = clock.now
        clock.now += costs[len(times) % len(costs)]
        times.append((begun, clock.now))

    monkeypatch.setattr(runner.checkpoint, "save", save)
    monkeypatch.setattr(Walk, "ends", range(1, chunks + 1))
    watch.do = lambda what, *_: setattr(clock, "now", clock.now + CHUNK * (what == "advance"))
    walk(folder, FEW[:1], every)
    return np.asarray(times)


@pytest.mark.parametrize("costs", [(0.0,), (0.5,), (4.0,), (4.0, 0.5, 20.0)])
@pytest.mark.parametrize("every", [16.0, 60.0])
def test_checkpoints_are_as_rare_as_keeps_their_cost_small(tmp_path, monkeypatch, watch, clock, every, costs):
    began = clock.now
    times = saves(tmp_path, monkeypatch, watch, clock, every, costs)
    trained = times[1:, 0] - times[:-1, 1]
    cost = times[:-1, 1] - times[:-1, 0]
    assert every <= times[0, 0] - began < every + CHUNK
    least = np.maximum(every, 50 * cost)
    assert (trained >= least - 1e-6).all()
    assert (trained < least + CHUNK).all()  # at the end of a chunk
    assert (cost / (cost + trained) < 1 / 50).all()


def test_without_a_pause_every_chunk_ends_in_a_checkpoint(tmp_path, monkeypatch, watch, clock):
    assert len(saves(tmp_path, monkeypatch, watch, clock, 0.0, (4.0,), 100)) == 99  # the last is recorded


def test_checkpoints_are_made_between_chunks_at_that_pace(tmp_path, watch, clock, monkeypatch):
    made = []
    save = runner.checkpoint.save
    note = lambda folder, step, *rest: made.append(step) or save(folder, step, *rest)  # noqa: E731
    monkeypatch.setattr(runner.checkpoint, "save", note)
    watch.do = lambda what, *_: setattr(clock, "now", clock.now + 40.0 * (what == "advance"))
    walk(tmp_path, FEW[:3])
    assert made == [8, 16]
    walk(tmp_path, FEW[3:], every=0.0)
    assert made == [8, 16, 4, 8, 12, 16]  # none at the end


def test_a_pause_below_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`checkpoint_every` must be at least 0"):
        Runner(Walk, Records(tmp_path), -1.0)
