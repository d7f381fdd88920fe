"""How conditions are chosen, trained, shared among processes and resumed, with a training that only counts."""

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cetsim import sweep
from experiments.common.conditions import Condition
from experiments.common.options import Sweep, UserError
from experiments.common.selection import Course, complete

RATES = {"a": (0.1, 0.2), "b": (0.1, 0.2), "c": (0.1, 0.2), "d": (0.3,)}


@dataclass(frozen=True)
class Options(Sweep):
    """Three seeds of four things."""

    dataset, form = "none", "none"

    @property
    def name(self):
        return "things"


class Counting(Course):
    """Of a condition the learning rate is its score; what is trained is told, and some of it fails."""

    static = ("boundary",)

    def __init__(self, options, measured_on, trained, broken):
        super().__init__(options, measured_on)
        self.trained, self.broken = trained, broken

    def config(self):
        return {"measured_on": self.measured_on}

    def score(self, values):
        return values["validation_accuracy"]

    def training(self, boundary):
        def begin(condition, key):
            seen = condition.trace, condition.learning_rate, condition.seed
            self.trained.append(seen)
            if seen in self.broken:
                raise RuntimeError("broken")
            return condition

        score = lambda condition: {f"{self.measured_on}_accuracy": condition.learning_rate}  # noqa: E731
        own = dict(steps=2, every=2, hyperparameters=lambda condition: condition, on_host=True)
        return sweep.Training(begin, lambda condition, steps: (condition, {}), score, **own)


def run(folder, trained=None, shard="1/1", broken=()):
    """What is reported: trace, learning rate and seed of each run, in their order; and what was trained."""
    trained = [] if trained is None else trained
    options = Options(out=folder, shard=shard, selection_seed=99)
    groups = [[Condition(name, learning_rate=rate) for rate in rates] for name, rates in RATES.items()]
    courses = {on: Counting(options, on, trained, broken) for on in ("validation", "test")}
    rows = complete(courses, groups)
    if rows is None:
        return None, trained
    runs = rows.drop_duplicates("run")
    return list(zip(*(runs[name].tolist() for name in ("trace", "learning_rate", "seed")), strict=True)), trained


def test_the_best_of_each_group_is_run_for_every_seed(tmp_path):
    reported, _ = run(tmp_path)
    assert reported == [(name, 0.3 if name == "d" else 0.2, seed) for seed in range(3) for name in "abcd"]
    assert len(sweep.load(tmp_path / "things").records) == 6 + 12  # where there is no choice there is no trial


def test_what_is_finished_is_not_run_again(tmp_path):
    reported, _ = run(tmp_path)
    table = sweep.load(tmp_path / "things").runs
    (lost,) = table.index[(table["trace"] == "b") & (table["seed"] == 1)]
    (tmp_path / "things" / "runs" / f"{lost}.json").unlink()
    (tmp_path / "things" / "results.csv").unlink()
    again, trained = run(tmp_path)
    assert again == reported
    assert ("b", 0.2, 1) in trained


def test_shards_share_the_work_and_the_first_reports(tmp_path):
    alone, _ = run(tmp_path / "alone")
    code = (
        "import sys, pathlib, test_selection; print(test_selection.run(pathlib.Path(sys.argv[1]), shard=sys.argv[2]))"
    )
    root = Path(__file__).parents[2]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests", Path(__file__).parent)))}
    shards = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "together"), shard], text=True, stdout=subprocess.PIPE,
            env=os.environ | paths,
        )
        for shard in ("1/2", "2/2")
    ]  # fmt: skip
    first, second = (shard.communicate(timeout=300)[0].splitlines() for shard in shards)
    (of_first, by_first), (of_second, by_second) = (ast.literal_eval(said[-1]) for said in (first, second))
    assert (of_first, of_second) == (alone, None)
    assert "shard 2 of 2 is done; the first reports" in second
    assert by_first
    assert by_second
    assert not set(by_first) & set(by_second)
    assert len(by_first) + len(by_second) == 6 + 12


def test_the_best_is_chosen_of_the_trials_that_did_not_fail(tmp_path, capsys):
    reported, _ = run(tmp_path, broken=(("a", 0.2, 99), ("b", 0.1, 99), ("b", 0.2, 99)))
    assert {(name, rate) for name, rate, _ in reported} == {("a", 0.1), ("b", 0.1), ("c", 0.2), ("d", 0.3)}
    assert "broken" in capsys.readouterr().err


def test_runs_that_fail_are_told_left_out_and_tried_again(tmp_path, capsys):
    reported, _ = run(tmp_path, broken=(("a", 0.2, 1),))
    assert len(reported) == 3 * 4 - 1
    assert ("a", 0.2, 1) not in reported
    assert "RuntimeError: broken" in capsys.readouterr().err
    again, _ = run(tmp_path)
    assert len(again) == 3 * 4


def test_an_experiment_of_which_nothing_ended_well_has_failed(tmp_path):
    everything = tuple((name, rate, seed) for name in RATES for rate in (0.1, 0.2, 0.3) for seed in (0, 1, 2, 99))
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, broken=everything)


def test_a_folder_that_another_process_has_is_the_users_to_put_right(tmp_path, monkeypatch):
    def taken(*args, **more):
        raise BlockingIOError("another process has the folder")

    monkeypatch.setattr(sweep, "run", taken)
    with pytest.raises(UserError, match="another process"):
        run(tmp_path)
