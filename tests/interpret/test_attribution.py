"""Patching, its first-order estimate, ablation, paths and gradients, each against a NumPy network edited by hand."""

import functools
import itertools

import equinox as eqx
import inside_networks as networks
import inside_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import interpret

jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})
MODEL, SHAPE, _ = networks.transformer()
CLEAN, CORRUPTED = networks.images(SHAPE, 2)
NAMES = ("embed", "blocks.0", "blocks.0.attention.dropout", "blocks.1.mlp.layers.1", "norm")


def metric(logits):
    return logits[0] - logits[2]


def patched(name, where, target, image=CORRUPTED):
    """The metric where a site says `target` in some entries."""
    edit = lambda site, value: np.where(where, target, value) if site == name else value  # noqa: E731
    return metric(oracles.forward(MODEL, image, edit))


def positions(shape, axes):
    """Masks of a value, one for each position along some axes."""
    for place in itertools.product(*(range(shape[axis]) for axis in axes)):
        where = np.zeros(shape, bool)
        where[tuple(place[axes.index(axis)] if axis in axes else slice(None) for axis in range(len(shape)))] = True
        yield place, where


def by_hand(names, targets, axes, image=CORRUPTED):
    """Effects of single edits, one after the other."""
    without = metric(oracles.forward(MODEL, image))
    effects = {}
    for name in names:
        shape = targets[name].shape
        effects[name] = np.zeros([shape[axis] for axis in axes[name]])
        for place, where in positions(shape, axes[name]):
            effects[name][place] = patched(name, where, targets[name], image) - without
    return effects


AXES = {"embed": (0,), "blocks.0": (0,), "blocks.0.attention.dropout": (0,), "blocks.1.mlp.layers.1": (0,), "norm": ()}


def test_a_patching_map_is_what_patches_by_hand_do():
    got = jit(lambda: interpret.activation_patching(MODEL, metric, CLEAN, CORRUPTED, NAMES))()
    want = by_hand(NAMES, oracles.values_of(MODEL, CLEAN), AXES)
    assert got.effects.keys() == want.keys()
    for name, effects in got.effects.items():
        np.testing.assert_allclose(effects, want[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.without, metric(oracles.forward(MODEL, CORRUPTED)), rtol=1e-10)
    np.testing.assert_allclose(got.source, metric(oracles.forward(MODEL, CLEAN)), rtol=1e-10)
    np.testing.assert_allclose(got.shares()["norm"], 1.0, rtol=1e-9)  # all passes through the last norm


def test_positions_go_along_any_axes_in_any_order_and_in_batches():
    names = ("blocks.0.attention.dropout", "blocks.1.mlp.layers.1", "norm")
    axes = dict(zip(names, ((2, 0), (1,), (0,)), strict=True))
    patching = functools.partial(interpret.activation_patching, MODEL, metric, CLEAN, CORRUPTED, names, batch=7)
    got = jit(patching)(axes=axes).effects
    want = by_hand(names, oracles.values_of(MODEL, CLEAN), axes)
    assert {name: effect.shape for name, effect in got.items()} == dict(zip(names, ((5, 2), (6,), (8,)), strict=True))
    for name in names:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-12)
    negative = {name: tuple(axis - (3, 2, 1)[names.index(name)] for axis in own) for name, own in axes.items()}
    again = jit(patching)(axes=negative).effects
    assert all(np.array_equal(again[name], got[name]) for name in names)


def test_pairs_are_mapped_over():
    pairs = networks.images(SHAPE, 4, seed=5)
    patching = lambda a, b: interpret.activation_patching(MODEL, metric, a, b, "blocks.0")  # noqa: E731
    got = jit(jax.vmap(patching))(pairs[:2], pairs[2:])
    for i in range(2):
        alone = jit(patching)(pairs[i], pairs[2 + i])
        np.testing.assert_allclose(got.effects["blocks.0"][i], alone.effects["blocks.0"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_ablations_are_those_by_hand(by):
    data = networks.images(SHAPE, 6, seed=9)
    each = [oracles.values_of(MODEL, image) for image in data]
    names = ("blocks.0.mlp", "blocks.1.attention.dropout")
    values = {name: np.stack([value[name] for value in each]) for name in names}
    key = jax.random.key(3)
    given = {"zero": {}, "mean": {"values": values}, "resample": {"values": values, "key": key}}[by]
    got = jit(lambda: interpret.ablation(MODEL, metric, CLEAN, names, by=by, **given))()
    chosen = int(jax.random.randint(key, (), 0, 6))
    target = {"zero": lambda v: 0 * v[0], "mean": lambda v: v.mean(0), "resample": lambda v: v[chosen]}[by]
    want = by_hand(names, {name: target(value) for name, value in values.items()}, dict.fromkeys(names, (0,)), CLEAN)
    for name in names:
        np.testing.assert_allclose(got.effects[name], want[name], rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="ablations have no source"):
        got.shares()


def test_attribution_patching_is_the_slope_of_a_patch_and_its_error_is_reported():
    got = jit(lambda: interpret.attribution_patching(MODEL, metric, CLEAN, CORRUPTED, NAMES))()
    values, targets = oracles.values_of(MODEL, CORRUPTED), oracles.values_of(MODEL, CLEAN)
    step = 1e-5
    for name in ("embed", "norm"):
        for place, where in positions(values[name].shape, AXES[name]):
            move = step * (targets[name] - values[name])
            ends = [patched(name, where, values[name] + sign * move) for sign in (1, -1)]
            np.testing.assert_allclose(got.effects[name][place], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8)
    want = by_hand(NAMES, targets, AXES)
    for name in NAMES:
        np.testing.assert_allclose(got.exact.effects[name], want[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(got.error[name], got.effects[name] - want[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.error["norm"], 0, atol=1e-12)  # behind it all is linear
    assert np.abs(got.error["embed"]).max() > 1e-3


def test_the_error_of_attribution_patching_is_of_second_order():
    """A patch half as large leaves a quarter of the error, or less where the second derivative vanishes."""
    near = [CORRUPTED + size * (CLEAN - CORRUPTED) for size in (0.02, 0.01)]
    estimate = jit(lambda clean: interpret.attribution_patching(MODEL, metric, clean, CORRUPTED, "embed"))
    errors = [np.abs(estimate(clean).error["embed"]) for clean in near]
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.2)
    alone = jit(lambda clean: interpret.attribution_patching(MODEL, metric, clean, CORRUPTED, "norm", exact=False))(
        CLEAN
    )
    assert alone.exact is None
    assert alone.error is None


def test_path_patching_is_three_runs_by_hand():
    sender, receiver, frozen = "blocks.0.attention", "blocks.1.mlp", ("blocks.0.mlp", "blocks.1.attention")
    path = functools.partial(interpret.path_patching, MODEL, metric, CLEAN, CORRUPTED, sender)
    sent, held = oracles.values_of(MODEL, CLEAN)[sender], oracles.values_of(MODEL, CORRUPTED)
    without = metric(oracles.forward(MODEL, CORRUPTED))
    for names in ((), frozen):
        fixed = {sender: sent} | {name: held[name] for name in names}
        noted = {}
        oracles.forward(MODEL, CORRUPTED, lambda name, value, f=fixed, n=noted: n.setdefault(name, f.get(name, value)))
        want = patched(receiver, True, noted[receiver]) - without
        np.testing.assert_allclose(jit(path)(receiver, frozen=names), want, rtol=1e-9)
        assert abs(want) > 1e-4


def test_integrated_gradients_of_a_square_are_known():
    layer = eqx.nn.Linear(3, 1, use_bias=False, key=jax.random.key(0))
    model = eqx.nn.Sequential([layer, eqx.nn.Lambda(jnp.square)])
    x, baseline = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -1.0])
    w = np.asarray(layer.weight)[0]
    for steps in (1, 5):
        got = interpret.integrated_gradients(model, lambda y: y[0], jnp.asarray(x), jnp.asarray(baseline), steps=steps)
        np.testing.assert_allclose(got.attribution, (x - baseline) * w * (w @ x + w @ baseline), rtol=1e-12)
        np.testing.assert_allclose(got.total, (w @ x) ** 2 - (w @ baseline) ** 2, rtol=1e-12)
        np.testing.assert_allclose(got.gap, 0, atol=1e-12)


@pytest.mark.parametrize("site", [None, "blocks.0", "blocks.0.attention.dropout"])
def test_integrated_gradients_are_complete(site):
    few, many = (
        jit(lambda steps=steps: interpret.integrated_gradients(
            MODEL, metric, CLEAN, CORRUPTED, site=site, steps=steps
        ))()
        for steps in (3, 40)
    )  # fmt: skip
    start = CORRUPTED
    shape = SHAPE if site is None else oracles.values_of(MODEL, CLEAN)[site].shape
    end = metric(oracles.forward(MODEL, CLEAN))
    values = oracles.values_of(MODEL, start)
    begin = metric(oracles.forward(MODEL, start)) if site is None else patched(site, True, values[site], CLEAN)
    assert many.attribution.shape == shape
    np.testing.assert_allclose(many.total, end - begin, rtol=1e-9)
    np.testing.assert_allclose(many.attribution.sum(), end - begin, rtol=1e-6)
    np.testing.assert_allclose(many.gap, many.attribution.sum() - many.total, atol=1e-14)
    assert abs(few.gap) > abs(many.gap)


def test_stateful_and_attached_models_are_attributed_too():
    cnn, shape, state = networks.cnn()
    cnn = eqx.nn.inference_mode(cnn)
    clean, corrupted = networks.images(shape, 2)
    names = ("layers.3", "layers.10")
    got = jit(
        lambda: interpret.activation_patching(cnn, metric, clean, corrupted, names, state, axes={"layers.3": (2,)})
    )()
    assert got.effects["layers.3"].shape == (3,)
    np.testing.assert_allclose(got.effects["layers.10"], got.source - got.without, rtol=1e-9)
    whole = jit(lambda: interpret.integrated_gradients(cnn, metric, clean, corrupted, state, steps=64))()
    assert abs(whole.gap) < 0.1 * abs(whole.total)  # ReLU has corners
    attached, shape, _ = networks.attached()
    x = networks.images(shape, 2)
    ours = interpret.integrated_gradients(attached, metric, x[0], x[1], steps=40)
    np.testing.assert_allclose(ours.gap, 0, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch(corrupted=CORRUPTED[:2]), r"the two inputs must have one shape, got \(4, 4\) and \(2, 4\)"),
        (lambda: patch(names="block"), "the model has no site 'block': the nearest are"),
        (lambda: patch(axes=(2,)), r"site 'blocks.0': `axes` must be axes of its value, \[5, 8\], got \(2,\)"),
        (lambda: patch(axes=(0, -2)), r"site 'blocks.0': `axes` must be axes of its value, \[5, 8\], got \(0, -2\)"),
        (lambda: patch(axes={"embed": (0,)}), "`axes` must name sites of blocks.0, got embed"),
        (lambda: patch(metric=lambda y: y), r"`metric` must return one number, got shape \(3,\)"),
        (lambda: patch(clean=CLEAN * np.nan), "`value of site blocks.0` must be finite, got nan at index"),
        (lambda: ablate(by="mean"), r"`values` of site 'blocks.0' must be \[examples, \*\[5, 8\]\], got \[\]"),
        (lambda: ablate(by="mean", values={"blocks.0": np.ones((3, 8))}), r"examples, \*\[5, 8\]\], got \[3, 8\]"),
        (lambda: ablate(by="resample", values={"blocks.0": np.ones((3, 5, 8))}), "`key` goes with by='resample' alone"),
        (lambda: ablate(by="none"), "`by` must be one of 'zero', 'mean', 'resample', got 'none'"),
        (lambda: path(frozen="blocks.0"), "a site must be a sender, a receiver or frozen, once: got blocks.0 twice"),
    ],
)
def test_what_cannot_be_attributed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def patch(metric=metric, clean=CLEAN, corrupted=CORRUPTED, names="blocks.0", **options):
    return interpret.activation_patching(MODEL, metric, clean, corrupted, names, **options)


def ablate(**options):
    return interpret.ablation(MODEL, metric, CLEAN, "blocks.0", **options)


def path(**options):
    return interpret.path_patching(MODEL, metric, CLEAN, CORRUPTED, "blocks.0", "norm", **options)
