"""Policies and agents in files: arrays by name in one .npz, read back without running any code."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from cetsim.files import write_atomic
from cetsim.rl import networks
from cetsim.rl.agent import AgentState
from cetsim.rl.policies import Categorical, Gaussian


class Policy(eqx.Module):
    """What an actor does, without what it learns by.

    **Fields:**

    - `actor`: from an observation to outputs.
    - `environment`: the name of what it was trained in.
    - `kind`: what the outputs mean, see `cetsim.rl.policies`.
    """

    actor: eqx.nn.Sequential
    environment: str = eqx.field(static=True)
    kind: Categorical | Gaussian = eqx.field(static=True)

    def outputs(self, observations: Float[Array, "*many size"]) -> Float[Array, "*many outputs"]:
        """Logits of discrete actions, or what sets means and standard deviations of real ones."""
        return networks.outputs(self.actor, observations)

    def act(self, observations: Float[Array, "*many size"], key: Array) -> Shaped[Array, "..."]:
        """Actions drawn from the policy, as the environment takes them."""
        return self.kind.applied(self.kind.draw(key, self.outputs(observations)))


def policy_of(run, state) -> Policy:
    """The policy of a run, of `ActorCriticRun` or `HostRun`, at one moment.

    **Raises:** ValueError for an actor whose neurons hold something from step to step, which a policy does not.
    """
    if run.settings.neuron is not None:
        raise ValueError(
            "`run` must have an actor without state over time, got one of spiking neurons: keep it by `save_agent` and "
            "let it act by `run.learner.act`"
        )
    return Policy(run.learner.networks(state.agent.params).actor, run.environment.name, run.environment.policy)


def save_policy(path: str | Path, policy: Policy) -> None:
    """Writes a policy to `path`, all of it or nothing."""
    weights = [layer.weight for layer in policy.actor.layers if isinstance(layer, eqx.nn.Linear)]
    _write(path, {"kind": "policy", "environment": policy.environment, "actions": policy.kind._asdict()}, weights)


def load_policy(path: str | Path) -> Policy:
    """The policy in a file of `save_policy`.

    **Raises:** ValueError for another file; OSError.
    """
    header, weights = _read(path, "policy")
    sizes = (weights[0].shape[1], *(weight.shape[0] for weight in weights))
    actor = networks.actor(sizes, key=jax.random.key(0))
    linear = lambda actor: [layer.weight for layer in actor.layers if isinstance(layer, eqx.nn.Linear)]  # noqa: E731
    return Policy(
        eqx.tree_at(linear, actor, weights), header["environment"], _kind_of(header.get("actions"), sizes[-1])
    )


def _kind_of(actions: dict | None, outputs: int) -> Categorical | Gaussian:
    """What is said of a policy's actions; nothing in files from before real actions."""
    if actions is None or "actions" in actions:
        return Categorical(outputs)
    return Gaussian(*(tuple(actions[name]) for name in Gaussian._fields))


def save_agent(path: str | Path, agent: AgentState) -> None:
    """Writes all that an agent is to `path`: weights, optimiser, and what its synapses and signals under way hold."""
    _write(path, {"kind": "agent", "tree": _paths(agent)}, jax.tree.leaves(agent))


def load_agent(path: str | Path, like: AgentState) -> AgentState:
    """The agent in a file of `save_agent`, in the shape of `like`, such as `run.init(hyper, key).agent`.

    **Raises:** ValueError for another file, or an agent of other settings; OSError.
    """
    header, leaves = _read(path, "agent")
    if header["tree"] != _paths(like):
        raise ValueError(f"`like` must be an agent of the settings of the one in {path}, got one of other parts")
    expected = jax.tree.leaves(like)
    for name, found, wanted in zip(header["tree"], leaves, expected, strict=True):
        if found.shape != jnp.shape(wanted) or found.dtype != jnp.result_type(wanted):
            raise ValueError(
                f"`like` must be an agent of the settings of the one in {path}, where {name} is "
                f"{found.dtype}{list(found.shape)}, got {jnp.result_type(wanted)}{list(jnp.shape(wanted))}"
            )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _paths(tree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _write(path, header: dict, leaves: list) -> None:
    arrays = {f"array_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    about = np.asarray(json.dumps({"format": 1} | header))
    write_atomic(Path(path), lambda file: np.savez(file, header=about, **arrays))


def _read(path, kind: str) -> tuple[dict, list[Array]]:
    wrong = f"{path} must be a file of `save_{kind}`"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            leaves = [jnp.asarray(arrays[f"array_{i}"]) for i in range(len(arrays.files) - 1)]
    except (ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{wrong}, but it could not be read: {error}") from error
    if header.get("kind") != kind or header.get("format") != 1:
        raise ValueError(f"{wrong}, got one of {header.get('kind')}, format {header.get('format')}")
    return header, leaves
