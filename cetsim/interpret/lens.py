"""What the residual stream would say if it were read now, which parts of it say it, and where attention looks."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cetsim import checks
from cetsim.interpret.capture import capture
from cetsim.interpret.sites import plain
from cetsim.nn import surgery
from cetsim.nn.block import path_name


def logit_lens(values: dict, head, *, norm) -> dict[str, Array]:
    """Logits that the model's last layers make of values from its midst: head(norm(value)), vector by vector.

    **Arguments:**

    - `values`: by site, `[..., d]`, such as `capture` returns of the blocks of a residual network.
    - `head`: the model's last layer, of one vector.
    - `norm`: what stands before the head in the model, None if nothing does. It is asked for, since logits without the
      final norm are another quantity.

    **Returns:** by site, `[..., classes]`.

    **Raises:** ValueError for values that the norm and head do not take.

    **Reference:** nostalgebraist, Interpreting GPT: the logit lens (2020).
    """

    def read(value):
        apply = lambda vector: head(vector if norm is None else norm(vector))  # noqa: E731
        for _ in range(value.ndim - 1):
            apply = jax.vmap(apply)
        return apply(value)

    logits = {}
    for name, value in values.items():
        try:
            logits[name] = read(jnp.asarray(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"site {name!r}: norm and head do not take {list(jnp.shape(value))}: {error}") from error
    return logits


def direct_logits(components: dict, residual, head, *, norm) -> dict[str, Array]:
    """Direct logit attribution: what each part of the residual stream adds to each logit. The parts sum to the logits.

    A norm divides all parts by the one scale that it finds in their sum, so that each has a share of its own.

    **Arguments:**

    - `components`: by name, `[d]`, what was added to the stream, such as the outputs of attentions and MLPs for the
      token that is read.
    - `residual`: `[d]`, the stream that the norm and the head read.
    - `head`: an `eqx.nn.Linear`, or weights `[classes, d]`.
    - `norm`: `eqx.nn.LayerNorm` or `eqx.nn.RMSNorm` before the head, or None.

    **Returns:** `[classes]` by component; beside them `"rest"`, of what the components leave of the residual, and
    `"bias"`, of the norm's and the head's.

    **Raises:** ValueError for another norm, other shapes, or components called `"rest"` or `"bias"`.

    **Reference:** Elhage et al., A mathematical framework for transformer circuits (2021).
    """
    weight = head.weight if isinstance(head, eqx.nn.Linear) else jnp.asarray(head)
    if weight.ndim != 2 or residual.shape != weight.shape[1:]:
        raise ValueError(f"`residual` must be [d] and the head [classes, d], got {residual.shape} and {weight.shape}")
    for name, component in components.items():
        if name in ("rest", "bias") or jnp.shape(component) != residual.shape:
            constraint = f"have the residual's shape, {residual.shape}, and not be called 'rest' or 'bias'"
            raise ValueError(f"component {name!r} must {constraint}, got shape {jnp.shape(component)}")
    scale, shift = _frozen(norm, residual)
    rest = residual - sum(components.values(), start=jnp.zeros_like(residual))
    parts = {name: weight @ scale(component) for name, component in (components | {"rest": rest}).items()}
    bias = getattr(head, "bias", None)
    return parts | {"bias": weight @ shift + (0 if bias is None else bias)}


def attention_patterns(model, names: list[str] | None = None) -> Callable:
    """The model as a function that returns where each head of its attentions looks.

    The patterns are sites: the `dropout` of an `eqx.nn.MultiheadAttention` (in a model that trains, as dropout leaves
    them: use `eqx.nn.inference_mode`), and any module called `pattern`.

    **Arguments:** `names`: of attentions, None for all.

    **Returns:** a function of `(x, *state)` that returns `[heads, queries, keys]` by attention; the weights of each
    query sum to 1.

    **Raises:** ValueError for a model without attentions, or a name that is none.
    """
    found = {}
    for place in surgery.modules(plain(model)):
        name = path_name(place.path)
        if isinstance(place.node, eqx.nn.MultiheadAttention):
            found[name] = f"{name}.dropout"
        elif name.endswith(".pattern"):
            found[name.removesuffix(".pattern")] = name
    if not found:
        raise ValueError("the model has no attention: no eqx.nn.MultiheadAttention and no module called `pattern`")
    for name in names or ():
        checks.require_in("names", name, tuple(found))
    chosen = {name: found[name] for name in (found if names is None else names)}
    captured = capture(model, tuple(chosen.values()))

    def patterns(*args, **kwargs):
        _, values = captured(*args, **kwargs)
        return {name: values[site] for name, site in chosen.items()}

    return patterns


def _frozen(norm, residual) -> tuple[Callable, Array]:
    """A norm as an affine map, its scale held where it is for the residual: a linear function, and a shift."""
    if norm is None:
        return lambda part: part, jnp.zeros_like(residual)
    kind = type(norm).__name__
    if not isinstance(norm, eqx.nn.LayerNorm | eqx.nn.RMSNorm) or norm.shape != residual.shape:
        raise ValueError(
            f"`norm` must be an eqx.nn.LayerNorm or RMSNorm of shape {residual.shape}, or None, got {kind}"
        )
    centred = isinstance(norm, eqx.nn.LayerNorm)
    mean = (lambda part: part.mean()) if centred else (lambda part: 0)
    power = jnp.mean((residual - mean(residual)) ** 2)
    gain = jax.lax.rsqrt(power + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift = jnp.zeros_like(residual) if norm.bias is None else norm.bias
    return lambda part: gain * (part - mean(part)), shift
