"""Checkpoints come back bit for bit or not at all, whatever happens to the process, the disk or the file."""

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path

import equinox as eqx
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from networks import jit
from worlds import corridor

import cetsim
from cetsim import rl
from cetsim.nn.batch_norm import BatchNorm
from cetsim.supervised import Hyperparameters, Settings, SupervisedRun
from cetsim.sweep import provenance
from cetsim.sweep.checkpoint import latest, save

TREE = {"weights": np.arange(6.0).reshape(2, 3), "count": 3, "none": None}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(saved, restored):
    """Bit for bit, kind for kind."""
    leaves = lambda tree: jax.tree.flatten(tree, is_leaf=lambda node: node is None)  # noqa: E731
    (before, structure), (after, restored_structure) = leaves(saved), leaves(restored)
    assert structure == restored_structure
    for a, b in zip(before, after, strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        elif isinstance(a, jax.Array):
            assert a.weak_type == b.weak_type
        if type(a) is int or a is None:
            assert a == b
        else:
            a, b = np.asarray(a), np.asarray(b)
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def made_in(folder):
    """Two checkpoints, of steps 1 and 2."""
    for step in (1, 2):
        save(folder, step, TREE | {"count": step})


def supervised(boundary="reset"):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40).astype(np.int32)
    make_model = lambda key: cetsim.nn.mlp((5, 4, 3), key=key)  # noqa: E731
    run = SupervisedRun(make_model, x, labels, Settings(steps=8, segment=8, boundary=boundary))
    return run, Hyperparameters(1e-2, cetsim.CascadingTrace(4, 0.4, 0.2), cetsim.FixedDelay(0.4, 0.2))


def actor_critic():
    run = rl.ActorCriticRun(corridor(), rl.Settings(updates=8, environments=2, rollout=5, hidden=()))
    return run, rl.Hyperparameters(1e-2, cetsim.CascadingTrace(3, 0.6, 0.2), cetsim.FixedDelay(0.6, 0.2))


@pytest.mark.parametrize("make", [supervised, lambda: supervised("carry"), actor_critic])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(make, tmp_path):
    run, hyper = make()
    advance = jit(run.advance)
    middle, _ = advance(run.init(hyper, jax.random.key(3)), 2)
    save(tmp_path, 2, middle)
    step, restored, _ = latest(tmp_path, run.init(hyper, jax.random.key(4)))
    assert step == 2
    assert_same(middle, restored)
    assert_same(advance(middle, 2), advance(restored, 2))


def test_shapes_alone_are_enough_to_restore_into(tmp_path):
    """The state of batch norm, whose markers are static, and keys among them."""

    def init(key):
        norms = lambda key: eqx.nn.Sequential([eqx.nn.Linear(2, 3, key=key), BatchNorm(3, layout="channels_last")])  # noqa: E731
        model, state = eqx.nn.make_with_state(norms)(key)
        return eqx.filter(model, eqx.is_array), state, jax.random.split(key, 3)

    saved = init(jax.random.key(5))
    save(tmp_path, 0, saved)
    assert_same(saved, latest(tmp_path, eqx.filter_eval_shape(init, jax.random.key(6)))[1])


def test_promotion_is_restored_too(tmp_path):
    saved = [jnp.asarray(1.0), jnp.broadcast_to(2, (3,)), jnp.ones(3)]
    assert [leaf.weak_type for leaf in saved] == [True, True, False]
    save(tmp_path, 0, saved)
    assert_same(saved, latest(tmp_path, saved)[1])


def test_notes_come_back_beside_the_tree(tmp_path):
    notes = {"rows": [[{"metric": "loss", "value": None}]], "seconds": 0.1}
    save(tmp_path, 1, TREE)
    assert latest(tmp_path, TREE)[2] is None
    save(tmp_path, 2, TREE, notes)
    assert latest(tmp_path, TREE)[2] == notes
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path, 3, TREE, {"value": float("nan")})
    assert latest(tmp_path, TREE)[0] == 2


def of_bits(dtype):
    """Arrays of any bits, among them those of numbers that are none."""
    dtype, shapes = np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3)
    if dtype.kind == "b":
        return hnp.arrays(dtype, shapes)
    raw = shapes.flatmap(lambda shape: hnp.arrays(np.uint8, (*shape, dtype.itemsize)))
    return raw.map(lambda bits: bits.view(dtype)[..., 0])


NUMPY = st.sampled_from(
    [
        "bool",
        "int8",
        "uint16",
        "int32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "bfloat16",
        ">f4",
    ]
).flatmap(of_bits)
JAX = st.sampled_from(["bool", "int8", "int32", "uint32", "int64", "float16", "float32", "float64", "bfloat16"])
KEYS = st.builds(
    lambda seed, impl, many: jax.random.split(jax.random.key(seed, impl=impl), 2) if many else jax.random.key(seed),
    *(st.integers(0, 2**31), st.sampled_from(["threefry2x32", "rbg"]), st.booleans()),
)
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.complex_numbers(), NUMPY, KEYS),
    NUMPY.map(lambda array: array.ravel()[0] if array.size else np.float32(1.0)),
    JAX.flatmap(of_bits).map(jnp.array),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)


@given(TREES)
@settings(max_examples=60)
def test_any_tree_comes_back(tree):
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), 7, tree)
        step, restored, _ = latest(Path(folder), tree)
    assert step == 7
    assert_same(tree, restored)


@pytest.fixture(scope="module")
def whole():
    """A folder with two checkpoints, and the content of the newest."""
    with tempfile.TemporaryDirectory() as folder:
        made_in(Path(folder))
        newest = Path(folder, "checkpoint-0000000002.cet")
        yield Path(folder), newest, newest.read_bytes()


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_passed_over(whole, data):
    folder, newest, content = whole
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "flip", "longer"]))
    flipped = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    newest.with_suffix(".damaged").unlink(missing_ok=True)
    newest.write_bytes({"cut": content[:at], "flip": flipped, "longer": content + content[at:]}[how])
    with pytest.warns(UserWarning, match=r"checkpoint-0+2.cet is damaged .*falls back to step 1$"):
        step, restored, _ = latest(folder, TREE)
    assert step == 1
    assert_same(TREE | {"count": 1}, restored)


def test_what_is_wrong_is_said_and_a_run_without_a_whole_file_starts_over(tmp_path):
    made_in(tmp_path)
    first, second = (tmp_path / name for name in files(tmp_path))
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged") as told:
        assert latest(tmp_path, TREE) is None
    what = "is damaged or of an older version: its checksum, or how it begins, does not fit"
    assert [str(one.message) for one in told] == [
        f"the checkpoint {second} {what}; the run falls back to step 1",
        f"the checkpoint {first} {what}; the run starts over",
    ]
    save(tmp_path, 1, TREE)  # from the start
    assert files(tmp_path) == [f"checkpoint-000000000{name}" for name in ("1.cet", "1.damaged", "2.damaged")]
    assert latest(tmp_path, TREE)[0] == 1


def test_a_damaged_file_does_not_count_among_those_kept(tmp_path):
    made_in(tmp_path)
    (tmp_path / "checkpoint-0000000002.cet").write_bytes(b"cetsim checkpoint 0002 of an older layout")
    with pytest.warns(UserWarning, match="is damaged or of an older version"):
        latest(tmp_path, TREE)
    save(tmp_path, 3, TREE)
    assert files(tmp_path) == [f"checkpoint-000000000{name}" for name in ("1.cet", "2.damaged", "3.cet")]


def test_the_last_two_are_kept_and_what_a_dead_writer_left_is_overwritten(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert latest(folder, TREE) is None
    save(folder, 8, TREE)
    (folder / ".checkpoint-0000000009.cet.tmp").write_bytes(b"cut short")
    for step in (9, 9, 10, 11):
        save(folder, step, TREE)
    assert files(folder) == ["checkpoint-0000000010.cet", "checkpoint-0000000011.cet"]
    save(folder, 3, TREE)  # whoever starts over loses neither
    assert files(folder) == [f"checkpoint-00000000{step}.cet" for step in ("03", "10", "11")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": np.zeros((3, 2))},
            r"has \['weights'\] float64\[2, 3\] where `like` has \['weights'\] float64\[3, 2\]",
        ),
        (
            {"weights": jnp.zeros((2, 3), jnp.float32)},
            r"float64\[2, 3\] where `like` has \['weights'\] float32\[2, 3\]",
        ),
        ({"none": 1}, r"it has  where `like` has \['none'\] a Python int"),
        ({"count": None}, r"it has \['count'\] a Python int where `like` has $"),
        ({"count": 1.0}, r"\['count'\] a Python int where `like` has \['count'\] a Python float"),
        ({"more": jax.random.key(0)}, r"where `like` has \['more'\] key<fry>\[\]"),
        ({"weights": {str(i): 1 for i in range(9)}}, r"(\['weights'\]\['\d'\] a Python int,? ?){5}$"),
    ],
)
def test_another_structure_is_refused(tmp_path, change, message):
    made_in(tmp_path)
    with pytest.raises(ValueError, match=message):
        latest(tmp_path, TREE | change)
    assert latest(tmp_path, TREE | {"weights": jax.ShapeDtypeStruct((2, 3), "float64")})[0] == 2


@pytest.mark.parametrize(
    "leaf",
    [
        "text",
        jnp.tanh,
        np.array([None]),
        jax.ShapeDtypeStruct((), "float32"),
        2**64,
        np.ma.masked_array([1.0, 2.0], [True, False]),
    ],
)
def test_what_is_no_number_cannot_be_saved(tmp_path, leaf):
    with pytest.raises(ValueError, match=r"(?s)a leaf of a checkpoint must .* as \['odd'\]"):
        save(tmp_path, 0, {"odd": leaf})
    assert files(tmp_path) == []


def test_float64_needs_x64(tmp_path):
    save(tmp_path, 0, jnp.ones(2, "float64"))
    with jax.enable_x64(False), pytest.raises(ValueError, match="a leaf was saved as float64, which jax holds with"):
        latest(tmp_path, np.ones(2))


def rewritten(path, schema):
    """The file as a later version of cetsim would write it."""
    content = path.read_bytes().replace(b"checkpoint 0002", b"checkpoint %04d" % schema, 1)[:-32]
    path.write_bytes(content + hashlib.sha256(content).digest())


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    made_in(tmp_path)
    newest = tmp_path / "checkpoint-0000000002.cet"
    rewritten(newest, 3)
    content = newest.read_bytes()
    with pytest.raises(ValueError, match="is of schema 3, and this version of cetsim knows up to 2: update cetsim"):
        latest(tmp_path, TREE)
    assert newest.read_bytes() == content


def test_other_versions_are_warned_of(tmp_path, monkeypatch):
    made_in(tmp_path)
    monkeypatch.setattr(provenance, "versions", lambda: {"jax": "9.9", "python": "4.0"})
    with pytest.warns(
        UserWarning, match=r"differ in the last bits: jax was [\d.]+ and is 9.9, python was [\d.]+ and is 4.0$"
    ):
        assert latest(tmp_path, TREE)[0] == 2


def test_the_header_can_be_read_by_hand(tmp_path):
    made_in(tmp_path)
    line, header, _ = (tmp_path / "checkpoint-0000000002.cet").read_bytes().split(b"\n", 2)
    assert line == b"cetsim checkpoint 0002"
    assert {"jax", "equinox", "cetsim", "python"} <= json.loads(header)["versions"].keys()


class Half:
    """A file that takes half of what it is given."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def writelines(self, content):
        self.file.write(b"".join(content)[:500])
        raise self.error


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_keeps_what_is_there(tmp_path, monkeypatch, where, code):
    made_in(tmp_path)
    error, whole, real = OSError(code, os.strerror(code)), files(tmp_path), Path.open

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        if where == "open":
            patch.setattr(Path, "open", fail)
        elif where == "write":
            patch.setattr(Path, "open", lambda path, mode: Half(real(path, mode), error))
        else:
            patch.setattr(os, where, fail)
        with pytest.raises(OSError, match=r"checkpoint-0000000003\.cet cannot be written: ") as raised:
            save(tmp_path, 3, TREE)
    assert raised.value.errno == code
    assert str(tmp_path) in str(raised.value)
    assert os.strerror(code) in str(raised.value)
    assert files(tmp_path) == whole
    assert latest(tmp_path, TREE)[0] == 2
    save(tmp_path, 3, TREE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_folder_that_is_read_only(tmp_path):
    made_in(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="cannot be written"):
            save(tmp_path, 3, TREE)
        assert latest(tmp_path, TREE)[0] == 2
    finally:
        tmp_path.chmod(0o700)
