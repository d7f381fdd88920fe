"""Training on salient events: found by a forward pass, learned from through traces, late layer by layer."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import assert_same, jit

import cetsim
from cetsim import CascadingTrace, DelayLine, Events, FixedDelay, LayerwiseDelay
from cetsim.gates import NoGate, QuantileGate, RandomGate, RunningGate, ThresholdGate
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun

BATCH, DT = 40, 0.2
SETTINGS = Settings(steps=10, segment=BATCH)


def make_model(key):
    return cetsim.nn.mlp((5, 8, 3), key=key)


def problem(examples=200):
    """Three Gaussian clouds that overlap."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, examples).astype(np.int32)
    return jnp.asarray(2.0 * np.eye(3, 5)[labels] + rng.normal(size=(examples, 5))), jnp.asarray(labels)


def make_run(settings=SETTINGS, model=make_model, x=None):
    images, labels = problem()
    return SupervisedRun(model, images if x is None else x, labels, settings)


def hyper(salience, kind=CascadingTrace, per_layer=2.0, keep_late=True):
    late = CascadingTrace(4, per_layer, DT) if kind is CascadingTrace else kind(per_layer, DT)
    delay = LayerwiseDelay.stacked(per_layer, 2, DT, keep_late=keep_late)
    return Hyperparameters(1e-2, (DelayLine(0.0, DT), late), delay, salience=salience)


@jit
def advance(run, state, steps):
    return run.advance(state, steps)


@jit
def align(run, state, x, labels):
    return run.alignment(state, x, labels)


def start(run, salience, seed=0, **options):
    return run.init(hyper(salience, **options), jax.random.key(seed))


@pytest.mark.parametrize("derivative", ["ideal", "cascade"])
def test_an_update_is_the_rules_gradient_on_the_events(derivative):
    run = make_run(dataclasses.replace(SETTINGS, derivative=derivative))
    state = start(run, QuantileGate(0.1))
    frames = run.settings.shown.frames(state.order, run.labels, 0, 1, BATCH)
    x, labels = (rows[0] for rows in run.settings.shown.show(frames, run.x, run.labels))
    model = eqx.combine(state.params, make_model(jax.random.key(0)))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = jit(lambda model: cross_entropy(jax.vmap(model, axis_name="time")(x), labels))(model)
    rows = np.sort(np.argsort(np.asarray(losses))[-4:])

    def loss(model):
        own = state.hyper
        options = {"events": Events(rows, BATCH), "derivative": derivative}
        attached = cetsim.attach(model, own.trace, own.delay, **options)
        return jnp.mean(cross_entropy(jax.vmap(attached, axis_name="time")(x[rows]), labels[rows]))

    grads = eqx.filter(jit(eqx.filter_grad(loss))(model), eqx.is_inexact_array)
    rate = 1e-2 * float(run.settings.schedule(0))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.01))
    updates, _ = jit(optimizer.update)(grads, optimizer.init(state.params), state.params)
    after, found = advance(run, state, 1)
    np.testing.assert_allclose(found, [jnp.mean(losses)], rtol=1e-12)
    assert_same(jax.tree.leaves(after.params), jax.tree.leaves(optax.apply_updates(state.params, updates)), 1e-6)


@pytest.mark.parametrize("boundary", ["reset", "carry"])
def test_where_all_is_salient_it_is_the_run_without_a_gate(boundary):
    run = make_run(dataclasses.replace(SETTINGS, boundary=boundary))
    plain = advance(run, start(run, None, keep_late=False), 4)
    gated = advance(run, start(run, NoGate(), keep_late=False), 4)
    # A stream of events remembers whole segments, one of all steps only as far as the kernel reaches, 1 - 1e-6 of it.
    tolerance = 1e-9 if boundary == "reset" else 1e-6
    assert_same(jax.tree.leaves(gated[0].params), jax.tree.leaves(plain[0].params), tolerance)
    np.testing.assert_allclose(gated[1], plain[1], rtol=tolerance)


def test_segments_without_an_event_are_skipped_and_counted():
    run = make_run()
    state = start(run, ThresholdGate(1e3))
    after, losses = advance(run, state, 3)
    assert_same(jax.tree.leaves(after.params), jax.tree.leaves(state.params), 0.0)
    for old, new in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(after.optimizer), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (after.skipped, after.step, after.missed) == (3, 3, 0)
    assert np.all(np.isfinite(losses))
    assert not after.diverged


def test_salient_images_without_a_place_are_counted():
    run = make_run()
    after, _ = advance(run, start(run, ThresholdGate(0.0, room=0.1)), 2)
    assert (after.skipped, after.missed) == (0, 2 * (BATCH - 4))


def test_a_stream_learns_from_signals_under_way_when_nothing_happens():
    """Once no loss is above the threshold, what was seen in the segment before still changes weights."""
    run = make_run(dataclasses.replace(SETTINGS, boundary="carry", warmup=0.0))
    state, _ = advance(run, start(run, ThresholdGate(0.0, room=0.2), per_layer=8.0, keep_late=False), 1)
    quiet = eqx.tree_at(lambda state: state.hyper.salience.threshold, state, jnp.asarray(1e3))
    after, _ = advance(run, quiet, 1)
    first, top = (np.abs(after.params.layers[i].weight - state.params.layers[i].weight).max() for i in (0, 2))
    # AdamW moves both, the top layer by momentum and decay alone: tell them apart by its first moment.
    moments = [quiet.optimizer[1][0].mu, after.optimizer[1][0].mu]
    np.testing.assert_allclose(moments[1].layers[2].weight, 0.9 * moments[0].layers[2].weight, rtol=1e-6)
    assert np.abs(moments[1].layers[0].weight - 0.9 * moments[0].layers[0].weight).max() > 1e-6
    assert min(first, top) > 0
    assert after.skipped == 0


@pytest.mark.parametrize("boundary", ["reset", "carry"])
@pytest.mark.parametrize("gate", [RunningGate(0.1, placement="random"), RandomGate(0.1)])
def test_a_run_that_is_cut_is_the_same_run_bit_for_bit(gate, boundary):
    run = make_run(dataclasses.replace(SETTINGS, boundary=boundary))
    state = start(run, gate, keep_late=False)
    whole, losses = advance(run, state, 4)
    second, pieces = state, []
    for _ in range(4):  # one program, however many pieces
        second, loss = advance(run, second, 1)
        pieces.append(loss)
    np.testing.assert_array_equal(losses, jnp.concatenate(pieces))
    arrays = lambda state: [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))]  # noqa: E731
    for left, right in zip(arrays(whole), arrays(second), strict=True):
        np.testing.assert_array_equal(left, right)


def test_alignment_is_measured_on_the_events():
    run = make_run()
    x, labels = run.x[:BATCH], run.labels[:BATCH]
    ideal = align(run, start(run, QuantileGate(0.2), kind=DelayLine), x, labels)
    np.testing.assert_allclose(list(ideal.values()), 1.0, rtol=1e-12)
    blurred = align(run, start(run, QuantileGate(0.2)), x, labels)
    np.testing.assert_allclose(blurred["layers.2"], 1.0, rtol=1e-12)
    assert 0 < blurred["layers.0"] < 0.999


def test_batch_norm_learns_its_moments_from_all_images():
    def make_cnn(key):
        return cetsim.nn.cnn((1, 4, 4), (2,), 6, 3, statistics="running", key=key)

    images = jnp.asarray(np.random.default_rng(2).normal(1.0, 2.0, (200, 1, 4, 4)))
    run = make_run(model=make_cnn, x=images)
    own = Hyperparameters(1e-2, DelayLine(0.0, DT), FixedDelay(0.0, DT), salience=QuantileGate(0.1))
    state = run.init(own, jax.random.key(0))
    after, _ = advance(run, state, 2)
    # The moments are those of a forward pass over all images of each segment, whatever was salient.
    control = eqx.tree_at(lambda s: s.hyper.salience, state, RandomGate(0.1))
    first = [advance(run, each, 1)[0] for each in (state, control)]
    buffers = [jax.tree.leaves(each.buffers) for each in (state, *first)]
    assert_same(buffers[1], buffers[2], 1e-12)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(buffers[0], buffers[1], strict=True))
    assert np.isfinite(run.evaluate(after, run.x, run.labels)["loss"])
