"""Readouts of all stages of a cascade: the balanced one against its definition, and any other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import DT, cascade, cascade_rate, filtered, respond, weights
from readout_oracles import balanced, stage_weights
from scipy import integrate, linalg, stats

import cetsim
from cetsim import CascadingTrace, FirstStageCascade, FixedDelay, credit
from cetsim.traces import readout

CASES = [  # order, delay in steps, read, peaked
    (3, 50, "before", False),
    (4, 5, "after", False),
    (6, 50, "before", True),
    (10, 2, "after", True),
    (10, 50, "before", False),
    (64, 50, "before", True),
    (64, 1, "before", False),
    (64, 34, "after", False),
    (10, 10_000, "before", False),
    (64, 10_000, "after", True),
]
each_case = pytest.mark.parametrize(("order", "delay", "read", "peaked"), CASES)


def make(order, delay, read="before", peaked=None, **options):
    """A balanced trace, its delay in steps."""
    return CascadingTrace(order, delay * DT, DT, read, readout="balanced", peaked=peaked, **options)


def lags_of(delay):
    return np.arange(3 * delay + 60) if delay < 1000 else np.arange(0, 3 * delay, 37)


# Against the definition


@each_case
def test_weights_and_readout_are_those_of_the_definition(order, delay, read, peaked):
    lags = np.append(lags_of(delay), delay)
    expected = balanced(order, delay, read, 10.0, 1e-4, peaked) @ stage_weights(lags, order, delay, read)
    trace = make(order, delay, read, peaked)
    found, traced = weights(make(order, delay, read, peaked), lags), jax.jit(lambda l: trace.weights(l))(lags)
    for one in (found, traced):  # solved in the program, and on the host
        np.testing.assert_allclose(one, expected, atol=1e-10 * expected[-1])
    plain = cascade(delay, order, delay, read)
    np.testing.assert_allclose([found[-1], traced[-1]], plain, rtol=1e-10)


@pytest.mark.parametrize(("order", "delay", "read", "peaked"), CASES[:6])
def test_steps_are_those_of_the_weights(order, delay, read, peaked):
    lags = np.arange(3 * delay + 60)
    expected = balanced(order, delay, read, 10.0, 1e-4, peaked) @ stage_weights(lags, order, delay, read)
    e = np.random.default_rng(1).normal(size=(len(lags), 2))
    trace = make(order, delay, read, peaked)
    scale = expected[delay]
    np.testing.assert_allclose(respond(trace, e), filtered(expected, e), atol=1e-10 * scale)
    np.testing.assert_allclose(jax.jit(lambda e: respond(trace, e))(e), filtered(expected, e), atol=1e-10 * scale)


@each_case
def test_float32(order, delay, read, peaked):
    lags = lags_of(delay)
    exact = np.asarray(make(order, delay, read, peaked).weights(lags))
    peak = float(make(order, delay, read, peaked).weights(delay))
    with jax.enable_x64(False):
        trace = make(order, delay, read, peaked)
        # Compiled as users have it: the rounding of unoptimised programs differs, and is 1.3e-4 at order 64.
        as_users = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
        compiled = lambda weights: jax.jit(weights, compiler_options=as_users)  # noqa: E731
        host, traced = compiled(lambda l: trace.weights(l))(lags), compiled(lambda t, l: t.weights(l))(trace, lags)
        steps = jnp.zeros(min(3 * delay + 60, 12_000)).at[0].set(1.0)
        stepped = jax.jit(lambda e: jax.lax.scan(lambda state, e: trace.step(state, e), trace.init(()), e)[1])(steps)
    for found in (host, traced):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, atol=1e-4 * peak)
    inside = lags[lags < len(stepped)]
    np.testing.assert_allclose(stepped[inside], exact[: len(inside)], atol=5e-4 * peak)


@pytest.mark.parametrize(("rho", "eta"), [(0.0, 1e-4), (1.0, 1e-6), (1000.0, 1e-2), (1e8, 1e-4)])
def test_every_rho_and_eta(rho, eta):
    lags = np.arange(200)
    expected = balanced(8, 20, "before", rho, eta, False) @ stage_weights(lags, 8, 20, "before")
    found = weights(make(8, 20, rho=rho, eta=eta), lags)
    np.testing.assert_allclose(found, expected, atol=1e-10 * expected[20])


@pytest.mark.parametrize("read", ["before", "after"])
def test_stages_in_an_orthonormal_basis(read):
    for order, delay in ((3, 1.0), (20, 7.3), (64, 50.0), (10, 800.0)):
        rate = cascade_rate(order, delay, read)
        found = readout.stage_factor(order, rate)
        stages = stage_weights(np.arange(int(30 * delay) + 200), order, delay, read)
        assert np.all(found >= 0)
        np.testing.assert_allclose(found @ found.T, stages @ stages.T, rtol=1e-10, atol=1e-16)
        traced = jax.jit(readout.stage_factor, static_argnums=0)(order, jnp.asarray(rate))
        np.testing.assert_allclose(traced, found, atol=1e-14)


# Its peak


@pytest.mark.parametrize("order", [6, 10, 24, 64])
def test_peaked_has_its_largest_signed_weight_at_the_delay(order):
    for delay in (2, 3, 5, 9, 20, 50, 137, 640):
        for read in ("before", "after"):
            trace = make(order, delay, read, peaked=True)
            c = np.asarray(trace.coefficients())
            found = readout.host_weights(c, 5 * delay + 80, cascade_rate(order, delay, read), read)
            assert found.argmax() == delay
            np.testing.assert_allclose(found[delay + 1], found[delay - 1], atol=1e-9 * found[delay])
            assert float(trace.peak()) == pytest.approx(delay * DT)


def test_lag_of_the_largest_weight_is_said():
    """Of 10, 6, 3 and 4 stages at a delay of 50 steps, as design.md has them."""
    for order, largest in ((10, 48), (6, 46), (3, 32), (4, 1)):
        trace = make(order, 50)
        assert float(trace.peak()) == pytest.approx(largest * DT)
        assert f"largest weight at {round(largest * DT, 9)} s" in repr(trace)
    assert "largest weight" not in repr(make(10, 50, peaked=True))
    assert repr(CascadingTrace(10, 4.0)).endswith("order=10, dt=0.2 s, read='before', normalization='area')")
    assert "largest weight" not in repr(jax.eval_shape(lambda: make(10, 50)))
    model = cetsim.attach(cetsim.nn.mlp((2, 3), key=jax.random.key(0)), make(10, 50), FixedDelay(10.0, DT))
    row = cetsim.summary(model)[0]
    assert (row.trace, row.peak) == ("CascadingTrace(10, balanced)", 9.6)


# Moments and windows


def test_moments_area_and_noise_gain():
    delay, c = 20, balanced(5, 20, "before", 10.0, 1e-4, False)
    trace, lags = make(5, delay), np.arange(4000)
    found = weights(trace, lags)
    np.testing.assert_allclose(trace.coefficients(), c, rtol=1e-9)
    np.testing.assert_allclose(trace.area(), found.sum(), rtol=1e-9)
    np.testing.assert_allclose(trace.noise_gain(), np.linalg.norm(c), rtol=1e-9)
    density = lambda t: c @ stats.gamma.pdf(t, np.arange(1, 6), scale=1 / float(trace.rate))  # noqa: E731
    area, first, second = (integrate.quad(lambda t, k=k: t**k * density(t), 0, 60, limit=400)[0] for k in range(3))
    np.testing.assert_allclose(trace.mean(), first / area, rtol=1e-6)
    np.testing.assert_allclose(trace.variance(), second / area - (first / area) ** 2, rtol=1e-6)
    for s in (0.3, 0.2 + 1.0j):
        np.testing.assert_allclose(np.sum(c * (trace.rate / (s + trace.rate)) ** np.arange(1, 6)), trace.laplace(s))
    assert float(trace.laplace(1e-9)) == pytest.approx(float(trace.area()), rel=1e-6)
    plain = CascadingTrace(5, delay * DT, DT)
    assert (float(plain.noise_gain()), float(plain.area())) == (1.0, 1.0)


@pytest.mark.parametrize("tail", [1e-6, 1e-3])
def test_window_is_by_the_absolute_weights(tail):
    for order, delay, read in ((3, 20, "before"), (10, 50, "after"), (64, 3, "before"), (6, 300, "before")):
        size = np.abs(balanced(order, delay, read, 10.0, 1e-4, False)
                      @ stage_weights(np.arange(40 * delay + 200), order, delay, read))  # fmt: skip
        beyond = np.cumsum(size[::-1])[::-1] / size.sum()
        shortest = int(np.argmax(beyond <= tail))
        assert abs(make(order, delay, read).window(tail) - shortest) <= 1
    shared = make(10, np.array([5.0, 50.0]))
    assert shared.window(tail) == make(10, 50).window(tail)


# Any readout, many at once, and in programs


def test_any_readout():
    c, lags = np.array([1.0, -2.0, 0.5, 3.0]), np.arange(80)
    trace = CascadingTrace(4, 10 * DT, DT, readout=c)
    expected = c @ stage_weights(lags, 4, 10, "before")
    np.testing.assert_allclose(weights(trace, lags), expected, rtol=1e-10, atol=1e-14)
    e = np.random.default_rng(2).normal(size=(40, 3))
    np.testing.assert_allclose(respond(trace, e), filtered(expected[:40], e), atol=1e-12)
    last = CascadingTrace(4, 10 * DT, DT, "after", "peak", readout=[0, 0, 0, 1])
    np.testing.assert_allclose(weights(last, lags), cascade(lags, 4, 10, "after", "peak"), rtol=1e-10, atol=1e-14)
    assert CascadingTrace(4, 2.0, readout=np.zeros(4)).window() == 1


def test_many_readouts_delays_and_rhos_at_once():
    lags, delays, rhos = np.arange(60), np.array([2.0, 5.0, 9.5]) * DT, np.array([1.0, 10.0, 100.0])
    own = CascadingTrace(6, delays, DT, readout="balanced", rho=rhos)
    one_by_one = np.stack(
        [CascadingTrace(6, d, DT, readout="balanced", rho=r).weights(lags) for d, r in zip(delays, rhos, strict=True)],
        axis=-1,
    )
    make = lambda d, r: CascadingTrace(6, d, DT, readout="balanced", rho=r).weights(lags)  # noqa: E731
    np.testing.assert_allclose(own.weights(lags), one_by_one, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(jax.vmap(make)(delays, rhos).T, one_by_one, rtol=1e-9, atol=1e-12)
    e = np.random.default_rng(3).normal(size=(60, 3, 2))
    np.testing.assert_allclose(respond(own, e), filtered(one_by_one, e), atol=1e-12)
    readouts = np.random.default_rng(4).normal(size=(3, 6))
    found = CascadingTrace(6, delays, DT, readout=readouts).weights(lags)
    mapped = jax.vmap(lambda d, c: CascadingTrace(6, d, DT, readout=c).weights(lags))(delays, readouts)
    np.testing.assert_allclose(found, mapped.T, rtol=1e-12, atol=1e-15)


def test_a_changed_delay_changes_the_readout():
    """Nothing is kept that belongs to the delay before."""
    trace = eqx.tree_at(lambda trace: trace.delay, make(6, 10), jnp.asarray(20 * DT))
    np.testing.assert_array_equal(trace.weights(np.arange(50)), make(6, 20).weights(np.arange(50)))
    trace = eqx.tree_at(lambda trace: trace.rho, make(6, 10), jnp.asarray(1.0))
    np.testing.assert_array_equal(trace.coefficients(), make(6, 10, rho=1.0).coefficients())


def test_derivatives_by_delay_rho_and_eta():
    lags = np.arange(60)

    def found(parameters):
        delay, rho, eta = parameters
        trace = CascadingTrace(5, delay, DT, readout="balanced", rho=rho, eta=eta)
        return trace.weights(lags)

    at = jnp.array([2.4, 3.0, 1e-3])
    slopes = jax.jit(jax.jacfwd(found))(at)
    for index, h in enumerate((1e-5, 1e-4, 1e-8)):
        step = np.zeros(3)
        step[index] = h
        expected = (found(np.asarray(at) + step) - found(np.asarray(at) - step)) / (2 * h)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(slopes[:, index], expected, rtol=1e-4, atol=2e-5 * scale)
    cotangent = np.random.default_rng(5).normal(size=60)
    pulled = jax.jit(jax.grad(lambda p: found(p) @ cotangent))(at)
    np.testing.assert_allclose(pulled, cotangent @ slopes, rtol=1e-7)


def test_normalised_by_the_peak_it_is_1_at_the_delay():
    for delay in (3, 50):
        trace = make(10, delay, normalization="peak", peaked=True)
        assert float(trace.weights(delay)) == pytest.approx(1.0, abs=1e-10)


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(order=2, readout="balanced"), "`order` must be at least 3 for a balanced readout, got 2"),
        (
            dict(order=5, readout="balanced", peaked=True),
            "`order` must be at least 6 for a balanced and",
        ),
        (dict(readout="first"), "`readout` must be one of 'last', 'balanced', got 'first'"),
        (dict(readout=np.ones(9)), r"`readout` must be \[..., 10\], one number a stage, got shape \(9,\)"),
        (dict(readout=1.0), r"got shape \(\)"),
        (dict(readout=[np.nan] * 10), "`readout` must be finite, got"),
        (dict(readout="balanced", rho=-1.0), "`rho` must be at least 0, got -1.0"),
        (dict(readout="balanced", rho=np.nan), "`rho` must be finite, got nan"),
        (dict(readout="balanced", eta=0.0), "`eta` must be at least 1e-06, got 0.0"),
        (dict(readout="balanced", peaked="no"), "`peaked` must be True or False, got 'no'"),
        (dict(rho=10.0), "`rho` is of readout='balanced' alone, got rho=10.0"),
        (dict(readout=np.ones(10), eta=1e-4), "`eta` is of readout='balanced' alone"),
        (dict(peaked=True), "`peaked` is of readout='balanced' alone"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CascadingTrace(**options)


def test_other_refusals():
    with pytest.raises(TypeError, match="readout"):
        FirstStageCascade(10, 4.0, readout="balanced")
    with pytest.raises(ValueError, match="the window of a trace with traced parameters is unknown"):
        jax.jit(lambda delay: make(10, delay).window())(5.0)
    trace = CascadingTrace.from_rate(2.0, 6, DT, readout="balanced", peaked=True)
    np.testing.assert_allclose(trace.rate, 2.0, rtol=1e-12)
    assert trace.peaked


@pytest.mark.parametrize("persists", [0.1, 10.0])
def test_the_cosine_of_an_update_is_that_of_the_weights_and_the_autocorrelation_of_activity(persists):
    """(w R)_D / √(R_0 wᵀ R w) on average over signals that are independent and have no mean; a page says so."""
    steps, units, outputs, late, rng = 1000, 200, 100, 20, np.random.default_rng(0)
    keep, x, lags = np.exp(-1 / persists), rng.normal(size=(steps, units)), np.arange(200)
    for t in range(1, steps):
        x[t] = keep * x[t - 1] + np.sqrt(1 - keep**2) * x[t]
    x, gain, signal = map(jnp.asarray, (x, np.ones((steps, outputs)), rng.normal(size=(steps, outputs))))
    R, when = linalg.toeplitz(np.exp(-lags / persists)), jnp.arange(steps)
    update = jax.jit(lambda trace, at: credit.adjoint(trace, x, gain, signal, at, when, horizon=None).weight)
    exact, found = np.asarray(x.T @ signal).T, {}
    for rho in (None, 0.0, 10.0):
        how = {} if rho is None else dict(readout="balanced", rho=rho)
        trace = CascadingTrace(10, late * DT, DT, "after", **how)
        one, w = np.asarray(update(trace.tabulate(200), when + late)), np.asarray(trace.weights(lags))
        found[rho] = np.vdot(one, exact) / np.linalg.norm(one) / np.linalg.norm(exact)
        assert found[rho] == pytest.approx(w @ R[late] / np.sqrt(R[0, 0] * (w @ R @ w)), abs=0.02)
    assert found[0.0] == max(found.values())


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("persists", [3.0, 10.0, 30.0, 100.0])
def test_no_readout_that_knows_how_activity_persists_is_much_better_than_one_of_rho_0(persists, mean):
    """The best cosine of ten stages is √(r (S R Sᵀ)⁻¹ r / R_0), r = S R at the delay; stages are as noisy as η says."""
    late, lags = 40, np.arange(440)
    R, S = linalg.toeplitz(np.exp(-lags / persists) + mean**2), stage_weights(lags, 10, late, "after")
    noise, r = readout.ETA * np.trace(S @ S.T) / 10 * np.eye(10), S @ R[late]
    best = np.linalg.solve(S @ R @ S.T + noise, r) @ S
    found = np.asarray(make(10, late, "after", True, rho=0.0).weights(lags))
    best, found = (w @ R[late] / np.sqrt(R[0, 0] * (w @ R @ w)) for w in (best, found))
    assert best - 0.03 < found < best + 1e-3
