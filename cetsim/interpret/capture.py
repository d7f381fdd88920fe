"""Running a model so that the values of its sites come out, and with edits in place.

A site's value cannot be put into a list while the model runs: inside a map of the model's own, over tokens for example,
it is a value of that map alone. So it comes out by differentiation. Behind each site stands the identity, with a cell
of zeros as a second argument, whose derivative hands the value back as the cell's cotangent. What autodiff would
compute besides is dead code to XLA.
"""

import functools
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim import checks
from cetsim.interpret import hooks
from cetsim.interpret.hooks import Bound, Cell, Unbound
from cetsim.interpret.sites import look, plain, require_sites
from cetsim.nn import surgery


def capture(model, names: str | Iterable[str], edits: dict | None = None, stop_at: str | None = None) -> Callable:
    """The model as a function that returns the values of some sites beside its output.

        output, values = capture(model, ("layers.1", "layers.3"))(x)

    The function acts on one example, as the model does: map it by `jax.vmap`, jit it, differentiate it. A site inside
    a map of the model's own, such as one over tokens, has the axes of these maps in front of its value, the outermost
    first. Traces are taken off, which changes no value. Under `jit` it costs what the plain model costs.

    **Arguments:**

    - `model`: any Equinox model, with traces or edits or without.
    - `names`: of sites (see `sites`).
    - `edits`: an edit, or a tuple of them, by site; captured values are those behind the edits of their own site.
    - `stop_at`: the name of a site whose value is returned as the output. Under `jit`, nothing that only the model's
      own output needs is computed.

    **Returns:** a function of `(x, *state, **kwargs)` that returns `(output, {name: value})`; the output is
    `(logits, state)` where the model returns that.

    **Raises:** ValueError for a site that does not exist; when it runs, for one that does not run, runs more than once,
    or whose value is not one array of floating point numbers, and for an edit of the wrong shape. A site inside a
    `lax.scan` or `lax.cond`, or that reaches the output through `stop_gradient` only, is refused when the program runs.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    edits = _as_tuples(edits or {})
    require_sites(plain(model), [*names, *edits, *([] if stop_at is None else [stop_at])])

    def captured(*args, **kwargs):
        return run(model, edits, names, stop_at, args, kwargs)

    return captured


def edited(model, edits: dict):
    """The model with edits in place: of the same kind, called, mapped, differentiated and captured as before.

    Edits are arrays of the model like its weights: map over them by making the edited model inside of the mapped
    function, as in `jax.vmap(lambda v: edited(model, {"layers.1": Set(v)})(x))(values)`. Traces are taken off.

    **Arguments:** `edits`: by the name of a site, an edit or a tuple of edits, made one after the other. An edit is a
    function of a site's whole value that returns another of the same shape; the axes of the model's own maps, such as
    tokens, are in front. Edits that the model has already stay, before those at the same site.

    **Returns:** the model, whose edits act when it is called as a whole. Parts of it, and its other methods, refuse to
    run edited sites.

    **Raises:** ValueError for a site that does not exist; when it is called, as `capture`.
    """
    edits = _merged(hooks.edits_of(model), _as_tuples(edits))
    bare = plain(model)
    places = require_sites(bare, edits)
    bare = surgery.update(bare, {place.path: _hook(Unbound(name)) for name, place in places.items()})
    return hooks.rebuilt(_edited_class(type(bare)), bare, cetsim_edits=edits)


@functools.cache
def _edited_class(kind: type) -> type:
    def call(self, *args, **kwargs):
        return run(self, {}, (), None, args, kwargs)[0]

    return hooks.subclass(kind, call, "cetsim_edits", static=False)


def run(model, edits: dict, names: tuple, stop_at: str | None, args: tuple, kwargs: dict):
    """One call of a model: `(output, {name: value})`."""
    edits = _merged(hooks.edits_of(model), edits)
    # A state can be used once, and is used here in a copy: one that is looked at stays good.
    args, kwargs = jax.tree.map(lambda leaf: leaf, (args, kwargs))
    model = plain(model)
    wanted = dict.fromkeys([*names, *([] if stop_at is None else [stop_at])])
    places = require_sites(model, dict.fromkeys([*edits, *wanted]))
    seen = look(model, places, args, kwargs)
    for site in seen.values():
        if site.fault is not None:
            raise ValueError(site.fault)
    zeros = {name: jnp.zeros(seen[name].shape, seen[name].dtype) if name in wanted else None for name in places}
    cells = {name: Cell(value, jnp.zeros((), jnp.float32)) for name, value in zeros.items()}

    def call(cells):
        changes = {}
        for name, place in places.items():
            bound = Bound(name, edits.get(name, ()), seen[name].shape, cells[name], tied=bool(wanted))
            changes[place.path] = _hook(bound)
        return surgery.update(model, changes)(*args, **kwargs)

    output, rest, cells = _run_with_cells(call, cells)
    values = {name: cells[name].value for name in wanted}
    runs = {name: (cell.runs, name in wanted) for name, cell in cells.items()}
    output, values = _each_ran_once((output if stop_at is None else values[stop_at], values), runs)
    return (eqx.combine(output, rest) if stop_at is None else output), {name: values[name] for name in names}


def _run_with_cells(call: Callable, cells: dict):
    """The arrays that `call(cells)` returns, the rest of what it returns, and the cells with what came out in them."""
    static = []

    def split(cells):
        differentiable, rest = eqx.partition(call(cells), eqx.is_inexact_array)
        arrays, other = eqx.partition(rest, eqx.is_array)
        static.append(other)
        return differentiable, arrays

    differentiable, pull, arrays = jax.vjp(split, cells, has_aux=True)
    (cells,) = pull(jax.tree.map(jnp.zeros_like, differentiable))
    return eqx.combine(differentiable, arrays), static[-1], cells


def _each_ran_once(results, runs: dict):
    """The results, or an error that names a site whose values would have been added up, or which did not come out.

    The abstract run has seen each module called once; a loop around it, or a branch, shows only here.
    """
    wrong, messages = [], []
    for name, (count, wanted) in runs.items():
        # An edit acts also where no derivative passes, as before `stop_gradient`, and then counts 0.
        failed = (count != 1) if wanted else (count > 1)
        message = (
            f"site {name!r} must run exactly once in a call of the model: it runs in a loop (lax.scan), in a branch "
            "that is not taken, or its value reaches no output with a derivative (stop_gradient, argmax)"
        )
        if checks.is_traced(count):
            wrong.append(failed)
            messages.append(message)
        elif failed:
            raise ValueError(message)
    if not wrong:
        return results
    wrong = jnp.stack(wrong)
    return eqx.branched_error_if(results, jnp.any(wrong), jnp.argmax(wrong), messages)


def _hook(hook):
    return lambda node: hooks.hooked(node, hook)


def _as_tuples(edits: dict) -> dict[str, tuple]:
    tuples = {name: edit if isinstance(edit, tuple | list) else (edit,) for name, edit in edits.items()}
    for name, several in tuples.items():
        for edit in several:
            if not callable(edit):
                raise ValueError(f"the edit of site {name!r} must be one, such as Set(value), got {checks.shown(edit)}")
    return {name: tuple(several) for name, several in tuples.items()}


def _merged(first: dict, second: dict) -> dict[str, tuple]:
    return {name: (*first.get(name, ()), *second.get(name, ())) for name in [*first, *second]}
