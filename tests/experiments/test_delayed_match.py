"""The experiment delayed-match: its sequences, what is run, and its command line at a tiny size."""

import jax
import jax.numpy as jnp
import numpy as np
from experiment import error_of, output_of

from experiments import delayed_match
from experiments.delayed_match import ANSWERED, INPUTS, SEEN, Options


def test_half_of_the_sequences_show_one_pattern_twice():
    x, same = map(np.asarray, delayed_match.sequences(jax.random.key(1), 0.25, 400))
    assert x.shape == (400, 2 * SEEN + 5 + ANSWERED, INPUTS)
    apart = np.linalg.norm(x[:, 0] - x[:, SEEN + 5], axis=1)
    assert np.all((apart < 1.2) == (same == 1))
    assert 0.4 < same.mean() < 0.6
    assert np.abs(x[:, SEEN : SEEN + 5]).max() < 0.7
    assert np.abs(x[:, -ANSWERED:]).max() < 0.7


def test_answers_count_from_the_second_pattern_on():
    x, _ = delayed_match.sequences(jax.random.key(1), 0.25, 3)
    model = delayed_match.network("gru", 4, jax.random.key(0))
    every = jax.vmap(jax.vmap(model, axis_name="time"))(x)
    np.testing.assert_array_equal(delayed_match.logits(model, x), every[:, SEEN + 5 :])
    assert jnp.all(jnp.isfinite(every))


def test_every_rule_is_run_in_every_network_at_every_pause():
    found = delayed_match.conditions(Options(cells=("rnn", "gru"), pauses=(0.1, 0.2), seeds=2))
    assert len(found) == len(set(found)) == 2 * 2 * 4 * 2
    assert {(c.trace, c.order, c.delay_s) for c in found} == {
        ("backprop", 0, 0.0),
        ("e-prop", 0, 0.0),
        ("CET", 10, 0.5),
        ("ET", 1, 0.5),
    }


def test_command_line_trains_and_draws(tmp_path):
    tiny = ("--cells", "gru", "--hidden", "4", "--steps", "2", "--seeds", "1", "--pauses", "0.1")
    out = output_of("delayed-match", *tiny, "--out", tmp_path)
    assert "Test accuracy in %, GRU" in out
    assert "CET(10)" in out
    assert (tmp_path / "delayed-match" / "delayed-match.png").exists()


def test_pauses_between_steps_are_refused(capsys, tmp_path):
    error = error_of(capsys, "delayed-match", "--pauses", "0.12", "--out", tmp_path)
    assert "pauses" in error
    assert "0.05" in error
