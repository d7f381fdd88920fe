"""Training of conditions on reinforcement learning, those of one program at once, and what is measured on the way."""

import itertools
import math
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim.rl import ActorCriticRun, policy_alignment
from cetsim.rl.host import HostEnvironment, HostRun
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


class Trainer:
    """Trains up to `width` conditions of one program at once; in a simulator on the host, one after the other."""

    def __init__(self, stage: Stage, condition: RLCondition, width: int):
        self.stage, self.width = stage, width
        self.hyper = stage.hyperparameters(condition)  # concrete, so that windows are known
        environment = open_environment(stage.options)
        self.on_host = isinstance(environment, HostEnvironment)
        self.run = (HostRun if self.on_host else ActorCriticRun)(environment, stage.settings())
        self.late = math.ceil(round(stage.options.longest / stage.options.dt) / self.run.settings.rollout)
        # Runs are mapped over learning rates and keys alone: the trace is the same for all, and what depends on it.
        self._mapped_init = jax.jit(jax.vmap(lambda rate, key: self.run.init(self._with_rate(rate), key)))
        advance = lambda state, updates: self.run.advance(self._with_trace(state), updates)  # noqa: E731
        self._mapped_advance = eqx.filter_jit(lambda state, updates: jax.vmap(lambda own: advance(own, updates))(state))
        evaluate = lambda state, key: self.run.evaluate(state, key, stage.options.episodes, MAX_STEPS)  # noqa: E731
        self._mapped_evaluate = jax.jit(jax.vmap(evaluate))
        align = lambda state, key: policy_alignment(self.run, self._with_trace(state), key, ROLLOUTS, self.late)  # noqa: E731
        self._mapped_align = jax.jit(jax.vmap(align))

    def _with_rate(self, rate):
        return eqx.tree_at(lambda hyper: hyper.learning_rate, self.hyper, rate)

    def _with_trace(self, state):
        """The state with the trace and the delay as constants."""
        where = lambda state: (state.agent.hyper.trace, state.agent.hyper.delay)  # noqa: E731
        return eqx.tree_at(where, state, (self.hyper.trace, self.hyper.delay))

    def train(self, conditions: list[RLCondition], on_progress) -> list[tuple[list[dict], bool, float]]:
        """Trains the conditions from scratch.

        **Arguments:** `conditions`: at most `width`. `on_progress`: called with frames, summed over conditions.

        **Returns:** for each condition its rows, whether it diverged, and its share of the seconds this took.
        """
        if self.on_host:
            return [self._train([condition], on_progress)[0] for condition in conditions]
        return self._train(conditions, on_progress)

    def _train(self, conditions, on_progress):
        began = time.perf_counter()
        rows: list[list[dict]] = [[] for _ in conditions]
        padded = conditions + [conditions[-1]] * (0 if self.on_host else self.width - len(conditions))
        keys = [jax.random.key(condition.seed) for condition in padded]
        state = self._init([condition.learning_rate for condition in padded], keys)
        updates = self.stage.updates
        ends = np.unique(np.linspace(0, updates, POINTS + 1).round().astype(int))
        for point, (start, end) in enumerate(itertools.pairwise(ends.tolist()), 1):
            state, told = self._advance(state, end - start)
            frames = end * self.stage.options.frames_of_update
            finished = np.sum(told.finished, axis=-1)
            mean = np.where(finished > 0, np.sum(told.returns, axis=-1) / np.maximum(finished, 1), np.nan)
            self._add(rows, "return", frames, mean)
            if point % (POINTS // MEASURED) == 0 or end == updates:
                self._add(rows, "entropy", frames, np.mean(told.entropy, axis=-1))
                self._add(rows, "value_loss", frames, np.mean(told.value_loss, axis=-1))
                self._align(rows, state, keys, frames)
            on_progress((end - start) * self.stage.options.frames_of_update * len(conditions))
        self._evaluate(rows, state, keys)
        diverged = np.atleast_1d(state.agent.diverged)
        self._add(rows, "diverged", self.stage.steps, diverged)
        seconds = (time.perf_counter() - began) / len(conditions)
        return [(own, bool(diverged[i]), seconds) for i, own in enumerate(rows)]

    def _init(self, rates, keys):
        if self.on_host:
            return self.run.init(self._with_rate(jnp.asarray(rates[0])), keys[0])
        return self._mapped_init(jnp.asarray(rates), jnp.stack(keys))

    def _advance(self, state, updates: int):
        return (self.run.advance if self.on_host else self._mapped_advance)(state, updates)

    def _align(self, rows, state, keys, frames):
        """Cosines with the policy gradient that comes at once, layer by layer."""
        if self.on_host or self.stage.measured_on != "test":
            return
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(key, ALIGNMENT_KEY), frames) for key in keys])
        cosines = np.asarray(self._mapped_align(state, keys))
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
        for own, value in zip(rows, np.atleast_1d(values), strict=False):  # values may include padding
            own.append({"metric": metric, "step": step, "value": number(value)} | more)
