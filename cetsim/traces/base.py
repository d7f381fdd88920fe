"""What every trace is, a filter that adds up with others, and the two kinds that come of any: sums and tables.

They are in one file, since a sum is a trace and what two traces add up to is a sum.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks, display, state_space, steps
from cetsim.state_space import DenseSystem
from cetsim.traces import readout
from cetsim.traces.filters import AbstractFilter


class AbstractTrace(AbstractFilter):
    """What a synapse remembers: a filter of its activity (see `AbstractFilter`). Traces form a vector space."""

    __array_ufunc__: ClassVar[None] = None  # NumPy's numbers leave `number * trace` to the trace

    def _parts(self) -> tuple[tuple, tuple]:
        """What it is a weighted sum of: amounts and traces."""
        return (1.0,), (self,)

    def __mul__(self, amount):
        """The trace with its weights multiplied by a number, or by one for each post-neuron."""
        if isinstance(amount, AbstractTrace):
            return NotImplemented
        amount = checks.require_finite("amount", amount)
        amounts, parts = self._parts()
        # In NumPy, so that what is known stays known in a program that is being traced.
        amounts = [each if checks.is_traced(each) else np.asarray(each) for each in amounts]
        return SumTrace([amount * each for each in amounts], parts)

    __rmul__ = __mul__

    def __truediv__(self, amount):
        return self * (1.0 / checks.require_finite("amount", amount))

    def __neg__(self):
        return self * -1.0

    def __add__(self, other):
        """The trace whose weights are the sum of both, of one dt; see `SumTrace`."""
        if not isinstance(other, AbstractTrace):
            return NotImplemented
        (amounts, parts), (other_amounts, other_parts) = self._parts(), other._parts()
        return SumTrace([*amounts, *other_amounts], [*parts, *other_parts])

    def __radd__(self, other):
        """Of 0, the trace itself, so that `sum` adds traces up."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other):
        return self + -1.0 * other if isinstance(other, AbstractTrace) else NotImplemented

    def tabulate(self, size: int) -> "AbstractTrace":
        """The trace's first `size` weights as a `FIRTrace`, so that traces of any kind share one program."""
        size = checks.require_whole("size", size)
        return FIRTrace(jnp.moveaxis(self.weights(jnp.arange(size)), 0, -1), dt=self.dt)


class SumTrace(AbstractTrace):
    """Weighted sum of traces, as `a * trace + b * trace` makes it: every part keeps a state of its own.

    It is read as its parts are, `"after"` where these differ (a delay line is always).

    **Fields:** `amounts`: what each part is multiplied by. `parts`: the traces, of one shape.
    """

    amounts: tuple[Float[Array, "..."], ...]
    parts: tuple[AbstractTrace, ...]
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    _rounds: ClassVar[bool] = False  # lags reach every part as they are

    def __init__(self, amounts, parts):
        checks.require_same_dt("traces that are added", *(part.dt for part in parts))
        amounts = [checks.require_finite("amount", amount) for amount in amounts]
        shape = jnp.broadcast_shapes(*(jnp.shape(amount) for amount in amounts), *(part.shape for part in parts))
        self.amounts = tuple(readout.spread(amount, shape) for amount in amounts)
        self.parts = tuple(_spread(part, shape) for part in parts)
        self.dt = parts[0].dt
        self.read = "before" if all(part.read == "before" for part in parts) else "after"

    @property
    def _waits(self) -> list[bool]:
        """Of which parts the value must wait in a row of its own, to be read after what they are read before."""
        return [self.read == "after" and part.read == "before" for part in self.parts]

    def _settled(self):
        return eqx.tree_at(lambda trace: trace.parts, self, tuple(part._settled() for part in self.parts))

    def _weights(self, lags):
        dtype = self.amounts[0].dtype
        each = (part._weights(lags.astype(dtype) if part._rounds else lags) for part in self.parts)
        return sum(amount * weights for amount, weights in zip(self.amounts, each, strict=True))

    def _stages(self):
        return sum(part._stages() + waits for part, waits in zip(self.parts, self._waits, strict=True))

    def init(self, shape: tuple[int, ...], compensated: bool | None = None) -> Float[Array, "rows *shape"]:
        """Empty states of all parts one after the other; see `AbstractTrace.init`."""
        states = [part.init(shape, compensated) for part in self.parts]
        dtype, waits = self.amounts[0].dtype, self._waits
        rows = [jnp.pad(state, [(0, wait)] + [(0, 0)] * len(shape)) for state, wait in zip(states, waits, strict=True)]
        return jnp.concatenate(rows).astype(dtype)

    def _step(self, state, e):
        compensated, total, states = state.shape[0] != self._stages(), 0.0, []
        for amount, part, waits in zip(self.amounts, self.parts, self._waits, strict=True):
            rows = _rows(part, compensated)
            part_state, state = state[:rows], state[rows:]
            new_state, value = part._step(part_state, e)
            states.append(new_state)
            if waits:
                states.append(value[None])
                state = state[1:]
            total = total + amount * value
        return jnp.concatenate(states), total

    def _system(self):
        systems = [part._system() for part in self.parts]
        blocks, inputs, outputs = [], [], []
        for amount, system, waits in zip(self.amounts, systems, self._waits, strict=True):
            increment, entering, output = system.increment, system.input, system.output
            if waits:  # one more row holds what the part was read as before the step's input entered
                increment = jnp.pad(increment, [(0, 1), (0, 1)]).at[-1].set(jnp.append(output, -1.0))
                entering, output = jnp.append(entering, 0.0), jnp.zeros(len(output) + 1, output.dtype).at[-1].set(1.0)
            blocks.append(increment)
            inputs.append(entering)
            outputs.append(amount * output)
        increment = jax.scipy.linalg.block_diag(*blocks)
        return DenseSystem(increment, jnp.concatenate(inputs), jnp.concatenate(outputs))

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the area of |w| lies. Needs concrete parameters."""
        self._concrete(tail)
        amounts = [np.max(np.abs(np.asarray(amount))) for amount in self.amounts]
        if not any(amounts):
            return 1
        share = 1e-2 * tail / len(self.parts)
        for _ in range(8):  # until what the parts leave out is little of what is left of their sum
            windows = [part.window(max(share, 1e-300)) for part in self.parts]
            with jax.ensure_compile_time_eval():
                lags = jnp.arange(max(windows))
                sizes = np.abs(np.asarray(self.weights(lags), dtype=float)).reshape(len(lags), -1)
                areas = [np.abs(np.asarray(part.weights(lags), dtype=float)).sum(axis=0).max() for part in self.parts]
            left_out = 2 * share * sum(a * area for a, area in zip(amounts, areas, strict=True))
            least = np.min(np.where(sizes.sum(axis=0) > 0, sizes.sum(axis=0), np.inf))
            if left_out <= 0.1 * tail * least:
                break
            share *= 0.05 * tail * least / left_out
        return max(readout.leaving(kernel, tail) for kernel in sizes.T)

    def label(self) -> str:
        """Its parts in a few words."""
        return self._joined([part.label() for part in self.parts])

    def _shown(self) -> str:
        return self._joined([display.describe(part) for part in self.parts])

    def _joined(self, parts: list[str]) -> str:
        text = ""
        for amount, part in zip(self.amounts, parts, strict=True):
            number = None if checks.is_traced(amount) or amount.ndim else np.asarray(amount)
            one, minus = number is not None and abs(number) == 1, number is not None and number < 0
            factor = "" if one else f"{display.value_text('amount', amount if number is None else abs(number))} * "
            sign = "-" if minus else "+"
            text += f" {sign} {factor}{part}" if text else f"{sign if minus else ''}{factor}{part}"
        return text

    def _parts(self):
        return self.amounts, self.parts


class FIRTrace(AbstractTrace):
    """Any kernel given by its weights at lags 0, 1, 2, ...; zero from there on. Lags between are rounded.

    **Arguments:** `taps`: weights, `[*shape, lags]`, finite. `dt`: length of a step, in seconds.

    **Raises:** ValueError for no taps or a tap that is not finite.
    """

    taps: Float[Array, "*shape lags"]
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    _rounds: ClassVar[bool] = False

    def __init__(self, taps, dt=0.2):
        checks.require_dt(dt)
        taps = checks.require_finite("taps", taps)
        if np.ndim(taps) == 0 or np.shape(taps)[-1] == 0:
            raise ValueError(f"`taps` must hold at least one lag, got shape {np.shape(taps)}")
        self.taps = steps.constant(taps, jnp.result_type(taps, float))
        self.dt, self.read = float(dt), "after"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameters without the axis of lags."""
        return self.taps.shape[:-1]

    def _weights(self, lags):
        index = jnp.round(lags).astype(jnp.int32)
        inside = (index >= 0) & (index < self.taps.shape[-1])
        return jnp.where(inside, self.taps[jnp.clip(index, 0, self.taps.shape[-1] - 1)], 0.0)

    def _system(self):
        return state_space.shift_system(self.taps)

    def _step(self, state, e):
        state = jnp.concatenate([e[None].astype(state.dtype), state[:-1]])
        return state, jnp.tensordot(self.taps, state, axes=1, precision="highest")

    def _stages(self):
        return self.taps.shape[-1]

    def window(self, tail: float = 1e-6) -> int:
        """Number of taps."""
        return self.taps.shape[-1]


def _rows(part: AbstractTrace, compensated: bool) -> int:
    """Rows of a part's state."""
    return jax.eval_shape(lambda: part.init(part.shape, compensated)).shape[0]


def _spread(part: AbstractTrace, shape) -> AbstractTrace:
    """A trace that may be shared as one of a kernel for each post-neuron."""
    if part.shape == tuple(shape):
        return part
    if part.shape != ():
        raise ValueError(f"traces that are added must be shared or of one shape, got {part.shape} and {tuple(shape)}")
    return jax.tree.map(lambda leaf: readout.spread(leaf, (*shape, *leaf.shape), leaf.dtype), part)
