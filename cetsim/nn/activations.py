"""The activation behind a layer: the one function there each of whose outputs depends on its own input alone."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim import checks
from cetsim.nn.block import plain_layer
from cetsim.nn.conv import AvgPool2d
from cetsim.nn.surgery import Place, Site


class Behind(NamedTuple):
    """What stands behind a layer.

    **Fields:** `activation`, `pool`: their places; None where there is none. `hidden`: why the activation is not known;
    None if it is.
    """

    activation: Place | None = None
    pool: Place | None = None
    hidden: str | None = None


def look_behind(site: Site) -> Behind:
    """The activation of a layer, and the pool behind that, where they can be told.

    **Raises:** ValueError for a function that closes over a traced value.
    """
    pools = (eqx.nn.AvgPool2d, AvgPool2d)
    passed, active = [], []
    for place in site.behind:
        elementwise = not isinstance(place.node, pools) and is_elementwise(place.node, site.layer)
        if isinstance(place.node, eqx.nn.Identity) or (elementwise and is_identity(place.node, site.layer)):
            continue
        passed.append(place)
        active.append(elementwise)
    if passed and not active[0] and _needs_key(passed[0].node, site.layer):
        return Behind(hidden="has something behind it that takes a key and may be its activation")
    if not any(active):
        function = _own_function(passed)
        fault = None if function is None else f"has the activation {function!r}, which is not elementwise"
        return Behind(hidden=fault or site.hidden)
    if active.index(True) > 0 or sum(active) > 1:
        return Behind(hidden="has an activation behind it, but not directly or not alone")
    pool = passed[1] if isinstance(site.layer, eqx.nn.Conv2d) and isinstance(_node(passed[1:]), pools) else None
    return Behind(passed[0], pool)


def _own_function(places: list[Place]):
    """The function that an `eqx.nn.MLP` applies to each number by itself, where this is what comes first."""
    named = places and places[0].path[-1] in map(jax.tree_util.GetAttrKey, ("activation", "final_activation"))
    return places[0].node if named else None


def _node(places: list[Place]):
    return places[0].node if places else None


def is_elementwise(function, layer) -> bool:
    """Whether each output of `function` depends on its own input alone, tried on numbers of a layer's output shape.

    **Raises:** ValueError where that cannot be told, since the function closes over a value that is traced.
    """
    if isinstance(function, (eqx.nn.Dropout, eqx.nn.Identity)) or not callable(function):
        return False
    shape = _output_shape(function, layer)
    numbers = np.linspace(-1.7, 1.9, math.prod(shape)).astype(_dtype(layer))
    places = {0, len(numbers) // 2}  # two, since a function that turns a row around leaves its middle where it is
    numbers[0], numbers[len(numbers) // 2] = 0.73, 0.37  # where square roots and logarithms are numbers too
    others = np.full_like(numbers, 2.1)
    changed = [np.where(np.arange(len(numbers)) == place, numbers, others) for place in places]
    out = _evaluate(_apply, function, [row.reshape(shape) for row in (numbers, *changed)])
    if out is None or out[0].shape != shape:
        return False
    return all(out[0].ravel()[place] == row.ravel()[place] for place, row in zip(places, out[1:], strict=True))


def _needs_key(function, layer) -> bool:
    """Whether a function is elementwise, but cannot be called without a key; a Dropout is known to be no activation."""
    if isinstance(function, eqx.nn.Dropout) or not callable(function):
        return False
    rows = [np.zeros(_output_shape(function, layer), _dtype(layer))]
    keyed = eqx.Partial(function, key=jax.random.key(0))
    return _evaluate(_apply, function, rows) is None and is_elementwise(keyed, layer)


def is_identity(function, layer) -> bool:
    """Whether an elementwise function returns its input and leaves errors alone, tried on small and large numbers."""
    shape, dtype = _output_shape(function, layer), _dtype(layer)
    rows = [np.full(shape, number, dtype) for number in (-1e4, -3.0, -0.1, 0.0, 0.1, 3.0, 1e4)]
    out = _evaluate(_apply, function, rows)
    if out is None or not all(map(np.array_equal, out, rows)):
        return False
    pairs = _evaluate(_with_derivative, function, rows)
    return pairs is not None and all(np.array_equal(pair, (row, row)) for pair, row in zip(pairs, rows, strict=True))


def _evaluate(how, function, rows: list) -> list | None:
    """What `function` makes of each row; None if it cannot take them."""
    # Its own parameters may be traced, inside a loss: any numbers in their place tell the same.
    number = lambda leaf: np.full(leaf.shape, 0.37, leaf.dtype) if checks.is_traced(leaf) else leaf  # noqa: E731
    function = jax.tree.map(number, function)
    try:
        with jax.ensure_compile_time_eval():
            return [np.asarray(how(function, row)) for row in rows]
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"whether {function!r} is an activation cannot be told, since it uses a value that is traced here: "
            "make it an eqx.Module that holds the value in a field"
        ) from error
    except Exception:  # what is made for another shape may raise anything
        return None


@eqx.filter_jit
def _apply(function, x):
    # Compiled, since functions with a derivative of their own, such as relu, are traced under a vmap otherwise, even
    # where everything is to be evaluated at once.
    return function(x)


@eqx.filter_jit
def _with_derivative(function, x):
    """f(x), and what f passes back of x as an error."""
    out, pull = jax.vjp(function, x)
    return jnp.stack([out, pull(x.astype(out.dtype))[0]])


def _dtype(layer):
    return jnp.result_type(jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array))[0])


def _output_shape(function, layer) -> tuple[int, ...]:
    """Shape of a layer's output; of a small image in a convolution, or one of the size of the function's parameters."""
    layer = plain_layer(layer)
    if isinstance(layer, eqx.nn.Embedding):
        return (layer.embedding_size,)
    if isinstance(layer, eqx.nn.Linear):
        return () if layer.out_features == "scalar" else (layer.out_features,)
    last = getattr(layer, "layout", None) == "channels_last"
    space = [2 + axis for axis in range(layer.num_spatial_dims)]
    for leaf in jax.tree.leaves(function):
        if eqx.is_array(leaf) and leaf.ndim == len(space) + 1:
            sizes = leaf.shape[:-1] if last else leaf.shape[1:]
            space = [size if size > 1 else small for size, small in zip(sizes, space, strict=True)]
    return (*space, layer.out_channels) if last else (layer.out_channels, *space)
