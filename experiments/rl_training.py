"""Training of conditions on reinforcement learning, those of one program at once, and what is measured on the way."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim.rl import ActorCriticRun, policy_alignment
from cetsim.rl.host import HostRun
from cetsim.rl.vector_env import HostEnvironment
from cetsim.sweep.devices import over_lanes, place
from cetsim.sweep.runner import Program
from experiments.records import number
from experiments.rl_conditions import RLCondition, Stage, open_environment

POINTS = 50  # of a learning curve
MEASURED = 5  # moments at which alignment, entropy and loss are measured
ROLLOUTS = 16  # over which alignment is measured
MAX_STEPS = 10_000  # of an episode of the evaluation
EVALUATION_KEY = 1  # folded into a run's key
ALIGNMENT_KEY = 2


def program_of(stage: Stage, condition: RLCondition) -> tuple:
    """What is compiled: all but the learning rate and the seed."""
    return condition.trace, condition.order, condition.delay_s, condition.retrograde, condition.beta


class Trainer(Program):
    """Trains `width` conditions of one program at once; in a simulator on the host, one.

    **Arguments:** `stage`: what is trained on and measured. `like`: a condition of the program. `width`: its lanes.
    """

    def __init__(self, stage: Stage, like: RLCondition, width: int):
        self.stage, self.width = stage, width
        self.hyper = stage.hyperparameters(like)  # concrete, so that windows are known
        environment = open_environment(stage.options)
        self.on_host = isinstance(environment, HostEnvironment)
        if self.on_host and width > 1:
            raise ValueError(f"a simulator on the host must be run one condition at a time, got {width}")
        self.run = (HostRun if self.on_host else ActorCriticRun)(environment, stage.settings())
        self.ends = np.unique(np.linspace(0, stage.updates, POINTS + 1).round().astype(int))[1:].tolist()
        self.measured_at = {*self.ends[POINTS // MEASURED - 1 :: POINTS // MEASURED], stage.updates}
        # Runs are mapped over learning rates and keys alone: the trace is the same for all, and what depends on it.
        self._mapped_init = jax.jit(over_lanes(lambda rate, key: self.run.init(self._with_rate(rate), key)))
        advance = lambda state, updates: self.run.advance(self._with_trace(state), updates)  # noqa: E731
        self._mapped_advance = eqx.filter_jit(
            lambda state, updates: over_lanes(lambda own: advance(own, updates))(state)
        )
        evaluate = lambda state, key: self.run.evaluate(state, key, stage.options.episodes, MAX_STEPS)  # noqa: E731
        self._mapped_evaluate = jax.jit(over_lanes(evaluate))
        align = lambda state, key: policy_alignment(self.run, self._with_trace(state), key, ROLLOUTS)  # noqa: E731
        self._mapped_align = jax.jit(over_lanes(align))

    def _with_rate(self, rate):
        return eqx.tree_at(lambda hyper: hyper.learning_rate, self.hyper, rate)

    def _with_trace(self, state):
        """The state with the trace and the delay as constants."""
        where = lambda state: (state.agent.hyper.trace, state.agent.hyper.delay)  # noqa: E731
        return eqx.tree_at(where, state, (self.hyper.trace, self.hyper.delay))

    def begin(self, lanes: list[RLCondition]):
        """The runs before their first update."""
        rates, keys = [condition.learning_rate for condition in lanes], _keys(lanes)
        if self.on_host:
            return self.run.init(self._with_rate(jnp.asarray(rates[0])), keys[0])
        return self._mapped_init(*place((jnp.asarray(rates), jnp.stack(keys))))

    def advance(self, state, lanes: list[RLCondition], start: int, end: int):
        """The runs after the updates from `start` to `end`, and what was measured of each."""
        rows: list[list[dict]] = [[] for _ in lanes]
        state, told = self._advance(state, end - start)
        frames = end * self.stage.options.frames_of_update
        finished = np.sum(told.finished, axis=-1)
        mean = np.where(finished > 0, np.sum(told.returns, axis=-1) / np.maximum(finished, 1), np.nan)
        self._add(rows, "return", frames, mean)
        if end in self.measured_at:
            self._add(rows, "entropy", frames, np.mean(told.entropy, axis=-1))
            self._add(rows, "value_loss", frames, np.mean(told.value_loss, axis=-1))
            self._align(rows, state, _keys(lanes), frames)
        if end == self.stage.updates:
            self._evaluate(rows, state, _keys(lanes))
            self._add(rows, "diverged", self.stage.steps, state.agent.diverged)
        return state, rows

    def save(self, state):
        """The state as arrays; in a simulator on the host also what its world is brought back by."""
        return self.run.save(state) if self.on_host else (state, {})

    def restore(self, tree, notes):
        """The state that was saved, on the devices it was on."""
        return self.run.restore(tree, notes) if self.on_host else place(tree)

    def _advance(self, state, updates: int):
        return (self.run.advance if self.on_host else self._mapped_advance)(state, updates)

    def _align(self, rows, state, keys, frames):
        """Cosines with the policy gradient that comes at once, layer by layer."""
        if self.stage.measured_on != "test":
            return
        keys = [jax.random.fold_in(jax.random.fold_in(key, ALIGNMENT_KEY), frames) for key in keys]
        if self.on_host:
            cosines = np.asarray(policy_alignment(self.run, state, keys[0], ROLLOUTS))[None]
        else:
            cosines = np.asarray(self._mapped_align(state, jnp.stack(keys)))
        for layer in range(cosines.shape[-1]):
            self._add(rows, "alignment", frames, cosines[:, layer], layer=f"layers.{layer}")

    def _evaluate(self, rows, state, keys):
        episodes, keys = self.stage.options.episodes, [jax.random.fold_in(key, EVALUATION_KEY) for key in keys]
        if self.on_host:
            returns = np.asarray(self.run.evaluate(state, keys[0], episodes))[None]
        else:
            returns = np.asarray(self._mapped_evaluate(state, jnp.stack(keys)))
        self._add(rows, f"{self.stage.measured_on}_return", self.stage.steps, returns.mean(axis=1))
        self._add(rows, f"{self.stage.measured_on}_return_sd", self.stage.steps, returns.std(axis=1))

    def _add(self, rows, metric, step, values, **more):
        for own, value in zip(rows, np.atleast_1d(values), strict=True):
            own.append({"metric": metric, "step": step, "value": number(value)} | more)


def _keys(lanes: list[RLCondition]) -> list:
    return [jax.random.key(condition.seed) for condition in lanes]
