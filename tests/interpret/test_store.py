"""The store: what is in it, resuming bit for bit after SIGKILL, bounded memory, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import interpret as si

X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)


def network(key=0):
    return eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(key))


class Tokens(eqx.Module):
    """A network of five tokens."""

    embed: eqx.nn.Linear
    pool: eqx.nn.Linear

    def __init__(self):
        self.embed, self.pool = (eqx.nn.Linear(*size, key=jax.random.key(1)) for size in ((4, 7), (7, 2)))

    def __call__(self, x):
        return self.pool(jax.vmap(self.embed)(x[None] * jnp.arange(1.0, 6)[:, None]).mean(0))


def store_dtype():
    """Of a model made here."""
    return jnp.zeros(()).dtype


def store_bytes():
    """Of a number, which a model made under x64 has 8 of."""
    return jnp.zeros(()).dtype.itemsize


def digest(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_recorded_is_what_the_network_says(tmp_path):
    model = network()
    store = si.record(tmp_path, model, ("layers.0", "layers.1"), X, batch=8, memory=32 * 2 * 6 * store_bytes())
    assert len(list(tmp_path.glob("*.bin"))) == 2 * 2  # shards of 32 examples, the last shorter
    for name, layer in (("layers.0", 0), ("layers.1", 1)):
        h = X
        for i in range(layer + 1):
            h = np.asarray(jax.vmap(model.layers[i])(jnp.asarray(np.maximum(h, 0) if i else h)))
        np.testing.assert_allclose(store.array(name), h, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(store.mean(name), store.array(name).mean(0), rtol=1e-5, atol=1e-6)
        rows = np.array([[49, 0], [33, 31]])
        np.testing.assert_array_equal(store.take(name, rows), store.array(name)[rows])
        np.testing.assert_array_equal(np.concatenate([*store.batches(name, 7)]), store.array(name))
        power = np.mean(np.sum((store.scale(name) * store.array(name)) ** 2, 1))
        assert power == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize(("tokens", "kept"), [("all", slice(0, 5)), ("cls", slice(0, 1)), ("patches", slice(1, 5))])
def test_tokens_by_type(tokens, kept, tmp_path):
    model = Tokens()
    store = si.record(tmp_path, model, "embed", X, tokens=tokens, classes=1, batch=16)
    each = jax.vmap(lambda x: jax.vmap(model.embed)(x[None] * jnp.arange(1.0, 6)[:, None]))(jnp.asarray(X))
    np.testing.assert_allclose(store.array("embed"), each[:, kept].reshape(-1, 7), rtol=1e-5, atol=1e-6)
    assert store.tokens["embed"] == kept.stop - kept.start
    assert store.classes["embed"] == (0 if tokens == "patches" else 1)


def test_images_have_a_vector_a_pixel(tmp_path):
    model = eqx.nn.Sequential([eqx.nn.Conv2d(1, 3, 2, key=jax.random.key(0)), eqx.nn.Lambda(lambda x: x.sum((1, 2)))])
    images = X.reshape(50, 1, 2, 2).repeat(2, axis=2).astype(store_dtype())
    store = si.record(tmp_path / "a", model, "layers.0", images, axis=0)
    each = jax.vmap(model.layers[0])(jnp.asarray(images))
    np.testing.assert_allclose(store.array("layers.0"), jnp.moveaxis(each, 1, -1).reshape(-1, 3), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="`axis` must say along which axis"):
        si.record(tmp_path / "b", model, "layers.0", images)


VICTIM = """
    import sys, numpy as np, jax, equinox as eqx, time
    from cetsim import interpret as si
    from cetsim.interpret import store
    put = store.write_atomic
    def slow(path, content):
        put(path, content); print(path.name, flush=True); time.sleep(0.05)
    store.write_atomic = slow
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    model = eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(0))
    si.record(sys.argv[1], model, ("layers.0", "layers.1"), x, batch=4, memory=200)
"""


def test_a_recording_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), str(tmp_path / "killed")]
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as victim:
        lines = [victim.stdout.readline() for _ in range(6)]
        victim.send_signal(signal.SIGKILL)
    assert all(lines)
    killed = tmp_path / "killed"
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.bin")}
    assert 0 < len(before) < 26
    with pytest.raises(ValueError, match="the recording is not finished"):
        si.Activations(killed)
    options = dict(batch=4, memory=200)
    first = min(killed.glob("*.bin"))
    first.write_bytes(first.read_bytes()[:-1])  # a shard cut short
    with pytest.raises(ValueError, match="is cut short"):
        si.Activations(killed)
    time.sleep(0.01)
    si.record(killed, network(), ("layers.0", "layers.1"), X, **options)
    si.record(tmp_path / "whole", network(), ("layers.0", "layers.1"), X, **options)
    assert {n: b for n, b in digest(killed).items() if not n.startswith(".")} == digest(tmp_path / "whole")
    after = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.bin")}
    kept = [name for name in before if name != first.name]
    assert [after[name] for name in kept] == [before[name] for name in kept]


def test_memory_is_bounded(tmp_path):
    """A set of 26 MB with a bound of 1 MB."""
    model = eqx.nn.Sequential(
        [eqx.nn.Linear(4, 512, key=jax.random.key(0)), eqx.nn.Linear(512, 1, key=jax.random.key(0))]
    )
    x = np.zeros((12_800, 4), np.float32)
    si.record(tmp_path / "warm", model, "layers.0", x[:256], batch=128, memory=2**20)
    tracemalloc.start()
    store = si.record(tmp_path / "big", model, "layers.0", x, batch=128, memory=2**20)
    assert store.nbytes("layers.0") > 26e6
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.reset_peak()
    for batch in store.batches("layers.0", 256):
        assert len(batch) == 256
    store.take("layers.0", np.arange(0, 12_800, 50))
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_progress_is_printed(tmp_path, capsys):
    si.record(tmp_path, network(), "layers.0", X, batch=16, memory=1, progress=True)
    assert "recorded 50 of 50 examples" in capsys.readouterr().err


def bad(tmp_path, **options):
    given = {"model": network(), "sites": "layers.0", "x": X} | options
    return si.record(tmp_path / "store", given.pop("model"), given.pop("sites"), given.pop("x"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "layer.0"}, "no site 'layer.0': the nearest are 'layers.0'"),
        ({"tokens": "class"}, "`tokens` must be one of"),
        ({"tokens": "cls"}, "`classes` must say how many of the 1 tokens"),
        ({"x": np.where(X > 2, np.nan, X)}, "site 'layers.0' must say finite numbers, got others of example"),
        ({"batch": 0}, "`batch` must be at least 1"),
    ],
)
def test_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bad(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"model": network(1)}, "model"),
        ({"x": X + 1}, "data"),
        ({"sites": "layers.1"}, "sites"),
        ({"batch": 7}, "batch"),
    ],
)
def test_a_folder_of_another_recording_is_refused_and_left(options, differs, tmp_path):
    bad(tmp_path)
    before = digest(tmp_path / "store")
    with pytest.raises(ValueError, match=f"holds a recording with another .*{differs}"):
        bad(tmp_path, **options)
    assert digest(tmp_path / "store") == before


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a recording of activations"):
        si.Activations(tmp_path)
    store = bad(tmp_path)
    described = store.folder / "store.json"
    whole = described.read_text()
    for text, message in [
        (whole[:9], "must hold a recording of activations: "),
        ("[]", r"must hold a recording of activations, got \[\] in store.json"),
        ('{"schema": 1, "sites": []}', "must hold a recording of activations: it lacks widths, dtypes, tokens"),
    ]:
        described.write_text(text)
        with pytest.raises(ValueError, match=message):
            si.Activations(store.folder)
        with pytest.raises(ValueError, match="a recording"):
            bad(tmp_path)
        assert described.read_text() == text
    described.write_text(whole)
    described.write_text(json.dumps(json.loads(described.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match=r"written by another version, schema 99"):
        si.Activations(store.folder)
    with pytest.raises(ValueError, match=r"the store has no site 'layers.9': the nearest are 'layers.0'"):
        store.take("layers.9", 0)
    with pytest.raises(ValueError, match="`tokens` must give all sites one whole number of examples"):
        si.Activations.of_arrays({"a": X, "b": X[:9]})
