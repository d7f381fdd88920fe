"""What `attach` sees through containers of layers: the activation behind each layer is found, or refused by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import TRACE, assert_same, default, gradients, half_square, jit, once, segment, simulate

import cetsim
from cetsim import DelayLine, FixedDelay
from cetsim.nn import surgery

KEYS = jax.random.split(jax.random.key(0), 8)
TANH, RELU = eqx.nn.Lambda(jnp.tanh), eqx.nn.Lambda(jax.nn.relu)


def linear(inputs, outputs, key=0):
    return eqx.nn.Linear(inputs, outputs, key=KEYS[key])


def learned(model):
    """Weights and biases of all layers of a gradient."""
    return [(site.layer.weight, site.layer.bias) for site in surgery.sites(model)]


def test_activations_behind_inner_containers_are_found():
    """A Sequential that ends in a layer, and an MLP whose last activation is the identity, as of one Sequential."""
    inner = eqx.nn.Sequential([eqx.nn.Identity(), linear(4, 5), eqx.nn.Lambda(lambda x: x)])
    deeper = eqx.nn.Sequential([eqx.nn.Sequential([TANH]), eqx.nn.MLP(5, 3, 6, 1, jax.nn.softplus, key=KEYS[1])])
    model = eqx.nn.Sequential([inner, deeper, TANH, linear(3, 2, 2)])
    x, target = segment()
    grads, down = gradients(model, x, target, default)
    mlp = deeper.layers[1].layers
    names = ("tanh", "softplus", "tanh", "identity")
    layers = [oracles.dense(*pair) for pair in zip((inner.layers[1], *mlp, model.layers[3]), names, strict=True)]
    updates, below = simulate(layers, x, target)
    assert_same(learned(grads), updates)
    assert_same(down, below)
    attached = default(model)
    np.testing.assert_allclose(once(attached, x[0]), once(model, x[0]), rtol=1e-14)
    assert eqx.tree_equal(cetsim.detach(attached), model)
    outside = cetsim.detach(jit(eqx.filter_grad(half_square))(attached, x, target))
    assert jax.tree.structure(outside) == jax.tree.structure(grads)
    assert_same(outside, grads, 1e-13)


class Calls(eqx.Module):
    """A container called by code of its own, with an activation behind it."""

    body: eqx.Module
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


@pytest.mark.parametrize(
    "body", [eqx.nn.Sequential([linear(4, 5), TANH, linear(5, 3, 1)]), eqx.nn.MLP(4, 3, 5, 1, jnp.tanh, key=KEYS[0])]
)
def test_the_end_of_a_container_that_other_code_calls_is_refused_or_said_to_be_one(body):
    model, (x, target) = Calls(body, linear(3, 2, 2)), segment()
    last = cetsim.layer_names(model)[1]
    with pytest.raises(ValueError, match=f"'{last}' is the last of a Sequential or MLP that other code calls, so that"):
        default(model, overrides={"head": {"activation": None}})
    overrides = {last: {"form": "preactivation"}, "head": {"activation": None}}
    grads, _ = gradients(model, x, target, lambda m: default(m, overrides=overrides))
    parts = [site.layer for site in surgery.sites(model)]
    layers = [oracles.dense(*pair) for pair in zip(parts, ("tanh", "tanh", "identity"), strict=True)]
    wanted = [simulate(layers, x, target, form=form)[0] for form in ("activation", "preactivation")]
    assert_same(learned(grads), [wanted[0][0], wanted[1][1], wanted[0][2]])


class Residual(eqx.nn.Sequential):
    """A Sequential with a way around it."""

    def __call__(self, x, *, key=None):
        return x + super().__call__(x)


def test_what_a_subclass_does_with_its_layers_is_not_guessed():
    """Behind the sum is no activation of the layer's own."""
    model = eqx.nn.Sequential([linear(4, 4), TANH, Residual([linear(4, 4, 1)]), TANH])
    with pytest.raises(ValueError, match=r"'layers.2.layers.0' stands outside a Sequential or MLP"):
        default(model)
    model = default(model, overrides={"layers.2": {"form": "preactivation"}})
    assert model.layers[0].activation is TANH
    assert model.layers[2].layers[0].activation is None
    assert isinstance(model.layers[3], eqx.nn.Lambda)


def test_preactivation_needs_to_know_of_no_activation():
    """Whatever stands behind: the plain gradient where nothing is late, the oracle's where it is."""
    model = eqx.nn.Sequential([linear(4, 5), eqx.nn.LayerNorm(5), RELU, linear(5, 3, 1), TANH, TANH, linear(3, 2, 2)])
    x, target = segment()
    late = {"layers.1": None}
    undelayed = lambda m: cetsim.attach(m, DelayLine(0.0), FixedDelay(0.0), form="preactivation", overrides=late)  # noqa: E731
    assert_same(gradients(model, x, target, undelayed), gradients(model, x, target, lambda m: m), 1e-12)
    grads, _ = gradients(model, x, target, lambda m: default(m, form="preactivation", overrides=late))
    nudges = [jnp.zeros((len(x), units)) for units in (5, 3)]
    errors = jit(jax.grad(lambda nudges: half_square_nudged(model, x, target, nudges)))(nudges)
    below = jax.vmap(lambda row: jax.nn.relu(model.layers[1](model.layers[0](row))))(x)
    for layer, seen, error in ((grads.layers[0], x, errors[0]), (grads.layers[3], below, errors[1])):
        factors = oracles.Factors(
            np.asarray(seen)[:, None], np.ones((len(x), 1, error.shape[-1])), np.asarray(error)[:, None]
        )
        assert_same([layer.weight, layer.bias], oracles.update(TRACE, 3, factors, form="preactivation"))


def half_square_nudged(model, x, target, nudges):
    first, norm, relu, second, *rest = model.layers

    def step(row, one, two):
        z = second(relu(norm(first(row) + one))) + two
        for layer in rest:
            z = layer(z)
        return z

    return 0.5 * jnp.sum((jax.vmap(step)(x, *nudges) - target) ** 2)


# Activations with a derivative of their own.


@jax.custom_vjp
def spike(v):
    """A spike above 0, with the slope of a fast sigmoid on the way back."""
    return jnp.where(v > 0, 1.0, 0.0)


spike.defvjp(lambda v: (spike(v), v), lambda v, error: (error / (1 + jnp.abs(v)) ** 2,))


@jax.custom_jvp
def boxcar(v):
    """A spike above 0, with the slope of a boxcar."""
    return jnp.where(v > 0, 1.0, 0.0)


boxcar.defjvp(lambda v, dv: (boxcar(v[0]), jnp.where(jnp.abs(v[0]) < 0.5, dv[0], 0.0)))


@jax.custom_gradient
def arctan(v):
    """A spike above 0, with the slope of an arctangent."""
    return jnp.where(v > 0, 1.0, 0.0), lambda error: error / (1 + v**2)


SPIKES = {
    "custom_vjp": (spike, lambda v: 1 / (1 + np.abs(v)) ** 2),
    "custom_jvp": (boxcar, lambda v: (np.abs(v) < 0.5) * 1.0),
    "custom_gradient": (arctan, lambda v: 1 / (1 + v**2)),
}


@pytest.mark.parametrize("kind", SPIKES)
@pytest.mark.parametrize("container", ["Sequential", "MLP"])
def test_activations_with_a_derivative_of_their_own(monkeypatch, kind, container):
    function, slope = SPIKES[kind]
    monkeypatch.setitem(oracles.ACTIVATIONS, kind, (lambda v: (v > 0) * 1.0, slope))
    model = eqx.nn.MLP(4, 2, 5, 1, function, key=KEYS[0])
    parts = model.layers
    if container == "Sequential":
        model = eqx.nn.Sequential([parts[0], eqx.nn.Lambda(function), parts[1]])
    x, target = segment()
    grads, _ = gradients(model, x, target, default)
    layers = [oracles.dense(parts[0], kind), oracles.dense(parts[1])]
    assert_same(learned(grads), simulate(layers, x, target)[0])


def test_updates_of_spiking_layers_have_a_derivative_in_the_delay():
    """Forwards and backwards, as with other activations."""
    model, (x, target) = eqx.nn.MLP(4, 2, 5, 1, spike, key=KEYS[0]), segment()

    def size(delay):
        trace = cetsim.CascadingTrace(3, delay, 0.2)
        grads = eqx.filter_grad(lambda m: half_square(cetsim.attach(m, trace, FixedDelay(0.6)), x, target))(model)
        return jnp.sum(grads.layers[0].weight ** 2)

    forwards, backwards = jax.jit(jax.jacfwd(size))(0.8), jax.jit(jax.grad(size))(0.8)
    step = 1e-5
    slope = (jax.jit(size)(0.8 + step) - jax.jit(size)(0.8 - step)) / (2 * step)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose([forwards, backwards], slope, rtol=1e-6)


class Noisy(eqx.Module):
    """An activation that cannot be called without a key."""

    def __call__(self, x, *, key):
        return jnp.tanh(x + jax.random.normal(key, x.shape))


def test_an_activation_that_takes_a_key_is_not_passed_over():
    with pytest.raises(ValueError, match=r"'layers.0' has something behind it that takes a key and may be its act"):
        default(eqx.nn.Sequential([linear(4, 5), Noisy()]))
    default(eqx.nn.Sequential([linear(4, 5), Noisy()]), form="preactivation")
    for behind in (
        [eqx.nn.Dropout()],
        [TANH, Noisy()],
        [eqx.nn.Lambda(lambda x: x.reshape(5, 1, 1)), eqx.nn.Dropout()],
    ):
        default(eqx.nn.Sequential([linear(4, 5), *behind]))


def test_what_turns_a_row_around_is_no_activation():
    assert default(eqx.nn.Sequential([linear(4, 5), eqx.nn.Lambda(jnp.flip)])).layers[0].activation is None


def test_a_function_with_the_value_of_the_identity_and_another_derivative_is_an_activation():
    """A clipped or reversed gradient is part of what stands behind a layer."""
    reverse = jax.custom_vjp(lambda v: v)
    reverse.defvjp(lambda v: (v, None), lambda _, error: (-error,))
    assert default(eqx.nn.Sequential([linear(4, 5), eqx.nn.Lambda(reverse)])).layers[0].activation is not None
    with pytest.raises(ValueError, match="but not directly or not alone"):
        default(eqx.nn.Sequential([linear(4, 5), eqx.nn.Lambda(reverse), TANH]))
    clip = eqx.nn.Lambda(lambda v: jnp.clip(v, -6.0, 6.0))
    assert default(eqx.nn.Sequential([linear(4, 5), clip])).layers[0].activation is clip


def test_activations_with_parameters_for_every_pixel():
    conv = eqx.nn.Conv2d(1, 2, 3, padding=1, key=KEYS[0])
    slopes = jnp.linspace(0.1, 0.5, 32).reshape(2, 4, 4)
    model = eqx.nn.Sequential([conv, eqx.nn.Lambda(eqx.nn.PReLU(slopes))])
    attached = default(model, overrides={"layers.1": None})
    assert attached.layers[0].activation is not None
    image = jnp.linspace(-1, 1, 16).reshape(1, 4, 4)
    np.testing.assert_array_equal(once(attached, image), once(model, image))


# What is refused.


def test_a_cascade_of_derivatives_has_to_know_the_activation():
    model = Calls(eqx.nn.Sequential([linear(4, 3), TANH]), linear(3, 2, 2))
    with pytest.raises(ValueError, match=r"'head' stands outside .*, but derivative='cascade' has to know"):
        default(model, form="preactivation", derivative="cascade")


def test_a_signal_that_is_handed_in_stands_for_the_error_of_the_activation():
    model, signal = Calls(eqx.nn.Sequential([linear(4, 3), TANH]), linear(3, 2, 2)), jnp.ones(11)
    with pytest.raises(ValueError, match=r"'head' stands outside .*, but a signal that is handed in"):
        default(model, form="preactivation", signal=signal)
    default(model, form="preactivation", signal=signal, overrides={"head": {"activation": None}})


def test_weights_are_not_read_past_their_trace():
    model = default(eqx.nn.Sequential([linear(4, 3)]))
    with pytest.raises(AttributeError, match=r"a layer with a trace is only called. .* at `.affine.weight`, and"):
        _ = model.layers[0].weight
    assert not hasattr(model.layers[0], "bias")


def test_an_mlp_that_scans_over_its_layers_is_refused():
    model = eqx.nn.MLP(4, 2, 5, 3, scan=True, key=KEYS[0])
    with pytest.raises(ValueError, match="the MLP '' scans over its layers: build it with scan=False"):
        default(model)


def test_an_mlp_without_hidden_layers_calls_no_activation():
    model, x = eqx.nn.MLP(4, 2, 5, 0, final_activation=jnp.tanh, key=KEYS[0]), jnp.linspace(-1, 1, 4)
    np.testing.assert_array_equal(once(default(model), x), once(model, x))


def test_an_mlp_that_learns_its_activations_takes_the_preactivation_form():
    model = eqx.nn.MLP(4, 2, 5, 1, eqx.nn.PReLU(), key=KEYS[0])
    attached, x = default(model, form="preactivation", overrides={"activation": None}), jnp.linspace(-1, 1, 4)
    np.testing.assert_array_equal(once(attached, x), once(model, x))
    assert eqx.tree_equal(cetsim.detach(attached), model)


def test_attaching_an_mlp_twice_or_inside_a_streaming_loss_is_refused():
    model = eqx.nn.MLP(4, 2, 5, 1, key=KEYS[0])
    with pytest.raises(ValueError, match=r"'layers.0' has a trace already: `detach` the model first"):
        default(default(model))
    x, target = segment()
    attached = default(model, boundary="carry", window=4)
    state = cetsim.streaming_init(attached, x[0])
    attach = cetsim.streaming_value_and_grad(lambda m: half_square(default(m, boundary="carry"), x, target))
    with pytest.raises(ValueError, match=r"'layers.0' has a trace already"):
        attach(attached, state)
    with pytest.raises(ValueError, match=r"the model has no traces: attach them .* not inside the loss"):
        attach(model, state)


def test_two_layers_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two layers of the model have the name 'a.b'"):
        default({"a.b": linear(4, 4), "a": {"b": linear(4, 4)}}, form="preactivation")
