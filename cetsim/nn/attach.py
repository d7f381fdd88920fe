"""Attaching traces to the layers of an Equinox model, and taking them off again."""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim import checks, credit
from cetsim.delays import AbstractDelay, LayerwiseDelay
from cetsim.events import Events
from cetsim.nn import surgery
from cetsim.nn.activations import Behind, look_behind
from cetsim.nn.block import Absorbed, TracedBlock, path_name, plain_layer
from cetsim.nn.surgery import Place, Site
from cetsim.nn.synapse import DERIVATIVES, NonTrainable, Synapses
from cetsim.traces import AbstractTrace

BOUNDARIES = ("reset", "carry")
FORMS = (*credit.FORMS, "authors")
_RULE = ("trace", "delay", "form", "error_gate", "signal", "reward", "window", "derivative")
_OPTIONS = (*_RULE, "feedback", "activation")


def attach(
    model,
    trace: AbstractTrace | tuple[AbstractTrace, ...] | dict[str, AbstractTrace],
    delay: AbstractDelay | LayerwiseDelay | dict[str, AbstractDelay],
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
    """The model with a trace on every synapse of its linear, convolution and embedding layers; outputs are unchanged.

    The gradient of a loss of the attached model is the update that the synapses would make: attach inside the loss,
    differentiate and optimise as usual. Map the model over time by `jax.vmap(model, axis_name="time")`; every other
    map, inside or outside of that one, is a batch, tokens, conditions or an ensemble.

    **Arguments:**

    - `model`: any Equinox model; `layer_names` says which of its layers are found.
    - `trace`: what synapses remember, shared or one kernel per post-neuron; or one trace per layer, in a dict by name
      (of a layer or of a module that holds some) or in a tuple from the top (the last in the model's tree) down.
    - `delay`: when learning signals arrive, in all layers or layer by layer, by name or from the top down.
    - `form`, `error_gate`, `signal`, `reward`, `window`, `derivative`: the rule in all layers, see `Synapses`.
    - `boundary`: `"reset"` starts every segment empty, `"carry"` goes with `streaming_value_and_grad`.
    - `events`: the steps of the segment that the model is mapped over, where these are not all.
    - `length`: steps of the segment that are real, a whole number that may be traced, where padding follows: nothing
      enters a trace, is sent or arrives from there on.
    - `overrides`: by the name of a layer (see `layer_names`) or of a module that holds some, the longest name first. A
      dict of the arguments above that differ there, also `feedback` (weights that errors travel down through) and
      `activation`: None, which says that a layer whose activation cannot be seen has none. Or None, to leave what is
      there to plain, undelayed backprop.

    **Returns:** a model of the same kind whose layers are `TracedBlock`s. `detach` undoes it.

    **Raises:** ValueError for options outside their range, layers that do not exist or cannot have a trace, an
    activation that is unknown or not elementwise.

    **Warns:** of parameters without a trace that `overrides` do not name, such as a LayerNorm's; of traces or delays
    that go by the order of the model's tree where this may not be the order of calls.
    """
    common = dict(form=form, error_gate=error_gate, signal=signal, reward=reward, window=window, derivative=derivative)
    checks.require_in("boundary", boundary, BOUNDARIES)
    length = _length(length, boundary, events)
    sites, overrides = _plain_sites(model), overrides or {}
    options_of = _options_by_layer(model, sites, overrides)
    traced = _traced(sites, options_of)
    by_layer = {name: _by_layer(name, given, sites, options_of) for name, given in (("trace", trace), ("delay", delay))}
    new = {}
    for site in traced:
        options = {name: values[site.name] for name, values in by_layer.items()} | common | options_of[site.name]
        new |= _replacements(site, _block(site, boundary, events, length, **options))
    _check_shared_activations(traced, sites, new)
    _warn_of_rest(model, sites, overrides)
    return surgery.replace(model, new)


def _length(length, boundary: str, events: Events | None):
    """The real length of a segment as an array, or None for all of it."""
    if length is None:
        return None
    if jnp.ndim(length) != 0 or not jnp.issubdtype(getattr(length, "dtype", type(length)), jnp.integer):
        raise ValueError(
            f"`length` must be one whole number of steps (map over sequences with jax.vmap), got {length!r}"
        )
    if events is not None and boundary == "carry":
        raise ValueError("`length` and `events` do not go together with boundary='carry': say `Events(times, steps)`")
    return jnp.asarray(length)


def layer_names(model) -> list[str]:
    """Names of the layers that `attach` finds, in the order of the model's tree.

    They are `eqx.nn.Linear`, `Conv`, `ConvTranspose` and `Embedding` of any dimension, also in an `eqx.nn.WeightNorm`.
    Activations are found behind their layer in `eqx.nn.Sequential` and `eqx.nn.MLP`, however nested, and average pools
    behind the activation of a Conv2d (in the form `"activation"`, where they commute with the filter, and filtering
    what is pooled is cheaper).
    """
    return [site.name for site in surgery.sites(model) if site.fault is None]


def detach(model):
    """The model without its traces, as it was before `attach`; also turns its gradient into that of the plain model."""
    new = {}
    for site in surgery.sites(model):
        if not isinstance(site.layer, TracedBlock):
            continue
        absorbed = [place.path for place in site.behind if isinstance(place.node, Absorbed)]
        new |= dict(zip(absorbed, (site.layer.activation, site.layer.pool), strict=False))
        new[site.path] = site.layer.affine
    return surgery.replace(model, new)


def _plain_sites(model) -> list[Site]:
    sites = surgery.sites(model)
    for site in sites:
        if isinstance(site.layer, TracedBlock):
            raise ValueError(f"layer {site.name!r} has a trace already: `detach` the model first")
    if not sites:
        raise ValueError("the model has no Linear, Conv, ConvTranspose or Embedding layer to attach a trace to")
    return sites


def _traced(sites: list[Site], options_of: dict) -> list[Site]:
    """The layers that get a trace."""
    traced = [site for site in sites if options_of[site.name] is not None]
    for site in traced:
        if site.fault is not None:
            raise ValueError(f"{site.fault}; overrides={{{site.name!r}: None}} leaves it to undelayed backprop")
    return traced


def _options_by_layer(model, sites: list[Site], overrides: dict) -> dict[str, dict | None]:
    """What `overrides` says of each layer; ValueError for names that are not in the model, or unknown options."""
    names = [site.name for site in sites]
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    learned = [path_name(path) for path, leaf in leaves if eqx.is_inexact_array(leaf)]
    for key, options in overrides.items():
        if not any(surgery.covers(key, name) for name in (names if options is not None else names + learned)):
            raise ValueError(f"`overrides` names the layer {key!r}; the model has {', '.join(names)}")
        for option in options or ():
            checks.require_in(f"overrides[{key!r}]", option, _OPTIONS)
    return {name: overrides.get(surgery.nearest(overrides, name), {}) for name in names}


def _warn_of_rest(model, sites: list[Site], overrides: dict) -> None:
    """Tells which parameters have no trace, unless `overrides` says so."""
    left = [name for name, options in overrides.items() if options is None]
    rest = surgery.parameters(model, [site.name for site in sites] + left)
    if rest:
        kinds = ["array" if eqx.is_array(place.node) else type(place.node).__name__ for place in rest]
        named = ", ".join(f"{path_name(place.path)} ({kind})" for place, kind in zip(rest, kinds, strict=True))
        silent = ", ".join(f"{path_name(place.path)!r}: None" for place in rest)
        warnings.warn(
            f"no trace: {named}. What these hold learns by plain, undelayed backprop; if that is meant, "
            f"say so with overrides={{{silent}}}",
            stacklevel=3,
        )


def _by_layer(option: str, given, sites: list[Site], overrides: dict) -> dict:
    """A value for each layer, where one is given for all, by name, or a number of them from the top down."""
    values_given = given.delays if isinstance(given, LayerwiseDelay) else given
    sites = [site for site in sites if site.fault is None]
    names = [site.name for site in sites]
    if isinstance(values_given, dict):
        return _by_name(option, values_given, names, overrides)
    if not isinstance(values_given, tuple | list):
        return dict.fromkeys(names, given)
    if len(values_given) != len(names):
        many = f"{len(names)} layers, {', '.join(names)}"
        raise ValueError(
            f"`{option}` must be one for all or one a layer from the top down, got {len(values_given)} for {many}"
        )
    values = dict(zip(reversed(names), values_given, strict=True))
    if len(sites) > 1 and (sites[0].chain is None or len({site.chain for site in sites}) > 1):
        table = "".join(f"\n  {name}: {values[name]!r}" for name in names)
        warnings.warn(
            f"`{option}` goes by the order of the model's tree, which here may not be the order of calls. Give it by "
            f"name, in a dict, to say which layer gets what. Now it is{table}",
            stacklevel=3,
        )
    return values


def _by_name(option: str, given: dict, names: list[str], overrides: dict) -> dict:
    for key in given:
        if not any(surgery.covers(key, name) for name in names):
            raise ValueError(f"`{option}` names the layer {key!r}; the model has {', '.join(names)}")
    values = {name: given.get(surgery.nearest(given, name)) for name in names}
    for name, value in values.items():
        if value is None and overrides[name] is not None and option not in overrides[name]:
            raise ValueError(f"`{option}` names no {option} for layer {name!r}; it has {', '.join(given)}")
    return values


class _Built(NamedTuple):
    """A block and the places of what it now applies."""

    block: TracedBlock
    absorbed: tuple[Place, ...]


def _block(
    site: Site,
    boundary: str,
    events: Events | None,
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
) -> _Built:
    """One layer's block, with everything that can be wrong with its options said by name."""
    name = site.name
    checks.require_in("form", form, FORMS)
    checks.require_in("derivative", derivative, DERIVATIVES)
    if form == "authors":
        form = "authors_linear" if isinstance(plain_layer(site.layer), eqx.nn.Linear) else "activation"
    signal = _third_factor(name, signal, reward)
    needs = _needs(form, derivative, signal)
    behind = _known(site, look_behind(site), needs, given)
    _check_rule(name, site.layer, trace, delay, feedback)
    checks.require_at_least("error_gate", error_gate, 0.0)
    if jnp.ndim(error_gate) != 0:
        raise ValueError(f"layer {name!r}: `error_gate` must be one number, got shape {jnp.shape(error_gate)}")
    if derivative == "cascade" and boundary == "carry":
        raise ValueError(
            f"layer {name!r}: derivative='cascade' needs boundary='reset': a stream sends errors down at once, "
            "and they cannot wait for a cascade that later segments add to"
        )
    if window is not None and window < 0:
        raise ValueError(f"layer {name!r}: `window` must be at least 0 steps, got {window}")
    window = _window(site, trace, delay, window) if boundary == "carry" else None
    if form != "activation" or signal is not None:  # L is not the error that comes through the pool
        behind = behind._replace(pool=None)
    activation, pool = (None if place is None else place.node for place in behind[:2])
    gate = jnp.asarray(error_gate, dtype=float)
    synapses = Synapses(trace, delay, gate, signal, form, window, pool, derivative, events, length, name)
    block = TracedBlock(site.layer, activation, pool, NonTrainable(feedback), NonTrainable(synapses))
    return _Built(block, tuple(place for place in behind[:2] if place is not None))


def _third_factor(name: str, signal, reward):
    """The learning signal that is handed in, if any is: L descends, where a reward is ascended."""
    if reward is None:
        return None if signal is None else jnp.asarray(signal)
    if signal is not None or jnp.ndim(reward) != 1:
        wrong = "both" if signal is not None else f"shape {jnp.shape(reward)}"
        raise ValueError(f"layer {name!r}: `reward` must be [time], and stands alone or `signal` does, got {wrong}")
    return -jnp.asarray(reward, dtype=float)


def _needs(form: str, derivative: str, signal) -> str | None:
    """The option that has to know the activation, if any does."""
    if form != "preactivation":
        return f"form={form!r}"
    if derivative == "cascade":
        return "derivative='cascade'"
    return None if signal is None else "a signal that is handed in, which stands in for ∂ℓ/∂a,"


def _known(site: Site, behind: Behind, needs: str | None, given: dict) -> Behind:
    """What stands behind the layer, as far as an option needs to know."""
    if "activation" in given:
        if behind.hidden is None:
            raise ValueError(f"layer {site.name!r}: its activation is known from the model and cannot be overridden")
        if given["activation"] is not None:
            raise ValueError(
                f"layer {site.name!r}: `activation` can only say that there is none (None), since the model's own code "
                f"would apply {given['activation']!r} once more: put layer and activation in an eqx.nn.Sequential"
            )
        return Behind()
    if behind.hidden is not None and needs is not None:
        raise ValueError(
            f"layer {site.name!r} {behind.hidden}, but {needs} has to know its activation: use form='preactivation' "
            "without such options, put the layer and one activation directly behind it in an eqx.nn.Sequential, or say "
            f"that it has none by overrides={{{site.name!r}: {{'activation': None}}}}"
        )
    return behind


def _check_rule(name: str, layer, trace, delay, feedback) -> None:
    """Raises ValueError for a trace, delay or feedback that does not go with the layer."""
    if feedback is not None and isinstance(layer, eqx.nn.WeightNorm):
        raise ValueError(f"layer {name!r}: `feedback` does not go with an eqx.nn.WeightNorm, which makes its weights")
    layer = plain_layer(layer)
    if not isinstance(trace, AbstractTrace):
        raise ValueError(f"layer {name!r}: `trace` must be one of cetsim's traces, got {trace!r}")
    if not isinstance(delay, AbstractDelay):
        raise ValueError(f"layer {name!r}: `delay` must be one of cetsim's delays, got {delay!r}")
    checks.require_same_dt(f"layer {name!r}: trace and delay", trace.dt, delay.dt)
    out = _out(layer)
    if trace.shape not in ((), (out,)):
        raise ValueError(f"layer {name!r}: a trace must be shared or have shape ({out},), got {trace.shape}")
    if trace.shape and getattr(layer, "layout", None) == "channels_last":
        raise ValueError(
            f"layer {name!r}: one kernel per post-neuron needs the layout 'channels_first', got 'channels_last'"
        )
    if feedback is None:
        return
    if isinstance(layer, eqx.nn.Embedding):
        raise ValueError(f"layer {name!r}: `feedback` is for layers that errors pass, which an Embedding ends")
    if jnp.shape(feedback) != layer.weight.shape:
        raise ValueError(f"layer {name!r}: `feedback` must have shape {layer.weight.shape}, got {jnp.shape(feedback)}")


def _out(layer) -> int:
    if isinstance(layer, eqx.nn.Embedding):
        return layer.embedding_size
    if isinstance(layer, eqx.nn.Linear):
        return 1 if layer.out_features == "scalar" else layer.out_features
    return layer.out_channels


def _window(site: Site, trace: AbstractTrace, delay: AbstractDelay, window: int | None) -> int:
    """Steps that a stream remembers."""
    if delay.keep_late:
        raise ValueError("`keep_late` is for boundary='reset': a stream that is carried loses no signal")
    layer = plain_layer(site.layer)
    if isinstance(layer, eqx.nn.Embedding) and layer.num_embeddings > 2 ** (jnp.finfo(layer.weight.dtype).nmant + 1):
        raise ValueError(
            f"layer {site.name!r}: a stream remembers places in the table as {layer.weight.dtype}, which cannot tell "
            f"{layer.num_embeddings} apart: use a wider dtype"
        )
    return trace.window() if window is None else window


def _replacements(site: Site, built: _Built) -> dict:
    return {site.path: built.block} | {place.path: Absorbed() for place in built.absorbed}


def _check_shared_activations(traced: list[Site], sites: list[Site], new: dict) -> None:
    """Raises ValueError where a layer would lose the activation that another layer's block now applies."""
    for site in sites:
        missing = site not in traced
        if missing and any(place.path in new for place in site.behind):
            raise ValueError(
                f"layer {site.name!r} of an eqx.nn.MLP cannot be left untraced: build an eqx.nn.Sequential"
            )
