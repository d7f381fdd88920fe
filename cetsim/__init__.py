"""cetsim: learning when credit arrives late, with cascading eligibility traces as exact linear state-space scans."""

from cetsim import (
    credit,
    data,
    interpret,
    kernels,
    metrics,
    nn,
    presentation,
    salience,
    state_space,
    streams,
    sweep,
    train,
)
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
    "data",
    "detach",
    "interpret",
    "kernels",
    "layer_names",
    "load",
    "metrics",
    "nn",
    "presentation",
    "salience",
    "save",
    "state_space",
    "streaming_init",
    "streaming_value_and_grad",
    "streams",
    "summary",
    "sweep",
    "train",
]
__version__ = "0.1.0"
