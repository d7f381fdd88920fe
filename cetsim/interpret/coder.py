"""A sparse coder: few active latents from which a vector is reconstructed, its own or that of another site.

    z = (x - b) W_enc + b_enc,   f = activation(z),   x̂ = f W_dec + b_dec

A sparse autoencoder (SAE) reconstructs its input, and b is b_dec. A transcoder predicts what another site says, and b
is a bias of its own; it may have a linear way past the latents, x W_skip.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.interpret.sparsity import AbstractSparsity, TopK


class Coder(eqx.Module):
    """An SAE or a transcoder, acting on vectors `[inputs]`, or on any array of them.

    **Arguments:**

    - `inputs`, `outputs`: width of the vectors that are read, and of those that are reconstructed; None for an SAE,
      whose outputs are its inputs.
    - `latents`: their number.
    - `sparsity`: one of `ReLU`, `TopK`, `BatchTopK`, `JumpReLU`, `Gated`; `TopK()` by default.
    - `skip`: whether a transcoder has a linear way past its latents.
    - `key`: of the first weights: decoder rows of random directions and norm 1, the encoder its transpose in an SAE.
    - `sites`: names of the sites of inputs and outputs, kept to tell what the coder is of.

    **Attributes:** `W_enc` `[inputs, latents]`, `b_enc` `[latents]`, `W_dec` `[latents, outputs]`, `b_dec` `[outputs]`,
    `b_in` `[inputs]` (None in an SAE, where it is `b_dec`), `W_skip` `[inputs, outputs]` or None, `learned`: what the
    sparsity learns, `threshold`: of a `BatchTopK` at inference.

    **Raises:** ValueError for sizes below 1, a `k` above the latents, or `skip` in an SAE.
    """

    W_enc: Float[Array, "inputs latents"]
    b_enc: Float[Array, " latents"]
    W_dec: Float[Array, "latents outputs"]
    b_dec: Float[Array, " outputs"]
    b_in: Float[Array, " inputs"] | None
    W_skip: Float[Array, "inputs outputs"] | None
    learned: dict[str, Array]
    threshold: Float[Array, ""]
    sparsity: AbstractSparsity
    sites: tuple[str, str] | None = eqx.field(static=True)

    def __init__(self, inputs, outputs=None, latents=None, sparsity=None, skip=False, *, key, sites=None):
        inputs = checks.require_whole("inputs", inputs)
        transcodes = outputs is not None
        outputs = checks.require_whole("outputs", outputs) if transcodes else inputs
        latents = checks.require_whole("latents", latents)
        self.sparsity = sparsity = require_sparsity(TopK() if sparsity is None else sparsity, latents)
        if checks.require_flag("skip", skip) and not transcodes:
            raise ValueError("`skip` must be False in an SAE, which could copy its input; give `outputs`")
        decoder_key, encoder_key = jax.random.split(key)
        self.W_dec = unit_rows(jax.random.normal(decoder_key, (latents, outputs)))
        self.W_enc = self.W_dec.T
        if transcodes:
            self.W_enc = unit_rows(jax.random.normal(encoder_key, (latents, inputs))).T
        self.b_enc, self.b_dec = jnp.zeros(latents), jnp.zeros(outputs)
        self.b_in = jnp.zeros(inputs) if transcodes else None
        self.W_skip = jnp.zeros((inputs, outputs)) if skip else None
        self.learned, self.threshold, self.sites = sparsity.init(latents), jnp.zeros(()), require_names(sites, 2)

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[-2]

    @property
    def norms(self) -> Float[Array, " latents"]:
        """Norms of the decoder's rows."""
        return jnp.linalg.norm(self.W_dec, axis=-1)

    def preactivation(self, x: Float[Array, "... inputs"]) -> Float[Array, "... latents"]:
        """z, what the activation gets."""
        require_width(x, self.W_enc.shape[0])
        return centred_product(x, self.b_dec if self.b_in is None else self.b_in, self.W_enc) + self.b_enc

    def encode(self, x: Float[Array, "... inputs"]) -> Float[Array, "... latents"]:
        """f, the latents of vectors.

        **Raises:** ValueError for vectors of another width.
        """
        return self.sparsity.activate(self.preactivation(x), self.b_enc, self.learned, 1.0, self.threshold)

    def decode(self, f: Float[Array, "... latents"], x=None) -> Float[Array, "... outputs"]:
        """x̂, what latents stand for.

        **Arguments:** `x`: the inputs, `[..., inputs]`, which a coder with a skip needs too.

        **Raises:** ValueError where it lacks them.
        """
        return self.predict(f, x) + self.b_dec

    def predict(self, f, x=None):
        """`decode` without the bias."""
        decoded = f @ self.W_dec
        if self.W_skip is None:
            return decoded
        if x is None:
            raise ValueError("`decode` must be given `x` too, of a transcoder with a skip connection")
        return decoded + x.astype(self.W_skip.dtype) @ self.W_skip

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """The reconstruction of vectors, or the prediction for the other site."""
        return self.decode(self.encode(x), x)

    def unit(self) -> "Coder":
        """The same with decoder rows of norm 1, and latents as many times as large; a row of 0 stays.

        A `TopK` or `BatchTopK` then chooses by z ‖d‖, no longer by z: another function where norms differ.
        """
        n = jnp.where(self.norms > 0, self.norms, 1)
        scaled = dict(W_dec=self.W_dec / n[:, None], W_enc=self.W_enc * n, b_enc=self.b_enc * n)
        return with_fields(self, learned=self.sparsity.rescaled(self.learned, n), **scaled)

    def unscaled(self, scale_in, scale_out=None) -> "Coder":
        """The coder of x and y that does what this one does for `scale_in` x and `scale_out` y.

        Latents come to be in the units of what they reconstruct; the decoder's rows stay as they are.
        """
        a, c = scale_in, scale_in if scale_out is None else scale_out
        return with_fields(
            self,
            W_enc=self.W_enc * (a / c),
            b_enc=self.b_enc / c,
            b_dec=self.b_dec / c,
            b_in=None if self.b_in is None else self.b_in / a,
            W_skip=None if self.W_skip is None else self.W_skip * (a / c),
            learned=self.sparsity.rescaled(self.learned, 1 / c),
            threshold=self.threshold / c,
        )


def centred_product(x, b, w):
    """(x - b) w, with a derivative by b that is a product of two vectors' size, not of all x's.

    b is held fixed in the first term and has no value in the second. Otherwise the derivative is summed over x only
    after a product as large as the forward one: a sixth of a training step.
    """
    held = jax.lax.stop_gradient(b)
    return (x.astype(w.dtype) - held) @ w + (held - b) @ w


def with_fields(module, **fields):
    """The module with other values of some fields; one that is None stays None."""
    fields = {name: value for name, value in fields.items() if value is not None}
    return eqx.tree_at(lambda tree: [getattr(tree, name) for name in fields], module, list(fields.values()))


def unit_rows(w):
    """A matrix with rows of norm 1; one of zeros stays."""
    n = jnp.linalg.norm(w, axis=-1, keepdims=True)
    return w / jnp.where(n > 0, n, 1)


def require_sparsity(sparsity, latents: int) -> AbstractSparsity:
    """Raises ValueError unless it is a sparsity that goes with so many latents."""
    checks.require_instance(
        "sparsity", sparsity, AbstractSparsity, "ReLU, TopK, BatchTopK, JumpReLU or Gated of cetsim.interpret"
    )
    sparsity.check(latents)
    return sparsity


def require_names(sites, count: int | None):
    """Names of sites as a tuple, or None; raises ValueError unless there are as many as wanted."""
    if sites is None:
        return None
    if isinstance(sites, str) or not all(isinstance(name, str) for name in sites) or (count and len(sites) != count):
        raise ValueError(f"`sites` must be {count or 'several'} names, got {checks.shown(sites)}")
    return tuple(sites)


def require_width(x, width: int) -> None:
    """Raises ValueError unless vectors have this width."""
    if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != width:
        raise ValueError(f"the coder reads vectors of {width}, got shape {list(jnp.shape(x))}")
