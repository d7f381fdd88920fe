"""What stands in for the derivative of a spike: surrogates ψ(u) of the step H(u), u how far v is above threshold."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cetsim import checks


class AbstractSurrogate(eqx.Module):
    """A spike on the way forward, ψ on the way back. Subclasses define ψ.

    **Reference:** Neftci, Mostafa and Zenke (2019), "Surrogate gradient learning in spiking neural networks".
    """

    @abc.abstractmethod
    def slope(self, u: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """ψ(u), in place of the derivative of H."""

    def __call__(self, u: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
        """H(u): 1 where u > 0, else 0, whose derivative is ψ(u).

        **Arguments:** `u`: v - θ, in the units of v.
        """
        return _spike(u, self.slope(jax.lax.stop_gradient(u)))


@jax.custom_jvp
def _spike(u, slope):
    return (u > 0).astype(u.dtype)


@_spike.defjvp
def _spike_jvp(primals, tangents):
    return _spike(*primals), primals[1] * tangents[0]


class FastSigmoid(AbstractSurrogate):
    """ψ(u) = 1 / (1 + k |u|)², the derivative of u / (1 + k |u|); 1 at threshold.

    **Arguments:** `steepness`: k, above 0, per unit of v.

    **Reference:** Zenke and Ganguli (2018), "SuperSpike".
    """

    steepness: float = eqx.field(static=True)

    def __init__(self, steepness=25.0):
        self.steepness = _above_0("steepness", steepness)

    def slope(self, u):
        """ψ(u)."""
        return 1 / (1 + self.steepness * jnp.abs(u)) ** 2


class ArcTan(AbstractSurrogate):
    """ψ(u) = (α/2) / (1 + (π α u / 2)²), the derivative of arctan(π α u / 2) / π; its area is 1.

    **Arguments:** `steepness`: α, above 0, per unit of v.

    **Reference:** Fang et al. (2021), "Incorporating learnable membrane time constant".
    """

    steepness: float = eqx.field(static=True)

    def __init__(self, steepness=2.0):
        self.steepness = _above_0("steepness", steepness)

    def slope(self, u):
        """ψ(u)."""
        return self.steepness / 2 / (1 + (math.pi / 2 * self.steepness * u) ** 2)


class Boxcar(AbstractSurrogate):
    """ψ(u) = 1 / (2 w) where |u| < w, else 0; its area is 1.

    **Arguments:** `half_width`: w, above 0, in units of v.

    **Reference:** Kaiser, Mostafa and Neftci (2020), "DECOLLE".
    """

    half_width: float = eqx.field(static=True)

    def __init__(self, half_width=0.5):
        self.half_width = _above_0("half_width", half_width)

    def slope(self, u):
        """ψ(u)."""
        return jnp.where(jnp.abs(u) < self.half_width, 1 / (2 * self.half_width), 0.0).astype(u.dtype)


class Gaussian(AbstractSurrogate):
    """ψ(u), the normal density of mean 0 and standard deviation σ; its area is 1.

    **Arguments:** `sd`: σ, above 0, in units of v.

    **Reference:** Yin, Corradi and Bohté (2021), "Accurate and efficient time-domain classification".
    """

    sd: float = eqx.field(static=True)

    def __init__(self, sd=0.4):
        self.sd = _above_0("sd", sd)

    def slope(self, u):
        """ψ(u)."""
        return jnp.exp(-((u / self.sd) ** 2) / 2) / (math.sqrt(2 * math.pi) * self.sd)


def _above_0(name: str, value) -> float:
    value = checks.require_static(name, value)
    checks.require_above(name, value, 0.0)
    return value
