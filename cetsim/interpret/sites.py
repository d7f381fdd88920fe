"""The sites of a model: the outputs of its modules, by name."""

import difflib
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp

from cetsim import checks, nn
from cetsim.interpret import hooks
from cetsim.nn import surgery
from cetsim.nn.block import path_name


class Site(NamedTuple):
    """A module whose output can be captured and edited.

    **Fields:**

    - `kind`: its class.
    - `shape`, `dtype`: of its value for one example, the axes that the model maps over (such as tokens) in front; None
      where no example was given.
    - `fault`: why it can be neither captured nor edited; None if it can.
    """

    kind: str
    shape: tuple[int, ...] | None = None
    dtype: jnp.dtype | None = None
    fault: str | None = None


class Sites(dict):
    """Sites by name, in the order of the model's tree, shown as a table."""

    def __repr__(self) -> str:
        """The table."""
        rows = [("site", "kind", "value")]
        for name, site in self.items():
            value = "" if site.shape is None else f"{site.dtype}{list(site.shape)}"
            rows.append((name, site.kind, site.fault or value))
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows)


def sites(model, *example, **kwargs) -> Sites:
    """The sites of a model, by the names that `capture` and `edited` take.

    Every callable module below the model is one: layers, activations and norms, and the blocks that hold them. Names
    are those of the tree without traces, such as `layers.2` or `blocks.1.mlp`, whether traces are attached or not.

    **Arguments:** `model`: any Equinox model. `example`, `kwargs`: what it is called with for one example, such as
    `x` or `x, state`. Then shapes are found by an abstract run, and what cannot be captured has a `fault`.

    **Returns:** a dict of `Site` by name.

    **Raises:** ValueError for a model that is no callable module, or where two places have one name.
    """
    model = plain(model)
    places = _places(model)
    kinds = {name: type(place.node).__name__ for name, place in places.items()}
    if not example and not kwargs:
        return Sites({name: Site(kind) for name, kind in kinds.items()})
    seen = look(model, places, example, kwargs)
    return Sites({name: Site(kinds[name], look.shape, look.dtype, look.fault) for name, look in seen.items()})


def plain(model):
    """The model without traces and edits.

    **Raises:** ValueError unless it is a callable Equinox module.
    """
    if not isinstance(model, eqx.Module) or not callable(model):
        raise ValueError(f"a model must be a callable Equinox module, got {checks.shown(model)}")
    changes = {place.path: hooks.unhooked for place in surgery.modules(hooks.unhooked(model))}
    return nn.detach(surgery.update(hooks.unhooked(model), changes))


def require_sites(model, names) -> dict[str, surgery.Place]:
    """The places called `names` in a plain model, by name.

    **Raises:** ValueError for a name that is no site, with those nearest to it.
    """
    places = _places(model)
    for name in names:
        if name not in places:
            close = difflib.get_close_matches(str(name), places, n=3, cutoff=0.4) or list(places)[:3]
            nearest = f"the nearest are {', '.join(map(repr, close))}" if places else "it has none"
            raise ValueError(f"the model has no site {name!r}: {nearest} (cetsim.interpret.sites lists all)")
    return {name: places[name] for name in names}


def look(model, places: dict[str, surgery.Place], args: tuple, kwargs: dict) -> dict[str, hooks.Seen]:
    """What an abstract run of a plain model sees at some places: shapes, dtypes, and faults in place of errors."""
    seen = {name: hooks.Seen(name) for name in places}
    changes = {place.path: _hook(seen[name]) for name, place in places.items()}

    def call(model, args, kwargs):
        surgery.update(model, changes)(*args, **kwargs)

    eqx.filter_eval_shape(call, model, args, kwargs)
    for name, site in seen.items():
        if site.runs == 0:
            site.fault = f"site {name!r} does not run when the model is called"
    return seen


def _hook(hook):
    return lambda node: hooks.hooked(node, hook)


def _places(model) -> dict[str, surgery.Place]:
    places = {}
    for place in surgery.modules(model):
        name = path_name(place.path)
        if name in places:
            raise ValueError(f"two modules of the model have the name {name!r}: rename one of the keys that hold dots")
        places[name] = place
    return places
