"""Hidden state and reservoirs: against loops in NumPy over the episodes that a plain environment plays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim.rl import environments, reservoirs
from cetsim.rl.environments import Environment, Step
from cetsim.rl.policies import Categorical

STEPS = 40


def counting() -> Environment:
    """Observations that count a walk of actions; an episode ends by itself at 5, or is broken off after 7 steps."""

    def observe(at, step):
        return jnp.array([at, jnp.sin(step * 1.0), at * step]) * 1.0

    def reset(key):
        return (jnp.zeros(()), jnp.zeros((), int)), observe(0.0, 0)

    def step(key, state, action):
        at, count = state[0] + action, state[1] + 1
        terminated, truncated = at >= 5, count >= 7
        ended = terminated | truncated
        after = jnp.where(ended, 0.0, at), jnp.where(ended, 0, count)
        return after, Step(observe(*after), jnp.ones(()), terminated, truncated, observe(at, count))

    return Environment("counting", 3, Categorical(2), reset, step)


def played(environment, actions):
    state, first = environment.reset(jax.random.key(0))

    def body(state, action):
        return environment.step(jax.random.key(0), state, action)

    after = jax.lax.scan(body, state, actions)[1]
    return np.asarray(first), jax.tree.map(np.asarray, after)


def held(reservoir, rows):
    """What a reservoir at rest holds after each row."""
    inside, among = np.asarray(reservoir.inside), np.asarray(reservoir.among)
    alpha, found = float(reservoir.integrator.decay), []
    h = v = z = np.zeros(len(inside))
    for x in rows:
        if reservoir.kind == "rate":
            h = alpha * h + (1 - alpha) * np.tanh(inside @ x + among @ h)
        else:
            v = alpha * v + (1 - alpha) * (inside @ x + among @ z) - reservoir.neuron.threshold * z
            z = (v > reservoir.neuron.threshold) * 1.0
            h = alpha * h + (1 - alpha) * z
        found.append(h)
    return np.stack(found)


@pytest.mark.parametrize("kind", ["rate", "spiking"])
def test_observations_are_what_the_reservoir_holds_of_the_episode(kind):
    seen, actions = (2, 0), jnp.asarray(np.random.default_rng(0).integers(0, 2, STEPS))
    plain = reservoirs.hidden(counting(), seen)
    reservoir = reservoirs.Reservoir(2, 6, kind, gain=2.0, key=jax.random.key(1))
    (whole_first, whole), (first, there) = played(counting(), actions), played(plain, actions)
    np.testing.assert_array_equal(there.observation, whole.observation[:, seen])
    np.testing.assert_array_equal(there.final, whole.final[:, seen])
    np.testing.assert_array_equal(first, whole_first[list(seen)])
    through_first, through = played(reservoirs.remembered(plain, reservoir), actions)
    ends = np.flatnonzero(there.terminated | there.truncated)
    assert there.terminated.any()
    assert there.truncated.any()
    begin, rows = 0, [first]
    for end in [*ends, STEPS]:
        stop = min(end, STEPS - 1)
        expected = held(reservoir, [*rows, *there.final[begin : stop + 1]])
        np.testing.assert_allclose(through.final[begin : stop + 1], expected[1:], rtol=0, atol=1e-12)
        np.testing.assert_allclose(through.observation[begin:end], expected[1 : end - begin + 1], rtol=0, atol=1e-12)
        if end < STEPS:
            rows, begin = [there.observation[end]], end + 1
            np.testing.assert_allclose(through.observation[end], held(reservoir, rows)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(through_first, held(reservoir, [first])[0], rtol=0, atol=1e-12)
    if kind == "spiking":
        assert np.abs(through.final).max() > 0.1
    np.testing.assert_array_equal(through.reward, whole.reward)


def test_a_gain_for_each_input():
    one, two = (reservoirs.Reservoir(2, 6, gain=gain, key=jax.random.key(1)).inside for gain in (1.0, (3.0, 0.5)))
    np.testing.assert_allclose(two, one * np.array([3.0, 0.5]), rtol=1e-12)


def test_wrong_use_is_refused():
    for seen in ((), (0, 3), (-1,)):
        with pytest.raises(ValueError, match="`seen` must be places"):
            reservoirs.hidden(counting(), seen)
    with pytest.raises(ValueError, match="must take 3 inputs, got 2"):
        reservoirs.remembered(counting(), reservoirs.Reservoir(2, 4, key=jax.random.key(0)))
    for options in (
        dict(kind="other"),
        dict(gain=0.0),
        dict(gain=(1.0, 2.0, 3.0)),
        dict(time_constant=0.01, dt=0.02),
        dict(time_constant=0.0),
    ):
        with pytest.raises(ValueError, match=r"kind|gain|time_constant"):
            reservoirs.Reservoir(2, 4, **options, key=jax.random.key(0))


def test_cartpole_without_velocities_learns_to_step():
    pytest.importorskip("gymnax")
    environment = reservoirs.hidden(environments.cartpole(), (0, 2))
    reservoir = reservoirs.Reservoir(2, 16, key=jax.random.key(0))
    first, after = played(reservoirs.remembered(environment, reservoir), jnp.ones(30, int))
    assert first.shape == (16,)
    assert after.terminated.any()
    assert np.all(np.isfinite(after.observation))
