"""A layer and its activation, learning through traces."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import wadler_lindig as wl

from cetsim import display, streams
from cetsim.nn.conv_gradient import learnable
from cetsim.nn.synapse import TIME, NonTrainable, Synapses, learn_from_traces, place_in_time, why_nothing_arrives
from cetsim.streams import StreamState

Affine = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.Embedding)


class Absorbed(eqx.Module):
    """Stands where an activation or a pool was that a `TracedBlock` now applies."""

    def __call__(self, x, *, key=None):
        """Returns `x`."""
        return x


class SuppliesActivation(eqx.Module):
    """A module that gives the layers it holds an activation when it calls them, so that `attach` need not see one.

    Once they are `TracedBlock`s it calls each of them by `with_activation`.
    """


class Recorder:
    """Stands in a block for the state of a stream, and notes what that state must hold."""

    def __init__(self, name: str):
        self.name, self.shapes, self.batch = name, None, ()

    def note(self, m, x, z, activity):
        """Notes the shapes of one run of the layer, and the sizes of the maps around it but for the one over time."""
        if self.shapes is not None:
            raise ValueError(f"layer {self.name!r} runs more than once a step, but a stream carries one past for it")
        self.shapes = x.shape, z.shape, activity.shape

        @jax.custom_batching.custom_vmap
        def seen(m, activity):
            return activity

        @seen.def_vmap
        def mapped(size, batched, m, activity):
            if not batched[0]:
                self.batch = (size, *self.batch)
            return seen(m, activity), True

        return seen(m, activity + (0 * m).astype(activity.dtype))


class TracedBlock(eqx.Module):
    """An affine layer, its elementwise activation and a pool; its weights' gradient is the update of their traces.

    Made by `attach`. It acts on one step, inside a `jax.vmap` over time with `axis_name="time"`.

    **Fields:**

    - `affine`: the layer. `activation`: f, or None for the identity.
    - `pool`: what stands behind it and is linear in each step, or None (it commutes with the filter, which then acts on
      the smaller signal).
    - `feedback`: weights that errors travel down through instead of the layer's own (feedback alignment).
    - `held`: the `Synapses`, out of reach of optimisers.
    - `state`: what a stream carries, only inside `streaming_value_and_grad`.
    """

    affine: eqx.Module
    activation: Callable | None
    pool: Callable | None
    feedback: NonTrainable
    held: NonTrainable
    state: StreamState | NonTrainable | None = None

    def __pdoc__(self, **_):
        """How it is shown, alone and in a model: its layer, activation and pool, and the rule of its synapses."""
        return wl.TextDoc(f"TracedBlock({', '.join(self._parts())})")

    def _parts(self) -> list[str]:
        parts = [
            eqx.tree_pformat(part, width=10**6)
            for part in (self.affine, self.activation, self.pool)
            if part is not None
        ]
        if not isinstance(self.held, NonTrainable):  # of a gradient
            return parts
        rule = self.synapses
        boundary = "'reset'" if rule.window is None else f"'carry', window={rule.window} steps"
        gate = display.value_text("error_gate", rule.error_gate)
        rest = [f"form={rule.form!r}", f"error_gate={gate}", f"boundary={boundary}"]
        return [*parts, display.describe(rule.trace), display.describe(rule.delay), *rest]

    @property
    def weight(self):
        """Raises AttributeError: what reads the weights past the trace would have them learn by undelayed backprop."""
        raise AttributeError(
            "a layer with a trace is only called. Where something else has to read its weights, they are at "
            "`.affine.weight`, and what they learn from there is not delayed"
        )

    bias = weight

    def with_activation(self, activation: Callable, affine=None) -> "TracedBlock":
        """The block as a `SuppliesActivation` calls it: with an activation of this step, and around its layer."""
        return dataclasses.replace(self, activation=activation, affine=self.affine if affine is None else affine)

    @property
    def synapses(self) -> Synapses:
        """The rule that the layer's synapses obey."""
        return self.held.value

    def __call__(self, x, *, key=None):
        """f(W x + b) and its pool, `[*in] -> [*out]`, of one step; `key` is not used.

        **Raises:** ValueError outside a map over time, and in a stream outside of `streaming_value_and_grad`.
        """
        m = place_in_time(self.synapses.name)
        z = below = self._errors_travel(x)
        activity, derivative = z, None
        if self.activation is not None:
            activity = self.activation(z)
            derivative = _slope(self.activation, z)
        if self.pool is not None:
            activity = self.pool(activity)
        if self.activation is None or self.synapses.derivative == "ideal":
            below = None
        else:
            activity = jax.lax.stop_gradient(activity)
        if isinstance(self.state, NonTrainable):
            return self.state.value.note(m, x, z, activity)
        state = self.state
        if state is None and self.synapses.window is not None:
            raise ValueError("a model attached with boundary='carry' runs inside `streaming_value_and_grad`")
        x, past = jax.lax.stop_gradient(x), None
        if state is not None:
            past = functools.partial(learnable, self.affine)
            for _ in range(state.axes + 1):
                past = jax.vmap(past)
            past = past(_as_input(self.affine, state.x)).astype(z.dtype)
        warning = why_nothing_arrives(self.synapses, jax.lax.psum(1, TIME))
        z = learnable(self.affine, x)
        synapses = self.synapses.with_constants()
        return learn_from_traces(warning, z, past, activity, below, derivative, x, state, synapses, m)

    def _errors_travel(self, x):
        """The layer's output, differentiable in its input alone."""
        weights, rest = eqx.partition(self.affine, eqx.is_inexact_array)
        frozen = eqx.combine(jax.lax.stop_gradient(weights), rest)
        if self.feedback.value is None:
            return frozen(x)
        back = eqx.tree_at(lambda layer: layer.weight, frozen, self.feedback.value)(x)
        return jax.lax.stop_gradient(frozen(x) - back) + back


def plain_layer(affine):
    """The layer itself, where its weights are normalised."""
    return affine.layer if isinstance(affine, eqx.nn.WeightNorm) else affine


def _as_input(affine, remembered):
    """What a stream remembers of a layer's input, an embedding's as the whole numbers that they are."""
    remembered = jax.lax.stop_gradient(remembered)
    return remembered.astype(int) if isinstance(plain_layer(affine), eqx.nn.Embedding) else remembered


def _slope(function, z):
    """f'(z) of an elementwise function, which is its cotangent along ones: by its own derivative, where it has one."""
    function = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, function)
    activity, pull = jax.vjp(function, jax.lax.stop_gradient(z))
    return jax.lax.stop_gradient(pull(jnp.ones_like(activity))[0])


def blocks(model) -> dict[str, TracedBlock]:
    """The traced blocks of a model by name, in the order of its tree."""
    is_block = lambda node: isinstance(node, TracedBlock)  # noqa: E731
    nodes, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_block)
    return {path_name(path): node for path, node in nodes if is_block(node)}


def path_name(path) -> str:
    """Dotted name of a place in a tree, such as `layers.0`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def bind(model, states: dict):
    """The model with each named block given its state."""
    if not blocks(model):
        raise ValueError(
            "the model has no traces: attach them with boundary='carry' before the stream begins, not inside the loss"
        )
    if set(states) != set(blocks(model)):
        raise ValueError(f"the state must have the layers {sorted(blocks(model))}, got {sorted(states)}")
    names = list(states)
    where = lambda tree: [blocks(tree)[name].state for name in names]  # noqa: E731
    return eqx.tree_at(where, model, [states[name] for name in names], is_leaf=lambda node: node is None)


def streaming_init(model, example, *buffers, batch: int | tuple[int, ...] = ()) -> dict[str, StreamState]:
    """State of a stream that has just begun, for a model attached with `boundary="carry"`.

    **Arguments:**

    - `example`: the input of one step, for its shape and dtype.
    - `buffers`: what the model is called with behind it, such as the `eqx.nn.State` of its batch norm.
    - `batch`: sizes of the maps over independent streams that the loss makes beside the one over time, inside or
      outside of it, the outermost first. Each has a state of its own. (To map `streaming_value_and_grad` itself over
      streams, map this function too.)

    **Returns:** a state for each traced layer, by name.

    **Raises:** ValueError for layers that are not attached with `boundary="carry"`, that do not run, or run twice.
    """
    batch = (batch,) if isinstance(batch, int) else tuple(batch)
    recorders = {name: Recorder(name) for name in blocks(model)}
    standing = {name: NonTrainable(recorder) for name, recorder in recorders.items()}
    inference = eqx.nn.inference_mode(bind(model, standing))
    step = jax.vmap(lambda x: inference(x, *buffers), axis_name=TIME)
    for _ in batch:
        step = jax.vmap(step)
    jax.eval_shape(lambda x: step(jnp.broadcast_to(x, (*batch, 1, *jnp.shape(x)))), example)
    states = {}
    for name, block in blocks(model).items():
        synapses, seen = block.synapses, recorders[name]
        if synapses.window is None:
            raise ValueError(f"layer {name!r} is attached with boundary='reset': nothing is carried")
        if seen.shapes is None:
            raise ValueError(f"layer {name!r} does not run when the model is called, so that it cannot have a stream")
        dtype = jnp.result_type(plain_layer(block.affine).weight)
        states[name] = streams.init_state(
            synapses.delay, synapses.window, *seen.shapes, dtype, synapses.events, seen.batch
        )
    return states


def streaming_value_and_grad(loss: Callable, has_aux: bool = False) -> Callable:
    """`eqx.filter_value_and_grad` for streams: trace and signals under way pass from segment to segment.

        value, grads, state = cetsim.streaming_value_and_grad(loss)(model, state, *batch)

    While weights are held, cutting a stream differently changes nothing in the sum of the gradients (a loss that is a
    sum over steps; a mean divides each segment's signals by its own length).

    **Arguments:**

    - `loss`: function of `(model, *batch)`, the model mapped over the steps of the segment inside it.
    - `model`: from `attach(..., boundary="carry")`.
    - `state`: from `streaming_init`, or the last call.

    **Returns:** a function that returns `(value, gradient of the model, state)`.

    **Raises:** ValueError for a state of other layers. When it runs, an error that names a layer that did not run
    exactly once in the segment (or once for each of the state's streams), where states would have been added up.
    """

    def differentiated(model_and_state, *args, **kwargs):
        return loss(bind(*model_and_state), *args, **kwargs)

    def wrapped(model, state, *args, **kwargs):
        function = eqx.filter_value_and_grad(differentiated, has_aux=has_aux)
        value, (grads, state) = function((model, state), *args, **kwargs)
        return value, grads, _each_ran_once(state)

    return wrapped


def _each_ran_once(states: dict[str, StreamState]) -> dict[str, StreamState]:
    """The states, or an error when the program runs, if any was added up or lost."""
    wrong = jnp.stack([jnp.any(state.runs != 1) for state in states.values()])
    messages = [
        f"layer {name!r} of a stream must run exactly once in a segment: it ran twice, not at all, or in a batch that "
        "its state does not have (say `streaming_init(model, example, batch=...)`)"
        for name in states
    ]
    return eqx.branched_error_if(states, jnp.any(wrong), jnp.argmax(wrong), messages)
