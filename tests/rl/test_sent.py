"""TD errors that the actor is sent, and those that are held back while the critic does not know what to expect."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from worlds import corridor

from cetsim import DelayLine, FixedDelay
from cetsim.rl import ActorCriticRun, Hyperparameters, Settings

HYPER = Hyperparameters(1e-2, DelayLine(0.0, 0.2, 0.0), FixedDelay(0.0, 0.2), entropy=0.0)
KEY = jax.random.key(0)


def run_of(**options):
    return ActorCriticRun(corridor(), Settings(updates=4, environments=3, rollout=11, hidden=(6, 5), **options))


@pytest.mark.parametrize("center", [None, 0.8])
@pytest.mark.parametrize("late", [False, True])
def test_a_rollout_whose_td_errors_are_not_centred_is_held_back(center, late):
    """Its mean, over its root mean square, is above the share or below: nothing is sent, or what is sent without it."""
    free = run_of(center_td=center, late_critic=late)
    state = free.init(HYPER, KEY)
    rollout = jit(lambda: free.roll_out(state.agent.params, state.vector_env, KEY)[1])()
    learner, agent = free.learner, state.agent
    td_error, _ = learner.td_errors(agent.hyper, learner.networks(agent.params).critic, rollout)
    share = abs(float(td_error.mean())) / float(jnp.sqrt(jnp.mean(td_error**2)))
    assert 0.01 < share < 0.99
    for hold, is_held in ((0.98 * share, True), (1.02 * share, False)):
        held = run_of(center_td=center, late_critic=late, hold_actor=hold).learner
        _, found, _ = jit(held.gradient)(agent, rollout)
        _, wanted, _ = jit(learner.gradient)(agent, rollout)
        if is_held:
            assert np.all(held.sent(agent, td_error) == 0)
            assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found.actor))
        else:
            np.testing.assert_array_equal(held.sent(agent, td_error), learner.sent(agent, td_error))
            assert eqx.tree_equal(found.actor, wanted.actor, rtol=1e-12, atol=1e-12)
            assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(found.actor))
        assert eqx.tree_equal(found.critic, wanted.critic, rtol=1e-12, atol=1e-12)  # it never waits


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_is_held_back_does_not_depend_on_the_unit_of_rewards(share):
    learner = run_of(hold_actor=share).learner
    agent = run_of().init(HYPER, KEY).agent
    td_error = jax.random.normal(KEY, (11, 3)) + 0.7
    for unit in (1e-3, 1e3):
        np.testing.assert_allclose(
            learner.sent(agent, unit * td_error), unit * learner.sent(agent, td_error), rtol=1e-10
        )
    relative = abs(float(td_error.mean())) / float(jnp.sqrt(jnp.mean(td_error**2)))
    assert np.any(learner.sent(agent, td_error) != 0) == (relative <= share)
