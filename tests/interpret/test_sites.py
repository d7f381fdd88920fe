"""Which sites a model has, what they are called, and what is no site."""

import equinox as eqx
import inside_networks as networks
import jax
import jax.numpy as jnp
import pytest

import cetsim
from cetsim import interpret

X = jnp.ones(4)


def test_names_are_those_of_layers_with_what_stands_between_and_around_them():
    model, _, _ = networks.mlp()
    assert list(interpret.sites(model)) == [f"layers.{i}" for i in range(5)]
    assert set(cetsim.layer_names(model)) < set(interpret.sites(model))
    assert interpret.sites(model)["layers.1"] == interpret.Site("Lambda")
    names = list(interpret.sites(networks.transformer()[0]))
    assert names[:3] == ["embed", "blocks.0", "blocks.0.norms.0"]
    assert "blocks.1.mlp.layers.1" in names


def test_attached_and_edited_models_have_the_sites_of_the_plain_one():
    attached, edited = networks.attached()[0], networks.mlp()[0]
    edited = interpret.edited(edited, {"layers.1": interpret.Add(1.0)})
    assert interpret.sites(attached) == interpret.sites(edited) == interpret.sites(networks.mlp()[0])


def test_shapes_come_from_an_example_with_the_axes_of_inner_maps_in_front():
    found = interpret.sites(networks.transformer()[0], jnp.ones((4, 4)))
    shapes = {name: site.shape for name, site in found.items()}
    assert shapes["embed"] == (4, 8)
    assert shapes["blocks.1.mlp.layers.1"] == (5, 6)
    assert shapes["blocks.0.attention.dropout"] == (2, 5, 5)
    assert shapes["head"] == (3,)
    assert {site.dtype for site in found.values()} == {jnp.dtype(float)}
    assert {site.fault for site in found.values()} == {None}


def test_sites_are_shown_as_a_table():
    assert repr(interpret.sites(networks.mlp()[0], X)).splitlines()[:2] == [
        "site      kind    value",
        "layers.0  Linear  float64[6]",
    ]


class Odd(eqx.Module):
    """Uses one module twice, one never, one for whole numbers, and one for two arrays."""

    twice: eqx.nn.Linear
    never: eqx.nn.Linear
    whole: eqx.nn.Lambda
    pair: eqx.nn.Lambda

    def __init__(self):
        self.twice, self.never = (eqx.nn.Linear(4, 4, key=jax.random.key(i)) for i in range(2))
        self.whole, self.pair = eqx.nn.Lambda(jnp.argmax), eqx.nn.Lambda(lambda x: (x, x))

    def __call__(self, x):
        return self.pair(self.twice(self.twice(x)))[0] + self.whole(x)


def test_what_cannot_be_captured_says_why():
    faults = {name: site.fault for name, site in interpret.sites(Odd(), X).items()}
    assert faults == {
        "twice": "site 'twice' runs 2 times in one call of the model: it needs a module a run",
        "never": "site 'never' does not run when the model is called",
        "whole": "site 'whole' returns an array of int64, where a site's value is one array of floating point numbers",
        "pair": "site 'pair' returns a tuple, where a site's value is one array of floating point numbers",
    }
    for name, fault in faults.items():
        with pytest.raises(ValueError, match=f"^{fault}$"):
            interpret.capture(Odd(), name)(X)
        with pytest.raises(ValueError, match=f"^{fault}$"):
            interpret.edited(Odd(), {name: interpret.Set(0.0)})(X)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("layers.10", "the nearest are 'layers.1', 'layers.0', 'layers.4'"),
        ("layer.2", "the nearest are 'layers.2', 'layers.4', 'layers.3'"),
        ("?", "the nearest are 'layers.0', 'layers.1', 'layers.2'"),
        ("", "the nearest are 'layers.0', 'layers.1', 'layers.2'"),
    ],
)
def test_unknown_sites_are_refused_with_the_nearest_names(name, nearest):
    model = networks.mlp()[0]
    message = rf"^the model has no site {name!r}: {nearest} \(cetsim.interpret.sites lists all\)$".replace("?", r"\?")
    for refused in (
        lambda: interpret.capture(model, ["layers.0", name]),
        lambda: interpret.capture(model, [], stop_at=name),
        lambda: interpret.capture(model, [], {name: interpret.Set(0.0)}),
        lambda: interpret.edited(model, {name: interpret.Set(0.0)}),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_models_without_sites_and_what_is_no_model_are_refused():
    with pytest.raises(ValueError, match=r"^the model has no site 'weight': it has none "):
        interpret.capture(eqx.nn.Linear(2, 2, key=jax.random.key(0)), "weight")
    with pytest.raises(ValueError, match=r"^a model must be a callable Equinox module, got <PjitFunction"):
        interpret.sites(jnp.tanh)
    with pytest.raises(ValueError, match=r"^two modules of the model have the name 'nets.a.b'"):
        interpret.sites(Named({"a.b": eqx.nn.Identity(), "a": {"b": eqx.nn.Identity()}}))


class Named(eqx.Module):
    nets: dict

    def __call__(self, x):
        return x


def test_code_that_reads_weights_classes_and_methods_of_its_modules_goes_on():
    class Reads(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            assert isinstance(self.layer, eqx.nn.Linear)
            return self.layer(x) + self.layer.weight @ x

    model = Reads(eqx.nn.Linear(4, 4, key=jax.random.key(0)))
    output, values = interpret.capture(model, "layer")(X)
    assert jnp.array_equal(output, model(X))
    assert jnp.array_equal(values["layer"], model.layer(X))
    kept = interpret.edited(model, {"layer": interpret.Add(1.0)})
    assert isinstance(kept, Reads)
    assert kept.layer.weight is model.layer.weight
