"""Arrivals that vary from event to event: how they are distributed, and what is learned from them."""

import itertools

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
import scipy.stats
from networks import DT, STEPS, TRACE, affine_gradients, assert_same, gradients, half_square, mlp
from networks import segment as random_data
from test_credit import TRACES, every_evaluation, random_segment

import cetsim
from cetsim import CascadingTrace, FIRTrace, FixedDelay, RandomDelay, credit

BOTH = pytest.mark.parametrize("distribution", ["uniform", "gamma"])
LENGTH = 24
KEY = jax.random.key(7)
LATE = {
    "uniform": RandomDelay(1.0, 1.6, DT, key=KEY),  # 1 to 9 steps
    "gamma": RandomDelay(0.8, 2.0, DT, "gamma", KEY, max_delay=2.0),
}


@eqx.filter_jit
def draws(delay, size, start=0):
    """Delays in steps of the signals of steps `start`, `start` + 1, ... of the run."""
    writes = jnp.arange(size, dtype=float)
    return delay.at(start).arrivals(writes) - writes


# How they are distributed.

SHAPES = [("uniform", 4.0, 2.0), ("uniform", 1.0, 2.0), ("gamma", 4.0, 2.0), ("gamma", 1.0, 2.0), ("gamma", 0.5, 3.0)]


def in_scipy(distribution, mean, spread):
    if distribution == "uniform":
        return scipy.stats.uniform(mean - spread / 2, spread)
    shape = mean**2 / (spread**2 / 12)
    return scipy.stats.gamma(shape, scale=mean / shape)


@pytest.mark.parametrize(("distribution", "mean", "spread"), SHAPES)
@pytest.mark.parametrize("dt", [0.2, 1e-3])
def test_delays_are_distributed_as_said(distribution, mean, spread, dt):
    """Kolmogorov and Smirnov's largest distance, seen at the edges of the steps that delays are rounded to."""
    size, expected = 100_000, in_scipy(distribution, mean, spread)
    steps = np.asarray(draws(RandomDelay(mean, spread, dt, distribution, KEY), size))
    np.testing.assert_array_equal(steps, np.round(steps))
    edges = np.arange(steps.max() + 1)
    below = np.searchsorted(np.sort(steps), edges, side="right") / size
    distance = np.abs(below - expected.cdf((edges + 0.5) * dt)).max()
    assert distance < scipy.stats.kstwobign.isf(2e-9) / np.sqrt(size)  # 6σ of a normal distribution


@pytest.mark.parametrize(("distribution", "mean", "spread"), SHAPES)
def test_mean_and_standard_deviation_are_those_asked_for(distribution, mean, spread):
    size, dt = 100_000, 1e-3
    seconds = dt * np.asarray(draws(RandomDelay(mean, spread, dt, distribution, KEY), size))
    sd, kurtosis = spread / np.sqrt(12), in_scipy(distribution, mean, spread).stats("k") + 3
    assert abs(seconds.mean() - mean) < 6 * sd / np.sqrt(size)
    assert abs(seconds.std() - sd) < 6 * sd * np.sqrt((kurtosis - 1) / (4 * size))


@BOTH
def test_draws_of_different_steps_and_keys_are_independent(distribution):
    size, delay = 100_000, RandomDelay(2.0, 1.0, 1e-3, distribution)
    steps, other = draws(delay, size), draws(RandomDelay(2.0, 1.0, 1e-3, distribution, KEY), size)
    for left, right in ((steps[1:], steps[:-1]), (steps[2:], steps[:-2]), (steps, other)):
        assert abs(np.corrcoef(left, right)[0, 1]) < 6 / np.sqrt(size)


@hypothesis.given(st.floats(0.01, 30.0), st.floats(0.01, 2.0), st.booleans())
@hypothesis.settings(max_examples=50)
def test_uniform_delays_stay_within_their_bounds(mean, share, double):
    with jax.enable_x64(double):
        delay = RandomDelay(mean, share * mean, DT)
        steps = np.asarray(draws(delay, 500))
    low, high = (np.array([1 - share / 2, 1 + share / 2]) * mean) / DT
    assert steps.min() >= np.maximum(np.ceil(low - 0.501), 0)
    assert steps.max() <= np.floor(high + 0.501) == delay.max_steps


def test_bounds_are_reached_and_what_lies_halfway_has_room():
    steps = np.asarray(draws(RandomDelay(1.0, 1.6, DT), 5000))
    assert (steps.min(), steps.max()) == (1, 9)
    assert LATE["uniform"].max_steps == 9
    assert RandomDelay(1.0, 0.2, DT).max_steps == 6  # 5.5 steps
    assert RandomDelay(1.0, 0.18, DT).max_steps == 5
    assert RandomDelay(1.0, 1.6, DT, max_delay=5.0).max_steps == 25


def test_longer_draws_are_cut():
    whole, cut = RandomDelay(0.8, 2.0, DT, "gamma", KEY), LATE["gamma"]
    steps = np.asarray(draws(whole, 5000))
    assert steps.max() > 10 == cut.max_steps
    np.testing.assert_array_equal(draws(cut, 5000), np.minimum(steps, 10))
    # A traced spread, which nothing can check before, can neither outgrow the room nor make a delay negative.
    wide = jax.jit(lambda spread: draws(RandomDelay(1.0, spread, DT, max_delay=1.4), 500))(9.0)
    assert (wide.min(), wide.max()) == (0, 7)


@BOTH
@pytest.mark.parametrize("double", [True, False])
def test_without_spread_it_is_the_fixed_delay(distribution, double):
    writes = np.array([-3.0, 0.0, 2.0, 500.0])
    with jax.enable_x64(double):
        found = jax.jit(lambda mean: RandomDelay(mean, 0.0, DT, distribution).arrivals(jnp.asarray(writes, float)))
        for steps in (0, 1, 37, 1000, 9999):
            fixed = FixedDelay(steps * DT, DT)
            np.testing.assert_array_equal(found(steps * DT), fixed.arrivals(jnp.asarray(writes, float)))
            assert RandomDelay(steps * DT, 0.0, DT).max_steps == fixed.max_steps
    model, (x, target) = mlp(), random_data()
    random, fixed = (
        gradients(model, x, target, lambda m, d=delay: cetsim.attach(m, TRACE, d))
        for delay in (RandomDelay(0.6, 0.0, DT, distribution), FixedDelay(0.6, DT))
    )
    assert_same(random, fixed, 1e-13)


def test_a_spread_close_to_none_is_close_to_the_fixed_delay():
    """The gamma distribution's shape grows as spread^-2, beyond float32 at once."""
    for double, spread in itertools.product([True, False], [1e-30, 1e-12, 1e-6, 1e-5, 1e-3]):
        with jax.enable_x64(double):
            np.testing.assert_array_equal(draws(RandomDelay(10.0, spread, DT, "gamma"), 200), np.full(200, 50.0))


# Whose draw it is.


@BOTH
def test_a_draw_depends_on_the_step_in_the_run_alone(distribution):
    delay, arrivals = LATE[distribution], jax.jit(lambda delay, writes: delay.arrivals(writes))
    run, writes = np.asarray(draws(delay, 300)), np.arange(-20.0, 80.0)
    for start in (20, 150, 220):
        late = arrivals(delay.at(start), writes) - writes
        np.testing.assert_array_equal(late, run[start - 20 : start + 80])
        np.testing.assert_array_equal(arrivals(delay.at(jnp.asarray(start, jnp.int32)), writes), writes + late)
        np.testing.assert_array_equal(arrivals(delay.at(7).at(start), writes[::-1])[::-1], writes + late)
    np.testing.assert_array_equal(arrivals(delay, writes + 20) - writes - 20, run[:100])  # a run begins at step 0
    assert len(set(run)) > 5


def test_a_fixed_delay_is_the_same_everywhere():
    delay = FixedDelay(1.0, DT)
    assert delay.at(1000) is delay
    assert (delay.regular, delay.placed) == (True, True)
    random = LATE["uniform"]
    assert (random.regular, random.placed, random.at(3).placed) == (False, False, True)


def test_which_signals_arrive_within_a_segment():
    delay = LATE["uniform"].at(40)
    arrivals = np.asarray(delay.arrivals(jnp.arange(12.0)))
    np.testing.assert_array_equal(delay.arrived(12), arrivals < 12)
    assert 0 < delay.arrived(12).sum() < 12
    np.testing.assert_array_equal(RandomDelay(1.0, 1.6, DT, keep_late=True).arrived(12), np.ones(12))


# Mapped, and compiled once.


@BOTH
def test_means_spreads_and_keys_are_mapped(distribution):
    means, spreads, keys = jnp.array([0.5, 1.0, 3.0]), jnp.array([0.9, 0.0, 4.0]), jax.random.split(KEY, 3)
    model, (x, target) = mlp(), random_data()

    def learn(mean, spread, key):
        delay = RandomDelay(mean, spread, DT, distribution, key, max_delay=6.0)
        grads = eqx.filter_grad(lambda model: half_square(cetsim.attach(model, TRACE, delay), x, target))(model)
        return delay, delay.arrivals(jnp.arange(50.0)), jax.tree.leaves(grads)

    alone = eqx.filter_jit(learn)
    delays, arrivals, mapped = eqx.filter_vmap(learn)(means, spreads, keys)
    np.testing.assert_array_equal(eqx.filter_vmap(lambda delay: delay.arrivals(jnp.arange(50.0)))(delays), arrivals)
    for i, options in enumerate(zip(means, spreads, keys, strict=True)):
        _, expected, grads = alone(*options)
        np.testing.assert_array_equal(arrivals[i], expected)
        assert_same([leaf[i] for leaf in mapped], grads, 1e-12)


def test_known_numbers_are_checked_inside_a_loss_too():
    """An array that is no argument of a compiled function can be read there."""
    mean, spread, wide = jnp.asarray(0.6), jnp.asarray(0.2), jnp.asarray(1.3)
    assert jax.jit(lambda: jnp.zeros(RandomDelay(mean, spread, DT, max_delay=0.8).at(3).max_steps))().shape == (4,)
    assert jax.jit(lambda: jnp.zeros(FixedDelay(mean, DT, max_delay=0.8).max_steps))().shape == (4,)
    with pytest.raises(ValueError, match=r"`spread` must be at most 2 mean = 1.2 s"):
        jax.jit(lambda: RandomDelay(mean, wide, DT).arrivals(jnp.zeros(1)))()


@BOTH
def test_nothing_is_compiled_again(distribution):
    model, (x, target) = mlp(), random_data()
    traced = []

    @eqx.filter_jit
    def go(model, mean, spread, key, start):
        traced.append(1)
        delay = RandomDelay(mean, spread, DT, distribution, key).at(start)
        return eqx.filter_grad(lambda m: half_square(cetsim.attach(m, TRACE, delay), x, target))(model)

    found = [
        go(model, jnp.asarray(mean), jnp.asarray(spread), jax.random.key(seed), jnp.asarray(start))
        for mean, spread, seed, start in ((1.0, 0.5, 0, 0), (2.0, 0.5, 0, 0), (1.0, 2.0, 0, 0), (1.0, 2.0, 1, 0))
    ]
    found.append(go(model, jnp.asarray(1.0), jnp.asarray(2.0), jax.random.key(1), jnp.asarray(30)))
    assert len(traced) == 1
    for left, right in itertools.combinations([jax.tree.leaves(grads)[0] for grads in found], 2):
        assert np.abs(left - right).max() > 1e-3


# What is learned.


def event_by_event(trace, layer, arrivals, horizon=np.inf):
    """-Σ over events and synapses: each event's signal meets the synapse's trace as it is when that event arrives."""
    gain, signal = layer.derivative[:, 0], layer.error[:, 0]
    x = np.concatenate([layer.x[:, 0], np.ones((len(gain), 1))], axis=1)
    writes, gradient = np.arange(len(gain)), np.zeros((gain.shape[1], x.shape[1]))
    for event, arrival in enumerate(np.asarray(arrivals)):
        if arrival >= horizon:
            continue
        weights = oracles.weights(trace, arrival - writes)
        for i, j in np.ndindex(gradient.shape):
            remembered = np.sum(weights * gain[:, i] * x[:, j])
            gradient[i, j] += signal[event, i] * remembered
    return gradient[:, :-1], gradient[:, -1]


def small():
    return cetsim.nn.mlp((4, 3, 2), jnp.tanh, key=jax.random.key(0))


def factors_of(model, x, target):
    """What the synapses of a network see whose layers have tanh behind them, but for the last."""
    linear, x = model.layers[::2], np.asarray(x)
    layers = [*(oracles.dense(layer, "tanh") for layer in linear[:-1]), oracles.dense(linear[-1])]
    return oracles.backward(layers, x, oracles.forward(layers, x)[0] - np.asarray(target))[0]


@BOTH
@pytest.mark.parametrize("keep_late", [False, True])
def test_attached_layers_learn_event_by_event(distribution, keep_late):
    """Layers share their draws, unless one is given a delay of its own."""
    model, (x, target) = mlp(), random_data()
    shared, own = (RandomDelay(0.8, 1.4, DT, distribution, jax.random.key(i), keep_late=keep_late) for i in (5, 6))
    attach = lambda m: cetsim.attach(m, TRACE, shared.at(50), overrides={"layers.2": {"delay": own}})  # noqa: E731
    grads, _ = gradients(model, x, target, attach)
    arrivals = [delay.arrivals(jnp.arange(STEPS, dtype=float)) for delay in (shared.at(50), own, shared.at(50))]
    assert np.any(np.diff(arrivals[0]) < 0)  # some overtake others
    horizon = np.inf if keep_late else STEPS
    for grad, *layer in zip(affine_gradients(grads), factors_of(model, x, target), arrivals, strict=True):
        assert_same(grad, event_by_event(TRACE, *layer, horizon))


@pytest.mark.parametrize("name", TRACES)
def test_every_evaluation_agrees_on_random_arrivals(name):
    x, gain, signal = random_segment(steps=20)
    for distribution, start in (("uniform", 0), ("gamma", 60)):
        arrivals = LATE[distribution].at(start).arrivals(jnp.arange(20.0))
        assert np.any(np.diff(arrivals) < 0)
        expected = oracles.double_loop(TRACES[name], x, gain, signal, arrivals, horizon=20)
        for update in every_evaluation(TRACES[name], x, gain, signal, arrivals, horizon=20).values():
            assert_same(update, expected)


def test_a_table_of_the_trace_is_read_where_it_has_an_entry():
    """Lags of random arrivals fall outside of a short table, on both sides: there its weight is 0."""
    table, writes = FIRTrace(np.arange(1.0, 6.0), DT), jnp.arange(30.0)
    arrivals = LATE["uniform"].arrivals(writes)
    matrix = np.asarray(credit.credit_matrix(table, arrivals, writes, horizon=30))
    for r, s in np.ndindex(30, 30):
        lag = int(arrivals[r]) - s
        assert matrix[r, s] == (lag + 1 if 0 <= lag < 5 and arrivals[r] < 30 else 0)
    trace = CascadingTrace(3, 0.5, DT)
    tabulated, direct = (credit.credit_matrix(t, arrivals, writes, horizon=30) for t in (trace.tabulate(39), trace))
    np.testing.assert_allclose(tabulated, direct, rtol=1e-12, atol=1e-15)


# Streams.


TRACED = []


@eqx.filter_jit
def next_segment(model, delay, state, x, target, start):
    TRACED.append(1)
    attached = cetsim.attach(model, TRACE, delay.at(start), boundary="carry", window=LENGTH)
    _, grads, state = cetsim.streaming_value_and_grad(half_square)(attached, state, x, target)
    return cetsim.detach(grads), state


def in_segments(model, delay, x, target, cuts, start=0):
    """Sum of the updates of a stream from step `start` on, cut after each of `cuts`, and the state at its end."""
    attached = cetsim.attach(model, TRACE, delay, boundary="carry", window=LENGTH)
    state, total = cetsim.streaming_init(attached, x[0]), None
    for begin, end in itertools.pairwise([0, *cuts, len(x)]):
        origin = jnp.asarray(start + begin)
        grads, state = next_segment(model, delay, state, x[begin:end], target[begin:end], origin)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return total, state


@BOTH
def test_a_stream_is_the_same_wherever_it_is_cut(distribution):
    """And it is what single events give: those under way at its end are still pending, and none is met twice."""
    start, model, delay, (x, target) = 1000, small(), LATE[distribution], random_data(steps=LENGTH)
    whole, end = in_segments(model, delay, x, target, [], start)
    arrivals = np.asarray(delay.at(start).arrivals(jnp.arange(LENGTH, dtype=float)))
    assert np.any(np.diff(arrivals) < 0)
    assert np.any(arrivals >= LENGTH)
    loops = [event_by_event(TRACE, f, arrivals, LENGTH) for f in factors_of(model, x, target)]
    assert_same(affine_gradients(whole), loops)
    for cuts in (range(1, LENGTH), range(4, LENGTH, 4), [4, 5, 12, 13, 20], [7, 14, 18, 22, 23]):
        pieces, same_end = in_segments(model, delay, x, target, cuts, start)
        assert_same(jax.tree.leaves(pieces), jax.tree.leaves(whole), 1e-10)
        for left, right in zip(jax.tree.leaves(end), jax.tree.leaves(same_end), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-13)


@BOTH
def test_every_signal_of_a_stream_arrives_once_in_the_end(distribution):
    """Silence after the last signal lets all arrive that are under way: as if late ones were kept."""
    model, delay, (x, target) = small(), LATE[distribution], random_data(steps=LENGTH)
    x, target = (jnp.concatenate([rows[: LENGTH - 12], 0 * rows[:12]]) for rows in (x, target))
    target = target.at[LENGTH - 12 :].set(jax.vmap(model, axis_name="time")(x[LENGTH - 12 :]))  # no error
    stream, _ = in_segments(model, delay, x, target, range(4, LENGTH, 4))
    arrivals = delay.arrivals(jnp.arange(LENGTH, dtype=float))
    loops = [event_by_event(TRACE, f, arrivals) for f in factors_of(model, x, target)]
    assert_same(affine_gradients(stream), loops)


def test_mean_spread_and_key_of_a_stream_change_without_compiling_again():
    model, (x, target), compiled = small(), random_data(steps=8), []
    for mean, spread, seed in ((1.0, 1.0, 0), (1.6, 0.2, 1), (0.4, 0.0, 2)):
        delay = RandomDelay(mean, spread, DT, key=jax.random.key(seed), max_delay=2.0)
        in_segments(model, delay, x, target, [4])
        compiled.append(len(TRACED))
    assert compiled == [compiled[0]] * 3
