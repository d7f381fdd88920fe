"""The experiment hidden-state: what agents see, what is run, and its command line at a tiny size."""

import jax
import numpy as np
import pytest
from experiment import error_of, output_of
from linear_reading import told

from cetsim.rl import environments, from_gymnasium
from experiments import hidden_state
from experiments.common import tables
from experiments.common.conditions import Condition
from experiments.common.options import Orders
from experiments.common.rl import UNDELAYED
from experiments.hidden_state import PRESETS, TASKS, Course, Options

pytest.importorskip("gymnax")

TINY = (
    *("hidden-state", "--views", "positions", "rate", "spiking", "--delays", "0.4", "0.8", "--orders", "2"),
    *("--hidden", "4", "--environments", "2", "--rollout", "8", "--frames", "64", "--seeds", "1", "--episodes", "2"),
    *("--reservoir", "6"),
)


IN_JAX = [task for task in TASKS if task != "lunarlander"]


@pytest.mark.parametrize("task", IN_JAX)
def test_what_agents_see(task):
    course, whole = Course(Options(environment=task, reservoir=7), "test"), environments.from_gymnax(TASKS[task].name)
    _, observation = whole.reset(jax.random.key(3))
    seen = np.asarray(observation)[list(TASKS[task].seen)]
    views = {view: course.environment_of(Condition(view=view)) for view in hidden_state.WORDS}
    shown = {view: np.asarray(one.reset(jax.random.key(3))[1]) for view, one in views.items()}
    split = lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)])  # noqa: E731
    np.testing.assert_allclose(shown["whole"], split(np.asarray(observation)))
    np.testing.assert_allclose(shown["positions"], split(seen))
    assert shown["rate"].shape == shown["spiking"].shape == (7,)
    other = course.environment_of(Condition(view="rate", seed=1)).reset(jax.random.key(3))[1]
    assert not np.allclose(other, shown["rate"])


def test_what_agents_see_of_lunarlander():
    """The places that are no velocities, which Gymnasium names, or what a reservoir at rest makes of them."""
    pytest.importorskip("Box2D", reason="needs Box2D: pip install 'cetsim[rl]'")
    course = Course(Options(environment="lunarlander", reservoir=7), "test")
    whole = from_gymnasium(TASKS["lunarlander"].name).open(2).reset(jax.random.key(3))
    seen = {
        view: course.environment_of(Condition(view=view)).open(2).reset(jax.random.key(3))
        for view in ("whole", "positions", "rate", "spiking")
    }
    split = lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)  # noqa: E731
    np.testing.assert_allclose(seen["whole"], split(whole), atol=1e-7)
    positions = whole[:, [0, 1, 4, 6, 7]]
    np.testing.assert_allclose(seen["positions"], split(positions), atol=1e-7)
    for kind in ("rate", "spiking"):
        reservoir = course.reservoir(kind, seed=0)
        first = [np.asarray(reservoir.step(reservoir.init(), jax.numpy.asarray(row))[1]) for row in positions]
        np.testing.assert_allclose(seen[kind], first, atol=1e-5)


def test_rates_tell_lunarlanders_velocities():
    """R² of a linear reading of the preset's reservoir, under random actions, on later steps than it was fitted to."""
    pytest.importorskip("Box2D", reason="needs Box2D: pip install 'cetsim[rl]'")
    environment = from_gymnasium(TASKS["lunarlander"].name).open(8)
    reservoir = Course(Options(environment="lunarlander"), "test").reservoir("rate", seed=0)
    step = jax.jit(jax.vmap(reservoir.step))
    rest, rng, held, velocities = reservoir.init(), np.random.default_rng(0), [], []
    state = jax.tree.map(lambda leaf: jax.numpy.stack([leaf] * 8), rest)
    whole, age = environment.reset(jax.random.key(0)), np.zeros(8)
    for _ in range(500):
        state, h = step(state, whole[:, [0, 1, 4, 6, 7]])
        held.append(np.asarray(h)[age > 5])  # a reservoir at rest has seen no change
        velocities.append(whole[:, [2, 3, 5]][age > 5])
        after = environment.step(rng.integers(0, 4, 8))
        ended, whole = after.terminated | after.truncated, after.observation
        age = np.where(ended, 0, age + 1)
        state = jax.tree.map(lambda leaf, new: jax.numpy.where(ended[:, None], new, leaf), state, rest)  # noqa: B023
    found = told(np.concatenate(held), np.concatenate(velocities))
    print("horizontal, vertical and angular velocity:", found.round(2))
    assert (found > 0.8).all()


@pytest.mark.parametrize("task", IN_JAX)
def test_hidden_places_are_velocities(task):
    """They are the places whose numbers are rates of change of the others: large where these move fast."""
    whole = environments.from_gymnax(TASKS[task].name)
    state, before = whole.reset(jax.random.key(0))
    hidden = [place for place in range(whole.size) if place not in TASKS[task].seen]
    for key in jax.random.split(jax.random.key(1), 8):
        state, after = whole.step(key, state, jax.numpy.ones((), int))
        if task == "cartpole":  # x and θ go on by 0.02 s of the velocities before
            moved = (np.asarray(after.final) - np.asarray(before))[list(TASKS[task].seen)]
            np.testing.assert_allclose(moved, 0.02 * np.asarray(before)[hidden], atol=1e-6)
        else:  # cosine and sine of two angles, and their velocities, which are bounded by 4π and 9π
            pairs = np.asarray(after.final)[list(TASKS[task].seen)].reshape(2, 2)
            np.testing.assert_allclose((pairs**2).sum(axis=1), 1.0, atol=1e-6)
            assert hidden == [4, 5]
        before = after.observation


def test_every_trace_is_run_at_every_delay_in_every_view():
    options = Options(delays=(2.0, 8.0), orders=(2, 10), views=("positions", "rate"))
    found = hidden_state.conditions(options)
    kinds = {("ET", 1), ("CET", 2), ("CET", 10), ("delay line", 0)}
    late = {(c.view, c.delay_s, c.trace, c.order) for c in found if c.delay_s}
    assert late == {(view, delay, *kind) for view in options.views for delay in (2.0, 8.0) for kind in kinds}
    assert [c.view for c in found if c.delay_s == 0] == ["positions", "rate"]
    assert {(c.trace, c.order) for c in found if c.delay_s == 0} == {UNDELAYED}


@pytest.mark.parametrize("options", PRESETS.values())
def test_presets_pass_their_own_checks(options):
    options.check()


def test_command_line_trains_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Orders, "delayed_traces", property(lambda options: [("CET", order) for order in options.orders])
    )
    text = output_of(*TINY, "--out", tmp_path)
    for words in ("positions alone", "reservoir of rates", "spiking reservoir"):
        assert f"Mean return after training, {words}, CartPole-v1 without velocities, " in text
    ends = tables.finals(tables.read(tmp_path / "hidden-state" / "results.csv"), "test_return")
    assert len(ends) == 3 * (1 + 2)
    assert set(ends["view"]) == {"positions", "rate", "spiking"}
    names = {path.name for path in (tmp_path / "hidden-state").glob("*.png")}
    assert names == {"hidden-state.png", "hidden-state-curves.png"}
    again = output_of(*TINY, "--out", tmp_path, "--plot-only")
    assert again.splitlines()[-12:] == text.splitlines()[-12:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--delays", "0.3"), "--delays must be above 0 and a multiple of 0.2 s, got 0.3"),
        (("--views", "rate", "rate"), "--views must be different from each other"),
        (("--reservoir", "0"), "--reservoir must be at least 1, got 0"),
        (("--environment", "space_invaders"), "invalid choice"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys, tmp_path):
    assert message in error_of(capsys, "hidden-state", *arguments, "--out", tmp_path)
