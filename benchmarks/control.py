"""The figures of reinforcement learning: frames a second, and what a simulator on the host takes of them."""

import statistics
import time

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
    sizes = _sizes(run, states[far])
    return [
        figure("CartPole, CET(10) at a delay of 40 steps", rates[near], "frames/s", "≥ 20,000", fps=rates),
        figure("CartPole, CET(10) at a delay of 640 steps", rates[far], "frames/s", "≥ 8,000", fps=rates),
        figure("CET(10) at 40 steps, to no delay", rates[near] / base, "of its rate", "≥ 0.4", fps=rates),
        figure(
            "state of a run after 3 updates, to before", sizes[1] / sizes[0], "ratio", "1", bytes=dict(enumerate(sizes))
        ),
    ]


def _late(steps: int, order: int = 10) -> rl.Hyperparameters:
    delay = steps * DT
    return rl.Hyperparameters(1e-4, cetsim.CascadingTrace(order, delay, DT), cetsim.FixedDelay(delay, DT, delay))


def _line(steps: int) -> rl.Hyperparameters:
    delay = steps * DT
    return rl.Hyperparameters(1e-4, cetsim.DelayLine(delay, DT, delay), cetsim.FixedDelay(delay, DT, delay))


def _sizes(run: rl.ActorCriticRun, state) -> list[int]:
    """Bytes of a run's state before and after some updates: nothing grows with its length."""
    after = eqx.filter_jit(lambda state: run.advance(state, 3)[0])(state)
    count = lambda state: sum(jnp.asarray(leaf).nbytes for leaf in jax.tree.leaves(jax.tree.map(_plain, state)))  # noqa: E731
    return [count(state), count(after)]


def _plain(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


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
