"""Alignment of updates with true gradients: in any run, in the experiment alignment, and in its figure."""

import csv

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, tidy

import cetsim
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun, backprop
from experiments import alignment, behavioral_vision
from experiments.alignment import Options
from experiments.common import alignment as common
from experiments.common import plots, tables

TINY = (
    *("alignment", "--delays", "0.2", "0.4", "--orders", "2", "--hidden", "8", "--seeds", "1"),
    *("--steps", "4", "--learning-rates", "1e-3"),
)
LATE = Hyperparameters(1e-2, cetsim.CascadingTrace(4, 0.8), cetsim.FixedDelay(0.8))


# In a run of one's own.


def small_mlp(key):
    return cetsim.nn.mlp((12, 6, 3), key=key)


def small_cnn(key, statistics):
    return cetsim.nn.cnn((3, 8, 8), channels=(4,), hidden=8, classes=3, statistics=statistics, key=key)


def small_run(network: str, boundary: str) -> SupervisedRun:
    shape = (12,) if network == "mlp" else (3, 8, 8)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(64, *shape)), rng.integers(0, 3, 64)
    statistics = "segment" if boundary == "reset" else "running"
    make = small_mlp if network == "mlp" else lambda key: small_cnn(key, statistics)
    return SupervisedRun(make, jnp.asarray(images), jnp.asarray(labels), Settings(8, 16, boundary=boundary))


@eqx.filter_jit
def advance(run, state, steps):
    return run.advance(state, steps, unroll=True)[0]


@eqx.filter_jit
def align(run, state):
    return run.alignment(state, run.x[:16], run.labels[:16])


def measured(run, hyper):
    """Cosines on the first images of a run after an update."""
    return align(run, advance(run, run.init(hyper, jax.random.key(0)), 1))


NETWORKS = pytest.mark.parametrize("network", ["mlp", "cnn"])
BOUNDARIES = pytest.mark.parametrize("boundary", ["reset", "carry"])


@NETWORKS
@BOUNDARIES
def test_a_delay_line_without_delay_is_aligned_in_every_layer(network, boundary):
    cosines = measured(small_run(network, boundary), backprop(1e-2))
    assert len(cosines) == {"mlp": 2, "cnn": 3}[network]
    np.testing.assert_allclose(list(cosines.values()), 1.0, rtol=1e-10)


@NETWORKS
def test_a_stream_is_measured_on_a_stretch_that_starts_empty(network):
    carried = measured(small_run(network, "carry"), LATE)
    assert all(-1 <= value < 0.999 for value in carried.values())
    if network == "mlp":  # no batch norm, and weights are the same until signals of an earlier segment arrive
        reset = measured(small_run(network, "reset"), LATE)
        np.testing.assert_allclose(list(carried.values()), list(reset.values()), rtol=1e-10)


def test_it_goes_beside_the_updates_of_a_run():
    run = small_run("mlp", "carry")
    state, curve = run.init(LATE, jax.random.key(0)), []
    for _ in range(3):
        state = advance(run, state, 1)
        curve.append(align(run, state))
    assert [set(cosines) for cosines in curve] == [{"layers.0", "layers.2"}] * 3
    assert len({float(cosines["layers.0"]) for cosines in curve}) == 3


# What the experiment runs.


def test_every_trace_at_every_delay_looks_on_at_backprop():
    options = Options(delays=(0.2, 4.0), orders=(2, 20), error_gate=1e-6)
    ((backprop,),), delayed = alignment.conditions(options), alignment.probes(options)
    assert (backprop.trace, backprop.delay_s, backprop.error_gate) == ("backprop", 0.0, 0.0)
    assert len(set(delayed)) == len(delayed) == 2 * 4
    assert {(c.trace, c.order) for c in delayed} == {("ET", 1), ("CET", 2), ("CET", 20), ("delay line", 0)}
    assert {(c.delay_s, c.peak_s) for c in delayed} == {(0.2, 0.2), (4.0, 4.0)}
    assert {c.error_gate for c in delayed} == {1e-6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--delays", "0.3"), "--delays must be multiples of the 0.2 s of an image, got 0.3"),
        (("--delays", "25.6"), "--delays must be at most 25.4 s"),
        (("--delays",), "--delays must be at least one, got none"),
        (("--orders", "1"), "--orders must be 2 to 64"),
        (("--error-gate", "-1"), "--error-gate must be at least 0, got -1"),
        (("--error-gate", "nan"), "--error-gate must be at least 0, got nan"),
        (("--preset", "paper"), "invalid choice 'paper'"),
        (("--plot-only",), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, "alignment", *arguments, "--out", tmp_path)


def test_a_vision_transformer_from_the_command_line(tmp_path):
    short = ("--steps", "4", "--delays", "0.4", "--orders", "2")
    text = output_of("behavioral-vision", "--preset", "vit", *short, "--out", tmp_path)
    assert "ViT, 2 blocks of 32, rule with inputs alone in the traces" in text
    rows = tables.read(tmp_path / "behavioral-vision" / "results.csv")
    line = rows[(rows["metric"] == "alignment") & (rows["trace"] == "delay line")]
    names = common.layers(line)
    assert next(iter(names.items())) == ("embed.linear", "patches")
    assert list(names.items())[-2:] == [("blocks.1.mlp.layers.2", "block 2 MLP 2"), ("head", "output")]
    assert set(names) == set(line["layer"])  # no norm is compared
    np.testing.assert_allclose(line["value"], 1.0, atol=1e-4)


def test_from_the_command_line_to_a_redrawn_figure(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    text = output_of(*TINY, "--out", out)
    table = text[text.index("\nCosine of update") :].split("\nresults:")[0]
    folder = out / "alignment"
    with (folder / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "alignment"]
    assert {(row["trace"], row["layer"]) for row in rows} == {
        (trace, layer) for trace in ("ET", "CET", "delay line", "backprop") for layer in ("layers.0", "layers.2")
    }
    assert {row["step"] for row in rows} == {"0", "2", "4"}
    lines = [line.split() for line in table.splitlines()]
    assert lines[lines.index(["hidden", "1", "(layers.0)"]) + 2] == ["delay", "line", "1.00", "1.00"]
    assert ["output", "(layers.2)"] in lines
    copy = copied(folder, again)
    assert table in output_of(*TINY, "--plot-only", "--out", again)
    assert require_same_pictures(folder, copy) == ["alignment.pdf", "alignment.png"]


# What is made of rows.

CNN = ("layers.1", "layers.13", "layers.15", "layers.5", "layers.9")
RESNET = (*(f"blocks.{i}.convs.{j}" for i in range(9) for j in range(2)), "head", "stem")
TRACES = (("ET", 1), ("CET", 2), ("CET", 10), ("delay line", 0), ("backprop", 0))


def rows_of(network="MLP 64-8-10", layers=("layers.0", "layers.2"), traces=TRACES, delays=(0.2, 2.0), steps=(0, 10),
            seeds=(0, 1), **more):  # fmt: skip
    """Rows of whole runs; the cosine says of which trace, delay and step it is."""
    shared = dict(experiment="other", dataset="digits", network=network, form="activation", boundary="reset")
    shared |= dict(learning_rate=1e-3, error_gate=1e-8, metric="alignment") | more
    return [
        shared
        | dict(trace=trace, order=order, delay_s=delay, peak_s=delay, seed=seed, layer=layer, step=step)
        | dict(value=order / 20 - delay / 100 + step / 1000 + seed / 1e6)
        | dict(run=f"{trace} {order} {delay} {seed} {more}")
        for trace, order in traces
        for delay in delays
        for seed in seeds
        for layer in layers
        for step in steps
    ]


def select(rows):
    return common.select(tidy(rows))


def at_end(frame, trace, delay, layer):
    """The cosine of each seed after training."""
    ends = common.at_end(frame)
    same = [
        ends[name] == value
        for name, value in zip(("trace", "order", "delay_s", "layer"), (*trace, delay, layer), strict=True)
    ]
    return ends[np.logical_and.reduce(same)]["value"].tolist()


def test_cosines_are_found_by_trace_delay_layer_and_step(tmp_path):
    frame = select(rows_of())
    assert set(zip(frame["trace"], frame["order"], strict=True)) == set(TRACES[:-1])  # backprop is its own gradient
    assert at_end(frame, ("CET", 10), 2.0, "layers.2") == pytest.approx([0.49, 0.490001])
    along = frame[(frame["order"] == 2) & (frame["delay_s"] == 0.2) & (frame["layer"] == "layers.0")]
    assert along.loc[along["step"] == 0, "value"].tolist() == pytest.approx([0.098, 0.098001])
    assert common._settings(frame) == (
        "digits (8x8), MLP 64-8-10, rule as in the paper's text, error gate 1e-8; 2 seeds, 10 segments of 128 images, "
        "learning rate 0.001"
    )


def test_the_longest_run_counts_then_the_last():
    longer = rows_of(steps=(0, 30), learning_rate=3e-3)
    for rows in (rows_of() + longer, longer + rows_of()):
        frame = select(rows)
        assert set(frame["step"]) == {0, 30}
        assert set(frame["learning_rate"]) == {3e-3}
    frame = select(rows_of() + [row | {"value": 0.5} for row in rows_of(learning_rate=3e-3)])
    assert at_end(frame, ("ET", 1), 2.0, "layers.0") == [0.5, 0.5]


def test_tables_of_version_0_1_0_do_not_name_runs():
    dropped = ("run", "peak_s")
    older = [{name: value for name, value in row.items() if name not in dropped} for row in rows_of()]
    assert common.table(select(older)) == common.table(select(rows_of()))


def test_one_setting_is_drawn():
    ungated = [row | {"value": 0.0} for row in rows_of(error_gate=0.0)]
    spread = [row | {"value": 0.0} for row in rows_of(spread_s=1.0, distribution="gamma", delays=(2.0,))]
    peak = [row | {"value": 0.0, "peak_s": 3.0, "run": row["run"] + "wrong"} for row in rows_of(delays=(2.0,))]
    other = [row | {"value": 0.0} for row in rows_of(dataset="mnist")]
    frame = select(other + rows_of() + ungated + spread + peak)
    assert {name: set(frame[name]) for name in ("dataset", "error_gate", "peak_ratio")} == {
        "dataset": {"digits"}, "error_gate": {1e-8}, "peak_ratio": {1.0}
    }  # fmt: skip
    assert at_end(frame, ("CET", 10), 2.0, "layers.2") == pytest.approx([0.49, 0.490001])
    assert set(select(peak)["peak_ratio"]) == {1.5}


def test_runs_that_diverged_are_left_out(tmp_path, capsys):
    rows = rows_of(seeds=(0, 1, 2))
    lost = {row["run"] for row in rows if row["seed"] == 1}
    broken = [row | {"metric": "diverged", "value": 1.0, "step": 10} for row in rows if row["run"] in lost]
    assert set(select(rows + broken)["seed"]) == {0, 2}
    everything = [row | {"metric": "diverged", "value": 1.0} for row in rows]
    assert common.draw(tidy(rows + everything), tmp_path) == []
    assert (
        "figure left out: alignment, no run with a trace has been finished without diverging" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("network", "layers", "names"),
    [
        ("MLP 64-8-8-10", ("layers.0", "layers.2", "layers.4"), ["hidden 1", "hidden 2", "output"]),
        ("MLP 64-10", ("layers.0",), ["output"]),
        ("CNN 32-64-128-512", CNN, ["conv 1", "conv 2", "conv 3", "hidden", "output"]),
        ("ResNet-20", RESNET, ["stem", *(f"block {i} conv {j}" for i in range(1, 10) for j in (1, 2)), "output"]),
    ],
)
def test_layers_have_names_for_readers_from_the_images_up(network, layers, names):
    assert list(common.layers(select(rows_of(network, layers))).values()) == names


@pytest.mark.parametrize(
    ("rows", "panels", "columns"),
    [
        (rows_of(), 3, 2),
        (rows_of(delays=(2.0,)), 2, 2),
        (rows_of(traces=(("ET", 1), ("CET", 10))), 2, 2),
        (rows_of(steps=(10,)), 2, 2),
        (rows_of("CNN 32-64-128-512", CNN, delays=(0.2, 0.6, 1.0, 2.0, 4.0, 10.0), seeds=(0,)), 3, 5),
        (rows_of("ResNet-20", RESNET, delays=(1.0,), traces=(("CET", 10),)), 1, 5),
        (rows_of(traces=(("CET", 2), ("CET", 6)), seeds=(0,)), 3, 2),  # neither ET nor delay line
        ([row for row in rows_of() if (row["trace"], row["delay_s"]) != ("ET", 2.0)], 3, 2),
    ],
)
def test_what_varies_is_drawn_for_every_layer(rows, panels, columns, tmp_path, monkeypatch):
    shapes, figure = [], plots.figure
    monkeypatch.setattr(plots, "figure", lambda *args, **more: shapes.append(args) or figure(*args, **more))
    paths = common.draw(tidy(rows), tmp_path)
    assert [path.name for path in paths] == ["alignment.png", "alignment.pdf"]
    assert shapes == [(panels, columns)]


def test_nothing_is_drawn_where_nothing_varies(tmp_path, capsys):
    assert common.draw(tidy(rows_of(traces=(("ET", 1),), delays=(2.0,), steps=(10,))), tmp_path) == []
    assert "figure left out: alignment, nothing varies" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_behavioral_vision_draws_it_too(tmp_path, capsys):
    options = behavioral_vision.Options(out=tmp_path)
    options.folder.mkdir()
    rows = rows_of()
    tests = [row | {"metric": "test_accuracy"} for row in rows if row["layer"] == "layers.0"]
    names = [path.name for path in behavioral_vision.report(tidy(rows + tests), options)]
    assert names == [f"{name}.{kind}" for name in ("behavioral-vision", "alignment") for kind in ("png", "pdf")]
    assert "Test accuracy" in capsys.readouterr().out
