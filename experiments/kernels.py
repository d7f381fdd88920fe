"""Impulse responses of ET and CET at one delay, their width against order, their Laplace transforms.

Each stage added at a fixed peak narrows the trace (standard deviation T √n/(n - 1)) and brings its Laplace
transform (α/(s + α))^n closer to the pure delay's e^(-sT).
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from cetsim.sweep.batches import in_batches
from cetsim.sweep.progress import Reporter
from cetsim.sweep.runner import Plan, Program, Runner
from experiments import figures
from experiments.options.kernels import Kernels
from experiments.records import Journal, claimed, number, read_results, require_writable

NAME = "kernels"
SPAN = 2.5  # impulse responses are drawn up to this many delays
LAPLACE_SPAN = 8.0  # and transforms up to s = this / delay
_IDEAL = dict(color="black", linestyle=(0, (2, 1.5)), linewidth=1.1)


def prepare(options: Kernels) -> Kernels:
    """Checks on the host everything that can fail for a user's reason.

    **Raises:** ValueError, OSError.
    """
    require_writable(options.folder)
    if not options.fresh:
        Journal(options.folder)
    return options


def run(options: Kernels) -> None:
    """Computes what is missing, writes the records, the table of widths and the figure."""
    configs = _configs(options)
    plan = Plan(dict, _columns, lambda config, width: Analysis(), str, lambda configs, records: [], 1)
    with claimed(options.folder, options.fresh) as journal:
        with Reporter() as reporter:
            Runner(journal, reporter).run(plan, in_batches(configs, plan.key, 1))
        journal.write_results()
    _report(journal.rows(map(plan.key, configs)), options.folder)


class Analysis(Program):
    """Computes what can be said of one trace: a sweep in which nothing is trained."""

    ends = (1,)

    def begin(self, lanes: list[dict]) -> tuple:
        """Nothing is known."""
        return ()

    def advance(self, state: tuple, lanes: list[dict], start: int, end: int) -> tuple[tuple, list[list[dict]]]:
        """All rows at once."""
        return state, [_compute(config) for config in lanes]


def redraw(options: Kernels) -> None:
    """Draws the figure again from results.csv.

    **Raises:** ValueError, OSError.
    """
    rows = read_results(options.folder / "results.csv")
    require_writable(options.folder)
    _report(_at_last_delay(rows), options.folder)


def _configs(options: Kernels) -> list[dict]:
    shared = {"experiment": NAME, "delay_s": options.delay, "dt": options.dt}
    traces = [("ET", 1), *(("CET", order) for order in options.orders)]
    return [shared | {"trace": trace, "order": order} for trace, order in traces]


def _columns(config: dict) -> dict:
    return {name: config[name] for name in ("experiment", "trace", "order", "delay_s")}


def _compute(config: dict) -> list[dict]:
    """Rows of one trace: weights per second, moments and widths in seconds, Laplace transform at real s."""
    from cetsim.traces import CascadingTrace, ExponentialTrace

    delay, dt, order = config["delay_s"], config["dt"], config["order"]
    trace = ExponentialTrace(delay, dt) if order == 1 else CascadingTrace(order, delay, dt)
    lags = np.arange(round(SPAN * delay / dt) + 1)
    fine = np.linspace(0, 12 * delay / dt, 24_001)  # to 1/2000 of the delay, far into the tail of low orders
    weights = np.asarray(trace.weights(fine))
    scalars = {
        "mean_s": trace.mean(),
        "sd_s": math.sqrt(trace.variance()),
        "fwhm_s": np.sum(weights >= weights.max() / 2) * fine[1] * dt,
    }
    rows = [{"metric": metric, "value": number(value)} for metric, value in scalars.items()]
    rows += [
        {
            "metric": "weight_per_s",
            "step": int(lag),
            "value": number(weight / dt),
            "time_s": round(lag * dt, 9),
        }
        for lag, weight in zip(lags, np.asarray(trace.weights(lags)), strict=True)
    ]
    s = np.linspace(0, LAPLACE_SPAN / delay, 41)
    return rows + [
        {"metric": "laplace", "value": number(value), "s_per_s": round(float(at), 9)}
        for at, value in zip(s, np.asarray(trace.laplace(s)), strict=True)
    ]


def _at_last_delay(rows: list[dict]) -> list[dict]:
    if not rows:
        raise ValueError("results.csv holds no rows to draw")
    return [row for row in rows if row["delay_s"] == rows[-1]["delay_s"]]


def _report(rows: list[dict], folder: Path) -> None:
    keys = sorted({(row["trace"], row["order"]) for row in rows}, key=lambda key: key[1])
    width = {(row["trace"], row["order"], row["metric"]): row["value"] for row in rows if row["metric"][-2:] == "_s"}
    print(f"{'':<10}{'mean (s)':>10}{'sd (s)':>10}{'fwhm (s)':>10}")
    for key in keys:
        values = (width[(*key, metric)] for metric in ("mean_s", "sd_s", "fwhm_s"))
        print(f"{figures.label(*key):<10}" + "".join(f"{value:>10.3f}" for value in values))
    with figures.new_figure(rows=3, height=6.6) as (figure, axes):
        _draw_weights(axes[0], rows, keys)
        _draw_widths(axes[1], width, keys)
        _draw_laplace(axes[2], rows, keys)
        paths = figures.save(figure, folder, NAME)
    print(f"results: {folder / 'results.csv'}\nfigure: {paths[0]}, {paths[1]}")


def _series(rows, key, metric, axis):
    points = [row for row in rows if (row["trace"], row["order"], row["metric"]) == (*key, metric)]
    return [float(row[axis]) for row in points], [row["value"] for row in points]


def _draw_weights(axes, rows, keys):
    delay = rows[0]["delay_s"]
    for key, style in figures.styles(keys).items():
        x, y = _series(rows, key, "weight_per_s", "time_s")
        axes.plot(x, y, **style, markevery=(3, max(1, len(x) // 8)), label=figures.label(*key))
    axes.axvline(delay, **_IDEAL, zorder=0, label=f"delay, {delay:g} s")
    axes.set(
        xlabel="time since the activity (s)",
        ylabel="weight in the trace (1/s)",
        xlim=(0, None),
        ylim=(0, None),
    )
    axes.set_title("a  Impulse responses, area 1", loc="left")
    axes.legend()


def _draw_widths(axes, width, keys):
    lines = (("sd_s", "standard deviation", "o", "-"), ("fwhm_s", "full width at half maximum", "s", "--"))
    for metric, name, marker, line in lines:
        orders, values = zip(*((key[1], width[(*key, metric)]) for key in keys if key[1] > 1), strict=True)
        axes.loglog(orders, values, color="#0072B2", marker=marker, linestyle=line, label=name)
        # ET stands apart: its largest weight is at 0, not at the delay.
        axes.loglog(1, width["ET", 1, metric], color="#D55E00", marker=marker, linestyle="")
    axes.set(xlabel="order (stages of the cascade)", ylabel="width (s)")
    axes.set_xticks([key[1] for key in keys], ["1\n(ET)" if order == 1 else f"{order:g}" for _, order in keys])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("b  Width", loc="left")
    axes.legend()


def _draw_laplace(axes, rows, keys):
    delay = rows[0]["delay_s"]
    for key, style in figures.styles(keys).items():
        x, y = _series(rows, key, "laplace", "s_per_s")
        axes.semilogy(x, y, **style, markevery=max(1, len(x) // 8))
    ideal = [math.exp(-s * delay) for s in x]
    axes.semilogy(x, ideal, **_IDEAL, label=f"ideal delay, $e^{{-sT}}$ with T = {delay:g} s")
    axes.set(xlabel="s, real (1/s)", ylabel="Laplace transform L(s)", xlim=(0, None))
    axes.set_title("c  Laplace transform (colours as in a)", loc="left")
    axes.legend(loc="lower left")
