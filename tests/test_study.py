"""How conditions are chosen, trained, shared among processes and resumed, with a program that only counts."""

import itertools
import json
import threading
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import pytest

from cetsim.sweep.batches import share
from cetsim.sweep.runner import Program
from experiments import study
from experiments.records import Journal
from experiments.study import Work, complete

SEEDS = 3


@dataclass(frozen=True)
class Thing:
    name: str
    rate: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    measured_on: str
    options: SimpleNamespace
    lanes: int
    steps: int = 10

    def config(self, thing):
        return asdict(thing) | {"on": self.measured_on}

    columns = config


class Counter(Program):
    """Of a thing, the rate is its score; remembers what was in its lanes, and fails at some things."""

    ends = (5, 10)
    trained: list = []  # noqa: RUF012
    broken: tuple = ()

    def __init__(self, stage, thing, width):
        self.width = width

    def begin(self, lanes):
        assert len(lanes) == self.width
        return 0

    def advance(self, state, lanes, start, end):
        assert state == start
        if any(thing in self.broken for thing in lanes):
            raise RuntimeError("broken")
        if end < self.ends[-1]:
            return end, [[] for _ in lanes]
        self.trained.append([(thing.name, thing.rate, thing.seed) for thing in lanes])
        values = [{"score": thing.rate, "diverged": 0.0} for thing in lanes]
        return end, [[{"metric": name, "step": end, "value": value} for name, value in own.items()] for own in values]


def score(record):
    return (next(row["value"] for row in record["rows"] if row["metric"] == "score"),)


WORK = Work(
    lambda stage, thing: (thing.name,), Counter, lambda stage, thing: thing.name, lambda stage, values: "", score
)


def stages(shard="1/1", lanes=2):
    options = SimpleNamespace(seeds=SEEDS, shard=shard)
    return Stage("validation", options, lanes), Stage("test", options, lanes)


def groups():
    """Three things with two rates to choose from, and one without a choice."""
    found = [{Thing(name, rate, 99): Thing(name, rate) for rate in (0.1, 0.2)} for name in "abc"]
    return [*found, {Thing("d", 0.3, 99): Thing("d", 0.3)}]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(Counter, "trained", [])
    monkeypatch.setattr(Counter, "broken", ())
    monkeypatch.setattr(study, "POLL", 0.01)


def run(folder, shard="1/1"):
    return complete(WORK, stages(shard), groups(), Journal(folder))


def measured(folder):
    """The rows of each run but for the seconds it took."""
    records = Journal(folder).records.items()
    return {key: [row for row in record["rows"] if row["metric"] != "wall_s"] for key, record in records}


def test_the_best_of_each_group_is_run_for_every_seed(tmp_path):
    keys = run(tmp_path)
    records = Journal(tmp_path).records
    reported = [(r["columns"]["name"], r["columns"]["rate"], r["columns"]["seed"]) for r in map(records.get, keys)]
    assert reported == [(name, 0.3 if name == "d" else 0.2, seed) for seed in range(SEEDS) for name in "abcd"]
    assert len(records) == 6 + 12  # where there is no choice there is no trial


def test_what_is_finished_is_not_run_again_and_batches_stay_as_they_are(tmp_path):
    keys = run(tmp_path)
    whole = list(Counter.trained)
    path = tmp_path / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if '"test"' in line and json.loads(line)["columns"]["seed"] == 1)
    path.write_text("".join(lines[:lost] + lines[lost + 1 :]))
    Counter.trained.clear()
    run(tmp_path)
    ((one, other),) = Counter.trained  # in its lane, which another repeats
    assert one == other
    assert any(one in batch and batch[0] != batch[1] for batch in whole)
    assert keys == run(tmp_path)
    Counter.trained.clear()
    run(tmp_path)
    assert Counter.trained == []


@pytest.mark.parametrize("count", [2, 3])
def test_shards_share_the_work_and_the_first_reports(tmp_path, count):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    keys = run(alone)
    whole = sorted(Counter.trained)
    Counter.trained.clear()
    told = {}
    shards = [f"{index + 1}/{count}" for index in range(count)]
    threads = [
        threading.Thread(target=lambda shard=shard: told.update({shard: run(together, shard)})) for shard in shards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(Counter.trained) == whole
    assert told == {shard: keys if shard.startswith("1/") else [] for shard in shards}
    assert measured(together) == measured(alone)


def test_batches_do_not_depend_on_shards():
    _, reported = stages()
    things = [Thing(name, seed=seed) for name in "ab" for seed in range(5)]
    whole = WORK.batches(reported, things)
    parts = [share(WORK.batches(reported, things), f"{i}/3") for i in (1, 2, 3)]
    assert sorted(map(str, whole)) == sorted(map(str, itertools.chain(*parts)))
    assert [(len(batch.conditions), batch.width) for batch in whole] == [(2, 2), (2, 2), (1, 2)] * 2


def test_the_best_is_chosen_of_the_trials_that_did_not_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Counter, "broken", (Thing("a", 0.2, 99), Thing("b", 0.1, 99), Thing("b", 0.2, 99)))
    keys, records = run(tmp_path), Journal(tmp_path).records
    rates = {records[key]["columns"]["name"]: records[key]["columns"]["rate"] for key in keys}
    assert rates == {"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.3}  # the first where none is left
    told = capsys.readouterr().out
    assert told.count("a: failed: RuntimeError: broken") == 1
    assert "b: failed: RuntimeError: broken" in told


def test_runs_that_fail_are_told_left_out_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Counter, "broken", (Thing("a", 0.2, 1),))
    keys = run(tmp_path)
    assert len(keys) == SEEDS * 4 - 1
    (failed,) = (key for key, record in Journal(tmp_path).records.items() if "error" in record)
    assert failed not in keys
    expected = f"error: 1 of 12 runs failed; they are tried again next time\n{failed}: RuntimeError: broken\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr(Counter, "broken", ())
    Counter.trained.clear()
    assert set(run(tmp_path)) == {*keys, failed}
    assert Counter.trained == [[("a", 0.2, 1)] * 2]
    assert capsys.readouterr().err == ""


def test_an_experiment_of_which_nothing_ended_well_has_failed(tmp_path, monkeypatch, capsys):
    seeds, rates = (*range(SEEDS), 99), (0.1, 0.2, 0.3)
    everything = tuple(Thing(name, rate, seed) for seed in seeds for name in "abcd" for rate in rates)
    monkeypatch.setattr(Counter, "broken", everything)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path)
    assert "error: 12 of 12 runs failed" in capsys.readouterr().err
