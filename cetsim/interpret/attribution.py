"""Which sites, positions and paths an output comes from: patching, its first-order estimate, ablation, and gradients.

All functions act on one example (a pair, where two are compared) and are pure: map them over pairs with `jax.vmap`
(`axis_name="time"` for a model with batch norm that is not in inference mode) and compile them with `eqx.filter_jit`.

A *metric* is a function of what the model says, without its state, that returns one number, such as the difference of
two logits. A site is edited *position by position*: `axes` says along which axes of its value, `()` for the whole value
at once. By default that is the first axis where there are two or more, so token by token in `[tokens, d]`, and none
in `[d]`; where sites need different ones, `axes` is a dict by name.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret.capture import capture, edited
from cetsim.interpret.edits import ABLATIONS, Add, Set

Example = Float[Array | np.ndarray, "..."]
Axes = tuple[int, ...] | dict[str, tuple[int, ...]] | None


class Effects(NamedTuple):
    """What edits of single sites and positions do to a metric.

    **Fields:**

    - `effects`: by site, `[*positions]`: the metric with the edit minus the metric without.
    - `without`: the metric without edits.
    - `source`: the metric of the run that patches are taken from; None for ablations.
    """

    effects: dict[str, Array]
    without: Array
    source: Array | None = None

    def shares(self) -> dict[str, Array]:
        """Effects as shares of the way from the metric without edits to that of the source: 1 is all of it.

        **Raises:** ValueError for ablations, which have no source.
        """
        if self.source is None:
            raise ValueError("ablations have no source of which they could have a share: see `effects`")
        return {name: effect / (self.source - self.without) for name, effect in self.effects.items()}


class Estimate(NamedTuple):
    """First-order effects of patches, beside those of the patches themselves.

    **Fields:** `effects`: by site, `[*positions]`, to first order. `exact`: the real ones, from `activation_patching`.
    `error`: the first minus the second. The last two are None where they were not asked for.
    """

    effects: dict[str, Array]
    exact: Effects | None
    error: dict[str, Array] | None


class IntegratedGradients(NamedTuple):
    """How much each entry of an input, or of a site's value, adds to the change of a metric.

    **Fields:** `attribution`: of the shape of the input or value. `total`: the change, metric at the end minus metric
    at the baseline. `gap`: the attribution's sum minus the total, which is 0 but for the quadrature's error.
    """

    attribution: Array
    total: Array
    gap: Array


def activation_patching(
    model,
    metric: Callable,
    clean: Example,
    corrupted: Example,
    names: str | Iterable[str],
    *state,
    axes: Axes = None,
    batch: int | None = None,
) -> Effects:
    """What it does to the corrupted run when a site's value at one position is that of the clean run.

    All positions of all sites are mapped over in one program, as edits of one traced model.

    **Arguments:**

    - `metric`: see this module, as for `axes`.
    - `clean`, `corrupted`: one input each, of one shape. Exchange them to see what breaks the clean run.
    - `names`: of sites. `state`: what else the model is called with.
    - `batch`: how many positions are run side by side; None for all of them.

    **Returns:** `Effects`, whose source is the clean run.

    **Raises:** as `capture`; ValueError for inputs of two shapes or axes that a value does not have.

    **Reference:** Vig et al., Investigating gender bias in language models using causal mediation analysis (2020).
    """
    _require_one_shape(clean, corrupted)
    names = _as_tuple(names)
    output, targets = capture(model, names)(clean, *state)
    effects, without = _one_at_a_time(model, metric, targets, (corrupted, *state), axes, batch)
    return Effects(effects, without, _measured(metric, output))


def ablation(
    model,
    metric: Callable,
    x: Example,
    names: str | Iterable[str],
    *state,
    by: str = "zero",
    values: dict | None = None,
    key=None,
    axes: Axes = None,
    batch: int | None = None,
) -> Effects:
    """What it does to the metric when a site's value at one position is taken away.

    **Arguments:**

    - `x`: one input. The others as in `activation_patching`.
    - `by`: `"zero"`, `"mean"` (over `values`) or `"resample"` (one example of `values`, drawn by `key`, the same one at
      all sites).
    - `values`: by site, `[examples, *site]`, as `capture` returns them for a data set.

    **Returns:** `Effects`.

    **Raises:** as `activation_patching`, and ValueError for values of other sites or shapes.
    """
    checks.require_in("by", by, ABLATIONS)
    _, clean = capture(model, _as_tuple(names))(x, *state)
    if by == "zero":
        targets = {name: jnp.zeros_like(value) for name, value in clean.items()}
    else:
        targets = _references(by, clean, values or {}, key)
    return Effects(*_one_at_a_time(model, metric, targets, (x, *state), axes, batch))


def attribution_patching(
    model,
    metric: Callable,
    clean: Example,
    corrupted: Example,
    names: str | Iterable[str],
    *state,
    axes: Axes = None,
    batch: int | None = None,
    exact: bool = True,
) -> Estimate:
    """`activation_patching` to first order: Σ (clean - corrupted) · ∂metric/∂value at the corrupted run.

    Two forward passes and one backward, however many positions there are. How good that is depends on how far the
    metric is from linear over the patch, so that the real effects are computed beside it.

    **Arguments:** as for `activation_patching`. `exact`: False leaves out the real effects, which is what makes it
    cheap.

    **Returns:** `Estimate`.

    **Raises:** as `activation_patching`.

    **Reference:** Syed, Rager and Conmy, Attribution patching outperforms automated circuit discovery (2023).
    """
    _require_one_shape(clean, corrupted)
    names = _as_tuple(names)
    _, targets = capture(model, names)(clean, *state)
    _, values = capture(model, names)(corrupted, *state)
    axes = _axes_of(values, axes)

    def with_offsets(offsets):
        moved = edited(model, {name: Add(offset) for name, offset in offsets.items()})
        return _measured(metric, moved(corrupted, *state))

    slopes = jax.grad(with_offsets)({name: jnp.zeros_like(value) for name, value in values.items()})
    effects = {}
    for name, slope in slopes.items():
        rest = tuple(axis for axis in range(slope.ndim) if axis not in axes[name])
        effects[name] = (slope * (targets[name] - values[name])).sum(rest)
    if not exact:
        return Estimate(effects, None, None)
    real = activation_patching(model, metric, clean, corrupted, names, *state, axes=axes, batch=batch)
    return Estimate(effects, real, {name: effect - real.effects[name] for name, effect in effects.items()})


def path_patching(
    model,
    metric: Callable,
    clean: Example,
    corrupted: Example,
    senders: str | Iterable[str],
    receivers: str | Iterable[str],
    *state,
    frozen: str | Iterable[str] = (),
) -> Float[Array, ""]:
    """What it does to the corrupted run when the clean values of senders reach it by way of the receivers alone.

    First the corrupted run gets the senders' clean values, while the `frozen` sites keep their corrupted ones, and what
    the receivers say is noted. Then the corrupted run gets that from the receivers, and all else follows.

    **Arguments:** `senders`, `receivers`, `frozen`: names of sites. In a residual network, freeze the blocks between
    sender and receiver to see the direct path. The others as in `activation_patching`.

    **Returns:** the metric with the path patched minus the metric without.

    **Raises:** as `activation_patching`, and ValueError for a site in two of the roles.

    **Reference:** Wang et al., Interpretability in the wild: a circuit for indirect object identification (2023).
    """
    _require_one_shape(clean, corrupted)
    senders, receivers, frozen = map(_as_tuple, (senders, receivers, frozen))
    roles = [*senders, *receivers, *frozen]
    twice = sorted({name for name in roles if roles.count(name) > 1})
    if twice:
        raise ValueError(f"a site must be a sender, a receiver or frozen, once: got {', '.join(twice)} twice")
    _, sent = capture(model, senders)(clean, *state)
    output, held = capture(model, frozen)(corrupted, *state)
    edits = {name: Set(value) for name, value in (sent | held).items()}
    _, received = capture(model, receivers, edits)(corrupted, *state)
    patched = edited(model, {name: Set(value) for name, value in received.items()})(corrupted, *state)
    return _measured(metric, patched) - _measured(metric, output)


def integrated_gradients(
    model,
    metric: Callable,
    x: Example,
    baseline: Example,
    *state,
    site: str | None = None,
    steps: int = 32,
) -> IntegratedGradients:
    """Gradients of the metric, integrated along the line from a baseline: (x - x₀) ∘ ∫ ∇metric(x₀ + t(x - x₀)) dt.

    **Arguments:**

    - `x`, `baseline`: one input each.
    - `site`: attributes to this site's value in place of the input. The line is then that from its value at the
      baseline to its value at `x`, in a run of `x`.
    - `steps`: points of the Gauss-Legendre quadrature, run side by side.

    **Returns:** `IntegratedGradients`.

    **Raises:** as `activation_patching`.

    **Reference:** Sundararajan, Taly and Yan, Axiomatic attribution for deep networks (2017).
    """
    _require_one_shape(x, baseline)
    steps = checks.require_whole("steps", steps)
    if site is None:
        start, end = jnp.asarray(baseline), jnp.asarray(x)
        run = capture(model, ())
        at = lambda value: _measured(metric, run(value, *state)[0])  # noqa: E731
    else:
        start, end = (capture(model, site)(each, *state)[1][site] for each in (baseline, x))
        at = lambda value: _measured(metric, edited(model, {site: Set(value)})(x, *state))  # noqa: E731
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    points = jnp.asarray((nodes + 1) / 2, end.dtype)
    slopes = jax.vmap(lambda t: jax.grad(at)(start + t * (end - start)))(points)
    attribution = (end - start) * jnp.tensordot(jnp.asarray(weights / 2, end.dtype), slopes, 1)
    total = at(end) - at(start)
    return IntegratedGradients(attribution, total, attribution.sum() - total)


def _one_at_a_time(model, metric, targets: dict, args: tuple, axes: Axes, batch: int | None):
    """The effect of every site's target at every position, `[*positions]` by site, and the metric without."""
    axes, starts, total = _axes_of(targets, axes), {}, 0
    grids = {name: tuple(value.shape[axis] for axis in axes[name]) for name, value in targets.items()}
    for name, grid in grids.items():
        checks.require_finite(f"value of site {name}", targets[name])
        starts[name], total = total, total + math.prod(grid)

    def row(number):
        """The metric with the one edit that has this number; -1 is none."""
        edits = {}
        for name, target in targets.items():
            sizes = [size if axis in axes[name] else 1 for axis, size in enumerate(target.shape)]
            places = np.arange(math.prod(grids[name])).reshape(grids[name]).transpose(np.argsort(axes[name]))
            edits[name] = Set(target, jnp.asarray(places.reshape(sizes) + starts[name]) == number)
        return _measured(metric, edited(model, edits)(*args))

    numbers = jnp.arange(-1, total)
    without, *_ = results = jax.vmap(row)(numbers) if batch is None else jax.lax.map(row, numbers, batch_size=batch)
    effects = {
        name: (results[1:] - without)[start : start + math.prod(grids[name])].reshape(grids[name])
        for name, start in starts.items()
    }
    return effects, without


def _axes_of(values: dict, axes: Axes) -> dict[str, tuple[int, ...]]:
    """The axes of each value that are gone along, as numbers from 0."""
    if isinstance(axes, dict) and axes.keys() - values.keys():
        raise ValueError(f"`axes` must name sites of {', '.join(values)}, got {', '.join(axes.keys() - values.keys())}")
    found = {}
    for name, value in values.items():
        chosen = axes.get(name) if isinstance(axes, dict) else axes
        chosen = ((0,) if value.ndim > 1 else ()) if chosen is None else tuple(chosen)
        within = all(-value.ndim <= axis < value.ndim for axis in chosen)
        if not within or len({axis % value.ndim for axis in chosen}) < len(chosen):
            raise ValueError(f"site {name!r}: `axes` must be axes of its value, {list(value.shape)}, got {chosen}")
        found[name] = tuple(axis % value.ndim for axis in chosen)
    return found


def _references(by: str, clean: dict, values: dict, key) -> dict:
    """What each site's value is replaced by."""
    if (key is None) != (by == "mean"):
        raise ValueError(f"`key` goes with by='resample' alone, got by={by!r} and {'no' if key is None else 'a'} key")
    counts = set()
    for name, value in clean.items():
        given = np.shape(values.get(name, 0.0))
        if given[1:] != value.shape or given[:1] in ((), (0,)):
            raise ValueError(f"`values` of site {name!r} must be [examples, *{list(value.shape)}], got {list(given)}")
        counts.add(given[0])
    if by == "mean":
        return {name: jnp.mean(values[name], axis=0) for name in clean}
    if len(counts) > 1:
        raise ValueError(f"`values` must be of the same examples at all sites, got {sorted(counts)} of them")
    chosen = jax.random.randint(key, (), 0, counts.pop())
    return {name: jnp.asarray(values[name])[chosen] for name in clean}


def _require_one_shape(first, second) -> None:
    if jnp.shape(first) != jnp.shape(second):
        raise ValueError(f"the two inputs must have one shape, got {jnp.shape(first)} and {jnp.shape(second)}")


def _measured(metric: Callable, output):
    """The metric of what the model says, without its state."""
    stateful = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], eqx.nn.State)
    value = metric(output[0] if stateful else output)
    if jnp.shape(value) != ():
        raise ValueError(f"`metric` must return one number, got shape {jnp.shape(value)}")
    return value


def _as_tuple(names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
