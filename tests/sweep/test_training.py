"""What a training may be in a sweep: when and what is measured, programs that differ, simulators on the host, names."""

import json
import signal
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_sweep import CONDITIONS, DESCENT, advance, evaluate, init

from cetsim import sweep
from cetsim.sweep.grid import digest
from cetsim.sweep.interrupts import Interrupted
from cetsim.sweep.training import Trainer

FEW = CONDITIONS[:2]


def rows_of(table, metric, index=0):
    """Steps, layers and values of a metric of one run."""
    rows = list(table.records.values())[index]["rows"]
    return [(row["step"], row.get("layer"), row["value"]) for row in rows if row["metric"] == metric]


def literal(condition, steps=20):
    """The weights after each step, from the definition."""
    w = np.asarray(jax.random.normal(jax.random.key(condition["seed"]), (3,)))
    return [w * (1 - 2 * condition["learning_rate"]) ** step for step in range(steps + 1)]


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_measured_when(tmp_path, batch):
    """Before the first step, at some steps, of layers by name and by number, in parts, under a prefix, of probes."""
    x = np.arange(5.0)
    parts = [(jnp.asarray(x[:2]),), (jnp.asarray(x[2:]),)]
    evaluations = [
        evaluate,
        sweep.Evaluation(lambda state: {"w": state["w"]}, at=(0, 16)),
        sweep.Evaluation(lambda state: {"size": {"first": state["w"][0], "last": state["w"][2]}}, at=[20]),
        sweep.Evaluation(
            lambda state, x: {"mean": jnp.mean(x) * state["w"][0]}, (8,), parts, "test_", {"trace": "probe"}
        ),
    ]
    table = sweep.run(tmp_path, FEW, DESCENT._replace(evaluate=evaluations), batch=batch)
    for index, condition in enumerate(FEW):
        w = literal(condition)
        norms = [(step, None, pytest.approx(np.linalg.norm(w[step]))) for step in (8, 16, 20)]
        assert rows_of(table, "norm", index) == norms
        layers = [(step, str(layer), pytest.approx(w[step][layer])) for step in (0, 16) for layer in range(3)]
        assert rows_of(table, "w", index) == layers
        assert rows_of(table, "size", index) == [
            (20, "first", pytest.approx(w[20][0])), (20, "last", pytest.approx(w[20][2]))
        ]  # fmt: skip
        assert rows_of(table, "test_mean", index) == [(8, None, pytest.approx(x.mean() * w[8][0]))]
    np.testing.assert_allclose(table.final("test_mean", trace="probe")[0], x.mean() * literal(FEW[0])[8][0])


class Measured(NamedTuple):
    loss: jax.Array
    gain: jax.Array


def test_what_advance_measures_is_the_mean_over_steps_by_layer_or_field(tmp_path):
    def go_on(state, steps):
        ladder = jnp.arange(steps, dtype=float)
        more = {"layers": {"a": ladder}, "each": jnp.stack([ladder, 2 * ladder], axis=1)}
        return advance(state, steps)[0], (more, Measured(ladder + 1, jnp.asarray(7.0)))

    table = sweep.run(tmp_path, FEW, DESCENT._replace(advance=lambda s, n: (go_on(s, n)[0], go_on(s, n)[1][0])))
    assert rows_of(table, "layers") == [(8, "a", 3.5), (16, "a", 3.5), (20, "a", 1.5)]
    assert rows_of(table, "each") == [
        (s, str(i), m * (i + 1)) for s, m in ((8, 3.5), (16, 3.5), (20, 1.5)) for i in (0, 1)
    ]
    table = sweep.run(tmp_path / "2", FEW, DESCENT._replace(advance=lambda s, n: (go_on(s, n)[0], go_on(s, n)[1][1])))
    assert [value for _, _, value in rows_of(table, "loss")] == [4.5, 4.5, 2.5]
    assert [value for _, _, value in rows_of(table, "gain")] == [7.0] * 3


def test_steps_may_be_compiled_in_chunks_and_counted_in_frames(tmp_path):
    traced = []

    def go_on(state, steps, unroll):
        traced.append((steps, unroll))
        return advance(state, steps)

    whole = sweep.run(tmp_path / "whole", FEW, DESCENT)
    chunked = DESCENT._replace(advance=eqx.Partial(go_on, unroll=True), chunk=3, frames_per_step=10)
    table = sweep.run(tmp_path / "chunks", FEW, chunked)
    assert sorted(traced) == [(1, True), (2, True), (3, True)]
    for metric in ("loss", "norm"):
        steps, _, values = zip(*rows_of(table, metric), strict=True)
        assert steps == (80, 160, 200)
        np.testing.assert_allclose(values, [value for _, _, value in rows_of(whole, metric)], rtol=1e-12)


@pytest.mark.parametrize("every", [8, (8, 16, 20), np.array([8, 16, 20])])
def test_evaluations_at_steps_of_ones_own(tmp_path, every):
    table = sweep.run(tmp_path, FEW[:1], DESCENT._replace(every=every))
    assert [step for step, _, _ in rows_of(table, "loss")] == [8, 16, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": (8, 16)}, r"`every` must be a number or steps that ascend to the last, 20, got \[8, 16\]"),
        ({"every": (16, 8, 20)}, "steps that ascend"),
        ({"every": (0, 20)}, "steps that ascend"),
        ({"every": 0}, "`every` must be at least 1"),
        ({"chunk": 0}, "`chunk` must be at least 1"),
        ({"evaluate": sweep.Evaluation(evaluate, at=(0, 9))}, r"`at` must be 0 or steps .*\[8, 16, 20\], got \[9\]"),
    ],
)
def test_mistakes(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(tmp_path, FEW, DESCENT._replace(**change))


def test_a_training_may_say_itself_whether_it_diverged(tmp_path):
    lost = sweep.Evaluation(lambda state: {"return": jnp.nan, "diverged": state["rate"] > 0.05}, at=(20,))
    table = sweep.run(tmp_path, CONDITIONS[::3], DESCENT._replace(evaluate=lost))
    assert [rows_of(table, "diverged", index) for index in (0, 1)] == [[(20, None, 1.0)], [(20, None, 0.0)]]
    assert rows_of(table, "return") == [(20, None, None)]
    plain = sweep.run(tmp_path / "2", CONDITIONS[::3], DESCENT._replace(evaluate=lambda state: {"return": jnp.nan}))
    assert plain.final("diverged").tolist() == [1.0, 1.0]


# Programs that differ between conditions.


@dataclass(frozen=True)
class Setting:
    kind: str = "square"
    sizes: tuple = (3,)


@dataclass(frozen=True)
class Condition:
    learning_rate: float = 0.1
    kind: str = "square"
    width: int = 3
    setting: Setting = field(default_factory=Setting)
    seed: int = 0


def training_of(kind, width):
    power = {"square": 2, "cube": 3}[kind]

    def start(hyper, key):
        return init({"learning_rate": hyper}, key) | {"w": jax.random.normal(key, (width,))}

    def go_on(state, steps):
        state, losses = advance(state, steps)
        return state, jnp.abs(losses) ** (power / 2)

    return sweep.Training(start, go_on, evaluate, steps=20, every=10, hyperparameters=lambda c: c.learning_rate)


def test_programs_that_differ_are_compiled_apart_and_batched_within(tmp_path):
    conditions = [
        Condition(rate, kind, width, seed=s)
        for kind, width in (("square", 3), ("cube", 5))
        for rate in (0.1, 0.01)
        for s in (0, 1)
    ]
    table = sweep.run(
        tmp_path, conditions, training_of, static=("kind", "width"), columns=lambda c: {"twice": 2 * c.width}
    )
    assert [record["batch"]["width"] for record in table.records.values()] == [4] * 8
    for index, condition in enumerate(conditions):
        w = np.asarray(jax.random.normal(jax.random.key(condition.seed), (condition.width,)))
        norm = np.linalg.norm(w) * (1 - 2 * condition.learning_rate) ** 20
        np.testing.assert_allclose(table.final("norm")[index], norm, rtol=1e-12)
    runs = table.runs
    assert runs.twice.tolist() == [6] * 4 + [10] * 4
    assert runs.setting.tolist() == [{"kind": "square", "sizes": [3]}] * 8


# Names of runs.


def key_of(tmp_path, condition, **options):
    training = DESCENT._replace(hyperparameters=lambda each: {"learning_rate": 0.1})
    (key,) = sweep.run(tmp_path, [condition], training, **options).records
    return key


def test_a_name_is_of_what_differs_from_the_defaults(tmp_path):
    """A new option does not rename the runs that were made before it came."""

    @dataclass(frozen=True)
    class Later(Condition):
        gate: float = 0.0
        setting: Setting = field(default_factory=lambda: Setting(sizes=(3,)))

    name = key_of(tmp_path, Condition())
    assert name == digest({"condition": {}, "config": {}, "steps": 20, "every": 8})
    assert key_of(tmp_path, Later()) == name
    assert key_of(tmp_path, Later(learning_rate=0.1, gate=0)) == name
    others = [
        key_of(tmp_path, Later(gate=0.5)),
        key_of(tmp_path, Condition(seed=1)),
        key_of(tmp_path, Condition(setting=Setting("cube"))),
        key_of(tmp_path, Condition(setting=Setting(sizes=(4,)))),
        key_of(tmp_path, Condition(), config={"data": "mnist"}),
        key_of(tmp_path, Condition(), config=Setting("cube")),
    ]
    assert len({name, *others}) == 7
    assert key_of(tmp_path, Condition(), config=Setting()) == name
    assert key_of(tmp_path, Condition(), stage="other", batch=3, columns={"of": "no account"}) == name


def test_dicts_are_told_their_defaults(tmp_path):
    name = key_of(tmp_path, {"seed": 1})
    assert key_of(tmp_path, {"seed": 1, "gate": 0.0}, defaults={"gate": 0.0}) == name
    assert key_of(tmp_path, {"seed": 1}, config={"data": "digits"}, defaults={"data": "digits"}) == name
    assert key_of(tmp_path, {"seed": 1, "gate": False}, defaults={"gate": 0.0}) != name
    assert key_of(tmp_path, {"seed": 1, "gate": 0.1}, defaults={"gate": 0.0}) != name


def test_names_do_not_change_from_version_to_version(tmp_path):
    """A name here is for good: records are found by it."""
    assert key_of(tmp_path, {"learning_rate": 0.01, "seed": 3}, config={"data": "mnist"}) == "a7897e7584f0ea27"


# On the host.


class World:
    """A simulator whose state is its own: a random walk."""

    def __init__(self, seed):
        self.bits, self.walk = np.random.default_rng(seed), 0.0

    def play(self, steps, scale):
        for _ in range(steps):
            self.walk += scale * float(self.bits.normal())


def host_training(stop_at=None):
    def start(hyper, key):
        return World(int(jax.random.key_data(key)[-1])), float(hyper["scale"])

    def go_on(state, steps):
        assert type(steps) is int
        state[0].play(steps, state[1])
        return state, {"walk": np.asarray([state[0].walk] * steps)}

    def save(state):
        return np.asarray(state[1]), {"walk": state[0].walk, "bits": state[0].bits.bit_generator.state}

    def restore(tree, notes):
        world = World(0)
        world.walk, world.bits.bit_generator.state = notes["walk"], notes["bits"]
        return world, float(tree)

    rows = lambda state: [{"metric": "lag", "value": lag, "time_s": 0.2 * lag, "step": lag} for lag in (1, 2)]  # noqa: E731
    evaluations = [
        sweep.Evaluation(lambda state: {"at": state[0].walk}, at=(0, 4, 8, 10)),
        sweep.Evaluation(rows, at=(10,)),
    ]
    return sweep.Training(start, go_on, evaluations, steps=10, every=4, on_host=True, save=save, restore=restore)


def test_simulators_on_the_host_are_run_one_by_one_and_resumed(tmp_path, monkeypatch):
    conditions = sweep.grid(scale=(0.5, 2.0), seed=(3, 4))
    table = sweep.run(tmp_path / "whole", conditions, host_training())
    assert [record["batch"]["width"] for record in table.records.values()] == [1] * 4
    for index, condition in enumerate(conditions):
        walk = np.cumsum(condition["scale"] * np.random.default_rng(condition["seed"]).normal(size=10))
        at = [(0, None, 0.0), *((step, None, pytest.approx(walk[step - 1])) for step in (4, 8, 10))]
        assert rows_of(table, "at", index) == at
        assert rows_of(table, "lag", index) == [(1, None, 1), (2, None, 2)]
    assert "lag" not in table.runs  # has a time of its own
    original, calls = Trainer.advance, iter(range(100))

    def interrupted(self, *arguments):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(tmp_path / "halves", conditions, host_training(), checkpoint_every=0.0)
    monkeypatch.setattr(Trainer, "advance", original)
    again = sweep.run(tmp_path / "halves", conditions, host_training(), checkpoint_every=0.0)
    kept = lambda table: [[r for r in record["rows"] if r["metric"] != "wall_s"] for record in table.records.values()]  # noqa: E731
    assert kept(again) == kept(table)


# Stages, and other shards.


def test_choosing_and_then_training_what_was_chosen(tmp_path):
    """Candidates by a seed of their own, in the folder of the runs that are reported; all of it is taken up again."""
    trials = sweep.grid(learning_rate=(0.1, 0.01, 1e200), seed=(9,))

    def whole():
        ran = sweep.run(tmp_path, trials, DESCENT, config={"measured_on": "validation"}, stage="selection")
        (best,) = sweep.choose(ran, [trials], lambda values: -values["norm"])
        finals = [trials[best] | {"seed": seed} for seed in (8, 9)]
        return sweep.run(tmp_path, finals, DESCENT, config={"measured_on": "test"})

    table = whole()
    assert table.runs.learning_rate.tolist() == [0.1, 0.1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*")}
    assert len(before) == 5
    assert list(whole().records) == list(table.records)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*")} == before


def test_a_shard_waits_for_what_others_train(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cetsim.sweep.sweep.POLL", 0.01)
    (tmp_path / "runs").mkdir(parents=True)
    alone = sweep.run(tmp_path / "alone", CONDITIONS, DESCENT, batch=3)
    other = threading.Timer(3.0, lambda: [
        (tmp_path / "runs" / f"{key}.json").write_text(json.dumps(record))
        for key, record in list(alone.records.items())[3:]
    ])  # fmt: skip
    other.start()
    table = sweep.run(tmp_path, CONDITIONS, DESCENT, batch=3, shard="1/2", wait=True)
    other.join()
    assert list(table.records) == list(alone.records)
    assert "waiting for 3 runs of other shards" in capsys.readouterr().out


def test_waiting_is_interrupted(tmp_path, monkeypatch, capsys):
    def ask(seconds):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("cetsim.sweep.sweep.time.sleep", ask)
    with pytest.raises(Interrupted) as stopped:
        sweep.run(tmp_path, CONDITIONS, DESCENT, batch=3, shard="2/2", wait=True)
    assert stopped.value.code == 143
    assert "interrupted; what was done is kept in" in capsys.readouterr().err
