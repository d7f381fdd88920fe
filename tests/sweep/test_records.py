"""Records: a file a run, put in place in one step; what killed writers, full disks, newer and older versions leave."""

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
from kill_victim import Victims
from programs import recorded

from cetsim.files import write_atomic
from cetsim.sweep import provenance
from cetsim.sweep.grid import digest
from cetsim.sweep.hosts import claimed
from cetsim.sweep.records import SCHEMA, Records


@pytest.fixture(scope="module")
def servers():
    with Victims() as one, Victims() as other:
        yield one, other


def record(key: str, value: float | None = 0.5, **columns) -> dict:
    shared = {"experiment": "e", "trace": "CET", "order": 10, "delay_s": 4.0} | columns
    rows = [{"metric": "test_accuracy", "step": 20, "value": value}]
    return {"schema": SCHEMA, "hash": key, "config": {"name": key}, "columns": shared, "rows": rows}


def fail(number: int):
    """Does what a call does that fails with this error."""

    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    return failing


def keys(folder: Path) -> list[str]:
    return list(Records(folder).records)


def values(folder: Path) -> list[float | None]:
    return [each["rows"][0]["value"] for each in Records(folder).records.values()]


def test_what_is_added_is_read_in_its_order_and_the_last_of_a_hash_counts(tmp_path):
    folder = tmp_path / "made" / "where needed"
    records = Records(folder)
    assert records.records == {}
    records.add([record("b"), record("a")])
    before = recorded(folder)
    records.add([record("c")])
    assert before.items() < recorded(folder).items()  # nothing is rewritten
    assert keys(folder) == ["b", "a", "c"]
    assert values(folder) == [0.5] * 3
    records.add([record("b", None)])
    assert Records(folder).records == records.records
    assert dict(zip(keys(folder), values(folder), strict=True)) == {"a": 0.5, "c": 0.5, "b": None}
    assert json.loads(recorded(folder)["b.json"])["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schema": 1, "hash": "x"}, "is not a record of a run, with hash, columns and rows"),
        (record("x", float("nan")), "`the record of run x` must be a JSON value, got"),
        (record("x") | {"config": {1j}}, "`the record of run x` must be a JSON value, got"),
    ],
)
def test_what_is_not_a_record_is_refused_and_none_of_its_batch_is_written(tmp_path, wrong, message):
    records = Records(tmp_path)
    records.add([record("a")])
    with pytest.raises(ValueError, match=message):
        records.add([record("b"), wrong])
    assert keys(tmp_path) == ["a"]


def test_refresh_reads_only_what_was_added_or_replaced(tmp_path, monkeypatch):
    here, there = Records(tmp_path), Records(tmp_path)
    there.add([record("a"), record("b")])
    here.refresh()
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    there.add([record("c"), record("a", 0.75)])
    read.clear()
    here.refresh()
    here.refresh()
    assert sorted(read) == ["a.json", "c.json"]
    assert here.records == there.records == Records(tmp_path).records


def test_what_is_known_of_a_file_that_is_gone_is_kept(tmp_path):
    records = Records(tmp_path)
    records.add([record("a")])
    (tmp_path / "runs" / "a.json").unlink()
    records.refresh()
    assert list(records.records) == ["a"]


@pytest.mark.parametrize("content", ["", "{", "\0\0"])
def test_a_damaged_file_is_passed_over_and_kept_aside(tmp_path, capsys, content):
    Records(tmp_path).add([record("a"), record("b")])
    damaged = tmp_path / "runs" / "b.json"
    damaged.write_text(content)
    records = Records(tmp_path)
    records.refresh()
    assert list(records.records) == ["a"]
    assert capsys.readouterr().err == f"warning: {damaged} is damaged and passed over: its run is trained again\n"
    records.add([record("b", 0.75)])
    assert values(tmp_path) == [0.5, 0.75]
    assert (tmp_path / "runs" / "b.damaged").read_text() == content


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 1, "hash": "b"}'])
def test_what_is_no_record_is_an_error_that_names_it(tmp_path, content):
    Records(tmp_path).add([record("a")])
    (tmp_path / "runs" / "b.json").write_text(content)
    with pytest.raises(ValueError, match=r"runs/b\.json is not a record of a run, with hash, columns and rows: mend"):
        Records(tmp_path)


def test_records_of_a_newer_version_are_left_alone(tmp_path):
    records = Records(tmp_path)
    records.add([record("a")])
    (tmp_path / "runs" / "b.json").write_text(json.dumps({"schema": SCHEMA + 1, "name": "of another shape"}))
    before = recorded(tmp_path)
    message = rf"b\.json is of schema {SCHEMA + 1}, and this version of cetsim knows up to {SCHEMA}: update cetsim"
    for attempt in (lambda: records.add([record("b")]), lambda: Records(tmp_path)):
        with pytest.raises(ValueError, match=message):
            attempt()
    assert recorded(tmp_path) == before


# A disk that is full, or cannot be written, and clocks.


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_told_and_spoils_nothing(tmp_path, monkeypatch, function):
    records = Records(tmp_path)
    records.add([record("a")])
    before = recorded(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail(errno.ENOSPC))
        with pytest.raises(OSError, match=r"runs/b\.json cannot be written: No space left on device") as raised:
            records.add([record("b"), record("a", 0.75)])
    assert raised.value.errno == errno.ENOSPC
    assert recorded(tmp_path) == before  # no temporary file either
    records.add([record("d")])
    assert keys(tmp_path) == list(records.records) == ["a", "d"]


def test_a_folder_that_cannot_be_written_is_named_and_can_be_read(tmp_path, monkeypatch):
    Records(tmp_path).add([record("a")])
    monkeypatch.setattr(Path, "mkdir", fail(errno.EROFS))
    assert keys(tmp_path) == ["a"]
    with pytest.raises(OSError, match=r"b\.json cannot be written: Read-only file system"):
        Records(tmp_path).add([record("b")])
    with pytest.raises(OSError, match="Read-only file system"):
        claimed(tmp_path).__enter__()


def test_a_file_is_written_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail(errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, "new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old")]
    (tmp_path / ".file.tmp").write_text("left by who was killed")
    write_atomic(path, [b"in ", b"pieces"])
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "in pieces")]


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_a_clock_that_jumps_does_not_matter(tmp_path, monkeypatch, step):
    records = Records(tmp_path)
    records.add([record("b") | {"finished": "2026-01-01T00:00:00+00:00"}])
    later = time.time() + step
    monkeypatch.setattr(time, "time", lambda: later)
    os.utime(tmp_path / "runs" / "b.json", (later, later))
    Records(tmp_path).add([record("a") | {"finished": "1970-01-01T00:00:00+00:00"}])
    records.refresh()
    assert list(records.records) == keys(tmp_path) == ["b", "a"]


# Several processes.


def test_processes_add_to_one_folder_at_once(servers, tmp_path):
    for server, name in zip(servers, "ab", strict=True):
        server.start("adding", tmp_path, name, 25)
    reader = Records(tmp_path)
    deadline = time.monotonic() + 60
    while len(reader.records) < 100 and time.monotonic() < deadline:
        reader.refresh()  # in the midst of their writing
    assert [server.status() for server in servers] == [0, 0]
    expected = {f"{name}-{index}-{part}" for name in "ab" for index in range(25) for part in range(2)}
    assert set(reader.records) == set(keys(tmp_path)) == expected


def test_a_writer_that_is_killed_loses_nothing_recorded(servers, tmp_path):
    moments, writer = random.Random(0), servers[0]
    for attempt in range(10):
        victim = writer.start("adding", tmp_path, attempt, 10_000)
        count = int(writer.line())
        time.sleep(moments.uniform(0.0, 0.1))
        os.kill(victim, signal.SIGKILL)
        while (line := writer.line_or_exit()) is not None:
            count = int(line)
        before = keys(tmp_path)
        own = [key for key in before if key.startswith(f"{attempt}-")]
        expected = [f"{attempt}-{index}-{part}" for index in range(count + 1) for part in range(2)]
        assert own[: len(expected)] == expected
        assert len(own) <= len(expected) + 2  # and those of the batch in the midst of which it was killed
        left = [path.name[1 : -len(".json.tmp")] for path in tmp_path.glob("runs/.*")]
        assert len(left) <= 1
        Records(tmp_path).add([record(key) for key in (*left, f"after-{attempt}")])
        assert keys(tmp_path) == [*(key for key in before if key not in left), *left, f"after-{attempt}"]
        assert not list(tmp_path.glob("runs/.*"))


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("1/1", "1/1", False),
        ("1/1", "1/2", False),
        ("1/2", "1/1", False),
        ("1/2", "2/2", True),
        ("1/2", "1/2", False),
        ("1/2", "2/3", False),
        ("1/2", "1/12", False),
    ],
)
def test_a_second_process_is_told_who_has_the_folder(servers, tmp_path, first, second, both):
    holder = servers[0].start("holding", tmp_path, first)
    assert servers[0].line() == "held"
    Records(tmp_path).add([record("a")])  # the lock of a sweep is not that of the records
    if both:
        with claimed(tmp_path, second):
            pass
    else:
        message = rf"the folder {tmp_path} is in use by process {holder} on \S+ since 20\S+: wait for it to end, "
        with pytest.raises(BlockingIOError, match=message):
            claimed(tmp_path, second).__enter__()
    os.kill(holder, signal.SIGKILL)
    assert servers[0].status() == -signal.SIGKILL
    message = f"in use by process {os.getpid()} "
    with claimed(tmp_path, second), pytest.raises(BlockingIOError, match=message):  # at once
        claimed(tmp_path, second).__enter__()
    with claimed(tmp_path, "2/2"):
        pass


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch):
    class Lacking:
        def __init__(self, *_, **__):
            self.release = lambda: None

        acquire = __enter__ = fail(errno.ENOLCK)
        __exit__ = None

    monkeypatch.setattr("filelock.FileLock", Lacking)
    message = "this file system has no locks: let only one process at a time use a folder"
    with pytest.warns(UserWarning, match=message), claimed(tmp_path):
        pass


# What earlier versions wrote.


def old(key: str, value: float | None = 0.5, **columns) -> dict:
    return record(key, value, **columns) | {"schema": 1}


def write_lines(folder: Path, *records: dict | str) -> Path:
    path = folder / "runs.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return path


def test_records_in_one_file_are_read_and_left_as_they_are(tmp_path):
    path = write_lines(tmp_path, old("a"), "", old("b"), old("a", 0.25))
    content = path.read_bytes()
    assert dict(zip(keys(tmp_path), values(tmp_path), strict=True)) == {"a": 0.25, "b": 0.5}
    Records(tmp_path).add([record("b", 0.75), record("c")])
    assert dict(zip(keys(tmp_path), values(tmp_path), strict=True)) == {"a": 0.25, "b": 0.75, "c": 0.5}
    assert path.read_bytes() == content


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_last_line_cut_short_is_passed_over(tmp_path, capsys, cut):
    path = write_lines(tmp_path, old("a"), old("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    assert keys(tmp_path) == (["a", "b"] if cut == 1 else ["a"])  # without its newline a line is whole
    warning = f"warning: line 2 of {path} is damaged and passed over: its run is trained again\n"
    assert capsys.readouterr().err == (warning if cut > 1 else "")


def test_so_is_any_other_broken_line(tmp_path, capsys):
    write_lines(tmp_path, old("a"), "{", "\0", old("b"))
    assert keys(tmp_path) == ["a", "b"]
    assert capsys.readouterr().err.count("is damaged and passed over") == 2


@pytest.mark.parametrize("line", ["[]", '{"hash": "x"}'])
def test_a_line_that_is_no_record_is_an_error_that_names_it(tmp_path, line):
    write_lines(tmp_path, old("a"), line, old("b"))
    with pytest.raises(ValueError, match=r"line 2 of .*runs\.jsonl is not a record of a run"):
        Records(tmp_path)


TABLE = """experiment,trace,order,distribution,layer,step,metric,value,run
e,CET,10,,,20,test_accuracy,0.5,12e4567890123456
e,CET,10,,layers.0,20,alignment,0.1,12e4567890123456
e,ET,1,,,20,test_accuracy,,b
e,ET,1,,,20,failed,1.0,b
"""


def test_a_table_alone_tells_of_its_runs(tmp_path):
    (tmp_path / "results.csv").write_text(TABLE)
    first, second = Records(tmp_path).records.values()
    assert (first["hash"], second["hash"]) == ("12e4567890123456", "b")
    assert first["columns"] == {"experiment": "e", "trace": "CET", "order": 10, "distribution": None}
    assert first["rows"] == [
        {"step": 20, "metric": "test_accuracy", "value": 0.5},
        {"layer": "layers.0", "step": 20, "metric": "alignment", "value": 0.1},
    ]
    assert [row["value"] for row in second["rows"]] == [None, 1.0]
    assert "error" not in first
    assert "error" in second  # and so is tried again
    write_lines(tmp_path, old("b", 0.25))
    assert Records(tmp_path).records["b"]["rows"][0]["value"] == 0.25  # the records know more than a table
    Records(tmp_path).add([record("b", 0.75)])
    assert Records(tmp_path).records["b"]["rows"][0]["value"] == 0.75
    assert keys(tmp_path) == ["12e4567890123456", "b"]


def test_a_table_that_names_no_runs_is_kept_out_of_harm(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("metric,value\nloss,1.0\n")
    with pytest.raises(ValueError, match=r"line 2 of .*results.csv does not say of which `run` it is"):
        Records(tmp_path)
    for harmless in ("", "metric,value\n", "learning_rate,best\n0.1,3\n"):  # nothing to lose, or somebody else's
        path.write_text(harmless)
        assert Records(tmp_path).records == {}


def test_a_digest_depends_on_the_values_alone_not_on_the_order_of_names():
    one = digest({"a": 1, "b": {"c": 0.1, "d": [1, 2]}})
    assert one == digest({"b": {"d": (1, 2), "c": 0.1}, "a": 1})
    assert one != digest({"b": {"d": [2, 1], "c": 0.1}, "a": 1})
    assert len(one) == 16
    assert len({digest({"a": value}) for value in (1, 1.5, True, "1", None, [1])}) == 6
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})


def test_the_revision_is_of_the_checkout_that_the_program_is_tracked_in(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text("1")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(program), raising=False)
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    git = lambda *more: subprocess.check_output([*command, *more], cwd=tmp_path, text=True)  # noqa: E731
    assert provenance.git_revision() is None  # no checkout
    git("init")
    git("commit", "--allow-empty", "-m", "empty")
    assert provenance.git_revision() is None  # not tracked
    git("add", "program.py")
    git("commit", "-m", "a program")
    git("tag", "v1-2")
    head = git("rev-parse", "HEAD").strip()
    assert provenance.git_revision() == {"revision": head, "dirty": False}
    (tmp_path / "notes").write_text("not tracked")
    assert provenance.git_revision() == {"revision": head, "dirty": False}
    program.write_text("2")
    assert provenance.git_revision() == {"revision": head, "dirty": True}
