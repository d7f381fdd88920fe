"""The figures: what a step and a run cost, and how that grows with the order."""

import statistics

import equinox as eqx
import jax
import jax.numpy as jnp

import cetsim
from benchmarks import programs
from benchmarks.measure import compiled, interleaved, ratio
from benchmarks.programs import CNN, MLP, Network
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun

ORDERS = (1, 2, 6, 10, 20, 64)  # 1 is ET
BALANCED = (3, 6, 10)  # of cascades of which all stages are read


def figure(name: str, value: float, unit: str, limit: str, **numbers) -> dict:
    """One figure with the numbers it was computed from."""
    return {"name": name, "value": value, "unit": unit, "wanted": limit, "from": numbers}


def steps_of(network: Network, kinds: dict) -> dict:
    """Compiled steps of a network by name, plain backprop among them."""
    args = programs.inputs(network)
    kinds = {"backprop": programs.backprop} | kinds
    return {name: compiled(programs.step_with(kind, network), *args) for name, kind in kinds.items()}


def cost_of_a_step(rounds: int, repeats: int) -> list[dict]:
    """FLOPs, memory and time of a step of the MLP against backprop's, and against the literal evaluation."""
    kinds = {f"CET({order})": programs.traced(order) for order in (2, 10, 64)}
    kinds |= {"CET(10), gated": programs.traced(10, error_gate=1e-8), "CET(10), 10 s": programs.traced(10, delay=10.0)}
    kinds |= {"balanced(10)": programs.traced(10, readout="balanced")}
    steps = steps_of(MLP, kinds)
    flops = {name: step.flops for name, step in steps.items()}
    peak = {name: step.peak_bytes for name, step in steps.items()}
    times = interleaved({name: step.call for name, step in steps.items()}, rounds, repeats)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    slow = compiled(programs.step_with(programs.literal(10)), *programs.inputs())
    pair = interleaved({"literal": slow.call, "CET(10)": steps["CET(10)"].call}, 3, 2)
    against = {name: 1e3 * statistics.median(values) for name, values in pair.items()}
    against_backprop = lambda name: ratio(times, name, "backprop")  # noqa: E731
    return [
        figure("FLOPs of a CET(10) step", flops["CET(10)"] / flops["backprop"], "of backprop", "≤ 1.10", FLOPs=flops),
        figure("FLOPs, order 64 to order 2", flops["CET(64)"] / flops["CET(2)"], "ratio", "1 ± 0.02", FLOPs=flops),
        figure("peak memory", peak["CET(10)"] / peak["backprop"], "of backprop", "≤ 1.25", bytes=peak),
        figure("wall time of a CET(10) step", against_backprop("CET(10)"), "of backprop", "≤ 1.12", ms=milliseconds),
        figure("with the error gate", against_backprop("CET(10), gated"), "of backprop", "", ms=milliseconds),
        figure("at order 64", against_backprop("CET(64)"), "of backprop", "≤ 1.12", ms=milliseconds),
        figure("balanced(10)", against_backprop("balanced(10)"), "of backprop", "≤ 1.12", ms=milliseconds),
        figure("at a delay of 10 s", against_backprop("CET(10), 10 s"), "of backprop", "", ms=milliseconds),
        figure("literal evaluation", ratio(pair, "literal", "CET(10)"), "of CET(10)", "≥ 50", ms=against),
    ]


def cost_of_a_cnn_step(rounds: int) -> list[dict]:
    """FLOPs, memory and time of a step of the CNN against backprop's, with the error gate; and in the other layout."""
    gated = {"error_gate": 1e-8, "form": CNN.form}
    steps = steps_of(CNN, {f"CET({order})": programs.traced(order, **gated) for order in (2, 10, 64)})
    flops = {name: step.flops for name, step in steps.items()}
    peak = {name: step.peak_bytes for name, step in steps.items()}
    for layout in ("channels_first", "channels_last"):
        network = CNN._replace(make=lambda key, layout=layout: cetsim.nn.cnn(layout=layout, key=key))
        args = programs.inputs(network)
        steps[layout] = compiled(programs.step_with(programs.traced(10, **gated), network), *args)
    times = interleaved({name: step.call for name, step in steps.items()}, rounds, 2)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    wall, layouts = ratio(times, "CET(10)", "backprop"), ratio(times, "channels_first", "channels_last")
    return [
        figure(
            "CNN: FLOPs of a CET(10) step", flops["CET(10)"] / flops["backprop"], "of backprop", "≤ 1.15", FLOPs=flops
        ),
        figure("CNN: peak memory", peak["CET(10)"] / peak["backprop"], "of backprop", "≤ 1.25", bytes=peak),
        figure("CNN: wall time of a CET(10) step", wall, "of backprop", "≤ 1.25", ms=milliseconds),
        figure("CNN: channels first to last", layouts, "ratio", "", ms=milliseconds),
    ]


def cost_of_a_salient_step(rounds: int, repeats: int) -> list[dict]:
    """FLOPs, memory and time of a retrograde step against backprop on the same events and the pass that finds them."""
    args = programs.salient_inputs()
    kinds = {"backprop": programs.backprop_on_events}
    kinds |= {f"CET(10), {delay:g} s": programs.retrograde(10, delay) for delay in (12.0, 120.0, 12000.0)}
    steps = {name: compiled(programs.salient(kind), *args) for name, kind in kinds.items()}
    flops = {name: step.flops for name, step in steps.items()}
    peak = {name: step.peak_bytes for name, step in steps.items()}
    times = interleaved({name: step.call for name, step in steps.items()}, rounds, repeats)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    usual, near, far = "CET(10), 120 s", "CET(10), 12 s", "CET(10), 12000 s"
    wall, longer = ratio(times, usual, "backprop"), flops[far] / flops[near]
    return [
        figure("16 events of 1,280: wall time", wall, "of backprop on them", "≤ 1.5", ms=milliseconds),
        figure("FLOPs", flops[usual] / flops["backprop"], "of backprop on them", "", FLOPs=flops),
        figure("peak memory", peak[usual] / peak["backprop"], "of backprop on them", "", bytes=peak),
        figure("FLOPs at a delay of 60,000 steps to 60", longer, "ratio", "1", FLOPs=flops),
        figure("peak memory at 60,000 steps to 60", peak[far] / peak[near], "ratio", "1", bytes=peak),
    ]


def cost_against_order(rounds: int, repeats: int) -> list[dict]:
    """FLOPs, peak memory and wall time of a step at every order, and the state that the literal rule would keep."""
    rows = []
    for name, network, gate, times_each in (("MLP", MLP, 0.0, repeats), ("CNN", CNN, 1e-8, 1)):
        options = dict(error_gate=gate, form=network.form)
        kinds = {order: programs.traced(order, **options) for order in ORDERS}
        kinds |= {f"balanced {order}": programs.traced(order, readout="balanced", **options) for order in BALANCED}
        traces = {order: programs.cascade(order) for order in ORDERS}
        traces |= {f"balanced {order}": programs.cascade(order, readout="balanced") for order in BALANCED}
        steps = steps_of(network, kinds)
        times = interleaved({order: step.call for order, step in steps.items()}, rounds, times_each)
        synapses = sum(leaf.size for leaf in jax.tree.leaves(programs.inputs(network)[0]))
        for order in ("backprop", *traces):
            stages = 0 if order == "backprop" else len(traces[order].init((), compensated=False))
            rows.append(
                {
                    "network": name,
                    "order": order,
                    "FLOPs": steps[order].flops / steps["backprop"].flops,
                    "peak memory": steps[order].peak_bytes / steps["backprop"].peak_bytes,
                    "wall time": ratio(times, order, "backprop"),
                    "ms": 1e3 * statistics.median(times[order]),
                    "literal state, values a synapse": stages,
                    "literal state, MB": 4e-6 * stages * synapses,
                    "window, steps": 0 if order == "backprop" else traces[order].window(),
                }
            )
    return rows


def cost_of_a_run(run_steps: int) -> list[dict]:
    """A whole run on as many images as MNIST has, against the same run under plain backprop."""
    x = jax.random.normal(jax.random.key(0), (60_000, programs.SIZES[0]))
    labels = jax.random.randint(jax.random.key(1), (60_000,), 0, 10)
    run = SupervisedRun(MLP.make, x, labels, Settings(steps=run_steps))
    hyper = Hyperparameters(3e-4, programs.cascade(10), cetsim.FixedDelay(programs.DELAY, programs.DT))
    state = run.init(hyper, jax.random.key(2))

    @eqx.filter_jit
    def advance(run, state):
        return run.advance(state, run_steps)[0].params

    step, optimizer = programs.step_with(programs.backprop), programs.optimizer(3e-4)

    @jax.jit
    def plain(params, order, x, labels):
        def body(carry, rows):
            return step(*carry, state.buffers, x[rows], labels[rows]), None

        epochs = -(-run_steps // (x.shape[0] // programs.STEPS))
        rows = [jax.random.permutation(jax.random.fold_in(order, epoch), x.shape[0]) for epoch in range(epochs)]
        used = x.shape[0] // programs.STEPS * programs.STEPS
        rows = jnp.concatenate([row[:used] for row in rows]).reshape(-1, programs.STEPS)[:run_steps]
        return jax.lax.scan(body, (params, optimizer.init(params)), rows)[0][0]

    calls = {"CET(10)": lambda: advance(run, state), "backprop": lambda: plain(state.params, state.order, x, labels)}
    times = interleaved(calls, 3, 1)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return [
        figure(f"a run of {run_steps} steps", ratio(times, "CET(10)", "backprop"), "of backprop", "about 1", s=seconds)
    ]
