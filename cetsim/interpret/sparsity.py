"""What makes few of a coder's latents active: the activation, its penalty, and what it learns of its own.

A sparsity turns preactivations z = W_enc (x - b) + b_enc into latents f. In training it sees a whole batch, afterwards
one vector at a time. Its numbers (k, penalties) are arrays, so that runs which differ in them share a program.
"""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cetsim import checks
from cetsim.interpret.selection import above_others_of_rows, largest_of_all


class Activity(NamedTuple):
    """What a batch makes of a coder's latents.

    **Fields:**

    - `latents`: f, `[batch, latents]`.
    - `penalty`: on their number or size, a mean over the batch.
    - `smallest`: the smallest score that was kept, for a threshold at inference; nan where there is none.
    - `gate`: f̃, latents whose reconstruction is trained besides with the decoder held fixed, or None.
    """

    latents: Float[Array, "batch latents"]
    penalty: Float[Array, ""]
    smallest: Float[Array, ""]
    gate: Float[Array, "batch latents"] | None = None


class AbstractSparsity(eqx.Module):
    """A kind of sparsity.

    `revives`: whether dead latents are trained to predict what is left (aux-k). `has_threshold`: whether single vectors
    are compared with one that is found after training.
    """

    revives = False
    has_threshold = False

    def init(self, latents: int) -> dict[str, Array]:
        """What is learned beside the coder's weights, by name, `[latents]` each."""
        return {}

    @abstractmethod
    def train(self, z: Float[Array, "batch latents"], b_enc, learned: dict, norms) -> Activity:
        """Latents of a batch in training.

        **Arguments:** `z`: preactivations. `b_enc`: their bias, `[latents]`. `learned`: as of `init`. `norms`: of the
        decoder's rows, `[latents]`, summed over sites.
        """

    @abstractmethod
    def activate(
        self, z: Float[Array, "... latents"], b_enc, learned: dict, norms, threshold
    ) -> Float[Array, "... latents"]:
        """Latents of single vectors after training; `threshold`: the smallest score that batches keep, a mean."""

    def rescaled(self, learned: dict, scale) -> dict:
        """`learned` of latents that are `scale` times as large."""
        return learned

    def check(self, latents: int) -> None:
        """Raises ValueError for numbers that do not go with so many latents, where they are not traced."""

    def fits(self, latents: int):
        """Whether numbers go with so many latents, traced ones too."""
        return True


class ReLU(AbstractSparsity):
    """f = max(z, 0), with the penalty l1 Σ_k f_k ‖d_k‖.

    **Arguments:** `l1`: weight of the penalty, at least 0; sums are over latents and squared errors over the width, so
    that it grows with the square root of the width.

    **Reference:** Bricken et al. (2023), "Towards Monosemanticity"; Conerly et al. (2024) for the norms.
    """

    l1: Float[Array, ""]

    def __init__(self, l1=1.0):
        self.l1 = _weight("l1", l1)

    def train(self, z, b_enc, learned, norms) -> Activity:
        """See `AbstractSparsity`."""
        f = jax.nn.relu(z)
        return Activity(f, self.l1.astype(f.dtype) * (f * norms).sum(-1).mean(), _none(f))

    def activate(self, z, b_enc, learned, norms, threshold):
        """See `AbstractSparsity`."""
        return jax.nn.relu(z)


class TopK(AbstractSparsity):
    """Each vector's k largest max(z, 0); in a crosscoder the largest max(z, 0) Σ_s ‖d_s‖.

    Latents that are exactly as large as the k-th are all kept.

    **Arguments:** `k`: active latents, at least 1.

    **Reference:** Gao et al. (2024), arXiv:2406.04093, with its aux-k loss.
    """

    k: Int[Array, ""]
    revives = True

    def __init__(self, k=32):
        self.k = _count(k)

    def train(self, z, b_enc, learned, norms) -> Activity:
        """See `AbstractSparsity`."""
        f, _ = _kept(jax.nn.relu(z), norms, lambda scores: above_others_of_rows(scores, self.k))
        return Activity(f, jnp.zeros((), f.dtype), _none(f))

    def activate(self, z, b_enc, learned, norms, threshold):
        """See `AbstractSparsity`."""
        rows = z.reshape(-1, z.shape[-1])
        return _kept(jax.nn.relu(rows), norms, lambda scores: above_others_of_rows(scores, self.k))[0].reshape(z.shape)

    def check(self, latents: int) -> None:
        """See `AbstractSparsity`."""
        _require_k(self.k, latents)

    def fits(self, latents: int):
        """See `AbstractSparsity`."""
        return jnp.all(self.k <= latents)


class BatchTopK(TopK):
    """The k B largest max(z, 0) of a batch of B; afterwards what is above a fixed threshold.

    The threshold is a mean of the smallest value that batches keep with the trained weights. Values exactly as large as
    the smallest are all kept. In a crosscoder values are compared after multiplication with Σ_s ‖d_s‖.

    **Arguments:** `k`: active latents of a vector, on average; at least 1.

    **Reference:** Bussmann, Leask and Nanda (2024), arXiv:2412.06410.
    """

    has_threshold = True

    def train(self, z, b_enc, learned, norms) -> Activity:
        """See `AbstractSparsity`."""
        f, smallest = _kept(jax.nn.relu(z), norms, lambda scores: largest_of_all(scores, self.k * len(z)))
        silent = jnp.all(f == 0)
        return Activity(f, jnp.zeros((), f.dtype), jnp.where(silent, jnp.nan, smallest[0, 0]))

    def activate(self, z, b_enc, learned, norms, threshold):
        """See `AbstractSparsity`."""
        return jnp.where(z * norms >= threshold.astype(z.dtype), jax.nn.relu(z), 0)


class JumpReLU(AbstractSparsity):
    """f = z H(z - θ), θ > 0 learned for each latent, with the penalty l0 Σ_k H(z_k - θ_k).

    The derivatives by θ are those of kernel estimates with a boxcar K of width 1: of the value -(θ/ε) K((z - θ)/ε), of
    the step -(1/ε) K((z - θ)/ε). The value's derivative by z is H(z - θ), the step's 0.

    **Arguments:** `l0`: weight of the penalty, at least 0. `bandwidth`: ε, above 0, in units of z. `initial`: θ at the
    start, above 0.

    **Reference:** Rajamanoharan et al. (2024), arXiv:2407.14435.
    """

    l0: Float[Array, ""]
    bandwidth: Float[Array, ""]
    initial: Float[Array, ""]

    def __init__(self, l0=1.0, bandwidth=0.5, initial=1.0):
        self.l0 = _weight("l0", l0)
        for name, value in (("bandwidth", bandwidth), ("initial", initial)):
            checks.require_above(name, value, 0.0)
            checks.require_one_number(name, value)
        self.bandwidth, self.initial = jnp.asarray(bandwidth, float), jnp.asarray(initial, float)

    def init(self, latents: int) -> dict[str, Array]:
        """`log_threshold`: ln θ, so that θ stays above 0."""
        return {"log_threshold": jnp.broadcast_to(jnp.log(self.initial), (latents,))}

    def train(self, z, b_enc, learned, norms) -> Activity:
        """See `AbstractSparsity`."""
        theta, width = jnp.exp(learned["log_threshold"]).astype(z.dtype), self.bandwidth.astype(z.dtype)
        l0 = jump_step(z, theta, width).sum(-1).mean()
        return Activity(jump(z, theta, width), self.l0.astype(z.dtype) * l0, _none(z))

    def activate(self, z, b_enc, learned, norms, threshold):
        """See `AbstractSparsity`."""
        return jnp.where(z > jnp.exp(learned["log_threshold"]).astype(z.dtype), z, 0)

    def rescaled(self, learned: dict, scale) -> dict:
        """See `AbstractSparsity`."""
        return {"log_threshold": learned["log_threshold"] + jnp.log(scale).astype(learned["log_threshold"].dtype)}


class Gated(AbstractSparsity):
    """f = H(π) max(z_mag, 0): which latents are active and how much, by two encoders.

    π = z has the encoder's weights W_gate and bias; z_mag has W_mag = W_gate ∘ e^r and a bias of its own. The penalty
    is l1 Σ_k max(π_k, 0) ‖d_k‖, and what max(π, 0) reconstructs, with the decoder held fixed, is trained to be the
    target itself, not centred.

    **Arguments:** `l1`: weight of the penalty, at least 0.

    **Reference:** Rajamanoharan et al. (2024), arXiv:2404.16014, equations 6 to 8.
    """

    l1: Float[Array, ""]

    def __init__(self, l1=1.0):
        self.l1 = _weight("l1", l1)

    def init(self, latents: int) -> dict[str, Array]:
        """`r`: log of the ratio of the two encoders' weights. `b_mag`: bias of the magnitudes."""
        return {"r": jnp.zeros(latents), "b_mag": jnp.zeros(latents)}

    def train(self, z, b_enc, learned, norms) -> Activity:
        """See `AbstractSparsity`."""
        gate = jax.nn.relu(z)
        penalty = self.l1.astype(z.dtype) * (gate * norms).sum(-1).mean()
        return Activity(self.activate(z, b_enc, learned, norms, None), penalty, _none(z), gate)

    def activate(self, z, b_enc, learned, norms, threshold):
        """See `AbstractSparsity`."""
        magnitude = (z - b_enc) * jnp.exp(learned["r"]) + learned["b_mag"]
        return jnp.where(z > 0, jax.nn.relu(magnitude), 0)

    def rescaled(self, learned: dict, scale) -> dict:
        """See `AbstractSparsity`."""
        return learned | {"b_mag": learned["b_mag"] * scale}


SPARSITIES = (ReLU, TopK, BatchTopK, JumpReLU, Gated)


@jax.custom_jvp
def jump(z, theta, bandwidth):
    """z H(z - θ), with its pseudo-derivative by θ."""
    return jnp.where(z > theta, z, 0)


@jump.defjvp
def _jump_jvp(primals, tangents):
    z, theta, bandwidth = primals
    by_theta = -(theta / bandwidth) * _boxcar((z - theta) / bandwidth)
    return jump(*primals), jnp.where(z > theta, tangents[0], 0) + by_theta * tangents[1]


@jax.custom_jvp
def jump_step(z, theta, bandwidth):
    """H(z - θ) as 0.0 and 1.0, with its pseudo-derivative by θ; that by z is 0."""
    return (z > theta).astype(z.dtype)


@jump_step.defjvp
def _jump_step_jvp(primals, tangents):
    z, theta, bandwidth = primals
    return jump_step(*primals), -_boxcar((z - theta) / bandwidth) / bandwidth * tangents[1]


def _boxcar(u):
    return (jnp.abs(u) < 0.5).astype(u.dtype)


def _kept(f, norms, smallest_of):
    """The latents whose scores f ‖d‖ are above 0 and not below the smallest to be kept, and that score."""
    scores = jax.lax.stop_gradient(f * norms)
    smallest = smallest_of(scores)
    return jnp.where(scores >= smallest, f, 0), smallest  # which is above 0


def _none(like):
    return jnp.full((), jnp.nan, like.dtype)


def _weight(name: str, value):
    checks.require_at_least(name, value, 0.0)
    checks.require_one_number(name, value)
    return jnp.asarray(value, float)


def _count(k):
    checks.require_at_least("k", k, 1.0)
    checks.require_one_number("k", k)
    if not jnp.issubdtype(jnp.asarray(k).dtype, jnp.integer):
        raise ValueError(f"`k` must be a whole number, got {checks.shown(k)}")
    return jnp.asarray(k, int)


def _require_k(k, latents: int) -> None:
    if not checks.is_traced(k) and int(jnp.max(k)) > latents:
        raise ValueError(f"`k` must be at most the number of latents, {latents}, got {int(jnp.max(k))}")
