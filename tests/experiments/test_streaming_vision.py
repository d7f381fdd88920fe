"""The experiment streaming-vision: what it runs, what it says to mistakes, and what its figures are drawn from."""

import csv
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy, trained

from cetsim import datasets
from experiments import streaming_vision
from experiments.common import vision
from experiments.streaming_vision import Options

NAME = "streaming-vision"
TINY = (
    *(NAME, "--delays", "0.4", "--order-delay", "0.4", "--orders", "2", "--hidden", "6", "--seeds", "1"),
    *("--run-lengths", "1", "--interpolations", "1", "--segments", "128", "--steps", "2"),
)
PLACE = ("boundary", "delay_s", "run_length", "interpolation", "segment")
OPTIONS = Options(
    delays=(0.4, 4.0), order_delay=2.0, orders=(2, 10), run_lengths=(1, 8), interpolations=(1, 4), segments=(64,)
)


def conditions_of(options):
    groups = streaming_vision.conditions(options)
    assert all(len(group) == 1 for group in groups)
    return [condition for (condition,) in groups]


def places(conditions):
    """How many traces there are at each place."""
    return Counter(tuple(getattr(c, name) for name in PLACE) for c in conditions if c.trace != "backprop")


# What is run.


def test_every_trace_in_every_mode_at_every_delay_and_for_all_that_is_varied_at_one():
    conditions = conditions_of(OPTIONS)
    both = [
        *((boundary, delay, 1, 1, 128) for boundary in ("reset", "carry") for delay in (0.4, 4.0, 2.0)),
        *((boundary, 2.0, 8, 1, 128) for boundary in ("reset", "carry")),
        *((boundary, 2.0, 1, 4, 128) for boundary in ("reset", "carry")),
        ("carry", 2.0, 1, 1, 64),
    ]
    assert places(conditions) == dict.fromkeys(both, 4)
    kinds = {(c.trace, c.order) for c in conditions}
    assert kinds == {("ET", 1), ("CET", 2), ("CET", 10), ("delay line", 0), ("backprop", 0)}
    assert all(c.peak_s == c.delay_s for c in conditions)


def test_backprop_is_run_once_for_each_order_of_images_unless_batch_norm_tells_its_modes_apart():
    shown = lambda c: (c.run_length, c.interpolation, c.segment)  # noqa: E731
    backprop = [c for c in conditions_of(OPTIONS) if c.trace == "backprop"]
    assert [shown(c) for c in backprop] == [(1, 1, 128), (8, 1, 128), (1, 4, 128), (1, 1, 64)]
    assert {(c.boundary, c.delay_s, c.error_gate) for c in backprop} == {("reset", 0.0, 0.0)}
    cnn = [c for c in conditions_of(replace(OPTIONS, network="cnn")) if c.trace == "backprop"]
    assert [c.boundary for c in cnn] == ["reset"] * 3 + ["carry"] * 4


def test_nothing_is_run_twice_and_what_is_not_varied_adds_nothing():
    options = replace(OPTIONS, order_delay=4.0, segments=(128,))
    conditions = conditions_of(options)
    assert len(set(conditions)) == len(conditions)
    plain = replace(options, run_lengths=(1,), interpolations=(1,))
    assert len(conditions) - len(conditions_of(plain)) == 2 * 2 * 4 + 2
    assert len(conditions_of(plain)) == 2 * 2 * 4 + 1


def test_streams_alone_and_stretches_alone():
    assert {place[0] for place in places(conditions_of(replace(OPTIONS, boundaries=("carry",))))} == {"carry"}
    segments = places(conditions_of(replace(OPTIONS, boundaries=("reset",))))
    assert {(place[0], place[4]) for place in segments} == {("reset", 128)}


def test_the_gate_closes_on_the_same_images_however_many_there_are_to_an_update():
    gates = {c.segment: c.error_gate for c in conditions_of(OPTIONS) if c.trace == "ET"}
    assert gates == {128: 1e-8, 64: pytest.approx(4e-8)}  # errors of a mean over half as many are twice as large


def test_a_run_of_more_frequent_updates_sees_as_many_images():
    few = np.zeros((256, 1, 2, 2), np.float32), np.arange(256, dtype=np.int32) % 3
    course = vision.Course(replace(OPTIONS, steps=10), datasets.Dataset("few", *few, *few), "test")
    for condition in conditions_of(OPTIONS):
        settings = course.supervised(**{name: getattr(condition, name) for name in vision.Course.static}).settings
        assert settings.steps * settings.segment == 10 * 128
        assert settings.segment == condition.segment


# What is said to mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--boundaries",), "--boundaries must be at least one, got none"),
        (("--boundaries", "carry", "carry"), "--boundaries must be different from each other, got carry carry"),
        (("--boundaries", "flow"), "invalid choice 'flow'"),
        (("--boundary", "carry"), "--boundary"),  # of a single boundary: not an option here
        (("--delays", "0.3"), "--delays must be multiples of the 0.2 s of an image, got 0.3"),
        (("--delays", "30"), "--delays must be at most 25.4 s: signals later than the segment of 128 x 0.2 s are lost"),
        (("--order-delay", "30"), "--order-delay must be at most 25.4 s"),
        (("--order-delay", "0.5"), "--order-delay must be multiples of the 0.2 s of an image, got 0.5"),
        (("--selection-delay", "30"), "--selection-delay must be at most 25.4 s"),
        (("--orders", "1"), "--orders must be 2 to 64"),
        (("--error-gate", "-1"), "--error-gate must be at least 0, got -1"),
        (("--run-lengths", "0"), "--run-lengths must be at least 1, got 0"),
        (("--run-lengths", "2", "2"), "--run-lengths must be different from each other, got 2 2"),
        (("--interpolations",), "--interpolations must be at least one, got none"),
        (("--segments", "0"), "--segments must be at least 1, got 0"),
        (
            ("--segments", "100", "--steps", "3"),
            "--segments must be a divisor of the 384 images of a run, got",
        ),
        (
            ("--segments", "96", "--steps", "3", "--learning-rates", "1e-3", "1e-2", "--selection-steps", "2"),
            "--segments must be a divisor of the 256 images of a run, got 96",
        ),
        (("--plot-only",), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, NAME, *arguments, "--out", tmp_path)


def test_runs_longer_than_the_rarest_class_has_images(capsys, tmp_path):
    labels = datasets.load("digits").train_y  # with one learning rate none are held out to choose it
    rarest = min(range(10), key=lambda kind: np.sum(labels == kind))
    message = error_of(capsys, NAME, "--run-lengths", "1", "200", "--out", tmp_path)
    has = f"got 200 and class {rarest} with {np.sum(labels == rarest)} images"
    assert message == f"error: `run_length` must not exceed the images of any class, {has}"


def test_what_is_unusual_but_right():
    Options(boundaries=("carry",), delays=(30.0,), order_delay=40.0).check()
    Options(selection_steps=3, segments=(1000,), steps=125, learning_rates=(1e-3,)).check()  # no selection


# From the command line to the figures.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny run."""
    out = tmp_path_factory.mktemp("tiny")
    output_of(*TINY, "--out", out)
    return out / NAME


def test_rows_say_how_images_came(tiny):
    with (tiny / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "test_accuracy" and row["step"] == "2"]
    found = {(row["trace"], row["mode"]) for row in rows}
    assert found == {*itertools.product(("ET", "CET", "delay line"), ("reset", "carry")), ("backprop", "reset")}
    assert len(rows) == len(found)


def test_figures_are_redrawn_from_the_table_alone(tiny, tmp_path):
    folder = copied(tiny, tmp_path)
    table = output_of(*TINY, "--plot-only", "--out", tmp_path)
    titles = ("segments start empty\n", "time goes on\n", "time goes on, less segments start empty")
    for text in ("Test accuracy in %", *(f"delay of the signal (s): {title}" for title in titles)):
        assert table.count(text) == 1
    assert "images of a class in a row" not in table.partition("figure left out")[0]  # not varied
    assert "figure left out: input-order, one value of images of a class in a row and steps per image" in table
    assert "figure left out: update-every, one value of images per update" in table
    assert require_same_pictures(folder, tiny) == ["streaming-vision.pdf", "streaming-vision.png"]


def test_a_stream_of_blended_images_with_frequent_updates_runs(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(160, 1, 2, 2)).astype(np.float32), np.arange(160, dtype=np.int32) % 3
    options = replace(OPTIONS, hidden=(4,), steps=2)
    course = vision.Course(options, datasets.Dataset("random", images, labels, images, labels), "test")
    condition = replace(conditions_of(options)[-1], learning_rate=1e-3, interpolation=2, run_length=5)
    assert (condition.boundary, condition.segment) == ("carry", 64)
    table = trained(course, [condition], tmp_path)
    assert table.final("diverged") == 0
    rows = table.rows
    assert rows.loc[rows["metric"] == "test_accuracy", "step"].max() == 4  # updates of 64 images, in two segments


# What figures and tables are made from.


def rows_of(conditions, values=None, **more):
    """A row of the final accuracy of each condition."""
    same = dict(dataset="mnist", network="MLP 784-512-512-10", form="authors_linear", metric="test_accuracy")
    fields = ("trace", "order", *PLACE, "error_gate")
    return [
        same
        | {name: getattr(c, name) for name in fields}
        | dict(run=f"{index}", seed=0, learning_rate=1e-3, step=256 // c.segment, value=0.9)
        | ({} if values is None else {"value": values[index]})
        | more
        for index, c in enumerate(conditions)
    ]


def test_each_comparison_varies_one_thing():
    ends = streaming_vision.select(tidy(rows_of(conditions_of(OPTIONS))), OPTIONS)
    delay = streaming_vision.order_delay(ends, OPTIONS)
    assert delay == 2.0
    for varied, boundary, values in (
        ("delay_s", "reset", [0.4, 2.0, 4.0]),
        ("run_length", "carry", [1, 8]),
        ("interpolation", "reset", [1, 4]),
        ("segment", "carry", [64, 128]),
        ("segment", "reset", [128]),
    ):
        line = streaming_vision.line(ends, varied, boundary, delay)
        late = line[line["trace"] != "backprop"]
        assert sorted(set(line[varied])) == values
        assert all(late[name].nunique() == 1 for name in PLACE if name != varied)
        assert line.groupby(["trace", "order"])[varied].nunique().eq(len(values)).all()  # of backprop too
    assert set(ends["step"]) == {2}  # segments, whatever the updates
    assert set(ends.loc[ends["trace"] != "backprop", "error_gate"]) == {1e-8}


def report_of(capsys, rows, options):
    """What is printed of rows, and the names of the figures drawn."""
    options.folder.mkdir(exist_ok=True)
    names = [path.name for path in streaming_vision.report(tidy(rows), options)]
    return capsys.readouterr().out, names


def test_the_cost_of_a_mode_is_taken_seed_by_seed(tmp_path, capsys):
    single = dict(run_lengths=(1,), interpolations=(1,), segments=(128,), out=tmp_path)
    options = replace(OPTIONS, delays=(2.0,), orders=(2,), **single)
    conditions = [c for c in conditions_of(options) if c.trace == "CET"]
    rows = [row for seed, values in enumerate([(0.5, 0.7), (0.6, 0.7)])
            for row in rows_of(conditions, values, seed=seed)]  # fmt: skip
    rows = [row | {"run": f"{index}"} for index, row in enumerate(rows)]
    lines = [line.split() for line in report_of(capsys, rows, options)[0].splitlines()]
    assert [line[1:] for line in lines if line and line[0] == "CET(2)"] == [
        ["55.0", "±", "7.1"],
        ["70.0", "±", "0.0"],
        ["15.0", "±", "7.1"],
    ]
    diverged = rows[0] | {"metric": "diverged", "value": 1.0}
    assert "60.0 (1 div.)" in report_of(capsys, [*rows, diverged], options)[0]


def test_the_longest_run_with_the_gate_asked_for_counts():
    condition = conditions_of(OPTIONS)[1]
    short, long, other = (
        rows_of([condition], [value], run=run, step=step, error_gate=gate)[0]
        for value, run, step, gate in ((0.1, "a", 5, 1e-8), (0.2, "b", 9, 1e-8), (0.3, "c", 9, 0.0))
    )
    earlier = long | {"step": 4, "value": 0.05}
    for rows in itertools.permutations([short, long, earlier, other]):
        ends = streaming_vision.select(tidy(rows), OPTIONS)
        assert (ends["value"].tolist(), ends["step"].tolist()) == ([0.2], [9])
    assert streaming_vision.select(tidy([other]), OPTIONS)["error_gate"].tolist() == [0.0]  # what there is


def test_figures_of_what_there_is(tmp_path, capsys):
    options = replace(OPTIONS, out=tmp_path)
    rows = rows_of(conditions_of(options))
    everything = ["streaming-vision", "input-order", "update-every"]
    backprop = [row for row in rows if row["trace"] == "backprop"]
    lost = [row | {"metric": "diverged", "value": 1.0} for row in rows if row["trace"] == "ET"]
    for some, names in (
        (rows, everything),
        ([*rows, *lost], everything),  # a trace of which every run diverged
        ([row for row in rows if row["boundary"] == "carry"], everything),
        ([row for row in rows if row["boundary"] == "reset"], everything[:2]),
        ([row for row in rows if row["interpolation"] == 1 or row["boundary"] == "reset"], everything),
        ([row for row in rows if row["delay_s"] in (0.0, 4.0)], everything[:1]),
        ([*backprop, rows[1]], everything[:1]),
    ):
        printed, drawn = report_of(capsys, some, options)
        assert drawn == [f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
        assert all(f"figure left out: {name}" in printed for name in everything if name not in names)
