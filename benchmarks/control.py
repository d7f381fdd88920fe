"""The figures of reinforcement learning: frames a second, and what a simulator on the host takes of them."""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

import cetsim
from benchmarks.a2c import plain_a2c
from benchmarks.costs import figure
from benchmarks.measure import interleaved, ratio
from cetsim import rl

DT, UPDATES = 0.2, 20  # seconds a step, updates in a row
PLAIN = "a plain A2C"


def frames_a_second(rounds: int) -> list[dict]:
    """CartPole, 4 environments, rollouts of 128, hidden 256-256, one seed; programs taking turns, a plain A2C too."""
    environment = rl.environments.split_signs(rl.environments.cartpole())
    run = rl.ActorCriticRun(environment, rl.Settings(updates=10_000))
    kinds = {
        "no delay": rl.without_delay(1e-4, DT),
        **{f"CET(10), {steps} steps late": _late(steps) for steps in (40, 640)},
        "CET(2), 640 steps late": _late(640, 2),
        "delay line, 40 steps late": _line(40),
    }
    compiled, compile_s = {}, {}
    for name, hyper in kinds.items():
        state = run.init(hyper, jax.random.key(0))
        compiled[name], compile_s[name] = _compiled(lambda state: run.advance(state, UPDATES), state)
    init, advance = plain_a2c(1e-4)
    compiled[PLAIN], compile_s[PLAIN] = _compiled(lambda state: advance(state, UPDATES), init(jax.random.key(0)))
    times = interleaved(compiled, rounds, 1)
    frames = UPDATES * run.settings.frames
    rates = {name: frames / statistics.median(values) for name, values in times.items()}
    near, far = "CET(10), 40 steps late", "CET(10), 640 steps late"
    to = lambda name, base: 1 / ratio(times, name, base)  # noqa: E731
    compiling = max(compile_s[near], compile_s[far]) / compile_s[PLAIN]
    return [
        figure("CartPole, CET(10) at a delay of 40 steps", rates[near], "frames/s", "≥ 20,000", fps=rates),
        figure("CartPole, CET(10) at a delay of 640 steps", rates[far], "frames/s", "≥ 8,000", fps=rates),
        figure("CET(10) at 40 steps, to no delay", to(near, "no delay"), "of its rate", "≥ 0.85", fps=rates),
        figure("CET(10) at 640 steps, to no delay", to(far, "no delay"), "of its rate", "≥ 0.45", fps=rates),
        figure("no delay, to a plain A2C", to("no delay", PLAIN), "of its rate", "≥ 0.8", fps=rates),
        figure("compiling a run, to the plain A2C's", compiling, "ratio", "≤ 1.5", seconds=compile_s),
    ]


def _compiled(function, state) -> tuple[Callable, float]:
    """A call that runs the compiled function on `state`, and the seconds that compiling took, tracing included.

    They mean something only where JAX's compilation cache is off.
    """
    arrays, rest = eqx.partition(state, eqx.is_array)
    began = time.perf_counter()
    program = jax.jit(lambda arrays: function(eqx.combine(arrays, rest))).lower(arrays).compile()
    seconds = time.perf_counter() - began
    return lambda: program(arrays), seconds


def _late(steps: int, order: int = 10) -> rl.Hyperparameters:
    delay = steps * DT
    return rl.Hyperparameters(1e-4, cetsim.CascadingTrace(order, delay, DT), cetsim.FixedDelay(delay, DT, delay))


def _line(steps: int) -> rl.Hyperparameters:
    delay = steps * DT
    return rl.Hyperparameters(1e-4, cetsim.DelayLine(delay, DT, delay), cetsim.FixedDelay(delay, DT, delay))


def memory_of_a_long_run() -> list[dict]:
    """CartPole, CET(10) 40 steps late: memory that the process holds after 5M frames, to after 100,000."""
    run = rl.ActorCriticRun(rl.environments.split_signs(rl.environments.cartpole()), rl.Settings(updates=10_000))
    advance, state = eqx.filter_jit(lambda state: run.advance(state, UPDATES)), run.init(_late(40), jax.random.key(0))
    frames, held = 0, {}
    for wanted in (100_000, 1_000_000, 5_000_000):
        while frames < wanted:
            state, _ = jax.block_until_ready(advance(state))
            frames += UPDATES * run.settings.frames
        held[frames] = _resident()
    first, *_, last = held.values()
    return [figure("CartPole, memory after 5M frames to after 100,000", last / first, "ratio", "1", mebibytes=held)]


def _resident() -> float:
    """Memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def share_of_the_simulator(rounds: int) -> list[dict]:
    """LunarLander: time in Box2D, of all time, with CET(10) 40 steps late."""
    run = rl.HostRun(rl.from_gymnasium("LunarLander-v3", split=True), rl.Settings(updates=10_000))
    state, _ = run.advance(run.init(_late(40), jax.random.key(0)), 2)  # compiles
    shares, rates = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        state, metrics = run.advance(state, UPDATES)
        spent = float(jnp.sum(metrics.simulator_s))  # waits for all
        seconds = time.perf_counter() - began
        shares.append(spent / seconds)
        rates.append(UPDATES * run.settings.frames / seconds)
    share, rate = statistics.median(shares), statistics.median(rates)
    return [figure("LunarLander, time in the simulator", share, "of all", "≥ 0.5", fps={"LunarLander": rate})]
