"""cetsim: learning when credit arrives late, with cascading eligibility traces as exact linear state-space scans."""

from cetsim import credit, datasets, gates, kernels, metrics, nn, state_space, streams, supervised, sweep
from cetsim.delays import AbstractDelay, FixedDelay, LayerwiseDelay, RandomDelay
from cetsim.events import Events
from cetsim.nn import (
    attach,
    detach,
    layer_names,
    load,
    save,
    streaming_init,
    streaming_value_and_grad,
    summary,
)
from cetsim.traces import (
    AbstractTrace,
    CascadingTrace,
    DelayLine,
    DoubleExponentialTrace,
    ExponentialTrace,
    FirstStageCascade,
    FIRTrace,
)

__all__ = [
    "AbstractDelay",
    "AbstractTrace",
    "CascadingTrace",
    "DelayLine",
    "DoubleExponentialTrace",
    "Events",
    "ExponentialTrace",
    "FIRTrace",
    "FirstStageCascade",
    "FixedDelay",
    "LayerwiseDelay",
    "RandomDelay",
    "attach",
    "credit",
    "datasets",
    "detach",
    "gates",
    "kernels",
    "layer_names",
    "load",
    "metrics",
    "nn",
    "save",
    "state_space",
    "streaming_init",
    "streaming_value_and_grad",
    "streams",
    "summary",
    "supervised",
    "sweep",
]
__version__ = "0.1.0"
