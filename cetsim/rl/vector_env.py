"""Worlds on the host, such as Gymnasium's simulators: environments side by side that can say how they came to be here.

A vector environment on the host can only go on; a new one comes to the same moment by replaying the episodes under way.
"""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped

from cetsim import checks
from cetsim.extras import require
from cetsim.rl import policies
from cetsim.rl.policies import Categorical, Gaussian


class HostStep(NamedTuple):
    """What follows the actions in all environments, led by environments; fields as in `environments.Step`."""

    observation: Shaped[np.ndarray, "environments size"]
    reward: Shaped[np.ndarray, " environments"]
    terminated: Shaped[np.ndarray, " environments"]
    truncated: Shaped[np.ndarray, " environments"]
    final: Shaped[np.ndarray, "environments size"]


class ReplayWrapper:
    """An environment of Gymnasium that remembers how it came to where it is in its episode, and no earlier episode.

    Stands in the place of `env`, where everything else is looked up.

    **Attributes:** `seen`: the last observation.
    """

    def __init__(self, env):
        self.env, self.seen = env, None
        self._seed = self._random = None
        self._actions, self._earned = [], 0.0

    def __getattr__(self, name: str):
        return getattr(self.env, name)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begins an episode, with `seed` or from the random state that the last one left."""
        if seed is None:
            self._random = self.env.unwrapped.np_random.bit_generator.state
        else:
            self._seed, self._random = seed, None
        self._actions, self._earned = [], 0.0
        self.seen, info = self.env.reset(seed=seed, options=options)
        return self.seen, info

    def step(self, action):
        """Goes on by one step."""
        self._actions.append(action)
        transition = self.env.step(action)
        self.seen = transition[0]
        self._earned += transition[1]
        return transition

    def record(self) -> dict:
        """What `replay` needs: the seed, the random state before an episode that began without one, and the actions.

        The digest, of the last observation and the sum of rewards, says whether a replay came to the same.
        """
        random = json.loads(json.dumps(self._random, default=np.ndarray.tolist))
        actions = [np.asarray(action).tolist() for action in self._actions]
        return {"seed": self._seed, "random": random, "actions": actions, "digest": self._digest()}

    def replay(self, record: dict) -> bool:
        """Comes to where the environment was that gave `record`; whether this one came to the same."""
        self.reset(seed=record["seed"])  # also for a later episode: environments may set themselves up only then
        if record["random"] is not None:
            self.env.unwrapped.np_random.bit_generator.state = record["random"]
            self.reset()
        for action in record["actions"]:
            _, _, terminated, truncated, _ = self.step(self._as_given(action))
            if terminated or truncated:
                return False
        return self._digest() == record["digest"]

    def _as_given(self, action):
        """An action from a record, as the simulator was given it."""
        return np.int64(action) if isinstance(action, int) else np.asarray(action, self.env.action_space.dtype)

    def _digest(self) -> str:
        return hashlib.sha256(np.asarray(self.seen).tobytes() + np.float64(self._earned).tobytes()).hexdigest()


class VectorEnv:
    """Environments side by side on the host, which begin new episodes by themselves.

    **Arguments:**

    - `name`: of the environment.
    - `vector`: a vector environment of Gymnasium, of `ReplayWrapper`, that resets in the step in which an episode ends.
    - `split`: whether observations come as positive and negative parts.

    **Attributes:** `seconds`: spent in the simulator so far. `steps`: made so far.
    """

    def __init__(self, name: str, vector, split: bool):
        self.seconds, self.steps = 0.0, 0
        self._name, self._vector, self._split = name, vector, split

    def reset(self, key: Array) -> Shaped[np.ndarray, "environments size"]:
        """First observations; `key` sets all that is random in the vector environment until the next reset."""
        seeds = jax.random.bits(key, (self._vector.num_envs,), "uint32")
        return self._seen(self._timed(lambda: self._vector.reset(seed=[int(seed) for seed in seeds])[0]))

    def step(self, actions: Shaped[np.ndarray, "environments *numbers"]) -> HostStep:
        """One step of every environment."""
        self.steps += 1
        actions = np.asarray(actions, self._vector.single_action_space.dtype)  # as a replay will give them
        observation, reward, terminated, truncated, info = self._timed(lambda: self._vector.step(actions))
        observation = final = self._seen(observation)
        if "final_obs" in info:
            final = observation.copy()
            for i in np.flatnonzero(info["_final_obs"]):
                final[i] = self._seen(info["final_obs"][i][None])[0]
        return HostStep(observation, reward, terminated, truncated, final)

    def record(self) -> dict:
        """Where the vector environment is, in JSON values: what happened in the episodes under way, for `replay`."""
        episodes = [environment.record() for environment in self._vector.envs]
        return {"environment": self._name, "steps": self.steps, "episodes": episodes}

    def replay(self, record: dict) -> Shaped[np.ndarray, "environments size"]:
        """Brings a vector environment just opened to where another was when it gave `record`.

        **Returns:** what was last observed there.

        **Raises:** ValueError if `record` is of other environments, or they do not repeat themselves.
        """
        environments, episodes = self._vector.envs, record["episodes"]
        if record["environment"] != self._name:
            raise ValueError(f"`record` must be of {self._name}, got one of {record['environment']}")
        if len(episodes) != len(environments):
            raise ValueError(f"`record` must be of {len(environments)} environments, got {len(episodes)}")
        for i, (environment, episode) in enumerate(zip(environments, episodes, strict=True)):
            if not self._timed(lambda env=environment, past=episode: env.replay(past)):
                raise ValueError(
                    f"{self._name} must repeat itself from the same random state and actions to be resumed, but "
                    f"environment {i} came to something else within {len(episode['actions'])} steps: start the run anew"
                )
        self.steps = record["steps"]
        dtype = self._vector.single_observation_space.dtype
        return self._seen(np.stack([environment.seen for environment in environments], dtype=dtype))

    def close(self):
        """Ends the simulators."""
        self._vector.close()

    def _timed(self, call):
        start = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - start
        return result

    def _seen(self, observations):
        flat = observations.reshape(len(observations), -1).astype(jax.dtypes.canonicalize_dtype(float))
        return np.maximum(np.concatenate([flat, -flat], axis=1), 0) if self._split else flat


class HostEnvironment(NamedTuple):
    """An environment on the host.

    **Fields:**

    - `name`.
    - `size`: of an observation, a vector.
    - `policy`: what its actions are drawn from.
    - `open`: of a number of environments and a number of steps after which every episode is broken off, or None, gives
      a `VectorEnv` of them.
    - `image`: shape of the image that an observation holds, `(height, width, channels)`; None if it is none.
    """

    name: str
    size: int
    policy: Categorical | Gaussian
    open: Callable[..., VectorEnv]
    image: tuple[int, int, int] | None = None


def from_gymnasium(
    name: str, split: bool = False, wrap: Callable[[Any], Any] | None = None, **options
) -> HostEnvironment:
    """An environment of Gymnasium by its name; observations of any shape become vectors.

    **Arguments:**

    - `split`: whether every observation x comes as its positive and negative parts, max(x, 0) and max(-x, 0).
    - `wrap`: makes of the environment the one that is observed in its place, as `gymnasium.wrappers` do and
      `reservoirs.wrapper`. It must repeat itself after a reset.
    - `options`: of `gymnasium.make`.

    **Raises:** ImportError, with what to install; ValueError for actions that no policy has, or observations that
    are no arrays.
    """
    gymnasium = require("gymnasium", extra="rl")
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    make = lambda: (wrap or (lambda env: env))(gymnasium.make(name, **options))  # noqa: E731

    def open_vector_env(environments: int, max_steps: int | None = None) -> VectorEnv:
        checks.require_whole("environments", environments)
        limited = lambda env: env if max_steps is None else gymnasium.wrappers.TimeLimit(env, max_steps)  # noqa: E731
        makers = [lambda: ReplayWrapper(limited(make()))] * environments
        return VectorEnv(name, gymnasium.vector.SyncVectorEnv(makers, copy=False, autoreset_mode=mode), split)

    try:
        one = make()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{name} needs more than Gymnasium: pip install 'cetsim[rl]' ({error})") from error
    actions, observations = one.action_space, one.observation_space
    one.close()
    policy = policies.of_space(name, actions)
    if not isinstance(observations, gymnasium.spaces.Box):
        raise ValueError(f"{name} must have observations in a Box, got {observations}")
    size, image = int(np.prod(observations.shape)) * (1 + split), None
    if len(observations.shape) == 3 and not split:
        image = observations.shape
    return HostEnvironment(name, size, policy, open_vector_env, image)
