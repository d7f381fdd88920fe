"""Edits of a site's value: what it is replaced by, moved by, or made to say.

An edit is an Equinox module, `value -> value`, acting on one example. Its numbers are array leaves: map over them,
differentiate in them. All numbers are cast to the value's dtype.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cetsim import checks

ABLATIONS = ("zero", "mean", "resample")


class Set(eqx.Module):
    """Replaces the value, `value + where (target - value)`.

    **Arguments:**

    - `target`: what it becomes: a number, or an array whose shape is that of the value, with 1 where all entries of an
      axis are alike. `[d]` alone also goes with tokens `[tokens, d]`.
    - `where`: which entries: booleans, or weights from 0 to 1, shaped likewise; None for all.

    **Raises:** ValueError for what is no finite number; when it acts, for a shape that does not go with the value's.
    """

    target: Array
    where: Array | None

    def __init__(self, target, where=None):
        self.target, self.where = _numbers("target", target), _mask(where)

    def __call__(self, value):
        """The edited value, `[*site] -> [*site]`."""
        return _mixed(value, _fitting("target", self.target, value), self.where)


class Add(eqx.Module):
    """Adds to the value, `value + where offset`: steering, and what attribution differentiates in.

    **Arguments:** `offset`: shaped as `Set`'s `target`. `where`: as there.

    **Raises:** as `Set`.
    """

    offset: Array
    where: Array | None

    def __init__(self, offset, where=None):
        self.offset, self.where = _numbers("offset", offset), _mask(where)

    def __call__(self, value):
        """The edited value, `[*site] -> [*site]`."""
        return _mixed(value, value + _fitting("offset", self.offset, value), self.where)


class Ablate(eqx.Module):
    """Takes away what the value says: by zero, by its mean over examples, or by the value for another example.

    **Arguments:**

    - `by`: `"zero"`, `"mean"` or `"resample"`.
    - `values`: `[examples, *site]`, the site's values over a data set, of which the mean is taken or one example drawn;
      None for zero.
    - `where`: which entries, as in `Set`; None for all.
    - `key`: by which the example is drawn, one for each edit made.

    **Raises:** as `Set`, and for arguments that do not go together.
    """

    target: Array
    where: Array | None

    def __init__(self, by: str = "zero", values=None, where=None, *, key=None):
        checks.require_in("by", by, ABLATIONS)
        if (values is None) != (by == "zero") or (key is None) != (by != "resample"):
            given = [name for name, value in (("values", values), ("key", key)) if value is not None]
            raise ValueError(
                "`by` 'zero' takes no values, 'mean' takes `values`, 'resample' takes `values` and `key`, got "
                f"{by!r} with {' and '.join(given) or 'neither'}"
            )
        if by == "zero":
            self.target = jnp.zeros(())
        else:
            values = _numbers("values", values)
            if values.ndim == 0 or len(values) == 0:
                raise ValueError(f"`values` must be [examples, ...], at least one, got shape {values.shape}")
            self.target = values.mean(0) if by == "mean" else values[jax.random.randint(key, (), 0, len(values))]
        self.where = _mask(where)

    def __call__(self, value):
        """The edited value, `[*site] -> [*site]`."""
        return _mixed(value, _fitting("values", self.target, value), self.where)


class Clamp(eqx.Module):
    """Sets latents of a coder to a strength, and keeps all else, the coder's error included: x + Σ (s_k - f_k(x)) d_k.

    **Arguments:**

    - `coder`: has `encode`, `decode` and `W_dec` `[latents, d]`, acting on vectors `[d]`.
    - `feature`: which latent, or several `[m]`.
    - `strength`: of the latent, or `[m]`; 0 switches it off.
    - `tokens`: at which vectors, as booleans (or weights from 0 to 1) of the shape of the value without the vectors'
      axis, such as `[tokens]`, or whole numbers of tokens; None for all.
    - `axis`: of the value along which a vector lies. None is the last axis of `[d]` and `[tokens, d]`; images have to
      say it, 0 for `[channels, height, width]`.
    - `keep_error`: False gives the coder's reconstruction, with the latents set, in place of the value.

    **Raises:** ValueError for a feature that the coder does not have (a traced one gives nan), or arguments of other
    shapes; when it acts, for a value that is not of the coder's vectors.
    """

    coder: eqx.Module
    feature: Array
    strength: Array
    tokens: Array | None
    axis: int | None = eqx.field(static=True)
    keep_error: bool = eqx.field(static=True)

    def __init__(self, coder, feature, strength, tokens=None, *, axis: int | None = None, keep_error: bool = True):
        self.coder, self.axis, self.keep_error = coder, axis, checks.require_flag("keep_error", keep_error)
        latents = _decoder(coder).shape[0]
        features = checks.require_within("feature", feature, f"[0, {latents - 1}]")
        if not jnp.issubdtype(features.dtype, jnp.integer) or features.ndim > 1:
            raise ValueError(f"`feature` must be whole numbers, one or [m], got {checks.shown(feature)}")
        self.feature, self.strength = jnp.asarray(features), _numbers("strength", strength)
        if self.strength.shape not in ((), self.feature.shape):
            shapes = f"{self.strength.shape} for features {self.feature.shape}"
            raise ValueError(f"`strength` must be one number or one a feature, got shape {shapes}")
        self.tokens = _tokens(tokens)

    def __call__(self, value):
        """The edited value, `[*site] -> [*site]`."""
        rows = self.coder.W_dec.at[self.feature].get(mode="fill", fill_value=jnp.nan).astype(value.dtype)

        def clamped(x):
            latents = self.coder.encode(x)
            gap = self.strength.astype(x.dtype) - latents[self.feature].astype(x.dtype)
            start = x if self.keep_error else self.coder.decode(latents).astype(x.dtype)
            return start + gap @ rows if rows.ndim == 2 else start + gap * rows

        return _on_vectors(self.coder, clamped, value, self.tokens, self.axis)


class Splice(eqx.Module):
    """Puts a coder's reconstruction in the value's place.

    **Arguments:**

    - `coder`, `tokens`, `axis`: as in `Clamp`.
    - `offset`: `[latents]`, added to the latents before they are decoded, by whose gradient latents are attributed.
    - `keep_error`: adds what the coder leaves out, value - decode(encode(value)), so that only the offset acts. Off
      here, where the reconstruction itself is what is asked for; `Clamp` and all steering keep it.

    **Raises:** as `Clamp`.
    """

    coder: eqx.Module
    tokens: Array | None
    offset: Array | None
    axis: int | None = eqx.field(static=True)
    keep_error: bool = eqx.field(static=True)

    def __init__(self, coder, tokens=None, *, offset=None, axis: int | None = None, keep_error: bool = False):
        latents = _decoder(coder).shape[0]
        self.coder, self.axis, self.keep_error = coder, axis, checks.require_flag("keep_error", keep_error)
        self.tokens, self.offset = _tokens(tokens), None if offset is None else _numbers("offset", offset)
        if offset is not None and self.offset.shape != (latents,):
            raise ValueError(f"`offset` must be [latents], ({latents},), got shape {self.offset.shape}")

    def __call__(self, value):
        """The edited value, `[*site] -> [*site]`."""

        def spliced(x):
            latents = self.coder.encode(x)
            moved = latents if self.offset is None else latents + self.offset.astype(latents.dtype)
            decoded = self.coder.decode(moved).astype(x.dtype)
            return decoded + x - self.coder.decode(latents).astype(x.dtype) if self.keep_error else decoded

        return _on_vectors(self.coder, spliced, value, self.tokens, self.axis)


def _decoder(coder):
    """The coder's `W_dec`; raises ValueError where there is none, or no encoder."""
    decoder = getattr(coder, "W_dec", None)
    shape, methods = getattr(decoder, "shape", ()), (getattr(coder, name, None) for name in ("encode", "decode"))
    if len(shape) != 2 or not all(map(callable, methods)):
        raise ValueError(f"a coder must have `encode`, `decode` and `W_dec` [latents, d], got {checks.shown(coder)}")
    return decoder


def _on_vectors(coder, function, value, tokens, axis: int | None):
    """`function` of every vector `[d]` of a value, where `tokens` says so."""
    if axis is None and value.ndim > 2:
        raise ValueError(f"`axis` must say along which axis of {list(value.shape)} the coder's vectors lie")
    axis = -1 if axis is None else axis
    if not -value.ndim <= axis < value.ndim:
        raise ValueError(f"`axis` must be one of the value's, {list(value.shape)}, got {axis}")
    vectors, d = jnp.moveaxis(value, axis, -1), coder.W_dec.shape[1]
    if vectors.shape[-1] != d:
        raise ValueError(f"the coder acts on vectors of {d}, got {vectors.shape[-1]} along axis {axis}")
    apply = function
    for _ in vectors.shape[:-1]:
        apply = jax.vmap(apply)
    return jnp.moveaxis(_mixed(vectors, apply(vectors), _token_mask(tokens, vectors.shape[:-1])), -1, axis)


def _tokens(tokens):
    return None if tokens is None else jnp.asarray(checks.require_finite("tokens", tokens, booleans=True))


def _token_mask(tokens, shape: tuple[int, ...]):
    """Which vectors of an array of them, shaped to be multiplied with it."""
    if tokens is None:
        return None
    if jnp.issubdtype(tokens.dtype, jnp.integer):
        if len(shape) != 1:
            raise ValueError(f"`tokens` by number go with one axis of tokens, got vectors of shape {list(shape)}")
        if not checks.is_traced(tokens):
            checks.require_within("tokens", tokens, f"[0, {shape[0] - 1}]")
        tokens = (jnp.arange(shape[0])[:, None] == tokens.reshape(-1)).any(1)
    if tokens.shape != shape:
        raise ValueError(f"`tokens` must have the shape of the value's vectors, {list(shape)}, got {tokens.shape}")
    return tokens[..., None]


def _numbers(name: str, value):
    array = jnp.asarray(checks.require_finite(name, value))
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def _mask(where):
    """Weights from 0 to 1, of which booleans are made."""
    if where is None:
        return None
    array = checks.require_finite("where", where, booleans=True)
    if array.dtype == bool:
        return jnp.asarray(array).astype(jnp.result_type(float))
    return jnp.asarray(checks.require_within("where", where, "[0, 1]"))


def _fitting(name: str, array, value):
    """The array, in the value's dtype, if its shape goes with the value's."""
    sizes = value.shape[len(value.shape) - array.ndim :] if array.ndim <= value.ndim else ()
    full = array.ndim in (0, value.ndim) or (array.ndim == 1 and value.ndim == 2)
    if not full or any(length not in (1, size) for length, size in zip(array.shape, sizes, strict=True)):
        raise ValueError(f"`{name}` must have the shape of the value, {list(value.shape)}, got {list(array.shape)}")
    return array.astype(value.dtype)


def _mixed(value, new, where):
    if where is None:
        return jnp.broadcast_to(new, value.shape)
    weight = _fitting("where", where, value)
    # Not value + weight (new - value): where the weight is 1 or 0 the result is exact.
    return weight * new + (1 - weight) * value
