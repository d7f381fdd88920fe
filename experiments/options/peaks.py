"""The check of peaks that are set in multiples of the delay."""

from experiments.options.common import DT, STRETCH, require, require_each


def require_peaks(name: str, multiples: tuple, delays: tuple, mode: str) -> None:
    """Raises ValueError unless cascades can peak there, and in stretches that start empty within a stretch."""
    require_each(name, multiples, lambda v: v > 0, "above 0")
    longest = (STRETCH - 1) * DT
    for delay in delays:
        for multiple in multiples:
            peak = multiple * delay
            got = f"{multiple:g}, a peak at {peak:g} s where the delay is {delay:g} s"
            require(name, peak > DT / 2, f"large enough for peaks above {DT / 2:g} s, half an image", got)
            if mode == "reset":
                within = f"small enough for peaks up to {longest:g} s, within a stretch of {STRETCH} x {DT:g} s"
                require(name, peak < longest + DT / 2, within, got)
