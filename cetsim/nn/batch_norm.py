"""Batch normalisation without affine parameters, over a stretch of time or over the past."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.nn.conv import LAYOUTS

STATISTICS = ("stretch", "running")


class BatchNorm(eqx.nn.StatefulLayer):
    """Normalises every channel of an image, (x - mean) / sqrt(variance + eps), without affine parameters.

    `"stretch"` takes the moments of all images of the stretch, as batch norm does: they mix the future into the past.
    `"running"` takes those of the images before this one and holds them constant in the derivative, as a stream must:
    an exponential average over about `memory` images, updated image by image, so that cutting a stream differently
    changes nothing. In inference (`eqx.nn.inference_mode`) both use the running moments.

        r(t + 1) = d r(t) + (1 - d) m(t)      d = e^(-1/memory)      m(t) = (mean of x, mean of x²) over the image

    **Arguments:** `channels`: number of channels. `statistics`: `"stretch"` or `"running"`. `layout`: see `Conv2d`.
    `axis_name`: of the map over time. `memory`: in images; the default forgets a tenth in 128.

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
        statistics: str = "stretch",
        *,
        layout: str,
        axis_name: str = "time",
        memory: float = -128 / math.log(0.9),
        eps: float = 1e-5,
    ):
        checks.require_in("statistics", statistics, STATISTICS)
        checks.require_in("layout", layout, LAYOUTS)
        checks.require_above("memory", memory, 0.0, " images")
        self.moments = eqx.nn.StateIndex((jnp.zeros(channels), jnp.ones(channels)))
        self.statistics, self.layout, self.axis_name = statistics, layout, axis_name
        self.memory, self.eps, self.inference = float(memory), float(eps), False

    def __call__(self, x: Float[Array, "..."], state: eqx.nn.State, *, key=None):
        """Normalises one image inside a `vmap` over time named `axis_name`; returns `(x, state)`. `key` is not used."""
        running = state.get(self.moments)
        if self.inference:
            return self._normalised(x, *running), state
        space = (1, 2) if self.layout == "channels_first" else (0, 1)
        own = jax.lax.stop_gradient((x.mean(space), (x**2).mean(space)))
        stretch = jax.tree.map(lambda m: jax.lax.all_gather(m, self.axis_name), own)  # [time, channels]
        steps = jax.lax.psum(1, self.axis_name)
        averaged = lambda until: self._running(running, stretch, steps, until)  # noqa: E731
        if self.statistics == "running":
            used = averaged(jax.lax.axis_index(self.axis_name))
        else:
            used = (jax.lax.pmean(x.mean(space), self.axis_name), jax.lax.pmean((x**2).mean(space), self.axis_name))
        return self._normalised(x, *used), state.set(self.moments, averaged(steps))

    def _running(self, running, stretch, steps: int, until):
        """The running moments before step `until` of a stretch that they were `running` at the start of."""
        lags = until - 1 - jnp.arange(steps)
        decay = lambda count: jnp.exp(-count / self.memory)  # noqa: E731
        weights = jnp.where(lags >= 0, -jnp.expm1(-1 / self.memory) * decay(jnp.maximum(lags, 0)), 0.0)
        fold = lambda r, m: decay(until) * r + jnp.tensordot(weights.astype(m.dtype), m, axes=1, precision="highest")  # noqa: E731
        return jax.tree.map(fold, running, stretch)

    def _normalised(self, x, mean, square):
        shape = (-1, 1, 1) if self.layout == "channels_first" else (1, 1, -1)
        variance = jnp.maximum(square - mean**2, 0.0)
        scale = jax.lax.rsqrt(variance + self.eps).astype(x.dtype)
        return (x - mean.astype(x.dtype).reshape(shape)) * scale.reshape(shape)
