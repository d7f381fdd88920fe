"""Impulse responses of ET and CET at one delay, their width against order, their Laplace transforms.

Each stage added at a fixed peak narrows the trace (standard deviation T √n/(n - 1)) and brings its Laplace
transform (α/(s + α))^n closer to the pure delay's e^(-sT).
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from cetsim import sweep
from cetsim.traces import CascadingTrace, ExponentialTrace
from experiments.common import checks, plots, tables
from experiments.common.conditions import Condition, from_record, recorded
from experiments.common.options import Files
from experiments.common.selection import reported, users_errors

SPAN = 2.5  # impulse responses are drawn up to this many delays
LAPLACE_SPAN = 8.0  # and transforms up to s = this / delay
_IDEAL = dict(color="black", linestyle=(0, (2, 1.5)), linewidth=1.1)


@dataclass(frozen=True)
class Options(Files):
    """What a trace remembers: impulse responses, their width against order, and their Laplace transforms."""

    delay: Annotated[float, checks.ABOVE_ZERO] = 4.0
    """Lag of the largest weight in seconds (for ET the time constant), a multiple of dt."""
    dt: float = 0.04
    """Length of a step in seconds, above 0 and at most a tenth of the delay."""
    orders: Annotated[tuple[int, ...], checks.ORDERS] = (2, 6, 10, 32, 64)
    """Orders of the cascading traces, 2 to 64."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        shortest = f"above 0 and at most delay/10 = {self.delay / 10:g}"
        checks.require("dt", 0 < self.dt <= self.delay / 10, shortest, self.dt)
        whole = f"a multiple of dt = {self.dt:g} s"
        checks.require("delay", checks.whole_steps(self.delay, self.dt), whole, self.delay)


PRESETS: dict[str, Options] = {}


def run(options: Options) -> pd.DataFrame:
    """Computes what is missing of ET and every cascade: a sweep in which nothing is trained; the rows to report."""
    kernels = [Condition("ET", 1, options.delay), *(Condition("CET", n, options.delay) for n in options.orders)]
    stay = dict(steps=1, hyperparameters=from_record, on_host=True)
    measured = partial(analyse, dt=options.dt)
    nothing = sweep.Training(lambda kernel, key: kernel, lambda kernel, steps: (kernel, {}), measured, **stay)
    with users_errors():
        how = dict(config={"dt": options.dt}, defaults=recorded(Condition()) | {"dt": 0.04}, fresh=options.fresh)
        how |= dict(columns={"experiment": options.name}, batch=1)
        table = sweep.run(options.folder, map(recorded, kernels), nothing, **how)
    return reported(table, options)


def analyse(kernel: Condition, dt: float) -> list[dict]:
    """Rows of one trace: weights per second, moments and widths in seconds, Laplace transform at real s."""
    delay, order = kernel.delay_s, kernel.order
    trace = ExponentialTrace(delay, dt) if order == 1 else CascadingTrace(order, delay, dt)
    lags = np.arange(round(SPAN * delay / dt) + 1)
    fine = np.linspace(0, 12 * delay / dt, 24_001)  # to 1/2000 of the delay, far into the tail of low orders
    weights = np.asarray(trace.weights(fine))
    half = np.sum(weights >= weights.max() / 2) * fine[1] * dt
    scalars = {"mean_s": trace.mean(), "sd_s": math.sqrt(trace.variance()), "fwhm_s": half}
    rows = [{"metric": metric, "value": float(value)} for metric, value in scalars.items()]
    for lag, weight in zip(lags, np.asarray(trace.weights(lags)), strict=True):
        at = {"step": int(lag), "time_s": round(float(lag) * dt, 9)}
        rows.append({"metric": "weight_per_s", "value": float(weight) / dt} | at)
    s = np.linspace(0, LAPLACE_SPAN / delay, 41)
    for at, value in zip(s, np.asarray(trace.laplace(s)), strict=True):
        rows.append({"metric": "laplace", "value": float(value), "s_per_s": round(float(at), 9)})
    return rows


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints the table of widths and writes the figure, of the last delay in the file."""
    delay = rows["delay_s"].iloc[-1]
    rows = rows[rows["delay_s"] == delay]
    keys = sorted(tables.traces(rows), key=lambda key: key[1])
    metrics = ["mean_s", "sd_s", "fwhm_s"]
    width = rows[rows["metric"].isin(metrics)].pivot_table(index=["trace", "order"], columns="metric", values="value")
    body = [(tables.label(*key), [f"{width.loc[key, metric]:.3f}" for metric in metrics]) for key in keys]
    print(tables.text("Width of each trace", ["", *(f"{m.removesuffix('_s')} (s)" for m in metrics)], body))
    with plots.figure(3, height=6.6) as (figure, axes):
        weights, widths, laplace = axes[:, 0]
        _draw_rows(weights, rows[rows["metric"] == "weight_per_s"], "time_s", keys, 3)
        weights.axvline(delay, **_IDEAL, zorder=0, label=f"delay, {delay:g} s")
        weights.set(xlabel="time since the activity (s)", ylabel="weight in the trace (1/s)", ylim=(0, None))
        _draw_widths(widths, width, keys)
        _draw_rows(laplace, rows[rows["metric"] == "laplace"], "s_per_s", keys, 0)
        s = np.unique(rows["s_per_s"].dropna())
        laplace.plot(s, np.exp(-s * delay), **_IDEAL, label=f"ideal delay, $e^{{-sT}}$ with T = {delay:g} s")
        laplace.set(xlabel="s, real (1/s)", ylabel="Laplace transform L(s)", yscale="log")
        titles = ("a  Impulse responses, area 1", "b  Width", "c  Laplace transform (colours as in a)")
        for axis, title in zip(axes[:, 0], titles, strict=True):
            axis.set_title(title, loc="left")
        weights.legend()
        widths.legend()
        laplace.legend(*(part[-1:] for part in laplace.get_legend_handles_labels()), loc="lower left")
        return plots.save(figure, options.folder, "kernels")


def _draw_rows(axis, rows: pd.DataFrame, x: str, keys: list[tuple], first: int) -> None:
    for key, style in plots.styles(keys).items():
        part = tables.of_trace(rows, key)
        axis.plot(part[x], part["value"], **style, markevery=(first, max(1, len(part) // 8)), label=tables.label(*key))
    axis.set_xlim(0, None)


def _draw_widths(axis, width: pd.DataFrame, keys: list[tuple]) -> None:
    lines = (("sd_s", "standard deviation", "o", "-"), ("fwhm_s", "full width at half maximum", "s", "--"))
    for metric, name, marker, line in lines:
        cascades = {key[1]: width.loc[key, metric] for key in keys if key[1] > 1}
        look = dict(color="#0072B2", marker=marker, linestyle=line)
        axis.loglog(list(cascades), list(cascades.values()), **look, label=name)
        # ET stands apart: its largest weight is at 0, not at the delay.
        axis.loglog(1, width.loc[("ET", 1), metric], color="#D55E00", marker=marker, linestyle="")
    axis.set(xlabel="order (stages of the cascade)", ylabel="width (s)")
    axis.set_xticks([key[1] for key in keys], ["1\n(ET)" if order == 1 else f"{order:g}" for _, order in keys])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
