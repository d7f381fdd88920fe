"""The cascading eligibility trace."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from cetsim import checks, display, kernels, state_space, steps
from cetsim.traces import readout as readouts
from cetsim.traces.base import AbstractTrace
from cetsim.traces.filters import check_options


class CascadingTrace(AbstractTrace):
    """Cascading eligibility trace (CET): activity passed through n equal leaky stages; its peak is at `delay`.

        dh1/dt = -α h1 + e,    dhk/dt = -α hk + h(k-1),    trace = hn

    Any readout of all n stages, Σ c_k h_k, is a trace too. The balanced one tells apart best what happened at the delay
    from what happened at other times (see `cetsim.traces.readout`); its weight at the delay is the plain cascade's.

    **Arguments:**

    - `order`: number of stages, 2 to 64 (one stage is `ExponentialTrace`).
    - `delay`: lag of the largest weight, in seconds; above dt/2 if read `"before"`, at least 0 if `"after"`.
    - `dt`: length of a step, in seconds.
    - `read`: whether the trace is read `"before"` or `"after"` the step's own activity enters.
    - `normalization`: `"area"` (weights sum to 1) or `"peak"` (the largest weight is 1), of the last stage, by whose
      factor other readouts are multiplied too.
    - `readout`: `"last"`, `"balanced"` (from order 3 on; its largest weight lies somewhat before the delay), or c, an
      array `[..., order]` for stages of area 1.
    - `rho`: ρ ≥ 0 of a balanced readout, mean² over variance of the crosstalk, 10 if None. The larger, the more weights
      off the delay cancel.
    - `eta`: η of a balanced readout, at least 1e-6, noise of the stages, 1e-4 if None. The larger, the smaller c.
    - `peaked`: makes the weights a step before and after the delay of a balanced readout alike, so that the largest is
      at the delay (order 6 to 64).

    **Raises:** ValueError for an argument outside its range, or one that the readout does not have.

    **Reference:** arXiv:2506.14598; the gamma filter of de Vries and Principe (1992) for readouts.
    """

    delay: Float[Array, "..."]
    order: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    read: str = eqx.field(static=True)
    normalization: str = eqx.field(static=True)
    readout: Float[Array, "... stages"] | None  # None: the last stage or, where there is a ρ, balanced
    rho: Float[Array, "..."] | None
    eta: Float[Array, "..."] | None
    peaked: bool | None = eqx.field(static=True)

    def __init__(
        self,
        order=10,
        delay=4.0,
        dt=0.2,
        read="before",
        normalization="area",
        readout="last",
        rho=None,
        eta=None,
        peaked=None,
    ):
        check_options(read, normalization, dt)
        order = checked_order(order)
        if read == "before":
            checks.require_above("delay", delay, dt / 2, " s (dt/2, for a trace read before its input)")
        else:
            checks.require_at_least("delay", delay, 0.0)
        self.order, self.dt, self.read, self.normalization = order, float(dt), read, normalization
        parameters = readouts.parameters(order, delay, readout, "last", rho, eta, peaked)
        self.delay, self.readout, self.rho, self.eta, self.peaked = parameters

    @classmethod
    def from_rate(cls, rate, order=10, dt=0.2, read="before", normalization="area", **options):
        """The cascade whose stages decay at `rate` α (per second), with its peak where that puts it."""
        check_options(read, normalization, dt)
        order = checked_order(order)
        checks.require_above("rate", rate, 0.0, " per second")
        shift = dt / 2 if read == "before" else -dt / 2
        delay = (order - 1) / jnp.asarray(rate, dtype=float) + shift
        return cls(order, delay, dt, read, normalization, **options)

    @property
    def rate(self) -> Float[Array, "..."]:
        """Rate α of every stage, per second: (n - 1)/(delay ∓ dt/2)."""
        return self._rate_per_step() / self.dt

    def _rate_per_step(self):
        return kernels.cascade_rate(self.delay / self.dt, self.order, self.read)

    def _gain(self):
        if self.normalization == "area":
            return 1.0
        below = jnp.floor(self.delay / self.dt)
        around = jnp.stack([below, below + 1])  # a delay between two lags has its largest weight at one of them
        return 1 / kernels.largest(kernels.cascade_weights(around, self.order, self._rate_per_step(), self.read))

    def _settled(self):
        if self.rho is None or any(map(checks.is_traced, (self.delay, self.rho, self.eta))):
            return self
        parts = (self.delay, self.rho, self.eta), (lambda trace: (trace.readout, trace.rho, trace.eta))
        solved = _solved_on_the_host(self, *map(np.asarray, parts[0]))
        return eqx.tree_at(parts[1], self, (steps.constant(solved, self.delay.dtype), None, None), is_leaf=_is_none)

    def _readout(self):
        """c of one kernel, or None for the last stage."""
        if self.rho is None:
            return self.readout
        parameters = self.delay / self.dt, self.read, self.rho, self.eta, self.peaked
        return readouts.balanced_cascade(self.order, *parameters)

    def _coefficients(self):
        """What the stages are multiplied by where they are read."""
        readout = self._readout()
        return self._gain() * (jnp.eye(self.order, dtype=self.delay.dtype)[-1] if readout is None else readout)

    def _weights(self, lags):
        if self.readout is None and self.rho is None:
            return self._gain() * kernels.cascade_weights(lags, self.order, self._rate_per_step(), self.read)
        return kernels.readout_weights(lags, self._coefficients(), self._rate_per_step(), self.read)

    def _system(self):
        if self.readout is None and self.rho is None:
            return state_space.cascade_system(self.order, self._rate_per_step(), self._gain())
        system = state_space.cascade_system(self.order, self._rate_per_step())
        return eqx.tree_at(lambda system: system.output, system, self._coefficients())

    def _stages(self):
        return self.order

    def label(self) -> str:
        """The kind of trace, its order and, where not only the last stage is read, its readout."""
        readout = ", balanced" if self.rho is not None else "" if self.readout is None else ", readout"
        return f"{type(self).__name__}({self.order}{readout})"

    def window(self, tail: float = 1e-6) -> int:
        """Number of lags, from 0, outside which at most `tail` of the area of |w| lies. Needs concrete parameters."""
        delay = self._concrete(tail)[0]
        rate = kernels.cascade_rate(delay / self.dt, self.order, self.read)
        if self.readout is None and self.rho is None:
            return int(np.max(np.ceil(scipy.special.gammainccinv(self.order, tail) / rate))) + 1
        return max(map(len, self._reach(tail)))

    def _reach(self, tail: float) -> list[np.ndarray]:
        """Of each kernel, the weights from lag 0 to the end of its window, on the host."""
        rates = kernels.cascade_rate(np.asarray(self.delay, dtype=float) / self.dt, self.order, self.read)
        readouts_given = np.asarray(self._settled().readout, dtype=float).reshape(-1, self.order)
        pairs = zip(readouts_given, np.broadcast_to(rates, self.shape).ravel(), strict=True)
        return [readouts.reach(readout, rate, self.read, tail) for readout, rate in pairs]

    def peak(self) -> np.ndarray:
        """Lag of the largest weight in seconds, on the host: the delay, unless a readout says otherwise."""
        self._concrete(1e-3)
        if self.peaked or (self.readout is None and self.rho is None):
            return np.asarray(self.delay)
        return np.reshape([np.argmax(weights) * self.dt for weights in self._reach(1e-3)], self.shape)

    def coefficients(self) -> Float[Array, "*shape stages"]:
        """c, what each stage of area 1 is multiplied by in the trace; (0, ..., 0, 1) where the last one is read."""
        trace = self._settled()
        return trace._mapped(type(trace)._coefficients, (), 0)(trace)

    def area(self) -> Float[Array, "..."]:
        """Sum of the weights over all lags, Σ c_k."""
        return jnp.sum(self.coefficients(), axis=-1)

    def noise_gain(self) -> Float[Array, "..."]:
        """‖c‖: independent noise of sd s in every stage, scaled to area 1, adds noise of sd ‖c‖ s to the trace."""
        return jnp.linalg.norm(self.coefficients(), axis=-1)

    def mean(self) -> Float[Array, "..."]:
        """Mean of the continuous impulse response, in seconds: n/α; of a readout, Σ c_k k / (α Σ c_k)."""
        return self._moment(jnp.arange(1, self.order + 1)) / self.rate

    def variance(self) -> Float[Array, "..."]:
        """Variance of the continuous impulse response, in seconds squared, n/α²; a signed readout may have a negative
        one.
        """
        stages = jnp.arange(1, self.order + 1)
        return self._moment(stages * (stages + 1)) / self.rate**2 - self.mean() ** 2

    def _moment(self, of_stages):
        c = self.coefficients()
        return jnp.sum(c * of_stages, axis=-1) / jnp.sum(c, axis=-1)

    def laplace(self, s):
        """Laplace transform (α/(s + α))^n of the area-normalised impulse response; of a readout, the stages' sum.

        **Arguments:** `s`: per second, one number or of the trace's shape.
        """
        if self.readout is None and self.rho is None:
            return kernels.cascade_laplace(s, self.order, self.rate)
        one = kernels.cascade_laplace(s, 1, self.rate)[..., None]
        return jnp.sum(self.coefficients() * one ** jnp.arange(1, self.order + 1), axis=-1)

    def _remarks(self) -> list[str]:
        if self.rho is None and self.readout is None:
            return []
        balanced = ["readout='balanced'"] if self.rho is not None else []
        if self.peaked or not all(eqx.is_array(leaf) and not checks.is_traced(leaf) for leaf in jax.tree.leaves(self)):
            return balanced
        return [*balanced, f"largest weight at {display.value_text('delay', np.round(self.peak(), 9))}"]


def _is_none(node) -> bool:
    return node is None


def _solved_on_the_host(trace: CascadingTrace, delay, rho, eta) -> np.ndarray:
    """c of every kernel, `[*shape, order]`, in float64."""
    kernels_given = zip(delay.ravel() / trace.dt, rho.ravel(), eta.ravel(), strict=True)
    solved = [
        readouts.balanced_cascade(trace.order, float(d), trace.read, float(r), float(e), trace.peaked)
        for d, r, e in kernels_given
    ]
    return np.reshape(solved, (*delay.shape, trace.order))


def checked_order(order) -> int:
    """The number of stages; raises ValueError unless it is a whole number from 2 to 64."""
    order = checks.require_whole("order", order, least=None)
    if order == 1:
        raise ValueError("`order` must be 2 to 64, got 1: a cascade of one stage is ExponentialTrace(time_constant)")
    if not 2 <= order <= 64:
        raise ValueError(f"`order` must be 2 to 64, got {order}")
    return order
