"""A sweep that any test can afford; as a script it runs alone, or as one of several processes joined to one sweep.

python toy_sweep.py FOLDER [COORDINATOR PROCESSES INDEX]
"""

import sys

import jax
import jax.numpy as jnp

from cetsim import sweep
from cetsim.sweep.records import Records

CONDITIONS = sweep.grid(learning_rate=(0.1, 0.01), seed=range(3))


def init(hyper, key):
    return {"w": jax.random.normal(key, (3,)), "rate": hyper["learning_rate"], "done": jnp.zeros((), int)}


def advance(state, steps):
    def step(state, _):
        loss = jnp.sum(state["w"] ** 2)
        return state | {"w": state["w"] * (1 - 2 * state["rate"]), "done": state["done"] + 1}, loss

    return jax.lax.scan(step, state, length=steps)


def evaluate(state):
    return {"norm": jnp.linalg.norm(state["w"])}


DESCENT = sweep.Training(init, advance, evaluate, steps=20, every=8)


def rows_of(folder):
    """Rows by run, but for those of wall time."""
    keep = lambda row: row["metric"] != "wall_s"  # noqa: E731
    return {key: list(filter(keep, record["rows"])) for key, record in Records(folder).records.items()}


def main(folder, *joined):
    if joined:
        coordinator, processes, index = joined
        print("shard", sweep.initialize(coordinator, int(processes), int(index)))
    sweep.run(folder, CONDITIONS, DESCENT, batch=3, checkpoint_every=0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
