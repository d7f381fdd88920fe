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


def low_pass(rows: Float[Array, "time ..."], decay, start: Float[Array, "..."]):
    """x̂(t) = α x̂(t-1) + (1 - α) x(t) of all steps, from `start` on."""

    def body(filtered, x):
        filtered = decay * filtered + (1 - decay) * x
        return filtered, filtered

    return jax.lax.scan(body, start, rows)[1]
