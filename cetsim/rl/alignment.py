"""How far the actor's late update points along the policy gradient that comes at once."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cetsim import metrics
from cetsim.rl.a2c import ActorCriticRun, TrainState
from cetsim.rl.agent import AgentState, Learner, Rollout
from cetsim.rl.delayed_layer import LayerState
from cetsim.rl.host import HostRun, HostState
from cetsim.rl.settings import Hyperparameters, undelayed


def policy_alignment(
    run: ActorCriticRun | HostRun, state: TrainState | HostState, key: Array, rollouts: int
) -> Float[Array, " layers"]:
    """Cosine of the angle between the two updates of each layer of the actor, from the bottom up, weights held.

    Both learn from the TD errors of the same `rollouts`, starting with no past, and from none after them; as many more
    are played as the signals are late, so that all come. The late update gets TD errors centred where settings say so,
    that at once gets them as they are. The critic is left out, late or not. The rollouts go on from where the run is;
    on the host they are of a vector environment of their own, from its first episodes on, and the run's stays.
    """
    agent, learner = state.agent, run.learner
    hypers = agent.hyper, undelayed(agent.hyper)
    nothing = jax.tree.map(jnp.zeros_like, agent.params.actor)
    sides = [_Side(learner.no_past(hyper, agent.params), nothing) for hyper in hypers]
    room = max(layer.under_way.td_error.shape[1] for layer in sides[0].layers)  # steps that a signal may be late
    sent = jnp.arange(rollouts + math.ceil(room / run.settings.rollout)) < rollouts
    if isinstance(run, HostRun):
        sides = _on_host(run, agent, hypers, sides, key, sent)
    else:
        sides = _in_jax(run, state, hypers, sides, key, sent)
    weights = [[layer.weight for layer in side.total.layers if isinstance(layer, eqx.nn.Linear)] for side in sides]
    return jnp.stack([metrics.cosine(a, b) for a, b in zip(*weights, strict=True)])


class _Side(NamedTuple):
    """One of two updates on the way. **Fields:** `layers`: their states. `total`: the actor's gradient so far."""

    layers: list[LayerState]
    total: eqx.nn.Sequential


def _in_jax(run: ActorCriticRun, state: TrainState, hypers, sides: list[_Side], key: Array, sent) -> list[_Side]:
    """Both updates after rollouts that go on from the run's vector environment."""

    def go_on(carry, now):
        vector_env, sides = carry
        key, sent = now
        vector_env, rollout = run.roll_out(state.agent.params, vector_env, key)
        return (vector_env, _add(run.learner, state.agent, hypers, sides, rollout, sent)), None

    keys = jax.random.split(key, len(sent))
    return jax.lax.scan(go_on, (state.vector_env, sides), (keys, sent))[0][1]


def _on_host(run: HostRun, agent: AgentState, hypers, sides: list[_Side], key: Array, sent) -> list[_Side]:
    """Both updates after rollouts in a vector environment that is opened for them."""
    key, env_key = jax.random.split(key)
    environments, add = run.settings.environments, eqx.filter_jit(_add)
    vector_env = run.environment.open(environments)
    try:
        memory, nothing = run.learner.rest(agent.params, environments), jnp.zeros(environments)
        state = HostState(agent, vector_env, vector_env.steps, vector_env.reset(env_key), nothing, key, memory)
        for rollout_key, sends in zip(jax.random.split(key, len(sent)), sent, strict=True):
            state, rollout = run.roll_out(state, rollout_key)
            sides = add(run.learner, agent, hypers, sides, rollout, sends)
    finally:
        vector_env.close()
    return sides


def _add(
    learner: Learner,
    agent: AgentState,
    hypers: tuple[Hyperparameters, ...],
    sides: list[_Side],
    rollout: Rollout,
    sent: Bool[Array, ""],
) -> list[_Side]:
    """Both updates with what is learned in one more rollout, whose own TD errors are 0 unless `sent`."""
    td_error, _ = learner.td_errors(agent.hyper, learner.networks(agent.params).critic, rollout)
    signals = (jnp.where(sent, signal, 0) for signal in (learner.sent(agent, td_error), td_error))
    new_sides = []
    for hyper, (layers, total), signal in zip(hypers, sides, signals, strict=True):
        layers, gradient = learner.late_gradient(hyper, agent.params, layers, rollout, signal)
        new_sides.append(_Side(layers, jax.tree.map(jnp.add, total, gradient.actor)))
    return new_sides
