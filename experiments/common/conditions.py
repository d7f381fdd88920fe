"""One run of an experiment: what synapses remember, when credit comes, what is learned from, a rate and a seed."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from experiments.common.checks import SEGMENT


@dataclass(frozen=True)
class Condition:
    """One run, of any experiment. What is as by default neither names a run nor is written to its table.

    **Fields:**

    - `trace`, `order`: kind of trace and its stages: ET, CET, balanced and sharp (a CET with all stages read, ρ 10 and
      0), CET - ET, delay line, double exponential, e-prop (an ET of the readout's own time constant); backprop and no
      delay.
    - `delay_s`: seconds by which credit is late: in all layers, or, where there are `layers`, from each to the next.
    - `peak_s`: where the trace is set: the peak of a cascade, the time constant of ET, the slower of two exponentials,
      whose faster one is `rise_s` and whose amplitude ratio is `ratio`; 0 in control, where it is at the delay.
    - `beta`: decay per step of ET in control.
    - `spread_s`, `distribution`: of a delay that varies from image to image.
    - `error_gate`, `boundary`, `segment`, `run_length`, `interpolation`: as in `options`.
    - `layers`: of a network through which credit travels one by one; 0 if it comes to all at once.
    - `gate`, `fraction`, `threshold`: which images are salient: a share of them, or those of a loss above a threshold.
    - `placement`, `derivative`: when they count as seen, and how the derivative that errors pass is remembered.
    - `method`, `learn_every`, `step_size`, `segments`, `horizon`, `perturbation`: how a trace is learned, see
      `experiments/common/learned.py`.
    - `noise`, `rates_spread`, `readout`: of a cascade's stages, see `experiments/robustness.py`.
    - `centering`: of presynaptic activity, see `experiments/centering.py`.
    - `code`, `errors`: how images become spikes, and how errors pass a layer of neurons on their way down, see
      `experiments/spiking_vision.py`.
    - `cell`, `pause_s`: of a recurrent network and its task, see `experiments/delayed_match.py`.
    - `view`: what an agent sees of its environment, see `experiments/hidden_state.py`.
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
    boundary: str = "reset"
    segment: int = SEGMENT
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
    segments: int = 0
    horizon: int = 0
    perturbation: float = 0.0
    noise: float = 0.0
    rates_spread: float = 0.0
    readout: str = ""
    centering: str = ""
    code: str = ""
    errors: str = "unrolled"
    cell: str = ""
    pause_s: float = 0.0
    view: str = ""


# Runs are named by what fields were called when the first were made, and columns of tables are called so.
RECORDED = {"boundary": "mode", "segment": "update_every", "segments": "stretches"}
DEFAULTS = {field.name: field.default for field in fields(Condition)}
WITHOUT_DELAY = ("backprop", "no delay")


def changed(condition: Condition) -> dict[str, Any]:
    """The fields that are not as by default."""
    return {name: value for name, value in asdict(condition).items() if value != DEFAULTS[name]}


def recorded(condition: Condition) -> dict[str, Any]:
    """The fields of a condition by the names under which they are recorded."""
    return {RECORDED.get(name, name): value for name, value in asdict(condition).items()}


def from_record(columns: dict[str, Any]) -> Condition:
    """The condition of which these are the fields as recorded."""
    return Condition(**{name: columns[RECORDED.get(name, name)] for name in DEFAULTS})


def set_to_delay(options, trace: str, order: int = 0, delay_s: float = 0.0, **more) -> Condition:
    """A condition with its trace set to the delay of credit, and all else that the options say of every run."""
    names = ("boundary", "segment", "run_length", "interpolation", *(["error_gate"] if trace != "backprop" else []))
    shared = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return Condition(trace, order, delay_s, **({"peak_s": delay_s} | shared | more))
