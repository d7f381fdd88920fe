"""The convolutional network: both layouts, and its updates next to a network written out with its rule in loops.

Programs are shared by tests, since compiling them is what takes long.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import jit
from small_cnn import (
    CHANNELS,
    CLASSES,
    DT,
    HIDDEN,
    IMAGE,
    LATE,
    STEPS,
    TRACE,
    affine,
    arrays,
    assert_same,
    cross_entropy,
    gate,
    late,
    learn,
    literal_factors,
    literal_updates,
    make,
    of_layout,
    over_time,
    segment,
    small,
)

import cetsim
from cetsim import DelayLine, ExponentialTrace
from cetsim.nn import AvgPool2d, BatchNorm, Conv2d, cnn
from cetsim.nn.conv import LAYOUTS
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun

EITHER_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
EITHER_STATISTICS = pytest.mark.parametrize("statistics", ["segment", "running"])


# What it computes


@EITHER_LAYOUT
def test_default_sizes(layout):
    model, state = eqx.filter_eval_shape(lambda: eqx.nn.make_with_state(cnn)(layout=layout, key=jax.random.key(0)))
    logits, after = eqx.filter_eval_shape(over_time, model, state, jax.ShapeDtypeStruct((2, 3, 32, 32), float))
    assert logits.shape == (2, 10)
    assert [leaf.shape for leaf in jax.tree.leaves(after)] == [(n,) for n in (32, 32, 64, 64, 128, 128)]
    pairs = [(9 * 3, 32), (9 * 32, 64), (9 * 64, 128), (4 * 4 * 128, 512), (512, 10)]
    sizes = [leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size")]
    assert sum(sizes) == sum(inputs * out + out for inputs, out in pairs) == 1_147_466
    assert len(sizes) == 2 * len(pairs)
    names = cetsim.layer_names(model)
    assert names == [of_layout(name, layout) for name in ("layers.0", "layers.4", "layers.8", "layers.13", "layers.15")]


def test_default_layout_is_the_backend_s():
    model, _ = eqx.filter_eval_shape(lambda: eqx.nn.make_with_state(cnn)(key=jax.random.key(0)))
    convs = [layer for layer in model.layers if isinstance(layer, Conv2d)]
    assert {conv.layout for conv in convs} == {cetsim.nn.conv.fastest_layout()}


def test_weights_are_xavier_uniform():
    (w1, b1), (w2, b2), (w3, b3) = affine(make(key=3)[0])
    pairs = [(w1, 9 * (2 + 3)), (b1, 1 + 3), (w2, 12 + 4), (b2, 1 + 4), (w3, 4 + 2), (b3, 1 + 2)]
    scaled = np.concatenate([np.ravel(array) / np.sqrt(6 / fans) for array, fans in pairs])
    assert len(np.unique(scaled)) == len(scaled)  # a key for each
    assert np.abs(scaled).max() <= 1
    assert np.var(scaled) == pytest.approx(1 / 3, rel=6 * np.sqrt(0.8 / len(scaled)))


@EITHER_LAYOUT
@EITHER_STATISTICS
def test_forward_pass_and_its_derivative(statistics, layout):
    """Outputs of the network written out, and without delay its update is plain autodiff of the model."""
    model, state = small(statistics, layout)
    logits, _, plain = learn(model, state, segment())
    assert_same(logits, literal_factors(statistics)[0])
    straight = late(DelayLine(0.0, DT), 0)
    for form in ("activation", "preactivation", "authors"):  # relu: the authors' form agrees too
        if form == "activation" or statistics == "segment":
            found, _, grads = learn(model, state, segment(), *straight, form=form)
            np.testing.assert_array_equal(found, logits)
            assert_same(arrays(grads), arrays(plain))


@EITHER_STATISTICS
def test_layouts_agree(statistics):
    found = [learn(*small(statistics, layout), segment(), *late(), form="activation") for layout in LAYOUTS]
    assert_same(found[1][:2], found[0][:2])
    assert_same(affine(found[1][2], LAYOUTS[1]), affine(found[0][2]))


# Late credit


@EITHER_LAYOUT
@pytest.mark.parametrize(
    ("form", "statistics"),
    [("activation", "segment"), ("activation", "running"), ("preactivation", "segment"), ("authors", "segment")],
)
def test_update_is_what_the_loops_give(form, statistics, layout):
    """The signal is filtered behind the pool, where the loops have a trace at every pixel; gated and not."""
    model, state = small(statistics, layout)
    gates = (0.0, gate(statistics), gate(statistics, 1))
    found = [affine(learn(model, state, segment(), *late(), g, form=form)[2], layout) for g in gates]
    for grads, error_gate in zip(found, gates, strict=True):
        assert_same(grads, literal_updates(statistics, form, error_gate))
    for layer in (0, 1):  # each by its own gate
        (open_, _), (gated, _) = found[0][layer], found[1 + layer][layer]
        assert np.abs(gated).max() > 0
        assert np.abs(open_ - gated).max() > 1e-3 * np.abs(open_).max()


@EITHER_LAYOUT
def test_a_pool_that_is_not_absorbed_changes_nothing(layout):
    model, state = small("segment", layout)
    layers = [eqx.nn.Lambda(layer) if isinstance(layer, AvgPool2d) else layer for layer in model.layers]
    hidden = eqx.nn.Sequential(layers)
    attached = [cetsim.attach(m, *late()) for m in (model, hidden)]
    conv = int(of_layout("layers.0", layout).removeprefix("layers."))
    assert [m.layers[conv].pool is not None for m in attached] == [True, False]
    for error_gate in (0.0, gate("segment")):
        found = [learn(m, state, segment(), *late(), error_gate, form="activation")[2] for m in (model, hidden)]
        assert_same(affine(found[0], layout), affine(found[1], layout), 1e-12)


def test_a_scalar_third_factor_acts_before_the_pool():
    """A signal handed in is that of the activation, whatever stands behind it: nothing is absorbed."""
    reward, layout = np.random.default_rng(3).normal(size=STEPS), "channels_last"
    model, state = small("segment", layout)
    _, _, grads = learn(model, state, segment(), *late(), form="activation", signal=jnp.asarray(reward))
    for layer, found in zip(literal_factors("segment")[1], affine(grads, layout), strict=True):
        signal = np.broadcast_to(reward[:, None, None], layer.error.shape)
        assert_same(found, oracles.update(TRACE, LATE, layer, signal=signal))


def test_a_kernel_for_each_channel_with_a_pool_behind():
    own = ExponentialTrace(jnp.array([0.3, 0.7, 2.0]), DT)
    model, state = small()
    overrides = {"layers.0": {"trace": own}}
    _, _, grads = learn(model, state, segment(), *late(), form="activation", overrides=overrides)
    assert cetsim.attach(model, *late(), overrides=overrides).layers[0].pool is not None
    assert_same(affine(grads), literal_updates("segment", "activation", traces=(own, TRACE, TRACE)))
    last, _ = small("segment", "channels_last")
    with pytest.raises(ValueError, match=r"'layers.1': one kernel per post-neuron needs the layout 'channels_first'"):
        cetsim.attach(last, *late(), overrides={"layers.1": {"trace": own}})


def test_layers_differ_as_overrides_say():
    layout = "channels_last"
    names = [of_layout(name, layout) for name in ("layers.0", "layers.5", "layers.7")]
    model, state = small("segment", layout)
    overrides = {names[0]: None, names[1]: {"form": "preactivation"}}
    _, _, grads = learn(model, state, segment(), *late(), form="activation", overrides=overrides)
    _, _, plain = learn(model, state, segment())
    found = affine(grads, layout)
    assert_same(found[0], affine(plain, layout)[0])
    assert_same(found[1], literal_updates("segment", "preactivation")[1])
    assert_same(found[2], literal_updates("segment", "activation")[2])


@EITHER_LAYOUT
@pytest.mark.parametrize("form", cetsim.nn.FORMS)
def test_detach_gives_the_model_back(form, layout):
    model, _ = small("segment", layout)
    attached = cetsim.attach(model, *late(), form=form)
    pools = [block.pool is not None for block in cetsim.nn.block.blocks(attached).values()]
    assert pools == [form in ("activation", "authors"), False, False]
    assert eqx.tree_equal(cetsim.detach(attached), model)


def test_gradients_of_an_attached_model_are_detached():
    model, state = small()

    @jit
    def outside(attached, batch):
        loss = lambda m: cross_entropy(over_time(m, state, batch[0])[0], batch[1]).mean()  # noqa: E731
        return eqx.filter_grad(loss)(attached)

    detached = cetsim.detach(outside(cetsim.attach(model, *late()), segment()))
    _, _, inside = learn(model, state, segment(), *late(), form="activation")
    assert jax.tree.structure(detached) == jax.tree.structure(inside)
    assert_same(detached, inside, 1e-13)


# Pools and layers of other kinds


@pytest.mark.parametrize(
    "pool",
    [eqx.nn.AvgPool2d(3, 1, padding=1), eqx.nn.AvgPool2d((3, 2), 2, use_ceil=True)],
    ids=["overlapping, padded", "ceiling"],
)
def test_pools_of_equinox_are_absorbed(pool):
    """They are compared by value when they are compiled in: an equal pool compiles nothing anew."""
    conv, x = Conv2d(2, 3, layout="channels_first", key=jax.random.key(0)), segment()[0]
    traced = []

    @jit
    def update(model, x):
        traced.append(1)
        loss = lambda m: jnp.sum(jnp.sin(jax.vmap(m, axis_name="time")(x)))  # noqa: E731
        return eqx.filter_grad(lambda m: loss(cetsim.attach(m, *late())))(model)

    made = [eqx.nn.Sequential([conv, eqx.nn.Lambda(jnp.tanh), p]) for p in (pool, remade(pool))]
    assert cetsim.attach(made[0], *late()).layers[0].pool == pool
    first, second = (update(model, x).layers[0] for model in made)
    assert len(traced) == 1
    assert_same(second, first, 0)
    hidden = update(eqx.nn.Sequential([conv, eqx.nn.Lambda(jnp.tanh), eqx.nn.Lambda(pool)]), x)
    assert_same(first, hidden.layers[0], 1e-12)


def remade(pool):
    return eqx.nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.use_ceil)


@EITHER_LAYOUT
def test_feedback_weights_of_a_convolution(layout):
    keys = jax.random.split(jax.random.key(0))
    conv, other = (Conv2d(2, 3, layout=layout, key=key) for key in keys)
    x = segment()[0] if layout == "channels_first" else jnp.moveaxis(segment()[0], 1, -1)
    model = eqx.nn.Sequential([conv, eqx.nn.Lambda(jnp.tanh)])
    attached = cetsim.attach(model, *late(), overrides={"layers.0": {"feedback": other.weight}})

    @jit
    def both(attached, x):
        out, pull = jax.vjp(jax.vmap(attached, axis_name="time"), x)
        z = jax.vmap(conv)(x)
        down = (1 - jnp.tanh(z) ** 2) * jnp.cos(out)
        return pull(jnp.cos(out))[0], jax.vjp(jax.vmap(other), x)[1](down)[0], out, jnp.tanh(z)

    found, wanted, out, plain = both(attached, x)
    assert_same(found, wanted)
    assert_same(out, plain, 1e-14)


def test_what_attach_refuses():
    conv = Conv2d(2, 3, layout="channels_last", key=jax.random.key(0))
    relu, pool = eqx.nn.Lambda(jax.nn.relu), AvgPool2d(layout="channels_last")
    norm = BatchNorm(3, layout="channels_last")
    for behind in ([pool, relu], [norm, relu, pool]):
        with pytest.raises(ValueError, match=r"'layers.0' has an activation behind it, but not directly"):
            cetsim.attach(eqx.nn.Sequential([conv, *behind]), *late())
    overrides = {"layers.0": {"feedback": jnp.ones((3, 3, 2, 3))}}
    with pytest.raises(ValueError, match=r"'layers.0': `feedback` must have shape \(3, 2, 3, 3\), got \(3, 3, 2, 3\)"):
        cetsim.attach(eqx.nn.Sequential([conv, relu, pool]), *late(), overrides=overrides)


# Streams


@jit
def next_segment(attached, stream, buffers, x, labels):
    """Gradient of the sum over the segment, the stream and the buffers after it."""

    def loss(model, x, labels, buffers):
        logits, after = over_time(model, buffers, x)
        return cross_entropy(logits, labels).sum(), after

    (_, buffers), grads, stream = cetsim.streaming_value_and_grad(loss, has_aux=True)(
        attached, stream, x, labels, buffers
    )
    return cetsim.detach(grads), stream, buffers


def in_pieces(cuts, error_gate=0.0):
    model, buffers = make("running", "channels_last")
    attached = cetsim.attach(model, *late(), boundary="carry", window=STEPS, error_gate=error_gate)
    x, labels = segment()
    stream, total = cetsim.streaming_init(attached, x[0], buffers), None
    for first, last in itertools.pairwise([0, *cuts, STEPS]):
        grads, stream, buffers = next_segment(attached, stream, buffers, x[first:last], labels[first:last])
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return affine(total, "channels_last"), stream, buffers


def test_a_stream_cut_in_pieces_gives_one_update():
    """With batch norm over the past; what is carried is smaller behind the pool."""
    error_gate = gate("running") * STEPS**2  # here losses are summed
    whole, stream, buffers = in_pieces([], error_gate)
    pieces, same_stream, same_buffers = in_pieces([1, 4, 7], error_gate)
    assert_same(pieces, whole)
    for left, right in zip(jax.tree.leaves(same_stream), jax.tree.leaves(stream), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)
    assert_same(same_buffers, buffers)
    mean = literal_updates("running", "activation", gate("running"))
    assert_same(whole, [(STEPS * weight, STEPS * bias) for weight, bias in mean])
    convolution = stream["layers.1"]
    assert (convolution.gain.shape, convolution.signal.shape) == ((STEPS, 4, 4, 3), (LATE, 2, 2, 3))


# Runs


def problem(examples=64):
    """Stripes in noise, upright and lying."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, CLASSES, examples)
    upright = np.broadcast_to(np.array([1.0, -1.0, 1.0, -1.0]), (4, 4))
    clean = np.where(labels[:, None, None] == 0, upright, upright.T)
    return clean[:, None] + 0.3 * rng.normal(size=(examples, *IMAGE)), labels.astype(np.int32)


def make_run(boundary, statistics, steps=40):
    x, labels = problem()
    settings = Settings(steps=steps, segment=8, form="authors", boundary=boundary)
    model = lambda key: cnn(IMAGE, CHANNELS, HIDDEN, CLASSES, statistics=statistics, key=key)  # noqa: E731
    return SupervisedRun(model, jnp.asarray(x), jnp.asarray(labels), settings)


@functools.cache
def begun(boundary, steps=LATE):
    """A run and its beginning, with hyperparameters that are known while it is traced: streams need their delays."""
    run = make_run(boundary, "running" if boundary == "carry" else "segment")
    hyper = Hyperparameters(3e-2, *late(DelayLine(steps * DT, DT), steps), 1e-8)
    return run, jit(lambda run: run.init(hyper, jax.random.key(0)))(run)


advance = jit(lambda run, state, unroll=False: run.advance(state, 2, unroll))
evaluate = jit(lambda run, state, x, labels: run.evaluate(state, x, labels))
align = jit(lambda run, state, x, labels: run.alignment(state, x, labels))


@pytest.mark.parametrize("boundary", cetsim.nn.BOUNDARIES)
def test_a_run_trains_and_is_evaluated_by_its_running_moments(boundary):
    run, start = begun(boundary)
    state, losses = start, []
    for _ in range(20):
        state, some = advance(run, state)
        losses += some.tolist()
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    model, _ = jit(eqx.nn.make_with_state(run.make_model))(jax.random.key(0))
    trained = eqx.nn.inference_mode(eqx.combine(state.params, model))
    assert any(np.abs(after - before).max() > 0.01 for before, after in zip(
        jax.tree.leaves(start.buffers), jax.tree.leaves(state.buffers), strict=True))  # fmt: skip
    x, labels = run.x[:20], run.labels[:20]
    logits = jit(jax.vmap(lambda image: trained(image, state.buffers)[0]))(x)
    measured = evaluate(run, state, x, labels)
    np.testing.assert_allclose(measured["loss"], cross_entropy(logits, labels).mean(), rtol=1e-12)
    np.testing.assert_allclose(measured["accuracy"], np.mean(np.argmax(logits, 1) == labels))


def test_steps_written_out_are_the_steps_of_the_loop():
    run, start = begun("carry")
    (looped, losses), (unrolled, same_losses) = (advance(run, start, unroll) for unroll in (False, True))
    np.testing.assert_allclose(losses, same_losses, rtol=1e-10)
    for left, right in zip(arrays(looped), arrays(unrolled), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-10)
    assert looped.step == unrolled.step == 2


@pytest.mark.parametrize("boundary", cetsim.nn.BOUNDARIES)
def test_without_delay_the_update_is_aligned_with_the_gradient(boundary):
    run, state = begun(boundary, 0)
    cosines = align(run, state, run.x[:8], run.labels[:8])
    model = eqx.filter_eval_shape(run.make_model, jax.random.key(0))
    assert list(cosines) == cetsim.layer_names(model)
    np.testing.assert_allclose(list(cosines.values()), 1.0, rtol=1e-10)
