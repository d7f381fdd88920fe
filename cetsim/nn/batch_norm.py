"""Batch normalisation without affine parameters, over a segment of time or over the past."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.nn.conv import LAYOUTS

STATISTICS = ("segment", "running")


class BatchNorm(eqx.nn.StatefulLayer):
    """Normalises every channel of an image, (x - mean) / sqrt(variance + eps), without affine parameters.

    `"segment"` takes the moments of all images of the segment, as batch norm does: they mix the future into the past.
    `"running"` takes those of the images before this one and holds them constant in the derivative, as a stream must:
    an exponential average over about `memory` images, updated image by image, so that cutting a stream differently
    changes nothing. In inference (`eqx.nn.inference_mode`) both use the running moments.

        μ(t + 1) = d μ(t) + (1 - d) m(t)      σ²(t + 1) = d σ²(t) + (1 - d) (v(t) + d (m(t) - μ(t))²)

    with m and v the mean and variance over one image and d = e^(-1/memory). Nowhere is a variance a difference of
    squares: in float32 it would be off by 1e-7 of the mean's square.

    **Arguments:**

    - `channels`: number of channels.
    - `statistics`: `"segment"` or `"running"`.
    - `layout`: see `Conv2d`.
    - `axis_name`: of the map over time.
    - `memory`: in images; the default forgets a tenth in 128.

    **Raises:** ValueError for options outside their range.

    **Reference:** Ioffe and Szegedy (2015); running moments begin at mean 0 and variance 1.
    """

    moments: eqx.nn.StateIndex
    statistics: str = eqx.field(static=True)
    layout: str = eqx.field(static=True)
    axis_name: str = eqx.field(static=True)
    memory: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    inference: bool

    def __init__(
        self,
        channels: int,
        statistics: str = "segment",
        *,
        layout: str,
        axis_name: str = "time",
        memory: float = -128 / math.log(0.9),
        eps: float = 1e-5,
    ):
        checks.require_in("statistics", statistics, STATISTICS)
        checks.require_in("layout", layout, LAYOUTS)
        channels = checks.require_whole("channels", channels)
        memory, eps = checks.require_static("memory", memory), checks.require_static("eps", eps)
        checks.require_above("memory", memory, 0.0, " images")
        checks.require_above("eps", eps, 0.0)
        self.moments = eqx.nn.StateIndex((jnp.zeros(channels), jnp.ones(channels)))
        self.statistics, self.layout, self.axis_name = statistics, layout, axis_name
        self.memory, self.eps, self.inference = memory, eps, False

    def __call__(self, x: Float[Array, "..."], state: eqx.nn.State, *, key=None):
        """Normalises one image inside a `vmap` over time named `axis_name`; returns `(x, state)`. `key` is not used."""
        running = state.get(self.moments)
        if self.inference:
            return self._normalised(x, *running), state
        space = (1, 2) if self.layout == "channels_first" else (0, 1)
        moments_here = x.mean(space), x.var(space)
        constant = jax.lax.stop_gradient(moments_here)
        means, variances = (jax.lax.all_gather(moment, self.axis_name) for moment in constant)  # [time, channels]
        before, after = self._running(*running, means, variances)
        if self.statistics == "running":
            used = tuple(moment[jax.lax.axis_index(self.axis_name)] for moment in before)
        else:
            mean = jax.lax.pmean(moments_here[0], self.axis_name)
            used = mean, jax.lax.pmean(moments_here[1] + (moments_here[0] - mean) ** 2, self.axis_name)
        return self._normalised(x, *used), state.set(self.moments, after)

    def _running(self, mean, variance, means, variances):
        """The running moments before each image of a segment, `[time, channels]`, and after the last."""
        mean_before, mean_after = self._average(mean, means)
        apart = math.exp(-1 / self.memory) * (means - mean_before) ** 2
        variance_before, variance_after = self._average(variance, variances + apart)
        return (mean_before, variance_before), (mean_after, variance_after)

    def _average(self, start, values):
        """Exponential average of `values` before each and after the last, from `start` on."""
        steps = jnp.arange(len(values) + 1)
        lags = steps[:, None] - 1 - steps[:-1]
        decay = lambda count: jnp.exp(-count.astype(float) / self.memory)  # noqa: E731
        weights = jnp.where(lags >= 0, -math.expm1(-1 / self.memory) * decay(jnp.maximum(lags, 0)), 0.0)
        averages = decay(steps)[:, None].astype(values.dtype) * start
        averages += jnp.matmul(weights.astype(values.dtype), values, precision="highest")
        return averages[:-1], averages[-1]

    def _normalised(self, x, mean, variance):
        shape = (-1, 1, 1) if self.layout == "channels_first" else (1, 1, -1)
        scale = jax.lax.rsqrt(variance + self.eps).astype(x.dtype)
        return (x - mean.astype(x.dtype).reshape(shape)) * scale.reshape(shape)
