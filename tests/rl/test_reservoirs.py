"""Hidden state and reservoirs: against loops in NumPy over the episodes that a plain environment plays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_reading import told

from cetsim.rl import HostRun, Settings, environments, from_gymnasium, reservoirs, without_delay
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


@pytest.mark.parametrize("kind", ["rate", "spiking", None])
def test_on_the_host_it_is_the_same(kind):
    """CartPole of Gymnasium: what is observed, in float32, against the loops over the plain environment's episodes."""
    pytest.importorskip("gymnasium")
    reservoir = None if kind is None else reservoirs.Reservoir(2, 6, kind, gain=(2.0, 9.0), key=jax.random.key(1))
    environment = from_gymnasium("CartPole-v1", wrap=reservoirs.wrapper((2, 0), reservoir), max_episode_steps=9)
    assert environment.size == (2 if kind is None else 6)
    plain, through = from_gymnasium("CartPole-v1", max_episode_steps=9).open(1), environment.open(1)
    rows = [plain.reset(jax.random.key(3))[0, [2, 0]]]
    first, ends = through.reset(jax.random.key(3))[0], 0
    expected = lambda: rows[-1] if kind is None else held(reservoir, rows)[-1]  # noqa: E731
    np.testing.assert_allclose(first, expected(), atol=1e-5)
    for action in np.random.default_rng(0).integers(0, 2, STEPS):
        whole, seen = (vector_env.step(np.asarray([action])) for vector_env in (plain, through))
        rows.append(whole.final[0, [2, 0]])
        np.testing.assert_allclose(seen.final[0], expected(), atol=1e-5)
        if whole.truncated[0]:
            rows, ends = [whole.observation[0, [2, 0]]], ends + 1
        np.testing.assert_allclose(seen.observation[0], expected(), atol=1e-5)
    assert ends > 2


def test_on_the_host_a_run_goes_on_where_it_was_saved():
    pytest.importorskip("gymnasium")
    reservoir = reservoirs.Reservoir(2, 6, gain=(2.0, 9.0), key=jax.random.key(1))
    environment = from_gymnasium("CartPole-v1", wrap=reservoirs.wrapper((0, 2), reservoir))
    run = HostRun(environment, Settings(updates=3, environments=2, rollout=13, hidden=(4,)))
    state, _ = run.advance(run.init(without_delay(1e-2), jax.random.key(0)), 1)
    tree, notes = run.save(state)
    after, _ = run.advance(state, 2)
    again, _ = run.advance(run.restore(tree, notes), 2)
    np.testing.assert_array_equal(again.observation, after.observation)
    for a, b in zip(jax.tree.leaves(again.agent.params), jax.tree.leaves(after.agent.params), strict=True):
        np.testing.assert_array_equal(a, b)


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
    pytest.importorskip("gymnasium")
    reservoir = reservoirs.Reservoir(2, 4, key=jax.random.key(0))
    for seen, message in (((0, 4), "places from 0 to 3"), ((0, 1, 2), "must take 3 inputs, got 2")):
        with pytest.raises(ValueError, match=message):
            from_gymnasium("CartPole-v1", wrap=reservoirs.wrapper(seen, reservoir))


def test_cartpole_without_velocities_learns_to_step():
    pytest.importorskip("gymnax")
    environment = reservoirs.hidden(environments.cartpole(), (0, 2))
    reservoir = reservoirs.Reservoir(2, 16, key=jax.random.key(0))
    first, after = played(reservoirs.remembered(environment, reservoir), jnp.ones(30, int))
    assert first.shape == (16,)
    assert after.terminated.any()
    assert np.all(np.isfinite(after.observation))


def test_velocities_can_be_read_from_rates_and_not_from_spikes():
    """R² of the state on held-out steps of a pole that is kept up, by a linear reading of what 128 neurons hold."""
    pytest.importorskip("gymnax")
    environment, units = environments.cartpole(), np.array([2.4, 0.2])

    def body(now, key):
        state, observation = now
        noise, push, own = jax.random.split(key, 3)
        action = (observation @ jnp.asarray([0.02, 0.05, 1.0, 0.5]) > 0).astype(int)
        action = jnp.where(jax.random.uniform(noise) < 0.3, jax.random.randint(push, (), 0, 2), action)
        state, after = environment.step(own, state, action)
        return (state, after.observation), (after.final, after.terminated | after.truncated)

    _, (seen, ended) = jax.lax.scan(
        body, environment.reset(jax.random.key(0)), jax.random.split(jax.random.key(2), 4000)
    )

    def read(kind):
        reservoir = reservoirs.Reservoir(2, 128, kind, time_constant=0.2, dt=0.2, gain=1 / units, key=jax.random.key(1))

        def step(memory, now):
            memory, h = reservoir.step(memory, now[0])
            return jax.tree.map(lambda new, old: jnp.where(now[1], new, old), reservoir.init(), memory), h

        return told(jax.lax.scan(step, reservoir.init(), (seen[:, [0, 2]], ended))[1], seen)

    rate, spiking = read("rate"), read("spiking")
    print("x, its velocity, angle, its velocity:", rate.round(2), spiking.round(2))
    assert min(*rate[[0, 2]], *spiking[[0, 2]]) > 0.95
    assert rate[1] > 0.6 > 0.2 > spiking[[1, 3]].max()
