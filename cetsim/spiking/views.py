"""Pictures of spiking neurons: when they spiked, and their membrane potentials."""

import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim import checks, extras


def plot_spikes(
    spikes: Shaped[Array | np.ndarray, "time neurons"],
    dt: float,
    v: Float[Array | np.ndarray, "time neurons"] | None = None,
    threshold: float | None = None,
    shown: int = 3,
):
    """A figure with a raster, a dot for each spike, and below it the potentials of the first neurons.

    **Arguments:**

    - `spikes`: `[time, neurons]`, each 0 or 1. `dt`: length of a step, in seconds.
    - `v`: membrane potentials, `[time, neurons]`; None for a raster alone. `threshold`: drawn as a line among them.
    - `shown`: number of neurons whose potential is drawn.

    **Returns:** the figure.

    **Raises:** ValueError for what are no spikes, or for shapes that differ. ImportError without matplotlib.
    """
    checks.require_dt(dt)
    spikes, shown = np.asarray(spikes), checks.require_whole("shown", shown)
    if spikes.ndim != 2:
        raise ValueError(f"`spikes` must be [time, neurons], got shape {spikes.shape}")
    if np.any(~np.isin(spikes, (0, 1))):
        raise ValueError(f"`spikes` must be 0 or 1, got {spikes[~np.isin(spikes, (0, 1))][0]}")
    if v is not None and np.shape(v) != spikes.shape:
        raise ValueError(f"`v` must have the shape {spikes.shape} of the spikes, got {np.shape(v)}")
    figure = extras.require("matplotlib.figure", extra="experiments").Figure(figsize=(5, 3), layout="constrained")
    rows = figure.subplots(1 if v is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    steps, neurons = np.nonzero(spikes)
    rows[0].scatter(steps * dt, neurons, s=4, marker="|", color="black")
    rows[0].set(ylabel="neuron", ylim=(-0.5, spikes.shape[1] - 0.5), xlim=(0, len(spikes) * dt))
    if v is not None:
        rows[1].plot(np.arange(len(spikes)) * dt, np.asarray(v)[:, :shown])
        rows[1].set_ylabel("v")
        if threshold is not None:
            rows[1].axhline(threshold, color="gray", linestyle="--", linewidth=0.8)
    rows[-1].set_xlabel("time, s")
    return figure
