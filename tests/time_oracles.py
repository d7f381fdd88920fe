"""The sum of the definition by hand, for models that are mapped over time and more axes."""

import equinox as eqx
import jax
import numpy as np
import rule_oracles as oracles

import cetsim
from cetsim import CascadingTrace, FixedDelay

DT, LATE, T = 0.2, 3, 12
TRACE, DELAY = CascadingTrace(3, 0.6, DT), FixedDelay(LATE * DT, DT)
SIZES = {"time": T, "a": 2, "b": 3}
RNG = np.random.default_rng(0)


def attach(model, **options):
    return cetsim.attach(model, TRACE, DELAY, form="preactivation", **options)


def time(function):
    return jax.vmap(function, axis_name="time")


def met(steps=T, trace=TRACE, late=LATE, horizon=None):
    """M[r, s], how much of the write at s the signal of step r meets."""
    arrivals = np.arange(steps) + late
    matrix = oracles.weights(trace, arrivals[:, None] - np.arange(steps))
    return matrix * (arrivals < (steps if horizon is None else horizon))[:, None]


def by_hand(x, cotangent, matrix=None):
    """Σ_r Σ_s M[r, s] δ(r) x(s)ᵀ, summed over all axes but the first and the last of [time, ..., features]."""
    x, cotangent = np.asarray(x, float), np.asarray(cotangent, float)
    x, cotangent = (array.reshape(len(array), -1, array.shape[-1]) for array in (x, cotangent))
    return np.einsum("rs,rko,ski->oi", met(len(x)) if matrix is None else matrix, cotangent, x)


def linear(inputs=4, out=3, seed=0):
    return eqx.nn.Linear(inputs, out, key=jax.random.key(seed))
