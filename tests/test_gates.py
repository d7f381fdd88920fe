"""Gates that choose events: how many, which, when, and from what they know."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim.gates import NoGate, QuantileGate, RandomGate, RunningGate, ThresholdGate

STEPS, KEY = 160, jax.random.key(3)
LOSS = np.random.default_rng(0).gamma(0.3, 1.0, STEPS)
GATES = {
    "quantile": QuantileGate(0.05),
    "random": RandomGate(0.05),
    "threshold": ThresholdGate(1.0, room=0.2),
    "running": RunningGate(0.05),
    "none": NoGate(),
}
EVERY_GATE = pytest.mark.parametrize("name", GATES)


def select(gate, loss=LOSS, state=None, key=KEY):
    state = gate.init() if state is None else state
    return jax.jit(type(gate).select)(gate, jnp.asarray(loss), state, key)


def chosen(selection):
    """Steps of the images chosen."""
    return np.asarray(selection.rows)[np.asarray(selection.events.happened)]


@EVERY_GATE
def test_events_happen_when_their_images_are_shown(name):
    gate = GATES[name]
    (rows, events, _), _ = select(gate)
    assert events.steps == STEPS
    assert rows.shape == events.times.shape == (gate.places(STEPS),)
    happened = np.asarray(events.happened)
    np.testing.assert_array_equal(events.times[happened], rows[happened])
    assert np.all(np.diff(rows[happened]) > 0)
    assert happened.any()


@EVERY_GATE
def test_random_placement_keeps_the_order_and_not_the_times(name):
    fields = {key: value for key, value in vars(GATES[name]).items() if key != "placement"}
    gate = type(GATES[name])(**fields, placement="random")
    (rows, events, _), _ = select(gate)
    (same_rows, _, _), _ = select(GATES[name])
    np.testing.assert_array_equal(rows, same_rows)
    times = np.asarray(events.times)[np.asarray(events.happened)]
    assert np.all(np.diff(times) > 0)
    assert times[0] >= 0
    assert times[-1] < STEPS
    if name != "none":  # where all steps are events there is nothing to draw
        assert not np.array_equal(times, chosen(select(gate)[0]))
        other = select(gate, key=jax.random.key(4))[0]
        assert not np.array_equal(other.events.times, events.times)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.floats(0, 10, width=32), min_size=STEPS, max_size=STEPS))
def test_the_quantile_gate_lets_the_largest_losses_through(losses):
    losses = np.asarray(losses)
    selection, _ = select(QuantileGate(0.05), losses)
    kept = chosen(selection)
    assert len(kept) == 8
    assert losses[kept].min() >= np.delete(losses, kept).max()
    assert selection.missed == 0


def test_a_threshold_lets_through_what_is_above_it_and_counts_what_has_no_place():
    salient = np.flatnonzero(LOSS > 1.0)
    np.testing.assert_array_equal(chosen(select(GATES["threshold"])[0]), salient)
    few = ThresholdGate(1.0, room=3 / STEPS)
    selection, _ = select(few)
    np.testing.assert_array_equal(chosen(selection), salient[:3])
    assert selection.missed == len(salient) - 3
    none, _ = select(ThresholdGate(100.0))
    assert not none.events.happened.any()
    assert none.missed == 0


def test_a_random_gate_does_not_look_at_the_loss():
    first, other = (chosen(select(RandomGate(0.05), loss)[0]) for loss in (LOSS, LOSS[::-1]))
    np.testing.assert_array_equal(first, other)
    counts = np.zeros(STEPS)
    for seed in range(40):
        counts[chosen(select(RandomGate(0.25), key=jax.random.key(seed))[0])] += 1
    # Each step is drawn with odds of a quarter: binomial, sd 2.7.
    assert counts.sum() == 40 * STEPS / 4
    assert np.abs(counts - 10).max() < 6 * 2.74


def literal_running(gate, losses):
    """The recursion step by step, in numpy."""
    log_threshold, above = float(np.log(gate.start)), []
    for loss in losses:
        above.append(loss > np.exp(log_threshold))
        log_threshold += float(gate.rate) * (above[-1] - gate.fraction)
    return np.flatnonzero(above), log_threshold


def test_the_running_threshold_is_its_recursion():
    gate = RunningGate(0.05, rate=0.2, start=0.5, room=1.0)
    salient, log_threshold = literal_running(gate, LOSS)
    selection, state = select(gate)
    np.testing.assert_array_equal(chosen(selection), salient)
    np.testing.assert_allclose(state, log_threshold, rtol=1e-12)


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(1, STEPS // 20 - 1))
def test_the_running_threshold_knows_the_past_alone(cut):
    gate, cut = RunningGate(0.05, rate=0.2, room=1.0), 20 * cut
    whole, end = select(gate)
    first, state = select(gate, LOSS[:cut])
    second, same_end = select(gate, LOSS[cut:], state)
    np.testing.assert_array_equal(np.concatenate([chosen(first), chosen(second) + cut]), chosen(whole))
    np.testing.assert_allclose(same_end, end, rtol=1e-12)


@pytest.mark.parametrize("fraction", [0.0125, 0.1])
def test_the_running_threshold_lets_its_fraction_through(fraction):
    gate = RunningGate(fraction, rate=0.05, room=1.0)
    losses = np.random.default_rng(1).gamma(0.3, 1.0, 20_000) * np.linspace(4, 0.1, 20_000)  # as training makes them
    selection, state = select(gate, losses)
    # Summed over steps the recursion says so exactly: the threshold moves by rate times the excess.
    excess = float(state - gate.init()) / 0.05
    np.testing.assert_allclose(selection.events.happened.sum() - fraction * 20_000, excess, atol=1e-6)
    assert abs(excess) < 0.15 * fraction * 20_000


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
@pytest.mark.parametrize("kind", [QuantileGate, RandomGate, RunningGate])
def test_a_fraction_outside_its_range(kind, fraction):
    with pytest.raises(ValueError, match=rf"`fraction` must be in \(0, 1\], got {fraction}"):
        kind(fraction)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThresholdGate(-1.0), "`threshold` must be at least 0, got -1.0"),
        (lambda: ThresholdGate(1.0, room=2.0), r"`room` must be in \(0, 1\], got 2.0"),
        (lambda: RunningGate(0.1, rate=0.0), "`rate` must be above 0, got 0.0"),
        (lambda: RunningGate(0.1, start=0.0), "`start` must be above 0, got 0.0"),
        (lambda: RunningGate(0.1, room=0.0), r"`room` must be in \(0, 1\], got 0.0"),
        (lambda: QuantileGate(0.1, placement="late"), "`placement` must be one of 'shown', 'random', got 'late'"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
