"""Which moments are salient enough to be learned from: gates that choose events among the steps of a segment.

Every gate has a fixed number of places for events, so that a compiled step has one shape; some stay empty where fewer
steps are salient, and steps beyond the last place are missed, and counted.
"""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cetsim import checks
from cetsim.events import Events

PLACEMENTS = ("shown", "random")


class Selection(NamedTuple):
    """What a gate let through.

    **Fields:**

    - `rows`: steps at which the chosen images were shown, `[events]`; any in empty places.
    - `events`: when they count as having happened.
    - `missed`: salient steps for which there was no place.
    """

    rows: Int[Array, " events"]
    events: Events
    missed: Int[Array, ""]


class AbstractGate(eqx.Module):
    """Chooses events by the loss of each step.

    **Fields:** `placement`: when an event counts as having happened, at the step its image was `"shown"`, or, as in the
    authors' code, at a `"random"` one, where the events keep their order but not their times.
    """

    placement: eqx.AbstractVar[str]

    @abc.abstractmethod
    def places(self, steps: int) -> int:
        """Most events of a segment of `steps` steps."""

    @abc.abstractmethod
    def salient(self, loss: Float[Array, " steps"], state: Float[Array, ""], key: Array):
        """Which steps are salient, `[steps]`, and the gate's state after the segment."""

    def init(self) -> Float[Array, ""]:
        """State of the gate before a run: what it knows of the past."""
        return jnp.zeros(())

    def select(
        self, loss: Float[Array, " steps"], state: Float[Array, ""], key: Array
    ) -> tuple[Selection, Float[Array, ""]]:
        """The events of a segment and the gate's state after it.

        **Arguments:**

        - `loss`: of each step, `[steps]`.
        - `state`: from `init`, or the segment before.
        - `key`: of what is drawn.
        """
        loss = jnp.asarray(loss, dtype=float)  # of the precision of thresholds
        choice, place = jax.random.split(key)
        chosen, state = self.salient(loss, state, choice)
        return _place(chosen, self.places(loss.shape[0]), self.placement, place), state


def _place(chosen: Bool[Array, " steps"], places: int, placement: str, key: Array) -> Selection:
    steps, count = chosen.shape[0], jnp.sum(chosen)
    rows = jnp.nonzero(chosen, size=places, fill_value=steps - 1)[0]
    happened = jnp.arange(places) < count
    times = rows
    if placement == "random":
        drawn = jax.random.permutation(key, steps)[:places]
        times = jnp.sort(jnp.where(happened, drawn, steps))
    return Selection(rows, Events(times, steps, happened), jnp.maximum(count - places, 0))


class NoGate(AbstractGate):
    """Every step is an event."""

    placement: str = eqx.field(static=True)

    def __init__(self, placement: str = "shown"):
        self.placement = _placement(placement)

    def places(self, steps: int) -> int:
        """As many as there are steps."""
        return steps

    def salient(self, loss, state, key):
        """All steps."""
        return jnp.ones(loss.shape, bool), state


class _ShareGate(AbstractGate):
    """Exactly a share `fraction` of the steps.

    **Raises:** ValueError for a `fraction` outside (0, 1].
    """

    fraction: float = eqx.field(static=True)
    placement: str = eqx.field(static=True)

    def __init__(self, fraction: float = 0.0125, placement: str = "shown"):
        self.fraction, self.placement = _fraction(fraction), _placement(placement)

    def places(self, steps: int) -> int:
        """`fraction` of the steps, rounded, at least one."""
        return _share(self.fraction, steps)


class QuantileGate(_ShareGate):
    """The steps of largest loss in each segment, a share `fraction` of them: it knows the whole segment at once.

    **Raises:** ValueError for a `fraction` outside (0, 1].

    **Reference:** arXiv:2506.14598, retrograde signals: 1.25 % of 1,280 images.
    """

    def salient(self, loss, state, key):
        """Exactly as many steps as there are places."""
        _, top = jax.lax.top_k(loss, self.places(loss.shape[0]))
        return jnp.zeros(loss.shape, bool).at[top].set(True), state


class RandomGate(_ShareGate):
    """Steps drawn at random, a share `fraction` of them, whatever their loss: the control of the other gates.

    **Raises:** ValueError for a `fraction` outside (0, 1].
    """

    def salient(self, loss, state, key):
        """Exactly as many steps as there are places."""
        drawn = jax.random.permutation(key, loss.shape[0])[: self.places(loss.shape[0])]
        return jnp.zeros(loss.shape, bool).at[drawn].set(True), state


class ThresholdGate(AbstractGate):
    """Steps whose loss is above `threshold`, in nats; the first in time where there are more than places.

    **Arguments:** `threshold`: an array leaf, at least 0. `room`: places, as a share of the steps.

    **Raises:** ValueError for a `room` outside (0, 1] or a threshold below 0.
    """

    threshold: Float[Array, ""]
    room: float = eqx.field(static=True)
    placement: str = eqx.field(static=True)

    def __init__(self, threshold, room: float = 0.05, placement: str = "shown"):
        checks.require_at_least("threshold", threshold, 0.0)
        checks.require_one_number("threshold", threshold)
        self.threshold = jnp.asarray(threshold, dtype=float)
        self.room, self.placement = _fraction(room, "room"), _placement(placement)

    def places(self, steps: int) -> int:
        """`room` of the steps, rounded, at least one."""
        return _share(self.room, steps)

    def salient(self, loss, state, key):
        """Steps above the threshold, of any number."""
        return loss > self.threshold, state


class RunningGate(AbstractGate):
    """Steps whose loss is above a threshold that follows the losses of the past, so that about `fraction` of them are.

        log θ(t+1) = log θ(t) + rate (1[loss(t) > θ(t)] - fraction)

    Causal: whether a step is salient depends on earlier steps alone, wherever segments are cut.

    **Arguments:**

    - `fraction`: of all steps, in the long run.
    - `rate`: of the threshold's logarithm; small is steady, large is quick.
    - `start`: first threshold, in nats.
    - `room`: places, as a share of the steps; four times `fraction` if None.

    **Raises:** ValueError for a `fraction` or `room` outside (0, 1], a `rate` or a `start` that is not above 0.

    **Reference:** Robbins and Monro (1951), "A Stochastic Approximation Method", for a quantile.
    """

    rate: Float[Array, ""]
    start: Float[Array, ""]
    fraction: float = eqx.field(static=True)
    room: float = eqx.field(static=True)
    placement: str = eqx.field(static=True)

    def __init__(self, fraction: float = 0.0125, rate=0.1, start=1.0, room: float | None = None, placement="shown"):
        for name, value in (("rate", rate), ("start", start)):
            checks.require_above(name, value, 0.0)
            checks.require_one_number(name, value)
        self.fraction, self.placement = _fraction(fraction), _placement(placement)
        self.room = min(1.0, 4 * self.fraction) if room is None else _fraction(room, "room")
        self.rate, self.start = jnp.asarray(rate, dtype=float), jnp.asarray(start, dtype=float)

    def places(self, steps: int) -> int:
        """`room` of the steps, rounded, at least one."""
        return _share(self.room, steps)

    def init(self) -> Float[Array, ""]:
        """log θ before the first step."""
        return jnp.log(self.start)

    def salient(self, loss, state, key):
        """Steps above the threshold of their moment, of any number, and log θ after the last."""

        def compare(log_threshold, loss):
            above = loss > jnp.exp(log_threshold)
            return log_threshold + self.rate * (above.astype(log_threshold.dtype) - self.fraction), above

        state, above = jax.lax.scan(compare, state, loss)
        return above, state


def _fraction(value: float, name: str = "fraction") -> float:
    number = checks.require_static(name, value)
    checks.require_within(name, number, "(0, 1]")
    return number


def _placement(value: str) -> str:
    checks.require_in("placement", value, PLACEMENTS)
    return value


def _share(fraction: float, steps: int) -> int:
    return max(1, math.floor(fraction * steps + 0.5))
