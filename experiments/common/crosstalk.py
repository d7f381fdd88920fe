"""What an update is made of, layer by layer; the mathematics is in `experiments/crosstalk.py`."""

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim import metrics
from cetsim.credit import synaptic_factors
from cetsim.nn.conv import patches

PARTS = ("mean", "mean of activity", "mean of errors", "variance")


def by_layer(model, state, x, labels, weights, late: int, form: str) -> dict[str, dict]:
    """What `split` says of every layer, by what and by layer."""
    factors = factors_of(model, state, x, labels, form)
    found = {name: split(*factors_of_layer, weights, late) for name, factors_of_layer in factors.items()}
    return {what: {name: parts[what] for name, parts in found.items()} for what in next(iter(found.values()))}


def factors_of(model, state, x, labels, form: str) -> dict[str, tuple]:
    """Of every linear layer and convolution of a network of ReLU, in this form of the rule: what synapses see, and of
    neurons the eligibility's gain and the learning signal, `[time, places, ...]`; a linear layer has one place.

    `state`: of the model's batch norms, None if it has none.
    """
    learn = [i for i, layer in enumerate(model.layers) if isinstance(layer, eqx.nn.Linear | eqx.nn.Conv2d)]

    def apply(shifts, x):
        """Of one image: logits, and of each layer its input and slope."""
        kept, own = {}, jax.tree.map(lambda leaf: leaf, state)  # equinox lets a state be used once
        for i, layer in enumerate(model.layers):
            if i in learn:
                seen, x = x, layer(x)
                kept[i] = seen, None if i == learn[-1] else (x > 0).astype(x.dtype)
                x = jax.nn.relu(x) if i != learn[-1] else x
                x = x + shifts[i]
            elif isinstance(layer, eqx.nn.StatefulLayer):
                x, own = layer(x, own)
            elif i - 1 not in learn:  # after a layer that learns comes its ReLU
                x = layer(x)
        return x, kept

    def loss(shifts, x):
        logits, kept = jax.vmap(apply, axis_name="time")(shifts, x)
        rows = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None].astype(int), axis=1)
        return jnp.mean(rows), kept

    nothing = {i: jnp.zeros(()) for i in learn}
    shapes = eqx.filter_eval_shape(lambda x: jax.vmap(apply, (None, 0), axis_name="time")(nothing, x), x)
    shifts = {i: jnp.zeros(shapes[1][i][1].shape, x.dtype) for i in learn[:-1]} | {
        learn[-1]: jnp.zeros(shapes[0].shape, x.dtype)
    }
    errors, kept = jax.grad(loss, has_aux=True)(shifts, x)
    found = {}
    for i in learn:
        layer, (seen, slope) = model.layers[i], kept[i]
        own = ("authors_linear" if isinstance(layer, eqx.nn.Linear) else "activation") if form == "authors" else form
        factors = synaptic_factors(own, slope, errors[i])
        found[f"layers.{i}"] = _seen(layer, seen), *(_places(layer, factor) for factor in factors)
    return found


def _places(layer, x):
    """`[time, places, channels]` of a layer's images or vectors."""
    if isinstance(layer, eqx.nn.Linear):
        return x[:, None]
    x = _channels_last(layer, x)
    return x.reshape(len(x), -1, x.shape[-1])


def _channels_last(layer, x):
    return jnp.moveaxis(x, 1, -1) if layer.layout == "channels_first" else x


def _seen(layer, x):
    """What the synapses of each place see, `[time, places, synapses]`."""
    if isinstance(layer, eqx.nn.Linear):
        return _places(layer, x)
    if max(layer.stride) > 1:
        raise ValueError(f"a convolution must move by 1, got {layer.stride}")
    cut = patches(_channels_last(layer, x), layer.weight.shape[2:], layer.padding)
    return cut.reshape(len(cut), -1, cut.shape[-1])


def split(x, gain, signal, weights, late: int) -> dict:
    """Predicted parts of an update, and what is measured of it.

    **Arguments:**

    - `x`, `gain`, `signal`: presynaptic activity `[time, places, in]`, post-synaptic factor of the eligibility and
      learning signal, `[time, places, out]`. Places share their synapses, as a convolution's; an MLP has one.
    - `weights`: w at the lags 0, 1, ..., at least as many as steps. `late`: D, in steps.

    **Returns:** squares relative to that of w(D) g: the four `PARTS`, predicted, `crosstalk`, measured, and `lost`, of
    the gradient whose signals never arrive to that of those that do; the cosine with the gradient of what arrives,
    `predicted` and `alignment`, and, `centred`, that of the update from activity less its mean with the gradient in the
    same coordinates; g·c expected, `along`, as the squares; and their `unit`.
    """
    steps = x.shape[0]
    lags = late + jnp.arange(steps)[:, None] - jnp.arange(steps)[None, :]
    arrives = jnp.arange(steps) + late < steps
    met = arrives[:, None] & (lags >= 0)
    pairs = jnp.where(met, weights[jnp.clip(lags, 0, steps - 1)], 0.0)
    off, right = pairs * (lags != late), weights[late]
    arrived, lost = (summed(signal * own[:, None, None], gain, x) for own in (arrives, ~arrives))
    update = lambda x: summed(jnp.einsum("us,upo->spo", pairs, signal, precision="highest"), gain, x)  # noqa: E731
    parts, along = _expected(x, gain, signal, off, steps - late)
    unit = right**2 * jnp.sum(arrived**2)
    parts = {name: value / unit for name, value in parts.items()} | {"along": right * along / unit}
    middle = x - jnp.mean(x, axis=0)
    centred = summed(signal * arrives[:, None, None], gain, middle)
    found = update(x)
    return parts | {
        "crosstalk": jnp.sum((found - right * arrived) ** 2) / unit,
        "unit": unit,
        "lost": jnp.sum(lost**2) / jnp.sum(arrived**2),
        "predicted": expected_cosine(parts),
        "alignment": metrics.cosine(found, arrived),
        "centred": metrics.cosine(update(middle), centred),
    }


def summed(signal, gain, x):
    """Σ signal · gain · x over steps and places, `[out, in]`."""
    return jnp.einsum("spo,spi->oi", signal * gain, x, precision="highest")


def expected_cosine(parts: dict):
    """The cosine of an update with the gradient of what arrives, from the expected parts relative to the latter."""
    total, along = sum(parts[name] for name in PARTS), parts["along"]
    return (1 + along) / jnp.sqrt(jnp.maximum(1 + total + 2 * along, 1e-30))


def _expected(x, gain, signal, off, arriving: int):
    """E‖c‖² part by part, and E g·c.

    M(u, s) is what the signals of step u would write with the activity of step s, summed over places. Its squares are
    means over pairs of different steps: all of M, of its mean over s, of that over u, and of that over both.
    """
    steps = x.shape[0]
    activity = jnp.einsum("spo,spi->poi", gain, x, precision="highest") / steps
    mean_signal = jnp.mean(signal, axis=0)

    def add(_, step):
        x, gain, signal = step
        own = jnp.einsum("po,pi->oi", signal * gain, x, precision="highest")  # M(u, u), whose sum is the gradient
        by_signal = jnp.einsum("po,poi->oi", signal, activity, precision="highest")
        by_activity = jnp.einsum("po,pi->oi", mean_signal * gain, x, precision="highest")
        products = (by_signal, by_signal), (by_activity, by_activity), (own, by_signal), (own, own)
        return None, jnp.stack([jnp.sum(a * b) for a, b in products])

    by_signal, by_activity, times_mean, own = jnp.mean(jax.lax.scan(add, None, (x, gain, signal))[1], axis=0)
    every = _mean_square(x, gain, signal)
    mean = jnp.sum(jnp.einsum("po,poi->oi", mean_signal, activity, precision="highest") ** 2)
    # Of different steps alone: less what a mean over all has of a step with itself.
    by_signal, by_activity, times_mean = (
        (value * steps - less) / (steps - 1)
        for value, less in ((by_signal, every), (by_activity, every), (times_mean, own))
    )
    mean = (mean * steps**2 - every - (steps - 1) * (by_signal + by_activity)) / (steps - 1) ** 2
    of_step, of_write = jnp.sum(off, axis=1), jnp.sum(off, axis=0)
    values = (
        mean * jnp.sum(off) ** 2,
        (by_signal - mean) * jnp.sum(of_step**2),
        (by_activity - mean) * jnp.sum(of_write**2),
        (every - by_signal - by_activity + mean) * jnp.sum(off**2),
    )
    along = (times_mean + (arriving - 1) * mean) * jnp.sum(of_step)
    along += (by_activity - mean) * jnp.sum(of_write[:arriving])
    return dict(zip(PARTS, values, strict=True)), along


def _mean_square(x, gain, signal):
    """Mean of ‖M(u, s)‖² over all u and s: of each pair or, where places are few, by moments of two places each."""
    steps, places = x.shape[:2]
    if places**2 > gain.shape[2] * x.shape[2]:

        def of_step(signal):
            pairs = jnp.einsum("spo,spi->soi", signal * gain, x, precision="highest")
            return jnp.sum(pairs**2)

        return jnp.sum(jax.lax.map(of_step, signal)) / steps**2

    def add(moments, step):
        x, gain, signal = step
        gram = jnp.matmul(x, x.T, precision="highest")
        more = jnp.einsum("pq,po,qo->opq", gram, gain, gain), jnp.einsum("po,qo->opq", signal, signal)
        return jax.tree.map(lambda sum_, own: sum_ + own.astype(sum_.dtype), moments, more), None

    start = jnp.zeros((gain.shape[2], places, places), jnp.result_type(x, gain, signal))
    (of_activity, of_signals), _ = jax.lax.scan(add, (start, start), (x, gain, signal))
    return jnp.sum(of_activity * of_signals) / steps**2
