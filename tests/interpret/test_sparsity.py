"""Which latents are active, in training and afterwards, and what is learned from that."""

import coder_oracles as oracle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import interpret as si
from cetsim.interpret.selection import largest_of_all, largest_of_rows
from cetsim.interpret.sparsity import jump, jump_step

SCORES = np.abs(np.random.default_rng(0).standard_normal((9, 40)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("repeats", [1, 2, 100])  # widths that 16 divides are counted in parts
def test_the_kth_largest_is_that_of_sorting(dtype, k, repeats):
    factors = 1 + np.arange(repeats)[:, None] / (2 * repeats)
    scores = jnp.asarray((SCORES[:, None] * factors).reshape(9, -1).astype(dtype))
    rows = np.sort(np.asarray(scores), axis=1)[:, ::-1][:, k - 1 : k]
    np.testing.assert_array_equal(largest_of_rows(scores, k), rows)
    np.testing.assert_array_equal(jax.jit(largest_of_rows)(scores, jnp.asarray(k)), rows)
    everything = np.sort(np.asarray(scores).ravel())[::-1]
    np.testing.assert_array_equal(largest_of_all(scores, 9 * k), [[everything[9 * k - 1]]])


def test_fewer_than_k_above_zero_are_all_kept():
    z = jnp.asarray([[1.0, -1.0, 0.0, 2.0], [-1.0, -2.0, -3.0, -4.0]])
    for kind in (si.TopK(3), si.BatchTopK(3)):
        activity = kind.train(z, 0.0, {}, jnp.ones(4))
        np.testing.assert_array_equal(activity.latents, [[1, 0, 0, 2], [0, 0, 0, 0]])
    silent = si.BatchTopK(3).train(-jnp.ones((2, 4)), 0.0, {}, jnp.ones(4))
    assert np.isnan(silent.smallest)
    assert not silent.latents.any()


def test_equals_are_kept_together():
    z = jnp.asarray([[1.0, 1.0, 1.0, 0.5]])
    np.testing.assert_array_equal(si.TopK(2).train(z, 0.0, {}, jnp.ones(4)).latents, [[1, 1, 1, 0]])


@pytest.mark.parametrize("kind", [si.TopK, si.BatchTopK])
def test_exactly_k_are_kept_and_scores_weigh_with_norms(kind):
    z, norms = jnp.asarray(SCORES), jnp.linspace(0.5, 2, 40)
    activity = kind(5).train(z, 0.0, {}, norms)
    expected = (oracle.kept_of_rows if kind is si.TopK else oracle.kept_of_all)(SCORES * np.asarray(norms), 5)
    np.testing.assert_array_equal(activity.latents > 0, expected)
    assert expected.sum() == 45
    if kind is si.BatchTopK:
        np.testing.assert_allclose(activity.smallest, (SCORES * np.asarray(norms))[expected].min())


def test_batch_topk_has_a_fixed_threshold_afterwards():
    z = jnp.asarray([0.1, 0.5, 0.9, -1.0])
    f = si.BatchTopK(1).activate(z, 0.0, {}, jnp.ones(4), jnp.asarray(0.5))
    np.testing.assert_array_equal(f, [0, 0.5, 0.9, 0])


def test_pseudo_derivatives_of_the_jump():
    θ, ε = 0.3, 0.2
    z = jnp.asarray([0.1, 0.21, 0.29, 0.31, 0.39, 0.41])
    inside = np.abs(np.asarray(z) - θ) < ε / 2
    by = lambda f, i: [jax.grad(f, i)(one, θ, ε) for one in z]  # noqa: E731
    np.testing.assert_allclose(by(jump, 1), -(θ / ε) * inside)
    np.testing.assert_allclose(by(jump, 0), np.asarray(z) > θ)
    np.testing.assert_allclose(by(jump_step, 1), -1.0 * inside / ε)
    np.testing.assert_allclose(by(jump_step, 0), np.zeros(6))


def test_the_penaltys_slope_is_that_of_the_expected_number():
    """E of the pseudo-derivative is d/dθ P(z > θ), here of a normal z: minus its density at θ."""
    z = jax.random.normal(jax.random.key(0), (200_000,))
    slope = jax.grad(lambda θ: jump_step(z, θ, 0.2).mean())(0.7)
    density = np.exp(-(0.7**2) / 2) / np.sqrt(2 * np.pi)
    assert abs(slope + density) < 6 * np.sqrt(density / 0.2 / 200_000) + 2e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: si.ReLU(-1.0), "`l1` must be at least 0, got -1.0"),
        (lambda: si.TopK(0), "`k` must be at least 1, got 0"),
        (lambda: si.TopK(2.5), "`k` must be a whole number, got 2.5"),
        (lambda: si.JumpReLU(1.0, bandwidth=0.0), "`bandwidth` must be above 0, got 0.0"),
        (lambda: si.Coder(4, None, 8, si.TopK(9), key=jax.random.key(0)), "at most the number of latents, 8, got 9"),
        (lambda: si.Coder(4, None, 8, skip=True, sparsity=si.ReLU(), key=jax.random.key(0)), "`skip` must be False in"),
        (lambda: si.Coder(4, None, 8, si.ReLU, key=jax.random.key(0)), "`sparsity` must be ReLU, TopK"),
        (lambda: si.Crosscoder((4,), 8, si.ReLU(), key=jax.random.key(0)), "at least two sites, got 1"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


KINDS = [si.ReLU(0.3), si.TopK(3), si.BatchTopK(3), si.JumpReLU(0.2, 0.4, 0.3), si.Gated(0.3)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_scales_fold_away(kind):
    """The coder of x that does what another does for a multiple of x: latents come in the units of what is coded."""
    keys = jax.random.split(jax.random.key(1), 4)
    coder = si.Coder(5, 6, 12, kind, kind is KINDS[0], key=keys[0])
    coder = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(keys[1], a.shape) if eqx.is_inexact_array(a) else a, coder
    )
    coder = eqx.tree_at(lambda own: own.threshold, coder, jnp.asarray(0.4))
    coder = eqx.tree_at(lambda own: own.sparsity, coder, kind)
    x, (a, c) = jax.random.normal(keys[2], (7, 5)), (3.0, 0.25)
    if not isinstance(kind, si.TopK):  # whose scores weigh with norms, here far from 1
        np.testing.assert_allclose(coder.unit()(x), coder(x), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(coder.unit().norms, 1.0)
    coder = coder.unit()
    folded = coder.unscaled(jnp.asarray(a), jnp.asarray(c))
    np.testing.assert_allclose(folded(x / a), coder(x) / c, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(folded.encode(x / a), coder.encode(x) / c, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(folded.norms, 1.0)
