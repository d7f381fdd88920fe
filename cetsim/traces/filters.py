"""One linear filter, seen as weights, as steps and as a state space: what every trace is."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Float, Shaped

from cetsim import checks, display, extras, state_space, steps
from cetsim.state_space import System

READS = ("before", "after")
NORMALIZATIONS = ("area", "peak")


class AbstractFilter(eqx.Module):
    """A causal linear filter of a synapse's activity, which every trace is; see `AbstractTrace`.

    Subclasses define one kernel; this class maps over many.
    """

    dt: eqx.AbstractVar[float]
    read: eqx.AbstractVar[str]
    _rounds: ClassVar[bool] = True  # whether a step rounds its state; a shift register only moves it

    def __pdoc__(self, **_):
        """How it is shown, alone and inside other modules."""
        return wl.TextDoc(display.describe(self))

    @abc.abstractmethod
    def _weights(self, lags):
        """Weights of one kernel at `lags`."""

    @abc.abstractmethod
    def _system(self) -> System:
        """State space of one kernel."""

    @abc.abstractmethod
    def _stages(self) -> int:
        """Size of the state per synapse."""

    @abc.abstractmethod
    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the area lies. Needs concrete parameters."""

    def label(self) -> str:
        """The kind of trace in a few words, for tables."""
        return type(self).__name__

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameters: `()` for one kernel shared by all synapses, `(out,)` for one a post-neuron."""
        return jnp.shape(jax.tree.leaves(self)[0])

    def _settled(self) -> "AbstractFilter":
        """The same trace with what can be computed on the host, once, in float64, before any program runs."""
        return self

    def _remarks(self) -> list[str]:
        """What is shown besides the fields."""
        return []

    def _mapped(self, function, in_axes, out_axes):
        for _ in self.shape:
            function = jax.vmap(function, in_axes=(0, *in_axes), out_axes=out_axes)
        return function

    def weights(self, lags) -> Float[Array, "..."]:
        """Impulse response at `lags`, what an event that many steps ago contributes to the trace now.

        **Arguments:** `lags`: in steps, any shape; integers on the grid of time, other reals between.

        **Returns:** weights, shape `[*lags.shape, *self.shape]`.
        """
        lags = steps.count(checks.require_numbers("lags", lags))
        if self._rounds:  # others look their lags up, and those are counted exactly
            lags = lags.astype(jax.tree.leaves(self)[0].dtype)
        trace = self._settled()
        return trace._mapped(type(trace)._weights, (None,), lags.ndim)(trace, lags)

    def init(self, shape: tuple[int, ...], compensated: bool | None = None) -> Float[Array, "rows *shape"]:
        """Empty state, `[rows, *shape]`, for activity of `shape`, whose leading axes are the trace's own.

        **Arguments:** `compensated`: whether a second row a stage keeps what rounding takes from the first, without
        which a float32 trace drifts over thousands of steps; None for yes in float32 and no in float64.
        """
        if tuple(shape[: len(self.shape)]) != self.shape:
            raise ValueError(f"`shape` must begin with the trace's own shape {self.shape}, got {tuple(shape)}")
        dtype = jax.tree.leaves(self)[0].dtype
        if compensated is None:
            compensated = jnp.finfo(dtype).bits < 64
        rows = self._stages() * (2 if compensated and self._rounds else 1)
        return jnp.zeros((rows, *shape), dtype=dtype)

    def step(self, state: Float[Array, "rows *shape"], e: Shaped[Array | np.ndarray, "*shape"]):
        """One step of dt: takes the activity `e` held over it, returns `(state, trace read at this step)`."""
        if state.shape[1:] != jnp.shape(e):
            raise ValueError(f"`e` must have the state's shape {state.shape[1:]}, got {jnp.shape(e)}")
        trace = self._settled()
        return trace._mapped(type(trace)._step, (1, 0), (1, 0))(trace, state, jnp.asarray(e, dtype=state.dtype))

    def _step(self, state, e):
        system = self._system()
        new_state = state_space.advance(system, state, e)
        read = (state if self.read == "before" else new_state)[: system.output.shape[0]]
        return new_state, jnp.tensordot(system.output, read, axes=1, precision="highest")

    def system(self) -> System:
        """Discrete state space of the trace, its fields led by `self.shape`."""
        trace = self._settled()
        return trace._mapped(type(trace)._system, (), 0)(trace)

    def peak(self) -> np.ndarray:
        """Lag of the largest |weight| in seconds, on the host. Needs concrete parameters."""
        with jax.ensure_compile_time_eval():
            weights = np.asarray(self.weights(jnp.arange(self.window() + 1)))
        return np.asarray(np.argmax(np.abs(weights), axis=0) * self.dt)

    def plot(self, axes=None, seconds: float | None = None):
        """Draws the impulse response against the lag in seconds, one line per kernel.

        **Arguments:**

        - `axes`: of matplotlib; new ones if None.
        - `seconds`: the longest lag shown; by default all but 1 % of the area.

        **Returns:** the axes.

        **Raises:** ImportError without matplotlib, which is in the extra `experiments`.
        """
        if axes is None:
            axes = extras.require("matplotlib.pyplot", extra="experiments").subplots()[1]
        lags = np.arange(self.window(1e-2) if seconds is None else round(seconds / self.dt) + 1)
        weights = np.asarray(self.weights(lags)).reshape(len(lags), -1)
        axes.plot(lags * self.dt, weights, marker="." if len(lags) < 60 else None)
        axes.set(xlabel="time since the activity, s", ylabel="weight in the trace", title=display.describe(self))
        return axes

    def _concrete(self, tail: float) -> list[np.ndarray]:
        """The parameters on the host, to tell the window that leaves `tail` of the area out."""
        checks.require_within("tail", tail, "(0, 1)")
        leaves = jax.tree.leaves(self)
        if any(map(checks.is_traced, leaves)):
            raise ValueError("the window of a trace with traced parameters is unknown: give a number of steps instead")
        return [np.asarray(leaf, dtype=float) for leaf in leaves]


def check_options(read, normalization, dt) -> None:
    """Raises ValueError for an unknown convention or a `dt` that is not above 0."""
    checks.require_in("read", read, READS)
    checks.require_in("normalization", normalization, NORMALIZATIONS)
    checks.require_dt(dt)
