"""A crosscoder: one set of latents that reconstructs what several sites, or several models, say of one example.

    z = Σ_s (x_s - b_s) W_enc_s + b_enc,   f = activation(z),   x̂_s = f W_dec_s + b_s

How active a latent is weighs with Σ_s ‖d_s‖, in penalties and where the largest are kept. Trained with an L1 penalty,
crosscoders have latents that seem to belong to one site alone and do not (arXiv:2504.02922): `BatchTopK` is the
default, and `latent_scaling` checks.
"""

from itertools import accumulate

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret.coder import (
    centred_product,
    require_names,
    require_sparsity,
    require_width,
    unit_rows,
    with_fields,
)
from cetsim.interpret.sparsity import AbstractSparsity, BatchTopK


class Crosscoder(eqx.Module):
    """Latents shared by several sites, acting on a tuple of vectors, or of arrays of them.

    **Arguments:**

    - `widths`: of the vectors of each site; at least two.
    - `latents`: their number.
    - `sparsity`: as of `Coder`; `BatchTopK()` by default.
    - `key`: of the first weights: decoder rows that have norm 1 over all sites, the encoder their transpose.
    - `sites`: names of the sites.

    **Attributes:** tuples of one a site: `W_enc` `[width, latents]`, `W_dec` `[latents, width]`, `b_dec` `[width]`,
    `scales`: what a site's values are multiplied with where sites are compared. And `b_enc`, `learned`, `threshold` as
    of `Coder`.

    **Raises:** ValueError for sizes below 1, one site, or a `k` above the latents.
    """

    W_enc: tuple[Float[Array, "width latents"], ...]
    b_enc: Float[Array, " latents"]
    W_dec: tuple[Float[Array, "latents width"], ...]
    b_dec: tuple[Float[Array, " width"], ...]
    scales: tuple[Float[Array, ""], ...]
    learned: dict[str, Array]
    threshold: Float[Array, ""]
    sparsity: AbstractSparsity
    sites: tuple[str, ...] | None = eqx.field(static=True)

    def __init__(self, widths, latents, sparsity=None, *, key, sites=None):
        widths = [checks.require_whole("widths", width) for width in widths]
        if len(widths) < 2:
            raise ValueError(f"`widths` must be of at least two sites, got {len(widths)}")
        latents = checks.require_whole("latents", latents)
        self.sparsity = sparsity = require_sparsity(BatchTopK() if sparsity is None else sparsity, latents)
        rows = unit_rows(jax.random.normal(key, (latents, sum(widths))))
        self.W_dec = tuple(jnp.split(rows, list(accumulate(widths))[:-1], axis=1))
        self.W_enc = tuple(w.T for w in self.W_dec)
        self.b_enc, self.b_dec = jnp.zeros(latents), tuple(jnp.zeros(width) for width in widths)
        self.scales, self.threshold = tuple(jnp.ones(()) for _ in widths), jnp.zeros(())
        self.learned, self.sites = sparsity.init(latents), require_names(sites, len(widths))

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.b_enc.shape[-1]

    @property
    def site_norms(self) -> Float[Array, "sites latents"]:
        """Norms of the decoder's rows at each site, in the units in which sites are compared."""
        return jnp.stack([s * jnp.linalg.norm(w, axis=-1) for s, w in zip(self.scales, self.W_dec, strict=True)])

    @property
    def norms(self) -> Float[Array, " latents"]:
        """Norms of the decoder's rows, summed over sites."""
        return self.site_norms.sum(axis=0)

    def relative_norms(self, a: int = 0, b: int = 1) -> Float[Array, " latents"]:
        """‖d_b‖/(‖d_a‖ + ‖d_b‖): 0 for a latent of site `a` alone, 1 for one of `b` alone, nan for one of neither."""
        norms = self.site_norms
        return norms[b] / (norms[a] + norms[b])

    def preactivation(self, x: tuple) -> Float[Array, "... latents"]:
        """z, what the activation gets."""
        if len(x) != len(self.W_enc):
            raise ValueError(f"the crosscoder reads {len(self.W_enc)} sites, got {len(x)}")
        z = self.b_enc
        for x_s, w, b in zip(x, self.W_enc, self.b_dec, strict=True):
            require_width(x_s, len(b))
            z = z + centred_product(x_s, b, w)
        return z

    def encode(self, x: tuple) -> Float[Array, "... latents"]:
        """f, the latents of one vector of each site.

        **Raises:** ValueError for another number of sites, or vectors of other widths.
        """
        return self.sparsity.activate(self.preactivation(x), self.b_enc, self.learned, self.norms, self.threshold)

    def decode(self, f: Float[Array, "... latents"], x=None) -> tuple:
        """x̂, what latents stand for at each site; `x` plays no part."""
        return tuple(part + b for part, b in zip(self.predict(f), self.b_dec, strict=True))

    def predict(self, f, x=None):
        """`decode` without the biases."""
        return tuple(f @ w for w in self.W_dec)

    def __call__(self, x: tuple) -> tuple:
        """The reconstruction of the vectors of all sites."""
        return self.decode(self.encode(x))

    def unscaled(self, scales: tuple) -> "Crosscoder":
        """The crosscoder of x that does what this one does for x_s times `scales[s]`; latents stay as they are."""
        pairs = lambda arrays: zip(arrays, scales, strict=True)  # noqa: E731
        return with_fields(
            self,
            W_enc=tuple(w * s for w, s in pairs(self.W_enc)),
            W_dec=tuple(w / s for w, s in pairs(self.W_dec)),
            b_dec=tuple(b / s for b, s in pairs(self.b_dec)),
            scales=tuple(scale * s for scale, s in pairs(self.scales)),
        )


def latent_scaling(crosscoder: Crosscoder, x: tuple, reference: int = 1, other: int = 0) -> dict[str, Array]:
    """How much of what a latent is for at one site it is for at another too, whatever the decoder's norms say.

    What is left for latent k at site s is x_s - Σ_{j≠k} f_j d_js. β_s is the multiple of f_k d_k,ref that is closest
    to it in squares, over all examples. A latent that is the reference's alone has β_other / β_ref near 0; where the
    ratio is near 1 it is shared, even if its decoder's norm at the other site is 0.

    **Arguments:** `x`: `[examples, width]` of each site, of one width. `reference`, `other`: sites by number.

    **Returns:** `reference`, `other`: β of each latent, `ratio`: theirs; nan for a latent that is never active.

    **Raises:** ValueError for sites of different widths.

    **Reference:** Minder et al. (2025), arXiv:2504.02922, whose ν this is with the latent's own part added back at both
    sites.
    """
    directions, widths = crosscoder.W_dec[reference], [len(b) for b in crosscoder.b_dec]
    if widths[reference] != widths[other]:
        raise ValueError(f"`latent_scaling` compares sites of one width, got {widths[reference]} and {widths[other]}")
    f = crosscoder.encode(x)
    errors = [x_s - y for x_s, y in zip(x, crosscoder.decode(f), strict=True)]
    power = (f**2).sum(0) * (directions**2).sum(1)

    def beta(site):
        left = ((f.T @ errors[site]) * directions).sum(1)
        return (left + (f**2).sum(0) * (crosscoder.W_dec[site] * directions).sum(1)) / power

    found = {"reference": beta(reference), "other": beta(other)}
    return found | {"ratio": found["other"] / found["reference"]}
