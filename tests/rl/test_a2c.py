"""The actor-critic: its gradient against autodiff and the literal rule, and a run against itself in other pieces."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from worlds import LENGTH, corridor

from cetsim import CascadingTrace, DelayLine, ExponentialTrace, FixedDelay, LayerwiseDelay
from cetsim.rl import (
    ActorCriticRun,
    Hyperparameters,
    Settings,
    actor_trace,
    delayed_layer,
    networks,
    policy_alignment,
    undelayed,
)
from cetsim.rl.actor_trace import ActorState, Arriving, WindowState
from cetsim.rl.policies import Categorical

DT = 0.2
uncentred = functools.partial(Settings, center_td=None)  # learns from TD errors as they are
SETTINGS = uncentred(updates=4, environments=3, rollout=11, hidden=(6, 5))


RUN = ActorCriticRun(corridor(), SETTINGS)
KEY = jax.random.key(0)


def hyper(delay=0.0, rate=1e-2, **options):
    if delay == 0:
        return Hyperparameters(rate, DelayLine(0.0, DT, 0.0), FixedDelay(0.0, DT), **options)
    return Hyperparameters(rate, CascadingTrace(3, delay, DT), FixedDelay(delay, DT), **options)


@jit
def first_rollout(run, state):
    agent, learner = state.agent, run.learner
    _, rollout = run.roll_out(agent.params, state.vector_env, jax.random.key(5))
    td_error, targets = learner.td_errors(agent.hyper, learner.networks(agent.params).critic, rollout)
    layers, grads, _ = learner.gradient(agent, rollout)
    return rollout, td_error, targets, layers, grads


@jit
def advance(run, state, updates):
    return run.advance(state, updates)


def close(left, right, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_without_delay_it_is_the_policy_gradient(kind):
    """Autodiff of the mean log-probability, each step weighed by its advantage."""
    run = ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, actor_gradient=kind))
    state = run.init(hyper(entropy=0.02), jax.random.key(0))
    rollout, td_error, targets, _, grads = first_rollout(run, state)
    decay = 0.99 * 0.95
    weights = np.zeros(td_error.shape)
    for t in reversed(range(len(weights))):
        later = weights[t + 1] if t + 1 < len(weights) else 0.0
        weights[t] = td_error[t] + decay * np.asarray(rollout.alive)[t] * later

    @jit
    @eqx.filter_grad
    def of(model):
        logits = jax.vmap(jax.vmap(model.actor))(rollout.observation)
        log_policy = jnp.take_along_axis(jax.nn.log_softmax(logits), rollout.action[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1).mean()
        values = jax.vmap(jax.vmap(model.critic))(rollout.observation)[..., 0]
        steps = SETTINGS.rollout if kind == "sum" else 1
        actors = -steps * jnp.mean(weights * log_policy) - 0.02 * entropy
        return actors + 0.5 * 0.5 * jnp.mean((values - targets) ** 2)

    close(grads, eqx.filter(of(RUN.learner.networks(state.agent.params)), eqx.is_inexact_array))


def test_td_errors_and_returns_by_hand():
    for truncation in ("bootstrap", "terminate"):
        run = ActorCriticRun(corridor(), uncentred(1, 3, 30, (6, 5), truncation=truncation))
        state = run.init(hyper(), jax.random.key(1))
        rollout, td_error, targets, *_ = first_rollout(run, state)
        critic = jax.vmap(jax.vmap(run.learner.networks(state.agent.params).critic))
        values, afters = (critic(x)[..., 0] for x in (rollout.observation, rollout.final))
        assert bool(rollout.truncated.any())
        assert bool(rollout.terminated.any())
        for env in range(3):
            later = 0.0
            for t in reversed(range(30)):
                value, after = values[t, env], afters[t, env]
                ended = rollout.terminated[t, env] or (truncation == "terminate" and rollout.truncated[t, env])
                expected = rollout.reward[t, env] + 0.99 * (0.0 if ended else after) - value
                np.testing.assert_allclose(td_error[t, env], expected, rtol=1e-10, atol=1e-12)
                over = rollout.terminated[t, env] or rollout.truncated[t, env]
                later = expected + 0.99 * 0.95 * (0.0 if over else later)
                np.testing.assert_allclose(targets[t, env], value + later, rtol=1e-10, atol=1e-12)


def test_td_errors_where_nothing_was_broken_off():
    """The common case: what is next observed has its value already."""
    run = ActorCriticRun(corridor(), uncentred(1, 8, LENGTH - 2, (6, 5)))
    state = run.init(hyper(), jax.random.key(1))
    rollout, td_error, *_ = first_rollout(run, state)
    assert not bool(rollout.truncated.any())
    assert bool(rollout.terminated.any())
    critic = jax.vmap(jax.vmap(run.learner.networks(state.agent.params).critic))
    values, afters = (np.asarray(critic(x))[..., 0] for x in (rollout.observation, rollout.final))
    expected = rollout.reward + 0.99 * np.where(rollout.terminated, 0.0, afters) - values
    np.testing.assert_allclose(td_error, expected, rtol=1e-10, atol=1e-12)


def shifted(rows, fill, late):
    """Rows that come `late` steps later, with what there was before them."""
    return jnp.concatenate([jnp.full_like(rows[:late], fill), rows[: len(rows) - late]])


@pytest.mark.parametrize(
    "option", ["", "late_critic", "late_flag", "synaptic_lam", "reset_cascade", "window", "preactivation"]
)
def test_late_credit_is_the_literal_rule(option):
    """Every synapse stepped through time, its signals, TD errors and ends of episodes 3 and 6 steps late."""
    late_critic, late_flag, reset = (option == name for name in ("late_critic", "late_flag", "reset_cascade"))
    flags = {option: True} if late_critic or late_flag or reset else {}
    flags |= {"window": {"window": 11}, "preactivation": {"form": "preactivation"}}.get(option, {})
    run = ActorCriticRun(corridor(), uncentred(1, 3, 11, (6, 5), **flags))
    traces = (DelayLine(0.0, DT, 0.0), CascadingTrace(3, 0.6, DT), CascadingTrace(3, 1.2, DT))
    rng, lams = np.random.default_rng(0), [0.95] * 3
    if option == "synaptic_lam":
        lams = [jnp.asarray(rng.uniform(0.5, 1.0, shape)) for shape in ((6, 3), (5, 6), (2, 5))]
    more = {"synaptic_lam": tuple(lams)} if option == "synaptic_lam" else {}
    own = Hyperparameters(1e-2, traces, LayerwiseDelay.stacked(0.6, 3, DT), entropy=0.0, **more)
    state = run.init(own, jax.random.key(2))
    rollout, td_error, _, layers, grads = first_rollout(run, state)
    assert option != "window" or all(isinstance(layer.synapses, WindowState) for layer in layers)
    model = run.learner.networks(state.agent.params)
    policy = Categorical(2)
    of_policy = lambda env: networks.factors_of_policy(model.actor, policy, *seen(env))  # noqa: E731
    pairs = [(model.actor, grads.actor, of_policy, 1 / 11)]
    seen = lambda env: (rollout.observation[:, env], rollout.action[:, env])  # noqa: E731
    if late_critic:
        pairs.append((model.critic, grads.critic, lambda env: networks.factors_of_value(model.critic, seen(env)[0]),
                      0.5 / 11))  # fmt: skip
    for network, found, factors_of, scale in pairs:
        totals = [0.0] * 3
        for env in range(3):
            for depth, factors in enumerate(factors_of(env)):
                late, trace = 3 * (2 - depth), traces[2 - depth]
                derivative = jnp.ones_like(factors.error) if factors.derivative is None else factors.derivative
                gain, error = derivative, factors.error
                if option == "preactivation":
                    gain, error = jnp.ones_like(error), derivative * error
                sent = error, td_error[:, env], rollout.alive[:, env]
                emptied = rollout.alive[:, env] == 0 if reset else None
                lates = (late, late, late + late_flag)
                arriving = Arriving(*map(shifted, sent, (0.0, 0.0, 1.0), lates))
                first = actor_trace.init(trace, gain.shape[1], factors.x.shape[1])
                rows = factors.x, gain, arriving, emptied
                _, gradient = jit(actor_trace.literal)(trace, 0.99 * lams[depth], first, *rows)
                totals[depth] = totals[depth] + scale * gradient / 3  # environments
        close(found, networks.gradient_like(network, totals))


@pytest.mark.parametrize(("steps", "kept"), [(40, WindowState), (640, ActorState)])
def test_layers_keep_what_costs_less(steps, kept):
    run = ActorCriticRun(corridor(), Settings(updates=1))
    trace, late = CascadingTrace(10, steps * DT, DT), FixedDelay(steps * DT, DT)
    state = jax.eval_shape(lambda key: run.init(Hyperparameters(1e-3, trace, late), key), jax.random.key(0))
    synapses = state.agent.layers[1].synapses
    assert isinstance(synapses, kept)
    if kept is WindowState:  # all but 1e-4 of the kernel's area, and no longer
        weights = np.asarray(trace.weights(jnp.arange(10 * steps)))
        forgotten = 1 - weights.cumsum()[synapses.x.shape[1] - 1] / weights.sum()
        assert 1e-5 < forgotten < 1e-4


@pytest.mark.parametrize(
    "options", [delayed_layer.EXACT, delayed_layer.Options("preactivation", reset=True, late_flag=True),
                delayed_layer.Options("authors_linear", "cascade", reset=True)]
)  # fmt: skip
@pytest.mark.parametrize("window", [None, 40])
def test_cutting_rollouts_differently_changes_nothing_while_weights_are_held(window, options):
    rng, trace, delay = np.random.default_rng(0), CascadingTrace(3, 1.0, DT), FixedDelay(1.0, DT)
    x, derivative, error = (jnp.asarray(rng.normal(size=(24, size))) for size in (4, 3, 3))
    td_error, alive = jnp.asarray(rng.normal(size=24)), jnp.asarray((rng.uniform(size=24) > 0.2) * 1.0)

    @jit
    def learn(state, *rows):
        *factors, td_error, alive = rows
        return delayed_layer.learn(trace, delay, 0.9, state, networks.Factors(*factors), td_error, alive, options)

    def summed(edges):
        state, total, passed = delayed_layer.init(trace, delay, 3, 4, window, options), 0.0, []
        for start, end in zip(edges[:-1], edges[1:], strict=True):  # noqa: RUF007
            rows = (array[start:end] for array in (x, derivative, error, td_error, alive))
            state, gradient, errors = learn(state, *rows)
            total, passed = total + gradient, [*passed, errors]
        return state, total, jnp.concatenate(passed)

    whole = summed([0, 24])
    close(summed([0, 8, 16, 24]), whole)
    close(summed([0, 3, 24]), whole)


def one_by_one(run, state, updates):
    """The state after updates each of which is a run of its own, which takes one program however many, and Progress."""
    told = []
    for _ in range(updates):
        state, now = advance(run, state, 1)
        told.append(now)
    return state, jax.tree.map(lambda *rows: np.concatenate(rows), *told)


def test_a_run_that_is_cut_is_the_same_run_bit_for_bit():
    state = RUN.init(hyper(1.0), jax.random.key(3))
    whole, told = advance(RUN, state, 3)
    pieces, in_pieces = one_by_one(RUN, state, 3)
    for left, right in zip(jax.tree.leaves((whole.agent.params, told)), jax.tree.leaves((pieces.agent.params,
                           in_pieces)), strict=True):  # fmt: skip
        np.testing.assert_array_equal(left, right)
    assert not whole.agent.diverged
    assert int(told.finished.sum()) > 0


@pytest.mark.parametrize("anneal", ["critic", "both"])
def test_learning_rates_fall_to_nothing_over_a_run(anneal):
    falling = ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, anneal=anneal))  # 4 updates
    before, _ = advance(RUN, RUN.init(hyper(1.0), jax.random.key(3)), 1)
    moved = lambda run: jax.tree.map(jnp.subtract, advance(run, before, 1)[0].agent.params, before.agent.params)  # noqa: E731
    less, whole, left = moved(falling), moved(RUN), {"critic": 1.0, "both": 0.75}[anneal]
    close(less.critic, jax.tree.map(lambda leaf: 0.75 * leaf, whole.critic))
    close(less.actor, jax.tree.map(lambda leaf: left * leaf, whole.actor))
    (last, _), (past, _) = (one_by_one(falling, falling.init(hyper(1.0), jax.random.key(3)), n) for n in (4, 5))
    close(last.agent.params.critic, past.agent.params.critic)
    still = np.array_equal(last.agent.params.actor.layers[0].weight, past.agent.params.actor.layers[0].weight)
    assert still == (anneal == "both")


def test_lam_of_every_synapse_is_drawn():
    settings = dataclasses.replace(SETTINGS, random_lam=(0.1, 0.99), hidden=(60, 50))
    run = ActorCriticRun(corridor(), settings)
    for own in (hyper(), hyper(0.6)):
        state = jit(lambda key: run.init(own, key))(jax.random.key(3))  # noqa: B023
        lams = state.agent.hyper.synaptic_lam
        assert [lam.shape for lam in lams] == [(60, 3), (50, 60), (2, 50)]
        lam = np.asarray(lams[1]).ravel()  # 3000 of them
        assert 0.1 <= lam.min() < 0.102
        assert 0.988 < lam.max() <= 0.99
        assert abs(lam.mean() - 0.545) < 6 * 0.89 / np.sqrt(12 * lam.size)
        given = eqx.tree_at(lambda hyper: hyper.synaptic_lam, own, lams, is_leaf=lambda leaf: leaf is None)
        same = ActorCriticRun(corridor(), dataclasses.replace(settings, random_lam=None))
        expected = advance(same, same.init(given, jax.random.key(3)), 2)
        close(advance(run, state, 2)[0].agent.params, expected[0].agent.params)
    other = run.init(hyper(), jax.random.key(4)).agent.hyper.synaptic_lam
    assert not np.array_equal(other[0], lams[0])


def test_one_clip_for_actor_and_critic():
    """Adam's ε tells how large a gradient was: far below it, steps are as large as the clip allows."""
    state = RUN.init(hyper(rate=1.0), jax.random.key(3))
    moved = {}
    for clip in (1e-9, 2e-9):
        run = ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, clip=clip, clip_each=False))
        after, _ = advance(run, state, 1)
        moved[clip] = jax.tree.map(jnp.subtract, after.agent.params, state.agent.params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(moved[1e-9])))
    np.testing.assert_allclose(norm, 1e-9 / 1e-5, rtol=1e-3)
    close(moved[2e-9], jax.tree.map(lambda leaf: 2 * leaf, moved[1e-9]), 1e-3)


def test_a_clip_each_and_another_epsilon():
    run = ActorCriticRun(corridor(), dataclasses.replace(SETTINGS, clip=1e-9, epsilon=1e-4))
    state = run.init(hyper(rate=1.0), jax.random.key(3))
    after, _ = advance(run, state, 1)
    moved = jax.tree.map(jnp.subtract, after.agent.params, state.agent.params)
    for part in (moved.actor, moved.critic):
        norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(part)))
        np.testing.assert_allclose(norm, 1e-9 / 1e-4, rtol=1e-3)


@pytest.mark.parametrize("late", [False, True])
def test_td_errors_are_sent_less_their_running_mean(late):
    """Two updates: what the actor gets is what it would get of these TD errors less their running mean.

    A late critic gets them as they are.
    """
    decay, settings = 0.8, dataclasses.replace(SETTINGS, late_critic=late)
    plain, run = (
        ActorCriticRun(corridor(), dataclasses.replace(settings, center_td=center)) for center in (None, decay)
    )
    state = run.init(hyper(0.4), jax.random.key(3))
    means = []
    for _ in range(2):
        rollout, td_error, targets, _, grads = first_rollout(run, state)
        means.append(np.mean(td_error))
        weights = decay ** np.arange(len(means))[::-1]
        sent = td_error - weights @ np.asarray(means) / weights.sum()
        agent = state.agent
        gradients = (
            plain.learner.late_gradient(agent.hyper, agent.params, agent.layers, rollout, errors)[1]
            for errors in (sent, td_error)
        )
        centred, as_it_is = gradients
        if late:
            close(grads.critic, as_it_is.critic)
        bonus, _ = jit(entropy_gradient)(plain.learner, agent, rollout, targets)
        close(grads.actor, jax.tree.map(jnp.add, centred.actor, eqx.filter(bonus.actor, eqx.is_inexact_array)))
        grown, metrics = jit(run.learner.learn)(agent, rollout)
        np.testing.assert_allclose(metrics.td_error, means[-1], rtol=1e-12)
        state = eqx.tree_at(lambda state: state.agent, state, grown)


def entropy_gradient(learner, agent, rollout, targets):
    model = learner.networks(agent.params)
    return eqx.filter_grad(learner._plain_loss, has_aux=True)(model, agent.hyper, rollout, targets)


def test_the_critic_learns_at_a_rate_of_its_own():
    first = RUN.init(hyper(1.0), jax.random.key(3))
    faster = RUN.init(hyper(1.0, critic_rate=10.0), jax.random.key(3))
    plain, fast = (advance(RUN, state, 1)[0].agent.params for state in (first, faster))
    close(plain.actor, fast.actor)
    moved = lambda params: jax.tree.map(jnp.subtract, params.critic, first.agent.params.critic)  # noqa: E731
    close(jax.tree.map(lambda leaf: 10 * leaf, moved(plain)), moved(fast))


@pytest.mark.parametrize("lag", [1.0, 5.0])  # steps of 0.2; a rollout has 11
def test_what_is_remembered_exactly_points_along_the_policy_gradient(lag):
    def cosines(peak, room):
        trace = DelayLine(peak, DT, room)
        state = RUN.init(Hyperparameters(1e-2, trace, FixedDelay(lag, DT, room)), jax.random.key(3))
        return jit(lambda key: policy_alignment(RUN, state, key, 3))(jax.random.key(4))

    np.testing.assert_allclose(cosines(lag, lag + 1.0), 1.0, atol=1e-10)
    assert (cosines(lag + 0.4, lag + 0.4) < 0.97).all()


def test_undelayed_changes_nothing_but_when():
    late = hyper(1.0, entropy=0.3, critic_rate=3.0)
    at_once = undelayed(late)
    assert (float(at_once.delay.delay), float(at_once.trace.delay)) == (0.0, 0.0)
    names = ("learning_rate", "discount", "lam", "entropy", "value", "critic_rate")
    assert [float(getattr(late, name)) for name in names] == [float(getattr(at_once, name)) for name in names]


def test_seeds_and_delays_are_mapped():
    run = ActorCriticRun(corridor(), uncentred(4, 3, 11, (6, 5), window=20))

    def returns(delay, seed):
        late = FixedDelay(delay, DT, max_delay=2.0)
        own = Hyperparameters(1e-2, CascadingTrace(3, delay, DT), late)
        return run.advance(run.init(own, jax.random.key(seed)), 2)[0].agent.params

    delays, seeds = jnp.asarray([0.6, 1.4]), jnp.asarray([0, 1])
    together = jit(jax.vmap(returns))(delays, seeds)
    alone = jit(returns)(delays[1], seeds[1])
    close(jax.tree.map(lambda leaf: leaf[1], together), alone, 1e-7)


def test_learning_rates_and_kinds_of_trace_are_mapped():
    run = ActorCriticRun(corridor(), uncentred(4, 3, 11, (6, 5), window=20))
    kinds = (CascadingTrace(3, 1.0, DT), ExponentialTrace(1.0, DT), DelayLine(1.0, DT))
    tables, rates = [trace.tabulate(20) for trace in kinds], jnp.asarray([1e-2, 3e-2, 1e-3])

    def trained(rate, trace):
        own = Hyperparameters(rate, trace, FixedDelay(1.0, DT, max_delay=1.0))
        return run.advance(run.init(own, jax.random.key(7)), 2)[0].agent.params

    together = jit(jax.vmap(trained))(rates, jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables))
    for index, table in enumerate(tables):
        close(jax.tree.map(lambda leaf: leaf[index], together), jit(trained)(rates[index], table))  # noqa: B023


def test_it_learns():
    """Action 0 is better at places up to 0, action 1 beyond."""
    run = ActorCriticRun(corridor(), Settings(150, 8, 32, (16,)))
    state = run.init(hyper(rate=5e-3), jax.random.key(4))
    before = jit(run.evaluate)(state, jax.random.key(6), 200).mean()
    after = jit(run.evaluate)(advance(run, state, 150)[0], jax.random.key(6), 200).mean()
    assert after > before + 0.3


def test_evaluation_plays_one_episode_each():
    state = RUN.init(hyper(), jax.random.key(0))
    returns = jit(RUN.evaluate)(state, jax.random.key(1), 50)
    assert returns.shape == (50,)
    assert float(returns.max()) <= 3 * LENGTH
    short = jit(RUN.evaluate)(state, jax.random.key(1), 50, 1)
    assert set(np.round(np.unique(short), 6)) <= {-1.0, 0.3, 1.0}
