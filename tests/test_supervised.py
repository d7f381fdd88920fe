"""A training run is pure in (hyperparameters, key): cut, vmapped or repeated, it is the same run."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import jit

import cetsim
from cetsim import metrics
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun, backprop

BATCH = 16
SETTINGS = Settings(steps=20, segment=BATCH)


def make_model(key):
    return cetsim.nn.mlp((5, 8, 3), key=key)


def problem(examples=100, noise=0.5):
    """Three Gaussian clouds, easy to tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, examples).astype(np.int32)
    centres = 2.0 * np.eye(3, 5)
    return centres[labels] + noise * rng.normal(size=(examples, 5)), labels


def make_run(settings=SETTINGS, **kwargs):
    x, labels = problem(**kwargs)
    return SupervisedRun(make_model, jnp.asarray(x), jnp.asarray(labels), settings)


def hyper(rate=1e-2, trace=None, delay=0.4, gate=0.0):
    trace = cetsim.CascadingTrace(4, delay, 0.2) if trace is None else trace
    return Hyperparameters(rate, trace, cetsim.FixedDelay(delay, 0.2), gate)


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_allclose(left, right, **tolerance)


@jit
def advance(run, state, steps):
    return run.advance(state, steps)


@jit
def align(run, state, x, labels, over="arrived"):
    return run.alignment(state, x, labels, over)


class TestAdvance:
    @pytest.mark.parametrize("cuts", [(5, 5), (1, 2, 5, 2), (2, 1, 1, 1, 5)])  # of few lengths: each takes a program
    def test_a_run_that_is_cut_is_the_same_run_bit_for_bit(self, cuts):
        run = make_run()
        state = run.init(hyper(), jax.random.key(0))
        whole, losses = advance(run, state, 10)
        pieces = []
        for steps in cuts:
            state, loss = advance(run, state, steps)
            pieces.append(loss)
        assert_trees_close(whole, state, rtol=0, atol=0)
        np.testing.assert_array_equal(losses, jnp.concatenate(pieces))

    def test_the_same_key_gives_the_same_numbers_and_another_key_others(self):
        run = make_run()
        losses = [advance(run, run.init(hyper(), jax.random.key(seed)), 5)[1] for seed in (3, 3, 4)]
        np.testing.assert_array_equal(losses[0], losses[1])
        assert not np.allclose(losses[0], losses[2])

    def test_one_update_is_the_rules_gradient_clipped_and_given_to_adamw(self):
        settings = dataclasses.replace(SETTINGS, clip=0.01)
        run, h = make_run(settings), hyper(gate=1e-8)
        state = run.init(h, jax.random.key(0))
        rows = run._frames(state, 1).row[0]
        model = make_model(jax.random.split(jax.random.key(0))[0])

        def loss(model):
            model = cetsim.attach(model, h.trace, h.delay, error_gate=1e-8)
            logits = jax.vmap(model, axis_name="time")(run.x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, run.labels[rows]).mean()

        value, grads = jit(eqx.filter_value_and_grad(loss))(model)
        norm = optax.tree.norm(grads)
        assert norm > 0.01
        grads = jax.tree.map(lambda g: g * 0.01 / norm, grads)
        adamw = optax.adamw(h.learning_rate * settings.schedule(0), weight_decay=0.01)
        params = eqx.filter(model, eqx.is_array)
        updates, _ = jit(adamw.update)(grads, adamw.init(params), params)
        after, losses = advance(run, state, 1)
        np.testing.assert_allclose(losses, [value], rtol=1e-12)
        assert_trees_close(after.params, optax.apply_updates(params, updates), rtol=1e-9, atol=1e-12)

    def test_an_epoch_shows_every_image_at_most_once_and_the_next_one_another_order(self):
        run = make_run(examples=100)
        state = run.init(hyper(), jax.random.key(0))
        rows = np.asarray(run._frames(state, 12).row).reshape(2, -1)  # two epochs of 6 batches of 16 of 100
        for epoch in rows:
            assert len(set(epoch.tolist())) == 96
        assert not np.array_equal(rows[0], rows[1])

    def test_divergence_is_noted(self):
        run = make_run()
        state, _ = advance(run, run.init(hyper(), jax.random.key(0)), 2)
        assert not state.diverged
        broken = eqx.tree_at(lambda s: s.params.layers[0].weight, state, jnp.full((8, 5), jnp.inf))
        assert advance(run, broken, 2)[0].diverged

    def test_hyperparameters_change_without_compiling_again(self):
        run, compiled = make_run(), []

        @eqx.filter_jit
        def go(run, state):
            compiled.append(1)
            return run.advance(state, 2)

        for rate, delay, gate in ((1e-2, 0.4, 0.0), (1e-3, 1.0, 1e-8), (3e-3, 0.2, 0.0)):
            for trace in (cetsim.CascadingTrace(3, delay), cetsim.ExponentialTrace(delay), cetsim.DelayLine(delay)):
                go(run, run.init(hyper(rate, trace.tabulate(BATCH), delay, gate), jax.random.key(0)))
        assert len(compiled) == 1


class TestVmap:
    def test_seeds_rates_delays_orders_and_kinds_of_trace_in_one_program(self):
        run = make_run()
        traces = [
            (cetsim.CascadingTrace(2, 0.4), 0.4),
            (cetsim.CascadingTrace(10, 1.0), 1.0),
            (cetsim.ExponentialTrace(0.4), 0.4),
            (cetsim.DelayLine(0.6), 0.6),
            (cetsim.DelayLine(0.0), 0.0),
        ]
        hypers = [hyper(1e-2 / (i + 1), t.tabulate(BATCH), d, i * 1e-9) for i, (t, d) in enumerate(traces)]
        keys = jax.random.split(jax.random.key(5), len(traces))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *hypers)

        def train(h, key):
            return run.advance(run.init(h, key), 10)

        together, losses = eqx.filter_jit(eqx.filter_vmap(train))(stacked, keys)
        for i, h in enumerate(hypers):
            alone, loss = eqx.filter_jit(train)(h, keys[i])
            np.testing.assert_allclose(losses[i], loss, rtol=1e-9)
            assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], together.params), alone.params, atol=1e-9)


class TestSchedule:
    def test_it_warms_up_over_a_tenth_and_falls_along_a_cosine_to_a_tenth(self):
        settings = Settings(steps=200)
        shares = np.array([settings.schedule(step) for step in range(200)])
        np.testing.assert_allclose(shares[:20], np.arange(1, 21) / 20, rtol=1e-6)
        np.testing.assert_allclose(shares[109], 0.1 + 0.9 * 0.5, rtol=1e-6)  # half way down
        np.testing.assert_allclose(shares[-1], 0.1, rtol=1e-6)
        assert np.all(np.diff(shares[20:]) < 0)


class TestAlignment:
    def test_backprop_is_aligned_with_itself(self):
        run = make_run()
        state = run.init(backprop(1e-2), jax.random.key(0))
        cosines = align(run, state, run.x[:BATCH], run.labels[:BATCH])
        np.testing.assert_allclose(list(cosines.values()), 1.0, rtol=1e-12)

    def test_a_delay_line_is_aligned_over_the_steps_whose_signals_arrived_and_less_over_all(self):
        run = make_run()
        state = run.init(hyper(trace=cetsim.DelayLine(1.0), delay=1.0), jax.random.key(0))
        x, labels = run.x[:BATCH], run.labels[:BATCH]
        arrived = align(run, state, x, labels, "arrived")
        everything = align(run, state, x, labels, "all")
        np.testing.assert_allclose(list(arrived.values()), 1.0, rtol=1e-12)
        assert all(value < 0.999 for value in everything.values())

    def test_by_hand_for_a_cascade(self):
        run, h = make_run(), hyper(trace=cetsim.CascadingTrace(5, 1.0), delay=1.0)
        state = run.init(h, jax.random.key(0))
        x, labels = run.x[:BATCH], run.labels[:BATCH]
        model = make_model(jax.random.split(jax.random.key(0))[0])

        def loss(model, weights, attach):
            model = cetsim.attach(model, h.trace, h.delay) if attach else model
            each = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model, axis_name="time")(x), labels)
            return jnp.mean(weights * each)

        gradient = jit(eqx.filter_grad(loss))
        update = gradient(model, jnp.ones(BATCH), True)
        for over, weights in (
            ("all", jnp.ones(BATCH)),
            ("arrived", jnp.where(jnp.arange(BATCH) < BATCH - 5, 1.0, 0.0)),
        ):
            expected = metrics.alignment(update, gradient(model, weights, False))
            cosines = align(run, state, x, labels, over)
            assert cosines.keys() == expected.keys()
            np.testing.assert_allclose(list(cosines.values()), list(expected.values()), rtol=1e-10)


class TestStreams:
    def test_a_stream_trains(self):
        run = make_run(dataclasses.replace(SETTINGS, boundary="carry", steps=150), noise=0.3)
        h = hyper(2e-2, cetsim.DelayLine(0.6), 0.6)
        state, losses = advance(run, run.init(h, jax.random.key(0)), 150)
        assert losses[-10:].mean() < 0.3 * losses[:10].mean()
        x, labels = run.x[:BATCH], run.labels[:BATCH]
        cosines = align(run, state, x, labels)  # of a segment that starts empty, as in the other mode
        np.testing.assert_array_equal(list(cosines.values()), list(align(make_run(), state, x, labels).values()))

    def test_a_stream_that_is_cut_is_the_same_run(self):
        run = make_run(dataclasses.replace(SETTINGS, boundary="carry"))
        state = run.init(hyper(trace=cetsim.CascadingTrace(3, 0.8), delay=0.8), jax.random.key(0))
        whole, _ = advance(run, state, 6)
        for steps in (2, 2, 2):
            state, _ = advance(run, state, steps)
        assert_trees_close(whole, state, rtol=0, atol=0)


def normed(key):
    keys = jax.random.split(key)
    first, last = eqx.nn.Linear(5, 8, key=keys[0]), eqx.nn.Linear(8, 3, key=keys[1])
    return eqx.nn.Sequential([first, eqx.nn.LayerNorm(8), eqx.nn.Lambda(jax.nn.relu), last])


class TestPlainLayers:
    """Layers that learn from plain backprop: norms, which would be warned of, and synapses if that is wanted."""

    @staticmethod
    def run(boundary, plain):
        x, labels = problem()
        settings = Settings(20, BATCH, form="preactivation", boundary=boundary, plain=plain)
        return SupervisedRun(normed, jnp.asarray(x), jnp.asarray(labels), settings)

    @pytest.mark.parametrize("boundary", ["reset", "carry"])
    @pytest.mark.parametrize("plain", [("layers.1",), ("layers.1", "layers.3")])
    def test_they_are_left_to_backprop_and_not_compared(self, boundary, plain):
        run = self.run(boundary, plain)
        state = run.init(h := hyper(), jax.random.key(0))
        assert align(run, state, run.x[:BATCH], run.labels[:BATCH]).keys() == {"layers.0", "layers.3"} - set(plain)
        x, labels = run.x[:BATCH], run.labels[:BATCH]
        (_, _), update, _ = run._gradient(eqx.combine(state.params, run._template()), state, state.stream, x, labels)

        def loss(model, traced):
            if traced:
                overrides = dict.fromkeys(plain)
                model = cetsim.attach(model, h.trace, h.delay, form="preactivation", overrides=overrides)
            logits = jax.vmap(model, axis_name="time")(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        model = normed(jax.random.split(jax.random.key(0))[0])
        assert_trees_close(update, cetsim.detach(eqx.filter_grad(loss)(model, True)), rtol=1e-10, atol=1e-14)
        backprop_s = eqx.filter_grad(loss)(model, False)
        for name in (1, 3):
            same = np.allclose(update.layers[name].weight, backprop_s.layers[name].weight, rtol=1e-10)
            assert same == (f"layers.{name}" in plain)

    @pytest.mark.parametrize(
        ("plain", "message"),
        [
            (("norm",), "`plain` must name what the model has, layers.0.weight, .*; got 'norm'"),
            ("layers.1", "`plain` must be a tuple of names of layers or arrays, got 'layers.1'"),
        ],
    )
    def test_names_of_nothing(self, plain, message):
        with pytest.raises(ValueError, match=message):
            self.run("reset", plain)


class TestLearning:
    def test_a_trace_learns_at_its_delay_and_not_at_another(self):
        """The peak of CET(10) on the delay of the signal, and on four times as much, over 5 seeds: chance is 1/3."""
        run = make_run(Settings(steps=300, segment=64), examples=512)
        keys = jax.random.split(jax.random.key(0), 5)

        def accuracy(trace):
            def one(key):
                h = Hyperparameters(1e-2, trace.tabulate(64), cetsim.FixedDelay(1.0), 0.0)
                state, _ = run.advance(run.init(h, key), 300)
                return run.evaluate(state, run.x, run.labels)["accuracy"]

            return np.asarray(eqx.filter_jit(jax.vmap(one))(keys))

        right, wrong = accuracy(cetsim.CascadingTrace(10, 1.0)), accuracy(cetsim.CascadingTrace(10, 4.0))
        assert right.min() > 0.9
        assert right.mean() > wrong.mean() + 0.3

    def test_evaluate_is_accuracy_and_loss_by_hand(self):
        run = make_run()
        state = run.init(hyper(), jax.random.key(0))
        model = make_model(jax.random.split(jax.random.key(0))[0])
        logits = jit(lambda model, x: jax.vmap(model)(x))(model, run.x)
        measured = run.evaluate(state, run.x, run.labels)
        np.testing.assert_allclose(measured["accuracy"], np.mean(np.argmax(logits, 1) == run.labels))
        each = -jax.nn.log_softmax(logits)[np.arange(100), np.asarray(run.labels)]
        np.testing.assert_allclose(measured["loss"], each.mean(), rtol=1e-12)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "`steps` must be at least 1, got 0"),
            ({"segment": 0}, "`segment` must be at least 1, got 0"),
            ({"form": "other"}, "`form` must be one of 'activation'.*got 'other'"),
            ({"boundary": "other"}, "`boundary` must be one of 'reset', 'carry', got 'other'"),
            ({"warmup": 1.5}, r"`warmup` must be in \[0, 1\], got 1.5"),
            ({"floor": -0.1}, r"`floor` must be in \[0, 1\], got -0.1"),
            ({"clip": 0.0}, "`clip` must be above 0, got 0.0"),
        ],
    )
    def test_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            Settings(**{"steps": 10} | options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rate": 0.0}, "`learning_rate` must be above 0, got 0.0"),
            ({"rate": float("nan")}, "`learning_rate` must be finite, got nan"),
            ({"gate": -1.0}, "`error_gate` must be at least 0, got -1.0"),
        ],
    )
    def test_hyperparameters(self, options, message):
        with pytest.raises(ValueError, match=message):
            hyper(**options)

    def test_data(self):
        x, labels = map(jnp.asarray, problem())
        with pytest.raises(ValueError, match="one length, got 100 and 99"):
            SupervisedRun(make_model, x, labels[1:], SETTINGS)
        with pytest.raises(ValueError, match="batch of 16 needs at least as many examples, got 15"):
            SupervisedRun(make_model, x[:15], labels[:15], SETTINGS)
        with pytest.raises(ValueError, match="`x` must be finite"):
            SupervisedRun(make_model, x.at[3, 2].set(jnp.nan), labels, SETTINGS)

    def test_alignment_over_something_else(self):
        run = make_run()
        with pytest.raises(ValueError, match="`over` must be one of 'arrived', 'all', got 'some'"):
            run.alignment(run.init(hyper(), jax.random.key(0)), run.x[:BATCH], run.labels[:BATCH], "some")
