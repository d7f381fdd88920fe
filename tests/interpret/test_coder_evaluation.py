"""What is measured of a coder, against the definitions written out in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import interpret as si
from cetsim.interpret.coder import with_fields

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 60)


def network(key=0):
    return eqx.nn.MLP(5, 3, 6, 2, key=jax.random.key(key))


def coder_of(width=6, k=2):
    coder = si.Coder(width, None, 12, si.TopK(k), key=jax.random.key(2), sites=("layers.1", "layers.1"))
    return with_fields(coder, b_enc=coder.b_enc.at[0].set(-100.0).at[1].set(100.0))  # one dead, one always active


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return si.record(tmp_path_factory.mktemp("store"), network(), "layers.1", X)


def logits_of(model, h):
    return np.asarray(jax.vmap(lambda h: model.layers[2](jax.nn.relu(h)))(jnp.asarray(h)))


def cross_entropy(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(60), LABELS])


def test_every_number_is_as_defined(store):
    model, coder = network(), coder_of()
    found = si.evaluate(coder, store, model, jnp.asarray(X), LABELS, batch=13, logit_scale=1.0)
    x = store.array("layers.1").astype(float)
    f = np.asarray(coder.encode(jnp.asarray(x)))
    y = f @ np.asarray(coder.W_dec) + np.asarray(coder.b_dec)
    mean = x.mean(0)
    losses = {
        "clean": cross_entropy(logits_of(model, x)),
        "spliced": cross_entropy(logits_of(model, y)),
        "zero": cross_entropy(logits_of(model, 0 * x)),
        "mean": cross_entropy(logits_of(model, np.tile(mean, (60, 1)))),
    }
    expected = {f"loss_{name}": value for name, value in losses.items()} | {
        "explained_variance": 1 - ((x - y) ** 2).sum() / ((x - mean) ** 2).sum(),
        "l0": (f > 0).sum(1).mean(),
        "l0_image": (f > 0).sum(1).mean(),
        "cosine": np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)),
        "dead": np.mean(~(f > 0).any(0)),
        "dense": np.mean((f > 0).mean(0) > 0.1),
        "loss_recovered": (losses["zero"] - losses["spliced"]) / (losses["zero"] - losses["clean"]),
    }
    assert found.values == pytest.approx(expected, rel=1e-4)
    assert found.values["dead"] >= 1 / 12
    assert found.values["dense"] >= 1 / 12
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found.log_frequency, np.log10((f > 0).mean(0)), rtol=1e-6)
    assert found.log_frequency[0] == -np.inf
    pure = si.quality(coder, jnp.asarray(x), batch=13)
    for name in ("explained_variance", "l0", "cosine", "dead", "dense"):
        assert float(pure[name]) == pytest.approx(expected[name], rel=1e-4)


def test_explained_variance_is_of_the_whole_set_not_a_mean_of_parts(store):
    parts = [si.Activations.of_arrays({"layers.1": p}) for p in np.array_split(store.array("layers.1"), 12)]
    whole = si.evaluate(coder_of(), store, batch=5).values["explained_variance"]
    mean = np.mean([si.evaluate(coder_of(), part).values["explained_variance"] for part in parts])
    assert abs(whole - mean) > 1e-3


def test_confidence_is_the_jackknife_over_batches(store):
    found = si.evaluate(coder_of(), store, batch=10)
    x = store.array("layers.1")
    f = np.asarray(coder_of().encode(jnp.asarray(x)))
    l0 = (f > 0).sum(1).reshape(6, 10).mean(1)  # of a mean over equal batches: the usual standard error
    assert found.errors["l0"] == pytest.approx(l0.std(ddof=1) / np.sqrt(6), abs=1e-6)
    mean, y = x.mean(0), np.asarray(coder_of()(jnp.asarray(x)))
    left_out = []
    for i in range(6):
        keep = np.arange(60) // 10 != i
        left_out.append(1 - ((x - y)[keep] ** 2).sum() / ((x - mean)[keep] ** 2).sum())
    expected = np.sqrt(5 * np.var(left_out))
    assert found.errors["explained_variance"] == pytest.approx(expected, rel=1e-3)
    assert si.evaluate(coder_of(), store, batch=100).errors == {}


def test_l0_by_token_and_image():
    values = RNG.standard_normal((20 * 4, 6)).astype(np.float32)
    store = si.Activations.of_arrays({"layers.1": values}, tokens=4, classes=1)
    found = si.evaluate(coder_of(), store, batch=3).values
    active = np.asarray(coder_of().encode(jnp.asarray(values)) > 0).reshape(20, 4, 12)
    assert found["l0"] == pytest.approx(active.sum(-1).mean())
    assert found["l0_cls"] == pytest.approx(active[:, 0].sum(-1).mean())
    assert found["l0_patches"] == pytest.approx(active[:, 1:].sum(-1).mean())
    assert found["l0_image"] == pytest.approx(active.any(1).sum(-1).mean())


def test_a_transcoder_is_put_in_place_of_its_output(tmp_path):
    model = network()
    store = si.record(tmp_path, model, ("layers.0", "layers.1"), X)
    coder = si.Coder(6, 6, 12, si.TopK(3), True, key=jax.random.key(2), sites=("layers.0", "layers.1"))
    found = si.evaluate(coder, store, model, jnp.asarray(X), LABELS, logit_scale=1.0).values
    y = np.asarray(coder(jnp.asarray(store.array("layers.0"))))
    assert found["loss_spliced"] == pytest.approx(cross_entropy(logits_of(model, y)), rel=1e-4)


class Cosines(eqx.Module):
    """A network whose outputs are cosines, as CLIP's are before its temperature."""

    layers: list

    def __init__(self):
        self.layers = [eqx.nn.Linear(5, 6, key=jax.random.key(0)), eqx.nn.Linear(6, 3, key=jax.random.key(1))]

    def __call__(self, x):
        h = self.layers[1](self.layers[0](x))
        return h / jnp.linalg.norm(h)


def test_the_models_own_temperature(tmp_path):
    model = Cosines()
    store = si.record(tmp_path, model, "layers.0", X)
    coder = si.Coder(6, None, 12, si.TopK(2), key=jax.random.key(2), sites=("layers.0", "layers.0"))
    arguments = (coder, store, model, jnp.asarray(X), LABELS)
    with pytest.raises(ValueError, match="give `logit_scale`, its own inverse temperature"):
        si.evaluate(*arguments)
    found = si.evaluate(*arguments, logit_scale=100.0).values["loss_clean"]
    logits = 100 * np.asarray(jax.vmap(model)(jnp.asarray(X)))
    assert found == pytest.approx(cross_entropy(logits), rel=1e-4)


def test_a_crosscoder_is_measured_at_each_site(store):
    other = RNG.standard_normal((60, 4)).astype(np.float32)
    both = si.Activations.of_arrays({"layers.1": store.array("layers.1"), "other": 100 * other})
    scales = tuple(both.scale(name) for name in both.sites)
    joint = si.Crosscoder((6, 4), 12, si.TopK(3), key=jax.random.key(2), sites=both.sites).unscaled(scales)
    joint = with_fields(joint, b_enc=joint.b_enc.at[0].set(-1e4))
    found = si.evaluate(joint, both, batch=13)
    x = tuple(jnp.asarray(both.array(name)) for name in both.sites)
    f, errors, spreads = np.asarray(joint.encode(x)), [], []
    for own, w, b, scale in zip(x, joint.W_dec, joint.b_dec, scales, strict=True):
        own = np.asarray(own, float)
        errors.append(scale**2 * ((own - f @ np.asarray(w) - np.asarray(b)) ** 2).sum())
        spreads.append(scale**2 * ((own - own.mean(0)) ** 2).sum())
    for name, error, spread in zip(both.sites, errors, spreads, strict=True):
        assert found.values[f"explained_variance_{name}"] == pytest.approx(1 - error / spread, rel=1e-4)
        assert found.errors[f"explained_variance_{name}"] > 0
    assert found.values["explained_variance"] == pytest.approx(1 - sum(errors) / sum(spreads), rel=1e-4)
    assert found.values["l0"] == pytest.approx((f > 0).sum(1).mean())
    assert found.values["dead"] == pytest.approx(np.mean(~(f > 0).any(0)))
    assert found.values["dead"] >= 1 / 12
    assert float(si.quality(joint, x)["explained_variance"]) == pytest.approx(found.values["explained_variance"])
    with pytest.raises(ValueError, match="`model` must be None for a crosscoder"):
        si.evaluate(joint, both, network(), jnp.asarray(X), LABELS)


def test_refused(store):
    model, coder, x = network(), coder_of(), jnp.asarray(X)
    wrong = [
        ((with_sites(coder, None), store), "with the names of its `sites`"),
        ((with_sites(coder, ("layers.2", "layers.2")), store), "the store has no site 'layers.2'"),
        ((coder_of(5), store), "the coder is of vectors of 5, site 'layers.1' of the store has 6"),
        ((coder, store, network(1), x, LABELS), "the store is of another model"),
        ((coder, store, model, x[:9], LABELS[:9]), "must be the store's 60 examples"),
        ((coder, store, model, x, LABELS + 0.5), "`labels` must be class numbers"),
        ((coder, store, model, x.at[59].set(jnp.nan), LABELS), "loss must be finite, got nan on examples 0 to 59"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            si.evaluate(*arguments)


def with_sites(coder, sites):
    leaves, tree = jax.tree.flatten(coder)
    other = si.Coder(6, None, 12, si.TopK(2), key=jax.random.key(2), sites=sites)
    assert tree.num_leaves == len(jax.tree.leaves(other))
    return jax.tree.unflatten(jax.tree.structure(other), leaves)


def test_recovered_is_nan_where_zero_loses_nothing():
    assert np.isnan(si.recovered(1.0, 1.5, 1.0))
    assert float(si.recovered(1.0, 1.5, 2.0)) == 0.5
