"""Streams: time goes on from segment to segment, wherever it is cut, and nothing under way is lost."""

import itertools

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import (
    DELAY,
    DT,
    FORMS,
    GATES,
    NETWORKS,
    TRACE,
    affine_gradients,
    assert_same,
    default,
    gradients,
    half_square,
    jit,
    mlp,
    mlp_oracle,
    segment,
    simulate,
)

import cetsim
from cetsim import CascadingTrace, DelayLine, FixedDelay, streams

LENGTH = 24
LATE = FixedDelay(1.4, DT)  # 7 steps, longer than most segments below


@jit
def next_segment(model, state, x, target):
    return cetsim.streaming_value_and_grad(half_square)(model, state, x, target)


def in_segments(model, x, target, cuts):
    """Sum of the updates of a stream cut after each of `cuts`, weights held, and the state at its end."""
    state, total, edges = cetsim.streaming_init(model, x[0]), None, [0, *sorted(set(cuts)), len(x)]
    for start, end in itertools.pairwise(edges):
        _, grads, state = next_segment(model, state, x[start:end], target[start:end])
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return cetsim.detach(total), state


def carry(model, trace=TRACE, delay=LATE, **options):
    return cetsim.attach(model, trace, delay, boundary="carry", **options)


def cuts_of(pieces):
    """Where pieces of 1, 3 or 8 steps end, those given and then long ones: each length takes a program of its own."""
    ends = [0]
    for piece in (*pieces, 8, 8, 8, 3, 3, 1, 1):
        if ends[-1] + piece <= LENGTH:
            ends.append(ends[-1] + piece)
    assert ends[-1] == LENGTH
    return ends[1:-1]


@hypothesis.settings(max_examples=6)
@hypothesis.given(st.lists(st.sampled_from((1, 3, 8)), min_size=1, max_size=12))
def test_a_stream_is_the_same_wherever_it_is_cut(pieces):
    cuts, (x, target) = cuts_of(pieces), segment(steps=LENGTH)
    model = carry(mlp(), window=LENGTH)
    whole, end = in_segments(model, x, target, [])
    pieces, same_end = in_segments(model, x, target, cuts)
    assert_same(jax.tree.leaves(pieces), jax.tree.leaves(whole), 1e-12)
    for left, right in zip(jax.tree.leaves(end), jax.tree.leaves(same_end), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-13)


@FORMS
@pytest.mark.parametrize("network", NETWORKS)
def test_a_cut_stream_is_what_the_loops_give_for_the_whole(network, form):
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make("relu"), segment(shape, LENGTH)
    gate = GATES[network]
    summed, _ = in_segments(carry(model, form=form, error_gate=gate, window=LENGTH), x, target, [3, 4, 7, 8, 16])
    layers = oracle(model, "relu")
    expected, _ = simulate(layers, x, target, TRACE, delay_steps=7, form=form, error_gate=gate)
    assert_same(affine_gradients(summed), expected)


@pytest.mark.parametrize("trace", [TRACE, DelayLine(1.4, DT)], ids=["cascade", "delay line"])
def test_one_segment_from_nothing_is_the_reset_mode(trace):
    model, (x, target) = mlp(), segment(steps=LENGTH)
    streamed, _ = in_segments(carry(model, trace), x, target, [])
    reset, _ = gradients(model, x, target, lambda m: cetsim.attach(m, trace, LATE))
    assert_same(jax.tree.leaves(streamed), jax.tree.leaves(reset), 1e-12)


LONG = segment(steps=360)


@pytest.mark.parametrize(("trace", "delay"), [(TRACE, 0.0), (DelayLine(0.6, DT), 3.0)], ids=["cascade", "delay line"])
def test_a_long_segment_meets_only_the_signals_near_each_write(trace, delay, monkeypatch):
    """Products are of blocks, and the update is that of the loops over the whole stream."""
    (x, target), cuts, met, whole = LONG, [30, 50], [], streams.remember

    def noted(matrix, signal):
        met.append(matrix.shape[0])
        return whole(matrix, signal)

    monkeypatch.setattr(streams, "remember", noted)
    late, model = FixedDelay(delay, DT), mlp()
    summed, _ = in_segments(carry(model, trace, late, window=60), x, target, cuts)
    assert max(met) < 200 < len(x) - cuts[-1]
    expected, _ = simulate(mlp_oracle(model), x, target, trace, delay_steps=int(late.steps))
    assert_same(affine_gradients(summed), expected)


def test_a_long_segment_with_a_traced_delay():
    """Which signals are near is known only while the program runs."""
    (x, target), model = LONG, mlp()

    @jit
    def gradient(seconds, state):
        late = FixedDelay(seconds, DT, max_delay=9.0)
        return cetsim.streaming_value_and_grad(half_square)(carry(model, TRACE, late), state, x, target)[1]

    state = cetsim.streaming_init(carry(model, TRACE, FixedDelay(3.0, DT, max_delay=9.0)), x[0])
    expected, _ = simulate(mlp_oracle(model), x, target, TRACE, delay_steps=15)
    assert_same(affine_gradients(cetsim.detach(gradient(jnp.asarray(3.0), state))), expected)


SHORT = {
    "cascade": TRACE,
    "balanced": CascadingTrace(10, 1.0, DT, readout="balanced"),
    "of a neuron each": CascadingTrace(3, jnp.array([0.4, 0.8]), DT),
    "exponential": cetsim.ExponentialTrace(0.3, DT),
    "Legendre": cetsim.LegendreTrace(4, 1.0, DT),
    "difference": 2.0 * TRACE - cetsim.ExponentialTrace(0.3, DT),
    "taps": cetsim.FIRTrace(jnp.array([0.0, 1.0, -0.5, 0.2]), DT),
}


@pytest.mark.parametrize("trace", SHORT.values(), ids=SHORT)
def test_what_is_left_out_of_a_long_segment_is_rounding(trace, monkeypatch):
    """Of every kind of kernel, the product of blocks against that of all signals with all writes."""
    steps, delay, window, met, whole = 900, 10, 60, [], streams.remember
    monkeypatch.setattr(streams, "remember", lambda *given: met.append(given[0].shape[0]) or whole(*given))
    sent, written = jnp.arange(-delay, steps), jnp.arange(-window, steps)
    matrix = cetsim.credit.credit_matrix(trace, sent + delay, written, horizon=steps, regular=True)
    signals = jnp.asarray(np.random.default_rng(0).normal(size=(len(sent), 2)))
    gain = jnp.asarray(np.random.default_rng(1).normal(size=(len(written), 2)))
    found = streams._earned(trace, matrix, signals, gain, lambda rows: rows, -window)
    assert max(met) < len(sent)
    expected = gain * whole(matrix, signals)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_learning_at_every_step_is_a_literal_online_simulation():
    """Weights change at each step; each past factor and each signal under way keeps the weights of its own time."""
    model, (x, target) = mlp(), segment(steps=LENGTH)
    rate, attach = 0.3, lambda m: carry(m, delay=DELAY, window=LENGTH)
    state = cetsim.streaming_init(attach(model), x[0])
    online = [oracles.OnlineLayer(TRACE, 3, "activation") for _ in range(3)]
    layers = mlp_oracle(model)
    for t in range(LENGTH):
        _, grads, state = next_segment(attach(model), state, x[t : t + 1], target[t : t + 1])
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -rate * g, cetsim.detach(grads)))
        now, goal = np.asarray(x[t : t + 1]), np.asarray(target[t : t + 1])
        output, _ = oracles.forward(layers, now)
        factors, _ = oracles.backward(layers, now, output - goal)
        for i, (life, seen) in enumerate(zip(online, factors, strict=True)):
            step = rate * life.step(seen)
            layers[i] = layers[i]._replace(weight=layers[i].weight - step[:, :-1], bias=layers[i].bias - step[:, -1])
    start = mlp()
    for i in range(3):
        assert np.abs(layers[i].weight - start.layers[2 * i].weight).max() > 1e-3
        np.testing.assert_allclose(model.layers[2 * i].weight, layers[i].weight, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(model.layers[2 * i].bias, layers[i].bias, rtol=1e-9, atol=1e-11)


def test_what_lies_beyond_the_window_is_below_its_tail():
    """The difference is bounded by the tail's mass times Σ|L| max|e| (design, §3)."""
    trace, (x, target) = CascadingTrace(3, 1.0, DT), segment(steps=60)
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 2, key=jax.random.key(0))])
    exact, _ = in_segments(carry(model, trace, window=60), x, target, range(0, 60, 5))
    error = np.abs(jax.vmap(model, axis_name="time")(x) - target)
    bound = np.sum(error, axis=0)[:, None] * np.abs(x).max()
    for tail in (1e-1, 1e-3, 1e-6):
        window = trace.window(tail)
        assert window < 60
        cut, _ = in_segments(carry(model, trace, window=window), x, target, range(0, 60, 5))
        difference = np.abs(cut.layers[0].weight - exact.layers[0].weight)
        assert np.all(difference <= tail * bound + 1e-12)
    default_window, _ = in_segments(carry(model, trace), x, target, range(0, 60, 5))
    np.testing.assert_array_equal(default_window.layers[0].weight, cut.layers[0].weight)


def test_independent_streams_are_mapped_outside():
    model = carry(mlp(), window=10)
    xs, targets = (jnp.stack(arrays) for arrays in zip(*(segment(seed=seed) for seed in (1, 2)), strict=True))
    states = [cetsim.streaming_init(model, xs[0, 0])] * 2
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    one = lambda state, x, target: cetsim.streaming_value_and_grad(half_square)(model, state, x, target)[::2]  # noqa: E731
    values, after = eqx.filter_vmap(one)(stacked, xs, targets)
    for i in range(2):
        value, _, state = next_segment(model, states[i], xs[i], targets[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-12)
        for left, right in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(left[i], right, atol=1e-13)


def test_a_delay_below_the_largest_changes_without_compiling_again():
    model, (x, target) = mlp(), segment(steps=LENGTH)
    state = cetsim.streaming_init(carry(model, delay=FixedDelay(0.2, DT, max_delay=1.4), window=30), x[0])
    traced = []

    @eqx.filter_jit
    def go(model, state, seconds):
        traced.append(1)
        attached = carry(model, CascadingTrace(3, seconds, DT), FixedDelay(seconds, DT, max_delay=1.4), window=30)
        return cetsim.detach(cetsim.streaming_value_and_grad(half_square)(attached, state, x, target)[1])

    for seconds in (0.4, 1.4):
        found = go(model, state, jnp.asarray(seconds))
        reset = lambda m, s=seconds: cetsim.attach(m, CascadingTrace(3, s, DT), FixedDelay(s, DT))  # noqa: E731
        assert_same(jax.tree.leaves(found), jax.tree.leaves(gradients(model, x, target, reset)[0]))
    assert len(traced) == 1


def test_what_is_refused():
    model, (x, target) = mlp(), segment()
    attached = carry(model, window=10)
    state = cetsim.streaming_init(attached, x[0])
    with pytest.raises(ValueError, match="runs inside `streaming_value_and_grad`"):
        jax.vmap(attached, axis_name="time")(x)
    with pytest.raises(ValueError, match=r"the state must have the layers \['layers.0'.*got \['layers.0'\]"):
        next_segment(attached, {"layers.0": state["layers.0"]}, x, target)
    with pytest.raises(ValueError, match="attached with boundary='reset': nothing is carried"):
        cetsim.streaming_init(default(model), x[0])
    with pytest.raises(ValueError, match="a stream that is carried loses no signal"):
        carry(model, delay=FixedDelay(1.0, DT, keep_late=True))
    with pytest.raises(ValueError, match="the window of a trace with traced parameters is unknown"):
        jax.jit(lambda s: carry(model, CascadingTrace(3, s, DT)) and 0)(1.0)
