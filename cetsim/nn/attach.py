"""Attaching traces to the layers of an Equinox model, and taking them off again."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim import checks, credit
from cetsim.delays import AbstractDelay, LayerwiseDelay
from cetsim.events import Events
from cetsim.nn.block import Absorbed, Affine, Held, TracedBlock, path_name
from cetsim.nn.conv import AvgPool2d
from cetsim.nn.synapse import DERIVATIVES, Synapses
from cetsim.traces import AbstractTrace

BOUNDARIES = ("reset", "carry")
FORMS = (*credit.FORMS, "authors")
_OPTIONS = (
    "trace",
    "delay",
    "form",
    "error_gate",
    "signal",
    "reward",
    "feedback",
    "activation",
    "window",
    "derivative",
)
_UNKNOWN = object()


def attach(
    model,
    trace: AbstractTrace | tuple[AbstractTrace, ...],
    delay: AbstractDelay | LayerwiseDelay,
    *,
    form: str = "activation",
    error_gate=0.0,
    boundary: str = "reset",
    signal=None,
    reward=None,
    window: int | None = None,
    derivative: str = "ideal",
    events: Events | None = None,
    length=None,
    overrides: dict | None = None,
):
    """The model with a trace on every synapse of its `Linear` and `Conv2d` layers; its outputs are unchanged.

    The gradient of a loss of the attached model is the update that the synapses would make: attach inside the loss,
    differentiate and optimise as usual. Map the model over time by `jax.vmap(model, axis_name="time")`; every other
    map, inside or outside of that one, is a batch, tokens, conditions or an ensemble.

    **Arguments:**

    - `model`: any Equinox model. Activations are found behind their layer in an `eqx.nn.Sequential` or `eqx.nn.MLP`,
      and average pools behind the activation in a Sequential (in the form `"activation"`, where they commute with
      the filter, and filtering what is pooled is cheaper).
    - `trace`: what synapses remember, shared or one kernel a post-neuron; or a tuple of traces, one a layer from the
      top (the last in the model's tree) down. `delay`: when learning signals arrive, in all layers or layer by layer.
    - `form`: `"activation"`, `"preactivation"` or `"authors_linear"` (see `credit.synaptic_factors`), or `"authors"`,
      `"authors_linear"` for Linear and `"activation"` for Conv2d layers, as in the authors' code. Layers outside a
      Sequential or MLP, whose activation cannot be seen, need `"preactivation"` or an override of `activation`.
    - `error_gate`: activity enters the trace only at steps where ‖∂ℓ/∂a‖² is above it; 0 is off.
    - `boundary`: `"reset"` starts every stretch empty, `"carry"` goes with `streaming_value_and_grad`.
    - `signal`: stands in for ∂ℓ/∂a, with its sign and by the steps that it belongs to: `[time]`, or `[time, *out]` of
      one layer. The gradient is then Σ_t signal(t) · trace, a sum over steps and over whatever else is mapped.
    - `reward`: a scalar third factor `[time]` such as dopamine, by the steps that earned it, `delay` later seen by all
      post-neurons alike: weights change along +Σ_t reward(t) · trace (the gradient is minus that), whatever the loss;
      a sum over steps and over batches, so divide it for a mean. Rewards given by the steps at which they come take
      `FixedDelay(0.0)`. The loss must read the model's outputs (their sum will do), or jax never asks for a gradient.
    - `window`: steps that a stream remembers; by default those outside which 1e-6 of the kernel's area lies.
    - `derivative`: how f'(z), which errors pass on their way down, waits for them in each layer: `"ideal"`, as it was,
      or in a `"cascade"`, the layer's trace, at the soma (with `boundary="reset"`, since what a stream sends down at
      once cannot wait).
    - `events`: the steps of the stretch that the model is mapped over, where these are not all.
    - `length`: steps of the stretch that are real, a whole number that may be traced, where padding follows: nothing
      enters a trace, is sent or arrives from there on.
    - `overrides`: by layer name (see `layer_names`), a dict of the arguments above that differ there, also `feedback`
      (weights that errors travel down through) and, for a layer whose activation cannot be seen, `activation`: None if
      it has none, or a function that the block then applies in the model's stead; or None to train the layer by plain
      backprop.

    **Returns:** a model of the same kind whose layers are `TracedBlock`s. `detach` undoes it.

    **Raises:** ValueError for options outside their range, layers that do not exist or an activation that is unknown
    or not elementwise.
    """
    common = dict(form=form, error_gate=error_gate, signal=signal, reward=reward, window=window, derivative=derivative)
    if length is not None:
        if jnp.ndim(length) != 0 or not jnp.issubdtype(getattr(length, "dtype", type(length)), jnp.integer):
            raise ValueError(
                f"`length` must be one whole number of steps (map over sequences with jax.vmap), got {length!r}"
            )
        length = jnp.asarray(length)
        if events is not None and boundary == "carry":
            raise ValueError(
                "`length` and `events` do not go together with boundary='carry': say `Events(times, steps)`"
            )
    overrides = {} if overrides is None else overrides
    checks.require_in("boundary", boundary, BOUNDARIES)
    known = layer_names(model)
    if not known:
        raise ValueError("the model has no Linear or Conv2d layer to attach a trace to")
    traces, delays = _by_layer("trace", trace, known), _by_layer("delay", delay, known)
    for name, options in overrides.items():
        if name not in known:
            raise ValueError(f"`overrides` names the layer {name!r}; the model has {', '.join(known)}")
        for option in options or ():
            checks.require_in(f"overrides[{name!r}]", option, _OPTIONS)

    def make(name, affine, activation, pool=None):
        if name in overrides and overrides[name] is None:
            return None
        options = {"trace": traces[name], "delay": delays[name]} | common | overrides.get(name, {})
        return _block(name, affine, activation, pool, boundary, events, length, **options)

    return _rewrite(model, (), make)


def _by_layer(option: str, given, names: list[str]) -> dict:
    """A value for each layer, where one is given for all or a number of them from the top down."""
    each = given.delays if isinstance(given, LayerwiseDelay) else given
    if not isinstance(each, tuple | list):
        return dict.fromkeys(names, given)
    if len(each) != len(names):
        many = f"{len(names)} layers, {', '.join(names)}"
        raise ValueError(f"`{option}` must be one for all or one a layer from the top down, got {len(each)} for {many}")
    return dict(zip(reversed(names), each, strict=True))


def layer_names(model) -> list[str]:
    """Names of the layers that `attach` finds, in the order of the model's tree."""
    is_layer = lambda node: isinstance(node, (*Affine, TracedBlock))  # noqa: E731
    nodes, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_layer)
    return [path_name(path) for path, node in nodes if is_layer(node)]


def detach(model):
    """The model without its traces, as it was before `attach`; also turns its gradient into that of the plain model."""

    def strip(node):
        if isinstance(node, TracedBlock):
            return node.affine
        if isinstance(node, eqx.nn.Sequential):
            layers = list(node.layers)
            absorbed = []
            for i, layer in enumerate(layers):
                if isinstance(layer, TracedBlock):
                    absorbed = [part for part in (layer.activation, layer.pool) if part is not None]
                layers[i] = absorbed.pop(0) if isinstance(layer, Absorbed) else layer
            return eqx.tree_at(lambda seq: seq.layers, node, tuple(detach(layer) for layer in layers))
        if isinstance(node, eqx.nn.MLP):
            return _detach_mlp(node)
        return node

    return jax.tree.map(strip, model, is_leaf=lambda node: isinstance(node, (TracedBlock, *_CONTAINERS)))


_CONTAINERS = (eqx.nn.Sequential, eqx.nn.MLP)


def _rewrite(model, prefix, make):
    """Replaces every affine layer by what `make(name, layer, activation)` gives; None leaves it."""
    is_leaf = lambda node: isinstance(node, (*Affine, *_CONTAINERS, TracedBlock))  # noqa: E731
    nodes, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_leaf)
    return jax.tree.unflatten(structure, [_rewrite_node(node, (*prefix, *path), make) for path, node in nodes])


def _rewrite_node(node, path, make):
    if isinstance(node, TracedBlock):
        raise ValueError(f"layer {path_name(path)!r} has a trace already: `detach` the model first")
    if isinstance(node, Affine):
        return make(path_name(path), node, _UNKNOWN) or node
    if isinstance(node, eqx.nn.Sequential):
        return _rewrite_sequential(node, path, make)
    if isinstance(node, eqx.nn.MLP):
        return _rewrite_mlp(node, path, make)
    return node


def _rewrite_sequential(node, path, make):
    attr, index = jax.tree_util.GetAttrKey("layers"), jax.tree_util.SequenceKey
    layers = list(node.layers)
    for i, layer in enumerate(node.layers):
        where = (*path, attr, index(i))
        if not isinstance(layer, Affine):
            layers[i] = layers[i] if isinstance(layers[i], Absorbed) else _rewrite(layer, where, make)
            continue
        behind = _until_next_layer(node.layers[i + 1 :])
        absorbs = bool(behind) and _is_elementwise(behind[0], layer)
        if any(_is_elementwise(other, layer) for other in behind[1:] if not _is_pool([other])):
            raise ValueError(
                f"an activation stands behind layer {path_name(where)!r}, but not directly or not alone: "
                "put one activation directly behind its layer"
            )
        pool = behind[1] if absorbs and isinstance(layer, eqx.nn.Conv2d) and _is_pool(behind[1:]) else None
        block = make(path_name(where), layer, behind[0] if absorbs else None, pool)
        if block is not None:
            parts = absorbs + (block.pool is not None)
            layers[i : i + 1 + parts] = [block, *[Absorbed()] * parts]
    return eqx.tree_at(lambda seq: seq.layers, node, tuple(layers))


def _is_pool(layers) -> bool:
    return bool(layers) and isinstance(layers[0], (eqx.nn.AvgPool2d, AvgPool2d))


def _until_next_layer(layers) -> list:
    stop = next((i for i, layer in enumerate(layers) if isinstance(layer, (*Affine, *_CONTAINERS))), len(layers))
    return list(layers[:stop])


def _rewrite_mlp(node, path, make):
    if any(eqx.is_array(leaf) for leaf in jax.tree.leaves((node.activation, node.final_activation))):
        raise ValueError(f"the MLP {path_name(path)!r} learns its activations: build it as an eqx.nn.Sequential")
    attr, index = jax.tree_util.GetAttrKey("layers"), jax.tree_util.SequenceKey
    last = len(node.layers) - 1
    layers = []
    for i, layer in enumerate(node.layers):
        name = path_name((*path, attr, index(i)))
        block = make(name, layer, node.final_activation if i == last else node.activation)
        if block is None:
            raise ValueError(f"layer {name!r} of an eqx.nn.MLP cannot be left untraced: build an eqx.nn.Sequential")
        layers.append(block)
    where = lambda mlp: (mlp.layers, mlp.activation, mlp.final_activation)  # noqa: E731
    hidden = Absorbed() if last > 0 else node.activation
    return eqx.tree_at(where, node, (tuple(layers), hidden, Absorbed()))


def _detach_mlp(node):
    if not any(isinstance(layer, TracedBlock) for layer in node.layers):
        return node
    where = lambda mlp: (mlp.layers, mlp.activation, mlp.final_activation)  # noqa: E731
    hidden = node.layers[0].activation if len(node.layers) > 1 else node.activation
    plain = tuple(layer.affine for layer in node.layers)
    return eqx.tree_at(where, node, (plain, hidden, node.layers[-1].activation))


def _is_elementwise(function, affine) -> bool:
    """Whether each output of `function` depends on its own input alone, tried on a few numbers."""
    if isinstance(function, (eqx.nn.Dropout, eqx.nn.Identity)) or not callable(function):
        return False
    # Its own parameters may be traced, inside a loss: any numbers in their place tell the same.
    number = lambda leaf: np.full(leaf.shape, 0.37, leaf.dtype) if checks.is_traced(leaf) else leaf  # noqa: E731
    function = jax.tree.map(number, function)
    shape = _output_shape(affine)
    numbers = np.linspace(-1.7, 1.9, math.prod(shape))
    others = np.full_like(numbers, 2.1)
    kept = len(numbers) // 2
    numbers[kept] = others[kept] = 0.37
    try:
        with jax.ensure_compile_time_eval():
            out, changed = (np.asarray(_apply(function, probe.reshape(shape))) for probe in (numbers, others))
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"whether {function!r} is an activation cannot be told, since it uses a value that is traced here: "
            "make it an eqx.Module that holds the value in a field"
        ) from error
    except Exception:  # what is made for another shape may raise anything
        return False
    return out.shape == shape and bool(out.ravel()[kept] == changed.ravel()[kept])


@eqx.filter_jit
def _apply(function, x):
    # Compiled, since functions with a derivative of their own, such as relu, are traced under a vmap otherwise, even
    # where everything is to be evaluated at once.
    return function(x)


def _output_shape(affine) -> tuple[int, ...]:
    """Shape of a layer's output, of a small image in a convolution."""
    channels = affine.weight.shape[0]
    if isinstance(affine, eqx.nn.Linear):
        return (channels,)
    return (2, 3, channels) if getattr(affine, "layout", None) == "channels_last" else (channels, 2, 3)


def _block(
    name,
    affine,
    found,
    pool,
    boundary,
    events,
    length,
    *,
    trace,
    delay,
    form,
    error_gate,
    signal,
    reward,
    window,
    derivative,
    feedback=None,
    **given,
):
    """One layer's block, with everything that can be wrong with its options said by name."""
    checks.require_in("form", form, FORMS)
    if form == "authors":
        form = "authors_linear" if isinstance(affine, eqx.nn.Linear) else "activation"
    activation = _activation(name, affine, found, form, given)
    if not isinstance(trace, AbstractTrace):
        raise ValueError(f"layer {name!r}: `trace` must be one of cetsim's traces, got {trace!r}")
    if not isinstance(delay, AbstractDelay):
        raise ValueError(f"layer {name!r}: `delay` must be one of cetsim's delays, got {delay!r}")
    checks.require_same_dt(f"layer {name!r}: trace and delay", trace.dt, delay.dt)
    checks.require_at_least("error_gate", error_gate, 0.0)
    if jnp.ndim(error_gate) != 0:
        raise ValueError(f"layer {name!r}: `error_gate` must be one number, got shape {jnp.shape(error_gate)}")
    if window is not None and window < 0:
        raise ValueError(f"layer {name!r}: `window` must be at least 0 steps, got {window}")
    out = affine.weight.shape[0]
    if trace.shape not in ((), (out,)):
        raise ValueError(f"layer {name!r}: a trace must be shared or have shape ({out},), got {trace.shape}")
    if trace.shape and getattr(affine, "layout", None) == "channels_last":
        raise ValueError(
            f"layer {name!r}: a kernel a post-neuron needs the layout 'channels_first', got 'channels_last'"
        )
    if feedback is not None and jnp.shape(feedback) != affine.weight.shape:
        raise ValueError(f"layer {name!r}: `feedback` must have shape {affine.weight.shape}, got {jnp.shape(feedback)}")
    if boundary == "reset":
        window = None
    elif delay.keep_late:
        raise ValueError("`keep_late` is for boundary='reset': a stream that is carried loses no signal")
    else:
        window = trace.window() if window is None else window
    checks.require_in("derivative", derivative, DERIVATIVES)
    if derivative == "cascade" and boundary == "carry":
        raise ValueError(
            f"layer {name!r}: derivative='cascade' needs boundary='reset': a stream sends errors down at once, "
            "and they cannot wait for a cascade that later stretches add to"
        )
    if reward is not None:
        if signal is not None or jnp.ndim(reward) != 1:
            wrong = "both" if signal is not None else f"shape {jnp.shape(reward)}"
            raise ValueError(f"layer {name!r}: `reward` must be [time], and stands alone or `signal` does, got {wrong}")
        signal = -jnp.asarray(reward, dtype=float)  # L descends, a reward is ascended
    signal = None if signal is None else jnp.asarray(signal)
    if form != "activation" or signal is not None:  # L is not the error that comes through the pool
        pool = None
    gate = jnp.asarray(error_gate, dtype=float)
    synapses = Synapses(trace, delay, gate, signal, form, window, pool, derivative, events, length=length, name=name)
    return TracedBlock(affine, activation, pool, Held(feedback), Held(synapses))


def _activation(name, affine, found, form: str, given: dict) -> Callable | None:
    if "activation" in given:
        if found is not _UNKNOWN:
            raise ValueError(f"layer {name!r}: its activation is known from the model and cannot be overridden")
        found = given["activation"]
    if found is _UNKNOWN:
        if form != "preactivation":
            raise ValueError(
                f"layer {name!r} stands outside a Sequential or MLP, so that its activation is unknown: use "
                "form='preactivation', or put layer and activation in an eqx.nn.Sequential"
            )
        return None
    if found is not None and not _is_elementwise(found, affine):
        raise ValueError(f"layer {name!r}: the activation must be elementwise, got {found!r}")
    return found
