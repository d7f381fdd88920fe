"""Learning from events: sparse times, a delay for each layer, and derivatives that wait for the signal."""

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import (
    DT,
    FORMS,
    affine_gradients,
    assert_different,
    assert_same,
    convnet,
    convnet_oracle,
    gradients,
    half_square,
    jit,
    mlp,
    mlp_oracle,
    segment,
)

import cetsim
from cetsim import (
    CascadingTrace,
    DelayLine,
    DoubleExponentialTrace,
    Events,
    ExponentialTrace,
    FIRTrace,
    FixedDelay,
    LayerwiseDelay,
    RandomDelay,
)

LENGTH, PLACES = 40, 8
TIMES = np.array([0, 3, 4, 9, 17, 18, 30, 39])
PER_LAYER = 1.4  # 7 steps
LAYERWISE = LayerwiseDelay.stacked(PER_LAYER, layers=3, dt=DT, keep_late=True)
KINDS = {
    "CET": lambda delay: CascadingTrace(4, delay, DT),
    "ET": lambda delay: ExponentialTrace(delay, DT),
    "double exponential": lambda delay: DoubleExponentialTrace(delay, delay / 3, dt=DT),
    "FIR": lambda delay: FIRTrace(np.random.default_rng(0).normal(size=30), DT),
    "delay line": lambda delay: DelayLine(delay, DT, max_delay=2 * PER_LAYER),
}


def traces(kind, layers=3):
    """A trace for each layer from the top down, set to its delay; the top layer's signal is at hand."""
    return (KINDS["delay line"](0.0), *(KINDS[kind](layer * PER_LAYER) for layer in range(1, layers)))


def on_the_axis(rows, times, steps):
    """Rows at their times in `steps` steps of silence."""
    dense = np.zeros((steps, *np.shape(rows)[1:]))
    dense[np.asarray(times, int)] = rows
    return dense


@jit
def stepped(trace, dense):
    """The trace of every synapse read at every step."""
    _, read = jax.lax.scan(lambda state, e: trace.step(state, e), trace.init(dense.shape[1:], compensated=False), dense)
    return read


def dense_simulation(layers, x, error, times, arrivals, traces, form="activation", derivative="ideal", horizon=None):
    """Every synapse and every soma stepped through the whole axis of time; `arrivals` by layer, from the top down.

    Returns the gradient of each layer from the bottom up and the input's.
    """
    _, recorded = oracles.forward(layers, x)
    updates = []
    steps = int(max(np.max(a) for a in arrivals)) + 1
    for layer, (_, cut, z), arrival, trace in zip(layers[::-1], recorded[::-1], arrivals, traces, strict=True):
        arrival = np.asarray(arrival, int)
        slope = oracles.ACTIVATIONS[layer.activation][1](z[:, 0])
        passed = slope
        if derivative == "cascade" and layer.activation != "identity":
            passed = np.asarray(stepped(trace, on_the_axis(slope, times, steps)))[arrival]
        gain = np.ones_like(slope) if form == "preactivation" else slope
        signal = error if form == "activation" else passed * error
        x = np.concatenate([cut[:, 0], np.ones((len(cut), 1))], axis=1)
        hebbian = on_the_axis(gain[:, :, None] * x[:, None, :], times, steps)
        remembered = np.asarray(stepped(trace, hebbian))[arrival]
        met = arrival < (steps if horizon is None else horizon)
        total = np.einsum("e,eo,eoi->oi", met * 1.0, signal, remembered)
        updates.insert(0, (total[:, :-1], total[:, -1]))
        error = (passed * error) @ layer.weight
    return updates, error


def simulate(layers, x, target, arrivals, traces, **options):
    x = np.asarray(x)
    output, _ = oracles.forward(layers, x)
    return dense_simulation(layers, x, output - np.asarray(target), TIMES, arrivals, traces, **options)


def arrivals_of(delay, times=TIMES):
    return [np.asarray(own.arrivals(jnp.asarray(times, float))) for own in delay.delays]


def attach(model, kind="CET", delay=LAYERWISE, events=None, **options):
    events = Events(TIMES, LENGTH) if events is None else events
    return cetsim.attach(model, traces(kind), delay, events=events, **options)


# The engine against every synapse on the full axis of time.


@pytest.mark.parametrize("derivative", ["ideal", "cascade"])
@pytest.mark.parametrize("kind", KINDS)
def test_events_equal_the_dense_simulation_of_every_synapse(kind, derivative):
    model, (x, target) = mlp(), segment(steps=PLACES)
    expected = simulate(mlp_oracle(model), x, target, arrivals_of(LAYERWISE), traces(kind), derivative=derivative)
    grads, input_grad = gradients(model, x, target, lambda m: attach(m, kind, derivative=derivative))
    assert_same((affine_gradients(grads), input_grad), expected)


@FORMS
@pytest.mark.parametrize("derivative", ["ideal", "cascade"])
def test_events_in_every_form(form, derivative):
    model, (x, target) = mlp("softplus"), segment(steps=PLACES)
    options = {"form": form, "derivative": derivative}
    expected = simulate(mlp_oracle(model, "softplus"), x, target, arrivals_of(LAYERWISE), traces("CET"), **options)
    grads, input_grad = gradients(model, x, target, lambda m: attach(m, **options))
    assert_same((affine_gradients(grads), input_grad), expected)


@pytest.mark.parametrize("keep_late", [True, False])
def test_random_delays_layer_by_layer(keep_late):
    draws = [
        RandomDelay(layer * PER_LAYER, PER_LAYER, DT, key=jax.random.key(layer), keep_late=keep_late)
        for layer in (1, 2)
    ]
    delay = LayerwiseDelay((FixedDelay(0.0, DT, keep_late=keep_late), *draws)).at(jnp.asarray(80))
    model, (x, target) = mlp(), segment(steps=PLACES)
    horizon = None if keep_late else LENGTH
    expected = simulate(mlp_oracle(model), x, target, arrivals_of(delay), traces("CET"), horizon=horizon)
    grads, input_grad = gradients(model, x, target, lambda m: attach(m, delay=delay))
    assert_same((affine_gradients(grads), input_grad), expected)


@pytest.mark.parametrize("form", ["activation", "authors"])
def test_events_in_a_convolutional_network(form):
    """One delay in all layers: the double loop over events, summed over positions, filtered behind the pool or not."""
    model, (x, target) = convnet(), segment((2, 4, 4), PLACES)
    layers, x_flat = convnet_oracle(model), np.asarray(x).reshape(PLACES, -1)
    trace, delay = KINDS["CET"](PER_LAYER), FixedDelay(PER_LAYER, DT, keep_late=True)
    output, _ = oracles.forward(layers, x_flat)
    factors, input_error = oracles.backward(layers, x_flat, output - np.asarray(target))
    expected = []
    for layer, own in zip(factors, ("activation",) * 2 + ("authors_linear",), strict=True):
        gain, signal = oracles.gain_and_signal("activation" if form == "activation" else own, layer)
        at = [
            oracles.double_loop(trace, layer.x[:, p], gain[:, p], signal[:, p], TIMES + 7, TIMES)
            for p in range(gain.shape[1])
        ]
        expected.append((sum(weight for weight, _ in at), sum(bias for _, bias in at)))
    grads, input_grad = gradients(
        model, x, target, lambda m: cetsim.attach(m, trace, delay, events=Events(TIMES, LENGTH), form=form)
    )
    assert_same((affine_gradients(grads), input_grad.reshape(PLACES, -1)), (expected, input_error))


@pytest.mark.parametrize("form", ["activation", "preactivation"])
def test_derivatives_remembered_behind_a_pool(form):
    """A delay line at the soma is the ideal memory, in a network with a pool too."""
    model, (x, target) = convnet(), segment((2, 4, 4), PLACES)
    line, delay = DelayLine(PER_LAYER, DT), FixedDelay(PER_LAYER, DT, keep_late=True)

    def with_derivative(name):
        options = {"events": Events(TIMES, LENGTH), "form": form, "derivative": name}
        return gradients(model, x, target, lambda m: cetsim.attach(m, line, delay, **options))

    assert_same(jax.tree.leaves(with_derivative("cascade")), jax.tree.leaves(with_derivative("ideal")), 1e-13)


def test_a_signal_handed_in_stays_in_its_layer():
    """What a layer learns from is not what it sends down, whatever remembers its derivative."""
    model, (x, target) = mlp(), segment(steps=PLACES)
    options = {"signal": jnp.ones(PLACES), "events": Events(TIMES, LENGTH)}
    line, delay = DelayLine(PER_LAYER, DT), FixedDelay(PER_LAYER, DT, keep_late=True)

    def with_derivative(name):
        return gradients(model, x, target, lambda m: cetsim.attach(m, line, delay, derivative=name, **options))

    assert_same(jax.tree.leaves(with_derivative("cascade")), jax.tree.leaves(with_derivative("ideal")), 1e-13)


def test_an_ideal_memory_is_backprop_on_the_events():
    model, (x, target) = mlp(), segment(steps=PLACES)
    line = gradients(model, x, target, lambda m: attach(m, "delay line"))
    plain = gradients(model, x, target, lambda m: m)
    assert_same(line, plain, 1e-14)
    assert_different(gradients(model, x, target, lambda m: attach(m, "CET"))[0].layers[0], plain[0].layers[0])


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["ideal", "cascade"])
def test_golden_arrays(kind, index):
    """The authors' event layers: weight and input gradients. Their kernel is divided by its sum over lags."""
    with np.load(f"{__file__.removesuffix('test_events.py')}golden/events_{kind}_{index}.npz") as arrays:
        golden = dict(arrays)
    layer = eqx.nn.Linear(7, 5, key=jax.random.key(0))
    layer = eqx.tree_at(lambda l: (l.weight, l.bias), layer, (golden["weight"], golden["bias"][0]))
    model = eqx.nn.Sequential([jax.tree.map(jnp.asarray, layer), eqx.nn.Lambda(jax.nn.relu)])
    order, delay = int(golden["order"]), float(golden["delay"])
    trace = CascadingTrace(order, delay, dt=1.0)
    lags = jnp.arange(4000)
    scaled = FIRTrace(trace.weights(lags) * trace.rate**-order / golden["kernel_norm"], dt=1.0)
    late = FixedDelay(delay, dt=1.0, keep_late=True)
    events = Events(golden["event_times"], 200)

    def attached(model):
        return cetsim.attach(model, scaled, late, events=events, derivative=kind)

    loss = lambda model, x, cotangent: jnp.sum(jax.vmap(model, axis_name="time")(x) * cotangent)  # noqa: E731
    x, cotangent = jnp.asarray(golden["x"]), jnp.asarray(golden["cotangent"])
    grads, input_grad = gradients(model, x, cotangent, attached, loss)
    np.testing.assert_allclose(jax.vmap(attached(model), axis_name="time")(x), golden["output"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads.layers[0].weight, golden["weight_grad"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(input_grad, golden["input_grad"], rtol=1e-10, atol=1e-12)
    if kind == "cascade":
        np.testing.assert_allclose(grads.layers[0].bias, golden["bias_grad"][0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("derivative", ["ideal", "cascade"])
def test_float32_twin(derivative):
    model, (x, target) = mlp(), segment(steps=PLACES)
    expected = simulate(mlp_oracle(model), x, target, arrivals_of(LAYERWISE), traces("CET"), derivative=derivative)
    with jax.enable_x64(False):
        single = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32) if eqx.is_array(leaf) else leaf  # noqa: E731
        model, x, target, own, delay = jax.tree.map(single, (model, x, target, traces("CET"), LAYERWISE))
        options = {"events": Events(TIMES, LENGTH), "derivative": derivative}
        grads, input_grad = gradients(model, x, target, lambda m: cetsim.attach(m, own, delay, **options))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
        assert_same((affine_gradients(grads), input_grad), expected, 1e-5)


# Places that stay empty.


@pytest.mark.parametrize("derivative", ["ideal", "cascade"])
def test_empty_places_change_nothing(derivative):
    model, (x, target) = mlp(), segment(steps=PLACES)
    filled = np.array([True] * 5 + [False] * 3)
    few = Events(TIMES[:5], LENGTH)
    # Whatever a place holds, even the time of an event.
    many = Events(np.where(filled, TIMES, TIMES[0]), LENGTH, filled)
    expected = gradients(model, x[:5], target[:5], lambda m: attach(m, events=few, derivative=derivative))
    found = gradients(model, x, target, lambda m: attach(m, events=many, derivative=derivative))
    assert_same(found[0], expected[0], 1e-14)
    assert_same(found[1][:5], expected[1], 1e-14)


def test_no_event_at_all_gives_a_gradient_of_zero():
    model, (x, target) = mlp(), segment(steps=PLACES)
    none = Events(jnp.zeros(PLACES), LENGTH, jnp.zeros(PLACES, bool))
    grads, _ = gradients(model, x, target, lambda m: attach(m, events=none))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))


# Streams of events.


@jit
def next_segment(model, state, x, target):
    return cetsim.streaming_value_and_grad(half_square)(model, state, x, target)


def in_segments(model, x, target, cuts, kind="CET"):
    """Sum of the updates of a stream of events cut at steps `cuts` into segments with room for all events."""
    carried, total, state = LayerwiseDelay.stacked(PER_LAYER, 3, DT), None, None
    for start, end in zip([0, *cuts], [*cuts, LENGTH + 60], strict=True):
        here = (start <= TIMES) & (end > TIMES)
        rows = np.resize(np.flatnonzero(here) if here.any() else [0], PLACES)
        happened = np.arange(PLACES) < here.sum()
        events = Events(np.where(happened, TIMES[rows] - start, 0), end - start, happened)
        attached = cetsim.attach(model, traces(kind), carried, events=events, boundary="carry", window=2 * LENGTH)
        if state is None:
            # Room for what the shortest segment asks for, so that one state serves all.
            short = Events(jnp.zeros(PLACES), 5, jnp.zeros(PLACES, bool))
            roomy = cetsim.attach(model, traces(kind), carried, events=short, boundary="carry", window=2 * LENGTH)
            state = cetsim.streaming_init(roomy, x[0])
        _, grads, state = next_segment(attached, state, x[rows], target[rows])
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return cetsim.detach(total)


@hypothesis.settings(max_examples=6)
@hypothesis.given(st.lists(st.integers(1, 7), max_size=4, unique=True))
def test_nothing_is_lost_where_a_stream_of_events_is_cut(cuts):
    model, (x, target) = mlp(), segment(steps=PLACES)
    expected = simulate(mlp_oracle(model), x, target, arrivals_of(LAYERWISE), traces("CET"))[0]
    found = in_segments(model, x, target, [5 * cut for cut in sorted(cuts)])
    assert_same(affine_gradients(found), expected)


# Cost.


def cost(per_layer, steps):
    layers = 3
    model = cetsim.nn.mlp((20, 30, 25, 10), key=jax.random.key(0))
    x, target = jnp.zeros((16, 20)), jnp.zeros((16, 10))

    def step(model, times, x, target):
        own = (DelayLine(0.0, DT), *(CascadingTrace(10, per_layer * layer, DT) for layer in range(1, layers)))
        delay = LayerwiseDelay.stacked(per_layer, layers, DT, keep_late=True)
        loss = lambda m: half_square(cetsim.attach(m, own, delay, events=Events(times, steps)), x, target)  # noqa: E731
        return eqx.filter_grad(loss)(model)

    compiled = eqx.filter_jit(step).lower(model, jnp.arange(16.0), x, target).compile()
    compiled = getattr(compiled, "compiled", compiled)
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes, memory.argument_size_in_bytes


def test_cost_grows_with_events_and_not_with_the_delay():
    assert cost(60 * DT, 1280) == cost(60_000 * DT, 1280)


def test_delays_are_mapped_outside_the_map_over_events():
    model, (x, target) = mlp(), segment(steps=PLACES)

    @jit
    @jax.vmap
    def by_delay(per_layer):
        own = (DelayLine(0.0, DT), *(CascadingTrace(4, layer * per_layer, DT) for layer in (1, 2)))
        delay = LayerwiseDelay.stacked(per_layer, 3, DT, keep_late=True)
        loss = lambda m: half_square(cetsim.attach(m, own, delay, events=Events(TIMES, LENGTH)), x, target)  # noqa: E731
        return eqx.filter_grad(loss)(model)

    found = by_delay(jnp.asarray([0.6, PER_LAYER]))
    expected, _ = gradients(model, x, target, attach)
    assert_same(jax.tree.leaves(jax.tree.map(lambda leaf: leaf[1], found)), jax.tree.leaves(expected), 1e-12)
