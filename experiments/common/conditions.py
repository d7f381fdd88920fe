"""One run of an experiment: what synapses remember, when credit comes, what is learned from, a rate and a seed."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from experiments.common.checks import STRETCH


@dataclass(frozen=True)
class Condition:
    """One run, of any experiment. What is as by default neither names a run nor is written to its table.

    **Fields:**

    - `trace`, `order`: kind of trace and its stages: ET, CET, balanced (a CET with all stages read), CET - ET, delay
      line, double exponential, e-prop (an ET of the readout's own time constant); backprop and no delay.
    - `delay_s`: seconds by which credit is late: in all layers, or, where there are `layers`, from each to the next.
    - `learning_rate`, `seed`.
    - `peak_s`: where the trace is set: the peak of a cascade, the time constant of ET, the slower of two exponentials,
      whose faster one is `rise_s` and whose amplitude ratio is `ratio`; 0 in control, where it is at the delay.
    - `beta`: decay per step of ET in control.
    - `spread_s`, `distribution`: of a delay that varies from image to image.
    - `error_gate`: squared error norm at or below which a layer's activity leaves no trace.
    - `mode`, `update_every`, `run_length`, `interpolation`: how images come, see `options.Stream`.
    - `layers`: of a network through which credit travels one by one; 0 if it comes to all at once.
    - `gate`, `fraction`, `threshold`: which images are salient: a share of them, or those of a loss above a threshold.
    - `placement`, `derivative`: when salient images count as seen, and how the derivative that errors pass is
      remembered.
    - `method`, `learn_every`, `step_size`, `stretches`, `horizon`, `perturbation`: how the peak is learned, see
      `experiments/learned_delay.py`.
    - `code`, `errors`: how images become spikes, and how errors pass a layer of neurons on their way down, see
      `experiments/spiking_vision.py`.
    """

    trace: str = "backprop"
    order: int = 0
    delay_s: float = 0.0
    learning_rate: float = 0.0
    seed: int = 0
    peak_s: float = 0.0
    rise_s: float = 0.0
    ratio: float = 0.0
    beta: float = 0.0
    spread_s: float = 0.0
    distribution: str = ""
    error_gate: float = 0.0
    mode: str = "reset"
    update_every: int = STRETCH
    run_length: int = 1
    interpolation: int = 1
    layers: int = 0
    gate: str = ""
    fraction: float = 1.0
    threshold: float = 0.0
    placement: str = "shown"
    derivative: str = "ideal"
    method: str = "held"
    learn_every: int = 0
    step_size: float = 0.0
    stretches: int = 0
    horizon: int = 0
    perturbation: float = 0.0
    code: str = ""
    errors: str = "unrolled"


DEFAULTS = {field.name: field.default for field in fields(Condition)}
WITHOUT_DELAY = ("backprop", "no delay")


def changed(condition: Condition) -> dict[str, Any]:
    """The fields that are not as by default."""
    values = {name: getattr(condition, name) for name in DEFAULTS}
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}


def set_to_delay(options, trace: str, order: int, delay_s: float, **more) -> Condition:
    """A condition with its trace set to the delay of credit, and images shown as the options say, if they do."""
    names = ("mode", "update_every", "run_length", "interpolation")
    shown = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return Condition(trace, order, delay_s, **({"peak_s": delay_s} | shown | more))


def delayed_traces(
    orders: Iterable[int], balanced: Iterable[int] = (), contrasts: Iterable[int] = ()
) -> list[tuple[str, int]]:
    """The traces compared everywhere, by kind and order, the delay line last."""
    kinds = {"CET": orders, "balanced": balanced, "CET - ET": contrasts}
    return [("ET", 1), *((kind, order) for kind, each in kinds.items() for order in each), ("delay line", 0)]


def at_rates(groups: Iterable[list[Condition]], rates: Iterable[float]) -> list[list[Condition]]:
    """Groups of candidates, each once with every learning rate to choose from."""
    return [[replace(c, learning_rate=rate) for c in group for rate in rates] for group in groups]
