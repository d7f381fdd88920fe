"""A table of an attached model: what each layer remembers, how late its signals come, and what that costs."""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from cetsim import checks
from cetsim.delays import FixedDelay, RandomDelay
from cetsim.nn.block import TracedBlock, blocks, plain_layer
from cetsim.streams import StreamState

Number = int | float | None
Range = tuple[float, float]


class Row(NamedTuple):
    """One layer of a `Summary`; what is traced, as inside `jax.jit`, or not known, is None.

    **Fields:**

    - `layer`: its name. `kind`: its class. `weight`: shape of its weights.
    - `trace`: kind of trace. `peak`: lag of its largest weight, in seconds; the range of one kernel per post-neuron.
    - `delay`: of learning signals, in seconds; the range of uniform random ones, the mean of gamma distributed ones.
    - `window`: steps that a stream remembers; None where segments start empty.
    - `literal_bytes`: state of the literal rule, which keeps the trace's states for every weight and bias (in a
      convolution this is for one position of its kernel).
    - `kept_bytes`: what is carried from segment to segment; 0 where they start empty.
    """

    layer: str
    kind: str
    weight: tuple[int, ...]
    trace: str
    peak: float | Range | None
    delay: float | Range | None
    window: int | None
    literal_bytes: int | None
    kept_bytes: int | None


class Summary(tuple):
    """The rows of `summary`, one per traced layer in the order of the model's tree, shown as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        """The table."""
        head = ("layer", "kind", "weight", "trace", "peak, s", "delay, s", "window, steps", "literal", "kept")
        cells = [head, *(_cells(row) for row in self)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(line.rstrip() for line in (lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def summary(model, state: dict[str, StreamState] | None = None) -> Summary:
    """What each traced layer of an attached model remembers, and how many bytes that takes.

    **Arguments:** `model`: from `attach`. `state`: of its stream, from `streaming_init` or the last call, whose size
    depends on the input; without it `kept_bytes` of a stream are None.

    **Returns:** a `Summary`: rows to go through, and a table where it is printed.

    **Raises:** ValueError for a model without traces, or a state of other layers.
    """
    found = blocks(model)
    if not found:
        raise ValueError("the model has no traces: a summary is of what `attach` returns")
    if state is not None and state.keys() != found.keys():
        raise ValueError(f"the state must have the layers {sorted(found)}, got {sorted(state)}")
    return Summary(_row(name, block, None if state is None else state[name]) for name, block in found.items())


def _row(name: str, block: TracedBlock, state: StreamState | None) -> Row:
    layer, synapses = plain_layer(block.affine), block.synapses
    kind = type(layer).__name__ if layer is block.affine else f"WeightNorm({type(layer).__name__})"
    trace = synapses.trace
    named = trace.label()
    kept = 0 if synapses.window is None else None if state is None else _bytes(state)
    weight = tuple(layer.weight.shape)
    return Row(name, kind, weight, named, _peak(trace), _delay(synapses.delay), synapses.window, _literal(block), kept)


def _bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _literal(block: TracedBlock) -> int | None:
    """n states of every weight and bias."""
    trace, parameters = block.synapses.trace, plain_layer(block.affine)
    try:
        rows = jax.eval_shape(lambda: trace.init((*trace.shape, 1), compensated=False)).shape[0]
    except ValueError:  # a delay line whose delay is traced
        return None
    return rows * _bytes(eqx.filter(parameters, eqx.is_inexact_array))


def _peak(trace) -> float | Range | None:
    """Lag of the largest weight, in seconds."""
    if any(map(checks.is_traced, jax.tree.leaves(trace))):
        return None
    return _one_or_range(trace.peak())


def _delay(delay) -> float | Range | None:
    if any(map(checks.is_traced, jax.tree.leaves(delay))):
        return None
    if isinstance(delay, FixedDelay):
        return _one_or_range(delay.delay)
    if isinstance(delay, RandomDelay):
        half = delay.spread / 2 if delay.distribution == "uniform" else 0.0
        return _one_or_range([delay.mean - half, delay.mean + half])
    return None


def _one_or_range(values) -> float | Range:
    low, high = (round(float(str(end)), 9) for end in (np.min(values), np.max(values)))  # 0.2 in float32 too
    return low if low == high else (low, high)


def _cells(row: Row) -> tuple[str, ...]:
    weight = " x ".join(map(str, row.weight))
    window = "reset" if row.window is None else str(row.window)
    sizes = (_size(row.literal_bytes), _size(row.kept_bytes))
    return row.layer, row.kind, weight, row.trace, _time(row.peak), _time(row.delay), window, *sizes


def _time(seconds) -> str:
    if seconds is None:
        return "traced"
    return f"{seconds:g}" if isinstance(seconds, float) else f"{seconds[0]:g} to {seconds[1]:g}"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
