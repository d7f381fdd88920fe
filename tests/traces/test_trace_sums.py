"""Weighted sums of traces, and they, balanced readouts and Legendre states in every evaluation of the rule."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from kernel_oracles import DT, cascade, exponential, filtered, respond, weights
from networks import affine_gradients, assert_same, gradients, half_square, mlp, segment

import cetsim
from cetsim import (
    CascadingTrace,
    DelayLine,
    Events,
    ExponentialTrace,
    FIRTrace,
    FixedDelay,
    LegendreTrace,
    SumTrace,
    credit,
)
from cetsim.rl import actor_trace

LAGS = np.arange(60)
CET, ET, LINE = CascadingTrace(4, 5 * DT, DT), ExponentialTrace(5 * DT, DT), DelayLine(3 * DT, DT, max_delay=3 * DT)
LTP_LTD = CET - ET  # the classic pair
MIXED = 2.0 * CET - 0.5 * LINE + ET / 4  # of which the delay line alone is read after a step's input
KINDS = {
    "LTP and LTD": LTP_LTD,
    "mixed reads": MIXED,
    "balanced": CascadingTrace(5, 4 * DT, DT, readout="balanced"),
    "readout": CascadingTrace(3, 4 * DT, DT, "after", readout=[1.0, -3.0, 3.0]),
    "Legendre": LegendreTrace(4, 4 * DT, DT, "after", readout="balanced"),
}
each_kind = pytest.mark.parametrize("name", KINDS)


def expected(lags=LAGS):
    cet, et = cascade(lags, 4, 5, "before"), exponential(lags, 5.0, "before")
    return {"LTP and LTD": cet - et, "mixed reads": 2 * cet - 0.5 * (lags == 3) + et / 4}


# A vector space


@pytest.mark.parametrize("name", ["LTP and LTD", "mixed reads"])
def test_weights_and_steps(name):
    e = np.random.default_rng(1).normal(size=(60, 2))
    np.testing.assert_allclose(weights(KINDS[name], LAGS), expected()[name], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(respond(KINDS[name], e), filtered(expected()[name], e), atol=1e-12)


@each_kind
def test_the_state_space_is_the_same_filter(name):
    trace, system = KINDS[name], KINDS[name].system()
    state, found = np.zeros(len(system.input)), []
    for lag in LAGS:
        after = state + np.asarray(system.increment) @ state + np.asarray(system.input) * (lag == 0)
        found.append(np.asarray(system.output) @ (state if trace.read == "before" else after))
        state = after
    np.testing.assert_allclose(found, trace.weights(LAGS), atol=1e-12)


def test_it_is_a_vector_space():
    one, two = CET.weights(LAGS), ET.weights(LAGS)
    for found, wanted in (
        (CET * 2.0, 2 * one),
        (-CET, -one),
        (np.float64(3) * CET - jnp.float64(2) * ET, 3 * one - 2 * two),
        (2 * (CET + ET) - (CET - ET) / 2, 1.5 * one + 2.5 * two),
        (sum([CET, ET, CET]), 2 * one + two),
        (CET - CET, 0 * one),
    ):
        np.testing.assert_allclose(found.weights(LAGS), wanted, rtol=1e-12, atol=1e-15)
        assert all(not isinstance(part, SumTrace) for part in found.parts)
    assert (CET - CET).window() == 1


def test_one_kernel_per_post_neuron():
    """Amounts or a part may differ from neuron to neuron, where the other parts are shared."""
    rates = np.array([1.0, 2.0, 3.0])
    trace = np.array([1.0, -2.0, 0.5]) * CET + ExponentialTrace(rates, DT) - LINE
    each = [a * CET.weights(LAGS) + ExponentialTrace(r, DT).weights(LAGS) - (LAGS == 3)
            for a, r in zip((1.0, -2.0, 0.5), rates, strict=True)]  # fmt: skip
    assert trace.shape == (3,)
    np.testing.assert_allclose(trace.weights(LAGS), np.stack(each, axis=-1), rtol=1e-12, atol=1e-15)
    e = np.random.default_rng(2).normal(size=(30, 3, 2))
    np.testing.assert_allclose(respond(trace, e), filtered(np.stack(each, axis=-1)[:30], e), atol=1e-12)


def test_float32_states_are_compensated_part_by_part():
    with jax.enable_x64(False):
        trace = (
            2.0 * CascadingTrace(4, 5 * DT, DT)
            - 0.5 * DelayLine(3 * DT, DT, max_delay=3 * DT)
            + ExponentialTrace(5 * DT, DT) / 4
        )
        assert trace.init((2,)).shape[0] == 2 * 4 + 1 + 4 + 2 + 1
        e = np.random.default_rng(3).normal(size=(60, 2)).astype(np.float32)
        found = respond(trace, e)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, filtered(expected()["mixed reads"], e), atol=2e-6)


def test_amounts_are_differentiable_and_mapped():
    slope = jax.grad(lambda a: (a * CET - ET).weights(5))(2.0)
    np.testing.assert_allclose(slope, CET.weights(5), rtol=1e-12)
    found = jax.vmap(lambda a: (a * CET - ET).weights(LAGS))(np.array([0.0, 2.0]))
    np.testing.assert_allclose(found, [-ET.weights(LAGS), (2 * CET - ET).weights(LAGS)], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("tail", [1e-6, 1e-3])
@each_kind
def test_windows_are_by_the_absolute_weights(name, tail):
    size = np.abs(np.asarray(KINDS[name].weights(np.arange(3000))))
    shortest = int(np.argmax(np.cumsum(size[::-1])[::-1] <= tail * size.sum()))
    assert abs(KINDS[name].window(tail) - shortest) <= 1


def test_windows_where_parts_all_but_cancel():
    trace = ExponentialTrace(10 * DT, DT) - ExponentialTrace(10.001 * DT, DT)
    size = np.abs(np.asarray(trace.weights(np.arange(3000))))
    beyond = np.cumsum(size[::-1])[::-1] / size.sum()
    assert abs(trace.window() - int(np.argmax(beyond <= 1e-6))) <= 1


def test_how_it_is_shown():
    assert repr(MIXED) == f"2.0 * {CET!r} - 0.5 * {LINE!r} + 0.25 * {ET!r}"
    assert repr(-CET) == f"-{CET!r}"
    model = cetsim.attach(mlp(), LTP_LTD, FixedDelay(1.0, DT))
    assert cetsim.summary(model)[0].trace == "CascadingTrace(4) - ExponentialTrace"
    assert f"{LTP_LTD!r}" in repr(model)


def test_saved_with_a_model_and_loaded_into_the_same_only():
    late, file = FixedDelay(1.0, DT), io.BytesIO()
    for name, trace in KINDS.items():
        file = io.BytesIO()
        cetsim.save(file, cetsim.attach(mlp(), trace, late))
        file.seek(0)
        loaded = cetsim.load(file, cetsim.attach(mlp(seed=1), trace, late))
        assert eqx.tree_equal(cetsim.detach(loaded), mlp()), name
    for changed, message in (
        (KINDS["Legendre"] * 2.0, "`trace.kind` is 'LegendreTrace' in the file and 'SumTrace' in"),
        (LegendreTrace(4, 4 * DT, DT, "after", readout="balanced", rho=1.0), "`trace.rho` is 10.0 in the file and 1.0"),
    ):
        file.seek(0)
        with pytest.raises(ValueError, match=message):
            cetsim.load(file, cetsim.attach(mlp(), changed, late))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CET + 1.0, TypeError, "unsupported operand"),
        (lambda: 1 + CET, TypeError, "unsupported operand"),
        (lambda: CET * ET, TypeError, "unsupported operand"),
        (lambda: np.nan * CET, ValueError, "`amount` must be finite, got nan"),
        (lambda: CET * "two", ValueError, "`amount` must be a number"),
        (lambda: CET + CascadingTrace(4, 1.0, 0.1), ValueError, "traces that are added must have one dt, got 0.2 s"),
        (lambda: ExponentialTrace([1.0, 2.0]) + ExponentialTrace([1.0, 2.0, 3.0]), ValueError, "shape"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# In every evaluation of the rule


def random_segment(steps=23, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(steps, size))) for size in (4, 3, 3)]


@each_kind
def test_every_evaluation_is_the_double_loop(name):
    trace, (x, gain, signal), arrivals = KINDS[name], random_segment(), np.arange(23) + 4
    wanted = oracles.double_loop(trace, x, gain, signal, arrivals, horizon=23)
    for evaluate, options in ((credit.adjoint, {}), (credit.literal, {}), (credit.chunked, {"chunk": 5})):
        run = jax.jit(lambda trace, *rows, evaluate=evaluate, options=options: evaluate(
            trace, *rows, horizon=23, **options))  # fmt: skip
        for one, other in zip(run(trace, x, gain, signal, arrivals), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@each_kind
def test_the_actors_traces(name):
    trace, (x, gain, signal) = KINDS[name], random_segment(12)
    rng = np.random.default_rng(4)
    alive = jnp.asarray((rng.uniform(size=12) > 0.2) * 1.0)
    arriving = actor_trace.Arriving(signal, jnp.asarray(rng.normal(size=12)), alive)
    state, windowed = actor_trace.init(trace, 3, 4), actor_trace.init_window(trace, 12, 3, 4)
    run = jax.jit(lambda form, *rows: form(trace, 0.9, *rows), static_argnums=0)
    _, wanted = run(actor_trace.literal, state, x, gain, arriving)
    for form, start in ((actor_trace.chunked, state), (actor_trace.windowed, windowed)):
        np.testing.assert_allclose(run(form, start, x, gain, arriving)[1], wanted, atol=1e-11)


@each_kind
def test_attached_in_a_segment_of_events_and_in_a_stream(name):
    """A segment at once, as events at all its steps, and as a stream cut in two."""
    trace, late, (x, target) = KINDS[name], FixedDelay(3 * DT, DT), segment(steps=12)
    attach = lambda **options: lambda model: cetsim.attach(model, trace, late, **options)  # noqa: E731
    whole = affine_gradients(gradients(mlp(), x, target, attach())[0])
    events = affine_gradients(gradients(mlp(), x, target, attach(events=Events(np.arange(12), 12)))[0])
    assert_same(jax.tree.leaves(events), jax.tree.leaves(whole), 1e-11)
    model = attach(boundary="carry", window=12)(mlp())
    run = eqx.filter_jit(lambda *a: cetsim.streaming_value_and_grad(half_square)(*a))
    _, first, state = run(model, cetsim.streaming_init(model, x[0]), x[:6], target[:6])
    _, second, _ = run(model, state, x[6:], target[6:])
    pieces = affine_gradients(cetsim.detach(jax.tree.map(jnp.add, first, second)))
    assert_same(jax.tree.leaves(pieces), jax.tree.leaves(whole), 1e-11)


def test_tabulated_they_are_their_weights():
    for trace in KINDS.values():
        table = trace.tabulate(20)
        assert isinstance(table, FIRTrace)
        np.testing.assert_allclose(table.weights(np.arange(20)), trace.weights(np.arange(20)), rtol=1e-12, atol=1e-15)
