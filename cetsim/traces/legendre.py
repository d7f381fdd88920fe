"""A trace on Legendre states: what a linear system of n states can tell of the past at best."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Array, Float

from cetsim import checks, kernels, state_space, steps
from cetsim.traces import readout as readouts
from cetsim.traces.base import AbstractTrace
from cetsim.traces.cascade import checked_order
from cetsim.traces.filters import check_options

_DOUBLINGS = 31  # of a step, enough for every lag that an int32 counts


class LegendreTrace(AbstractTrace):
    """Delay system of n states: coefficients of the last θ seconds' activity in n Legendre polynomials.

        θ dm/dt = A m + B e,    A_ij = (2i+1) (-1 if i < j else (-1)^(i-j+1)),    B_i = (2i+1) (-1)^i

    The Padé approximant of order [n-1/n] of a delay by θ; no chemistry is known for it. It is here as a bound: what a
    trace of n states could be if its states were not a chain. Lags between steps are rounded.

    **Arguments:**

    - `order`: n, 2 to 64.
    - `delay`: lag that the trace is read at, in seconds, a multiple of `dt`; above 0 if read `"before"`.
    - `dt`, `read`, `rho`, `eta`, `peaked`: as in `CascadingTrace`.
    - `readout`: `"delay"`, activity as it was `delay` ago, Σ m_i P_i(2 delay/θ - 1); `"balanced"` (from order 3 on),
      with the same weight at the delay; or c, an array `[..., order]` for m_i / √(2i+1).
    - `span`: θ in delays, at least 1.

    **Raises:** ValueError for an argument outside its range, or one that the readout does not have.

    **Reference:** Voelker, Kajić and Eliasmith (2019), "Legendre memory units".
    """

    delay: Float[Array, "..."]
    order: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    span: float = eqx.field(static=True)
    readout: Float[Array, "... stages"] | None
    rho: Float[Array, "..."] | None
    eta: Float[Array, "..."] | None
    peaked: bool | None = eqx.field(static=True)
    solved: state_space.DenseSystem | None

    def __init__(
        self, order=10, delay=4.0, dt=0.2, read="before", readout="delay", rho=None, eta=None, peaked=None, span=1.0
    ):
        check_options(read, "area", dt)
        self.order = checked_order(order)
        checks.require_whole_steps("delay", delay, dt)
        checks.require_above("delay", delay, dt / 2 if read == "before" else -1.0, " s")
        self.span = checks.require_static("span", span)
        checks.require_at_least("span", span, 1.0)
        self.dt, self.read, self.solved = float(dt), read, None
        parameters = readouts.parameters(self.order, delay, readout, "delay", rho, eta, peaked)
        self.delay, self.readout, self.rho, self.eta, self.peaked = parameters

    def _settled(self):
        leaves = [leaf for leaf in (self.delay, self.readout, self.rho, self.eta) if leaf is not None]
        if self.solved is not None or any(map(checks.is_traced, leaves)):
            return self
        traces = [
            jax.tree.map(lambda leaf, at=at: np.asarray(leaf, dtype=float)[at], self) for at in np.ndindex(self.shape)
        ]
        systems = [one._solve() for one in traces]
        shape = lambda *leaves: steps.constant(np.reshape(leaves, (*self.shape, *leaves[0].shape)), self.delay.dtype)  # noqa: E731
        solved = state_space.DenseSystem(*(shape(*leaves) for leaves in zip(*systems, strict=True)))
        return eqx.tree_at(lambda trace: trace.solved, self, solved, is_leaf=lambda node: node is None)

    def _solve(self) -> tuple:
        """Φ - I, Γ and c of one kernel, in NumPy's float64 if its parameters are NumPy's."""
        host = isinstance(self.delay, np.ndarray | np.generic)
        xp = np if host else jnp
        matmul = np.matmul if host else functools.partial(jnp.matmul, precision="highest")
        late = self.delay / self.dt + 0.5 - kernels.first_lag(self.read)  # centre of a pulse held for a step
        a, b = _continuous(self.order)
        step = xp.asarray(1.0 / (self.span * late))
        exponent = np.zeros((2 * self.order, 2 * self.order))
        exponent[: self.order, : self.order], exponent[: self.order, self.order :] = a, np.eye(self.order)
        exponential = (scipy.linalg.expm if host else jax.scipy.linalg.expm)(
            xp.asarray(exponent, dtype=step.dtype) * step
        )
        held = exponential[: self.order, self.order :]  # ∫ e^(As) ds over a step
        increment, entering = matmul(held, xp.asarray(a, step.dtype)), matmul(held, xp.asarray(b, step.dtype))
        output = self.readout
        if output is None:
            place = 2.0 / self.span - 1.0
            output = np.sqrt(2 * np.arange(self.order) + 1) * scipy.special.eval_legendre(np.arange(self.order), place)
            output = xp.asarray(output, step.dtype)
        if self.rho is not None:
            output = self._balanced(increment, entering, output, xp, matmul)
        return increment, entering, output

    def _balanced(self, increment, entering, output, xp, matmul):
        """The balanced readout with the same weight at the delay as `output`."""
        gram, over = xp.outer(entering, entering), increment
        for _ in range(_DOUBLINGS):  # the sum over lags of S Sᵀ, of twice as many each time
            across = gram + matmul(over, gram)
            gram, over = gram + across + matmul(across, over.T), 2 * over + matmul(over, over)
        noise = self.eta * xp.trace(gram) / self.order
        root = xp.linalg.cholesky(gram + noise * xp.eye(self.order, dtype=gram.dtype)).T
        right = xp.round(self.delay / self.dt) - kernels.first_lag(self.read)
        around = _impulse(increment, entering, right + xp.asarray([0.0, -1.0, 1.0], gram.dtype), xp, matmul)
        areas = xp.asarray(np.eye(self.order)[0], gram.dtype)  # what a constant leaves in the states
        slope = around[2] - around[1] if self.peaked else None
        return xp.vdot(output, around[0]) * readouts.solve(root, areas, around[0], slope, self.rho)

    def _system(self):
        return state_space.DenseSystem(*self._solve()) if self.solved is None else self.solved

    def _weights(self, lags):
        system, since = self._system(), jnp.round(lags) - kernels.first_lag(self.read)
        matmul = functools.partial(jnp.matmul, precision="highest")
        return matmul(_impulse(system.increment, system.input, since, jnp, matmul), system.output)

    def _stages(self):
        return self.order

    def _remarks(self) -> list[str]:
        return [] if self.rho is None else ["readout='balanced'"]

    def label(self) -> str:
        """The kind of trace, its order and its readout."""
        readout = ", balanced" if self.rho is not None else "" if self.readout is None else ", readout"
        return f"{type(self).__name__}({self.order}{readout})"

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the area of |w| lies. Needs concrete parameters."""
        longest = np.max(self._concrete(tail)[0]) / self.dt + 1
        slowest = np.min(-np.linalg.eigvals(_continuous(self.order)[0]).real)
        lags = np.arange(int(self.span * longest * (np.log(1e6 / tail) / slowest + 1)) + 2)
        with jax.ensure_compile_time_eval():
            sizes = np.abs(np.asarray(self.weights(lags), dtype=float)).reshape(len(lags), -1)
        return max(readouts.leaving(kernel, tail) for kernel in sizes.T)


@functools.lru_cache
def _continuous(order: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B in units of 1/θ, of states scaled to m_i / √(2i+1), in which e^(At) shrinks everything."""
    i = np.arange(order)
    scale = np.sqrt(2 * i + 1)
    ahead = i[:, None] < i[None, :]
    signs = np.where(ahead, -1.0, (-1.0) ** (i[:, None] - i[None, :] + 1))
    return signs * np.outer(scale, scale), scale * (-1.0) ** i


def _impulse(increment, entering, steps, xp, matmul):
    """Φ^steps Γ for every number of whole steps, 0 where it is negative, `[*steps.shape, states]`."""
    count = xp.maximum(steps, 0).astype(np.int32)
    states, over = xp.broadcast_to(entering, (*count.shape, entering.shape[0])), increment
    for bit in range(_DOUBLINGS):
        states = xp.where(((count >> bit) & 1)[..., None] == 1, states + matmul(states, over.T), states)
        over = 2 * over + matmul(over, over)
    return xp.where((steps >= 0)[..., None], states, 0.0)
