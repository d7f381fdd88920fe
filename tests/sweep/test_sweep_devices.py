"""One sweep over several devices, and over several processes: the records are those of one device alone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from toy_sweep import CONDITIONS, DESCENT, rows_of

from cetsim import sweep
from cetsim.sweep import hosts
from cetsim.sweep.hosts import claimed

TESTS = Path(__file__).parents[1]


def start(*arguments, devices=1, code=None):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    command = [sys.executable, *(["-c", code] if code else [str(TESTS / "toy_sweep.py")]), *map(str, arguments)]
    return subprocess.Popen(
        command, env=env, cwd=TESTS.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def alone(tmp_path):
    sweep.run(tmp_path / "alone", CONDITIONS, DESCENT, batch=3)
    return rows_of(tmp_path / "alone")


def test_slots_are_spread_over_eight_devices(tmp_path, alone):
    code = """
import sys
import jax
from toy_sweep import CONDITIONS, DESCENT, advance
from cetsim import sweep
from cetsim.sweep.training import Trainer, over_slots

assert len(jax.local_devices()) == 8
table = sweep.run(sys.argv[1], CONDITIONS, DESCENT, batch=6)
assert {record["batch"]["width"] for record in table.records.values()} == {8}
assert {record["device"]["count"] for record in table.records.values()} == {8}
program = Trainer(DESCENT, 8, tuple(jax.local_devices()))
state = program.begin(CONDITIONS + CONDITIONS[:2])
assert len(state["w"].sharding.device_set) == 8
assert [shard.data.shape for shard in state["w"].addressable_shards] == [(1, 3)] * 8
tree, notes = program.save(state)
restored = program.restore(jax.device_put(jax.device_get(tree), jax.local_devices()[0]), notes)
assert restored["w"].sharding == state["w"].sharding
text = over_slots.lower(advance, (state,), (4,), program.devices).compile().compiled.as_text()
talk = [word for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if word in text]
assert not talk, talk
"""
    finish(start(tmp_path / "eight", devices=8, code=code))
    assert rows_of(tmp_path / "eight") == alone


@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_that_are_joined_share_a_sweep(tmp_path, alone, shared):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [tmp_path / ("both" if shared else str(index)) for index in range(2)]
    processes = [start(folder, f"127.0.0.1:{port}", 2, index) for index, folder in enumerate(folders)]
    told = [finish(process) for process in processes]
    assert ["shard 1/2" in told[0], "shard 2/2" in told[1]] == [True, True]
    trained = [[condition["seed"] for condition in CONDITIONS if _told(condition) in out] for out in told]
    assert trained == [[0, 1, 2], [0, 1, 2]]  # a batch each
    for folder in folders:
        assert rows_of(folder) == alone


def _told(condition):
    return f"learning_rate {condition['learning_rate']}, seed {condition['seed']}:"


def test_shards_share_a_folder(tmp_path, alone):
    for shard in ("2/2", "1/2"):
        table = sweep.run(tmp_path / "both", CONDITIONS, DESCENT, batch=3, shard=shard)
        assert len(table) == {"2/2": 3, "1/2": 6}[shard]
    both = rows_of(tmp_path / "both")
    assert {key: both[key] for key in alone} == alone


def test_a_folder_that_another_process_has_is_refused(tmp_path):
    with (
        claimed(tmp_path),
        pytest.raises(BlockingIOError, match=r"is in use by process \d+ on .*: wait for it to end, stop it or choose"),
    ):
        sweep.run(tmp_path, CONDITIONS, DESCENT)


def test_nothing_is_joined_without_arguments_or_slurm(monkeypatch):
    joined = []
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *arguments: joined.append(arguments))
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert sweep.initialize() == "1/1"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert sweep.initialize() == "1/1"
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ValueError, match=r"job has 4 tasks, but srun did not start this process .* `srun python ...`"):
        sweep.initialize()
    assert joined == []
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    sweep.initialize()
    sweep.initialize("host:1", 2, 0)
    assert joined == [(None, None, None), ("host:1", 2, 0)]


def test_some_of_the_three_are_refused():
    """By JAX, in a process that has not begun to compute."""
    code = """
from cetsim import sweep
for given in ({"coordinator": "host:1"}, {"processes": 2}, {"index": 0}, {"coordinator": "host:1", "index": 0}):
    try:
        print(sweep.initialize(**given))
    except ValueError as error:
        assert "be defined" in str(error), error
    else:
        raise AssertionError(given)
"""
    finish(start(code=code))
