"""Training: losses and gradients against NumPy, the constraints that hold in every step, orders, and sweeps."""

import dataclasses

import coder_oracles as oracle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cetsim import interpret as si
from cetsim import sweep
from cetsim.interpret.coder import with_fields
from cetsim.interpret.start import geometric_median, near_data
from cetsim.interpret.training import trained, weights_of

RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((20, 8))
X = (np.maximum(RNG.standard_normal((300, 20)) - 1, 0) @ MIX + 0.5).astype(np.float32)
STORE = si.Activations.of_arrays({"a": X, "b": 2 * X[:, ::-1], "c": X[:, :3]})
SMALL = si.Settings(steps=40, latents=24, batch=32, warmup=5, dead_after=64)
KINDS = [si.ReLU(0.7), si.TopK(4), si.BatchTopK(4), si.JumpReLU(0.2, 0.4, 0.3), si.Gated(0.7)]


def perturbed(coder, key):
    coder = moved(coder, key)
    return with_fields(coder, W_dec=coder.W_dec / jnp.linalg.norm(coder.W_dec, axis=1, keepdims=True))


def moved(coder, key):
    """The coder with all that is trained moved at random."""
    weights = trained(coder)
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    others = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, others), eqx.filter(coder, weights_of(coder), inverse=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("some_dead", [False, True])
def test_losses_and_gradients_are_those_of_numpy(kind, some_dead):
    run = si.CoderRun(STORE, kind, SMALL, inputs="a")
    coder = perturbed(si.Coder(8, None, 24, kind, key=jax.random.key(3)), jax.random.key(4))
    dead = np.arange(24) % 3 == 0 if some_dead else np.zeros(24, bool)
    x = jnp.asarray(X[:32], float)
    rest = eqx.filter(coder, weights_of(coder), inverse=True)
    loss = jax.value_and_grad(run._loss, argnums=(0, 1), has_aux=True)
    (value, _), (grads, of_gain) = loss(trained(coder), jnp.asarray(0.3), rest, (x,), jnp.asarray(dead))
    numbers = {"l": float(getattr(kind, "l1", getattr(kind, "l0", 0.0))), "k": int(getattr(kind, "k", 0))}
    numbers |= {"bandwidth": float(getattr(kind, "bandwidth", 0.0)), "aux": 8 / 32}  # all is divided by the width, 8
    revived = dead if kind.revives else None
    name = type(kind).__name__
    arrays, gain = oracle.arrays(coder), np.exp(0.3) if kind.revives else 1.0  # all latents are multiplied with it
    arrays |= {field: gain * arrays[field] for field in ("W_enc", "b_enc")}
    expected, slopes = oracle.loss_and_gradients(name, arrays, np.asarray(x), dead=revived, **numbers)
    np.testing.assert_allclose(value, expected / 8, rtol=1e-10)
    of_gains = sum(np.sum(slopes[field] * arrays[field]) for field in ("W_enc", "b_enc")) if kind.revives else 0.0
    np.testing.assert_allclose(of_gain, of_gains / 8, rtol=1e-8, atol=1e-10)
    slopes |= {field: gain * slopes[field] for field in ("W_enc", "b_enc")}
    for field, slope in slopes.items():
        found = grads.learned[field] if field in grads.learned else getattr(grads, field)
        np.testing.assert_allclose(found, slope / 8, rtol=1e-8, atol=1e-10, err_msg=field)


@pytest.mark.parametrize("kind", [si.ReLU(0.7), si.TopK(4), si.BatchTopK(4)], ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("joint", [False, True], ids=["transcoder", "crosscoder"])
def test_losses_of_two_sites_are_those_of_numpy_and_gradients_their_slopes(kind, joint):
    """Losses written out in NumPy; their gradients by central differences along random directions."""
    if joint:
        run = si.CoderRun(STORE, kind, SMALL, across=("a", "c"))
        coder = moved(si.Crosscoder((8, 3), 24, kind, key=jax.random.key(3)), jax.random.key(4))
    else:
        run = si.CoderRun(STORE, kind, dataclasses.replace(SMALL, skip=True), inputs="a", outputs="c")
        coder = perturbed(si.Coder(8, 3, 24, kind, True, key=jax.random.key(3)), jax.random.key(4))
    x = (jnp.asarray(X[:32], float), jnp.asarray(X[:32, :3], float))
    weights, rest = trained(coder), eqx.filter(coder, weights_of(coder), inverse=True)
    none = jnp.zeros(()), rest, x, jnp.zeros(24, bool)  # of gain and of dead latents
    (value, _), grads = jax.value_and_grad(run._loss, has_aux=True)(weights, *none)
    literal = lambda own: oracle.loss_of_two(type(kind).__name__, own, [np.asarray(part) for part in x], kind)  # noqa: E731
    np.testing.assert_allclose(value, literal(weights), rtol=1e-10)
    leaves, tree = jax.tree.flatten(weights)

    def along(i, move):
        return literal(jax.tree.unflatten(tree, [*leaves[:i], leaves[i] + move, *leaves[i + 1 :]]))

    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        step = 1e-6 * RNG.standard_normal(leaf.shape)
        found = (along(i, step) - along(i, -step)) / 2e-6
        np.testing.assert_allclose(found, np.sum(slope * step) / 1e-6, rtol=1e-5, atol=1e-7)


def test_dead_latents_are_revived_by_what_is_left():
    run = si.CoderRun(STORE, si.TopK(2), SMALL, inputs="a")
    coder = si.Coder(8, None, 24, si.TopK(2), key=jax.random.key(0))
    x, rest = (jnp.asarray(X[:32]),), eqx.filter(coder, weights_of(coder), inverse=True)
    slopes = lambda dead: jax.grad(lambda w: run._loss(w, 0.0, rest, x, dead)[0])(trained(coder)).W_dec  # noqa: E731
    alive = jnp.zeros(24, bool)
    silent = ~jnp.any(si.TopK(2).train(coder.preactivation(x[0]), 0, {}, jnp.ones(24)).latents > 0, axis=0)
    assert silent.any()
    assert not slopes(alive)[silent].any()
    assert slopes(silent)[silent].any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_what_holds_in_every_step(kind):
    run = si.CoderRun(STORE, kind, SMALL, inputs="a")
    state = run.init(si.Hyperparameters(3e-3), jax.random.key(0))
    x = run._batch(state.hyper, state.order, 0)
    np.testing.assert_allclose(state.coder.b_dec, geometric_median(x[0]))
    advance = eqx.filter_jit(run.advance)
    before = run.evaluate(state, run.arrays(STORE))
    state, seen = advance(state, 40)
    np.testing.assert_allclose(state.coder.norms, 1.0, rtol=1e-5)
    assert {name: own.shape for name, own in seen.items()} == dict.fromkeys(
        ("loss", "unexplained", "l0", "dead"), (40,)
    )
    assert run.evaluate(state, run.arrays(STORE))["explained_variance"] > before["explained_variance"]
    if kind.revives:  # a vector may have fewer than k latents above 0
        assert np.all(seen["l0"] <= 4.0)
        assert np.all(seen["l0"] > 3.5)
    assert int(state.step) == 40
    assert not state.diverged


def test_jumprelu_becomes_as_sparse_as_what_it_sees():
    """Vectors made of 4 of 64 directions on average: its L0, and the variance explained."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((64, 32))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    active = (rng.random((4096, 64)) < 4 / 64) * rng.uniform(0.5, 1.5, (4096, 64))
    x = (active @ directions + 0.3).astype(np.float32)
    store, settings = si.Activations.of_arrays({"a": x}), si.Settings(steps=600, latents=96, batch=128)
    run = si.CoderRun(store, si.JumpReLU(0.75), settings, inputs="a")
    state, metrics = eqx.filter_jit(run.advance)(run.init(si.Hyperparameters(3e-3), jax.random.key(0)), 600)
    found = run.evaluate(state, run.arrays(store))
    assert 4 / 1.5 < found["l0"] < 4 * 1.5
    assert found["l0"] < 0.75 * metrics["l0"][0]  # which thresholds that stay would give
    assert found["explained_variance"] > 0.7
    assert found["dead"] < 0.1


@pytest.mark.parametrize("joint", [False, True], ids=["transcoder", "crosscoder"])
def test_weights_start_near_the_data_with_the_gain_of_least_error(joint):
    """In NumPy: rows, the latents that are kept, and the error on both sides of the gain."""
    widths, kind = (8, 3), si.TopK(4)
    draw = np.random.default_rng(1).standard_normal
    rows, batch = ([1 + draw((n, width)) for width in widths] for n in (24, 32))
    b = [draw(width) for width in widths]
    if joint:
        coder = si.Crosscoder(widths, 24, kind, key=jax.random.key(0))
        coder = with_fields(coder, b_dec=tuple(map(jnp.asarray, b)))
        random = np.concatenate(coder.W_dec, axis=1), np.concatenate(coder.W_dec, axis=1)
    else:
        coder = si.Coder(*widths, 24, kind, key=jax.random.key(0))
        coder = with_fields(coder, b_in=jnp.asarray(b[0]), b_dec=jnp.asarray(b[1]))
        random = np.asarray(coder.W_enc.T), np.asarray(coder.W_dec)
    found, gain = near_data(coder, tuple(map(jnp.asarray, rows)), tuple(map(jnp.asarray, batch)))

    unit = lambda w: w / np.linalg.norm(w, axis=1, keepdims=True)  # noqa: E731
    centred, x = ([part - m for part, m in zip(parts, b, strict=True)] for parts in (rows, batch))
    if joint:
        centred, x = [np.hstack(centred)] * 2, [np.hstack(x)] * 2
    read, write = (unit(u + 0.8 * unit(part)) for u, part in zip(random, centred, strict=True))
    z = np.maximum(x[0] @ read.T, 0)
    norms = sum(np.linalg.norm(part, axis=1) for part in np.split(write, [8], axis=1)) if joint else np.ones(24)
    f = np.where(z * norms >= np.sort(z * norms, axis=1)[:, [-4]], z, 0)
    error = lambda c: np.sum((x[1] - c * f @ write) ** 2)  # noqa: E731
    stack = lambda w, axis: np.concatenate(w, axis=axis) if joint else np.asarray(w)  # noqa: E731
    np.testing.assert_allclose(stack(found.W_dec, 1), write, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stack(found.W_enc, 0), read.T, rtol=1e-6, atol=1e-7)
    assert error(gain) < min(error(gain * 1.01), error(gain * 0.99))


def test_fewer_latents_are_dead_where_weights_start_near_the_data():
    """Vectors that fill 4 of 32 dimensions, and latents that start there beside latents of random directions."""
    rng = np.random.default_rng(0)
    x = (np.maximum(rng.standard_normal((2048, 4)), 0) @ rng.standard_normal((4, 32))).astype(np.float32)
    settings = si.Settings(steps=200, latents=96, batch=128, dead_after=10**6)
    store = si.Activations.of_arrays({"a": x})
    run = si.CoderRun(store, si.TopK(2), settings, inputs="a")
    near = run.init(si.Hyperparameters(3e-3), jax.random.key(0))
    plain = si.Coder(32, None, 96, si.TopK(2), key=jax.random.key(0), sites=("a", "a"))
    plain = with_fields(plain, b_dec=near.coder.b_dec)
    random = dataclasses.replace(near, coder=eqx.combine(trained(plain), near.coder), log_gain=0 * near.log_gain)
    advance = eqx.filter_jit(run.advance)
    ends = [run.evaluate(advance(state, 200)[0], run.arrays(store)) for state in (near, random)]
    assert ends[0]["dead"] < ends[1]["dead"] - 0.05
    assert ends[0]["explained_variance"] > ends[1]["explained_variance"]


def test_the_norm_that_is_clipped_counts_biases_in_the_unit_of_rows():
    """Gradients by b/√d beside those by rows, whatever the width."""
    run = si.CoderRun(STORE, si.TopK(4), dataclasses.replace(SMALL, clip=0.5), inputs="a")
    weights = trained(si.Coder(8, None, 24, si.TopK(4), key=jax.random.key(0)))
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), weights)
    optimizer = run._optimizer(si.Hyperparameters(1e-3))
    of_both = (weights, jnp.zeros(()))
    _, state = optimizer.update((grads, jnp.ones(())), optimizer.init(of_both), of_both)
    found, gain = optax.tree_utils.tree_get(state, "mu")  # a tenth of what Adam was given
    by = {name: np.asarray(getattr(grads, name)) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    by |= {name: np.sqrt(8) * by[name] for name in ("b_enc", "b_dec")}
    norm = np.sqrt(8 + sum(np.sum(leaf**2) for leaf in by.values()))
    np.testing.assert_allclose(gain, 0.1 * 0.5 * np.sqrt(8) / norm, rtol=1e-5)
    for name, leaf in by.items():
        np.testing.assert_allclose(getattr(found, name), 0.1 * 0.5 * leaf / norm, rtol=1e-5)


@pytest.mark.parametrize("kind", [si.JumpReLU(), si.Gated()], ids=["JumpReLU", "Gated"])
def test_biases_and_thresholds_move_as_fast_as_rows(kind):
    """Adam's first step is the learning rate for every entry: √8 times as much for a row of 8, and for one number."""
    settings = dataclasses.replace(SMALL, warmup=0)
    run = si.CoderRun(STORE, kind, settings, inputs="a")
    before = run.init(si.Hyperparameters(1e-3), jax.random.key(0))
    after, _ = eqx.filter_jit(run.advance)(before, 1)
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained(before.coder), trained(after.coder))
    np.testing.assert_allclose(moves.W_enc, 1e-3, rtol=1e-2)
    for move in jax.tree.leaves((moves.b_dec, moves.learned)):
        np.testing.assert_allclose(move, np.sqrt(8) * 1e-3, rtol=1e-2)


def test_the_threshold_is_found_with_the_trained_weights():
    """A mean over the first batches, in NumPy; with it as many latents are active as in training."""
    run = si.CoderRun(STORE, si.BatchTopK(4), dataclasses.replace(SMALL, calibration=3), inputs="a")
    state, _ = eqx.filter_jit(run.advance)(run.init(si.Hyperparameters(3e-3), jax.random.key(0)), 40)
    gain, smallest = np.exp(float(state.log_gain)), []
    for step in range(3):
        x = np.asarray(run._batch(state.hyper, state.order, step)[0], float) - np.asarray(state.coder.b_dec)
        z = gain * (x @ np.asarray(state.coder.W_enc) + np.asarray(state.coder.b_enc))
        smallest.append(np.sort(z.ravel())[-4 * 32])
    np.testing.assert_allclose(run.coder(state).threshold, np.mean(smallest) / run.scales[0, 0], rtol=1e-5)
    np.testing.assert_allclose(run.evaluate(state, run.arrays(STORE))["l0"], 4, rtol=0.05)


def test_cutting_a_run_into_parts_changes_nothing():
    run = si.CoderRun(STORE, si.BatchTopK(4), SMALL, inputs="a")
    advance = eqx.filter_jit(run.advance)
    state = run.init(si.Hyperparameters(3e-3), jax.random.key(0))
    whole = advance(state, 20)[0]
    parts = advance(advance(state, 10)[0], 10)[0]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("across", [None, ("a", "b")])
def test_another_store_of_the_same_shapes_takes_the_same_programs(across):
    """From the start to the coder, and its evaluation; `init` of a crosscoder could not be compiled once."""
    compiled = []

    def listen(name, *_, **__):
        compiled.extend([name] * name.endswith("backend_compile_duration"))

    def make(store):
        sites = dict(across=across) if across else dict(inputs="a")
        run = si.CoderRun(store, si.BatchTopK(4), SMALL, **sites)
        state = run.init(si.Hyperparameters(3e-3), jax.random.key(0))
        coder = run.coder(eqx.filter_jit(run.advance)(state, 2)[0])
        return si.evaluate(coder, store).values["explained_variance"]

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first = make(STORE)
        assert len(compiled) > 3
        compiled.clear()
        second = make(si.Activations.of_arrays({"a": X[::-1] ** 2, "b": X, "c": X[:, :3]}))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first != second
    assert not compiled


def test_a_store_larger_than_memory_gives_the_same_run():
    ends = []
    for memory in (2**30, 0):
        settings = si.Settings(steps=40, latents=24, batch=32, memory=memory)
        run = si.CoderRun(STORE, si.TopK(4), settings, inputs="a", outputs="b")
        assert (run.data is None) == (memory == 0)
        state = eqx.filter_vmap(run.init, in_axes=(None, 0))(
            si.Hyperparameters(3e-3), jax.random.split(jax.random.key(0), 2)
        )
        ends.append(eqx.filter_vmap(lambda s, run=run: run.advance(s, 10))(state)[1]["loss"])
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_the_scale_is_folded_away_and_each_site_has_its_own():
    run = si.CoderRun(STORE, si.TopK(4), SMALL, inputs="a", outputs="b")
    a, b = (float(own[0]) for own in run.scales)
    assert np.mean(np.sum((a * X) ** 2, 1)) == pytest.approx(8, rel=1e-5)
    assert a == pytest.approx(2 * b, rel=1e-5)
    state, _ = eqx.filter_jit(run.advance)(run.init(si.Hyperparameters(3e-3), jax.random.key(0)), 5)
    x = jnp.asarray(X[:9])
    scaled = run._amplified(state.coder, state.log_gain)
    np.testing.assert_allclose(run.coder(state)(x), scaled(a * x) / b, rtol=1e-4, atol=1e-4)


def test_crosscoders_weigh_with_the_norms_of_all_sites():
    run = si.CoderRun(STORE, si.BatchTopK(4), SMALL, across=("a", "b"))
    state, _ = eqx.filter_jit(run.advance)(run.init(si.Hyperparameters(3e-3), jax.random.key(0)), 40)
    coder, x = run.coder(state), (jnp.asarray(X[:50]), jnp.asarray(2 * X[:50, ::-1]))
    a, b = (np.linalg.norm(float(s) * np.asarray(w), axis=1) for s, w in zip(coder.scales, coder.W_dec, strict=True))
    np.testing.assert_allclose(coder.norms, a + b, rtol=1e-5)
    np.testing.assert_allclose(coder.relative_norms(), b / (a + b), rtol=1e-5)
    z = sum((own - np.asarray(m)) @ np.asarray(w) for own, m, w in zip(x, coder.b_dec, coder.W_enc, strict=True))
    z = z + np.asarray(coder.b_enc)
    f = np.where(z * (a + b) >= float(coder.threshold), np.maximum(z, 0), 0)
    np.testing.assert_allclose(coder.encode(x), f, rtol=1e-4, atol=1e-4)
    assert run.evaluate(state, run.arrays(STORE))["explained_variance"] > 0.5


def test_latent_scaling_tells_what_norms_do_not():
    """A latent whose decoder at site a was set to 0, though a has the same: its ratio is 1 nonetheless."""
    d = jnp.eye(6)
    coder = si.Crosscoder((6, 6), 6, si.ReLU(), key=jax.random.key(0))
    shared = d.at[0].set(0.0)  # says nothing at site a by its decoder
    coder = with_fields(coder, W_dec=(shared, d), W_enc=(jnp.zeros((6, 6)), d))
    f = jnp.asarray(np.maximum(RNG.standard_normal((500, 6)), 0))
    own = f.at[:, 1].set(0.0)  # latent 1 is truly of site b alone
    found = si.latent_scaling(with_fields(coder, W_dec=(shared.at[1].set(0.0), d)), (own, f))
    assert coder.relative_norms()[0] == 1.0
    np.testing.assert_allclose(found["ratio"][0], 1.0, atol=1e-9)
    np.testing.assert_allclose(found["ratio"][1], 0.0, atol=1e-9)


def test_sweeps_train_sites_sizes_and_seeds_side_by_side(tmp_path):
    run = si.CoderRun(STORE, si.TopK(4), SMALL, inputs=("a", "b"))
    hyper = lambda one: si.Hyperparameters(3e-3, si.TopK(one["k"]), one["site"])  # noqa: E731
    test = eqx.Partial(run.evaluate, x=run.arrays(STORE))
    training = sweep.Training(run.init, run.advance, test, steps=20, every=20, hyperparameters=hyper)
    table = sweep.run(tmp_path, sweep.grid(k=(2, 4), site=(0, 1), seed=(0, 1)), training)
    assert len(table.records) == 8
    np.testing.assert_allclose(table.final("l0"), table.runs.k, rtol=0.02)  # or fewer, where not k are above 0
    alone = run.init(hyper({"k": 4, "site": 1}), jax.random.key(1))
    expected = run.evaluate(eqx.filter_jit(run.advance)(alone, 20)[0], run.arrays(STORE))["explained_variance"]
    found = table.runs.query("k == 4 and site == 1 and seed == 1").explained_variance.iloc[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_in_a_sweep_a_k_above_the_latents_or_a_site_too_many_diverges_alone(tmp_path):
    run = si.CoderRun(STORE, si.TopK(4), SMALL, inputs=("a", "b"))
    hyper = lambda one: si.Hyperparameters(3e-3, si.TopK(one["k"]), one["site"])  # noqa: E731
    test = eqx.Partial(run.evaluate, x=run.arrays(STORE))
    training = sweep.Training(run.init, run.advance, test, steps=4, every=4, hyperparameters=hyper)
    runs = sweep.run(tmp_path, sweep.grid(k=(4, SMALL.latents + 1), site=(0, 2)), training).runs
    wrong = (runs.k > SMALL.latents) | (runs.site > 1)
    assert wrong.sum() == 3
    np.testing.assert_array_equal(runs.diverged, wrong)
    np.testing.assert_array_equal(runs.explained_variance.isna(), wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(inputs="aa"), "the store has no site 'aa': the nearest are 'a'"),
        (dict(inputs=("a", "c")), "sites trained side by side must have one width"),
        ({}, "give `inputs`"),
        (dict(inputs="a", across=("a", "b")), "give `inputs`"),
        (
            dict(inputs="a", settings=si.Settings(steps=1, latents=8, batch=301)),
            "at most the store's 300 vectors, got 301",
        ),
        (dict(inputs="a", sparsity=si.TopK(25)), "at most the number of latents, 24, got 25"),
        (
            dict(inputs="a", settings=si.Settings(steps=1, latents=8, batch=8, skip=True)),
            "`skip` must be False but for",
        ),
        (dict(inputs="zero"), "no activation other than 0"),
    ],
)
def test_refused(options, message):
    store = si.Activations.of_arrays({"a": X, "b": X, "c": X[:, :3], "zero": 0 * X})
    options = {"sparsity": si.TopK(4), "settings": SMALL} | options
    with pytest.raises(ValueError, match=message):
        si.CoderRun(store, **options)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="`a` must be finite, got nan at index"):
        si.Activations.of_arrays({"a": np.where(X > 3, np.nan, X)})
