"""`python -m benchmarks`: the benchmark tables, and with `--json FILE` their figures as JSON."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import control, costs, spiking, sweeps

EPOCHS_OF_MNIST = 2340  # steps of 128 images in five epochs


@dataclass(frozen=True)
class Options:
    """Cost of the rule, 128 steps of time a batch, AdamW, next to plain backprop of the same network."""

    parts: tuple[Literal["mlp", "cnn", "salient", "orders", "run", "rl", "lunarlander", "sweep", "spiking"], ...] = (
        *("mlp", "run", "salient", "cnn", "orders"),
    )
    """mlp: a step of the 784-512-512-10 MLP; cnn: of the CIFAR-10 CNN; salient: of the MLP on 16 of 1,280 images with
    credit minutes late; orders: mlp and cnn against order; run: a whole run; rl: frames a second of control;
    lunarlander: what its simulator takes of the time (both with the extra rl);
    sweep: 32 runs in one sweep against them alone, checkpoints, overhead; spiking: a step of a spiking network against
    backprop through time."""
    other: Path | None = None
    """A Python of an environment with torch and snntorch, whose backprop through time is measured beside (spiking)."""
    json: Path | None = None
    """Also write the figures to this file."""
    rounds: int = 15
    """Rounds in which the programs take turns; ratios are medians over rounds."""
    repeats: int = 20
    """Steps of each program of the MLP in a round; 2 or 1 of the CNN."""
    run_steps: int = EPOCHS_OF_MNIST
    """Steps of the whole runs that are compared."""


def show(figures: list[dict], console: Console) -> None:
    """Prints the figures, and below them what they were computed from."""
    table = Table(title=f"128 steps a batch, AdamW; jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for heading in ("figure", "value", "wanted"):
        table.add_column(heading)
    for row in figures:
        table.add_row(row["name"], f"{row['value']:.3g} {row['unit']}", row["wanted"])
    console.print(table)
    measured = {}
    for row in figures:
        for unit, numbers in row["from"].items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            measured[f"{unit}: {shown}"] = None  # several figures share their numbers
    for line in measured:
        console.print(line)


def show_orders(rows: list[dict], console: Console) -> None:
    """Prints the cost against order; the first three columns of numbers are multiples of backprop's."""
    table = Table(title="cost of a step against order, as multiples of backprop (order 1 is ET)")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    console.print(table)


def main() -> int:
    """Measures, prints the tables and writes the JSON."""
    options = tyro.cli(Options, prog="python -m benchmarks")
    if min(options.rounds, options.repeats, options.run_steps) < 1:
        print("error: --rounds, --repeats and --run-steps must be at least 1", file=sys.stderr)
        return 2
    if options.json is not None and not os.access(options.json.resolve().parent, os.W_OK):
        print(f"error: --json must name a file in a folder that can be written, got {options.json}", file=sys.stderr)
        return 2
    if options.other is not None and "spiking" not in options.parts:
        print(f"error: --other goes with --parts spiking, got --parts {' '.join(options.parts)}", file=sys.stderr)
        return 2
    if options.other is not None and not os.access(options.other, os.X_OK):
        print(f"error: --other must be a Python that can be run, got {options.other}", file=sys.stderr)
        return 2
    console, figures, orders = Console(), [], []
    if "mlp" in options.parts:
        figures += costs.cost_of_a_step(options.rounds, options.repeats)
    if "run" in options.parts:
        figures += costs.cost_of_a_run(options.run_steps)
    if "salient" in options.parts:
        figures += costs.cost_of_a_salient_step(options.rounds, options.repeats)
    if "cnn" in options.parts:
        figures += costs.cost_of_a_cnn_step(options.rounds)
    if "rl" in options.parts:
        figures += control.frames_a_second(options.rounds) + control.memory_of_a_long_run()
    if "lunarlander" in options.parts:
        figures += control.share_of_the_simulator(options.rounds)
    if "sweep" in options.parts:
        figures += sweeps.cost_of_a_sweep()
    if "spiking" in options.parts:
        figures += spiking.cost_of_a_spiking_step(options.rounds, options.other)
    if figures:
        show(figures, console)
    if "orders" in options.parts:
        orders = costs.cost_against_order(options.rounds, options.repeats)
        show_orders(orders, console)
    if options.json is not None:
        written = figures + [{"name": "cost against order"} | row for row in orders]
        options.json.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
