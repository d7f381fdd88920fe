"""Captions are in a reader's words, and speak of seeds in the plural only where there are several."""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Literal, get_args, get_origin

import matplotlib.figure
import pandas as pd
import pytest

from experiments import retrograde_vision
from experiments.common import captions, plots, tables
from experiments.common.options import Stream, Vision
from experiments.common.rl import Agent, Control

ROWS = {"trace": "CET", "order": 10, "dataset": "mnist", "network": "MLP 784-8-10", "learning_rate": 1e-3, "step": 936}


def rows(*changes: dict) -> pd.DataFrame:
    return tables.tidy(pd.DataFrame([ROWS | {"form": "authors_linear"} | change for change in changes]))


def choices(kind: type, name: str) -> set:
    """The words that an option takes."""
    (annotation,) = (field.type for field in fields(kind) if field.name == name)
    found = [annotation]
    while get_origin(found[0]) is not Literal:
        found = get_args(found[0])
    return set(get_args(found[0]))


def test_every_word_that_an_option_takes_is_put_into_words():
    assert choices(Vision, "form") == captions.FORMS.keys()
    assert choices(Stream, "boundary") == captions.BOUNDARIES.keys()
    for name in ("gates", "derivatives", "placements"):
        assert choices(retrograde_vision.Options, name) == getattr(captions, name.upper()).keys()


def test_one_seed_is_one_seed():
    one, two = rows({"seed": 0}), rows({"seed": 0}, {"seed": 1})
    assert captions.settings(one) == (
        "MNIST, MLP 784-8-10, rule as in the authors' linear layers, no error gate; 1 seed, 936 segments of 128 "
        "images, learning rate 0.001"
    )
    assert "2 seeds" in captions.settings(two)
    assert captions.seeds(one) == ""
    assert "band" in captions.seeds(two)


def test_rates_and_the_gate_that_runs_had():
    frame = rows({"learning_rate": 3e-4, "error_gate": 1e-8}, {"learning_rate": 1e-3, "error_gate": 1e-8})
    assert captions.settings(frame).endswith(
        "error gate 1e-8; 1 seed, 936 segments of 128 images, "
        "learning rates 0.0003 and 0.001, chosen on held-out images"
    )


def test_marks_of_the_paper_say_what_is_known_of_its_length():
    assert captions.published(rows({})).endswith("does not state, probably longer.")
    assert captions.published(rows({"step": 12_000})).endswith("does not state.")
    assert captions.published(length="of runs of 5M frames").endswith("of runs of 5M frames.")


VARIED = {
    "anneal": "both", "actor_gradient": "sum", "critic": "conv", "random_lam": (0.1, 0.99), "normalization": "peak",
    "cascade": "first_stage", "truncation": "terminate", "reset_cascade": True, "late_critic": True, "late_flag": True,
    "center_td": None, "clip_each": False, "epsilon": 1e-8, "hold_actor": 0.1,
    "discount": 0.9, "lam": 0.5, "entropy": 0.0, "neurons": "lif", "derivative": "cascade",
}  # fmt: skip


def test_every_option_of_an_agent_has_words():
    columns = {"critic_rate", "environments", "rollout", "hidden", "form"}  # these have a column each
    assert VARIED.keys() | columns == {field.name for field in fields(Agent)}
    words = captions.variant(replace(Control(), **VARIED).variant)
    assert len(words) == len(VARIED)
    assert "λ of each synapse is drawn from (0.1, 0.99)" in words
    assert not any("_" in word or "=" in word for word in words)
    assert captions.variant(Control().variant) == []


def test_agents_are_told_of_by_their_frames_and_rates():
    frame = rows({"dataset": "CartPole-v1", "network": "actor and critic 256-256", "form": "activation"})
    frame = frame.assign(step=1_999_872, critic_rate=10.0, variant="anneal=critic")
    assert captions.agent(frame) == (
        "CartPole-v1, actor and critic with 256-256 hidden units; 1 seed, 2M frames, the critic's learning rate 10 "
        "times the actor's. The critic's learning rate falls to 0."
    )


@pytest.mark.parametrize("gate", captions.GATES)
def test_what_is_learned_from_is_told_of_every_gate(gate):
    first = dict(delay_s=120.0, segment=1280, gate=gate, fraction=0.0125, threshold=1.5, derivative="cascade")
    told = captions.salient(first | {"boundary": "reset"})
    assert "errors take 120 s from a layer to the one below; of 1,280 images" in told
    assert ("1.25 %" in told) == (gate in ("quantile", "running", "random"))
    assert ("1.5" in told) == (gate == "threshold")


def test_no_line_of_a_caption_ends_between_a_number_and_its_unit(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(matplotlib.figure.Figure, "supxlabel", lambda self, text, **how: notes.append(text))
    with plots.figure() as (figure, _):
        plots.save(figure, tmp_path, "any", "It takes 25.6 s, or 128 images of 20 % each. " * 20)
    assert not any(line.split()[-1][-1].isdigit() for line in notes[0].splitlines())
    assert all(len(line) <= 62 for line in notes[0].splitlines())


@pytest.mark.parametrize(("low", "high"), [(0.4, 2.2), (0.008, 1.8), (1.9, 2.5), (0.2, 20.0), (60.0, 75.0)])
def test_a_logarithmic_axis_has_ticks_that_do_not_touch(low, high):
    with plots.figure(height=1.8) as (figure, axes):
        axis = axes[0, 0]
        axis.plot([1, 2], [low, high])
        plots.log_ticks(axis)
        figure.canvas.draw()
        shown = [label for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
        boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.y0)
    assert len(shown) >= 2
    assert all("times" not in label.get_text() for label in shown)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
