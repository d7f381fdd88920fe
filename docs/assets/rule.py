"""Draws the rule, as `rule.svg` beside this file: `python docs/assets/rule.py`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import cetsim

ET, CET, SIGNAL, INK = "#b35900", "#1f4e9c", "#a01c5b", "#222222"
BOX = dict(boxstyle="round,pad=0.35", facecolor="white")
ARROW = dict(arrowstyle="-|>", color=INK, lw=1.4, shrinkA=2, shrinkB=2)


def diagram(axes) -> None:
    """Activity, stages in series, the trace, and the signal that meets it."""
    axes.set(xlim=(0, 10), ylim=(0.1, 3.3))
    axes.set_axis_off()
    places = [(0.95, "activity\ne = f'(z) x"), (3.0, "stage 1"), (4.6, "stage 2"), (5.55, "···"), (6.5, "stage n")]
    for x, text in places:
        box = None if text == "···" else BOX | dict(edgecolor=CET if "stage" in text else INK)
        axes.text(x, 2.6, text, ha="center", va="center", fontsize=11, bbox=box)
    for start, end in ((1.75, 2.45), (3.55, 4.05), (5.15, 5.4), (5.7, 5.95), (7.05, 7.85)):
        axes.annotate("", (end, 2.6), (start, 2.6), arrowprops=ARROW)
    axes.text(8.75, 2.6, "trace\nof e, late", ha="center", va="center", fontsize=11, bbox=BOX | dict(edgecolor=CET))
    axes.text(4.75, 3.12, "each stage leaks: dh/dt = -α h + what comes in", ha="center", fontsize=10, color=CET)
    axes.text(4.75, 1.0, "learning signal L\n(error or reward)", ha="center", va="center", fontsize=11,
              bbox=BOX | dict(edgecolor=SIGNAL))  # fmt: skip
    axes.text(1.2, 1.0, "what the network\ndid", ha="center", va="center", fontsize=11, bbox=BOX)
    axes.annotate("", (3.75, 1.0), (2.15, 1.0), arrowprops=ARROW | dict(color=SIGNAL, linestyle="--"))
    axes.text(2.95, 1.18, "comes D late", ha="center", fontsize=10, color=SIGNAL)
    axes.text(8.6, 1.0, "ΔW = −rate × Σ L × trace", ha="center", va="center", fontsize=11,
              bbox=BOX | dict(edgecolor=INK, facecolor="#eef3fb"))  # fmt: skip
    axes.annotate("", (7.05, 1.0), (5.75, 1.0), arrowprops=ARROW | dict(color=SIGNAL))
    axes.annotate("", (8.75, 1.4), (8.75, 2.1), arrowprops=ARROW | dict(color=CET))


def memories(axes) -> None:
    """What an exponential and a cascading trace keep of one event, and when its signal comes."""
    seconds = np.arange(0, 10, 0.02)
    exponential = cetsim.ExponentialTrace(4.0, dt=0.02)
    traces = {"one stage: exponential trace": (exponential, ET)}
    traces |= {f"{order} stages: CET({order})": (cetsim.CascadingTrace(order, 4.0, dt=0.02), CET) for order in (2, 10)}
    for (label, (trace, colour)), style in zip(traces.items(), ("-", "--", "-"), strict=True):
        weights = np.asarray(trace.weights(np.arange(len(seconds))))
        axes.plot(seconds, weights / weights.max(), style, color=colour, label=label)
    axes.axvline(4, color=SIGNAL, linestyle=":", label="the signal comes, D = 4 s late")
    axes.set(xlabel="time since the event (s)", ylabel="what the trace\nholds of it", ylim=(0, 1.05), xlim=(0, 10))
    axes.set_yticks([0, 1])
    axes.legend(frameon=False, fontsize=10, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)


def draw(path: Path) -> None:
    """Both parts, one above the other."""
    with plt.rc_context({"svg.hashsalt": "cetsim", "font.size": 11}):
        figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.4), height_ratios=(1.25, 1), layout="constrained")
        diagram(above)
        memories(below)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
