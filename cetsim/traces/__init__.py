"""What a synapse remembers: linear traces of its past activity.

Every trace is one linear, time-invariant filter of the activity `e`, seen three ways that agree: `weights(lags)`, its
impulse response at lags counted in steps; `init`/`step`, the same filter one step at a time; `system`, its discrete
state space. Parameters other than the order and dt are array leaves: they may be traced, vmapped and differentiated,
and changing one never recompiles. A parameter of shape `[out]` gives every post-neuron a kernel of its own; shapes
lead, so that `weights(lags)` is `[*lags, out]` and the activity of a step is `[out, ...]`. Traces form a vector space:
`2.0 * one - other` is a trace.
"""

from cetsim.traces.base import AbstractTrace, FIRTrace, SumTrace
from cetsim.traces.cascade import CascadingTrace
from cetsim.traces.delay_line import DelayLine
from cetsim.traces.exponential import DoubleExponentialTrace, ExponentialTrace
from cetsim.traces.filters import AbstractFilter
from cetsim.traces.first_stage import FirstStageCascade
from cetsim.traces.legendre import LegendreTrace

__all__ = [
    "AbstractFilter",
    "AbstractTrace",
    "CascadingTrace",
    "DelayLine",
    "DoubleExponentialTrace",
    "ExponentialTrace",
    "FIRTrace",
    "FirstStageCascade",
    "LegendreTrace",
    "SumTrace",
]
