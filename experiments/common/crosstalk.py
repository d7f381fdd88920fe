"""What an update is made of, layer by layer; the mathematics is in `experiments/crosstalk.py`."""

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim import metrics

PARTS = ("mean", "mean of activity", "mean of errors", "variance")


def by_layer(model, x, labels, weights, late: int, form: str) -> dict[str, dict]:
    """What `split` says of every layer, by what and by layer."""
    factors = factors_of(model, x, labels, form)
    found = {name: split(*factors_of_layer, weights, late) for name, factors_of_layer in factors.items()}
    return {what: {name: parts[what] for name, parts in found.items()} for what in next(iter(found.values()))}


def factors_of(model, x, labels, form: str) -> dict[str, tuple]:
    """Of every linear layer of an MLP: its input, its eligibility's gain and its learning signal, `[time, ...]`."""
    linear = [i for i, layer in enumerate(model.layers) if isinstance(layer, eqx.nn.Linear)]

    def loss(shifts, x):
        kept = {}
        for i, layer in enumerate(model.layers):
            if i in linear:
                kept[i] = x
                z = x = jax.vmap(layer)(x) + shifts[i]
                kept[i] = kept[i], z
            else:
                x = jax.vmap(layer)(x)
        rows = -jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None].astype(int), axis=1)
        return jnp.mean(rows), kept

    shifts = {i: jnp.zeros((x.shape[0], model.layers[i].out_features), x.dtype) for i in linear}
    errors, kept = jax.grad(loss, has_aux=True)(shifts, x)
    found = {}
    for i in linear:
        seen, z = kept[i]
        slope = (z > 0).astype(z.dtype) if i != linear[-1] else jnp.ones_like(z)  # both layers' activation is ReLU's
        gain = jnp.ones_like(z) if form == "preactivation" else slope
        found[f"layers.{i}"] = seen, gain, errors[i]
    return found


def split(x, gain, signal, weights, late: int) -> dict:
    """Predicted parts of an update, and what is measured of it.

    **Arguments:**

    - `x`, `gain`, `signal`: presynaptic activity `[time, in]`, post-synaptic factor of the eligibility and learning
      signal, `[time, out]`; a ReLU's signal is 0 where its gain is, so that the forms of the rule agree.
    - `weights`: w at the lags 0, 1, ..., at least as many as steps. `late`: D, in steps.

    **Returns:** squares relative to that of w(D) g: the four `PARTS`, predicted, `crosstalk`, measured, and `lost`, of
    the gradient whose signals never arrive to that of those that do; the cosine with the gradient of what arrives,
    `predicted` and `alignment`, and, `centred`, that of the update from activity less its mean with the gradient in the
    same coordinates; g·c expected, `along`, as the squares; and their `unit`.
    """
    steps = x.shape[0]
    lags = late + jnp.arange(steps)[:, None] - jnp.arange(steps)[None, :]
    arrives = (jnp.arange(steps) + late < steps)[:, None]
    met = arrives & (lags >= 0)
    pairs = jnp.where(met, weights[jnp.clip(lags, 0, steps - 1)], 0.0)
    off, right = pairs * (lags != late), weights[late]
    gradient = lambda rows: jnp.matmul((signal * gain * rows).T, x, precision="highest")  # noqa: E731
    arrived, lost = gradient(arrives), gradient(~arrives)
    update = lambda x: jnp.matmul((gain * (pairs.T @ signal)).T, x, precision="highest")  # noqa: E731
    parts, along = _expected(x, gain, signal, off, steps - late)
    unit = right**2 * jnp.sum(arrived**2)
    parts = {name: value / unit for name, value in parts.items()} | {"along": right * along / unit}
    middle = x - jnp.mean(x, axis=0)
    centred = jnp.matmul((signal * gain * arrives).T, middle, precision="highest")
    return parts | {
        "crosstalk": jnp.sum((update(x) - right * arrived) ** 2) / unit,
        "unit": unit,
        "lost": jnp.sum(lost**2) / jnp.sum(arrived**2),
        "predicted": expected_cosine(parts),
        "alignment": metrics.cosine(update(x), arrived),
        "centred": metrics.cosine(update(middle), centred),
    }


def expected_cosine(parts: dict):
    """The cosine of an update with the gradient of what arrives, from the expected parts relative to the latter."""
    total, along = sum(parts[name] for name in PARTS), parts["along"]
    return (1 + along) / jnp.sqrt(jnp.maximum(1 + total + 2 * along, 1e-30))


def _expected(x, gain, signal, off, arriving: int):
    """E‖c‖² part by part, and E g·c. Squares of means are less what a mean of so many steps has by chance."""
    steps = x.shape[0]
    mean_h = jnp.sum((jnp.matmul(gain.T, x, precision="highest") / steps) ** 2, axis=1)
    mean_d = jnp.mean(signal, axis=0) ** 2
    unbiased = lambda square, mean: (square - mean) * steps / (steps - 1)  # noqa: E731
    var_h = unbiased(jnp.mean(gain**2 * jnp.sum(x**2, axis=1, keepdims=True), axis=0), mean_h)
    var_d = unbiased(jnp.mean(signal**2, axis=0), mean_d)
    mean_h, mean_d = mean_h - var_h / steps, mean_d - var_d / steps
    by_signal, by_write = jnp.sum(off, axis=1), jnp.sum(off, axis=0)
    values = (
        jnp.sum(mean_d * mean_h) * jnp.sum(off) ** 2,
        jnp.sum(var_d * mean_h) * jnp.sum(by_signal**2),
        jnp.sum(mean_d * var_h) * jnp.sum(by_write**2),
        jnp.sum(var_d * var_h) * jnp.sum(off**2),
    )
    large = jnp.matmul((signal**2 * gain).T, x, precision="highest") / steps  # δ² h, and below times h of other steps
    own = jnp.mean((signal * gain) ** 2 * jnp.sum(x**2, axis=1, keepdims=True), axis=0)
    times_mean = jnp.sum(large * jnp.matmul(gain.T, x, precision="highest") / steps, axis=1)
    times_mean = (times_mean * steps - own) / (steps - 1)
    along = jnp.sum(times_mean + (arriving - 1) * mean_h * mean_d) * jnp.sum(by_signal)
    along += jnp.sum(mean_d * var_h) * jnp.sum(by_write[:arriving])
    return dict(zip(PARTS, values, strict=True)), along
