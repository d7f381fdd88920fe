"""The actor-critic: what it is made of, and what it learns from a rollout of any environment.

The actor's synapses learn through cascades from signals that come late, the critic by ordinary backprop on λ-returns
(or, on request, as the actor does).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from cetsim import checks
from cetsim.delays import FixedDelay, LayerwiseDelay
from cetsim.rl import actor_trace, actors, delayed_layer, images, networks
from cetsim.rl.actors import SpikingActor
from cetsim.rl.delayed_layer import LayerState
from cetsim.rl.policies import Categorical, Gaussian
from cetsim.rl.settings import Hyperparameters, Settings
from cetsim.traces import AbstractTrace

TAIL = 1e-4  # area of a kernel that may be forgotten
LAM_KEY = 1  # folded into an agent's key


class Networks(eqx.Module):
    """The actor and the critic, or arrays in their shape (None for a part that has none)."""

    actor: eqx.nn.Sequential | SpikingActor
    critic: eqx.nn.Sequential | None


class AgentState(eqx.Module):
    """What the agent is at one moment.

    **Fields:**

    - `layers`: of the actor and, if it is late too, the critic, from the bottom up, led by environments.
    - `step`: updates made.
    - `diverged`: whether a loss was ever not finite.
    - `td_mean`: running sum of mean TD errors, None unless they are centred.
    """

    hyper: Hyperparameters
    params: Networks
    optimizer: optax.OptState
    layers: list[LayerState]
    step: Int[Array, ""]
    diverged: Bool[Array, ""]
    td_mean: Float[Array, ""] | None = None


class Rollout(eqx.Module):
    """What happened between two updates, all fields `[time, environments, ...]` but one.

    **Fields:** `memory`: what the actor's neurons held before the first step, None where nothing is held.
    """

    observation: Float[Array, "*time environments size"]
    action: Shaped[Array, "..."]
    reward: Float[Array, "*time environments"]
    terminated: Bool[Array, "*time environments"]
    truncated: Bool[Array, "*time environments"]
    final: Float[Array, "*time environments size"]
    memory: Any = None

    @property
    def alive(self) -> Float[Array, "*time environments"]:
        """0 where the step ended an episode, else 1."""
        return 1.0 - (self.terminated | self.truncated).astype(self.reward.dtype)


class Metrics(eqx.Module):
    """Metrics of an update, means. **Fields:** `entropy` of the policy, `value_loss` of the critic, `td_error`."""

    entropy: Float[Array, ""]
    value_loss: Float[Array, ""]
    td_error: Float[Array, ""]


class Learner(eqx.Module):
    """What an actor-critic learns from rollouts, wherever they come from; pure.

    **Arguments:**

    - `size`: of an observation.
    - `policy`: what the actor's outputs mean.
    - `settings`: what is compiled in.
    - `image`: shape of an observation, `(height, width, channels)`, or None where observations are no images.

    **Raises:** ValueError for a convolutional critic without images.
    """

    size: int = eqx.field(static=True)
    policy: Categorical | Gaussian = eqx.field(static=True)
    settings: Settings = eqx.field(static=True)
    image: tuple[int, int, int] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.settings.critic == "conv" and self.image is None:
            raise ValueError("`Settings.critic` must be 'mlp' where observations are no images, got 'conv'")

    def init(self, hyper: Hyperparameters, key: Array) -> AgentState:
        """An agent that has learned nothing; `key` sets its weights."""
        if self.settings.neuron is not None:
            trace = hyper.trace[0] if isinstance(hyper.trace, tuple) else hyper.trace
            checks.require_same_dt("`Settings.neuron` and `trace`", self.settings.neuron.dt, trace.dt)
        params = eqx.filter(self._make(*jax.random.split(key)), eqx.is_inexact_array)
        hyper = self._with_random_lam(hyper, params, jax.random.fold_in(key, LAM_KEY))
        layers, optimizer = self.no_past(hyper, params), self._adam().init(params)
        td_mean = None if self.settings.center_td is None else jnp.zeros(())
        return AgentState(hyper, params, optimizer, layers, jnp.zeros((), int), jnp.zeros((), bool), td_mean)

    def _with_random_lam(self, hyper: Hyperparameters, params: Networks, key: Array) -> Hyperparameters:
        """The same with λ of every synapse drawn, where the settings say so."""
        if self.settings.random_lam is None:
            return hyper
        if hyper.synaptic_lam is not None:
            raise ValueError("`synaptic_lam` must be None where `Settings.random_lam` draws it")
        weights = [layer.weight for layer in params.actor.layers if isinstance(layer, eqx.nn.Linear)]
        keys, (low, high) = jax.random.split(key, len(weights)), self.settings.random_lam
        draw = lambda key, weight: jax.random.uniform(key, weight.shape, weight.dtype, low, high)  # noqa: E731
        drawn = tuple(map(draw, keys, weights))
        return eqx.tree_at(lambda hyper: hyper.synaptic_lam, hyper, drawn, is_leaf=lambda leaf: leaf is None)

    def no_past(self, hyper: Hyperparameters, params: Networks) -> list[LayerState]:
        """States of layers that have seen nothing."""
        return [self._first(rule) for rule in self._rules(hyper, params)]

    def networks(self, params: Networks) -> Networks:
        """The networks with these parameters, to be called."""
        shapes = eqx.filter_eval_shape(self._make, jax.random.key(0), jax.random.key(0))
        is_parameter = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
        return eqx.combine(params, eqx.filter(shapes, is_parameter, inverse=True))

    def rest(self, params: Networks, environments: int):
        """What the actor's neurons hold at rest, in so many environments; None if they hold nothing."""
        return actors.rest(self.networks(params).actor, environments)

    def act(self, params: Networks, memory, observations: Float[Array, "environments size"], key: Array):
        """What the actor's neurons hold after a step, and actions drawn from the policy, led by environments."""
        memory, outputs = actors.step(self.networks(params).actor, memory, observations)
        return memory, self.policy.draw(key, outputs)

    def learn(self, state: AgentState, rollout: Rollout) -> tuple[AgentState, Metrics]:
        """One update: the agent after a rollout, and metrics."""
        hyper = state.hyper
        layers, grads, metrics = self.gradient(state, rollout)
        steps, optimizer = self._adam().update(grads, state.optimizer, state.params)
        left = jnp.maximum(0.0, 1 - state.step / self.settings.updates)
        scaled = lambda tree, rate: jax.tree.map(lambda leaf: -rate * leaf, tree)  # noqa: E731
        actor_rate = hyper.learning_rate * (left if self.settings.anneal == "both" else 1.0)
        critic_rate = hyper.learning_rate * hyper.critic_rate * (1.0 if self.settings.anneal == "none" else left)
        steps = Networks(scaled(steps.actor, actor_rate), scaled(steps.critic, critic_rate))
        diverged = state.diverged | ~jnp.isfinite(metrics.value_loss)
        params = optax.apply_updates(state.params, steps)
        return AgentState(
            hyper, params, optimizer, layers, state.step + 1, diverged, self._td_mean(state, metrics.td_error)
        ), metrics

    def gradient(self, state: AgentState, rollout: Rollout) -> tuple[list[LayerState], Networks, Metrics]:
        """States of the layers after a rollout, the gradient of both networks, and metrics."""
        hyper, model = state.hyper, self.networks(state.params)
        td_error, targets = self.td_errors(hyper, model.critic, rollout)
        plain, losses = eqx.filter_grad(self._plain_loss, has_aux=True)(model, hyper, rollout, targets)
        plain = eqx.filter(plain, eqx.is_inexact_array)
        sent = self.sent(state, td_error)
        layers, late = self.late_gradient(hyper, state.params, state.layers, rollout, sent, td_error)
        add = lambda own, more: own if more is None else jax.tree.map(jnp.add, own, more)  # noqa: E731
        return (
            layers,
            Networks(add(plain.actor, late.actor), add(plain.critic, late.critic)),
            Metrics(*losses, jnp.mean(td_error)),
        )

    def sent(self, state: AgentState, td_error):
        """TD errors of a rollout as the actor's synapses are sent them: less their running mean, or held back."""
        mean, share = jnp.mean(td_error), self.settings.hold_actor
        held = False if share is None else mean**2 > share**2 * jnp.mean(td_error**2)
        if self.settings.center_td is not None:
            weights = 1 - self.settings.center_td ** (state.step + 1)  # of all means so far
            td_error = td_error - self._td_mean(state, mean) / weights
        return td_error if share is None else jnp.where(held, 0.0, td_error)

    def _td_mean(self, state: AgentState, mean):
        """The running sum of mean TD errors, with that of one more rollout."""
        decay = self.settings.center_td
        return None if decay is None else decay * state.td_mean + (1 - decay) * mean

    def td_errors(self, hyper: Hyperparameters, critic, rollout: Rollout):
        """TD errors, and the λ-returns that values should come to, `[time, environments]`."""
        value = lambda observations: networks.outputs(critic, observations)[..., 0]  # noqa: E731
        before = value(rollout.observation)
        final = lambda: value(rollout.final)  # noqa: E731
        # What is next observed has its value already, except where an episode was broken off, which is rare.
        following = lambda: jnp.concatenate([before[1:], value(rollout.final[-1:])])  # noqa: E731
        next_value = jax.lax.cond(jnp.any(rollout.truncated), final, following)
        ended = rollout.terminated | (rollout.truncated & (self.settings.truncation == "terminate"))
        td_error = rollout.reward + hyper.discount * jnp.where(ended, 0.0, next_value) - before
        advantage = jax.vmap(actor_trace.returns_of, in_axes=(None, 1, 1), out_axes=1)
        return td_error, before + advantage(hyper.discount * hyper.lam, td_error, rollout.alive)

    def late_gradient(
        self, hyper: Hyperparameters, params: Networks, layers, rollout: Rollout, td_error, critic_error=None
    ):
        """What synapses learn through traces: states of the layers after the rollout, and the gradient.

        The actor's is the mean over environments and, unless `actor_gradient` is `"sum"`, over steps: of what arrives
        in this rollout, divided by its steps. The critic's, always a mean, is None unless it is late.

        **Arguments:** `td_error`: what the actor's synapses are sent. `critic_error`: what a late critic's are, None
        for the same.
        """
        model = self.networks(params)
        factors = actors.factors_of_policy(model.actor, self.policy, rollout)
        if self.settings.late_critic:
            factors += networks.factors_of_value(model.critic, rollout.observation)
        rules, depth, new_layers, updates = self._rules(hyper, params), len(self.settings.hidden) + 1, [], []
        errors = td_error, td_error if critic_error is None else critic_error
        for part, error in zip((slice(depth), slice(depth, None)), errors, strict=True):  # actor and, if late, critic
            found = self._learn_network(hyper, rules[part], layers[part], factors[part], rollout, error)
            new_layers += [layer for layer, _ in found]
            updates += [update for _, update in found]
        share = 1.0 if self.settings.actor_gradient == "sum" else 1 / self.settings.rollout
        late = networks.gradient_like(model.actor, [share * update for update in updates[:depth]])
        if not self.settings.late_critic:
            return new_layers, Networks(late, None)
        scaled = [hyper.value * update / self.settings.rollout for update in updates[depth:]]
        return new_layers, Networks(late, networks.gradient_like(model.critic, scaled))

    def _learn_network(self, hyper, rules: list["_Rule"], layers, factors, rollout: Rollout, td_error):
        """State and update of each layer of a network, from the bottom up; they learn from the top down."""
        found, above, passed = [], None, None
        for rule, layer, seen in zip(rules[::-1], layers[::-1], factors[::-1], strict=True):
            travelled = 0.0
            if above is not None and self.settings.derivative == "cascade":
                seen, travelled = seen._replace(error=passed @ above.layer.weight), above.delay.steps
            layer, gradient, passed = self._learn_layer(hyper, rule, layer, seen, rollout, td_error, travelled)
            found.insert(0, (layer, jnp.mean(gradient, axis=0)))
            above = rule
        return found

    def _learn_layer(self, hyper, rule: "_Rule", layer: LayerState, seen, rollout: Rollout, td_error, travelled):
        def learn(layer, seen, td_error, alive):
            decay = hyper.discount * rule.lam
            now = layer, seen, td_error, alive
            return delayed_layer.learn(rule.trace, rule.delay, decay, *now, self._options, travelled)

        by_environment = jax.vmap(learn, in_axes=(0, 1, 1, 1), out_axes=(0, 0, 1))
        return by_environment(layer, seen, td_error, rollout.alive)

    @property
    def _options(self) -> delayed_layer.Options:
        """How layers learn."""
        settings = self.settings
        return delayed_layer.Options(settings.form, settings.derivative, settings.reset_cascade, settings.late_flag)

    def _make(self, actor_key, critic_key) -> Networks:
        sizes = (self.size, *self.settings.hidden)
        network = actors.make((*sizes, self.policy.outputs), self.settings.neuron, key=actor_key)
        if self.settings.critic == "conv":
            return Networks(network, images.critic(self.image, key=critic_key))
        return Networks(network, networks.critic(sizes, key=critic_key))

    def _rules(self, hyper: Hyperparameters, params: Networks) -> list["_Rule"]:
        """How each layer that learns through traces does so, from the bottom up, the actor's first."""
        found = []
        for model in (params.actor, *([params.critic] if self.settings.late_critic else [])):
            linear = [layer for layer in model.layers if isinstance(layer, eqx.nn.Linear)]
            traces = hyper.trace if isinstance(hyper.trace, tuple) else (hyper.trace,) * len(linear)
            delays = hyper.delay.delays if isinstance(hyper.delay, LayerwiseDelay) else (hyper.delay,) * len(linear)
            synaptic = hyper.synaptic_lam is not None and model is params.actor
            lams = hyper.synaptic_lam if synaptic else (hyper.lam,) * len(linear)
            for name, values in (("trace", traces), ("delay", delays), ("synaptic_lam", lams)):
                if len(values) != len(linear):
                    many = f"one for all or one for each of {len(linear)} layers"
                    raise ValueError(f"`{name}` must be {many}, got {len(values)}")
            for trace in traces:
                if trace.shape:
                    raise ValueError(f"`trace` must be one for all synapses of a layer, got shape {trace.shape}")
            if self.settings.derivative == "cascade":
                _require_growing(delays)
            for layer, lam in zip(linear, lams, strict=True):
                if synaptic and lam.shape != layer.weight.shape:
                    raise ValueError(
                        f"`synaptic_lam` must have the weights' shape {layer.weight.shape}, got {lam.shape}"
                    )
            found += [_Rule(*row) for row in zip(traces[::-1], delays[::-1], lams, linear, strict=True)]
        return found

    def _first(self, rule: "_Rule") -> LayerState:
        layer, trace = rule.layer, rule.trace
        out, inputs = layer.weight.shape[0], layer.weight.shape[1] + (layer.bias is not None)
        window = None if jnp.ndim(rule.lam) else self.settings.window
        if self.settings.window is None and not jnp.ndim(rule.lam):
            lags, stages = _window_of(trace), trace.init((), compensated=False).shape[0]
            form = actor_trace.cheaper(stages, lags, self.settings.rollout, out, inputs)
            window = lags if form == "windowed" else None
        one = delayed_layer.init(trace, rule.delay, out, inputs, window, self._options)
        spread = lambda leaf: jnp.broadcast_to(leaf, (self.settings.environments, *leaf.shape))  # noqa: E731
        return jax.tree.map(spread, one)

    def _adam(self) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(self.settings.clip)
        if self.settings.clip_each:
            of = lambda name, part: jax.tree.map(lambda _: name, part)  # noqa: E731
            labels = lambda params: Networks(of("actor", params.actor), of("critic", params.critic))  # noqa: E731
            clip = optax.partition({"actor": clip, "critic": clip}, labels)
        return optax.chain(clip, optax.scale_by_adam(eps=self.settings.epsilon))

    def _plain_loss(self, model: Networks, hyper: Hyperparameters, rollout: Rollout, targets):
        """What is learned by ordinary backprop: the entropy bonus, and the critic unless it is late.

        Spiking neurons learn the bonus by e-prop's local rule, undelayed.
        """
        entropy = jnp.mean(self.policy.entropy(actors.outputs(model.actor, rollout)))
        value = networks.outputs(model.critic, rollout.observation)[..., 0]
        value_loss = 0.5 * jnp.mean((value - jax.lax.stop_gradient(targets)) ** 2)
        critics = jax.lax.stop_gradient(value_loss) if self.settings.late_critic else value_loss
        return hyper.value * critics - hyper.entropy * entropy, (entropy, value_loss)


class _Rule(NamedTuple):
    """How one layer learns."""

    trace: AbstractTrace
    delay: FixedDelay
    lam: Float[Array, "..."]
    layer: eqx.nn.Linear


def _require_growing(delays: tuple[FixedDelay, ...]) -> None:
    """Raises ValueError where errors would have to be at a layer before they are at the one above."""
    known = [float(delay.delay) for delay in delays if not checks.is_traced(delay.delay)]
    if known != sorted(known):
        raise ValueError(
            f"`delay` must not fall from the top layer down where `derivative` is 'cascade', got {known} s"
        )


def _window_of(trace: AbstractTrace) -> int:
    try:
        return trace.window(TAIL)
    except ValueError as error:
        raise ValueError(
            f"`Settings.window` must be given, in steps, where traces are mapped over or traced ({error})"
        ) from error
