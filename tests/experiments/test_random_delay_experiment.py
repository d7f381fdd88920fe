"""The experiment random-delay, end to end at a tiny size, and whose draws its runs have."""

import csv
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy, trained

import cetsim
from cetsim import datasets, metrics
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from experiments import random_delay
from experiments.common import vision
from experiments.common.conditions import Condition
from experiments.common.hyperparameters import make_delay
from experiments.random_delay import PRESETS, Options

NAME = "random-delay"
TINY = (
    *(NAME, "--mean", "0.4", "--spreads", "0", "0.8", "--orders", "2", "--hidden", "8", "--seeds", "2"),
    *("--steps", "4", "--learning-rates", "1e-3", "--batch-conditions", "6", "--distributions", "uniform"),
)
BOTH = pytest.mark.parametrize("distribution", ["uniform", "gamma"])


# What is run.


def test_every_trace_at_every_spread_and_the_fixed_delay_once():
    groups = random_delay.conditions(Options(mean=1.0, spreads=(0.0, 2.0), orders=(2, 10), error_gate=1e-6))
    assert all(len(group) == 1 for group in groups)
    conditions = [group[0] for group in groups]
    assert len(set(conditions)) == len(conditions) == 3 * 4
    assert {(c.distribution, c.spread_s) for c in conditions} == {("", 0.0), ("uniform", 2.0), ("gamma", 2.0)}
    assert {(c.trace, c.order) for c in conditions} == {("ET", 1), ("CET", 2), ("CET", 10), ("delay line", 0)}
    assert {(c.delay_s, c.peak_s, c.error_gate) for c in conditions} == {(1.0, 1.0, 1e-6)}


def test_spreads_without_none_run_no_fixed_delay():
    groups = random_delay.conditions(Options(spreads=(1.0,), distributions=("gamma",), orders=(2,)))
    assert [(group[0].distribution, group[0].spread_s) for group in groups] == [("gamma", 1.0)] * 3


def test_the_papers_setting():
    options = PRESETS["cifar10"]
    conditions = [group[0] for group in random_delay.conditions(options)]
    assert (options.dataset, options.network, options.form, options.steps) == ("cifar10", "cnn", "authors", 3900)
    assert {(c.delay_s, c.spread_s) for c in conditions} == {(2.0, 0.0), (2.0, 4.0)}
    assert {c.order for c in conditions if c.trace == "CET"} == {10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--spreads", "0", "4.5"), "--spreads must be at most 2 x --mean = 4 s, or else uniform delays would be"),
        (("--spreads", "5", "--mean", "2.4"), "negative, got 5"),
        (("--spreads", "-1"), "--spreads must be at least 0, got -1"),
        (("--spreads", "nan"), "--spreads must be at least 0, got nan"),
        (("--spreads",), "--spreads must be at least one, got none"),
        (("--spreads", "1", "1"), "--spreads must be different from each other"),
        (("--mean", "0.3"), "--mean must be multiples of the 0.2 s of an image, got 0.3"),
        (("--mean", "0"), "--mean must be above 0, got 0"),
        (("--mean", "25.6", "--spreads", "0"), "--mean must be at most 25.4 s"),
        (("--distributions",), "--distributions must be at least one, got none"),
        (("--distributions", "gamma", "gamma"), "--distributions must be different from each other, got gamma gamma"),
        (("--distributions", "normal"), "invalid choice 'normal'"),
        (("--orders", "1"), "--orders must be 2 to 64"),
        (("--error-gate", "-1"), "--error-gate must be at least 0, got -1"),
        (("--plot-only",), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, NAME, *arguments, "--out", tmp_path)


def test_what_is_unusual_but_right():
    Options(spreads=(40.0,), distributions=("gamma",)).check()  # no gamma distributed delay is negative
    Options(mean=20.0, spreads=(40.0,)).check()  # some signals are lost
    Options(mean=30.0, spreads=(1.0,), boundary="carry").check()


# From the command line to the figure.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny run."""
    out = tmp_path_factory.mktemp("tiny")
    output_of(*TINY, "--out", out)
    return out / NAME


def test_rows_say_how_credit_came(tiny):
    with (tiny / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "test_accuracy" and row["step"] == "4"]
    found = {(row["trace"], row["distribution"], float(row["spread_s"]), row["seed"]) for row in rows}
    assert len(rows) == len(found) == 2 * 3 * 2
    assert {key[1:3] for key in found} == {("", 0.0), ("uniform", 0.8)}
    assert {(row["delay_s"], row["peak_s"]) for row in rows} == {("0.4", "0.4")}


def test_the_figure_is_redrawn_from_the_table_alone(tiny, tmp_path):
    folder = copied(tiny, tmp_path)
    table = output_of(*TINY, "--plot-only", "--out", tmp_path)
    for text in ("Test accuracy in %", "uniform delays, mean 0.4 s", "learning rate 0.001", "CET(2)", "0.23"):
        assert table.count(text) == 1
    assert require_same_pictures(folder, tiny) == [f"{NAME}.pdf", f"{NAME}.png"]


def test_a_stream_of_random_delays_runs(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(160, 1, 2, 2)).astype(np.float32), np.arange(160, dtype=np.int32) % 3
    options = Options(mean=0.4, spreads=(0.8,), distributions=("gamma",), hidden=(4,), boundary="carry", steps=2)
    course = vision.Course(options, datasets.Dataset("random", images, labels, images, labels), "test")
    condition = replace(random_delay.conditions(options)[-1][0], learning_rate=1e-3)
    table = trained(course, [condition], tmp_path)
    assert table.final("diverged") == 0
    assert {"test_accuracy", "alignment"} <= set(table.rows["metric"])


def rows_of(spreads, values, **more):
    """Rows of one run each."""
    same = dict(
        dataset="cifar10", network="CNN 32-64-128-512", form="authors", boundary="reset", metric="test_accuracy"
    )
    same |= dict(delay_s=2.0, error_gate=1e-8, step=10, learning_rate=1e-3, seed=0, trace="ET", order=1)
    return [
        same | dict(distribution=name, spread_s=spread, value=value, run=f"{name} {spread} {more}") | more
        for (name, spread), value in zip(spreads, values, strict=True)
    ]


def report_of(capsys, rows, out):
    """What is printed of rows, and the kinds of files drawn."""
    options = Options(out=out)
    options.folder.mkdir(exist_ok=True)
    kinds = [path.suffix for path in random_delay.report(tidy(rows), options)]
    return capsys.readouterr().out, kinds


def test_the_papers_numbers_stand_beside_ours_on_cifar10(tmp_path, capsys):
    rows = rows_of([("", 0.0), ("uniform", 4.0), ("gamma", 4.0)], [0.5, 0.6, 0.7])
    uniform, gamma = report_of(capsys, rows, tmp_path)[0].split("gamma distributed")
    lines = [line.split() for line in uniform.splitlines()]
    assert lines[lines.index(["ET", "50.0", "60.0"]) + 1] == ["paper", "62", "64"]
    assert ["ET", "50.0", "70.0"] in [line.split() for line in gamma.splitlines()]
    assert "arXiv:2506.14598" in gamma
    assert "paper" not in report_of(capsys, [row | {"delay_s": 4.0} for row in rows], tmp_path)[0]


def test_figures_of_what_there_is(tmp_path, capsys):
    for rows in (
        rows_of([("", 0.0), ("uniform", 4.0), ("gamma", 4.0)], [0.5, 0.6, 0.7]),
        rows_of([("", 0.0)], [0.5]),  # no spread
        rows_of([("gamma", 1.0), ("gamma", 4.0)], [0.5, 0.6]),  # one distribution
        rows_of([("", 0.0)], [0.5], dataset="digits", delay_s=6.0),  # another mean than the options'
        [*rows_of([("", 0.0)], [0.5]), *rows_of([("", 0.0)], [1.0], trace="CET", order=2, metric="diverged"),
         *rows_of([("", 0.0)], [0.1], trace="CET", order=2)],  # a trace of which every run diverged
    ):  # fmt: skip
        assert report_of(capsys, rows, tmp_path)[1] == [".png", ".pdf"]


# Whose draws.


def arrivals(delay, steps=200):
    return np.asarray(delay.at(0).arrivals(jnp.arange(steps, dtype=float)))


@BOTH
@pytest.mark.parametrize("boundary", ["reset", "carry"])
def test_draws_differ_between_seeds_and_are_those_of_every_trace_of_a_seed(distribution, boundary):
    one = Condition("CET", 10, 2.0, seed=0, spread_s=4.0, distribution=distribution, boundary=boundary)
    first = arrivals(make_delay(one))
    for trace, order in (("ET", 1), ("CET", 2), ("delay line", 0)):
        other = replace(one, trace=trace, order=order, learning_rate=3e-3)
        np.testing.assert_array_equal(arrivals(make_delay(other)), first)
    for seed in (1, 2, 1000):
        assert np.mean(arrivals(make_delay(replace(one, seed=seed))) != first) > 0.8
    assert np.std(first - np.arange(200)) > 3


def test_streams_have_room_for_all_but_the_rarest_delays():
    uniform = Condition("CET", 10, 2.0, spread_s=1.9, distribution="uniform", boundary="carry")
    assert make_delay(uniform).max_steps == 15  # up to 2.95 s
    gamma = replace(uniform, distribution="gamma", spread_s=4.0)
    late = arrivals(make_delay(gamma), 2000) - np.arange(2000)
    assert late.max() < make_delay(gamma).max_steps


@BOTH
def test_each_stretch_of_a_run_has_new_draws(distribution):
    batch, rng = 16, np.random.default_rng(0)
    x, labels = jnp.asarray(rng.normal(size=(64, 5))), jnp.asarray(rng.integers(0, 3, 64))
    run = SupervisedRun(lambda key: cetsim.nn.mlp((5, 3), key=key), x, labels, Settings(steps=8, segment=batch))
    trace, delay = cetsim.CascadingTrace(5, 1.0), cetsim.RandomDelay(1.0, 2.0, 0.2, distribution, jax.random.key(3))
    hyper, step = Hyperparameters(1e-2, trace, delay), eqx.filter_jit(lambda run, state: run.advance(state, 1)[0])
    state = eqx.filter_jit(lambda run, hyper: run.init(hyper, jax.random.key(0)))(run, hyper)
    whole, seen = arrivals(delay, 4 * batch), []
    for segment in range(4):
        late = np.asarray(run._delay(state).arrivals(jnp.arange(batch, dtype=float)))
        np.testing.assert_array_equal(late, whole[segment * batch :][:batch] - segment * batch)
        assert all(np.any(late != before) for before in seen)
        seen.append(late)
        state = step(run, state)


@BOTH
def test_updates_are_made_with_the_draws_of_their_segment(distribution):
    batch, rng = 16, np.random.default_rng(0)
    x, labels = jnp.asarray(rng.normal(size=(64, 5))), jnp.asarray(rng.integers(0, 3, 64))
    make_model = lambda key: cetsim.nn.mlp((5, 3), key=key)  # noqa: E731
    run = SupervisedRun(make_model, x, labels, Settings(steps=8, segment=batch))
    trace, delay = cetsim.CascadingTrace(5, 1.0), cetsim.RandomDelay(1.0, 2.0, 0.2, distribution, jax.random.key(3))

    @eqx.filter_jit
    def alignment(run, step):
        state = run.init(Hyperparameters(1e-2, trace, delay), jax.random.key(0))
        return run.alignment(eqx.tree_at(lambda state: state.step, state, step), x[:batch], labels[:batch])

    @eqx.filter_jit
    def by_hand(origin):
        late = delay.at(origin)
        model = make_model(jax.random.split(jax.random.key(0))[0])

        def loss(model, weights, attach):
            model = cetsim.attach(model, trace, late) if attach else model
            each = optax.softmax_cross_entropy_with_integer_labels(
                jax.vmap(model, axis_name="time")(x[:batch]), labels[:batch]
            )
            return jnp.mean(weights * each)

        arrived = jnp.where(late.arrivals(jnp.arange(batch, dtype=float)) < batch, 1.0, 0.0)
        gradient = eqx.filter_grad(loss)
        return metrics.alignment(gradient(model, jnp.ones(batch), True), gradient(model, arrived, False))

    found = [alignment(run, jnp.asarray(step))["layers.0"] for step in range(4)]
    expected = [by_hand(jnp.asarray(step * batch))["layers.0"] for step in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert len(set(np.round(found, 6))) == 4
