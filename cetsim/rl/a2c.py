"""Actor-critic learning from late credit: a run is `init`, `advance` and `evaluate`, pure in (hyperparameters, key).

The actor's synapses learn through cascades from signals that come late, the critic by ordinary backprop on λ-returns
(or, on request, as the actor does). Rollouts and updates compile together; seeds and hyperparameters are vmapped.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cetsim import checks, credit
from cetsim.delays import FixedDelay, LayerwiseDelay
from cetsim.rl import actor_trace, late_layer, networks
from cetsim.rl.environments import Environment
from cetsim.rl.late_layer import LayerState
from cetsim.traces import AbstractTrace, DelayLine

EPS = 1e-5  # of Adam
TAIL = 1e-4  # area of a kernel that may be forgotten


class Hyperparameters(eqx.Module):
    """What may differ between runs of one program.

    **Fields:** `learning_rate`: of Adam, above 0. `trace`: of every synapse of the actor, or a tuple of one a layer
    from the top down. `delay`: of log-policy gradients, TD errors and ends of episodes, alike in all layers or layer by
    layer. `discount`: γ, and `lam`: λ, in [0, 1]. `entropy`, `value`: weights of the entropy bonus and of the critic's
    loss.
    """

    learning_rate: Float[Array, ""]
    trace: AbstractTrace | tuple[AbstractTrace, ...]
    delay: FixedDelay | LayerwiseDelay
    discount: Float[Array, ""]
    lam: Float[Array, ""]
    entropy: Float[Array, ""]
    value: Float[Array, ""]

    def __init__(self, learning_rate, trace, delay, discount=0.99, lam=0.95, entropy=0.01, value=0.5):
        checks.require_above("learning_rate", learning_rate, 0.0)
        for name, share in (("discount", discount), ("lam", lam)):
            if not checks.is_traced(share) and not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {share!r}")
        for name, weight in (("entropy", entropy), ("value", value)):
            checks.require_at_least(name, weight, 0.0)
        delays = delay.delays if isinstance(delay, LayerwiseDelay) else (delay,)
        if not all(isinstance(each, FixedDelay) for each in delays):
            raise ValueError(f"`delay` must be a FixedDelay or a LayerwiseDelay of them, got {delay!r}")
        numbers = (learning_rate, discount, lam, entropy, value)
        self.learning_rate, self.discount, self.lam, self.entropy, self.value = (
            jnp.asarray(number, dtype=float) for number in numbers
        )
        self.trace, self.delay = trace, delay


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled into a program.

    **Fields:** `updates`: of a whole run. `environments`: side by side. `rollout`: steps of each between two updates.
    `hidden`: units of the hidden layers of actor and critic. `form`: of the rule. `clip`: largest global norm of
    actor's and critic's gradient together. `anneal`: whether the learning rate falls to 0 over the run. `truncation`:
    whether an episode that was broken off is worth what would have come (`"bootstrap"`), or nothing, as in the paper
    (`"terminate"`). `reset_cascade`: whether synapses forget an episode's activity when it ends, which the paper's do
    not. `late_critic`: whether the critic too learns through traces from late TD errors. `window`: steps of
    the past that layers keep the factors of; None takes what costs less, the kernel's own window or the stages of every
    synapse, for which traces must be concrete at `init`.

    **Reference:** arXiv:2506.14598, reinforcement learning.
    """

    updates: int
    environments: int = 4
    rollout: int = 128
    hidden: tuple[int, ...] = (256, 256)
    form: str = "activation"
    clip: float = 0.5
    anneal: bool = False
    truncation: str = "bootstrap"
    reset_cascade: bool = False
    late_critic: bool = False
    window: int | None = None

    def __post_init__(self):
        for name in ("updates", "environments", "rollout"):
            checks.require_at_least(name, getattr(self, name), 1.0)
        checks.require_in("form", self.form, credit.FORMS)
        checks.require_above("clip", self.clip, 0.0)
        checks.require_in("truncation", self.truncation, ("bootstrap", "terminate"))

    @property
    def frames(self) -> int:
        """Steps of all environments between two updates."""
        return self.environments * self.rollout


class Networks(eqx.Module):
    """The actor and the critic, or arrays in their shape."""

    actor: eqx.nn.Sequential
    critic: eqx.nn.Sequential


class TrainState(eqx.Module):
    """All that a run is at one moment.

    **Fields:** `layers`: of the actor and, if it is late too, the critic, from the bottom up, led by environments.
    `world`: states of the environments, with what was last observed there. `episode`: return of each so far.
    """

    hyper: Hyperparameters
    params: Networks
    optimizer: optax.OptState
    layers: list[LayerState]
    world: tuple
    episode: Float[Array, " environments"]
    key: Array
    step: Int[Array, ""]
    diverged: Bool[Array, ""]


class Rollout(eqx.Module):
    """What happened between two updates, all fields `[time, environments, ...]`."""

    observation: Float[Array, "*time environments size"]
    action: Int[Array, "*time environments"]
    reward: Float[Array, "*time environments"]
    terminated: Bool[Array, "*time environments"]
    truncated: Bool[Array, "*time environments"]
    final: Float[Array, "*time environments size"]

    @property
    def alive(self) -> Float[Array, "*time environments"]:
        """0 where the step ended an episode, else 1."""
        return 1.0 - (self.terminated | self.truncated).astype(self.reward.dtype)


class Progress(eqx.Module):
    """What an update tells. **Fields:** `finished`: episodes; `returns`: their sum. `entropy`, `value_loss`: means."""

    finished: Int[Array, ""]
    returns: Float[Array, ""]
    entropy: Float[Array, ""]
    value_loss: Float[Array, ""]


class ActorCriticRun(eqx.Module):
    """Training of an actor and a critic in one environment, many times side by side.

    **Arguments:** `environment`: see `cetsim.rl.environments`. `settings`: what is compiled in.
    """

    environment: Environment = eqx.field(static=True)
    settings: Settings = eqx.field(static=True)

    def init(self, hyper: Hyperparameters, key: Array) -> TrainState:
        """The run before its first update; `key` sets weights, actions and what happens in the environments."""
        key, actor_key, critic_key, world_key = jax.random.split(key, 4)
        params = eqx.filter(self._make(actor_key, critic_key), eqx.is_inexact_array)
        world = jax.vmap(self.environment.reset)(jax.random.split(world_key, self.settings.environments))
        layers = [self._first(*layer) for layer in self._layers(hyper, params)]
        optimizer = self._optimizer(hyper).init(params)
        episode = jnp.zeros(self.settings.environments)
        return TrainState(
            hyper, params, optimizer, layers, world, episode, key, jnp.zeros((), int), jnp.zeros((), bool)
        )

    def advance(self, state: TrainState, updates: int) -> tuple[TrainState, Progress]:
        """Makes `updates` (static) updates; returns the state after them and what each told, `[updates]`."""
        return jax.lax.scan(lambda state, _: self._update(state), state, length=updates)

    def evaluate(
        self, state: TrainState, key: Array, episodes: int = 100, max_steps: int = 10_000
    ) -> Float[Array, " episodes"]:
        """Return of as many episodes, side by side, with actions drawn from the policy; at most `max_steps` of each."""
        model = self._model(state.params)
        key, reset_key = jax.random.split(key)
        world = jax.vmap(self.environment.reset)(jax.random.split(reset_key, episodes))

        def go_on(carry):
            _, _, running, _, step = carry
            return jnp.any(running) & (step < max_steps)

        def step(carry):
            key, world, running, returns, count = carry
            key, own = jax.random.split(key)
            world, _, after = self._act(model, world, own)
            returns = returns + jnp.where(running, after.reward, 0.0)
            return key, world, running & ~(after.terminated | after.truncated), returns, count + 1

        start = (key, world, jnp.ones(episodes, bool), jnp.zeros(episodes), jnp.zeros((), int))
        return jax.lax.while_loop(go_on, step, start)[3]

    def _make(self, actor_key, critic_key) -> Networks:
        sizes = (self.environment.size, *self.settings.hidden)
        own = networks.actor((*sizes, self.environment.actions), key=actor_key)
        return Networks(own, networks.critic(sizes, key=critic_key))

    def _model(self, params: Networks) -> Networks:
        shapes = eqx.filter_eval_shape(self._make, jax.random.key(0), jax.random.key(0))
        is_parameter = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
        return eqx.combine(params, eqx.filter(shapes, is_parameter, inverse=True))

    def _layers(self, hyper: Hyperparameters, params: Networks) -> list[tuple]:
        """Trace, delay and layer of all that learn through traces, from the bottom up, the actor's first."""
        found = []
        for model in (params.actor, *([params.critic] if self.settings.late_critic else [])):
            linear = [layer for layer in model.layers if isinstance(layer, eqx.nn.Linear)]
            traces = hyper.trace if isinstance(hyper.trace, tuple) else (hyper.trace,) * len(linear)
            delays = hyper.delay.delays if isinstance(hyper.delay, LayerwiseDelay) else (hyper.delay,) * len(linear)
            for name, each in (("trace", traces), ("delay", delays)):
                if len(each) != len(linear):
                    many = f"one for all or one for each of {len(linear)} layers"
                    raise ValueError(f"`{name}` must be {many}, got {len(each)}")
            found += list(zip(traces[::-1], delays[::-1], linear, strict=True))
        return found

    def _first(self, trace, delay, layer) -> LayerState:
        out, inputs = layer.weight.shape[0], layer.weight.shape[1] + (layer.bias is not None)
        window = self.settings.window
        if window is None:
            own, stages = trace.window(TAIL), trace.init((), compensated=False).shape[0]
            form = actor_trace.cheaper(stages, own, self.settings.rollout, out, inputs)
            window = own if form == "windowed" else None
        one = late_layer.init(trace, delay, out, inputs, window)
        spread = lambda leaf: jnp.broadcast_to(leaf, (self.settings.environments, *leaf.shape))  # noqa: E731
        return jax.tree.map(spread, one)

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        fall = lambda step: jnp.maximum(0.0, 1 - step / self.settings.updates) if self.settings.anneal else 1.0  # noqa: E731
        adam = optax.adam(lambda step: hyper.learning_rate * fall(step), eps=EPS)
        return optax.chain(optax.clip_by_global_norm(self.settings.clip), adam)

    def _act(self, model: Networks, world, key):
        """One step of every environment: the world after it, the actions and what followed."""
        states, observations = world
        action_key, world_key = jax.random.split(key)
        actions = jax.random.categorical(action_key, jax.vmap(model.actor)(observations))
        keys = jax.random.split(world_key, observations.shape[0])
        states, after = jax.vmap(self.environment.step)(keys, states, actions)
        return (states, after.observation), actions, after

    def _roll_out(self, model: Networks, world, key):
        def step(world, key):
            observation = world[1]
            world, action, after = self._act(model, world, key)
            return world, Rollout(observation, action, after.reward, after.terminated, after.truncated, after.final)

        return jax.lax.scan(step, world, jax.random.split(key, self.settings.rollout))

    def _update(self, state: TrainState) -> tuple[TrainState, Progress]:
        key, own = jax.random.split(state.key)
        model = self._model(state.params)
        world, rollout = self._roll_out(model, state.world, own)
        td_error, targets = self._judge(state.hyper, model.critic, rollout)
        layers, grads, (entropy, value_loss) = self._gradient(state, model, rollout, td_error, targets)
        updates, optimizer = self._optimizer(state.hyper).update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        episode, finished, returns = _count(state.episode, rollout)
        diverged = state.diverged | ~jnp.isfinite(value_loss)
        after = TrainState(state.hyper, params, optimizer, layers, world, episode, key, state.step + 1, diverged)
        return after, Progress(finished, returns, entropy, value_loss)

    def _judge(self, hyper: Hyperparameters, critic, rollout: Rollout):
        """TD errors, and the λ-returns that values should come to, `[time, environments]`."""
        value = jax.vmap(jax.vmap(critic))
        before, after = value(rollout.observation)[..., 0], value(rollout.final)[..., 0]
        ended = rollout.terminated | (rollout.truncated & (self.settings.truncation == "terminate"))
        td_error = rollout.reward + hyper.discount * jnp.where(ended, 0.0, after) - before
        advantage = jax.vmap(actor_trace.returns_of, in_axes=(None, 1, 1), out_axes=1)
        return td_error, before + advantage(hyper.discount * hyper.lam, td_error, rollout.alive)

    def _gradient(self, state: TrainState, model: Networks, rollout: Rollout, td_error, targets):
        """States of the layers after the rollout, the gradient of both networks, entropy and loss of the critic."""
        hyper, count = state.hyper, self.settings.rollout
        plain, measured = eqx.filter_grad(self._plain_loss, has_aux=True)(model, hyper, rollout, targets)
        by_environment = lambda function: jax.vmap(function, in_axes=(None, 1, 1))  # noqa: E731
        factors = by_environment(networks.factors_of_policy)(model.actor, rollout.observation, rollout.action)
        if self.settings.late_critic:
            factors += jax.vmap(networks.factors_of_value, in_axes=(None, 1))(model.critic, rollout.observation)
        layers, updates = [], []
        rules = self._layers(hyper, state.params)
        for (trace, delay, _), layer, seen in zip(rules, state.layers, factors, strict=True):

            def learn(layer, seen, td_error, alive, trace=trace, delay=delay):
                rule = trace, delay, hyper.discount * hyper.lam, self.settings.form
                return late_layer.learn(*rule, layer, seen, td_error, alive, self.settings.reset_cascade)

            layer, gradient = jax.vmap(learn, in_axes=(0, 0, 1, 1))(layer, seen, td_error, rollout.alive)
            layers.append(layer)
            updates.append(jnp.mean(gradient, axis=0))
        depth = len(self.settings.hidden) + 1
        late = [networks.gradient_like(model.actor, updates[:depth]), None]
        if self.settings.late_critic:
            scaled = [hyper.value * update / count for update in updates[depth:]]
            late[1] = networks.gradient_like(model.critic, scaled)
        plain = eqx.filter(plain, eqx.is_inexact_array)
        add = lambda own, more: own if more is None else jax.tree.map(jnp.add, own, more)  # noqa: E731
        return layers, Networks(add(plain.actor, late[0]), add(plain.critic, late[1])), measured

    def _plain_loss(self, model: Networks, hyper: Hyperparameters, rollout: Rollout, targets):
        """What is learned by ordinary backprop: the entropy bonus, and the critic unless it is late."""
        logits = jax.vmap(jax.vmap(model.actor))(rollout.observation)
        entropy = -jnp.mean(jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1))
        value = jax.vmap(jax.vmap(model.critic))(rollout.observation)[..., 0]
        value_loss = 0.5 * jnp.mean((value - jax.lax.stop_gradient(targets)) ** 2)
        critics = jax.lax.stop_gradient(value_loss) if self.settings.late_critic else value_loss
        return hyper.value * critics - hyper.entropy * entropy, (entropy, value_loss)


def _count(episode, rollout: Rollout):
    """Returns of the episodes under way, and the number and the sum of the returns of those that ended."""

    def step(episode, now):
        reward, alive = now
        episode = episode + reward
        ended = 1.0 - alive
        return episode * alive, (jnp.sum(ended), jnp.sum(episode * ended))

    episode, (finished, returns) = jax.lax.scan(step, episode, (rollout.reward, rollout.alive))
    return episode, jnp.sum(finished).astype(int), jnp.sum(returns)


def without_delay(learning_rate, dt: float = 0.2, **options) -> Hyperparameters:
    """Hyperparameters of the plain actor-critic: signals at once, and a memory of no length."""
    return Hyperparameters(learning_rate, DelayLine(0.0, dt, 0.0), FixedDelay(0.0, dt, 0.0), **options)
