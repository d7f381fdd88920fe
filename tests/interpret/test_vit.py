"""Transformers of every kind: each site can be captured and edited, heads are what their formulas say."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles

import cetsim
from cetsim import interpret
from cetsim.interpret import positions
from cetsim.nn.block import path_name

jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})
IMAGE, VIDEO = (2, 6, 8), (4, 1, 4, 4)


def image():
    """With everything in it: registers, LayerScale, a norm in front, sin-cos positions, a head on two pools."""
    options = dict(hidden=5, classes=3, position="sincos", registers=2, pool="cls_mean", norm_pre=True, layer_scale=0.7)
    return interpret.VisionTransformer(IMAGE, 2, 8, 2, 2, **options, key=jax.random.key(0)), IMAGE


def gated():
    """SwiGLU, read by attention."""
    options = dict(hidden=5, mlp="swiglu", pool="attention", class_token=False, head_tanh=True, classes=3)
    return interpret.VisionTransformer(IMAGE, (3, 4), 8, 1, 2, **options, key=jax.random.key(1)), IMAGE


def video():
    """Tubelets, rotary positions, tokens as they are."""
    options = dict(hidden=5, mlp="gelu_tanh", position="rotary", pool="none")
    return interpret.VisionTransformer(VIDEO, (2, 2, 2), 16, 1, 2, **options, key=jax.random.key(2)), VIDEO


def averaged():
    """The mean of patches, and a norm of that."""
    model = interpret.VisionTransformer(
        IMAGE, 2, 8, 1, 2, hidden=5, classes=3, pool="mean", norm="pooled", qkv_bias=False, key=jax.random.key(3)
    )
    return model, IMAGE


def text():
    """CLIP's text tower."""
    model = interpret.TextTransformer(11, 6, 8, 2, 2, hidden=5, classes=4, key=jax.random.key(4))
    return model, None


KINDS = {each.__name__: each for each in (image, gated, video, averaged, text)}


def inputs(shape, count=3):
    if shape is None:
        ids = np.random.default_rng(1).integers(0, 9, (count, 6))
        ids[:, 4] = 10  # the end: what stands behind it is not seen
        return jnp.asarray(ids)
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, *shape)))


def shaken(model, seed=5):
    """The model with no weight at its first value: norms and scales that are 1 hide what they are multiplied with."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape) if eqx.is_array(leaf) else leaf, model)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_at_each_site_changes_the_output_and_captures_are_of_one_run(kind):
    model, shape = KINDS[kind]()
    model, x = shaken(model), inputs(shape)
    found = interpret.sites(model, x[0])
    assert not [site.fault for site in found.values() if site.fault]
    rng = np.random.default_rng(2)
    offsets = {name: jnp.asarray(rng.normal(size=site.shape)) for name, site in found.items()}

    def edited(on):  # every site has its edit, weighed by its entry of `on`
        edits = {name: interpret.Add(on[i] * offset) for i, (name, offset) in enumerate(offsets.items())}
        return interpret.edited(model, edits)(x[0])

    outputs = np.asarray(jit(jax.vmap(edited))(np.concatenate([np.eye(len(found)), np.zeros((1, len(found)))])))
    plain = np.asarray(jit(model)(x[0]))
    np.testing.assert_allclose(outputs[-1], plain, rtol=1e-10, atol=1e-12)
    changed = [np.abs(output - plain).max() for output in outputs[:-1]]
    assert min(changed) > 1e-6, dict(zip(found, changed, strict=True))
    captured, values = jit(jax.vmap(interpret.capture(model, list(found))))(x)
    np.testing.assert_allclose(captured[0], plain, rtol=1e-10, atol=1e-12)
    assert {name: value.shape[1:] for name, value in values.items()} == {n: site.shape for n, site in found.items()}


@pytest.mark.parametrize("kind", ["image", "video", "text"])
def test_heads_are_their_formulas(kind):
    model, shape = KINDS[kind]()
    model, x = shaken(model), inputs(shape)[0]
    at, attention = "blocks.0.attention.", model.blocks[0].attention
    names = ("queries", "keys", "values", "pattern", "mixed", "output_proj", "output_proj.results")
    _, values = interpret.capture(model, ["blocks.0.norm1", *(at + name for name in names)])(x)
    y, (q, k, v, pattern, mixed, out, results) = values["blocks.0.norm1"], (values[at + name] for name in names)
    split = lambda layer: (y @ layer.weight.T + layer.bias).reshape(len(y), 2, -1)  # noqa: E731
    if kind != "video":  # there they are turned
        np.testing.assert_allclose(q, split(attention.query_proj), rtol=1e-9)
        np.testing.assert_allclose(k, split(attention.key_proj), rtol=1e-9)
    np.testing.assert_allclose(v, split(attention.value_proj), rtol=1e-9)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    if kind == "text":
        scores = np.where(np.tri(len(y)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(pattern, weights / weights.sum(-1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(mixed, np.einsum("hqk,khd->qhd", pattern, v), rtol=1e-9)
    by_head = np.asarray(attention.output_proj.weight).reshape(y.shape[1], 2, -1)
    np.testing.assert_allclose(results, np.einsum("qhd,ohd->qho", mixed, by_head), rtol=1e-9)
    np.testing.assert_allclose(out, results.sum(1) + np.asarray(attention.output_proj.bias), rtol=1e-9)


def test_a_head_whose_result_is_taken_away_is_one_that_mixes_nothing():
    model, shape = image()
    model, x = shaken(model), inputs(shape)[0]
    at = "blocks.1.attention."
    head = np.arange(2)[None, :, None] == 1
    gone = interpret.edited(model, {at + "output_proj.results": interpret.Ablate("zero", where=head)})(x)
    np.testing.assert_allclose(
        gone, interpret.edited(model, {at + "mixed": interpret.Ablate("zero", where=head)})(x), rtol=1e-9
    )
    patterns = interpret.attention_patterns(model)(x)
    assert list(patterns) == ["blocks.0.attention", "blocks.1.attention"]
    np.testing.assert_allclose(patterns["blocks.1.attention"].sum(-1), np.ones((2, 15)), rtol=1e-12)


def test_patches_and_tubelets_are_cut_row_by_row():
    (model, _), (film, _) = image(), video()
    x, clip = np.asarray(inputs(IMAGE)[0]), np.asarray(inputs(VIDEO)[0])
    cut = [x[:, i : i + 2, j : j + 2].ravel() for i in range(0, 6, 2) for j in range(0, 8, 2)]
    np.testing.assert_allclose(model.embed(x), np.stack(cut) @ model.embed.linear.weight.T, rtol=1e-10)
    cut = [
        clip[t : t + 2, :, i : i + 2, j : j + 2].swapaxes(0, 1).ravel()
        for t in (0, 2) for i in (0, 2) for j in (0, 2)
    ]  # fmt: skip
    np.testing.assert_allclose(film.embed(clip), np.stack(cut) @ film.embed.linear.weight.T, rtol=1e-10)
    assert (model.grid, film.grid, model.prefix, film.prefix) == ((3, 4), (2, 2, 2), 3, 1)


def test_sine_waves_are_masked_autoencoders():
    table = positions.sincos((2, 3), 8)
    for place, (row, column) in enumerate(np.ndindex(2, 3)):
        for i in range(2):
            rate = 10_000 ** (-i / 2)
            want = [np.sin(column * rate), np.cos(column * rate), np.sin(row * rate), np.cos(row * rate)]
            np.testing.assert_allclose(table[place, i::2], want, rtol=1e-12)


def test_text_is_read_at_its_end_and_nothing_looks_ahead():
    model, _ = text()
    ids = inputs(None)
    np.testing.assert_allclose(model(ids[0]), model(ids[0][:5]), rtol=1e-10)
    options = dict(hidden=5, pool="eos", eos=7, key=jax.random.key(0))
    first = interpret.TextTransformer(11, 6, 8, 1, 2, **options)
    ids = jnp.asarray([1, 7, 3, 7, 10, 2])
    np.testing.assert_allclose(first(ids), first(ids[:2]), rtol=1e-10)
    with pytest.raises(ValueError, match="a text must be 1 to 6 tokens, got 7"):
        model(jnp.zeros(7, int))


def test_a_causal_pattern_can_be_differentiated():
    model, _ = text()
    slope = jax.grad(lambda table: eqx.tree_at(lambda m: m.positions, model, table)(inputs(None)[0]).sum())
    assert np.all(np.isfinite(slope(model.positions)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(patch=4), r"`patch` must divide the input's sides \(6, 8\), got \(4, 4\)"),
        (dict(image=(6, 8)), r"`image` must be \[channels, height, width\], or of a video frames first, got \(6, 8\)"),
        (dict(pool="max"), "`pool` must be one of 'cls', 'mean', 'cls_mean', 'attention', 'none', got 'max'"),
        (dict(class_token=False), "pool='cls' needs class_token=True"),
        (dict(heads=3), "`width` must be a multiple of the 3 heads, got 8"),
        (dict(mlp="relu"), "`mlp` must be one of 'gelu', 'gelu_tanh', 'quick_gelu', 'swiglu', got 'relu'"),
        (dict(position="sincos", width=6), "sin-cos positions need a width divisible by 4 and two axes, got 6 and"),
        (dict(position="rotary", width=4), "rotary positions need heads of at least 4 numbers, got 2"),
        (dict(norm="pooled", pool="cls_mean"), "pool='cls_mean' has its norm before it, norm='tokens'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    sizes = dict(image=IMAGE, patch=2, width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match=message):
        interpret.VisionTransformer(**sizes | options, key=jax.random.key(0))


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"the model takes inputs of shape \(2, 6, 8\), got \(2, 8, 6\)"):
        image()[0](jnp.zeros((2, 8, 6)))


# What each layer reads, as a site: of a transformer with one block.
READS = {
    **{f"blocks.0.attention.{part}_proj": "blocks.0.norm1" for part in ("query", "key", "value")},
    "blocks.0.attention.output_proj": "blocks.0.attention.mixed",
    "blocks.0.mlp.layers.0": "blocks.0.norm2",
    "blocks.0.mlp.layers.2": "blocks.0.mlp.layers.1",
    "head": "pooled",
}
LATE = 2


def test_late_credit_of_a_vision_transformer_is_the_sum_over_steps_and_tokens():
    model, shape = averaged()
    model = shaken(eqx.tree_at(lambda model: model.norm_pooled, model, None, is_leaf=lambda node: node is None))
    x, targets = inputs(shape, 7), np.random.default_rng(3).normal(size=(7, 3))
    trace, delay = cetsim.CascadingTrace(3, 0.4), cetsim.FixedDelay(0.2 * LATE)
    plain = {"positions": None, "cls": None} | {f"blocks.0.norm{i}": None for i in (1, 2)}

    def loss(model):
        attached = cetsim.attach(model, trace, delay, form="preactivation", overrides=plain)
        return jnp.sum((jax.vmap(attached, axis_name="time")(x) - targets) ** 2)

    update = jit(eqx.filter_grad(loss))(model)
    names = (*READS, "embed.linear")
    places = {name: np.zeros(site.shape) for name, site in interpret.sites(model, x[0]).items() if name in names}
    _, values = jax.vmap(interpret.capture(model, list(READS.values())))(x)

    def errors_of(x, target):  # of one step's loss, by what each layer returns
        def moved(offsets):
            edits = {name: interpret.Add(offset) for name, offset in offsets.items()}
            return jnp.sum((interpret.edited(model, edits)(x) - target) ** 2)

        return jax.grad(moved)(places)

    errors = jit(jax.vmap(errors_of))(x, targets)
    cut = np.stack([x[:, :, i : i + 2, j : j + 2].reshape(7, -1) for i in range(0, 6, 2) for j in range(0, 8, 2)], 1)
    read = {name: np.asarray(values[site]) for name, site in READS.items()} | {"embed.linear": cut}
    layers = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(update)}
    for name in names:
        error = np.asarray(errors[name])
        error = error.reshape(7, -1, error.shape[-1])
        factors = rule_oracles.Factors(read[name].reshape(7, error.shape[1], -1), np.ones_like(error), error)
        wanted = rule_oracles.update(trace, LATE, factors, "preactivation")
        for part, want in zip(("weight", "bias"), wanted, strict=True):
            if f"{name}.{part}" in layers:  # here the heads have no biases
                got = layers[f"{name}.{part}"]
                np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12, err_msg=f"{name}.{part}")
                assert np.abs(want).max() > 1e-3
