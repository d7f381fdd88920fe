"""Training coders: a run is `init`, `advance` and `evaluate`, pure in (hyperparameters, key).

    loss = (mean_batch ‖y - ŷ‖² + penalty)/d + aux,   d the width of y, which is its mean squared norm

Vectors are scaled so that their mean squared norm is their width, and the scale is folded into the weights of the coder
that comes out. Decoder rows are kept at norm 1: the gradient along them is taken out, and rounding put right after each
step. Adam moves a row of d entries by √d times the learning rate; biases and thresholds, one number each, move at that
pace too. Latents that have not been active for long are dead; TopK and BatchTopK train them to predict what is left
over (aux-k).
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from cetsim import checks
from cetsim.interpret.coder import Coder, unit_rows, with_fields
from cetsim.interpret.crosscoder import Crosscoder
from cetsim.interpret.evaluation import quality
from cetsim.interpret.order import batch_rows
from cetsim.interpret.selection import largest_of_rows
from cetsim.interpret.settings import Hyperparameters, Settings
from cetsim.interpret.sparsity import AbstractSparsity
from cetsim.interpret.start import geometric_median, near_data
from cetsim.interpret.store import Activations, take_of_runs


class CoderState(eqx.Module):
    """All that a run is at one moment.

    **Fields:** `coder`: of scaled vectors, but for the gain. `log_gain`: logarithm of what all latents are multiplied
    with. `silent`: vectors since each latent was active. `order`: key of the shuffles.
    """

    hyper: Hyperparameters
    coder: Coder | Crosscoder
    log_gain: Float[Array, ""]
    optimizer: optax.OptState
    silent: Int[Array, " latents"]
    order: Array
    step: Int[Array, ""]
    diverged: Bool[Array, ""]


class CoderRun(eqx.Module):
    """Training of an SAE, a transcoder or a crosscoder on what a store holds.

    **Arguments:**

    - `store`: of activations.
    - `sparsity`: one of `ReLU`, `TopK`, `BatchTopK`, `JumpReLU`, `Gated`.
    - `settings`: what is compiled in.
    - `inputs`: the site that is read, or several of one width, of which `Hyperparameters(site=...)` chooses.
    - `outputs`: the site that is predicted, for a transcoder; None for an SAE.
    - `across`: instead of both, the sites of a crosscoder.

    **Raises:** ValueError for a site that the store lacks, sites whose rows do not belong together, fewer vectors than
    a batch, a `k` above the latents, or vectors that are all 0.
    """

    data: tuple[Array, ...] | None
    scales: Float[Array, "sites candidates"]
    sparsity: AbstractSparsity
    settings: Settings = eqx.field(static=True)
    store: Activations | None = eqx.field(static=True)  # None where all is in `data`: then no program is of one store
    sites: tuple[tuple[str, ...], ...] = eqx.field(static=True)  # of each role, the candidates
    widths: tuple[int, ...] = eqx.field(static=True)  # of each role
    rows: int = eqx.field(static=True)
    joint: bool = eqx.field(static=True)

    def __init__(self, store, sparsity, settings, inputs=None, outputs=None, across=None):
        checks.require_instance("store", store, Activations, "cetsim.interpret.Activations")
        checks.require_instance("settings", settings, Settings, "cetsim.interpret.Settings")
        if (inputs is None) == (across is None) or (across is not None and outputs is not None):
            raise ValueError("give `inputs`, with `outputs` for a transcoder, or `across` for a crosscoder")
        self.joint = across is not None
        named = lambda names: (names,) if isinstance(names, str) else tuple(names)  # noqa: E731
        roles = [(name,) for name in across] if self.joint else [named(inputs)]
        roles += [] if outputs is None else [named(outputs)]
        self.sites, self.settings, self.sparsity = tuple(roles), settings, sparsity
        every = [store.require(name) for role in roles for name in role]
        if settings.skip and outputs is None:
            raise ValueError("`skip` must be False but for a transcoder, which has `outputs`")
        if len({len(role) for role in roles}) > 1:
            raise ValueError(f"`inputs` and `outputs` must be as many, got {[len(role) for role in roles]}")
        for role in roles:
            if len({store.widths[name] for name in role}) > 1:
                widths = {name: store.widths[name] for name in role}
                raise ValueError(f"sites trained side by side must have one width, got {widths}")
        if len({store.tokens[name] for name in every}) > 1:
            counts = {name: store.tokens[name] for name in every}
            raise ValueError(f"sites must have one number of vectors an example, got {counts}")
        if (rows := store.rows(every[0])) < settings.batch:
            raise ValueError(f"`batch` must be at most the store's {rows} vectors, got {settings.batch}")
        self.widths, self.rows = tuple(store.widths[role[0]] for role in roles), rows
        self._make(sparsity, jax.random.key(0))  # which refuses what cannot be
        self.scales = jnp.asarray([[store.scale(name) for name in role] for role in roles], jnp.float32)
        fits = sum(map(store.nbytes, every)) <= settings.memory
        self.data = tuple(jnp.stack([store.array(n) for n in role]) for role in roles) if fits else None
        self.store = None if fits else store

    def init(self, hyper: Hyperparameters, key: Array) -> CoderState:
        """The run before its first step; `key` sets the weights and the order.

        Biases start at geometric medians, the weights of TopK and BatchTopK near the data (`start.near_data`).
        """
        self._check(hyper)
        return self._start(hyper, key)

    @eqx.filter_jit
    def _start(self, hyper: Hyperparameters, key: Array) -> CoderState:
        weights, order = jax.random.split(key)
        coder = self._make(self._sparsity(hyper), weights)
        x = self._batch(hyper, order, jnp.zeros((), int))
        right = self._sparsity(hyper).fits(self.settings.latents) & (hyper.site < len(self.sites[0]))
        medians = [jnp.where(right, geometric_median(part), jnp.nan) for part in x]  # what is traced cannot be refused
        if self.joint:
            coder = with_fields(coder, b_dec=tuple(medians))
        else:
            coder = with_fields(coder, b_dec=medians[-1], b_in=None if coder.b_in is None else medians[0])
        gain = jnp.ones((), medians[0].dtype)
        if coder.sparsity.revives:
            rows = batch_rows(jax.random.fold_in(weights, 0), 0, self.settings.latents, self.rows)
            coder, gain = near_data(coder, self._vectors(hyper, rows), x)
        optimizer = self._optimizer(hyper).init((trained(coder), gain))
        return CoderState(
            hyper, coder, jnp.log(gain), optimizer, jnp.zeros(self.settings.latents, jnp.int32), order,
            jnp.zeros((), int), jnp.zeros((), bool),
        )  # fmt: skip

    def advance(self, state: CoderState, steps: int) -> tuple[CoderState, dict[str, Array]]:
        """Makes `steps` (static) steps; returns the state after them, and by name numbers of each, `[steps]`.

        They are `loss`, `unexplained` (squared error over squared distance from the batch's mean), `l0` and `dead`
        (share of the latents).
        """
        step = lambda state, _: self.update(state, self._batch(state.hyper, state.order, state.step))  # noqa: E731
        return jax.lax.scan(step, state, length=checks.require_whole("steps", steps, least=0))

    def update(self, state: CoderState, x: tuple) -> tuple[CoderState, dict[str, Array]]:
        """One step on a batch of scaled vectors, one array `[batch, width]` for each of the run's roles."""
        weights, gain = trained(state.coder), state.log_gain
        dead = state.silent >= self.settings.dead_after
        rest = eqx.filter(state.coder, weights_of(state.coder), inverse=True)
        loss = jax.value_and_grad(self._loss, argnums=(0, 1), has_aux=True)
        (value, seen), (grads, of_gain) = loss(weights, gain, rest, x, dead)
        unit = not self.joint
        if unit:
            along = jnp.sum(grads.W_dec * weights.W_dec, axis=-1, keepdims=True)
            grads = with_fields(grads, W_dec=grads.W_dec - along * weights.W_dec)
        with jax.numpy_dtype_promotion("standard"):  # in which optax is written
            of_both = self._optimizer(state.hyper).update((grads, of_gain), state.optimizer, (weights, gain))
        updates, optimizer = of_both
        weights, gain = optax.apply_updates((weights, gain), updates)
        if unit:
            weights = with_fields(weights, W_dec=unit_rows(weights.W_dec))
        coder = eqx.combine(weights, rest)
        silent = jnp.where(seen["active"], 0, state.silent + len(x[0])).astype(state.silent.dtype)
        after = CoderState(
            state.hyper, coder, gain, optimizer, silent, state.order, state.step + 1,
            state.diverged | ~jnp.isfinite(value),
        )  # fmt: skip
        metrics = {"loss": value, "unexplained": seen["unexplained"], "l0": seen["l0"]}
        return after, metrics | {"dead": jnp.mean(dead.astype(value.dtype))}

    def coder(self, state: CoderState) -> Coder | Crosscoder:
        """The coder of vectors as they are in the store, and in the network.

        The threshold of a BatchTopK is the smallest score that the first batches of the run keep, a mean over them.
        """
        return self._coder(state)

    @eqx.filter_jit
    def _coder(self, state: CoderState):
        scales, coder = self._scales(state.hyper), self._amplified(state.coder, state.log_gain)
        if coder.sparsity.has_threshold:
            of_step = lambda step: self._smallest(coder, self._batch(state.hyper, state.order, step))  # noqa: E731
            smallest = jax.lax.map(of_step, jnp.arange(self.settings.calibration))
            threshold = jnp.nan_to_num(jnp.nanmean(smallest))  # batches that keep nothing count for nothing
            coder = with_fields(coder, threshold=threshold.astype(coder.threshold.dtype))
        return coder.unscaled(tuple(scales)) if self.joint else coder.unscaled(*scales)

    def evaluate(self, state: CoderState, x: tuple | Array) -> dict[str, Array]:
        """Quality on vectors of a test set, as `evaluation.quality`.

        **Arguments:** `x`: what `arrays` gives of a test store, `[candidates, vectors, width]` for each role.
        """
        parts = tuple(role[state.hyper.site] for role in x)
        return quality(self.coder(state), *((parts, parts) if self.joint else (parts[0], parts[-1])))

    def arrays(self, store: Activations) -> tuple[Array, ...]:
        """The vectors of another store, such as a test set's, at the run's sites."""
        return tuple(jnp.stack([store.array(store.require(n)) for n in role]) for role in self.sites)

    def _make(self, sparsity, key):
        widths, latents = list(self.widths), self.settings.latents
        one = all(len(role) == 1 for role in self.sites)
        names = tuple(role[0] for role in self.sites) if one else None
        if self.joint:
            return Crosscoder(widths, latents, sparsity, key=key, sites=names)
        outputs = widths[1] if len(widths) > 1 else None
        sites = None if names is None else (names[0], names[-1])
        return Coder(widths[0], outputs, latents, sparsity, self.settings.skip, key=key, sites=sites)

    def _check(self, hyper: Hyperparameters) -> None:
        checks.require_instance("hyper", hyper, Hyperparameters, "cetsim.interpret.Hyperparameters")
        if not checks.is_traced(hyper.site) and int(hyper.site) >= len(self.sites[0]):
            raise ValueError(f"`site` must be below {len(self.sites[0])}, the run's inputs, got {int(hyper.site)}")

    def _sparsity(self, hyper: Hyperparameters) -> AbstractSparsity:
        return self.sparsity if hyper.sparsity is None else hyper.sparsity

    def _scales(self, hyper: Hyperparameters):
        return [of_role[hyper.site] for of_role in self.scales]

    def _batch(self, hyper: Hyperparameters, order, step) -> tuple[Array, ...]:
        """The scaled vectors of a step, one array for each role."""
        return self._vectors(hyper, batch_rows(order, step, self.settings.batch, self.rows))

    def _vectors(self, hyper: Hyperparameters, rows) -> tuple[Array, ...]:
        """Scaled vectors by number, one array for each role."""
        if self.data is not None:
            found = [role[hyper.site, rows] for role in self.data]
        else:
            shapes = [jax.ShapeDtypeStruct((len(rows), width), np.float32) for width in self.widths]
            found = jax.pure_callback(
                partial(take_of_runs, self.store, self.sites), shapes, rows, hyper.site, vmap_method="expand_dims"
            )
        return tuple(part * s.astype(part.dtype) for part, s in zip(found, self._scales(hyper), strict=True))

    def _amplified(self, coder, log_gain):
        """The coder with its gain in its encoder, where it keeps its k largest latents."""
        if not coder.sparsity.revives:
            return coder
        larger = lambda w: w * jnp.exp(log_gain).astype(w.dtype)  # noqa: E731
        return with_fields(coder, W_enc=jax.tree.map(larger, coder.W_enc), b_enc=larger(coder.b_enc))

    def _loss(self, weights, log_gain, rest, x: tuple, dead):
        """The loss of a batch, and what was seen of it."""
        coder = self._amplified(eqx.combine(weights, rest), log_gain)
        read, target = (x, x) if self.joint else (x[0], x[-1])
        z = coder.preactivation(read)
        norms = coder.norms if self.joint else 1.0  # rows have norm 1
        activity = coder.sparsity.train(z, coder.b_enc, coder.learned, norms)
        f = activity.latents
        error = jax.tree.map(jnp.subtract, target, coder.decode(f, read))
        value = _squares(error)
        seen = {"active": jnp.any(f > 0, axis=0), "l0": jnp.sum(f > 0, axis=1).mean(dtype=value.dtype)}
        seen["unexplained"] = value / _squares(_centred(target))
        value = value + activity.penalty
        if activity.gate is not None:
            frozen = jax.lax.stop_gradient(coder)
            value = value + _squares(jax.tree.map(jnp.subtract, target, frozen.decode(activity.gate, read)))
        # In units of the mean squared norm, so that the weight of aux-k and the clipping do not depend on the width.
        value = value / sum(leaf.shape[-1] for leaf in jax.tree.leaves(target))
        if coder.sparsity.revives and self.settings.aux > 0:
            left = jax.lax.stop_gradient(error)
            value = value + self.settings.aux * jax.lax.cond(
                jnp.any(dead), lambda: self._revived(coder, z, left, dead), lambda: jnp.zeros((), value.dtype)
            )
        return value, seen

    def _revived(self, coder, z, left, dead):
        """How badly the dead latents that are largest predict what is left: squared error over its variance."""
        of_dead = jax.nn.relu(z) * dead.astype(z.dtype)
        count = max(1, sum(leaf.shape[-1] for leaf in jax.tree.leaves(left)) // 2)
        scores = jax.lax.stop_gradient(of_dead)
        smallest = largest_of_rows(scores, min(count, self.settings.latents))
        f = jnp.where(scores >= smallest, of_dead, 0)
        predicted = jax.tree.map(lambda w: f @ w, coder.W_dec)
        loss = _squares(jax.tree.map(jnp.subtract, left, predicted)) / _squares(_centred(left))
        return jnp.where(jnp.isfinite(loss), loss, 0)

    def _smallest(self, coder, x: tuple):
        """The smallest score that is kept of a batch; nan where there is none."""
        z = coder.preactivation(x if self.joint else x[0])
        return coder.sparsity.train(z, coder.b_enc, coder.learned, coder.norms if self.joint else 1.0).smallest

    def _optimizer(self, hyper: Hyperparameters) -> optax.GradientTransformation:
        peak = 2e-4 / (self.settings.latents / 2**14) ** 0.5 if hyper.learning_rate is None else hyper.learning_rate
        rate = lambda step: peak * self.settings.schedule(step)  # noqa: E731
        adam = optax.adam(rate, b2=self.settings.beta2)
        clipped = optax.clip_by_global_norm(self.settings.clip)
        return optax.chain(optax.stateless(_paced), clipped, adam, optax.stateless(_paced))


def _paced(both, of):
    """Gradients, or updates by Adam, with those of biases and thresholds √d times as large.

    An entry of a row of norm 1 is about 1/√d and moves by the learning rate. So do biases, whose size is that of the
    vectors' entries: about 1, as these are scaled. Without this pace they would hardly move in a run of usual length.
    Both times together it is as if b/√d were trained: so that what is clipped is a norm in one unit.
    """
    (updates, gain), (weights, _) = both, of
    pace = sum(leaf.shape[0] for leaf in jax.tree.leaves(weights.W_enc)) ** 0.5
    fields = {name: jax.tree.map(lambda u: u * pace, getattr(updates, name)) for name in ("b_enc", "learned")}
    for name in ("b_dec", "b_in"):
        fields[name] = jax.tree.map(lambda u: u * len(u) ** 0.5, getattr(updates, name, None))
    return with_fields(updates, **fields), gain * pace


def weights_of(coder):
    """Which leaves of a coder are trained, as a tree of booleans."""
    spec = jax.tree.map(eqx.is_inexact_array, coder)
    held = ("sparsity", "threshold", *(["scales"] if isinstance(coder, Crosscoder) else []))
    off = [jax.tree.map(lambda _: False, getattr(spec, name)) for name in held]
    return eqx.tree_at(lambda tree: [getattr(tree, name) for name in held], spec, off)


def trained(coder):
    """The coder with the leaves that are trained alone."""
    return eqx.filter(coder, weights_of(coder))


def _squares(error):
    """Squared norm, summed over sites, mean over the batch."""
    return sum(jnp.sum(leaf**2, axis=-1).mean() for leaf in jax.tree.leaves(error))


def _centred(x):
    return jax.tree.map(lambda leaf: leaf - leaf.mean(0), x)
