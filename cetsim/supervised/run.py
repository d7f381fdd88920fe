"""A run of supervised learning from late credit: its state, its updates, and what is measured of it."""

import dataclasses
import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from cetsim import checks, metrics, nn
from cetsim.datasets import Frames
from cetsim.delays import AbstractDelay, LayerwiseDelay
from cetsim.events import Events
from cetsim.gates import Selection
from cetsim.supervised.settings import Hyperparameters, Settings


class TrainState(eqx.Module):
    """All that a run is at one moment.

    **Fields:** `params`: arrays of the model. `buffers`: what its batch norm remembers, empty without any.
    `optimizer`: state of AdamW. `stream`: carried by the layers, or None. `order`: key of the shuffles.
    `step`: updates made. `diverged`: whether a loss was not finite. `gate_state`: of the salience gate, or None.
    `skipped`: updates that were not made, since no image of the segment was salient. `missed`: salient images for
    which the gate had no place.
    """

    hyper: Hyperparameters
    params: eqx.Module
    buffers: eqx.nn.State
    optimizer: optax.OptState
    stream: dict | None
    order: Array
    step: Int[Array, ""]
    diverged: Bool[Array, ""]
    gate_state: Float[Array, ""] | None
    skipped: Int[Array, ""]
    missed: Int[Array, ""]


class SupervisedRun(eqx.Module):
    """Training of a classifier on images that come one a step of time, with credit that comes late.

    **Arguments:**

    - `make_model`: function of a key; the model acts on one example, and if it has stateful layers such as batch norm
      it is called as `model(x, state)` inside a `vmap` over time with `axis_name="time"`.
    - `x`: `[examples, ...]`, finite; kept on the device. Floats, bytes and booleans are seen by the model in its own
      precision, other whole numbers, such as tokens, as they are.
    - `labels`: class numbers `[examples]`, integers from 0 to the number of the model's outputs - 1.
    - `settings`: what is compiled in.

    **Raises:** ValueError for fewer examples than a segment, numbers that do not match, inputs that are not finite or
    that the model does not take, labels of no class, images that the input order cannot show, and settings that name a
    layer as plain that the model does not have.
    """

    make_model: Callable = eqx.field(static=True)
    x: Shaped[Array, "examples ..."]
    labels: Int[Array, " examples"]
    settings: Settings = eqx.field(static=True)

    def __init__(self, make_model: Callable, x, labels, settings: Settings):
        checks.require_instance("settings", settings, Settings, "cetsim.supervised.Settings")
        self.make_model, self.settings = make_model, settings
        self.x = checks.require_examples(x)
        self.labels = checks.require_labels(labels, len(self.x))
        settings.shown.check(self.labels, settings.segment, self.x.shape)
        checks.require_labels(labels, len(self.x), self._classes())
        self._check_plain()

    def init(self, hyper: Hyperparameters, key: Array) -> TrainState:
        """The run before its first update; `key` sets the weights and the order of the images."""
        model_key, order = jax.random.split(key)
        model, buffers = eqx.nn.make_with_state(self.make_model)(model_key)
        params = eqx.filter(model, eqx.is_inexact_array)
        stream = None
        if self.settings.boundary == "carry":
            attached = self._attach(model, hyper, hyper.delay, self._windows(model, hyper), self._silence(hyper))
            stream = nn.streaming_init(attached, _as_seen(self.x[0], params), *_arguments(buffers))
        optimizer = self._optimizer(hyper).init(params)
        gate_state = None if hyper.salience is None else hyper.salience.init()
        none, never = jnp.zeros((), int), jnp.zeros((), bool)
        return TrainState(hyper, params, buffers, optimizer, stream, order, none, never, gate_state, none, none)

    def advance(self, state: TrainState, steps: int, unroll: bool = False) -> tuple[TrainState, Float[Array, " steps"]]:
        """Makes `steps` (static, a whole number) updates; returns the state after them and the loss of each.

        `unroll` writes the steps out instead of looping: for networks with convolutions on CPU, which XLA runs 40 times
        slower inside a loop. Then make a few steps a call, since each is compiled.
        """
        template, steps = self._template(), checks.require_whole("steps", steps, least=0)

        def update(state, frames):
            x, labels = self.settings.shown.show(frames, self.x, self.labels)
            x, model = _as_seen(x, state.params), eqx.combine(state.params, template)
            if state.hyper.salience is not None:
                return self._learn_from_salient(model, state, x, labels)
            (loss, buffers), grads, stream = self._gradient(model, state, state.stream, x, labels)
            means = self._means(model, x, state.buffers)
            return self._updated(state, loss, grads, means, buffers=buffers, stream=stream), loss

        frames = self._frames(state, steps)
        if not unroll:
            return jax.lax.scan(update, state, frames)
        losses = []
        for i in range(steps):
            state, loss = update(state, jax.tree.map(operator.itemgetter(i), frames))
            losses.append(loss)
        return state, jnp.stack(losses)

    def evaluate(self, state: TrainState, x, labels) -> dict[str, Float[Array, ""]]:
        """`accuracy`, `top5_accuracy` (of more than ten classes) and mean cross-entropy `loss` on held-out examples.

        **Raises:** ValueError for `x` and `labels` that `SupervisedRun` would refuse, where they are not traced.
        """
        x = _as_seen(checks.require_examples(x, fetch=False), state.params)
        model = eqx.nn.inference_mode(eqx.combine(state.params, self._template()))
        logits, _ = _logits(model, x, state.buffers)
        labels = checks.require_labels(labels, len(x), logits.shape[-1])
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        measured = {"accuracy": metrics.accuracy(logits, labels), "loss": loss}
        if logits.shape[-1] > 10:
            measured["top5_accuracy"] = metrics.accuracy(logits, labels, top=5)
        return measured

    def alignment(self, state: TrainState, x, labels, over: str = "arrived") -> dict[str, Float[Array, ""]]:
        """Cosine per layer between the update of one segment and the true gradient of its loss.

        Layers that the settings name as plain are left out.

        **Arguments:** `x`, `labels`: one segment. `over`: the steps whose loss the true gradient is of, those whose
        signals `"arrived"` within the segment or `"all"`. Where a salience gate is set it is of all its events.

        The segment starts empty, in a run that carries its traces from segment to segment too.

        **Raises:** ValueError for another `over`, and as `evaluate`.
        """
        checks.require_in("over", over, ("arrived", "all"))
        if over == "arrived" and isinstance(state.hyper.delay, LayerwiseDelay) and state.hyper.salience is None:
            raise ValueError("over='arrived' needs one delay for all layers: use over='all' where they differ")
        x = _as_seen(checks.require_examples(x, fetch=False), state.params)
        labels = checks.require_labels(labels, len(x), self._classes())
        model, delay = eqx.combine(state.params, self._template()), self._delay(state)
        if state.hyper.salience is not None:
            losses, _ = _losses(model, x, labels, state.buffers)
            (rows, events, _), _ = self._select(state, losses)
            model, x, labels = eqx.nn.inference_mode(model), x[rows], labels[rows]
            truth = eqx.filter_grad(_loss, has_aux=True)(model, x, labels, state.buffers, events.shares())[0]
            _, update, _ = self._gradient(model, state, None, x, labels, events)
            return self._compared(update, truth, model, x, state.buffers)
        arrived = delay.arrived(x.shape[0]) if over == "arrived" else jnp.ones(x.shape[0])
        truth = eqx.filter_grad(_loss, has_aux=True)(model, x, labels, state.buffers, arrived)[0]
        _, update, _ = self._gradient(model, state, None, x, labels)
        return self._compared(update, truth, model, x, state.buffers)

    def _compared(self, update, truth, model, x, buffers) -> dict[str, Float[Array, ""]]:
        """Cosine per layer, both without the segment's mean of activity where weights do not learn from it."""
        means = self._means(model, x, buffers)
        cosines = metrics.alignment(*(nn.center(tree, means) if means else tree for tree in (update, truth)))
        return {name: value for name, value in cosines.items() if not self._is_plain(name)}

    def _classes(self) -> int:
        """Number of the model's outputs, from shapes alone; raises ValueError where it does not take examples."""

        def logits(key, x):
            model, buffers = eqx.nn.make_with_state(self.make_model)(key)
            return _logits(model, _as_seen(x, model), buffers)[0]

        blends = self.settings.shown.interpolation > 1  # which makes floats
        dtype = jnp.result_type(self.x.dtype, float) if blends else self.x.dtype
        segment = jax.ShapeDtypeStruct((1, *self.x.shape[1:]), dtype)
        try:
            shape = eqx.filter_eval_shape(logits, jax.random.key(0), segment).shape
        except (TypeError, ValueError) as error:
            example = f"{self.x.dtype}{list(self.x.shape[1:])}"
            raise ValueError(f"the model must take an example of `x`, {example}, but: {error}") from error
        if len(shape) != 2:
            raise ValueError(f"the model must make one logit a class, [classes], of an example, got shape {shape[1:]}")
        return shape[1]

    def _is_plain(self, name: str) -> bool:
        return any(nn.surgery.covers(plain, name) for plain in self.settings.plain)

    def _check_plain(self) -> None:
        model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(self.make_model), jax.random.key(0))
        leaves, _ = jax.tree_util.tree_flatten_with_path(model)
        is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in leaves if is_array(leaf)]
        for plain in self.settings.plain:
            if not any(nn.surgery.covers(plain, name) for name in names):
                raise ValueError(f"`plain` must name what the model has, {', '.join(names)}; got {plain!r}")

    def _template(self):
        """The model without its arrays."""
        model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(self.make_model), jax.random.key(0))
        is_parameter = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
        return eqx.filter(model, is_parameter, inverse=True)

    def _learn_from_salient(self, model, state: TrainState, x, labels):
        """An update from the salient images of a segment, found by a forward pass; and the mean loss of all images."""
        losses, buffers = _losses(model, x, labels, state.buffers)
        (rows, events, missed), gate_state = self._select(state, losses)
        # What batch norm knows of all images holds for the salient ones, whose own moments would tell of nothing else.
        seen = dataclasses.replace(state, buffers=buffers)
        x, labels, model = x[rows], labels[rows], eqx.nn.inference_mode(model)
        _, grads, stream = self._gradient(model, seen, state.stream, x, labels, events)
        skip = ~jnp.any(events.happened) if stream is None else jnp.zeros((), bool)  # a stream learns from the past too
        counts = dict(gate_state=gate_state, skipped=state.skipped + skip.astype(int), missed=state.missed + missed)
        means = self._means(model, x, buffers)
        after = self._updated(state, loss := jnp.mean(losses), grads, means, buffers=buffers, stream=stream, **counts)
        kept = {
            name: jax.tree.map(lambda old, new: jnp.where(skip, old, new), getattr(state, name), getattr(after, name))
            for name in ("params", "optimizer")
        }
        return dataclasses.replace(after, **kept), loss

    def _updated(self, state: TrainState, loss, grads, means: dict, **changed) -> TrainState:
        """The state after an update by `grads`, and with what else changed."""
        grads = jax.tree.map(lambda grad, param: grad.astype(param.dtype), grads, state.params)  # traces may be finer
        with jax.numpy_dtype_promotion("standard"):  # in which optax is written
            optimizer = optax.with_extra_args_support(self._optimizer(state.hyper))
            updates, optimizer = optimizer.update(grads, state.optimizer, state.params, means=means)
        params = optax.apply_updates(state.params, updates)
        diverged = state.diverged | ~jnp.isfinite(loss)
        changed |= {"params": params, "optimizer": optimizer, "step": state.step + 1, "diverged": diverged}
        return dataclasses.replace(state, **changed)

    def _select(self, state: TrainState, losses) -> tuple[Selection, Array]:
        """The salient steps of the segment that comes next, and what the gate remembers."""
        # Far from the epochs by which the key of the shuffles is folded.
        key = jax.random.fold_in(jax.random.fold_in(state.order, 2**31 - 1), state.step)
        return state.hyper.salience.select(losses, state.gate_state, key)

    def _silence(self, hyper: Hyperparameters) -> Events | None:
        """Events of a segment in which none happened, to make room for others; None where every step is one."""
        if hyper.salience is None:
            return None
        places = hyper.salience.places(self.settings.segment)
        return Events(jnp.zeros(places, int), self.settings.segment, jnp.zeros(places, bool))

    def _attach(self, model, hyper: Hyperparameters, delay, windows: dict | None, events: Events | None = None):
        """The model with its traces; `windows`: steps that each layer's stream remembers, None to start empty."""
        options = {"form": self.settings.form, "error_gate": hyper.error_gate, "derivative": self.settings.derivative}
        boundary, overrides = "reset", dict.fromkeys(self.settings.plain)
        if windows is not None:
            boundary, carried = "carry", {name: {"window": window} for name, window in windows.items()}
            overrides |= {name: window for name, window in carried.items() if not self._is_plain(name)}
        return nn.attach(model, hyper.trace, delay, boundary=boundary, events=events, overrides=overrides, **options)

    def _windows(self, model, hyper: Hyperparameters) -> dict[str, int]:
        """By layer, the steps that a stream remembers."""
        names = nn.layer_names(model)
        traces = hyper.trace if isinstance(hyper.trace, tuple) else (hyper.trace,) * len(names)
        own = self.settings.window
        windows = [trace.window() if own is None else own for trace in traces]
        return dict(zip(reversed(names), windows, strict=True))

    def _delay(self, state: TrainState) -> AbstractDelay | LayerwiseDelay:
        """The delay of the signals that belong to the segment that comes next."""
        return state.hyper.delay.at(state.step * self.settings.segment)

    def _gradient(self, model, state: TrainState, stream: dict | None, x, labels, events: Events | None = None):
        """Loss and buffers, update of the rule, and what is carried on."""
        delay, weights = self._delay(state), 1.0 if events is None else events.shares()
        if stream is not None:
            differentiate = nn.streaming_value_and_grad(_loss, has_aux=True)
            windows = {name: layer.gain.shape[0] for name, layer in stream.items()}  # of traces that are traced here
            attached = self._attach(model, state.hyper, delay, windows, events)
            loss, grads, stream = differentiate(attached, stream, x, labels, state.buffers, weights)
            return loss, nn.detach(grads), stream

        def traced(model):
            return _loss(self._attach(model, state.hyper, delay, None, events), x, labels, state.buffers, weights)

        return *eqx.filter_value_and_grad(traced, has_aux=True)(model), None

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        rate = lambda step: hyper.learning_rate * self.settings.schedule(step)  # noqa: E731
        clip = optax.clip_by_global_norm(self.settings.clip)
        chain = optax.chain(clip, optax.adamw(rate, weight_decay=hyper.weight_decay))
        return chain if self.settings.centering is None else nn.centered(chain, self.settings.centering)

    def _means(self, model, x, buffers) -> dict:
        """Of what each layer gets in a segment, where weights learn from the rest alone."""
        if self.settings.centering is None:
            return {}
        return nn.mean_inputs(lambda model: _logits(model, x, buffers)[0], model)

    def _frames(self, state: TrainState, steps: int) -> Frames:
        """What the next segments show, `[steps, segment]`."""
        return self.settings.shown.frames(state.order, self.labels, state.step, steps, self.settings.segment)


def _loss(model, x, labels, buffers, weights=1.0):
    """Mean over the steps of a segment, and the buffers after it."""
    losses, buffers = _losses(model, x, labels, buffers)
    return jnp.mean(weights * losses), buffers


def _losses(model, x, labels, buffers):
    """Loss of every step of a segment, and the buffers after it."""
    logits, buffers = _logits(model, x, buffers)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels), buffers


def _logits(model, x, buffers):
    """What the model says at every step of a segment, and the buffers after it."""
    if not jax.tree.leaves(buffers):
        return jax.vmap(model, axis_name="time")(x), buffers
    over_time = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="time")
    return over_time(x, *_arguments(buffers))


def _as_seen(x, params):
    """Images in the precision of the model's parameters; whole numbers that are not bytes (tokens) as they are."""
    floats = [leaf.dtype for leaf in jax.tree.leaves(params) if eqx.is_inexact_array(leaf)]
    image = jnp.issubdtype(x.dtype, jnp.floating) or x.dtype in (jnp.uint8, jnp.bool_)
    return x.astype(max(floats, key=lambda dtype: jnp.finfo(dtype).bits)) if image and floats else x


def _arguments(buffers: eqx.nn.State) -> tuple:
    """What a model is called with behind its input: a copy of its state, which equinox lets be used once."""
    return (jax.tree.map(lambda leaf: leaf, buffers),) if jax.tree.leaves(buffers) else ()
