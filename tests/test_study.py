"""How conditions are chosen, trained, shared among processes and resumed, with a trainer that only counts."""

import itertools
import json
import threading
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import pytest

from experiments import study
from experiments.options.common import parse_shard
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
    steps: int = 10

    def config(self, thing):
        return asdict(thing) | {"on": self.measured_on}

    columns = config


class Counter:
    """Of a thing, the rate is its score; remembers what it was asked to train."""

    trained: list = []  # noqa: RUF012

    def __init__(self, stage, thing, width):
        self.width = width

    def train(self, things, on_progress):
        assert len(things) <= self.width
        self.trained.append([(thing.name, thing.rate, thing.seed) for thing in things])
        rows = [[{"metric": m, "value": v} for m, v in (("score", t.rate), ("diverged", 0.0))] for t in things]
        return [(own, False, 0.1) for own in rows]


def score(record):
    return (next(row["value"] for row in record["rows"] if row["metric"] == "score"),)


WORK = Work(
    lambda stage, thing: (thing.name,), Counter, lambda stage, thing: thing.name, lambda stage, values: "", score
)


def stages(shard="1/1", batch=2):
    options = SimpleNamespace(seeds=SEEDS, batch_conditions=batch, shard=shard)
    return Stage("validation", options), Stage("test", options)


def groups():
    """Three things with two rates to choose from, and one without a choice."""
    found = [{Thing(name, rate, 99): Thing(name, rate) for rate in (0.1, 0.2)} for name in "abc"]
    return [*found, {Thing("d", 0.3, 99): Thing("d", 0.3)}]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(Counter, "trained", [])
    monkeypatch.setattr(study, "POLL", 0.01)


def run(folder, shard="1/1", batch=2):
    return complete(WORK, stages(shard, batch), groups(), Journal(folder))


def test_the_best_of_each_group_is_run_for_every_seed(tmp_path):
    keys = run(tmp_path)
    records = Journal(tmp_path).records
    reported = [(r["columns"]["name"], r["columns"]["rate"], r["columns"]["seed"]) for r in map(records.get, keys)]
    assert reported == [(name, 0.3 if name == "d" else 0.2, seed) for seed in range(SEEDS) for name in "abcd"]
    assert len(records) == 6 + 12  # where there is no choice there is no trial


def test_what_is_finished_is_not_run_again_and_batches_stay_as_they_are(tmp_path):
    run(tmp_path)
    whole = list(Counter.trained)
    path = tmp_path / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if '"test"' in line and json.loads(line)["columns"]["seed"] == 1)
    path.write_text("".join(lines[:lost] + lines[lost + 1 :]))
    Counter.trained.clear()
    run(tmp_path)
    (only,) = Counter.trained
    assert len(only) == 1
    assert any(only[0] in batch and len(batch) == 2 for batch in whole)
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
    same = lambda folder: {key: record["rows"] for key, record in Journal(folder).records.items()}  # noqa: E731
    assert same(together) == same(alone)


def test_batches_do_not_depend_on_shards(tmp_path):
    _, reported = stages(batch=2)
    things = [Thing(name, seed=seed) for name in "ab" for seed in range(5)]
    whole = study._share(WORK, reported, things)
    parts = [study._share(WORK, replace(reported, options=stages(f"{i}/3")[1].options), things) for i in (1, 2, 3)]
    assert sorted(map(str, whole)) == sorted(map(str, itertools.chain(*parts)))
    assert [len(batch) for _, batch, _ in whole] == [2, 2, 1] * 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", ""])
def test_mistakes(text):
    with pytest.raises(ValueError, match="--shard must be i/n with 1 <= i <= n, got"):
        parse_shard(text)
