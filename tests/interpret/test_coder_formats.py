"""Coders on disk: ours come back bit for bit, others' compute what they did, and wrong files are refused."""

import json
import shutil
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cetsim import interpret as si
from cetsim.interpret import torch_file

MADE = Path(__file__).parent / "coders"
SEEN = np.load(MADE / "seen.npz")
KINDS = [si.ReLU(0.3), si.TopK(3), si.BatchTopK(3), si.JumpReLU(0.2, 0.4, 0.3), si.Gated(0.3)]


@pytest.mark.parametrize("name", sorted(key.removesuffix(".f") for key in SEEN if key.endswith(".f")))
def test_coders_of_others_compute_what_they_did(name):
    load = si.load_prisma if name.startswith("prisma") else si.load_saelens
    coder, x = load(MADE / name), jnp.asarray(SEEN["x"])
    np.testing.assert_allclose(coder.encode(x), SEEN[f"{name}.f"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(coder(x), SEEN[f"{name}.y"], rtol=1e-5, atol=1e-5)
    assert (SEEN[f"{name}.f"] > 0).any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_ours_come_back_bit_for_bit(kind, tmp_path):
    coders = [
        si.Coder(5, None, 9, kind, key=jax.random.key(0), sites=("a", "a")),
        si.Coder(5, 4, 9, kind, True, key=jax.random.key(0)),
        si.Crosscoder((5, 4), 9, kind, key=jax.random.key(0), sites=("a", "b")),
    ]
    for coder in coders:
        si.save_coder(tmp_path / "coder.safetensors", coder)
        found = si.load_coder(tmp_path / "coder.safetensors")
        assert jax.tree.structure(found) == jax.tree.structure(coder)
        assert eqx.tree_equal(found, coder)
    assert [path.name for path in tmp_path.iterdir()] == ["coder.safetensors"]


def changed(arrays, about=None):
    """A file of a coder with other arrays."""
    from safetensors.numpy import save

    coder = si.Coder(5, None, 9, si.TopK(3), key=jax.random.key(0))
    own = {name: np.asarray(getattr(coder, name)) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    said = {"schema": 1, "kind": "Coder", "sites": None, "sparsity": {"kind": "TopK", "k": 3}}
    kept = {name: array for name, array in (own | arrays).items() if array is not None}
    return save(kept, {"cetsim": json.dumps(said | (about or {}))})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"not a file of arrays", "must be a safetensors file"),
        (lambda: changed({})[:200], "must be a safetensors file"),
        (lambda: changed({"b_enc": None}), "it lacks b_enc"),
        (lambda: changed({"odd": np.zeros(3)}), "it has besides odd"),
        (lambda: changed({"b_enc": np.zeros(8)}), r"b_enc must have shape \[9\], got \[8\]"),
        (lambda: changed({"W_enc": np.zeros((4, 9))}), "an SAE must read and write one width, got 4 and 5"),
        (lambda: changed({"b_enc": np.full(9, np.nan)}), "b_enc must be floating point numbers, got nan"),
        (lambda: changed({"b_dec": np.zeros(5, int)}), "b_dec must be floating point numbers, got int64"),
        (lambda: changed({}, {"sparsity": {"kind": "Odd"}}), "was not written by cetsim's save_coder"),
        (lambda: changed({}, {"sparsity": {"kind": "TopK", "k": 10}}), "at most the number of latents, 9, got 10"),
        (lambda: changed({}, {"schema": 2}), "the schema 2"),
    ],
)
def test_wrong_files_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "coder.safetensors"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=message) as refused:
        si.load_coder(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("standard", {"normalize_activations": "layer_norm"}, "`normalize_activations` must be 'none'"),
        ("standard", {"architecture": "temporal"}, "`architecture` must be one of standard, topk"),
        ("topk", {"k": 17}, "`k` must be a whole number from 1 to the 16 latents, got 17"),
        ("standard", {"architecture": "gated"}, "it lacks b_gate, b_mag, r_mag"),
        ("gated", {"architecture": "standard"}, "it lacks b_enc"),
        ("prisma", {"normalize_activations": "layer_norm"}, "cannot be folded away"),
        ("prisma", {"activation_fn_str": "tanh-relu"}, "with relu or topk"),
        ("prisma", {"is_transcoder": True}, "`is_transcoder` must be false"),
    ],
)
def test_coders_of_others_that_cannot_be_read_are_refused(name, config, message, tmp_path):
    shutil.copytree(MADE / name, tmp_path / "coder")
    path = tmp_path / "coder" / ("config.json" if name.startswith("prisma") else "cfg.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    load = si.load_prisma if name.startswith("prisma") else si.load_saelens
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "coder")


def test_nothing_in_a_pickle_is_called(tmp_path):
    """A pickle that would make a file, were it executed, in the place of a configuration."""
    mark = tmp_path / "called"
    call = f"cos\nmkdir\n(V{mark}\ntR.".encode()
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", call)
    with pytest.raises(ValueError, match="the instruction UNICODE"):
        torch_file.read(tmp_path / "weights.pt")
    call = b"\x80\x02cos\nmkdir\nX" + len(str(mark)).to_bytes(4, "little") + str(mark).encode() + b"\x85R."
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", call)
    assert torch_file.read(tmp_path / "weights.pt") == torch_file.Note("os.mkdir", (str(mark),))
    assert not mark.exists()


def test_damaged_files_of_torch_are_refused(tmp_path):
    (tmp_path / "weights.pt").write_bytes((MADE / "prisma" / "weights.pt").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"must be a sound file of torch\.save"):
        torch_file.read(tmp_path / "weights.pt")
