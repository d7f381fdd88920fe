"""Attaching: signals from outside, layers that differ, models of other kinds, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import (
    DT,
    FORMS,
    NETWORKS,
    STEPS,
    TRACE,
    affine_gradients,
    assert_different,
    assert_same,
    default,
    gradients,
    half_square,
    mlp,
    mlp_oracle,
    once,
    segment,
    simulate,
)

import cetsim
from cetsim import CascadingTrace, DelayLine, FIRTrace, FixedDelay

# Learning signals handed in.


@pytest.mark.parametrize("network", NETWORKS)
def test_scalar_third_factor_replaces_every_error(network):
    make, oracle, shape = NETWORKS[network]
    model, (x, target) = make(), segment(shape)
    reward = np.random.default_rng(3).normal(size=STEPS)
    grads, input_grad = gradients(model, x, target, lambda m: default(m, signal=jnp.asarray(reward)))
    layers, flat = oracle(model), np.asarray(x).reshape(STEPS, -1)
    factors, input_error = oracles.backward(layers, flat, oracles.forward(layers, flat)[0] - np.asarray(target))
    spread = [np.broadcast_to(reward[:, None, None], layer.error.shape) for layer in factors]
    expected = [oracles.update(TRACE, 3, layer, signal=s) for layer, s in zip(factors, spread, strict=True)]
    assert_same(affine_gradients(grads), expected)
    assert_same(input_grad.reshape(STEPS, -1), input_error)  # errors themselves still travel


def test_direct_feedback_alignment_by_signals_from_outside():
    model, (x, target) = mlp(), segment()
    rng = np.random.default_rng(4)
    error = jax.vmap(model, axis_name="time")(x) - target
    directly = {"layers.0": error @ rng.normal(size=(2, 5)), "layers.2": error @ rng.normal(size=(2, 3))}
    overrides = {name: {"signal": signal} for name, signal in directly.items()}
    grads, _ = gradients(model, x, target, lambda m: default(m, overrides=overrides))
    factors, _ = oracles.backward(mlp_oracle(model), np.asarray(x), np.asarray(error))
    signals = [*(np.asarray(signal)[:, None] for signal in directly.values()), factors[2].error]
    expected = [oracles.update(TRACE, 3, layer, signal=s) for layer, s in zip(factors, signals, strict=True)]
    assert_same(affine_gradients(grads), expected)


def test_feedback_alignment_sends_errors_through_its_own_weights():
    model, (x, target) = mlp(), segment()
    back = [None, *(np.random.default_rng(5).normal(size=shape) for shape in ((3, 5), (2, 3)))]
    overrides = {f"layers.{2 * i}": {"feedback": jnp.asarray(back[i])} for i in (1, 2)}
    attach = lambda m: default(m, overrides=overrides)  # noqa: E731
    grads, input_grad = gradients(model, x, target, attach)
    expected, input_error = simulate(mlp_oracle(model, feedback=back), x, target)
    assert_same(affine_gradients(grads), expected)
    assert_same(input_grad, input_error)
    np.testing.assert_allclose(
        jax.vmap(attach(model), axis_name="time")(x), jax.vmap(model, axis_name="time")(x), rtol=1e-12
    )


# Overrides, and models of other kinds.


def test_layers_differ_as_overrides_say():
    model, (x, target) = mlp(), segment()
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
    model, (x, target) = bare(), segment()
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
    x, target = segment()
    grads, _ = gradients(mlp, x, target, lambda m: default(m, form=form))
    names = ("tanh", "tanh", final)
    layers = [oracles.dense(layer, name) for layer, name in zip(mlp.layers, names, strict=True)]
    assert_same(affine_gradients(grads), simulate(layers, x, target, form=form)[0])
    np.testing.assert_array_equal(jax.vmap(default(mlp), axis_name="time")(x), jax.vmap(mlp)(x))


def test_activation_with_parameters_is_found_inside_a_loss_too():
    """Its own parameters learn by plain backprop."""
    keys = jax.random.split(jax.random.key(0))
    learned = eqx.nn.Lambda(eqx.nn.PReLU())
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 5, key=keys[0]), learned, eqx.nn.Linear(5, 2, key=keys[1])])
    x, target = segment()
    attach = lambda m: default(m, overrides={"layers.1": None})  # noqa: E731
    grads, _ = gradients(model, x, target, attach)
    outside = eqx.filter_grad(half_square)(attach(model), x, target)
    assert_same(affine_gradients(grads), affine_gradients(cetsim.detach(outside)), 1e-14)
    plain, _ = gradients(model, x, target, lambda m: m)
    assert_same(grads.layers[1], plain.layers[1], 1e-12)


def test_layers_without_bias_and_normalisation_between_layers():
    keys = jax.random.split(jax.random.key(0))
    first, second = eqx.nn.Linear(4, 5, use_bias=False, key=keys[0]), eqx.nn.Linear(5, 2, key=keys[1])
    model = eqx.nn.Sequential([first, eqx.nn.Lambda(jnp.tanh), eqx.nn.LayerNorm(5), second])
    x, target = segment()
    plain, _ = gradients(model, x, target, lambda m: m)
    norm = {"layers.2": None}
    traced, _ = gradients(model, x, target, lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0), overrides=norm))
    assert_same(traced, plain, 1e-14)
    late, _ = gradients(model, x, target, lambda m: default(m, overrides=norm))
    assert_same(late.layers[2], plain.layers[2], 1e-14)
    assert_different(late.layers[0], plain.layers[0])


# Which functions are taken for activations.


def images(layer, *behind):
    """A convolution of images and what stands behind it."""
    conv = eqx.nn.Conv2d(2, 3, 3, padding=1, key=jax.random.key(0))
    return eqx.nn.Sequential([conv, *behind, eqx.nn.Lambda(jnp.ravel), linear(layer, 2)])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_function_that_mixes_channels_or_pixels_is_none(axis):
    """What is no activation stays where it is, so that without delay nothing but backprop is left."""
    model, (x, target) = images(48, eqx.nn.Lambda(lambda z: z * jax.nn.softmax(z, axis))), segment((2, 4, 4))
    undelayed = lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0))  # noqa: E731
    assert undelayed(model).layers[0].activation is None
    assert_same(gradients(model, x, target, undelayed), gradients(model, x, target, lambda m: m), 1e-12)


@pytest.mark.parametrize("units", [1, 2, 5])
def test_functions_that_mix_units_are_none_however_many_there_are(units):
    mixing = (jax.nn.softmax, lambda z: z - z.max(), lambda z: z - z.min(), lambda z: jax.nn.relu(z - z.mean()))
    for function in mixing if units > 1 else ():
        assert default(sequential(linear(4, units), function)).layers[0].activation is None
    for function in (jnp.tanh, jax.nn.relu, jax.nn.softplus, jnp.sqrt, lambda z: 0 * z):
        assert default(sequential(linear(4, units), function)).layers[0].activation is not None


def test_an_activation_with_a_parameter_for_each_unit():
    slopes = jnp.linspace(0.1, 0.5, 5)
    model, (x, target) = sequential(linear(4, 5), eqx.nn.PReLU(slopes), linear(5, 2)), segment()
    learned = {"layers.1": None}
    assert isinstance(default(model, overrides=learned).layers[0].activation, eqx.nn.PReLU)
    sloped = lambda z: jnp.where(z >= 0, z, slopes * z)  # noqa: E731
    fixed = sequential(model.layers[0], sloped, model.layers[2])
    (learned, _), (wanted, _) = (
        gradients(m, x, target, lambda m, o=o: default(m, overrides=o)) for m, o in ((model, learned), (fixed, None))
    )
    assert_same(learned.layers[::2], wanted.layers[::2], 1e-13)


def test_activations_are_found_wherever_a_model_is_attached():
    """Inside maps and derivatives too, where relu is traced even if its argument is known."""
    x, target = segment()
    found = []

    def update(seed):
        model = cetsim.nn.mlp((4, 5, 2), key=jax.random.key(seed))
        attach = lambda m: found.append(default(m)) or found[-1]  # noqa: E731
        grads = eqx.filter_grad(lambda m: half_square(attach(m), x, target))(model)
        return jax.tree.leaves(grads)

    alone = jax.jit(update)
    mapped, looped = (jax.jit(lambda seeds, over=over: over(update, seeds)) for over in (vmapped, jax.lax.map))
    for together in (mapped(jnp.arange(2)), looped(jnp.arange(2))):
        for seed in (0, 1):
            assert_same([leaf[seed] for leaf in together], alone(seed), 1e-13)
    for model in found:
        assert [block.activation is None for block in model.layers[::2]] == [False, True]


def vmapped(function, over):
    return jax.vmap(function)(over)


def test_an_activation_that_closes_over_a_traced_value_is_refused():
    """Nobody could tell whether it is one; one that holds the value in a field is found."""
    closure = lambda slope: lambda z: jnp.where(z >= 0, z, slope * z)  # noqa: E731

    def attach(slope, make):
        overrides = {"layers.1": None} if make is eqx.nn.PReLU else None
        return default(sequential(linear(), make(slope)), overrides=overrides).layers[0].activation

    with pytest.raises(ValueError, match=r"is an activation cannot be told, .* make it an eqx.Module that holds"):
        jax.jit(lambda slope: attach(slope, closure) and 0)(0.2)
    held = []
    jax.jit(lambda slope: held.append(attach(slope, eqx.nn.PReLU)) or 0)(0.2)
    assert isinstance(held[0], eqx.nn.PReLU)
    assert attach(0.2, closure) is not None


def test_what_stands_behind_may_want_another_shape():
    to_image = eqx.nn.Lambda(lambda z: z.reshape(1, 2, 2))
    pools = (eqx.nn.MaxPool2d(2), eqx.nn.AvgPool2d(2), eqx.nn.AvgPool2d(1))
    for pool in pools:
        model = sequential(linear(), jax.nn.relu, to_image, pool)
        np.testing.assert_array_equal(once(default(model), jnp.ones(4)), once(model, jnp.ones(4)))
    model = images(48, eqx.nn.Lambda(jax.nn.relu), eqx.nn.AvgPool2d(1))
    assert default(model).layers[0].pool is not None  # not another activation


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
        (dict(overrides={"layers.0": {"delay": 0.6}}), "`delay` must be one of cetsim.s delays, got 0.6"),
        (dict(overrides={"layers.0": {"delay": FixedDelay(1.0, 1.0)}}), r"must have one dt, got 0.2 s and 1.0 s"),
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
        gradients(mlp(), *segment(), lambda m: default(m, overrides=overrides))


def sequential(*layers):
    return eqx.nn.Sequential([layer if isinstance(layer, eqx.Module) else eqx.nn.Lambda(layer) for layer in layers])


def linear(inputs=4, outputs=4):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (eqx.nn.LayerNorm(3), "no Linear, Conv, ConvTranspose or Embedding layer"),
        (eqx.nn.MLP(4, 2, 5, 1, final_activation=jax.nn.softmax, key=jax.random.key(0)), "'layers.1' .* elementwise"),
        (sequential(linear(), eqx.nn.LayerNorm(4), jax.nn.relu), "'layers.0' has an activation .*, but not directly"),
        (sequential(linear(), jnp.tanh, jnp.tanh), "put the layer and one activation directly behind it in an"),
        (eqx.nn.MLP(4, 2, 5, 1, eqx.nn.PReLU(), key=jax.random.key(0)), "learns its activations: build it as"),
    ],
)
def test_models_that_the_rule_does_not_cover_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        default(model)


def test_an_activation_that_the_model_applies_too_is_refused():
    with pytest.raises(ValueError, match=r"'first': `activation` can only say that there is none .* once more"):
        default(bare(), overrides={"first": {"activation": jnp.tanh}, "rest.0": {"activation": None}})


def test_a_hidden_layer_of_an_equinox_mlp_cannot_be_left_out_alone():
    """Its hidden layers share one activation, which the blocks of the others apply."""
    deep, shallow = (eqx.nn.MLP(4, 2, 5, depth, key=jax.random.key(0)) for depth in (2, 1))
    with pytest.raises(ValueError, match=r"layer 'layers.0' of an eqx.nn.MLP cannot be left untraced"):
        default(deep, overrides={"layers.0": None})
    x = jnp.linspace(-1.0, 1.0, 4)
    for model, left in ((shallow, "layers.0"), (deep, "layers.2"), (deep, "layers")):
        np.testing.assert_array_equal(once(default(model, overrides={left: None}), x), once(model, x))


def test_attaching_twice_is_refused():
    with pytest.raises(ValueError, match=r"'layers.0' has a trace already: `detach` the model first"):
        default(default(mlp()))
