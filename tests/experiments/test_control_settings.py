"""Settings of control with one thing changed: each is another agent, and what is measured along the way."""

import equinox as eqx
import jax
import numpy as np
import pytest
from experiment import copied, error_of, output_of, require_same_pictures
from networks import jit
from worlds import corridor

from cetsim import rl as library
from experiments import control_settings
from experiments.common import rl

SMALL = "control-settings --changes none --bases authors --frames 2048 --hidden 4 --delays 2 --long-delays --seeds 1"


def test_every_change_is_another_agent_and_one_that_can_be():
    options = control_settings.Options(delays=(2.0,), frames=4096)
    found = control_settings.settings(options)
    agents = {changed.agent for _, _, changed in found}
    assert len(found) == len(agents) == sum(map(len, control_settings.CHANGES.values())) > 15
    assert [words for _, words, _ in found[:2]] == ["", ""]  # those without a change are trained first
    for base, words, changed in found:
        course = control_settings.Course(changed, "test", base, words)
        assert isinstance(course.settings(), library.Settings)


def test_the_authors_setting_less_one_thing_is_ours_there():
    for words, changed in control_settings.CHANGES["authors"].items():
        whole = control_settings.CHANGES["authors"][""]
        undone = [name for name in whole if changed[name] != whole[name]]
        assert len(undone) == (words != "")
        assert all(changed[name] == getattr(rl.Agent, name) for name in undone)
    setting = control_settings.CHANGES["authors"][""]
    assert setting.items() <= rl.authors("cartpole").items()


def test_signals_are_those_of_rollouts_one_after_the_other():
    run = library.ActorCriticRun(corridor(), library.Settings(updates=4, environments=3, rollout=7, hidden=(5,)))
    state = run.init(library.without_delay(1e-2), jax.random.key(0))
    key, learner, agent = jax.random.key(1), run.learner, state.agent
    errors, shares, vector_env = [], [], state.vector_env
    roll_out, gradient = jit(run.roll_out), jit(learner.gradient)
    for one in jax.random.split(key, rl.ROLLOUTS):
        vector_env, rollout = roll_out(agent.params, vector_env, one)
        errors.append(np.asarray(learner.td_errors(agent.hyper, learner.networks(agent.params).critic, rollout)[0]))
        layers, both, _ = gradient(agent, rollout)
        agent = eqx.tree_at(lambda agent: agent.layers, agent, layers)
        actor, critic = (
            sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(part)) for part in (both.actor, both.critic)
        )
        shares.append(np.sqrt(actor / (actor + critic)))
    expected = np.mean(errors) / np.sqrt(np.mean(np.square(errors)))
    found = eqx.filter_jit(control_settings.signals_of)(run, state, key)
    np.testing.assert_allclose(found[control_settings.TD_MEAN], expected, rtol=1e-9)
    np.testing.assert_allclose(found[control_settings.SHARE], np.mean(shares), rtol=1e-9)


def test_the_experiment_ends_with_a_table_and_figures(tmp_path):
    text = output_of(*SMALL.split(), "--out", tmp_path)
    for words in ("the authors'", "no delay", "2 s"):
        assert words in text
    again = copied(tmp_path / "control-settings", tmp_path / "again")
    assert "the authors'" in output_of(*SMALL.split(), "--plot-only", "--out", again.parent)
    require_same_pictures(tmp_path / "control-settings", again)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--learning-rates 1e-3 1e-2", "--learning-rates must be one rate, got (0.001, 0.01)"),
        ("--balanced 10", "--balanced must be left out: cascades alone are compared, got (10,)"),
        (
            "--contrasts 10",
            "--contrasts must be left out: cascades alone are compared, got (10,)",
        ),
    ],
)
def test_what_would_not_count_is_refused(given, message, capsys):
    assert message in error_of(capsys, *SMALL.split(), *given.split())
