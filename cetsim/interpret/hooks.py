"""Hooks on the modules of a model: what stands at a site can be seen and changed while the model runs.

A hooked module is of a subclass of its own class, so that code which asks for its class, reads its weights or calls
its other methods goes on as before. A hook gets the call and returns what the module is to return.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from cetsim import checks

FIELDS = ("cetsim_hook", "cetsim_edits")


def hooked(node, hook):
    """The module with a hook around its call; a hook that it has already is replaced."""
    return rebuilt(_hooked_class(plain_class(node)), node, cetsim_hook=hook)


def unhooked(node):
    """The module as it was before a hook or edits were put on it."""
    return rebuilt(plain_class(node), node)


def is_hooked(node) -> bool:
    """Whether what the module returns is looked at or edited."""
    return hasattr(node, "cetsim_hook")


def edits_of(model) -> dict:
    """The edits that a model has, by site."""
    return getattr(model, "cetsim_edits", {})


def plain_class(node) -> type:
    """The class of a module before a hook or edits were put on it."""
    kind = type(node)
    while "cetsim_plain" in vars(kind):
        kind = kind.cetsim_plain
    return kind


def rebuilt(kind: type, node, **fields):
    """The module with other fields of ours, as one of a subclass made by `subclass`, or of its plain class."""
    # As Equinox itself does when it puts a module together from its leaves: without __init__, which may do anything.
    new = object.__new__(kind)
    kept = {name: value for name, value in vars(node).items() if name not in FIELDS}
    for name, value in (kept | fields).items():
        object.__setattr__(new, name, value)
    return new


def subclass(kind: type, call, field: str, static: bool) -> type:
    """A class of modules like `kind` that has one more field and is called otherwise."""
    body = {
        "__call__": call,
        "__init__": _refuse_init,
        "__annotations__": {field: Any},
        field: eqx.field(static=static),
    }
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (kind,), body | named | {"cetsim_plain": kind})


def _refuse_init(self):
    raise TypeError("modules of this class are made by `capture` and `edited`")


@functools.cache
def _hooked_class(kind: type) -> type:
    def call(self, *args, **kwargs):
        return self.cetsim_hook.around(functools.partial(kind.__call__, self), args, kwargs)

    return subclass(kind, call, "cetsim_hook", static=True)


def value_of(name: str, output):
    """What a module returned as `(value, put back)`, where a stateful one returned `(value, state)`.

    **Raises:** ValueError unless the value is one array of floating point numbers.
    """
    stateful = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], eqx.nn.State)
    value = output[0] if stateful else output
    if not eqx.is_array(value) or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"an array of {value.dtype}" if eqx.is_array(value) else f"a {type(value).__name__}"
        raise ValueError(f"site {name!r} returns {what}, where a site's value is one array of floating point numbers")
    return value, (lambda new: (new, output[1])) if stateful else (lambda new: new)


class Unbound(NamedTuple):
    """Stands at an edited site while the model is not running: an edit needs the call of the whole model."""

    name: str

    def around(self, call, args, kwargs):
        """Raises ValueError."""
        raise ValueError(
            f"site {self.name!r} is edited, and edits act when the model itself is called: a part of it, or another of "
            "its methods, would run without them"
        )


class Seen:
    """Notes the value of a site in an abstract run: its shape, with the axes mapped inside the model in front."""

    def __init__(self, name: str):
        self.name, self.runs, self.shape, self.dtype, self.fault = name, 0, None, None, None

    def around(self, call, args, kwargs):
        """Calls the module and notes what it returns."""
        output = call(*args, **kwargs)
        self.runs += 1
        if self.runs > 1:
            self.fault = f"site {self.name!r} runs {self.runs} times in one call of the model: it needs a module a run"
            return output
        try:
            value, put_back = value_of(self.name, output)
        except ValueError as error:
            self.fault = str(error)
            return output
        self.shape, self.dtype = value.shape, value.dtype

        @jax.custom_batching.custom_vmap
        def seen(value):
            return value

        @seen.def_vmap
        def mapped(size, batched, value):
            self.shape = (size, *self.shape)
            return seen(value), True

        return put_back(seen(value))


class Cell(NamedTuple):
    """Zeros whose cotangents bring out what a site's value is, and how often it ran.

    **Fields:** `value`: of the value's shape, None where it is not captured. `runs`: a scalar.
    """

    value: jax.Array | None
    runs: jax.Array


class Bound:
    """Edits the value of a site and lets it out through its `Cell`, in one run of the model.

    `tied`: whether sites before this one can still be captured where an edit forgets the value.
    """

    def __init__(self, name: str, edits: tuple, shape: tuple[int, ...], cell: Cell, tied: bool):
        self.name, self.edits, self.shape, self.cell, self.tied = name, edits, shape, cell, tied

    def around(self, call, args, kwargs):
        """Calls the module; returns the edited value."""
        value, put_back = value_of(self.name, call(*args, **kwargs))
        for edit in self.edits:
            new = _apply(self.name, edit, value, self.shape)
            value = _tie(new, value) if self.tied else new
        return put_back(_tap(value, self.cell, None if self.cell.value is None else self.shape))


def _apply(name: str, edit, value, shape: tuple[int, ...]):
    """The edit of a value that may be inside maps of the model's own, over whose axes it is stacked first."""
    if value.ndim == len(shape):
        try:
            new = edit(value)
        except ValueError as error:
            raise ValueError(f"site {name!r}: {error}") from error
        if not eqx.is_array(new) or new.shape != value.shape or not jnp.issubdtype(new.dtype, jnp.floating):
            got = f"{new.dtype}{list(new.shape)}" if eqx.is_array(new) else checks.shown(new)
            raise ValueError(f"site {name!r}: an edit must return {value.dtype}{list(value.shape)}, got {got}")
        return new.astype(value.dtype)
    leaves, rest = eqx.partition(edit, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def each(leaves, value):
        return value

    @each.def_vmap
    def stacked(size, batched, leaves, value):
        return _apply(name, eqx.combine(leaves, rest), value, shape), True

    return each(leaves, value)


@jax.custom_vjp
def _tie(new, value):
    """`new`, which has no derivative in `value`, but passes zeros on to it: autodiff goes on to what lies before."""
    return new


_tie.defvjp(lambda new, value: (new, value), lambda value, cotangent: (cotangent, jnp.zeros_like(value)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tap(value, cell: Cell, shape: tuple[int, ...] | None):
    """The value itself. Its cotangent passes; that of the cell is the value, and a 1 for this run."""
    return value


def _tap_forward(value, cell: Cell, shape):
    return value, (None if shape is None else value)


def _tap_backward(shape, value, cotangent):
    # The 1 is a NumPy number: as long as nothing is added to it and no loop carries it, the sum stays one that can be
    # read while tracing, so that a site which runs once costs no check in the program.
    return cotangent, Cell(None if shape is None else _stacked(value, shape), np.ones((), np.float32))


_tap.defvjp(_tap_forward, _tap_backward)


def _stacked(value, shape: tuple[int, ...]):
    """The value with the axes of the model's own maps in front, outside of these maps."""
    if value.shape == shape:
        return value

    @jax.custom_batching.custom_vmap
    def stack(value):
        return jnp.broadcast_to(value, shape)

    @stack.def_vmap
    def over_inner_axis(size, batched, value):
        return _stacked(value, shape), False

    return stack(value)
