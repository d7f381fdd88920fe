"""When credit arrives: arrival times of learning signals, and nothing else.

A signal that belongs to the activity written at step t arrives at `arrivals(t)`. Steps are counted from the start of
a segment and are negative for what was carried over from before it.
"""

import abc
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

from cetsim import checks, display, steps

DISTRIBUTIONS = ("uniform", "gamma")


class AbstractDelay(eqx.Module):
    """When learning signals arrive.

    **Fields:**

    - `dt`: length of a step, in seconds.
    - `keep_late`: whether signals that arrive after a segment's last step are still read.
    - `regular`: whether signals of consecutive steps arrive at consecutive steps, so that a kernel may be read once per
      lag.
    """

    dt: eqx.AbstractVar[float]
    keep_late: eqx.AbstractVar[bool]
    regular: eqx.AbstractClassVar[bool]

    def __pdoc__(self, **_):
        """How it is shown, alone and inside other modules."""
        return wl.TextDoc(display.describe(self))

    @property
    @abc.abstractmethod
    def max_steps(self) -> int:
        """Longest delay in steps, known before tracing."""

    @property
    @abc.abstractmethod
    def min_steps(self) -> int:
        """A number of steps below which no delay is, 0 where that is not known before tracing."""

    @property
    @abc.abstractmethod
    def placed(self) -> bool:
        """Whether the delay knows, where it has to, at which step of the run its segment begins."""

    @abc.abstractmethod
    def arrivals(self, write_steps: Real[Array, " signals"]) -> Real[Array, " signals"]:
        """Steps at which the signals that belong to activity at `write_steps` arrive."""

    @abc.abstractmethod
    def at(self, origin) -> "AbstractDelay":
        """The delay in a segment whose step 0 is step `origin` of the run."""

    def arrived(self, length: int) -> Float[Array, " length"]:
        """1 for each step of a segment of `length` steps whose signal arrives within it, else 0."""
        if self.keep_late:
            return jnp.ones(length)
        return jnp.where(self.arrivals(jnp.arange(length)) < length, 1.0, 0.0)


class FixedDelay(AbstractDelay):
    """Every learning signal arrives the same time late.

    **Arguments:**

    - `delay`: in seconds, at least 0, a multiple of `dt`; kept in whole steps, an array leaf that all signals of a
      layer share.
    - `dt`: length of a step, in seconds.
    - `max_delay`: longest delay that streams make room for; needed only where the delay is traced.
    - `keep_late`: whether signals that arrive after a segment's last step are still read (as if the segment went on in
      silence) instead of dropped.

    **Raises:** ValueError for a delay that is negative, above `max_delay` or no multiple of `dt`.
    """

    steps: Int[Array, ""]
    dt: float = eqx.field(static=True)
    max_delay: float | None = eqx.field(static=True)
    keep_late: bool = eqx.field(static=True)
    regular: ClassVar[bool] = True

    def __init__(self, delay=4.0, dt=0.2, max_delay=None, keep_late=False):
        checks.require_dt(dt)
        checks.require_whole_steps("delay", delay, dt)
        checks.require_one_number("delay", delay)
        if max_delay is not None:
            max_delay = checks.require_static("max_delay", max_delay)
            checks.require_whole_steps("max_delay", max_delay, dt)
            if not checks.is_traced(delay) and np.asarray(delay) > max_delay:
                raise ValueError(f"`delay` must be at most max_delay = {max_delay:g} s, got {delay!r}")
        self.steps = steps.from_seconds("delay", delay, dt)
        self.dt, self.keep_late = float(dt), checks.require_flag("keep_late", keep_late)
        self.max_delay = max_delay

    @property
    def delay(self) -> Float[Array, ""]:
        """The delay in seconds."""
        return self.steps * jnp.asarray(self.dt)

    @property
    def max_steps(self) -> int:
        """Longest delay in steps, known before tracing."""
        return int(_concrete(self.steps)) if self.max_delay is None else _room(self.max_delay, self.dt)

    @property
    def min_steps(self) -> int:
        """The delay in steps, 0 where it is traced."""
        return 0 if checks.is_traced(self.steps) else int(self.steps)

    @property
    def placed(self) -> bool:
        """True: the delay is the same at every step."""
        return True

    def arrivals(self, write_steps: Real[Array, " signals"]) -> Real[Array, " signals"]:
        """Steps at which the signals that belong to activity at `write_steps` arrive."""
        return steps.count(write_steps) + self.steps

    def at(self, origin) -> "FixedDelay":
        """The delay itself, which is the same at every step."""
        return self


class RandomDelay(AbstractDelay):
    """Every learning signal arrives after a time of its own, rounded to whole steps.

    | distribution | delays |
    | --- | --- |
    | `"uniform"` | mean - spread/2 to mean + spread/2 |
    | `"gamma"` | gamma distributed, with that mean and the uniform one's standard deviation, spread/√12 |

    A draw depends on `key` and on its signal's step in the run, nothing else: cutting a stream differently changes
    nothing, and layers with one key share their draws. Say with `at` where in the run a segment begins; a stream must,
    and where nobody says, every segment has the same draws.

    **Arguments:**

    - `mean`: in seconds, at least 0; a multiple of `dt` where `spread` is 0. An array leaf, as `spread` and `key` are.
    - `spread`: full width in seconds, at least 0 and, if uniform, at most 2 `mean`; 0 is the fixed delay.
    - `dt`: length of a step, in seconds.
    - `distribution`: `"uniform"` or `"gamma"`.
    - `key`: of the draws; `jax.random.key(0)` if None.
    - `max_delay`: in seconds, a multiple of `dt`: longer draws are cut to it. Streams need it, to make room, where
      delays are gamma distributed or traced.
    - `keep_late`: as in `FixedDelay`.

    **Raises:** ValueError for options outside their range, or `max_delay` below the longest uniform delay or the mean.
    """

    mean: Float[Array, ""]
    spread: Float[Array, ""]
    key: PRNGKeyArray
    origin: Int[Array, ""] | None
    dt: float = eqx.field(static=True)
    distribution: str = eqx.field(static=True)
    max_delay: float | None = eqx.field(static=True)
    keep_late: bool = eqx.field(static=True)
    regular: ClassVar[bool] = False

    def __init__(self, mean, spread, dt=0.2, distribution="uniform", key=None, max_delay=None, keep_late=False):
        checks.require_dt(dt)
        checks.require_in("distribution", distribution, DISTRIBUTIONS)
        for name, value in (("mean", mean), ("spread", spread)):
            checks.require_at_least(name, value, 0.0)
            checks.require_one_number(name, value)
        if max_delay is not None:
            max_delay = checks.require_static("max_delay", max_delay)
            checks.require_whole_steps("max_delay", max_delay, dt)
        if not checks.is_traced(mean) and not checks.is_traced(spread):
            _check_together(float(mean), float(spread), dt, distribution, max_delay)
        self.mean, self.spread = steps.exact("mean", mean, dt), steps.exact("spread", spread, dt)
        self.key, self.origin = jax.random.key(0) if key is None else key, None
        self.dt, self.distribution = float(dt), distribution
        self.keep_late = checks.require_flag("keep_late", keep_late)
        self.max_delay = max_delay

    @property
    def max_steps(self) -> int:
        """Longest delay in steps, known before tracing."""
        if self.max_delay is not None:
            return _room(self.max_delay, self.dt)
        if self.distribution == "gamma":
            raise ValueError(
                "a stream with gamma distributed delays needs `max_delay`, in seconds, to make room for signals"
            )
        return _room(_concrete(self.mean) + _concrete(self.spread) / 2, self.dt)

    @property
    def min_steps(self) -> int:
        """Shortest delay in steps, 0 where it is not known before tracing."""
        if self.distribution == "gamma" or checks.is_traced(self.mean) or checks.is_traced(self.spread):
            return 0
        return int((float(self.mean) - float(self.spread) / 2) / self.dt)

    @property
    def placed(self) -> bool:
        """Whether `at` has said where in the run the segment begins."""
        return self.origin is not None

    def at(self, origin) -> "RandomDelay":
        """The delay in a segment whose step 0 is step `origin` of the run, a whole number that may be traced."""
        origin = jnp.asarray(origin)
        if origin.ndim != 0 or not jnp.issubdtype(origin.dtype, jnp.integer):
            raise ValueError(f"`origin` must be one integer, got {origin!r}")
        return eqx.tree_at(lambda delay: delay.origin, self, origin, is_leaf=lambda leaf: leaf is None)

    def arrivals(self, write_steps: Real[Array, " signals"]) -> Real[Array, " signals"]:
        """Steps at which the signals that belong to activity at `write_steps` arrive."""
        write_steps = steps.count(write_steps)
        place = jnp.round(write_steps).astype(jnp.int32) + (0 if self.origin is None else self.origin)
        late = jnp.round(jax.vmap(self._draw)(place) / self.dt)
        # Checked before tracing, and only there: a traced spread may be too wide.
        late = jnp.clip(late, 0.0, steps.largest(late.dtype) if self.max_delay is None else self.max_steps)
        return write_steps + late.astype(jnp.int32)

    def _draw(self, step):
        """Delay of the signal of one step of the run, in seconds."""
        key, dtype = jax.random.fold_in(self.key, step), self.mean.dtype
        if self.distribution == "uniform":
            return self.mean + self.spread * (jax.random.uniform(key, dtype=dtype) - 0.5)
        fixed = self.spread <= 1e-6 * self.mean  # where the shape would overflow
        shape = jnp.where(fixed, 1.0, 12.0 * (self.mean / jnp.where(fixed, 1.0, self.spread)) ** 2)
        return jnp.where(fixed, self.mean, self.mean * jax.random.gamma(key, shape, dtype=dtype) / shape)


class LayerwiseDelay(eqx.Module):
    """A delay for each layer, such as that of signals that travel backwards along axons, from layer to layer.

    **Arguments:** `delays`: one per layer, from the top (the output) down, of any kind; or a dict from names of layers,
    or of modules that hold some, to delays. Alike in `dt` and `keep_late`.

    **Raises:** ValueError for no delay, or delays that differ in `dt` or `keep_late`.

    **Reference:** arXiv:2506.14598, retrograde signals: 2 minutes a layer.
    """

    delays: tuple[AbstractDelay, ...] | dict[str, AbstractDelay]

    def __init__(self, delays):
        self.delays = dict(delays) if isinstance(delays, Mapping) else tuple(delays)
        if not self.delays or not all(isinstance(delay, AbstractDelay) for delay in self._each()):
            raise ValueError(f"`delays` must be cetsim's delays, one a layer from the top down, got {delays!r}")
        checks.require_same_dt("delays of all layers", *(delay.dt for delay in self._each()))
        late = [delay.keep_late for delay in self._each()]
        if len(set(late)) > 1:
            raise ValueError(f"delays of all layers must have one `keep_late`, got {late}")

    def _each(self) -> list:
        return list(self.delays.values() if isinstance(self.delays, dict) else self.delays)

    @classmethod
    def stacked(cls, per_layer, layers: int, dt=0.2, max_per_layer=None, keep_late=False) -> "LayerwiseDelay":
        """Signals that take `per_layer` seconds from each layer to the one below: 0, `per_layer`, 2 `per_layer`, ...

        **Arguments:** `layers`: their number. `max_per_layer`: longest that streams make room for; needed only where
        `per_layer` is traced. The others as in `FixedDelay`.
        """
        layers = checks.require_whole("layers", layers)
        checks.require_dt(dt)
        checks.require_whole_steps("per_layer", per_layer, dt)
        checks.require_one_number("per_layer", per_layer)
        if max_per_layer is not None:
            max_per_layer = checks.require_static("max_per_layer", max_per_layer)
        longest = [None if max_per_layer is None else layer * max_per_layer for layer in range(layers)]
        return cls(FixedDelay(layer * per_layer, dt, longest[layer], keep_late) for layer in range(layers))

    @property
    def dt(self) -> float:
        """Length of a step, in seconds."""
        return self._each()[0].dt

    @property
    def keep_late(self) -> bool:
        """Whether signals that arrive after a segment's last step are still read."""
        return self._each()[0].keep_late

    def at(self, origin) -> "LayerwiseDelay":
        """The delays in a segment whose step 0 is step `origin` of the run."""
        if isinstance(self.delays, dict):
            return LayerwiseDelay({name: delay.at(origin) for name, delay in self.delays.items()})
        return LayerwiseDelay(delay.at(origin) for delay in self.delays)


def _concrete(seconds) -> float:
    if checks.is_traced(seconds):
        raise ValueError("a stream with a traced delay needs `max_delay`, in seconds, to make room for signals")
    return float(seconds)


def _room(longest: float, dt: float) -> int:
    """Most steps that a delay of up to `longest` seconds is rounded to; what lies halfway may be rounded up."""
    return int(np.floor(longest / dt + 0.501))


def _check_together(mean: float, spread: float, dt: float, distribution: str, max_delay: float | None) -> None:
    """Raises ValueError for a spread that does not go with the mean, or no room for either."""
    if spread == 0:
        checks.require_whole_steps("mean", mean, dt)
    elif distribution == "uniform" and spread > 2 * mean * (1 + 1e-6):
        raise ValueError(
            f"`spread` must be at most 2 mean = {2 * mean:g} s, or else delays would be negative, got {spread!r}"
        )
    elif mean == 0:
        raise ValueError(f"`mean` must be above 0 s where delays are gamma distributed, got {mean!r}")
    which, longest = ("longest delay", mean + spread / 2) if distribution == "uniform" else ("mean", mean)
    if max_delay is not None and _room(longest, dt) > _room(max_delay, dt):
        raise ValueError(f"`max_delay` must be at least the {which}, {_room(longest, dt) * dt:g} s, got {max_delay!r}")
