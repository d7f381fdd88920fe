"""Traced models: their gradients are the updates of a network simulated by loops, and the authors' arrays."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles

import cetsim
from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FIRTrace, FixedDelay, credit

GOLDEN = Path(__file__).parent / "golden"
DT, STEPS = 0.2, 11
IMAGE = (2, 4, 4)
TRACE, DELAY = CascadingTrace(3, 0.5, DT), FixedDelay(0.6, DT)
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}
FORMS = pytest.mark.parametrize("form", credit.FORMS)


def mlp(activation="tanh", seed=0):
    return cetsim.nn.mlp((4, 5, 3, 2), ACTIVATIONS[activation], key=jax.random.key(seed))


def mlp_oracle(model, activation="tanh", feedback=(None, None, None)):
    names = (activation, activation, "identity")
    return [oracles.dense(model.layers[2 * i], name, feedback[i]) for i, name in enumerate(names)]


def convnet(activation="tanh", seed=0):
    keys, act = jax.random.split(jax.random.key(seed), 3), eqx.nn.Lambda(ACTIVATIONS[activation])
    convs = [eqx.nn.Conv2d(2, 3, 3, padding=1, key=keys[0]), eqx.nn.Conv2d(3, 2, 2, 2, padding=1, key=keys[1])]
    pool, flatten = eqx.nn.AvgPool2d(2, 2), eqx.nn.Lambda(jnp.ravel)
    return eqx.nn.Sequential([convs[0], act, pool, convs[1], act, flatten, eqx.nn.Linear(8, 2, key=keys[2])])


def convnet_oracle(model, activation="tanh"):
    return [
        oracles.convolution(model.layers[0], IMAGE, activation, oracles.average_pool(3, 4, 4)),
        oracles.convolution(model.layers[3], (3, 2, 2), activation),
        oracles.dense(model.layers[6]),
    ]


NETWORKS = {"mlp": (mlp, mlp_oracle, (4,)), "convnet": (convnet, convnet_oracle, IMAGE)}


def stretch(shape=(4,), steps=STEPS, seed=1):
    """Inputs and targets."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(steps, *shape))), jnp.asarray(rng.normal(size=(steps, 2)))


def half_square(model, x, target):
    return 0.5 * jnp.sum((jax.vmap(model)(x) - target) ** 2)


def gradients(model, x, target, attach, loss=half_square):
    """Gradient of the model and of the input, traces attached inside the loss."""

    @eqx.filter_jit
    @eqx.filter_grad
    def both(model_and_x):
        model, x = model_and_x
        return loss(attach(model), x, target)

    return both((model, x))


def default(model, **options):
    return cetsim.attach(model, TRACE, DELAY, **options)


def affine_gradients(model):
    """Weight, as [out, patch], and bias of every layer's gradient."""
    layers = [layer for layer in model.layers if hasattr(layer, "weight")]
    return [(layer.weight.reshape(len(layer.weight), -1), layer.bias.ravel()) for layer in layers]


def simulate(layers, x, target, trace=TRACE, delay_steps=3, **rule):
    """The updates of every layer and the input's gradient, by loops."""
    x = np.asarray(x).reshape(len(x), -1)
    output, _ = oracles.forward(layers, x)
    factors, input_error = oracles.backward(layers, x, output - np.asarray(target))
    return [oracles.update(trace, delay_steps, layer, **rule) for layer in factors], input_error


def assert_same(arrays, others, tolerance=1e-10):
    for array, other in zip(jax.tree.leaves(arrays), jax.tree.leaves(others), strict=True):
        largest = np.abs(other).max()
        assert largest > 0
        np.testing.assert_allclose(array, other, rtol=0, atol=tolerance * largest)


def assert_different(arrays, others, by=1e-3):
    pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(others), strict=True)
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs) > by


# The gradient is the traces' update.


@FORMS
@pytest.mark.parametrize("error_gate", [0.0, 0.3])
@pytest.mark.parametrize(("network", "activation"), [("mlp", "tanh"), ("mlp", "softplus"), ("convnet", "relu")])
def test_gradient_is_what_the_loops_give(network, activation, form, error_gate):
    """On each layer's recorded factors, and the input's gradient is backprop's, without delay."""
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make(activation), stretch(shape)
    grads, input_grad = gradients(model, x, target, lambda m: default(m, form=form, error_gate=error_gate))
    expected, input_error = simulate(oracle(model, activation), x, target, form=form, error_gate=error_gate)
    assert_same(affine_gradients(grads), expected)
    assert_same(input_grad.reshape(STEPS, -1), input_error)


@FORMS
def test_gradient_is_what_the_literal_form_gives(form):
    """The other oracle, `credit.literal`, and a kernel for each post-neuron of the first layer."""
    model, (x, target) = mlp(), stretch()
    own = ExponentialTrace(jnp.linspace(0.3, 2.0, 5), DT)
    grads, _ = gradients(model, x, target, lambda m: default(m, form=form, overrides={"layers.0": {"trace": own}}))
    output, _ = oracles.forward(mlp_oracle(model), np.asarray(x))
    factors, _ = oracles.backward(mlp_oracle(model), np.asarray(x), output - np.asarray(target))
    for layer, trace, (seen, derivative, error) in zip(
        grads.layers[::2], (own, TRACE, TRACE), jax.tree.map(lambda rows: jnp.asarray(rows[:, 0]), factors), strict=True
    ):
        gain, signal = credit.synaptic_factors(form, derivative, error)
        update = credit.literal(trace, seen, gain, signal, jnp.arange(STEPS) + 3.0, horizon=STEPS)
        assert_same((layer.weight, layer.bias), tuple(update))


@pytest.mark.parametrize("network", NETWORKS)
def test_float32_twin(network):
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make(), stretch(shape)
    expected, _ = simulate(oracle(model), x, target)
    with jax.enable_x64(False):
        single = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32) if eqx.is_array(leaf) else leaf  # noqa: E731
        model, x, target, trace, delay = jax.tree.map(single, (model, x, target, TRACE, DELAY))
        grads, _ = gradients(model, x, target, lambda m: cetsim.attach(m, trace, delay))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
        assert_same(affine_gradients(grads), expected, 1e-5)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["linear_identity", "linear_relu", "conv_relu"])
def test_golden_arrays(kind, index):
    """The authors' layers: weight gradient in the form of each, input gradient, output."""
    with np.load(GOLDEN / f"{kind}_{index}.npz") as arrays:
        golden = dict(arrays)
    x, weight, cotangent = (jnp.asarray(golden[key]) for key in ("x", "weight", "cotangent"))
    key, form = jax.random.key(0), "activation" if kind == "conv_relu" else "authors_linear"
    if kind == "conv_relu":
        layer, bias = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key), jnp.asarray(golden["bias"]).reshape(4, 1, 1)
    else:
        layer, bias = eqx.nn.Linear(7, 5, key=key), jnp.asarray(golden["bias"][0])
    layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
    activation = [] if kind == "linear_identity" else [eqx.nn.Lambda(jax.nn.relu)]
    model = eqx.nn.Sequential([layer, *activation])
    trace, delay = FIRTrace(golden["kernel"], dt=1.0), FixedDelay(float(golden["delay"]), dt=1.0)

    def attach(model):
        return cetsim.attach(model, trace, delay, form=form)

    loss = lambda model, x, cotangent: jnp.sum(jax.vmap(model)(x) * cotangent)  # noqa: E731
    grads, input_grad = gradients(model, x, cotangent, attach, loss)
    np.testing.assert_allclose(jax.vmap(attach(model))(x), golden["output"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads.layers[0].weight, golden["weight_grad"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(input_grad, golden["input_grad"], rtol=1e-10, atol=1e-12)


@FORMS
@pytest.mark.parametrize("network", NETWORKS)
def test_without_delay_a_delay_line_gives_plain_autodiff(network, form):
    """For any smooth activation in the first two forms; the authors' form has f' twice."""
    make, _, shape = NETWORKS[network]
    model, (x, target) = make("tanh"), stretch(shape)
    traced = gradients(model, x, target, lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0), form=form))
    plain = gradients(model, x, target, lambda m: m)
    if form == "authors_linear":
        assert_different(traced[0].layers[0], plain[0].layers[0])
    else:
        assert_same(traced, plain, 1e-14)


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_are_unchanged(network):
    make, _, shape = NETWORKS[network]
    for activation in ACTIVATIONS:
        model, (x, _) = make(activation), stretch(shape)
        np.testing.assert_array_equal(jax.vmap(default(model))(x), jax.vmap(model)(x))


def test_signals_after_the_end_are_read_on_request():
    model, (x, target) = mlp(), stretch()
    late = FixedDelay(0.6, DT, keep_late=True)
    grads, _ = gradients(model, x, target, lambda m: cetsim.attach(m, TRACE, late))
    assert_same(affine_gradients(grads), simulate(mlp_oracle(model), x, target, horizon=np.inf)[0])
    assert_different(grads, gradients(model, x, target, default)[0])


# Learning signals handed in.


@pytest.mark.parametrize("network", NETWORKS)
def test_scalar_third_factor_replaces_every_error(network):
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make(), stretch(shape)
    reward = np.random.default_rng(3).normal(size=STEPS)
    grads, input_grad = gradients(model, x, target, lambda m: default(m, signal=jnp.asarray(reward)))
    layers, flat = oracle(model), np.asarray(x).reshape(STEPS, -1)
    factors, input_error = oracles.backward(layers, flat, oracles.forward(layers, flat)[0] - np.asarray(target))
    spread = [np.broadcast_to(reward[:, None, None], layer.error.shape) for layer in factors]
    expected = [oracles.update(TRACE, 3, layer, signal=s) for layer, s in zip(factors, spread, strict=True)]
    assert_same(affine_gradients(grads), expected)
    assert_same(input_grad.reshape(STEPS, -1), input_error)  # errors themselves still travel


def test_direct_feedback_alignment_by_signals_from_outside():
    model, (x, target) = mlp(), stretch()
    rng = np.random.default_rng(4)
    error = jax.vmap(model)(x) - target
    directly = {"layers.0": error @ rng.normal(size=(2, 5)), "layers.2": error @ rng.normal(size=(2, 3))}
    overrides = {name: {"signal": signal} for name, signal in directly.items()}
    grads, _ = gradients(model, x, target, lambda m: default(m, overrides=overrides))
    factors, _ = oracles.backward(mlp_oracle(model), np.asarray(x), np.asarray(error))
    signals = [*(np.asarray(signal)[:, None] for signal in directly.values()), factors[2].error]
    expected = [oracles.update(TRACE, 3, layer, signal=s) for layer, s in zip(factors, signals, strict=True)]
    assert_same(affine_gradients(grads), expected)


def test_feedback_alignment_sends_errors_through_its_own_weights():
    model, (x, target) = mlp(), stretch()
    back = [None, *(np.random.default_rng(5).normal(size=shape) for shape in ((3, 5), (2, 3)))]
    overrides = {f"layers.{2 * i}": {"feedback": jnp.asarray(back[i])} for i in (1, 2)}
    attach = lambda m: default(m, overrides=overrides)  # noqa: E731
    grads, input_grad = gradients(model, x, target, attach)
    expected, input_error = simulate(mlp_oracle(model, feedback=back), x, target)
    assert_same(affine_gradients(grads), expected)
    assert_same(input_grad, input_error)
    np.testing.assert_allclose(jax.vmap(attach(model))(x), jax.vmap(model)(x), rtol=1e-12)


# Overrides, and models of other kinds.


def test_layers_differ_as_overrides_say():
    model, (x, target) = mlp(), stretch()
    overrides = {
        "layers.0": {"trace": FIRTrace(np.array([0.1, 0.5, 0.4]), DT), "delay": FixedDelay(0.2, DT), "error_gate": 0.3},
        "layers.2": {"form": "preactivation"},
        "layers.4": None,
    }
    grads, _ = gradients(model, x, target, lambda m: default(m, overrides=overrides))
    first = dict(trace=overrides["layers.0"]["trace"], delay_steps=1, error_gate=0.3)
    none = dict(trace=DelayLine(0.0), delay_steps=0)
    for i, rule in enumerate((first, {"form": "preactivation"}, none)):
        assert_same(affine_gradients(grads)[i], simulate(mlp_oracle(model), x, target, **rule)[0][i])


class Bare(eqx.Module):
    """Layers outside a Sequential, which hide their activations."""

    first: eqx.nn.Linear
    rest: list[eqx.nn.Linear]

    def __call__(self, x):
        return self.rest[0](jnp.tanh(self.first(x)))


def bare():
    keys = jax.random.split(jax.random.key(0))
    return Bare(eqx.nn.Linear(4, 5, key=keys[0]), [eqx.nn.Linear(5, 2, key=keys[1])])


def test_a_module_of_ones_own_learns_in_the_preactivation_form():
    model, (x, target) = bare(), stretch()
    assert cetsim.layer_names(model) == ["first", "rest.0"]
    grads, _ = gradients(model, x, target, lambda m: default(m, form="preactivation"))
    layers = [oracles.dense(model.first, "tanh"), oracles.dense(model.rest[0])]
    expected, _ = simulate(layers, x, target, form="preactivation")
    assert_same([(layer.weight, layer.bias) for layer in (grads.first, grads.rest[0])], expected)
    # A readout without an activation may say so, and then the forms are one.
    overrides = {"first": {"form": "preactivation"}, "rest.0": {"activation": None}}
    again, _ = gradients(model, x, target, lambda m: default(m, overrides=overrides))
    assert_same(again, grads, 1e-14)


@FORMS
def test_an_activation_that_cannot_be_seen_is_asked_for(form):
    if form == "preactivation":
        default(bare(), form=form)
        return
    with pytest.raises(
        ValueError, match="'first' stands outside a Sequential or MLP, so that its activation is unknow"
    ):
        default(bare(), form=form)


@FORMS
@pytest.mark.parametrize("final", ["identity", "tanh"])
def test_equinox_mlp_learns_as_the_same_sequential(form, final):
    functions = {"identity": lambda x: x, "tanh": jnp.tanh}
    mlp = eqx.nn.MLP(4, 2, 5, 2, jnp.tanh, functions[final], key=jax.random.key(2))
    x, target = stretch()
    grads, _ = gradients(mlp, x, target, lambda m: default(m, form=form))
    names = ("tanh", "tanh", final)
    layers = [oracles.dense(layer, name) for layer, name in zip(mlp.layers, names, strict=True)]
    assert_same(affine_gradients(grads), simulate(layers, x, target, form=form)[0])
    np.testing.assert_array_equal(jax.vmap(default(mlp))(x), jax.vmap(mlp)(x))


def test_activation_with_parameters_is_found_inside_a_loss_too():
    """Its own parameters learn by plain backprop."""
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 5, key=keys[0]), eqx.nn.PReLU(), eqx.nn.Linear(5, 2, key=keys[1])])
    x, target = stretch()
    grads, _ = gradients(model, x, target, default)
    outside = eqx.filter_grad(half_square)(default(model), x, target)
    assert_same(affine_gradients(grads), affine_gradients(cetsim.detach(outside)), 1e-14)
    plain, _ = gradients(model, x, target, lambda m: m)
    assert_same(grads.layers[1], plain.layers[1], 1e-12)


def test_layers_without_bias_and_normalisation_between_layers():
    keys = jax.random.split(jax.random.key(0))
    first, second = eqx.nn.Linear(4, 5, use_bias=False, key=keys[0]), eqx.nn.Linear(5, 2, key=keys[1])
    model = eqx.nn.Sequential([first, eqx.nn.Lambda(jnp.tanh), eqx.nn.LayerNorm(5), second])
    x, target = stretch()
    plain, _ = gradients(model, x, target, lambda m: m)
    traced, _ = gradients(model, x, target, lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0)))
    assert_same(traced, plain, 1e-14)
    late, _ = gradients(model, x, target, default)
    assert_same(late.layers[2], plain.layers[2], 1e-14)
    assert_different(late.layers[0], plain.layers[0])


# Axes: the innermost one is time, those outside it are anything.


def test_leading_axis_of_a_layer_is_time():
    linear, (x, target) = eqx.nn.Linear(4, 2, key=jax.random.key(0)), stretch()
    attach = lambda m: default(m, form="preactivation")  # noqa: E731
    mapped = gradients(linear, x, target, attach)
    at_once = gradients(linear, x, target, attach, lambda m, x, target: 0.5 * jnp.sum((m(x) - target) ** 2))
    assert_same(at_once, mapped, 1e-14)


def test_independent_streams_are_mapped_outside():
    model = mlp()
    x, target = (jnp.stack(arrays) for arrays in zip(*(stretch(seed=seed) for seed in (1, 2, 3)), strict=True))
    together = lambda m, x, target: jnp.sum(jax.vmap(half_square, (None, 0, 0))(m, x, target))  # noqa: E731
    grads, _ = gradients(model, x, target, default, together)
    separate = [gradients(model, x[i], target[i], default)[0] for i in range(3)]
    assert_same(grads, jax.tree.map(lambda *leaves: sum(leaves), *separate), 1e-13)


def test_seeds_delays_and_kinds_of_trace_are_mapped_together():
    x, target = stretch()
    kinds = [CascadingTrace(2, 0.6), CascadingTrace(6, 1.0), ExponentialTrace(0.5), DelayLine(0.6)]
    delays, seeds = jnp.array([0.6, 1.0, 0.6, 0.2]), jnp.arange(4)

    @jax.jit
    def weights(trace, delay, seed):
        model = cetsim.nn.mlp((4, 5, 2), key=jax.random.key(seed))
        loss = lambda m: half_square(cetsim.attach(m, trace, FixedDelay(delay)), x, target)  # noqa: E731
        return eqx.filter_grad(loss)(model).layers[0].weight

    tables = [trace.tabulate(STEPS) for trace in kinds]
    mapped = jax.jit(jax.vmap(weights))(jax.tree.map(lambda *taps: jnp.stack(taps), *tables), delays, seeds)
    for i, trace in enumerate(kinds):
        np.testing.assert_allclose(mapped[i], weights(tables[i], delays[i], seeds[i]), rtol=1e-10, atol=1e-12)
        model = cetsim.nn.mlp((4, 5, 2), key=jax.random.key(i))
        itself, _ = gradients(model, x, target, lambda m, i=i: cetsim.attach(m, kinds[i], FixedDelay(float(delays[i]))))
        np.testing.assert_allclose(mapped[i], itself.layers[0].weight, rtol=1e-10, atol=1e-12)


def test_mapping_conditions_where_time_belongs_is_refused():
    model = mlp()
    one_step = lambda delay: jnp.sum(cetsim.attach(model, CascadingTrace(3, delay), DELAY)(jnp.ones(4)))  # noqa: E731
    with pytest.raises(ValueError, match="innermost vmapped axis of a traced model is time"):
        jax.vmap(jax.grad(one_step))(jnp.array([0.6, 0.8]))


# Parameters are numbers like others.


def test_nothing_is_compiled_anew_when_a_number_changes():
    model, (x, target) = mlp(), stretch()
    traced = []

    @eqx.filter_jit
    def update(model, trace, delay, error_gate):
        traced.append(1)
        return eqx.filter_grad(lambda m: half_square(cetsim.attach(m, trace, delay, error_gate=error_gate), x, target))(
            model
        )

    results = [
        update(model, CascadingTrace(3, seconds), FixedDelay(late), jnp.asarray(gate)).layers[0].weight
        for seconds, late, gate in ((0.6, 0.6, 0.0), (1.0, 0.6, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 0.3))
    ]
    assert len(traced) == 1
    for i in range(3):
        assert_different(results[i], results[i + 1])


@FORMS
def test_alignment_is_differentiable_in_the_delay_through_the_update(form):
    model, (x, target) = mlp(), stretch()
    plain, _ = gradients(model, x, target, lambda m: m)

    @jax.jit
    def alignment(seconds):
        loss = lambda m: half_square(cetsim.attach(m, CascadingTrace(3, seconds), DELAY, form=form), x, target)  # noqa: E731
        return cetsim.metrics.alignment(eqx.filter_grad(loss)(model), plain)["layers.2"]

    step = 1e-5
    slope = (alignment(0.8 + step) - alignment(0.8 - step)) / (2 * step)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(jax.grad(alignment)(0.8), slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(alignment)(0.8), slope, rtol=1e-6)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(form="hebbian"), "`form` must be one of 'activation', .*, got 'hebbian'"),
        (dict(boundary="wrap"), "`boundary` must be one of 'reset', 'carry', got 'wrap'"),
        (dict(error_gate=-1.0), r"`error_gate` must be at least 0, got -1.0"),
        (dict(error_gate=float("nan")), "`error_gate` must be finite, got nan"),
        (dict(error_gate=jnp.ones(3)), r"`error_gate` must be one number, got shape \(3,\)"),
        (dict(boundary="carry", window=-1), "`window` must be at least 0 steps, got -1"),
        (dict(overrides={"layers.1": None}), "names the layer 'layers.1'; the model has layers.0, layers.2, layers.4"),
        (dict(overrides={"layers.0": {"lr": 1}}), r"`overrides\['layers.0'\]` must be one of 'trace', .*, got 'lr'"),
        (dict(overrides={"layers.0": {"trace": 3.0}}), "`trace` must be one of cetsim's traces, got 3.0"),
        (dict(overrides={"layers.0": {"delay": 0.6}}), "`delay` must be a FixedDelay, got 0.6"),
        (dict(overrides={"layers.0": {"delay": FixedDelay(1.0, 1.0)}}), "must have one dt, got 0.2 s and 1 s"),
        (
            dict(overrides={"layers.0": {"trace": CascadingTrace(3, jnp.ones(4))}}),
            r"'layers.0': a trace must be shared or have shape \(5,\), got \(4,\)",
        ),
        (
            dict(overrides={"layers.2": {"feedback": jnp.ones((5, 3))}}),
            r"`feedback` must have shape \(3, 5\), got \(5, 3\)",
        ),
        (dict(overrides={"layers.0": {"activation": jnp.tanh}}), "is known from the model and cannot be overridden"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        default(mlp(), **options)


@pytest.mark.parametrize("shape", [(STEPS + 1,), (STEPS, 3), (STEPS, 5, 1)])
def test_a_signal_that_does_not_fit_is_refused(shape):
    overrides = {"layers.0": {"signal": jnp.ones(shape)}}
    with pytest.raises(ValueError, match=r"`signal` must have shape \(11, 5\) or \(11,\), got \(" + str(shape[0])):
        gradients(mlp(), *stretch(), lambda m: default(m, overrides=overrides))


def sequential(*layers):
    return eqx.nn.Sequential([layer if isinstance(layer, eqx.Module) else eqx.nn.Lambda(layer) for layer in layers])


def linear(inputs=4, outputs=4):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (eqx.nn.LayerNorm(3), "no Linear or Conv2d layer"),
        (eqx.nn.MLP(4, 2, 5, 1, final_activation=jax.nn.softmax, key=jax.random.key(0)), "'layers.1': .* elementwise"),
        (
            sequential(linear(), eqx.nn.LayerNorm(4), jax.nn.relu),
            "activation stands behind layer 'layers.0', but not dir",
        ),
        (sequential(linear(), jnp.tanh, jnp.tanh), "put one activation directly behind its layer"),
        (eqx.nn.MLP(4, 2, 5, 1, eqx.nn.PReLU(), key=jax.random.key(0)), "learns its activations: build it as"),
    ],
)
def test_models_that_the_rule_does_not_cover_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        default(model)


def test_an_override_must_be_elementwise_too():
    with pytest.raises(ValueError, match="layer 'first': the activation must be elementwise, got"):
        default(bare(), overrides={"first": {"activation": jax.nn.softmax}, "rest.0": {"activation": None}})


def test_a_layer_of_an_equinox_mlp_cannot_be_left_out():
    with pytest.raises(ValueError, match="layer 'layers.0' of an eqx.nn.MLP cannot be left untraced"):
        default(eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0)), overrides={"layers.0": None})


def test_attaching_twice_is_refused():
    with pytest.raises(ValueError, match="'layers.0' has a trace already: `detach` the model first"):
        default(default(mlp()))
