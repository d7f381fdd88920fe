"""Time inside a layer that is mapped over its steps: all steps of a segment at once, and back to one's own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TIME = "time"


def all_steps(x) -> tuple[Int[Array, ""], Float[Array, "time ..."]]:
    """The place of this step in the segment, and the values of all its steps.

    **Raises:** ValueError where no map named "time" is around it.
    """
    try:
        return jax.lax.axis_index(TIME), jax.lax.all_gather(x, TIME)
    except NameError:
        raise ValueError(
            "a spiking layer must know which axis is time: map the model over the steps of a segment by "
            '`jax.vmap(model, axis_name="time")(x)`, x [time, ...], or step it by `layer.step(state, x)`'
        ) from None


@jax.custom_batching.custom_vmap
def own_step(m, rows):
    """The row of `rows`, `[time, ...]`, that belongs to step m, which is where a map over time takes them apart."""
    return rows[m]


@own_step.def_vmap
def _mapped(size, batched, m, rows):
    of_time, of_rows = batched
    if of_time and not of_rows:  # m is 0, 1, ...: nothing has to be looked up, and nothing scattered on the way back
        return rows, True
    if of_time:
        return jax.vmap(lambda m, rows: rows[m])(m, rows), True
    return jnp.moveaxis(own_step(m, jnp.moveaxis(rows, 0, -1)), -1, 0), True


def _filtered(filtered, x, decay):
    return decay * filtered + (1 - decay) * x


def low_pass(rows: Float[Array, "time ..."], decay, start: Float[Array, "..."]):
    """x̂(t) = α x̂(t-1) + (1 - α) x(t) of all steps, from `start` on."""

    def body(filtered, x):
        filtered = _filtered(filtered, x, decay)
        return filtered, filtered

    return jax.lax.scan(body, start, rows)[1]


@jax.custom_batching.custom_vmap
def low_pass_of_constants(rows: Float[Array, "time ..."], decay, start: Float[Array, "..."]):
    """`low_pass` where no derivative passes, so that a map's axis may be left in front of time.

    A scan wants time in front, and so copies all that comes in, which costs more than the filter.
    """
    return low_pass(rows, decay, start)


@low_pass_of_constants.def_vmap
def _mapped_low_pass(size, batched, rows, decay, start):
    spread = lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (size, *leaf.shape))  # noqa: E731
    rows, start = spread(rows, batched[0]), spread(start, batched[2])
    step = jax.vmap(_filtered, (0, 0, 0 if batched[1] else None))

    def body(t, carry):
        filtered, rows = carry  # in place: the step that has been read is written
        filtered = step(filtered, jax.lax.dynamic_index_in_dim(rows, t, 1, keepdims=False), decay)
        return filtered, jax.lax.dynamic_update_index_in_dim(rows, filtered, t, 1)

    return jax.lax.fori_loop(0, rows.shape[1], body, (start, rows))[1], True
