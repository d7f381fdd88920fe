"""A third factor handed in: rewards strengthen what earned them. And signals of which none arrives are told of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_oracles as oracles
from networks import assert_same

import cetsim
from cetsim import CascadingTrace, DelayLine, FixedDelay

T, LATE, DT = 12, 3, 0.2
TRACE, DELAY = CascadingTrace(3, 0.6, DT), FixedDelay(LATE * DT, DT)
RNG = np.random.default_rng(0)
X, REWARD = RNG.normal(size=(T, 4)), RNG.normal(size=T)
LAYER = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=jax.random.key(0))])


def change(loss=jnp.sum, layer=LAYER, x=X, delay=DELAY, **options):
    """How the weights change, minus the gradient."""
    attach = lambda m: cetsim.attach(m, TRACE, delay, form="preactivation", **options)  # noqa: E731
    return -eqx.filter_grad(lambda m: loss(jax.vmap(attach(m), axis_name="time")(x)))(layer).layers[0].weight


@pytest.mark.parametrize("late", [0, LATE])
def test_weights_grow_where_a_positive_reward_meets_a_trace(late):
    """ΔW = +Σ_r reward(r) trace(r + late), by loops; `late` 0 for rewards by the step at which they come."""
    expected = np.zeros((3, 4))
    for r in range(T - late):
        trace = sum(oracles.weights(TRACE, [r + late - s])[0] * X[s] for s in range(T))
        expected += REWARD[r] * np.ones((3, 1)) * trace
    assert_same(change(reward=REWARD, delay=FixedDelay(late * DT, DT)), expected)
    grown = change(reward=np.ones(T), x=np.ones((T, 4)))
    assert np.all(grown > 0)


@pytest.mark.parametrize("loss", [jnp.mean, lambda out: jnp.sum(jnp.sin(out)), lambda out: -5 * jnp.sum(out)])
def test_the_loss_has_no_part_in_it(loss):
    assert_same(change(loss, reward=REWARD), change(reward=REWARD))


def test_it_is_a_sum_over_a_batch():
    batch = np.stack([X, 2 * X])
    attach = lambda m: cetsim.attach(m, TRACE, DELAY, form="preactivation", reward=REWARD)  # noqa: E731
    loss = lambda m: jnp.mean(jax.vmap(jax.vmap(attach(m), axis_name="time"))(batch))  # noqa: E731
    assert_same(-eqx.filter_grad(loss)(LAYER).layers[0].weight, 3 * change(reward=REWARD))


def test_a_signal_has_the_sign_of_an_error():
    assert_same(change(signal=-REWARD), change(reward=REWARD))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [(dict(reward=REWARD, signal=REWARD), "both"), (dict(reward=np.ones((T, 3))), r"shape \(12, 3\)")],
)
def test_what_is_no_reward_is_refused(options, wrong):
    with pytest.raises(ValueError, match=f"`reward` must be .time., and stands alone or `signal` does, got {wrong}"):
        change(**options)


def test_a_reward_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"`signal` must have shape \(12, 3\) or \(12,\), got \(7,\)"):
        change(reward=np.ones(7))


# Nothing can arrive.


@pytest.mark.parametrize("seconds", [T * DT, 10.0])
def test_a_delay_as_long_as_the_segment_is_told_of_under_jit_too(seconds):
    late = FixedDelay(seconds, DT)
    attach = lambda m: cetsim.attach(m, DelayLine(seconds, DT), late, form="preactivation")  # noqa: E731
    grad = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(jax.vmap(attach(m), axis_name="time")(X))))
    with pytest.warns(UserWarning, match=r"no learning signal reaches layer.*make segments longer.*keep_late=True"):
        assert not np.any(grad(LAYER).layers[0].weight)


def test_a_loss_of_the_last_step_alone_is_told_of():
    with pytest.warns(UserWarning, match=r"those of all steps whose error is not 0 would come after the end"):
        assert not np.any(change(lambda out: jnp.sum(out[-1])))


def test_nobody_is_warned_where_something_arrives():
    """Warnings are errors here."""
    change(lambda out: jnp.sum(out[-1]), delay=FixedDelay(10.0, DT, keep_late=True))
    change(lambda out: jnp.sum(out[5]))
    change(lambda out: 0.0 * jnp.sum(out[-1]))
