"""Edits do what their formulas say, at every site of every kind of network, under every transformation."""

import functools

import equinox as eqx
import inside_networks as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import detach, interpret
from cetsim.interpret import Ablate, Add, Clamp, Set, Splice

KINDS = pytest.mark.parametrize("kind", networks.KINDS)
jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})
EDITS = ("zero", "mean", "resample", "set", "add", "clamp", "splice")


def every_edit(values, on):
    """One edit of each of `EDITS` of a site, each weighed by its entry of `on`; `values` [examples, *site]."""
    rng = np.random.default_rng(0)
    shape = values.shape[1:]
    axis = 0 if len(shape) > 2 else None
    vectors = tuple(np.delete(shape, 0 if len(shape) > 2 else -1))
    stand_in, noise = networks.coder(shape[0] if len(shape) > 2 else shape[-1]), rng.normal(size=(2, *shape))
    tokens = [jnp.full(vectors, weight) for weight in on[5:]]
    return (
        Ablate("zero", where=on[0]),
        Ablate("mean", values, where=on[1]),
        Ablate("resample", values, where=on[2], key=jax.random.key(0)),
        Set(noise[0], on[3]),
        Add(noise[1], on[4]),
        Clamp(stand_in, jnp.arange(2), 2.5, tokens[0], axis=axis),
        Splice(stand_in, tokens[1], axis=axis),
    )


@KINDS
def test_every_edit_at_every_site_changes_the_output(kind):
    """All edits at all sites are one program, in which one weight at a time is 1."""
    model, shape, state = networks.KINDS[kind]()
    names, x = list(interpret.sites(model)), networks.images(shape)

    @jit
    def program(x, on):  # on [rows, sites, edits]
        _, values = networks.captured(interpret.capture(model, names), state, x)

        def row(on):
            edits = {name: every_edit(values[name], on[i]) for i, name in enumerate(names)}
            return networks.outputs(interpret.edited(model, edits), state, x)

        return jax.lax.map(row, on)

    on = np.eye(len(names) * len(EDITS)).reshape(-1, len(names), len(EDITS))
    off = np.zeros((1, *on.shape[1:]))
    clean, *rows = program(x, jnp.concatenate([off, on]))
    np.testing.assert_allclose(clean, jit(lambda x: networks.outputs(detach(model), state, x))(x), rtol=1e-9)
    changed = np.abs(np.asarray(rows) - clean).max(axis=(1, 2)).reshape(len(names), len(EDITS))
    silent = [(name, edit) for i, name in enumerate(names) for j, edit in enumerate(EDITS) if changed[i, j] < 1e-6]
    assert silent == []


def edit_at(edit, value):
    """What an edit makes of a value, by itself."""
    return np.asarray(edit(jnp.asarray(value)))


VALUE = np.random.default_rng(2).normal(size=(5, 4))
TARGET = np.random.default_rng(3).normal(size=(5, 4))


def test_set_add_and_ablate_are_their_formulas():
    where = np.random.default_rng(4).uniform(size=(5, 1))
    np.testing.assert_array_equal(edit_at(Set(TARGET), VALUE), TARGET)
    np.testing.assert_array_equal(edit_at(Set(3), VALUE), np.full((5, 4), 3.0))
    np.testing.assert_array_equal(edit_at(Set(TARGET[0]), VALUE), np.tile(TARGET[0], (5, 1)))
    np.testing.assert_allclose(edit_at(Set(TARGET, where), VALUE), VALUE + where * (TARGET - VALUE), rtol=1e-12)
    np.testing.assert_array_equal(edit_at(Set(TARGET, VALUE > 0), VALUE), np.where(VALUE > 0, TARGET, VALUE))
    np.testing.assert_allclose(edit_at(Add(TARGET, where), VALUE), VALUE + where * TARGET, rtol=1e-12)
    np.testing.assert_array_equal(edit_at(Ablate(), VALUE), np.zeros((5, 4)))
    data = np.random.default_rng(5).normal(size=(7, 5, 4))
    np.testing.assert_allclose(edit_at(Ablate("mean", data), VALUE), data.mean(0), rtol=1e-12)
    drawn = [edit_at(Ablate("resample", data, key=jax.random.key(i)), VALUE) for i in range(40)]
    places = [np.flatnonzero((data == each).all((1, 2))).tolist() for each in drawn]
    assert {len(place) for place in places} == {1}
    assert {place for (place,) in places} == set(range(7))


def test_clamp_and_splice_are_their_formulas():
    coder = networks.coder(4)
    W, b, D = (np.asarray(part) for part in (coder.W_enc, coder.b, coder.W_dec))
    f = np.maximum(VALUE @ W.T + b, 0)
    error = VALUE - f @ D
    want = VALUE + (3 - f[:, [2]]) * D[2]
    np.testing.assert_allclose(edit_at(Clamp(coder, 2, 3), VALUE), want, rtol=1e-12)
    changed = f.copy()
    changed[:, 2], changed[:, 4] = 3, 0.5
    both = edit_at(Clamp(coder, [2, 4], [3, 0.5]), VALUE)
    np.testing.assert_allclose(both, changed @ D + error, rtol=1e-12)
    without = edit_at(Clamp(coder, [2, 4], [3, 0.5], keep_error=False), VALUE)
    np.testing.assert_allclose(without, changed @ D, rtol=1e-12)
    for tokens in ([1, 3], np.isin(np.arange(5), [1, 3])):
        some = edit_at(Clamp(coder, 2, 3, tokens), VALUE)
        np.testing.assert_array_equal(some[[0, 2, 4]], VALUE[[0, 2, 4]])
        np.testing.assert_allclose(some[[1, 3]], want[[1, 3]], rtol=1e-12)
    np.testing.assert_allclose(edit_at(Splice(coder), VALUE), f @ D, rtol=1e-12)
    offset = np.random.default_rng(0).normal(size=6)
    np.testing.assert_allclose(edit_at(Splice(coder, offset=offset), VALUE), (f + offset) @ D, rtol=1e-12)
    kept = edit_at(Splice(coder, offset=offset, keep_error=True), VALUE)
    np.testing.assert_allclose(kept, VALUE + offset @ D, rtol=1e-12)


def test_a_coder_acts_along_the_axis_that_is_said():
    coder, image = networks.coder(4), np.random.default_rng(0).normal(size=(4, 3, 4))
    first = edit_at(Clamp(coder, 1, 2.0, axis=0), image)
    pixels = image.transpose(1, 2, 0)
    for i in range(3):
        np.testing.assert_allclose(first[:, i], edit_at(Clamp(coder, 1, 2.0), pixels[i]).T, rtol=1e-12)
    last = edit_at(Splice(coder, axis=-1), image)
    np.testing.assert_allclose(last[2], edit_at(Splice(coder), image[2]), rtol=1e-12)
    tokens = np.eye(3, 4)
    some = edit_at(Splice(coder, tokens, axis=0), image)
    np.testing.assert_array_equal(some[:, 0, 1], image[:, 0, 1])
    assert np.all(some[:, 0, 0] != image[:, 0, 0])


def test_edits_inside_a_map_of_the_model_see_all_tokens():
    model, shape, _ = networks.transformer()
    x, name = networks.images(shape), "blocks.0.mlp.layers.1"
    see = lambda model: jit(jax.vmap(interpret.capture(model, name)))(x)[1][name]  # noqa: E731
    values = see(model)
    patched = interpret.edited(model, {name: Set(values[1], np.arange(5)[:, None] == 2)})
    after = see(patched)
    np.testing.assert_array_equal(after[:, 2], np.tile(values[1, 2], (3, 1)))
    np.testing.assert_array_equal(after[:, [0, 1, 3, 4]], values[:, [0, 1, 3, 4]])
    coder = networks.coder(6)
    for tokens in ([2], jnp.arange(5) == 2):
        clamped = interpret.edited(model, {name: Clamp(coder, 3, 1.5, tokens)})
        got = see(clamped)
        want = jax.vmap(Clamp(coder, 3, 1.5))(values[:, 2])
        np.testing.assert_allclose(got[:, 2], want, rtol=1e-12)
        np.testing.assert_array_equal(got[:, 3], values[:, 3])


def test_edits_and_examples_are_mapped_together_as_one_by_one():
    model, shape, _ = networks.transformer()
    x, name = networks.images(shape), "blocks.0"
    strengths = jnp.linspace(-1, 2, 7)
    vector = jnp.asarray(np.random.default_rng(0).normal(size=8))

    def steered(strength, x):
        return interpret.edited(model, {name: Add(strength * vector)})(x)

    together = jax.jit(jax.vmap(jax.vmap(steered, in_axes=(None, 0)), in_axes=(0, None)))(strengths, x)
    alone = jax.jit(steered)
    one_by_one = np.stack([[alone(strength, image) for image in x] for strength in strengths])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-10)
    edits = Add(strengths[:, None] * vector)  # a batch of edits is an edit with a batch in front of its leaves
    batched = jit(eqx.filter_vmap(lambda edit: interpret.edited(model, {name: edit})(x[0])))(edits)
    np.testing.assert_allclose(batched, together[:, 0], rtol=1e-10)


def test_gradients_with_respect_to_an_edit_are_finite_differences():
    model, shape, _ = networks.transformer()
    x, name = networks.images(shape)[0], "blocks.1.attention.dropout"

    @jax.jit
    def metric(offset):
        return interpret.edited(model, {name: Add(offset)})(x)[0]

    zero = jnp.zeros((2, 5, 5))
    slope = jax.grad(metric)(zero)
    for place in ((0, 0, 3), (1, 0, 2)):
        step = zero.at[place].set(1e-5)
        np.testing.assert_allclose(slope[place], (metric(step) - metric(-step)) / 2e-5, rtol=1e-6)
    assert np.all(slope[:, 1:] == 0)  # only the class token is read


def test_edits_of_one_site_follow_each_other_and_stay():
    model, shape, _ = networks.mlp()
    x = networks.images(shape)[0]
    add, double = Add(1.0), lambda value: 2 * value
    once = interpret.edited(model, {"layers.1": (add, double)})
    again = interpret.edited(interpret.edited(model, {"layers.1": add}), {"layers.1": double, "layers.3": Set(0.0)})
    _, first = interpret.capture(once, "layers.1")(x)
    _, second = interpret.capture(again, ["layers.1", "layers.3"])(x)
    _, plain = interpret.capture(model, "layers.1")(x)
    np.testing.assert_array_equal(first["layers.1"], 2 * (plain["layers.1"] + 1))
    np.testing.assert_array_equal(second["layers.1"], first["layers.1"])
    assert np.all(second["layers.3"] == 0)
    np.testing.assert_allclose(again(x), model.layers[4].bias, rtol=1e-12)


def test_an_edited_model_is_of_the_same_kind():
    model, shape, state = networks.cnn()
    edited = interpret.edited(model, {"layers.2": Set(0.0, np.eye(3)[0].reshape(1, 1, 3))})
    assert isinstance(edited, eqx.nn.Sequential)
    assert edited.is_stateful()
    x = networks.images(shape)
    outer = eqx.nn.Sequential([edited, eqx.nn.Lambda(jnp.tanh)])
    np.testing.assert_allclose(
        networks.outputs(outer, state, x), np.tanh(networks.outputs(edited, state, x)), rtol=1e-12
    )
    assert eqx.tree_pformat(edited).startswith("Sequential(")
    traced = []
    program = eqx.filter_jit(lambda model, x: (traced.append(model), networks.outputs(model, state, x))[1])
    for target in (0.0, 1.0):
        program(interpret.edited(model, {"layers.2": Set(target)}), x)
    assert len(traced) == 1  # edits are arrays of the model, so that one program serves all


def test_parts_of_an_edited_model_refuse_to_run_without_their_edits():
    class Two(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            return self.layer(x)

        def embed(self, x):
            return self.layer(x)

    model = interpret.edited(Two(eqx.nn.Linear(4, 4, key=jax.random.key(0))), {"layer": Set(0.0)})
    assert np.all(np.asarray(model(jnp.ones(4))) == 0)
    for refused in (model.layer, model.embed):
        with pytest.raises(ValueError, match="site 'layer' is edited, and edits act when the model itself is called"):
            refused(jnp.ones(4))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Set(np.zeros(5)), r"`target` must have the shape of the value, \[6\], got \[5\]"),
        (Add(np.zeros((2, 6))), r"`offset` must have the shape of the value, \[6\], got \[2, 6\]"),
        (Set(0.0, np.ones(4, bool)), r"`where` must have the shape of the value, \[6\], got \[4\]"),
        (Ablate("mean", np.zeros((3, 5))), r"`values` must have the shape of the value, \[6\], got \[5\]"),
        (Clamp(networks.coder(5), 0, 1.0), "the coder acts on vectors of 5, got 6 along axis -1"),
        (Splice(networks.coder(5)), "the coder acts on vectors of 5, got 6 along axis -1"),
        (Splice(networks.coder(6), axis=1), r"`axis` must be one of the value's, \[6\], got 1"),
        (Splice(networks.coder(6), [0]), r"`tokens` by number go with one axis of tokens, got vectors of shape \[\]"),
        (lambda value: value[:2], r"an edit must return float64\[6\], got float64\[2\]"),
        (lambda value: None, r"an edit must return float64\[6\], got None"),
    ],
)
def test_edits_of_other_shapes_are_refused_with_the_site(edit, message):
    model, shape, _ = networks.mlp()
    with pytest.raises(ValueError, match=f"^site 'layers.1': {message}"):
        interpret.edited(model, {"layers.1": edit})(networks.images(shape)[0])


def test_shapes_that_could_be_meant_otherwise_are_refused():
    image = jnp.zeros((4, 4, 4))
    for edit in (Set(np.zeros(4)), Add(np.zeros((4, 4))), Set(0.0, np.ones(4, bool))):
        with pytest.raises(ValueError, match=r"must have the shape of the value, \[4, 4, 4\]"):
            edit(image)
    with pytest.raises(ValueError, match=r"`axis` must say along which axis of \[4, 4, 4\]"):
        Splice(networks.coder(4))(image)
    with pytest.raises(ValueError, match=r"`tokens` must have the shape of the value's vectors, \[5\], got \(4,\)"):
        Splice(networks.coder(4), np.ones(4, bool))(jnp.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"`tokens` must be in \[0, 4\], got "):
        Splice(networks.coder(4), 5)(jnp.zeros((5, 4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Set(np.nan), "`target` must be finite, got nan"),
        (lambda: Add("much"), "`offset` must be a number or an array of numbers, got 'much'"),
        (lambda: Set(0.0, 2), r"`where` must be in \[0, 1\], got 2"),
        (lambda: Ablate("noise"), "`by` must be one of 'zero', 'mean', 'resample', got 'noise'"),
        (lambda: Ablate("mean"), "got 'mean' with neither"),
        (lambda: Ablate("zero", np.ones(3)), "got 'zero' with values"),
        (lambda: Ablate("resample", np.ones((3, 2))), "got 'resample' with values"),
        (lambda: Ablate("mean", np.ones((0, 2))), r"`values` must be \[examples, ...\], at least one, got "),
        (lambda: Ablate("mean", np.full((3, 2), np.inf)), r"`values` must be finite, got"),
        (lambda: Clamp(networks.coder(4), 6, 1.0), r"`feature` must be in \[0, 5\], got 6"),
        (lambda: Clamp(networks.coder(4), -1, 1.0), r"`feature` must be in \[0, 5\], got -1"),
        (lambda: Clamp(networks.coder(4), 1.5, 1.0), "`feature` must be whole numbers, one or .m., got 1.5"),
        (lambda: Clamp(networks.coder(4), [1, 2], [1.0]), r"`strength` must be one number or one a feature, got shape"),
        (lambda: Clamp(jnp.tanh, 1, 1.0), r"a coder must have `encode`, `decode` and `W_dec` \[latents, d\], got"),
        (lambda: Splice(networks.coder(4), offset=np.ones(3)), r"`offset` must be \[latents\], \(6,\), got "),
    ],
)  # fmt: skip
def test_arguments_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_edit_is_refused():
    with pytest.raises(ValueError, match=r"the edit of site 'layers.1' must be one, such as Set\(value\), got 3"):
        interpret.edited(networks.mlp()[0], {"layers.1": 3})


def test_a_feature_that_is_traced_and_does_not_exist_gives_nan():
    edit = jax.jit(lambda feature: Clamp(networks.coder(4), feature, 1.0)(jnp.ones(4)))
    assert np.all(np.isfinite(edit(5)))
    assert np.all(np.isnan(edit(6)))
