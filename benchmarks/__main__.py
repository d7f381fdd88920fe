"""`python -m benchmarks`: the benchmark table, and with `--json FILE` its figures as JSON."""

import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import cetsim
from benchmarks import programs
from benchmarks.measure import compiled, interleaved, ratio
from cetsim.train import Hyperparameters, Settings, SupervisedRun

EPOCHS_OF_MNIST = 2340  # steps of 128 images in five epochs


@dataclass(frozen=True)
class Options:
    """Cost of the rule on the 784-512-512-10 MLP, 128 steps of time a batch, AdamW, next to plain backprop."""

    json: Path | None = None
    """Also write the figures to this file."""
    rounds: int = 15
    """Rounds in which the programs take turns; ratios are medians over rounds."""
    repeats: int = 20
    """Steps of each program in a round."""
    run_steps: int = EPOCHS_OF_MNIST
    """Steps of the whole runs that are compared."""


def figure(name: str, value: float, unit: str, limit: str, **numbers) -> dict:
    """One figure with the numbers it was computed from."""
    return {"name": name, "value": value, "unit": unit, "wanted": limit, "from": numbers}


def cost_of_a_step(options: Options) -> list[dict]:
    """FLOPs, memory and time of a step against backprop's, and against the literal evaluation."""
    args = programs.inputs()
    steps = {"backprop": compiled(programs.step_with(programs.backprop), *args)}
    for order in (2, 10, 64):
        steps[f"CET({order})"] = compiled(programs.step_with(programs.traced(order)), *args)
    steps["CET(10), gated"] = compiled(programs.step_with(programs.traced(10, error_gate=1e-8)), *args)
    steps["CET(10), 10 s"] = compiled(programs.step_with(programs.traced(10, delay=10.0)), *args)
    flops = {name: step.flops for name, step in steps.items()}
    peak = {name: step.peak_bytes for name, step in steps.items()}
    times = interleaved({name: step.call for name, step in steps.items()}, options.rounds, options.repeats)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    slow = compiled(programs.step_with(programs.literal(10)), *args)
    pair = interleaved({"literal": slow.call, "CET(10)": steps["CET(10)"].call}, 3, 2)
    against = {name: 1e3 * statistics.median(values) for name, values in pair.items()}
    against_backprop = lambda name: ratio(times, name, "backprop")  # noqa: E731
    return [
        figure("FLOPs of a CET(10) step", flops["CET(10)"] / flops["backprop"], "of backprop", "≤ 1.10", FLOPs=flops),
        figure("FLOPs, order 64 to order 2", flops["CET(64)"] / flops["CET(2)"], "ratio", "1 ± 0.02", FLOPs=flops),
        figure("peak memory", peak["CET(10)"] / peak["backprop"], "of backprop", "≤ 1.25", bytes=peak),
        figure("wall time of a CET(10) step", against_backprop("CET(10)"), "of backprop", "≤ 1.30", ms=milliseconds),
        figure("with the error gate", against_backprop("CET(10), gated"), "of backprop", "", ms=milliseconds),
        figure("at order 64", against_backprop("CET(64)"), "of backprop", "", ms=milliseconds),
        figure("at a delay of 10 s", against_backprop("CET(10), 10 s"), "of backprop", "", ms=milliseconds),
        figure("literal evaluation", ratio(pair, "literal", "CET(10)"), "of CET(10)", "≥ 50", ms=against),
    ]


def cost_of_a_run(options: Options) -> list[dict]:
    """A whole run on as many images as MNIST has, against the same run under plain backprop."""
    x = jax.random.normal(jax.random.key(0), (60_000, programs.SIZES[0]))
    labels = jax.random.randint(jax.random.key(1), (60_000,), 0, 10)
    settings = Settings(steps=options.run_steps)
    make_model = lambda key: cetsim.nn.mlp(programs.SIZES, key=key)  # noqa: E731
    run = SupervisedRun(make_model, x, labels, settings)
    trace = cetsim.CascadingTrace(10, programs.DELAY, programs.DT)
    hyper = Hyperparameters(3e-4, trace, cetsim.FixedDelay(programs.DELAY, programs.DT))
    state = run.init(hyper, jax.random.key(2))

    @eqx.filter_jit
    def advance(run, state):
        return run.advance(state, options.run_steps)[0].params

    step, optimizer = programs.step_with(programs.backprop), programs.optimizer(3e-4)

    @jax.jit
    def plain(params, order, x, labels):
        def body(carry, rows):
            return step(*carry, x[rows], labels[rows]), None

        epochs = -(-options.run_steps // (x.shape[0] // programs.STEPS))
        rows = [jax.random.permutation(jax.random.fold_in(order, epoch), x.shape[0]) for epoch in range(epochs)]
        used = x.shape[0] // programs.STEPS * programs.STEPS
        rows = jnp.concatenate([row[:used] for row in rows]).reshape(-1, programs.STEPS)[: options.run_steps]
        return jax.lax.scan(body, (params, optimizer.init(params)), rows)[0][0]

    calls = {"CET(10)": lambda: advance(run, state), "backprop": lambda: plain(state.params, state.order, x, labels)}
    times = interleaved(calls, 3, 1)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    name = f"a run of {options.run_steps} steps"
    return [figure(name, ratio(times, "CET(10)", "backprop"), "of backprop", "about 1", s=seconds)]


def show(figures: list[dict]) -> None:
    """Prints the figures, and below them what they were computed from."""
    device = jax.devices()[0].device_kind
    table = Table(title=f"MLP 784-512-512-10, 128 steps a batch, AdamW; jax {jax.__version__}, {device}")
    for heading in ("figure", "value", "wanted"):
        table.add_column(heading)
    for row in figures:
        table.add_row(row["name"], f"{row['value']:.3g} {row['unit']}", row["wanted"])
    console = Console()
    console.print(table)
    measured = {}
    for row in figures:
        for unit, numbers in row["from"].items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            measured[f"{unit}: {shown}"] = None  # several figures share their numbers
    for line in measured:
        console.print(line)


def main() -> int:
    """Measures, prints the table and writes the JSON."""
    options = tyro.cli(Options, prog="python -m benchmarks")
    if min(options.rounds, options.repeats, options.run_steps) < 1:
        print("error: --rounds, --repeats and --run-steps must be at least 1", file=sys.stderr)
        return 2
    if options.json is not None and not os.access(options.json.resolve().parent, os.W_OK):
        print(f"error: --json must name a file in a folder that can be written, got {options.json}", file=sys.stderr)
        return 2
    figures = cost_of_a_step(options) + cost_of_a_run(options)
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
