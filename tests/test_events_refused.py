"""Events, delays and traces of layers that are refused."""

import numpy as np
import pytest
from networks import DT, gradients, mlp, segment
from test_events import KINDS, LENGTH, PER_LAYER, PLACES, attach, traces

import cetsim
from cetsim import Events, FixedDelay, LayerwiseDelay


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([3, 1], {}, "`times` must ascend, got 3 and then 1"),
        ([1, 3, 3], {}, "`times` must repeat no step, got 3 and then 3"),
        ([1, 2.5], {}, "`times` must be whole steps, got 2.5"),
        ([1, 40], {}, "`times` must be from 0 to steps - 1 = 39, got 40"),
        ([-1, 4], {}, "`times` must be from 0 to steps - 1 = 39, got -1"),
        ([], {}, r"`times` must be \[events\], at least one, got shape \(0,\)"),
        ([[1, 2]], {}, r"`times` must be \[events\], at least one, got shape \(1, 2\)"),
        ([1, 2], {"steps": 0}, "`steps` must be at least 1, got 0"),
        ([1, 2], {"steps": True}, "`steps` must be a whole number, got True"),
        ([1, 2], {"happened": [True]}, r"`happened` must have shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_events(times, options, message):
    with pytest.raises(ValueError, match=message):
        Events(
            np.asarray(times),
            **({"steps": LENGTH} | {k: np.asarray(v) if k == "happened" else v for k, v in options.items()}),
        )


def test_empty_places_are_not_checked():
    Events(np.array([3, 1]), LENGTH, np.array([True, False]))


@pytest.mark.parametrize("layers", [2, 4])
def test_delays_or_traces_of_another_number_than_layers(layers):
    delay = LayerwiseDelay.stacked(PER_LAYER, layers, DT)
    with pytest.raises(ValueError, match=rf"`delay` must be one for all or one a layer .* got {layers} for 3 layers"):
        cetsim.attach(mlp(), KINDS["CET"](1.0), delay)
    with pytest.raises(ValueError, match=rf"`trace` must be one for all or one a layer .* got {layers} for 3 layers"):
        cetsim.attach(mlp(), traces("CET", layers), FixedDelay(1.0, DT))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerwiseDelay(()), "must be cetsim's delays, one a layer from the top down"),
        (lambda: LayerwiseDelay((1.0, 2.0)), "must be cetsim's delays"),
        (lambda: LayerwiseDelay((FixedDelay(1.0, 0.2), FixedDelay(1.0, 0.1))), "have one dt, got 0.2 s and 0.1 s"),
        (
            lambda: LayerwiseDelay((FixedDelay(1.0), FixedDelay(1.0, keep_late=True))),
            r"one `keep_late`, got \[False, True\]",
        ),
        (lambda: LayerwiseDelay.stacked(2.0, 0), "`layers` must be at least 1, got 0"),
        (lambda: LayerwiseDelay.stacked(0.3, 2), "`per_layer` must be a multiple of dt = 0.2 s, got 0.3"),
    ],
)
def test_wrong_layerwise_delays(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_mapped_over_another_number_of_steps_than_events():
    model, (x, target) = mlp(), segment(steps=PLACES + 1)
    with pytest.raises(ValueError, match="the model is mapped over 9 steps, but there are 8 events"):
        gradients(model, x, target, attach)


def test_a_cascade_at_the_soma_cannot_be_carried():
    with pytest.raises(ValueError, match="derivative='cascade' needs boundary='reset'"):
        attach(mlp(), delay=LayerwiseDelay.stacked(PER_LAYER, 3, DT), derivative="cascade", boundary="carry")
    with pytest.raises(ValueError, match="`derivative` must be one of 'ideal', 'cascade', got 'exact'"):
        attach(mlp(), derivative="exact")
