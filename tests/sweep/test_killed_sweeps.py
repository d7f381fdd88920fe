"""Sweeps that are killed, at random moments and in the midst of every write, end with the numbers of ones that are not.

Real processes, and for one of them a real experiment.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_sweep
from kill_victim import Victims
from programs import CONDITIONS, batches, expected, measured

from cetsim.sweep.hosts import claimed
from cetsim.sweep.records import Records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def victims():
    with Victims() as started:
        yield started


def assert_whole(folder, conditions=CONDITIONS):
    """As after a sweep that nobody disturbed."""
    assert measured(folder) == expected(conditions)
    of = {key: record["batch"]["of"] for key, record in Records(folder).records.items()}
    keys = [[run.key for run in runs] for runs, _ in batches(conditions)]
    assert of == {key: together for together in keys for key in together}
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("kills", [5, 20])
def test_a_sweep_survives_being_killed(victims, tmp_path, kills):
    """At random moments, and started again each time; a sweep that is done is followed by another."""
    moments, killed, during, run = random.Random(kills), 0, {"checkpoint": 0, "record": 0}, 0
    while killed < kills:
        folder, status, run = tmp_path / str(run), None, run + 1
        while status != 0:
            victim = victims.start("sweep", folder)
            assert victims.line() == "ready"
            if killed < kills:
                time.sleep(moments.uniform(0.0, 0.15))
                os.kill(victim, signal.SIGKILL)
            status = victims.status()
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            during["checkpoint"] += any(folder.glob("checkpoints/training/*/.checkpoint-*"))
            during["record"] += any(folder.glob("runs/.*"))
        assert_whole(folder)
    print(f"{killed} killed in {run} sweeps, in the midst of writing: {during}")


POINTS = [
    *(f"write {n}" for n in (1, 2, 3, 5, 8, 13, 21, 25, 26, 27, 28, 30, 34, 60)),
    *(f"os.fsync {n}" for n in (1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 28)),
    *(f"os.replace {n}" for n in (1, 2, 5, 6, 7, 14)),
    *(f"os.unlink {n}" for n in (1, 2, 3, 4, 5)),
    *(f"os.rmdir {n}" for n in (1, 2, 3, 4)),
    *(f"os.open {n}" for n in (1, 4, 5, 6, 7, 8, 9, 14)),
]


def test_a_sweep_survives_being_killed_anywhere_in_a_write(victims, tmp_path):
    """And in the midst of removing what is not needed any more."""
    for point in POINTS:
        folder = tmp_path / point
        victims.start("sweep", folder, 0, point, 6)
        assert victims.status() == -signal.SIGKILL, point
        victims.start("sweep", folder, 0, "", 6)
        assert victims.status() == 0, point
        assert_whole(folder, CONDITIONS[:6])


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_asked_to_stop_does_so_after_the_chunk(victims, tmp_path, signum, status):
    victim = victims.start("sweep", tmp_path, 0.05)
    assert victims.line() == "ready"
    while victims.line() != "12":  # is trained now
        pass
    os.kill(victim, signum)
    assert victims.status() == status
    kept = sorted(path.name for path in tmp_path.glob("checkpoints/training/*/*"))
    assert kept == ["checkpoint-0000000008.cet", "checkpoint-0000000012.cet"]
    assert measured(tmp_path) == {}
    victims.start("sweep", tmp_path, 0.001)
    assert [victims.line() for _ in range(4)] == ["ready", "16", "18", "4"]
    assert victims.status() == 0
    assert_whole(tmp_path)


def test_a_second_process_in_a_folder_is_told(victims, tmp_path):
    victim = victims.start("sweep", tmp_path, 60)
    assert [victims.line(), victims.line()] == ["ready", "4"]
    with pytest.raises(BlockingIOError, match=f"the folder {tmp_path} is in use by process {victim} on "):
        toy_sweep.main(tmp_path)
    os.kill(victim, signal.SIGKILL)
    assert victims.status() == -signal.SIGKILL
    with claimed(tmp_path):  # at once
        assert Records(tmp_path).records == {}


# A real experiment, in processes of its own.

TINY = (
    *("behavioral-vision", "--delays", "0.4", "--orders", "2", "--hidden", "8", "--seeds", "1", "--steps", "20"),
    *("--selection-steps", "4", "--learning-rates", "1e-3", "--batch-conditions", "2"),
)
SCRIPT = """
import os, signal, sys
from cetsim.sweep import checkpoint, runner
left, save, latest = int(sys.argv[1]), checkpoint.save, checkpoint.latest
def saving(*arguments):
    global left
    save(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
def finding(*arguments):
    found = latest(*arguments)
    print("from", found and found[0], flush=True)
    return found
checkpoint.save, checkpoint.latest = saving, finding
begin = runner.Runner.__init__
runner.Runner.__init__ = lambda self, program, records, every, *more: begin(self, program, records, 0.0, *more)
from experiments.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def experiment(folder, kill_after=0):
    command = [sys.executable, "-c", SCRIPT, str(kill_after), *TINY, "--out", str(folder)]
    # What one process compiles the next need not.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | cache)


def table(folder):
    with (folder / "behavioral-vision" / "results.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] != "wall_s"]


def test_an_experiment_that_is_killed_ends_with_the_same_table(tmp_path):
    whole = experiment(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = experiment(tmp_path / "killed", 14)  # of the second batch, each having nine checkpoints
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.count("from None") == 2
    resumed = experiment(tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert [line for line in resumed.stdout.splitlines() if line.startswith("from")] == ["from 10"]
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert not (tmp_path / "killed" / "behavioral-vision" / "checkpoints").exists()
