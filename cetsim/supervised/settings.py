"""What may differ between runs of one program, and what is compiled into it."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cetsim import checks, nn
from cetsim.datasets import InputOrder
from cetsim.delays import AbstractDelay, FixedDelay, LayerwiseDelay
from cetsim.gates import AbstractGate
from cetsim.traces import AbstractTrace, DelayLine


class Hyperparameters(eqx.Module):
    """What may differ between runs of one program.

    **Fields:**

    - `learning_rate`: peak of the schedule, above 0.
    - `trace`: of every synapse, or a tuple of one a layer from the top down.
    - `delay`: of the learning signals.
    - `error_gate`: see `attach`.
    - `weight_decay`: of AdamW.
    - `salience`: which images are learned from; None for all.

    **Raises:** ValueError for an argument outside its range, or what is no number, trace, delay or gate.
    """

    learning_rate: Float[Array, ""]
    trace: AbstractTrace | tuple[AbstractTrace, ...]
    delay: AbstractDelay | LayerwiseDelay
    error_gate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    salience: AbstractGate | None

    def __init__(self, learning_rate, trace, delay, error_gate=0.0, weight_decay=0.01, salience=None):
        checks.require_above("learning_rate", learning_rate, 0.0)
        checks.require_at_least("error_gate", error_gate, 0.0)
        checks.require_at_least("weight_decay", weight_decay, 0.0)
        numbers = {"learning_rate": learning_rate, "error_gate": error_gate, "weight_decay": weight_decay}
        for name, value in numbers.items():
            checks.require_one_number(name, value)
        trace = tuple(trace) if isinstance(trace, list) else trace
        for one_trace in trace if isinstance(trace, tuple) else (trace,):
            checks.require_instance("trace", one_trace, AbstractTrace, "one of cetsim's traces, or a tuple of them")
        checks.require_instance("delay", delay, AbstractDelay | LayerwiseDelay, "one of cetsim's delays")
        checks.require_instance("salience", salience, AbstractGate | None, "one of cetsim.gates's gates, or None")
        floats = [jnp.asarray(value, dtype=float) for value in numbers.values()]
        self.learning_rate, self.error_gate, self.weight_decay = floats
        self.trace, self.delay, self.salience = trace, delay, salience


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled into a program.

    **Fields:**

    - `steps`: updates of a whole run.
    - `segment`: images a segment, one a step of time.
    - `form`, `boundary`: see `attach`.
    - `warmup`: share of the run in which the learning rate rises; then a cosine takes it to `floor` times its peak.
    - `clip`: largest global norm of a gradient.
    - `window`: steps that a stream remembers (see `attach`); None takes the trace's own at `init`, where its parameters
      must then be concrete.
    - `input_order`: order in which images are shown; None shuffles them.
    - `derivative`: see `attach`.
    - `centering`: None, or the decay of the running mean of activity that weights do not learn from, see
      `nn.centered`; 0 takes off the mean of the segment.
    - `plain`: names of layers, or of modules and arrays that hold weights, that learn by plain, undelayed backprop,
      such as norms: what `attach` takes as None in its `overrides`.

    **Raises:** ValueError for an argument outside its range: `steps`, `segment` and `window` are whole numbers.

    **Reference:** arXiv:2506.14598, training details.
    """

    steps: int
    segment: int = 128
    form: str = "activation"
    boundary: str = "reset"
    warmup: float = 0.1
    floor: float = 0.1
    clip: float = 0.5
    window: int | None = None
    input_order: InputOrder | None = None
    derivative: str = "ideal"
    centering: float | None = None
    plain: Sequence[str] = ()

    def __post_init__(self):
        for name in ("steps", "segment", *(["window"] if self.window is not None else [])):
            object.__setattr__(self, name, checks.require_whole(name, getattr(self, name)))
        checks.require_in("form", self.form, nn.FORMS)
        checks.require_in("boundary", self.boundary, nn.BOUNDARIES)
        checks.require_in("derivative", self.derivative, nn.DERIVATIVES)
        for name in ("warmup", "floor", "clip"):
            object.__setattr__(self, name, checks.require_static(name, getattr(self, name)))
        for name in ("warmup", "floor"):
            checks.require_within(name, getattr(self, name), "[0, 1]")
        checks.require_above("clip", self.clip, 0.0)
        if self.centering is not None:
            object.__setattr__(self, "centering", checks.require_static("centering", self.centering))
            checks.require_within("centering", self.centering, "[0, 1)")
        names = isinstance(self.plain, tuple | list) and all(isinstance(name, str) for name in self.plain)
        if not names:
            raise ValueError(f"`plain` must be a tuple of names of layers or arrays, got {checks.shown(self.plain)}")
        object.__setattr__(self, "plain", tuple(self.plain))
        checks.require_instance("input_order", self.input_order, InputOrder | None, "an InputOrder or None")

    @property
    def shown(self) -> InputOrder:
        """The order of images, the default one for None."""
        return self.input_order or InputOrder()

    def schedule(self, step):
        """Learning rate at an update, as a share of its peak."""
        rise = round(self.warmup * self.steps)
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, rise, max(self.steps, rise + 1), self.floor)(step + 1)


def backprop(learning_rate, dt: float = 0.2, weight_decay=0.01) -> Hyperparameters:
    """Hyperparameters of undelayed backpropagation: a perfect memory of no length, and signals at once."""
    return Hyperparameters(learning_rate, DelayLine(0.0, dt), FixedDelay(0.0, dt), 0.0, weight_decay)
