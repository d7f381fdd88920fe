"""What a coder's training depends on: what may differ within a program, and what is compiled into it."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cetsim import checks
from cetsim.interpret.sparsity import AbstractSparsity


class Hyperparameters(eqx.Module):
    """What may differ between coders of one program.

    **Arguments:**

    - `learning_rate`: of Adam, above 0; None for 2e-4 / √(latents / 2¹⁴).
    - `sparsity`: its numbers may differ, its kind gives another program; None for the run's.
    - `site`: which of the run's `inputs`, by number.

    Numbers that are traced, as in a sweep, cannot be refused: a `k` above the latents, or a `site` that the run has
    not, makes the coder nan, which is recorded as divergence.

    **Raises:** ValueError for an argument outside its range.
    """

    learning_rate: Float[Array, ""] | None
    sparsity: AbstractSparsity | None
    site: Int[Array, ""]

    def __init__(self, learning_rate=None, sparsity=None, site=0):
        if learning_rate is not None:
            checks.require_above("learning_rate", learning_rate, 0.0)
            checks.require_one_number("learning_rate", learning_rate)
            learning_rate = jnp.asarray(learning_rate, float)
        checks.require_at_least("site", site, 0.0)
        self.learning_rate, self.sparsity, self.site = learning_rate, sparsity, jnp.asarray(site, int)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled into a program.

    **Fields:**

    - `steps`: of a whole run.
    - `latents`: their number.
    - `batch`: vectors of a step.
    - `warmup`: steps in which the learning rate rises.
    - `decay`: share of the run at whose end the learning rate falls to 0.
    - `clip`: largest global norm of a gradient.
    - `aux`: weight of the aux-k loss.
    - `dead_after`: vectors after which a latent that was not active is dead.
    - `calibration`: batches from which the threshold of a BatchTopK is found when its coder is asked for.
    - `beta2`: of Adam.
    - `skip`: whether a transcoder has a linear way past its latents.
    - `memory`: bytes up to which vectors are held on the device; more are read from the store, a batch at a time.

    **Raises:** ValueError for an argument outside its range.
    """

    steps: int
    latents: int
    batch: int = 4096
    warmup: int = 100
    decay: float = 0.2
    clip: float = 1.0
    aux: float = 1 / 32
    dead_after: int = 100_000
    calibration: int = 10
    beta2: float = 0.999
    skip: bool = False
    memory: int = 2**30

    def __post_init__(self):
        for name in ("steps", "latents", "batch", "dead_after", "calibration"):
            checks.require_whole(name, getattr(self, name))
        for name in ("warmup", "memory"):
            checks.require_whole(name, getattr(self, name), least=0)
        checks.require_within("decay", self.decay, "[0, 1]")
        checks.require_within("beta2", self.beta2, "(0, 1)")
        checks.require_above("clip", self.clip, 0.0)
        checks.require_at_least("aux", self.aux, 0.0)
        checks.require_flag("skip", self.skip)
        if self.steps * self.batch >= 2**31:
            raise ValueError(f"`steps` times `batch` must be below 2³¹, got {self.steps * self.batch:,}")

    def schedule(self, step):
        """Learning rate at a step, as a share of its peak: a rise, a plateau, a fall to 0."""
        rise = jnp.minimum((step + 1) / max(1, self.warmup), 1.0) if self.warmup else 1.0
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return rise * jnp.clip(fall, 0.0, 1.0)
