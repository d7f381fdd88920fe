"""How things are measured: XLA's own analysis of a compiled step, and wall times interleaved in one run."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax


class Compiled(NamedTuple):
    """A compiled step. **Fields:** `call`: runs it. `flops`, `peak_bytes`: by XLA's analysis (a loop's body once)."""

    call: Callable
    flops: float
    peak_bytes: int


def compiled(function: Callable, *args) -> Compiled:
    """Compiles `function` for `args`, which `call` runs it on."""
    program = jax.jit(function).lower(*args).compile()
    cost = program.cost_analysis()
    return Compiled(lambda: program(*args), cost["flops"], peak_bytes(program))


def peak_bytes(program) -> int:
    """What a compiled program takes: its arguments, its outputs and all that it allocates itself.

    XLA's own `peak_memory_in_bytes` leaves out the last on CPU, such as activations and the past of a loop.
    """
    memory = program.memory_analysis()
    shared = memory.alias_size_in_bytes  # outputs in the place of arguments
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - shared


def seconds(call: Callable, repeats: int) -> float:
    """Mean wall time of a call, over `repeats` in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / repeats


def interleaved(calls: dict[str, Callable], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Wall times of each call in every round, the calls taking turns so that a slow spell hits all of them."""
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats))
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of one call's time as a multiple of another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
