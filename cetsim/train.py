"""Supervised learning from late credit: a run is `init`, `advance` and `evaluate`, pure in (hyperparameters, key).

A whole run is their composition, so that progress, checkpoints and curves sit between calls of `advance`. Every
hyperparameter is an array leaf: runs that differ in them share one compiled program, one after another or vmapped
together (in the reset mode kinds of trace too, by `trace.tabulate`).
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from cetsim import checks, metrics, nn
from cetsim.credit import FORMS
from cetsim.delays import FixedDelay
from cetsim.traces import AbstractTrace, DelayLine


class Hyperparameters(eqx.Module):
    """What may differ between runs of one program.

    **Fields:** `learning_rate`: peak of the schedule, above 0. `trace`: of every synapse. `delay`: of the learning
    signals. `error_gate`: see `attach`. `weight_decay`: of AdamW.
    """

    learning_rate: Float[Array, ""]
    trace: AbstractTrace
    delay: FixedDelay
    error_gate: Float[Array, ""]
    weight_decay: Float[Array, ""]

    def __init__(self, learning_rate, trace, delay, error_gate=0.0, weight_decay=0.01):
        checks.require_above("learning_rate", learning_rate, 0.0)
        checks.require_at_least("error_gate", error_gate, 0.0)
        checks.require_at_least("weight_decay", weight_decay, 0.0)
        self.learning_rate, self.error_gate, self.weight_decay = (
            jnp.asarray(value, dtype=float) for value in (learning_rate, error_gate, weight_decay)
        )
        self.trace, self.delay = trace, delay


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled into a program.

    **Fields:** `steps`: updates of a whole run. `batch`: images of a stretch, one a step of time. `form`, `boundary`:
    see `attach`. `warmup`: share of the run in which the learning rate rises; it then falls along a cosine to `floor`
    times its peak. `clip`: largest global norm of a gradient. `window`: steps that a stream remembers (see `attach`);
    None takes the trace's own at `init`, where its parameters must then be concrete.

    **Reference:** arXiv:2506.14598, training details.
    """

    steps: int
    batch: int = 128
    form: str = "activation"
    boundary: str = "reset"
    warmup: float = 0.1
    floor: float = 0.1
    clip: float = 0.5
    window: int | None = None

    def __post_init__(self):
        for name in ("steps", "batch"):
            checks.require_at_least(name, getattr(self, name), 1.0)
        checks.require_in("form", self.form, FORMS)
        checks.require_in("boundary", self.boundary, nn.BOUNDARIES)
        for name in ("warmup", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        checks.require_above("clip", self.clip, 0.0)

    def schedule(self, step):
        """Learning rate at an update, as a share of its peak."""
        rise = round(self.warmup * self.steps)
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, rise, max(self.steps, rise + 1), self.floor)(step + 1)


class TrainState(eqx.Module):
    """All that a run is at one moment.

    **Fields:** `params`: arrays of the model. `optimizer`: state of AdamW. `stream`: carried by the layers, or None.
    `order`: key of the shuffles. `step`: updates made. `diverged`: whether a loss was not finite.
    """

    hyper: Hyperparameters
    params: eqx.Module
    optimizer: optax.OptState
    stream: dict | None
    order: Array
    step: Int[Array, ""]
    diverged: Bool[Array, ""]


class SupervisedRun(eqx.Module):
    """Training of a classifier on images that come one a step of time, with credit that comes late.

    **Arguments:**

    - `make_model`: function of a key; the model acts on one example.
    - `x`: `[examples, ...]`, `labels`: `[examples]`, kept on the device.
    - `settings`: what is compiled in.

    **Raises:** ValueError for fewer examples than a batch, numbers that do not match, or inputs that are not finite.
    """

    make_model: Callable = eqx.field(static=True)
    x: Float[Array, "examples ..."]
    labels: Int[Array, " examples"]
    settings: Settings = eqx.field(static=True)

    def __init__(self, make_model: Callable, x, labels, settings: Settings):
        if x.shape[0] != labels.shape[0]:
            raise ValueError(f"`x` and `labels` must have one length, got {x.shape[0]} and {labels.shape[0]}")
        if x.shape[0] < settings.batch:
            raise ValueError(f"a batch of {settings.batch} needs at least as many examples, got {x.shape[0]}")
        checks.require_finite("x", x)
        self.make_model, self.settings = make_model, settings
        self.x, self.labels = jnp.asarray(x), jnp.asarray(labels)

    def init(self, hyper: Hyperparameters, key: Array) -> TrainState:
        """The run before its first update; `key` sets the weights and the order of the images."""
        model_key, order = jax.random.split(key)
        model = self.make_model(model_key)
        params = eqx.filter(model, eqx.is_inexact_array)
        stream = None
        if self.settings.boundary == "carry":
            stream = nn.streaming_init(self._attach(model, hyper, self.settings.window), self.x[0])
        optimizer = self._optimizer(hyper).init(params)
        return TrainState(hyper, params, optimizer, stream, order, jnp.zeros((), int), jnp.zeros((), bool))

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Float[Array, " steps"]]:
        """Makes `steps` (static) updates; returns the state after them and the loss of each."""
        template = self._template()

        def update(state, rows):
            x, labels = self.x[rows], self.labels[rows]
            loss, grads, stream = self._gradient(eqx.combine(state.params, template), state, x, labels)
            updates, optimizer = self._optimizer(state.hyper).update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            diverged = state.diverged | ~jnp.isfinite(loss)
            after = TrainState(state.hyper, params, optimizer, stream, state.order, state.step + 1, diverged)
            return after, loss

        return jax.lax.scan(update, state, self._batches(state, steps))

    def evaluate(self, state: TrainState, x, labels) -> dict[str, Float[Array, ""]]:
        """`accuracy` and mean cross-entropy `loss` on held-out examples."""
        logits = jax.vmap(eqx.combine(state.params, self._template()))(x)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return {"accuracy": metrics.accuracy(logits, labels), "loss": loss}

    def alignment(self, state: TrainState, x, labels, over: str = "arrived") -> dict[str, Float[Array, ""]]:
        """Cosine per layer between the update of one stretch and the true gradient of its loss.

        **Arguments:** `x`, `labels`: one stretch. `over`: the steps whose loss the true gradient is of, those whose
        signals `"arrived"` within the stretch or `"all"`.

        **Raises:** ValueError for streams, whose stretches hold credit of earlier ones.
        """
        checks.require_in("over", over, ("arrived", "all"))
        if self.settings.boundary != "reset":
            raise ValueError("alignment with the gradient of one stretch needs boundary='reset', got 'carry'")
        model = eqx.combine(state.params, self._template())
        arrived = state.hyper.delay.arrived(x.shape[0]) if over == "arrived" else jnp.ones(x.shape[0])
        truth = eqx.filter_grad(_loss)(model, x, labels, arrived)
        return metrics.alignment(self._gradient(model, state, x, labels)[1], truth)

    def _template(self):
        """The model without its arrays."""
        model = eqx.filter_eval_shape(self.make_model, jax.random.key(0))
        is_parameter = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
        return eqx.filter(model, is_parameter, inverse=True)

    def _attach(self, model, hyper: Hyperparameters, window: int | None = None):
        options = {
            "form": self.settings.form,
            "error_gate": hyper.error_gate,
            "boundary": self.settings.boundary,
            "window": window,
        }
        return nn.attach(model, hyper.trace, hyper.delay, **options)

    def _gradient(self, model, state: TrainState, x, labels):
        """Loss, update of the rule and what is carried on."""
        if state.stream is not None:
            differentiate = nn.streaming_value_and_grad(_loss)
            window = next(iter(state.stream.values())).gain.shape[0]  # of a trace whose parameters are traced here
            attached = self._attach(model, state.hyper, window)
            loss, grads, stream = differentiate(attached, state.stream, x, labels)
            return loss, nn.detach(grads), stream
        attached = lambda model: _loss(self._attach(model, state.hyper), x, labels)  # noqa: E731
        return *eqx.filter_value_and_grad(attached)(model), None

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        rate = lambda step: hyper.learning_rate * self.settings.schedule(step)  # noqa: E731
        return optax.chain(
            optax.clip_by_global_norm(self.settings.clip), optax.adamw(rate, weight_decay=hyper.weight_decay)
        )

    def _batches(self, state: TrainState, steps: int) -> Int[Array, "steps batch"]:
        """Rows of the next stretches: every epoch its own shuffle, whatever calls of `advance` it is cut into."""
        batch, examples = self.settings.batch, self.x.shape[0]
        per_epoch = examples // batch
        epochs = state.step // per_epoch + jnp.arange((steps + per_epoch - 2) // per_epoch + 1)
        shuffle = lambda epoch: jax.random.permutation(jax.random.fold_in(state.order, epoch), examples)  # noqa: E731
        rows = jax.lax.map(shuffle, epochs)[:, : per_epoch * batch].reshape(-1, batch)
        return jax.lax.dynamic_slice_in_dim(rows, state.step % per_epoch, steps)


def _loss(model, x, labels, weights=1.0):
    """Mean over the steps of a stretch."""
    return jnp.mean(weights * optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), labels))


def backprop(learning_rate, dt: float = 0.2, weight_decay=0.01) -> Hyperparameters:
    """Hyperparameters of undelayed backpropagation: a perfect memory of no length, and signals at once."""
    return Hyperparameters(learning_rate, DelayLine(0.0, dt), FixedDelay(0.0, dt), 0.0, weight_decay)
