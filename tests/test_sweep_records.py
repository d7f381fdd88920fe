"""Records that only grow: many processes adding, killed writers, full disks, newer versions, locks."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cetsim.sweep import records
from cetsim.sweep.records import SCHEMA, Records, write_atomic

# Processes of their own read the file itself: importing the package would take them seconds.
PREAMBLE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("records", {records.__file__!r})
records = importlib.util.module_from_spec(spec)
spec.loader.exec_module(records)
folder, name = sys.argv[1], sys.argv[2]
def record(key, size=10):
    return {{"schema": 1, "hash": key, "config": {{"key": key}}, "final": {{"x" * size: 0.5}}}}
"""
ADDING = """
own = records.Records(folder)
for index in range(int(sys.argv[3])):
    own.append([record(f"{name}-{index}-{part}", 3000) for part in range(2)])
    print(index, flush=True)
"""
SLOWLY = """
import os, time
write = os.write
def in_pieces(handle, data):
    time.sleep(0.001)
    return write(handle, data[:500])
os.write = in_pieces  # so that most of the time is spent in the midst of lines
"""
HOLDING = """
with records.Records(folder).exclusive(shared=name == "shard"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(code: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-S", "-c", PREAMBLE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def record(key: str, value: float | None = 0.5) -> dict:
    return {"schema": SCHEMA, "hash": key, "config": {"key": key}, "final": {"accuracy": value}}


def fail(number: int):
    """Does what a call does that fails with this error."""

    def failing(*_):
        raise OSError(number, os.strerror(number))

    return failing


def keys(folder: Path) -> list[str]:
    return list(Records(folder).records)


def test_what_is_added_is_read_and_the_last_of_a_hash_counts(tmp_path):
    folder = tmp_path / "made" / "where needed"
    own = Records(folder)
    assert own.records == {}
    own.append([record("a"), record("b")])
    before = own.path.read_bytes()
    own.append([record("a", None)])
    assert own.path.read_bytes().startswith(before)  # nothing is rewritten
    assert Records(folder).records == own.records == {"a": record("a", None), "b": record("b")}


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"schema": 1, "hash": "x"}, ValueError, "must have schema, hash, config, got one without config"),
        (record("x", float("nan")), ValueError, "run x must be plain JSON, with None where"),
        (record("x") | {"config": {1j}}, TypeError, "run x must be plain JSON"),
    ],
)
def test_what_is_not_a_record_is_refused_and_none_of_its_batch_is_written(tmp_path, wrong, kind, message):
    own = Records(tmp_path)
    own.append([record("a")])
    with pytest.raises(kind, match=message):
        own.append([record("b"), wrong])
    assert keys(tmp_path) == ["a"]


def test_refresh_reads_only_what_was_added(tmp_path, monkeypatch):
    here, there = Records(tmp_path), Records(tmp_path)
    read = []
    loads = json.loads
    there.append([record("a"), record("b")])
    here.refresh()
    monkeypatch.setattr(records.json, "loads", lambda text: read.append(text) or loads(text))
    there.append([record("c")])
    read.clear()
    here.refresh()
    assert list(here.records) == ["a", "b", "c"]
    assert len(read) == 1
    here.refresh()
    assert len(read) == 1


@pytest.mark.parametrize("way", ["shrunk", "replaced", "rewritten in place"])
def test_refresh_copes_with_another_file(tmp_path, way):
    own = Records(tmp_path)
    own.append([record("a"), record("b")])
    lines = own.path.read_bytes().splitlines(keepends=True)
    other = json.dumps(record("other", 0.25)).encode() + b"\n"
    if way == "shrunk":
        own.path.write_bytes(lines[0])
    elif way == "replaced":
        write_atomic(own.path, b"".join([other, *lines]))
    else:
        own.path.write_bytes(other * 2 + b"".join(lines))
    own.refresh()
    assert own.records == Records(tmp_path).records
    own.append([record("c")])
    assert own.records == Records(tmp_path).records
    assert keys(tmp_path) == {"shrunk": ["a", "c"]}.get(way, ["other", "a", "b", "c"])


def test_a_file_that_is_gone_is_written_again(tmp_path):
    own = Records(tmp_path)
    own.append([record("a")])
    own.path.unlink()
    own.refresh()
    own.append([record("b")])
    assert keys(tmp_path) == list(own.records) == ["a", "b"]


# Damage.


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_cut_short_is_set_apart(tmp_path, capsys, cut):
    own = Records(tmp_path)
    own.append([record("a"), record("b")])
    whole = own.path.read_bytes()
    own.path.write_bytes(whole[:-cut])
    left = ["a", "b"] if cut == 1 else ["a"]  # without its newline a line is whole
    again = Records(tmp_path)
    again.refresh()
    assert list(again.records) == left
    assert capsys.readouterr().err.count("cut short") == (cut > 1)  # once
    again.append([record("c")])
    assert keys(tmp_path) == [*left, "c"]
    if cut > 1:
        assert (tmp_path / "runs.jsonl.damaged").read_bytes() == whole.splitlines()[1][: 1 - cut] + b"\n"
        assert "is now in runs.jsonl.damaged" in capsys.readouterr().err


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_damaged_last_line_is_set_apart(tmp_path, capsys, end):
    own = Records(tmp_path)
    own.append([record("a")])
    with own.path.open("ab") as file:
        file.write(b'\0\0\xff{"hash"' + end)
    assert keys(tmp_path) == ["a"]
    own.append([record("b")])
    assert keys(tmp_path) == ["a", "b"]
    assert (tmp_path / "runs.jsonl.damaged").read_bytes() == b'\0\0\xff{"hash"\n'


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": 1}', '{"hash": 3}', "\0\0"])
def test_a_broken_line_in_the_midst_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(f"{json.dumps(record('a'))}\n{line}\n{json.dumps(record('b'))}\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"line 2 of .*runs\.jsonl is not a record of a run; mend or remove"):
        Records(tmp_path)
    assert path.read_bytes() == before


def test_lines_are_counted_from_the_start_of_the_file(tmp_path):
    own = Records(tmp_path)
    own.append([record("a"), record("b")])
    with own.path.open("a") as file:
        file.write("\n[]\n")
    with pytest.raises(ValueError, match=r"line 4 of .* is not a record"):
        own.refresh()


def test_a_whole_line_that_is_no_record_is_not_taken_for_damage(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"of": "another program"}\n')
    with pytest.raises(ValueError, match=r"line 1 of .* is not a record"):
        Records(tmp_path)


def test_records_of_a_newer_version_are_left_alone(tmp_path):
    own = Records(tmp_path)
    own.append([record("a")])
    with own.path.open("a") as file:
        file.write(json.dumps({"schema": SCHEMA + 1, "name": "of another shape"}) + "\n")
    before = own.path.read_bytes()
    message = rf"line 2 of .* is of schema {SCHEMA + 1}, and this version of cetsim knows up to {SCHEMA}: update cetsim"
    with pytest.raises(ValueError, match=message):
        own.append([record("b")])
    with pytest.raises(ValueError, match=message):
        Records(tmp_path)
    assert own.path.read_bytes() == before
    assert not (tmp_path / "runs.jsonl.damaged").exists()


# A disk that is full, or cannot be written.


@pytest.mark.parametrize("trimmed", [True, False])
@pytest.mark.parametrize("function", ["write", "fsync"])
def test_a_full_disk_is_told_and_spoils_nothing(tmp_path, monkeypatch, function, trimmed):
    own = Records(tmp_path)
    own.append([record("a")])
    before = own.path.read_bytes()
    with monkeypatch.context() as patch:
        if function == "write":
            patch.setattr(records.os, "write", _with_room_for_20(os.write))
        else:
            patch.setattr(records.os, "fsync", fail(errno.ENOSPC))
        if not trimmed:
            patch.setattr(records.os, "ftruncate", fail(errno.EIO))
        with pytest.raises(OSError, match=r"runs\.jsonl cannot be added to: No space left on device") as told:
            own.append([record("b"), record("c")])
    assert told.value.errno == errno.ENOSPC
    assert own.path.read_bytes().startswith(before)
    assert keys(tmp_path)[0] == "a"
    if trimmed:
        assert own.path.read_bytes() == before
    own.append([record("d")])
    assert keys(tmp_path) == list(own.records)
    assert {"a", "d"} <= set(keys(tmp_path))


def _with_room_for_20(write):
    """A disk with room for 20 bytes more."""
    room = [20]

    def limited(handle, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(handle, data[: room[0]])
        room[0] -= written
        return written

    return limited


def test_a_folder_that_cannot_be_written_is_named_and_can_be_read(tmp_path, monkeypatch):
    own = Records(tmp_path)
    own.append([record("a")])
    with own.path.open("a") as file:
        file.write("{")

    monkeypatch.setattr(records.os, "open", fail(errno.EROFS))
    assert keys(tmp_path) == ["a"]
    for attempt in (lambda: own.append([record("b")]), lambda: own.exclusive().__enter__()):
        with pytest.raises(OSError, match=rf"the folder {tmp_path} cannot be written: Read-only file system"):
            attempt()


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    monkeypatch.setattr(records.os, "replace", fail(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]  # the temporary file is gone


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_a_clock_that_jumps_does_not_matter(tmp_path, monkeypatch, step):
    own = Records(tmp_path)
    own.append([record("a") | {"finished": "2026-01-01T00:00:00+00:00"}])
    later = time.time() + step
    monkeypatch.setattr(time, "time", lambda: later)
    os.utime(own.path, (later, later))
    Records(tmp_path).append([record("b") | {"finished": "1970-01-01T00:00:00+00:00"}, record("a", 0.75)])
    own.refresh()
    assert list(own.records) == ["a", "b"]
    assert own.records["a"]["final"] == {"accuracy": 0.75}


# Several processes.


def test_processes_add_to_one_file_at_once(tmp_path):
    writers = [start(ADDING, tmp_path, name, 25) for name in "ab"]
    reader = Records(tmp_path)
    while any(writer.poll() is None for writer in writers):
        reader.refresh()  # in the midst of their writing
    for writer in writers:
        writer.communicate()
    reader.refresh()
    expected = {f"{name}-{index}-{part}" for name in "ab" for index in range(25) for part in range(2)}
    assert set(reader.records) == set(keys(tmp_path)) == expected
    assert len(reader.path.read_bytes().splitlines()) == len(expected)
    assert not (tmp_path / "runs.jsonl.damaged").exists()


def test_a_writer_that_is_killed_loses_nothing_recorded(tmp_path):
    moments = random.Random(0)
    for attempt in range(10):
        writer = start(SLOWLY + ADDING, tmp_path, attempt, 10_000)
        told = [writer.stdout.readline()]
        time.sleep(moments.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        count = int([*told, *rest.split("\n")[:-1]][-1]) + 1  # so many were told to be recorded
        recorded = keys(tmp_path)
        expected = [f"{attempt}-{index}-{part}" for index in range(count) for part in range(2)]
        own = [key for key in recorded if key.startswith(f"{attempt}-")]
        assert own[: len(expected)] == expected
        assert len(own) <= len(expected) + 2  # and those of the batch in the midst of which it was killed
        Records(tmp_path).append([record(f"after-{attempt}")])
        assert keys(tmp_path) == [*recorded, f"after-{attempt}"]


@pytest.mark.parametrize("first", ["alone", "shard"])
@pytest.mark.parametrize("second", ["alone", "shard"])
def test_a_second_process_is_told_who_has_the_folder(tmp_path, first, second):
    holder = start(HOLDING, tmp_path, first)
    assert holder.stdout.readline() == "held\n"
    own = Records(tmp_path)
    assert own.in_use()
    own.append([record("a")])  # the lock of a sweep is not that of the file
    if first == second == "shard":
        with own.exclusive(shared=True):
            pass
    else:
        message = rf"the folder {tmp_path} is in use by process {holder.pid} on \S+ since 20\S+: wait for it to end, "
        with pytest.raises(BlockingIOError, match=message) as told:
            own.exclusive(shared=second == "shard").__enter__()
        assert ("those are shards of a sweep" in str(told.value)) == (first == "shard")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert not own.in_use()
    with own.exclusive():  # at once
        assert own.in_use()
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} "):
            own.exclusive(shared=True).__enter__()
    assert not own.in_use()


def test_shards_that_have_ended_are_not_named(tmp_path):
    shards = [start(HOLDING, tmp_path, "shard") for _ in range(2)]
    assert all(shard.stdout.readline() == "held\n" for shard in shards)
    shards[0].communicate()
    with pytest.raises(BlockingIOError) as told:
        Records(tmp_path).exclusive().__enter__()
    assert f"process {shards[1].pid} " in str(told.value)
    assert f"process {shards[0].pid} " not in str(told.value)
    shards[1].communicate()
    with Records(tmp_path).exclusive():
        pass


@pytest.mark.parametrize("lacking", ["platform", "file system"])
def test_where_there_are_no_locks_it_is_said_once(tmp_path, monkeypatch, capsys, lacking):
    monkeypatch.setattr(records, "_told", set())
    if lacking == "platform":
        monkeypatch.setattr(records, "fcntl", None)
    else:
        monkeypatch.setattr(records.fcntl, "flock", fail(errno.ENOLCK))
    own = Records(tmp_path)
    with own.exclusive():
        own.append([record("a")])
    assert keys(tmp_path) == ["a"]
    warning = f"warning: this {lacking} has no file locks: let only one process at a time use a folder\n"
    assert capsys.readouterr().err == warning
