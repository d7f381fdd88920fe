"""How far the actor's late update points along the policy gradient that comes at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import metrics
from cetsim.rl.a2c import ActorCriticRun, TrainState
from cetsim.rl.agent import undelayed


def policy_alignment(
    run: ActorCriticRun, state: TrainState, key: Array, rollouts: int, late: int
) -> Float[Array, " layers"]:
    """Cosine of the angle between the two updates of each layer of the actor, from the bottom up, weights held.

    Both see the same `rollouts`, starting with no past; the update by traces is summed `late` rollouts later, the delay
    in whole rollouts, when their signals come. The critic is left out, late or not.
    """
    agent, learner = state.agent, run.learner
    others = agent.hyper, undelayed(agent.hyper)
    layers = [learner.no_past(hyper, agent.params) for hyper in others]
    critic = learner.networks(agent.params).critic

    def go_on(carry, now):
        world, layers, sums = carry
        key, counted = now
        world, rollout = run.roll_out(agent.params, world, key)
        td_error, _ = learner.judge(agent.hyper, critic, rollout)
        after, grown = [], []
        for hyper, own, total, counts in zip(others, layers, sums, counted, strict=True):
            own, gradient = learner.late_gradient(hyper, agent.params, own, rollout, td_error)
            after.append(own)
            grown.append(jax.tree.map(lambda a, b, counts=counts: a + counts * b, total, gradient.actor))
        return (world, after, grown), None

    index = jnp.arange(rollouts + late)
    counted = jnp.stack([index >= late, index < rollouts], axis=1).astype(float)
    nothing = jax.tree.map(jnp.zeros_like, agent.params.actor)
    keys = jax.random.split(key, rollouts + late)
    (_, _, sums), _ = jax.lax.scan(go_on, (state.world, layers, [nothing, nothing]), (keys, counted))
    weights = [[layer.weight for layer in total.layers if isinstance(layer, eqx.nn.Linear)] for total in sums]
    return jnp.stack([metrics.cosine(a, b) for a, b in zip(*weights, strict=True)])
