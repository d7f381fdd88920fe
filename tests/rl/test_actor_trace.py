"""The actor's λ-trace: its definition, the chunked form, the authors' arrays."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FIRTrace
from cetsim.rl import actor_trace
from cetsim.rl.actor_trace import Arriving

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS, IN, OUT, DT, DECAY = 23, 4, 3, 0.2, 0.9
TRACES = {
    "CET": CascadingTrace(3, 0.8, DT),
    "CET, after": CascadingTrace(3, 0.8, DT, read="after"),
    "ET": ExponentialTrace(0.8, DT),
    "delay line": DelayLine(0.8, DT, max_delay=0.8),
}
EVERY_FORM = pytest.mark.parametrize("form", [actor_trace.literal, actor_trace.chunked, actor_trace.windowed])
EVERY_TRACE = pytest.mark.parametrize("name", TRACES)


def random_segment(seed=0, ends=0.2):
    rng = np.random.default_rng(seed)
    x, gain, signal = (jnp.asarray(rng.normal(size=(STEPS, size))) for size in (IN, OUT, OUT))
    alive = jnp.asarray((rng.uniform(size=STEPS) > ends) * 1.0)
    return x, gain, Arriving(signal, jnp.asarray(rng.normal(size=STEPS)), alive)


def loops(kernel, x, gain, arriving, decay=DECAY, emptied=()):
    """The definition in numpy: -Σ td e and the last e, from a table of weights by lag."""
    x, gain, signal, td, alive = (np.asarray(a) for a in (x, gain, *jax.tree.leaves(arriving)))
    eligibility, gradient, before = np.zeros((gain.shape[1], x.shape[1])), 0.0, 1.0
    for t in range(len(x)):
        first = max((step + 1 for step in emptied if step < t), default=0)
        remembered = sum(kernel[t - s] * np.outer(gain[s], x[s]) for s in range(first, t + 1))
        eligibility = decay * before * eligibility + signal[t][:, None] * remembered
        gradient, before = gradient - td[t] * eligibility, alive[t]
    return gradient, eligibility


def whole(form, trace, x, gain, arriving, cuts=(), decay=DECAY, emptied=()):
    """A segment cut into chunks, and the sum of their gradients."""
    windowed = form is actor_trace.windowed
    state, total = actor_trace.init(trace, OUT, IN), 0.0
    state = actor_trace.init_window(trace, STEPS, OUT, IN) if windowed else state
    edges = [0, *cuts, STEPS]
    for start, end in itertools.pairwise(edges):
        cut = lambda leaf: leaf[start:end]  # noqa: B023, E731
        flags = cut(jnp.isin(jnp.arange(STEPS), jnp.asarray(emptied))) if emptied else None
        rows = cut(x), cut(gain), jax.tree.map(cut, arriving), flags
        state, gradient = jax.jit(form)(trace, decay, state, *rows)
        total = total + gradient
    return state, total


@EVERY_FORM
@EVERY_TRACE
def test_it_is_the_loops(name, form):
    trace, segment = TRACES[name], random_segment()
    gradient, eligibility = loops(np.asarray(trace.weights(jnp.arange(STEPS))), *segment)
    state, found = whole(form, trace, *segment)
    np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(state.eligibility, eligibility, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cuts", [(1,), (7, 8), (4, 12, 22)])
@EVERY_TRACE
def test_cutting_time_differently_changes_nothing(name, cuts):
    segment = random_segment(1)
    state, gradient = whole(actor_trace.literal, TRACES[name], *segment)
    windowed_state, windowed = whole(actor_trace.windowed, TRACES[name], *segment, cuts)
    np.testing.assert_allclose(windowed, gradient, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(windowed_state.eligibility, state.eligibility, rtol=1e-10, atol=1e-11)
    same_state, same = whole(actor_trace.chunked, TRACES[name], *segment, cuts)
    np.testing.assert_allclose(same, gradient, rtol=1e-10, atol=1e-11)
    for left, right in zip(jax.tree.leaves(same_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cuts", [(), (6, 7, 15)])
@EVERY_FORM
@EVERY_TRACE
def test_a_cascade_that_is_emptied(name, form, cuts):
    trace, segment, emptied = TRACES[name], random_segment(5), (5, 6, 13)
    gradient, eligibility = loops(np.asarray(trace.weights(jnp.arange(STEPS))), *segment, emptied=emptied)
    state, found = whole(form, trace, *segment, cuts, emptied=emptied)
    np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(state.eligibility, eligibility, rtol=1e-10, atol=1e-11)


def test_float32_twin():
    segment = random_segment(2)
    _, expected = whole(actor_trace.literal, TRACES["CET"], *segment)
    with jax.enable_x64(False):
        trace, single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (TRACES["CET"], segment))
        _, found = whole(actor_trace.chunked, trace, *single, (5,))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@EVERY_FORM
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "float16", "bfloat16"])
def test_activity_of_every_dtype(dtype, form):
    """Exact numbers of each dtype; a segment of 300 steps, more than uint8 counts and bfloat16 tells apart."""
    rng, steps = np.random.default_rng(6), 300
    high = 2 if dtype == "bool" else 100
    x, gain = (jnp.asarray(rng.integers(0, high, (steps, size))).astype(dtype) for size in (IN, OUT))
    signal, td_error = (jnp.asarray(rng.normal(size=shape)).astype("float32") for shape in ((steps, OUT), steps))
    arriving, trace = Arriving(signal, td_error, jnp.asarray(rng.uniform(size=steps) > 0.1)), CascadingTrace(3, 8.0, DT)
    windowed, total = form is actor_trace.windowed, 0.0
    state = actor_trace.init_window(trace, steps, OUT, IN) if windowed else actor_trace.init(trace, OUT, IN)
    for part in (slice(0, 170), slice(170, steps)):
        cut = lambda leaf: leaf[part]  # noqa: B023, E731
        state, gradient = jax.jit(form)(trace, DECAY, state, cut(x), cut(gain), jax.tree.map(cut, arriving))
        total = total + gradient
    wide = [array.astype("float64") for array in (x, gain, *jax.tree.leaves(arriving))]
    expected, eligibility = loops(np.asarray(trace.weights(jnp.arange(steps))), *wide[:2], Arriving(*wide[2:]))
    np.testing.assert_allclose(total, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(state.eligibility, eligibility, rtol=1e-10, atol=1e-10 * np.abs(eligibility).max())


@EVERY_FORM
def test_a_trace_narrower_than_what_it_meets_is_refused(form):
    x, gain, arriving = random_segment()
    trace = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), TRACES["CET"])
    windowed = form is actor_trace.windowed
    state = actor_trace.init_window(trace, STEPS, OUT, IN) if windowed else actor_trace.init(trace, OUT, IN)
    with pytest.raises(ValueError, match="at least as wide as what it meets, float64, got float32"):
        form(trace, DECAY, state, x, gain, arriving)


def test_a_decay_per_synapse_in_the_literal_form():
    x, gain, arriving = random_segment(3)
    decay = jnp.asarray(np.random.default_rng(4).uniform(0.5, 1.0, (OUT, IN)))
    gradient, _ = loops(np.asarray(TRACES["CET"].weights(jnp.arange(STEPS))), x, gain, arriving, np.asarray(decay))
    _, found = whole(actor_trace.literal, TRACES["CET"], x, gain, arriving, (9,), decay)
    np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-11)


@EVERY_FORM
@pytest.mark.parametrize("index", ["0", "1", "2", "exponential"])
def test_golden_arrays(index, form):
    """The authors' actor: signal, TD error and flag late by the effective delay; float32 arrays."""
    with np.load(GOLDEN / f"actor_{index}.npz") as arrays:
        golden = {name: np.asarray(array, float) for name, array in arrays.items()}
    steps, late = len(golden["x"]), int(golden["effective_delay"])
    arrive = lambda rows: np.concatenate([np.zeros_like(rows[:late]), rows[: steps - late]])  # noqa: E731
    z = golden["x"] @ golden["weight"].T
    gain = (z > 0) * 1.0 if golden["relu"] else np.ones_like(z)
    trace = FIRTrace(golden["kernel"], dt=1.0)
    arriving = arrive(golden["output_grad"]), arrive(golden["td_error"]), 1 - arrive(golden["done"])
    decay = golden["gamma"] * golden["lam"]

    def of_one(x, gain, *arriving):
        windowed = form is actor_trace.windowed
        state = actor_trace.init_window(trace, steps, 5, 6) if windowed else actor_trace.init(trace, 5, 6)
        total, seen = 0.0, []
        for rows in (slice(0, 31), slice(31, steps)):  # the authors' trace was read after each
            state, gradient = form(
                trace, decay, state, x[rows], gain[rows], Arriving(*(each[rows] for each in arriving))
            )
            total = total + gradient
            if windowed:
                seen.append(jnp.einsum("k,ko,ki->oi", trace.weights(jnp.arange(steps))[::-1], state.gain, state.x))
            else:
                seen.append(jnp.tensordot(trace.system().output, state.stages, axes=1))
        return total, *seen

    arrays = map(jnp.asarray, (golden["x"], gain, *arriving))
    gradients, *traces = jax.jit(jax.vmap(of_one, in_axes=1))(*arrays)
    pairs = zip((gradients.sum(0), *traces), ("weight_grad", "trace_mid", "trace_last"), strict=True)
    for found, name in pairs:
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=2e-6 * np.abs(golden[name]).max(), err_msg=name)
