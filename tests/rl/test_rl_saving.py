"""Policies and agents in files: what is read back is what was written, and goes on as if it had not been away."""

import jax
import numpy as np
import pytest
from networks import jit
from worlds import corridor

from cetsim import CascadingTrace, FixedDelay
from cetsim.rl import (
    ActorCriticRun,
    Hyperparameters,
    Settings,
    load_agent,
    load_policy,
    policy_of,
    save_agent,
    save_policy,
)

RUN = ActorCriticRun(corridor(), Settings(updates=9, environments=3, rollout=11, hidden=(6, 5)))
HYPER = Hyperparameters(1e-2, CascadingTrace(3, 1.0, 0.2), FixedDelay(1.0, 0.2))
STATE = RUN.init(HYPER, jax.random.key(0))


def same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_policy_does_the_same_again(tmp_path):
    policy, seen = policy_of(RUN, STATE), jax.random.normal(jax.random.key(1), (20, 3))
    save_policy(tmp_path / "policy.npz", policy)
    again = load_policy(tmp_path / "policy.npz")
    assert again.environment == "corridor"
    same(again.outputs(seen), policy.outputs(seen))
    same(again.act(seen, jax.random.key(2)), policy.act(seen, jax.random.key(2)))
    assert again.act(seen, jax.random.key(2)).shape == (20,)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.npz"]


def test_an_agent_goes_on_as_if_it_had_not_been_away(tmp_path):
    """What is under way and in the traces comes back too: the next updates are equal bit for bit."""
    advance = jit(lambda state: RUN.advance(state, 2)[0])
    state = advance(STATE)
    save_agent(tmp_path / "agent", state.agent)
    like = RUN.init(HYPER, jax.random.key(5)).agent
    agent = load_agent(tmp_path / "agent", like)
    same(agent, state.agent)
    expected, found = advance(state), advance(type(state)(agent, state.vector_env, state.episode, state.key))
    same(found.agent, expected.agent)
    assert int(found.agent.step) == 4


def test_other_files_and_other_settings_are_refused(tmp_path):
    agent, policy, junk = (tmp_path / name for name in ("agent", "policy", "junk"))
    save_agent(agent, STATE.agent)
    save_policy(policy, policy_of(RUN, STATE))
    junk.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="agent must be a file of `save_policy`, got one of agent, format 1"):
        load_policy(agent)
    with pytest.raises(ValueError, match="policy must be a file of `save_agent`, got one of policy, format 1"):
        load_agent(policy, STATE.agent)
    for load in (load_policy, lambda path: load_agent(path, STATE.agent)):
        with pytest.raises(ValueError, match=r"junk must be a file of `save_.*`, but it could not be read"):
            load(junk)
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none")
    wider = ActorCriticRun(corridor(), Settings(updates=9, environments=3, rollout=11, hidden=(7, 5)))
    deeper = ActorCriticRun(corridor(), Settings(updates=9, environments=3, rollout=11, hidden=(6, 5, 4)))
    with pytest.raises(ValueError, match=r"\.params\.actor.*weight is float64\[6, 3\], got float64\[7, 3\]"):
        load_agent(agent, wider.init(HYPER, jax.random.key(0)).agent)
    with pytest.raises(ValueError, match="got one of other parts"):
        load_agent(agent, deeper.init(HYPER, jax.random.key(0)).agent)
