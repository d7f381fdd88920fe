"""The figures of reinforcement learning: frames a second, and what a simulator on the host takes of them."""

import resource
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

import cetsim
from benchmarks.costs import figure
from benchmarks.measure import interleaved
from cetsim import rl

DT, UPDATES = 0.2, 20  # seconds a step, updates in a row


def frames_a_second(rounds: int) -> list[dict]:
    """CartPole, 4 environments, rollouts of 128, hidden 256-256, one seed; programs taking turns."""
    environment = rl.environments.split_signs(rl.environments.cartpole())
    run = rl.ActorCriticRun(environment, rl.Settings(updates=10_000))
    kinds = {
        "no delay": rl.without_delay(1e-4, DT),
        **{f"CET(10), {steps} steps late": _late(steps) for steps in (40, 640)},
        "CET(2), 640 steps late": _late(640, 2),
        "delay line, 40 steps late": _line(40),
    }
    advance = eqx.filter_jit(lambda state: run.advance(state, UPDATES))
    states = {name: run.init(hyper, jax.random.key(0)) for name, hyper in kinds.items()}
    calls = {name: lambda state=state: advance(state) for name, state in states.items()}
    times = interleaved(calls, rounds, 1)
    frames = UPDATES * run.settings.frames
    rates = {name: frames / statistics.median(values) for name, values in times.items()}
    base = rates["no delay"]
    near, far = "CET(10), 40 steps late", "CET(10), 640 steps late"
    return [
        figure("CartPole, CET(10) at a delay of 40 steps", rates[near], "frames/s", "≥ 20,000", fps=rates),
        figure("CartPole, CET(10) at a delay of 640 steps", rates[far], "frames/s", "≥ 8,000", fps=rates),
        figure("CET(10) at 40 steps, to no delay", rates[near] / base, "of its rate", "≥ 0.4", fps=rates),
    ]


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
        state, told = run.advance(state, UPDATES)
        spent = float(jnp.sum(told.simulator_s))  # waits for all
        seconds = time.perf_counter() - began
        shares.append(spent / seconds)
        rates.append(UPDATES * run.settings.frames / seconds)
    share, rate = statistics.median(shares), statistics.median(rates)
    return [figure("LunarLander, time in the simulator", share, "of all", "≥ 0.5", fps={"LunarLander": rate})]
