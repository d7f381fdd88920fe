"""learned-delay: the slopes that move a peak, the runs that learn it, and its command line."""

import csv
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures, trained
from networks import jit

from cetsim import CascadingTrace, FixedDelay, datasets, nn
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from experiments import learned_delay
from experiments.common import learned
from experiments.common.conditions import Condition, changed
from experiments.common.learned import Learner, LearningState
from experiments.learned_delay import BOUNDS, KNOB, Options

ALIGNMENT = Condition(order=10, method="alignment", step_size=0.3, segments=2)
PERTURBATION = dataclasses.replace(ALIGNMENT, method="perturbation", horizon=3, perturbation=0.2)
TINY = (*("learned-delay", "--delay", "1", "--hidden", "32", "--seeds", "1", "--steps", "200"),)


@jit
def advance(run, state, steps):
    return run.advance(state, steps)


@pytest.fixture(scope="module")
def small():
    """A run on digits after five updates with a peak at twice the delay of 1 s."""
    digits = datasets.load("digits")
    x = digits.train_x.reshape(len(digits.train_x), -1).astype(float)
    run = SupervisedRun(lambda key: nn.mlp((64, 16, 10), key=key), x, digits.train_y, Settings(steps=50))
    trace = CascadingTrace(10, 2.0).tabulate(128)
    state = run.init(Hyperparameters(1e-2, trace, FixedDelay(1.0), 1e-8), jax.random.key(0))
    return run, advance(run, state, 5)[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny experiment, run once."""
    out = tmp_path_factory.mktemp("tiny")
    output_of(*TINY, "--out", out)
    return out / "learned-delay"


def rows_of(folder) -> list[dict]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_slope_through_the_kernel_is_that_of_finite_differences(small):
    run, state = small
    function = lambda at: learned_delay.mean_alignment(run, ALIGNMENT, state, at)  # noqa: E731
    at = jnp.log(jnp.asarray([0.5, 0.95, 2.0]))
    key = jax.random.key(0)
    expected = jax.jit(lambda at: jax.lax.map(lambda at: learned.difference(function, at, 1e-5, key), at))(at)
    slopes = jax.jit(lambda at: jax.lax.map(lambda at: learned_delay.slope(run, ALIGNMENT, state, at), at))(at)
    assert min(abs(expected)) > 1e-3
    np.testing.assert_allclose(slopes, -expected, rtol=1e-6)  # the cosine should rise, what slopes are of should fall


@pytest.mark.parametrize("distance", [0.01, 0.2, 3.0])
def test_two_points_give_the_slope_of_a_parabola_at_any_distance(distance):
    parabola = lambda at: 3 * (at - 0.7) ** 2 + 5  # noqa: E731
    for at in (-1.0, 0.7, 2.0):
        slope = learned.difference(parabola, jnp.asarray(at), distance, jax.random.key(0))
        np.testing.assert_allclose(slope, 6 * (at - 0.7), rtol=1e-10, atol=1e-12)


def test_two_points_are_antithetic_and_noise_around_them_leaves_no_bias():
    # What both points share, the offset and all even terms, cancels; of noise of its own each gives half.
    even = lambda at: 100 + jnp.cos(at) + at**4  # noqa: E731
    assert learned.difference(even, jnp.asarray(0.0), 0.3, jax.random.key(0)) == 0
    noise = jax.random.normal(jax.random.key(0), (2000, 2))
    noisy = lambda draw: learned.difference(  # noqa: E731
        lambda at: (at - 0.7) ** 2 + draw[(at < 0.7).astype(int)], jnp.asarray(0.8), 0.2, jax.random.key(0)
    )
    slopes = jax.vmap(noisy)(noise)
    sd = 2**0.5 / 0.4
    np.testing.assert_allclose(np.std(slopes), sd, rtol=0.1)
    assert abs(np.mean(slopes) - 0.2) < 6 * sd / 2000**0.5


def test_the_loss_looked_ahead_to_is_that_of_updates_made_with_the_peak(small):
    run, state = small
    state = learned.with_weights(state, learned_delay.weights(PERTURBATION, jnp.log(1.3)))
    loss = learned.loss_after(run, PERTURBATION, state)
    after, _ = run.advance(state, 3)
    # With weights that stay, the next two updates see the losses of the segments that come next.
    still = eqx.tree_at(lambda state: state.hyper.learning_rate, after, jnp.asarray(0.0))
    np.testing.assert_allclose(loss, np.mean(advance(run, still, 2)[1]), rtol=1e-10)


def test_a_peak_is_set_in_the_trace_and_nowhere_else(small):
    _, state = small
    changed = learned.with_weights(state, learned_delay.weights(ALIGNMENT, jnp.log(1.3)))
    expected = CascadingTrace(10, 1.3).weights(jnp.arange(128))
    np.testing.assert_allclose(changed.hyper.trace.taps, expected, rtol=1e-10)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(changed), strict=True)
    assert sum(a is not b for a, b in pairs) == 1


@pytest.mark.parametrize(
    ("slopes", "start", "moves"),
    [
        ((3.0, 4.0, -12.0), 0.0, (-0.3, -0.3 * 4 / 5, 0.3 * 12 / 13)),
        ((3e-6, 4e-6, -12e-6), 0.0, (-0.3, -0.3 * 4 / 5, 0.3 * 12 / 13)),  # their scale does not matter
        ((0.0, -2.0, 0.0), 0.0, (0.0, 0.3, 0.0)),
        ((np.nan, np.inf, 1.0), 0.0, (0.0, 0.0, -0.3)),  # of a network that diverged
        ((1.0, 1.0), BOUNDS[0] + 0.1, (-0.1, 0.0)),
        ((-1.0, -1.0), BOUNDS[1] - 0.1, (0.1, 0.0)),
    ],
)
def test_a_peak_goes_down_its_slopes_scaled_by_all_of_them(small, slopes, start, moves):
    run, state = small
    learner = Learner(jnp.asarray(start), jnp.zeros(()), jax.random.key(0))
    state = LearningState(**vars(state), learner=learner)
    for slope, move in zip(slopes, moves, strict=True):
        knob, before = KNOB._replace(slope=lambda *_, slope=slope: jnp.asarray(slope)), state.learner.value
        state = learned.learn(knob, run, ALIGNMENT, state)
        np.testing.assert_allclose(state.learner.value - before, move, rtol=1e-10, atol=1e-12)
        assert jnp.all(state.hyper.trace.taps == learned_delay.weights(ALIGNMENT, state.learner.value))


@pytest.mark.parametrize("order", [2, 10, 30])
def test_the_best_aligned_peak_among_unrelated_images(order):
    delay, dt = 4.0, 0.05
    peaks = np.linspace(0.4, 1.1, 281) * delay
    weights = np.asarray(jit(CascadingTrace(order, peaks, dt).weights)(jnp.arange(20 * delay / dt)))
    best = peaks[np.argmax(weights[round(delay / dt)] / np.linalg.norm(weights, axis=0))]
    assert abs(best - learned_delay.best_peak(delay, order)) < 0.01 * delay


def test_every_way_is_started_from_every_peak():
    options = Options(delay=2.0, starts=(0.5, 2.0), order=6)
    conditions = [only for (only,) in learned_delay.conditions(options)]
    assert [(c.method, c.peak_s) for c in conditions] == [
        ("held", 2.0),
        *(("held", 1.0), ("alignment", 1.0), ("perturbation", 1.0)),
        *(("held", 4.0), ("alignment", 4.0), ("perturbation", 4.0)),
    ]
    assert {(c.trace, c.order, c.delay_s, c.error_gate) for c in conditions} == {("CET", 6, 2.0, 1e-8)}
    rules = [{name: changed(c).get(name) for name in learned.RULE[3:]} for c in (conditions[2], conditions[3])]
    assert list(rules[0].values()) == ["alignment", 10, 0.15, 4, None, None]
    assert list(rules[1].values()) == ["perturbation", 10, 0.15, 4, 10, 0.2]


def test_a_run_is_named_by_what_its_method_uses_alone():
    names = lambda **given: [changed(c) for (c,) in learned_delay.conditions(Options(**given))]  # noqa: E731
    same = lambda **given: [a == b for a, b in zip(names(), names(**given), strict=True)]  # noqa: E731
    assert same(horizon=5) == [True, True, True, False, True, True, False]
    assert same(learn_every=5) == [True, True, False, False, True, False, False]


@pytest.mark.parametrize("method", ["alignment", "perturbation"])
@pytest.mark.parametrize("start", [0.5, 2.0])
def test_a_peak_set_wrong_ends_near_the_delay(tiny, method, start):
    path = {
        int(row["step"]): float(row["value"])
        for row in rows_of(tiny)
        if (row["metric"], row["method"], float(row["peak_s"])) == ("learned_peak_s", method, start)
    }
    assert sorted(path) == list(range(0, 201, 10))
    assert path[0] == pytest.approx(start)
    assert abs(np.log(path[10] / start)) == pytest.approx(Options().step_size)
    assert abs(np.log(path[100])) < 0.5 * abs(np.log(start))  # after ten steps, the delay being 1 s
    assert 0.85 < path[200] < 1.1


def test_a_peak_that_is_held_stays(tiny):
    held = [row for row in rows_of(tiny) if (row["metric"], row["method"]) == ("learned_peak_s", "held")]
    assert {(row["peak_s"], row["step"]) for row in held} == {(p, s) for p in ("0.5", "1.0", "2.0") for s in ("200",)}
    assert all(float(row["value"]) == pytest.approx(float(row["peak_s"])) for row in held)


def test_what_is_recorded(tiny):
    rows = rows_of(tiny)
    assert len({row["run"] for row in rows}) == 7
    extra = {row["method"]: float(row["value"]) for row in rows if row["metric"] == "extra_stretches"}
    assert extra == {"held": 0, "alignment": 20 * 4, "perturbation": 20 * 28}
    assert {"test_accuracy", "train_loss", "alignment", "diverged", "wall_s"} <= {row["metric"] for row in rows}
    for name in ("png", "pdf"):
        assert (tiny / f"learned-delay.{name}").stat().st_size > 1000


def test_a_second_run_trains_nothing_and_the_figure_is_redrawn_from_the_table(tiny, tmp_path):
    table = output_of(*TINY, "--out", tiny.parent).partition("\nresults:")[0]
    assert "seed 0: " not in table
    for name in ("Peak learned for a delay of 1 s, CET(10), digits (8x8)", "held", "alignment", "perturbation"):
        assert name in table
    folder = copied(tiny, tmp_path)
    assert output_of(*TINY, "--plot-only", "--out", tmp_path).partition("\nresults:")[0] == table
    assert require_same_pictures(folder, tiny) == ["learned-delay.pdf", "learned-delay.png"]


def test_a_peak_moves_every_few_updates_whatever_is_measured_in_between(tmp_path):
    options = Options(delay=1.0, hidden=(8,), steps=30, learn_every=4, step_size=0.5, methods=("alignment",))
    conditions = [dataclasses.replace(c, learning_rate=1e-3) for (c,) in learned_delay.conditions(options)]
    conditions = [condition for condition in conditions if condition.method != "held"]
    course = learned.Course(KNOB, options, datasets.load("digits"), "test")
    table = trained(course, conditions, tmp_path, batch=2)
    rows = table.rows[table.rows["metric"] == "learned_peak_s"]
    for start, first in ((0.5, 0.5), (2.0, -0.5)):
        path = rows[rows["peak_s"] == start].sort_values("step")
        assert path["step"].tolist() == [*range(0, 29, 4), 30]
        np.testing.assert_allclose(path["value"][:2] / start, [1.0, np.exp(first)], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--delay", "0.3"), "--delay must be multiples of the 0.2 s of an image, got 0.3"),
        (("--delay", "26"), "--delay must be at most 25.4 s"),
        (("--order", "1"), "--order must be 2 to 64, got 1"),
        (("--starts", "0"), "--starts must be above 0"),
        (("--starts", "1"), "--starts must be above 0 and not 1, which is always there, got 1"),
        (("--starts", "0.5", "0.5"), "--starts must be different from each other, got 0.5 0.5"),
        (("--starts", "20"), "--starts must be small enough for peaks up to 25.4 s"),
        (("--starts", "0.05"), "--starts must be large enough for peaks above 0.1 s"),
        (("--starts",), "--starts must be at least one, got none"),
        (("--methods",), "--methods must be at least one, got none"),
        (
            ("--methods", "alignment", "alignment"),
            "--methods must be different from each other, got alignment alignment",
        ),
        (("--methods", "oracle"), "invalid choice 'oracle'"),
        (("--error-gate", "-1"), "--error-gate must be at least 0, got -1"),
        (("--learn-every", "0"), "--learn-every must be at least 1, got 0"),
        (("--learn-every", "1001"), "--learn-every must be at most --steps, 1000, got 1001"),
        (("--segments", "0"), "--segments must be at least 1, got 0"),
        (("--horizon", "0"), "--horizon must be at least 1, got 0"),
        (("--perturbation", "1"), "--perturbation must be above 0 and below 1, got 1"),
        (("--step-size", "0"), "--step-size must be above 0 and below 1, got 0"),
        (("--learning-rates", "1e-3", "1e-2"), "--learning-rates must be one: it is not chosen here"),
        (("--network", "cnn", "--dataset", "cifar10"), "--network must be mlp here, got cnn"),
        (("--plot-only",), "run the experiment first, without --plot-only"),
    ],
)
def test_a_mistake_gets_one_clear_error(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, "learned-delay", *arguments, "--out", tmp_path)
