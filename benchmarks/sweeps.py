"""The figures of sweeps: what a sweep takes beside its training, checkpoints, and runs a second against the batch."""

import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax

import cetsim
from benchmarks import programs
from benchmarks.costs import figure
from cetsim import sweep
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from cetsim.sweep import checkpoint, runner
from cetsim.sweep.training import Trainer

EPOCH = 468  # steps of 128 images, as many as MNIST has
CONDITIONS = sweep.grid(order=(2, 6, 10, 20), delay=(0.2, 1.0, 4.0, 10.0), seed=range(2))
TRIVIAL = 200  # conditions in which nothing is trained


def cost_of_a_sweep(batches: tuple[int, ...] = (1, 4)) -> list[dict]:
    """32 runs of one epoch of the MLP, in one sweep and one after the other; by batch of conditions."""
    training = _training()
    alone = _alone(training)
    total = sum(alone)
    wall, compiling = {}, {}
    for batch in batches:
        compiling[batch] = _compiling(training, batch)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            _quietly(folder, CONDITIONS, training, batch)
            wall[batch] = time.perf_counter() - began
    best = min(batches, key=lambda batch: wall[batch] - compiling[batch])
    ratio = (wall[best] - compiling[best]) / total
    seconds = {"alone, all": total, **{f"batch {batch}": wall[batch] for batch in batches}}
    seconds |= {f"compiling for batch {batch}": compiling[batch] for batch in batches}
    rates = {f"batch {batch}": len(CONDITIONS) / (wall[batch] - compiling[batch]) for batch in batches}
    return [
        figure(f"32 runs of one epoch in a sweep, {best} at once", ratio, "of them alone", "≤ 1.25", s=seconds),
        figure("runs of one epoch a second", rates[f"batch {best}"], "runs/s", "", runs_per_s=rates),
        _cost_of_checkpoints(training),
        _overhead(),
    ]


def _training() -> sweep.Training:
    x = jax.random.normal(jax.random.key(0), (60_000, programs.SIZES[0]))
    labels = jax.random.randint(jax.random.key(1), (60_000,), 0, 10)
    make_model = lambda key: cetsim.nn.mlp(programs.SIZES, key=key)  # noqa: E731
    run = SupervisedRun(make_model, x, labels, Settings(steps=EPOCH))

    def hyperparameters(condition):
        trace = cetsim.CascadingTrace(condition["order"], condition["delay"], programs.DT).tabulate(programs.STEPS)
        return Hyperparameters(3e-4, trace, cetsim.FixedDelay(condition["delay"], programs.DT))

    test = eqx.Partial(run.evaluate, x=x[:10_000], labels=labels[:10_000])
    return sweep.Training(run.init, run.advance, test, EPOCH, EPOCH // 4, hyperparameters)


def _alone(training: sweep.Training) -> list[float]:
    """Seconds of each run, compiled before, with nothing around it."""
    init, advance, evaluate = (eqx.filter_jit(f) for f in (training.init, training.advance, training.evaluate))

    def train(condition):
        state = init(training.arrays(condition), jax.random.key(condition["seed"]))
        for _ in range(4):
            state, _ = advance(state, EPOCH // 4)
            measured = evaluate(state)
        return jax.block_until_ready(measured)

    train(CONDITIONS[0])
    return [_seconds(lambda condition=condition: train(condition)) for condition in CONDITIONS]


def _compiling(training: sweep.Training, batch: int) -> float:
    """Seconds that compiling adds to the first batch."""
    program, slots = Trainer(training, batch, tuple(jax.local_devices()[:1])), CONDITIONS[:batch]
    made = []
    first = _seconds(lambda: made.append(program.begin(slots))) + _seconds(
        lambda: made.append(program.advance(made[0], 0, EPOCH // 4)[0])
    )
    again = _seconds(lambda: program.begin(slots))
    later = _seconds(lambda: program.advance(made[1], EPOCH // 4, EPOCH // 2))
    return first - again - later


def _cost_of_checkpoints(training: sweep.Training) -> dict:
    """What checkpoints take of a run that lasts, at the pace at which they are made."""
    run = eqx.filter_jit(training.init)(training.arrays(CONDITIONS[0]), jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        saves = [_seconds(lambda step=step: checkpoint.save(Path(folder), step, run)) for step in range(1, 6)]
    once = statistics.median(saves)
    every = max(runner.EVERY, runner.SHARE * once)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run) if eqx.is_array(leaf) and leaf.dtype != run.order.dtype)
    seconds = {"one checkpoint": once, "between two": every}
    of = {"s": seconds, "MB": {"size": size / 1e6}}
    return figure("checkpoints of a run of the MLP", once / every, "of its time", "< 0.03", **of)


def _overhead() -> dict:
    """What a sweep takes for a condition beside training it: naming, batching, recording, telling."""
    nothing = sweep.Training(lambda hyper, key: hyper["x"], lambda x, steps: (x, x), None, 1)
    with tempfile.TemporaryDirectory() as folder:
        conditions = sweep.grid(x=[float(i) for i in range(TRIVIAL)])
        _quietly(Path(folder) / "first", conditions[:1], nothing, 1)
        each = _seconds(lambda: _quietly(Path(folder) / "all", conditions, nothing, 1)) / TRIVIAL
    return figure("a sweep's own time for a condition", each * 1e3, "ms", "< 50", ms={"a condition": each * 1e3})


def _quietly(folder, conditions: list[dict], training: sweep.Training, batch: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        sweep.run(folder, conditions, training, batch=batch)


def _seconds(call) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
