"""The peak of a cascade, learned from the task while the network learns: started wrong, does it end at the delay?

What is learned is the logarithm θ of the peak (`experiments/common/learned.py`). Two slopes are known here:

    alignment       d/dθ of minus the mean cosine between the trace's update and the true gradient
    perturbation    (ℓ(θ + σ) - ℓ(θ - σ)) / 2σ, ℓ the loss after some updates made with the peak e^θ

The first differentiates through the kernel; the second sees two scalars, from the same network and the same images,
and no more. Neither its scale nor the delay need be known. Slopes tell most while the peak is wrong and the network
learns fast, and are mostly noise once it is slow: what came early should weigh more, which AdaGrad's sum of squares
does. On MNIST a first step η of 15 % brought all six runs by perturbation within 9 % of the delay; of 10 %, all but
one, which was 10.3 % short when its steps had become small.

Rejected: steps of one size by the sign of g, which late noise moves as much as early knowledge did, up to 12 % off on
MNIST. Adam, which overshot and was then held there by its memory of large slopes, a third off. The derivative of the
loss after a few updates: after one it says little of the delay, and the peak drifts; after ten the loss is so rough a
function of the peak that its slope at a point says less than the difference of two points.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float
from matplotlib.lines import Line2D

from cetsim.supervised import SupervisedRun, TrainState
from cetsim.traces import CascadingTrace
from experiments.common import captions, checks, learned, plots, tables, vision
from experiments.common.checks import DT, SEGMENT
from experiments.common.conditions import Condition, set_to_delay
from experiments.common.options import MNIST

BOUNDS = math.log(DT), math.log((SEGMENT - 1) * DT)  # of the logarithm of a peak in seconds
BAND = 0.1  # of the delay, around it
NOT_RIGHT = checks.Rule("above 0 and not 1, which is always there", lambda v: v > 0 and v != 1)
_SUBJECT = (*tables.SUBJECT, "delay_s", "order", "error_gate", "learning_rate")
_STYLES = {  # methods mostly agree: the wide line shows below the narrow one
    "held": dict(color="#999999"),
    "alignment": dict(color="#56B4E9", linewidth=2.8),
    "perturbation": dict(color="#D55E00", linewidth=1.0),
}
_HELD_RIGHT = dict(color="#000000", linestyle=(0, (2, 1.5)), zorder=4)
_SHORT, _LONG = dict(marker="^", linestyle="-"), dict(marker="v", linestyle=(0, (5, 1)))  # by where a peak starts


@dataclass(frozen=True)
class Options(learned.Learned):
    """The peak of a cascade, learned from the task while the network learns.

    The peak starts wrong, and every --learn-every updates it moves towards where the network would learn better. Two
    ways tell where that is. alignment differentiates the cosine between the trace's update and the true gradient
    through the kernel. perturbation needs two scalars: the losses after some updates made with a longer peak and with
    a shorter one. Neither knows the delay. Beside them the same network is trained with its peak held right, and held
    where the others start.
    """

    preset: Literal["demo", "quick"] = "demo"
    """demo: digits, in minutes; quick: MNIST, in a quarter of an hour."""
    delay: Annotated[float, checks.delays] = 2.0
    """Delay of the learning signal in seconds, a multiple of 0.2 s; what the peak should come to."""
    order: Annotated[int, checks.ORDER] = 10
    """Order of the cascade, 2 to 64."""
    starts: Annotated[tuple[float, ...], NOT_RIGHT, checks.peaks] = (0.5, 2.0)
    """Where the peak starts, in multiples of the delay."""
    methods: Annotated[tuple[Literal["alignment", "perturbation"], ...], checks.WORDS] = ("alignment", "perturbation")
    """Ways to tell in which direction to move the peak."""
    step_size: Annotated[float, checks.INSIDE] = 0.15
    """Relative change of the peak in the first step; later ones are scaled by all slopes so far (AdaGrad)."""
    perturbation: Annotated[float, checks.INSIDE] = 0.2
    """Relative distance of the longer and the shorter peak that are tried, above 0 and below 1."""


PRESETS = {"demo": Options(), "quick": Options(steps=1404, **MNIST)}


def slope(run: SupervisedRun, rule: Condition, state: TrainState, log_peak: Float[Array, ""]) -> Float[Array, ""]:
    """How minus the mean cosine grows with θ, forward: the kernel's slope is carried through all that follows."""
    function = lambda at: mean_alignment(run, rule, state, at)  # noqa: E731
    return -jax.jvp(function, (log_peak,), (jnp.ones_like(log_peak),))[1]


def mean_alignment(run, rule: Condition, state: TrainState, log_peak: Float[Array, ""]) -> Float[Array, ""]:
    """Cosine between a trace's update and the true gradient, averaged over layers and the segments that come next."""
    tuned, coming = learned.with_weights(state, weights(rule, log_peak)), learned.coming(run, state, rule.segments)
    alignment = jax.lax.map(lambda segment: run.alignment(tuned, *segment), coming)
    return jnp.mean(jnp.stack(list(alignment.values())))


def weights(rule: Condition, log_peak: Float[Array, ""]) -> Float[Array, " lags"]:
    """Those of a cascade of that peak, over a segment."""
    return CascadingTrace(rule.order, jnp.exp(log_peak), DT).tabulate(SEGMENT).taps


KNOB = learned.Knob(
    start=lambda rule, condition: jnp.log(jnp.asarray(condition.peak_s)),
    weights=weights,
    slope=slope,
    kept=lambda log_peak: jnp.clip(log_peak, *BOUNDS),
    measured=lambda log_peak: {"learned_peak_s": jnp.exp(log_peak)},
    every_move=True,
)


def conditions(options: Options) -> list[list[Condition]]:
    """The peak held right, and for each start the peak held there and learned from there by every method."""
    right = set_to_delay(options, "CET", options.order, options.delay)
    wrong = [replace(right, peak_s=round(start * options.delay, 9)) for start in options.starts]
    learning = [one for held in wrong for one in (held, *learned.by_every_method(options, held))]
    return [[one] for one in (right, *learning)]


run = partial(vision.run, conditions, course=partial(learned.Course, KNOB))


def best_peak(delay: float, order: int) -> float:
    """Peak at which the update is best aligned, were images unrelated: (n - 1)/(n - ½) of the delay.

    Every lag but the delay T adds noise of equal size then, so that the cosine goes as w(T)/√Σw². The weight w(T) goes
    as α^n e^(-αT) and Σw² as α: the ratio is largest at α = (n - ½)/T, and the peak is (n - 1)/α.
    """
    return delay * (order - 1) / (order - 0.5)


def select(rows: pd.DataFrame, options: Options) -> pd.DataFrame:
    """What runs ended with, of the delay, order and gate asked for if there are any, and of one length.

    Of runs that differ only in how a method was set, the last in the file counts.
    """
    asked = {"delay_s": options.delay, "order": options.order, "error_gate": options.error_gate}
    ends = tables.like_last(tables.finals(rows), (*_SUBJECT, "step"), **asked)
    ends = ends.drop_duplicates(["method", "peak_s", "seed"], keep="last")
    return ends.assign(rank=ends["method"].map(list(_STYLES).index)).sort_values(["rank", "peak_s", "seed"])


def report(rows: pd.DataFrame, options: Options) -> list[Path]:
    """Prints where each peak ended, how far from the delay, and what the network learned; and writes the figure."""
    ends = select(rows, options)
    delay, order = ends["delay_s"].iloc[0], ends["order"].iloc[0]
    peaks, extra = (tables.last(rows, metric) for metric in ("learned_peak_s", "extra_stretches"))
    settings = f"{tables.label('CET', order)}, {captions.settings(ends)}"
    body = []
    for (_, method, start), runs in ends.groupby(["rank", "method", "peak_s"]):
        at_end = runs["run"].map(peaks).where(~runs["lost"])
        error = 100 * (at_end / delay - 1)
        span = f" ({error.min():+.1f} to {error.max():+.1f})" if error.notna().sum() > 1 else ""
        errors = f"{error.mean():+.1f}{span}" if error.notna().any() else ""
        cells = [f"{start:g}", tables.cell(at_end, 1, 3), errors, tables.cell(runs["value"])]
        body.append((method, [*cells, f"{runs['run'].map(extra).iloc[0]:g}"]))
    head = ["method", "start (s)", "end (s)", "error (%)", "accuracy (%)", "extra stretches"]
    title = f"Peak learned for a delay of {delay:g} s, {settings}.{captions.left_out(ends)}"
    best = best_peak(delay, order)
    print(tables.text(title, head, body, width=24))
    print(f"best aligned if images were unrelated: {best:.3g} s ({100 * (best / delay - 1):+.1f} %)")
    print("extra stretches: of 128 images, what learning the peak takes in a run beside what the network learns from")
    return draw(rows, ends, settings, options.folder)


def draw(rows: pd.DataFrame, ends: pd.DataFrame, settings: str, folder: Path) -> list[Path]:
    """The peak, and the loss, against the network's updates."""
    delay, best = ends["delay_s"].iloc[0], best_peak(ends["delay_s"].iloc[0], ends["order"].iloc[0])
    with plots.figure(2, height=5.2, sharex=True) as (figure, axes):
        _draw_peaks(axes[0, 0], rows, ends, delay, best)
        losses = binned(rows[rows["metric"] == "train_loss"], ends["step"].iloc[0])
        _draw_seeds(axes[1, 0], losses, ends, delay)
        axes[1, 0].set_title("b  What the network learns meanwhile", loc="left")
        axes[1, 0].set(xlabel="updates of the network", ylabel="training loss (nats)")
        plots.log_ticks(axes[1, 0])
        names = {m: "held wrong" if m == "held" else f"learned by {m}" for m in dict.fromkeys(ends["method"])}
        lines = [Line2D([], [], **_HELD_RIGHT, label=f"held right, {delay:g} s")]
        lines += [Line2D([], [], **_STYLES[method], label=name) for method, name in names.items()]
        figure.legend(handles=lines, loc="outside upper center", ncols=2)
        note = f"{settings}. ▲ starts too short, ▼ too long.{captions.seeds(ends, 'Thick: mean; thin: seeds.')} Grey: "
        note += f"delay ± {100 * BAND:g} %. Dotted: where the update is best aligned if images are unrelated, "
        note += f"{best:.3g} s.{captions.left_out(ends)}"
        return plots.save(figure, folder, "learned-delay", note)


def _draw_peaks(axis, rows: pd.DataFrame, ends: pd.DataFrame, delay: float, best: float) -> None:
    axis.axhspan((1 - BAND) * delay, (1 + BAND) * delay, color="#000000", alpha=0.1, linewidth=0)
    axis.axhline(delay, color="#000000", linewidth=0.9)
    axis.axhline(best, color="#000000", linewidth=0.9, linestyle=":")
    _draw_seeds(axis, rows[rows["metric"] == "learned_peak_s"], ends[ends["method"] != "held"], delay)
    axis.set(yscale="log", ylabel="peak of the trace (s)")
    starts = set(ends["peak_s"])
    ticks = sorted(starts | {delay * factor for factor in (0.7, 1.4) if min(starts) < delay * factor < max(starts)})
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_title(f"a  The peak, for a delay of {delay:g} s", loc="left")


def binned(losses: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Losses of tenths of a run, which may have recorded them more often; a last part of few updates is left out."""
    chunk = max(1, steps // vision.CURVE_POINTS)
    tenth = np.ceil(losses["step"].astype(float) / chunk)
    mean = losses.assign(tenth=tenth).groupby(["run", "tenth"], as_index=False).agg(
        step=("step", "max"), value=("value", lambda values: values.mean(skipna=False))
    )  # fmt: skip
    return mean[(mean["step"] % chunk == 0) | (mean["step"] % chunk > chunk / 2)]


def _draw_seeds(axis, series: pd.DataFrame, ends: pd.DataFrame, delay: float) -> None:
    """Each seed thin, their mean over them; a run that diverged has no line."""
    for (method, start), runs in ends[~ends["lost"]].groupby(["method", "peak_s"], sort=False):
        style = _HELD_RIGHT if start == delay else _STYLES[method] | (_SHORT if start < delay else _LONG)
        found = series[series["run"].isin(runs["run"])]
        every = max(1, found["step"].nunique() // 8)
        first = list(_STYLES).index(method) * every // len(_STYLES)  # marks of different methods stand apart
        plots.curves(axis, found, style=style, markevery=(first, every))
