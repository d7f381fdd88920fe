"""Surgery on models: walking over their layers in the order of calls, naming them, replacing what stands at a place.

A *place* is a path of keys in the tree of a model, as of `jax.tree_util`; its *name* is the path with dots.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
from jax.tree_util import GetAttrKey, SequenceKey

from cetsim.nn.block import Affine, SuppliesActivation, TracedBlock, path_name

Path = tuple


class Place(NamedTuple):
    """A node of a model and where it stands."""

    path: Path
    node: object


class Site(NamedTuple):
    """A layer with weights, and what is known of the code around it.

    **Fields:**

    - `path`, `layer`: where it stands, and what. `layer` is a `TracedBlock` where it has a trace already.
    - `chain`: place of the outermost `eqx.nn.Sequential` or `eqx.nn.MLP` that calls it; None where a user's code does.
    - `behind`: places that its output passes, in the order of calls, up to the next module that holds a layer.
    - `hidden`: why it is not known what else its output passes; None if it is.
    - `fault`: why nothing can replace it; None if it can.
    """

    path: Path
    layer: object
    chain: Path | None = None
    behind: tuple[Place, ...] = ()
    hidden: str | None = None
    fault: str | None = None

    @property
    def name(self) -> str:
        """Dotted name of the place."""
        return path_name(self.path)


def is_layer(node) -> bool:
    """Whether a node is one that takes a trace, or has one: an affine layer, also with its weights normalised."""
    if isinstance(node, eqx.nn.WeightNorm):
        return isinstance(node.layer, Affine)
    return isinstance(node, (*Affine, TracedBlock))


def sites(model) -> list[Site]:
    """All layers of a model, in the order of its tree; keys of dicts that hold numbers go by these, `l2` before `l10`.

    Inside `eqx.nn.Sequential` and `eqx.nn.MLP` this is the order of calls.
    """
    found = list(_visit(model, (), whole=True))
    names = [site.name for site in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two layers of the model have the name {name!r}: rename one of the keys that hold dots")
    return found


def parameters(model, beside: list[str]) -> list[Place]:
    """Learned arrays outside the places called `beside`, gathered in the largest modules that hold nothing else."""
    return list(_parameters(model, (), beside))


def covers(name: str, other: str) -> bool:
    """Whether the place called `name` is that called `other`, or holds it; "" is the whole model."""
    return not name or other == name or other.startswith(f"{name}.")


def nearest(options: dict, name: str) -> str | None:
    """The longest key of `options` that covers the place called `name`, None if there is none."""
    return max((key for key in options if covers(key, name)), key=len, default=None)


def children(node, path: Path = ()) -> list[Place]:
    """What stands one level below a node; nothing for a leaf."""
    below, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)
    places = [Place((*path, *keys), child) for keys, child in below if keys]
    if type(node) is dict:
        places.sort(key=lambda place: _natural(path_name(place.path[-1:])))
    return places


def replace(model, new: dict[Path, object], path: Path = ()):
    """The model with other nodes at some places. The rest is kept as it is."""
    if path in new:
        return new[path]
    if not any(other[: len(path)] == path for other in new):
        return model
    below, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda other: other is not model)
    return jax.tree.unflatten(structure, [replace(child, new, (*path, *keys)) for keys, child in below])


def update(model, changes: dict[Path, Callable], path: Path = ()):
    """The model with the nodes at some places put through a function each, what stands inside them before them."""
    if any(len(other) > len(path) and other[: len(path)] == path for other in changes):
        below, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda other: other is not model)
        model = jax.tree.unflatten(structure, [update(child, changes, (*path, *keys)) for keys, child in below])
    return changes[path](model) if path in changes else model


def modules(model, path: Path = ()) -> list[Place]:
    """The callable modules below a model, each before those inside it."""
    found = []
    for place in children(model, path):
        if isinstance(place.node, eqx.Module) and callable(place.node):
            found.append(place)
        found += modules(place.node, place.path)
    return found


def chain(node, path: Path) -> list[Place]:
    """What an `eqx.nn.Sequential` or `eqx.nn.MLP` calls, in order, also inside those that it holds."""
    if _is_sequential(node):
        layers = ((*path, GetAttrKey("layers"), SequenceKey(i)) for i in range(len(node.layers)))
        return [place for at, layer in zip(layers, node.layers, strict=True) for place in chain(layer, at)]
    if not _is_mlp(node) or mlp_fault(node, path):
        return [Place(path, node)]
    places, last = [], len(node.layers) - 1
    for i, layer in enumerate(node.layers):
        function = "final_activation" if i == last else "activation"
        places.append(Place((*path, GetAttrKey("layers"), SequenceKey(i)), layer))
        if last > 0:  # an MLP without hidden layers is a Linear: it calls neither
            places.append(Place((*path, GetAttrKey(function)), getattr(node, function)))
    return places


def mlp_fault(node, path: Path) -> str | None:
    """Why the layers of an `eqx.nn.MLP` cannot be told apart or have no activation of their own; None if they do."""
    if node.scan:
        return f"the MLP {path_name(path)!r} scans over its layers: build it with scan=False"
    if len(node.layers) > 1 and any(eqx.is_array(leaf) for leaf in _functions(node)):
        return f"the MLP {path_name(path)!r} learns its activations: build it as an eqx.nn.Sequential"
    return None


def _functions(mlp) -> list:
    return jax.tree.leaves((mlp.activation, mlp.final_activation))


def _is_sequential(node) -> bool:
    # A subclass may do anything with what it holds, unless it is called as its parent is.
    return _called_as(node, eqx.nn.Sequential)


def _is_mlp(node) -> bool:
    return _called_as(node, eqx.nn.MLP)


def _called_as(node, kind: type) -> bool:
    return isinstance(node, kind) and next(cls for cls in type(node).__mro__ if "__call__" in vars(cls)) is kind


def _visit(node, path: Path, whole: bool = False, hidden: str | None = None):
    """Every site at or below a place; `whole`: whether it is the model itself, behind which there is only a loss."""
    fault = _fault(node, path)
    if is_layer(node):
        yield Site(path, node, hidden=hidden or "stands outside a Sequential or MLP, so that its activation is unknown")
    elif fault is not None:
        yield Site(path, node, fault=fault)
    elif isinstance(node, SuppliesActivation):
        for place in children(node, path):
            yield from (site._replace(hidden=None) for site in _visit(place.node, place.path))
    elif _is_sequential(node) or (_is_mlp(node) and not mlp_fault(node, path)):
        yield from _along(chain(node, path), path, whole)
    else:
        hidden = f"has an activation that cannot be told: {mlp_fault(node, path)}" if _is_mlp(node) else hidden
        for place in children(node, path):
            yield from _visit(place.node, place.path, hidden=hidden)


def _fault(node, path: Path) -> str | None:
    """Why the layers below a place cannot be replaced."""
    name = path_name(path)
    if _is_mlp(node) and node.scan:
        return mlp_fault(node, path)
    if isinstance(node, (eqx.nn.SpectralNorm, eqx.nn.Shared)) and _holds_layer(node):
        what = "calls its layer with weights of its own" if isinstance(node, eqx.nn.SpectralNorm) else "swaps weights"
        return f"{name!r} is an eqx.nn.{type(node).__name__}, which {what}: a layer in it cannot have a trace"
    return None


def _along(places: list[Place], start: Path, whole: bool):
    """Sites of a chain of calls."""
    holds = [_holds_layer(place.node) for place in places]
    for i, place in enumerate(places):
        if not is_layer(place.node):
            yield from _visit(place.node, place.path)
            continue
        stop = next((j for j in range(i + 1, len(places)) if holds[j]), len(places))
        hidden = None
        if stop == len(places) and not whole:
            hidden = "is the last of a Sequential or MLP that other code calls, so that its activation is unknown"
        yield Site(place.path, place.node, start, tuple(places[i + 1 : stop]), hidden)


def _parameters(node, path: Path, beside: list[str]):
    name = path_name(path)
    if isinstance(node, eqx.nn.StateIndex) or (path and any(covers(other, name) for other in beside)):
        return
    whole = path and isinstance(node, eqx.Module) and not any(covers(name, other) for other in beside)
    leaves = jax.tree.leaves(node, is_leaf=lambda other: isinstance(other, eqx.nn.StateIndex)) if whole else []
    if eqx.is_inexact_array(node) or any(map(eqx.is_inexact_array, leaves)):
        yield Place(path, node)
        return
    for place in children(node, path):
        yield from _parameters(place.node, place.path, beside)


def _holds_layer(node) -> bool:
    return is_layer(node) or any(_holds_layer(place.node) for place in children(node))


def _natural(key: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", key)]
