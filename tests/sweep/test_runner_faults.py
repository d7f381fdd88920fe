"""Sweeps on disks that are full, damaged, read-only or of another version, and with clocks that jump."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest
from programs import CONDITIONS, Walk, expected, key_of, measured, recorded, walk, words

from cetsim.sweep import provenance
from cetsim.sweep.interrupts import Interrupted
from cetsim.sweep.records import SCHEMA, Records

FEW = CONDITIONS[:6]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A folder of a sweep that was stopped after 12 steps of its second batch, with a checkpoint after each chunk."""

    def stop(what, slots, step):
        if what == "advance" and step == 12 and FEW[3] in slots:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "watch", stop)
        with pytest.raises(Interrupted):
            walk(tmp_path, FEW, 0.0)
    assert steps_of(tmp_path) == [8, 12]
    assert len(measured(tmp_path)) == 3
    return tmp_path


@pytest.fixture
def begun_at(monkeypatch):
    """The steps from which chunks are trained from here on."""
    steps, advance = [], Walk.advance
    note = lambda self, state, start, end: steps.append(start) or advance(self, state, start, end)  # noqa: E731
    monkeypatch.setattr(Walk, "advance", note)
    return steps


def saved(folder):
    return sorted(folder.glob("checkpoints/training/*/checkpoint-*"))


def steps_of(folder):
    return [int(path.stem.removeprefix("checkpoint-")) for path in saved(folder)]


def failing(number):
    """Does what a call does that fails with this error."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


# Checkpoints.


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_damaged_checkpoint_is_passed_over(stopped, begun_at):
    damage(saved(stopped)[-1])
    with pytest.warns(UserWarning, match="is damaged or of an older version: .* falls back to step 8$"):
        walk(stopped, FEW)
    assert begun_at == [8, 12, 16]
    assert measured(stopped) == expected(FEW)
    assert not (stopped / "checkpoints").exists()


def test_without_a_whole_checkpoint_a_batch_starts_over(stopped, begun_at):
    for path in saved(stopped):
        damage(path)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        walk(stopped, FEW)
    assert [str(one.message).partition("; ")[2] for one in warned] == [
        "the run falls back to step 8",
        "the run starts over",
    ]
    assert begun_at == [0, *Walk.ends[:-1]]
    assert measured(stopped) == expected(FEW)


def test_a_newer_checkpoint_is_left_alone(stopped):
    newest = saved(stopped)[-1]
    content = newest.read_bytes()
    newer = content[:-32].replace(b"checkpoint 0002", b"checkpoint 0003", 1)
    newest.write_bytes(newer + hashlib.sha256(newer).digest())
    before = [path.read_bytes() for path in saved(stopped)]
    with pytest.raises(ValueError, match=r"0012\.cet is of schema 3, and this version of cetsim knows up to 2: update"):
        walk(stopped, FEW)
    assert [path.read_bytes() for path in saved(stopped)] == before
    newest.write_bytes(content)
    walk(stopped, FEW)
    assert measured(stopped) == expected(FEW)


def test_a_checkpoint_of_other_versions_is_told_and_used(stopped, begun_at, monkeypatch):
    monkeypatch.setattr(provenance, "versions", lambda: {"jax": "9.9"})
    with pytest.warns(UserWarning, match="differ in the last bits"):
        walk(stopped, FEW)
    assert begun_at == [12, 16]


@pytest.mark.parametrize("left", ["whole", "a part", "emptied"])
def test_checkpoints_of_what_is_recorded_are_removed(stopped, tmp_path_factory, begun_at, left):
    """They are there if a process was killed between the two."""
    kept = tmp_path_factory.mktemp("kept") / "checkpoints"
    shutil.copytree(stopped / "checkpoints", kept)
    walk(stopped, FEW)
    (folder,) = (kept / "training").iterdir()
    for path in sorted(folder.iterdir())[{"whole": 2, "a part": 1, "emptied": 0}[left] :]:
        path.unlink()
    shutil.copytree(kept, stopped / "checkpoints")
    begun_at.clear()
    walk(stopped, FEW)
    assert begun_at == []
    assert not (stopped / "checkpoints").exists()


def test_checkpoints_of_other_sweeps_are_left_alone(stopped):
    before = saved(stopped)
    walk(stopped, CONDITIONS[8:])
    assert saved(stopped) == before
    walk(stopped)
    assert measured(stopped) == expected()
    assert not (stopped / "checkpoints").exists()


# Disks.


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_time_loses_nothing(tmp_path, monkeypatch, code):
    """Every time that something should be on the disk, that fails once; the sweep says so and is started again."""
    sync, failed = os.fsync, []
    for count in itertools.count(1):
        folder, calls = tmp_path / str(count), itertools.count(1)
        with monkeypatch.context() as patch:
            fail = failing(code)
            patch.setattr(os, "fsync", lambda *a, fail=fail, n=count, c=calls: (fail if next(c) == n else sync)(*a))
            try:
                walk(folder, FEW, 0.0)
            except OSError as error:
                failed.append(error)
        if next(calls) <= count:
            break
        before = recorded(folder)
        walk(folder, FEW)
        assert before.items() <= recorded(folder).items()  # what was recorded stays as it was
        assert measured(folder) == expected(FEW)
        assert not (folder / "checkpoints").exists()
    texts = [f"checkpoint-{step:010d}.cet cannot be written" for step in Walk.ends[:-1]] + [".json cannot be written"]
    assert all(any(text in str(error) for error in failed) for text in texts)
    assert all(os.strerror(code) in str(error) and error.errno == code for error in failed)
    assert len(failed) == 2 * (2 * 4 + 2 * 3)  # files and folders, of checkpoints and of records


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_disk_that_is_full_when_records_are_written(stopped, monkeypatch, begun_at, written):
    """After so many records of a batch of three."""
    replace, room, before = os.replace, [written], recorded(stopped)

    def limited(source, target):
        if target.suffix == ".json" and not room[0]:
            failing(errno.ENOSPC)()
        room[0] -= target.suffix == ".json"
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", limited)
        with pytest.raises(OSError, match=r"\.json cannot be written: No space left on device"):
            walk(stopped, FEW)
    assert before.items() <= recorded(stopped).items()
    assert len(recorded(stopped)) == 3 + written
    assert not list(stopped.glob("runs/.*"))
    assert steps_of(stopped) == [8, 12]
    begun_at.clear()
    walk(stopped, FEW)
    assert begun_at == [12, 16]
    assert measured(stopped) == expected(FEW)
    assert not (stopped / "checkpoints").exists()


def test_a_full_disk_when_a_signal_came_is_told_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Walk, "watch", lambda what, *_: what == "advance" and signal.raise_signal(signal.SIGINT))
        patch.setattr(os, "replace", failing(errno.ENOSPC))
        with pytest.raises(OSError, match=r"checkpoint-0000000004\.cet cannot be written: No space"):
            walk(tmp_path, FEW)
    walk(tmp_path, FEW)
    assert measured(tmp_path) == expected(FEW)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing(errno.EROFS))
        with pytest.raises(OSError, match=rf"{tmp_path}/runs/.*json cannot be written: Read-only file system"):
            walk(tmp_path, FEW)
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match=r"checkpoint-0000000004\.cet cannot be written: Not a directory"):
        walk(tmp_path, FEW, 0.0)
    assert measured(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_folder_that_is_read_only(stopped):
    stopped.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="cannot be written"):
            walk(stopped, FEW)
        assert len(measured(stopped)) == 3
    finally:
        stopped.chmod(0o700)
    walk(stopped, FEW)
    assert measured(stopped) == expected(FEW)


# Records, and clocks.


def test_a_newer_version_recording_meanwhile_stops_the_sweep_and_loses_nothing(stopped, monkeypatch):
    def record(what, slots, step):
        if step == 18:
            newer.write_text(json.dumps({"schema": SCHEMA + 1, "of": "another shape"}))

    before, newer = recorded(stopped), stopped / "runs" / "newer.json"
    monkeypatch.setattr(Walk, "watch", record)
    message = f"is of schema {SCHEMA + 1}, and this version of cetsim knows up to {SCHEMA}: update cetsim"
    with pytest.raises(ValueError, match=message):
        walk(stopped, FEW)
    with pytest.raises(ValueError, match=message):
        walk(stopped, FEW)
    assert recorded(stopped).items() == before.items() | {("newer.json", newer.read_bytes())}
    assert steps_of(stopped) == [8, 12]
    newer.unlink()
    monkeypatch.undo()
    walk(stopped, FEW)
    assert measured(stopped) == expected(FEW)


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_clock_that_jumps_does_not_matter(stopped, monkeypatch, begun_at, jump):
    jumps = itertools.count()
    real = time.time

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(real() + jump * next(jumps), tz)

    for path in saved(stopped):
        os.utime(path, (0, real() + 1e8))
    monkeypatch.setattr(time, "time", lambda: real() + jump * next(jumps))
    monkeypatch.setattr(provenance, "datetime", Jumping)
    walk(stopped, FEW, 0.0)
    assert begun_at == [12, 16]
    assert measured(stopped) == expected(FEW)
    records = Records(stopped).records.values()
    assert all(0 <= record["wall_s"] < 60 for record in records)
    assert [words(record["columns"]) for record in records] == [words(condition) for condition in FEW]
    assert len({record["finished"] for record in records}) > 1
    assert [key_of(condition) for condition in FEW] == list(Records(stopped).records)
