"""Published weights: each family against the library that made it, and files that are not what they should be."""

import functools
import json
import re
import shutil
import sys
import types
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cetsim import interpret
from cetsim.interpret import tensors, weights
from cetsim.interpret.positions import resampled

FOLDER = Path(__file__).parents[1] / "golden" / "vit"
MODELS = sorted(path.name for path in FOLDER.iterdir())
LARGE = (16, 20)
jit = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def family_of(name):
    return name if name in interpret.models() else name.rpartition("_")[0]


def loaded(name, **options):
    if name == "dino":  # it has no configuration
        options["heads"] = 2
    return weights.load(FOLDER / name, family_of(name), **options)


def check_tower(model, x, seen, at=""):
    """Output, what enters the first block and leaves each, and patterns."""
    first = "norm_pre" if getattr(model, "norm_pre", None) is not None else "tokens"
    sites = {first: "hidden.0"} | {f"blocks.{i}": f"hidden.{i + 1}" for i in range(2)}
    sites |= {f"blocks.{i}.attention.pattern": f"pattern.{i}" for i in range(2) if f"{at}pattern.{i}" in seen}
    output, values = jit(jax.vmap(interpret.capture(model, list(sites))))(x)
    assert output.dtype == jnp.float32
    close(output, seen[f"{at}output"], err_msg="output")
    for site, name in sites.items():
        close(values[site], seen[at + name], err_msg=site)


@pytest.mark.parametrize("name", MODELS)
def test_a_family_says_what_its_library_says_at_every_block(name):
    model, seen = loaded(name), np.load(FOLDER / name / "seen.npz")
    assert all(np.ptp(seen[key]) > 0.1 for key in seen if "output" in key)
    if isinstance(model, interpret.Clip):
        check_tower(model.vision, seen["x"], seen, "vision.")
        check_tower(model.text, seen["ids"], seen, "text.")
        close(jit(lambda x, ids: jax.vmap(model, (0, None))(x, ids))(seen["x"], seen["ids"]), seen["logits"])
    else:
        check_tower(model, seen["x"], seen)


@pytest.mark.parametrize("name", [name for name in MODELS if "large.x" in np.load(FOLDER / name / "seen.npz")])
def test_positions_are_stretched_to_another_image_as_the_library_does(name):
    model, seen = loaded(name, image=LARGE), np.load(FOLDER / name / "seen.npz")
    model = getattr(model, "vision", model)
    assert model.image == (3, *LARGE)
    close(jit(lambda x: jax.vmap(model)(x))(seen["large.x"]), seen["large.output"])


def test_every_family_is_checked_and_says_what_was_not():
    table = interpret.models()
    assert {family_of(name) for name in MODELS} == set(table)
    for name, family in table.items():
        assert f"{name}: {family.loads}\n    verified: {family.verified}\n    not: {family.unverified}" in repr(table)


def changed(tmp_path, name, arrays=None, config=None):
    """A copy of a model with other arrays (None takes one away) and another configuration."""
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    file = next(folder.glob("*.safetensors"))
    kept = {key: array for key, array in (load_file(file) | (arrays or {})).items() if array is not None}
    save_file(kept, file)
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return folder


def test_arrays_that_are_missing_or_too_many_are_all_named(tmp_path):
    gone = ["vit.encoder.layer.1.output.dense.bias", "vit.embeddings.cls_token"]
    folder = changed(tmp_path, "vit", dict.fromkeys(gone) | {"vit.extra": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=f"it lacks {gone[0]}, {gone[1]} and has besides vit.extra$"):
        weights.load(folder, "vit")


# What a network may do without: its kind is told by these arrays.
TOLD_BY = {
    "clip_vision": ("visual_projection.weight",),
    "dinov2": ("embeddings.mask_token",),
    "dinov2_registers": ("embeddings.mask_token",),
    "dinov2_swiglu": ("dinov2.embeddings.mask_token",),
    "vjepa2": ("predictor.",),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_array_of_a_family_can_be_missing(name, monkeypatch):
    arrays, config = tensors.read(FOLDER / name, family_of(name))
    for gone in arrays:
        if gone.startswith(TOLD_BY.get(name, ("nothing",))):
            continue
        rest = {key: array for key, array in arrays.items() if key != gone}
        monkeypatch.setattr(tensors, "read", lambda *_, rest=rest: (rest, config))
        with pytest.raises(ValueError, match=f"it lacks .*{re.escape(gone)}|the grid of .* is no square|pos_embed"):
            loaded(name)


def test_a_configuration_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it lacks vit.encoder.layer.2.attention.attention.query.weight"):
        weights.load(changed(tmp_path / "a", "vit", config={"num_hidden_layers": 3}), "vit")
    with pytest.raises(ValueError, match=r"it has besides vit.encoder.layer.1.attention"):
        weights.load(changed(tmp_path / "b", "vit", config={"num_hidden_layers": 1}), "vit")
    with pytest.raises(
        ValueError, match=r"linear.weight must have shape \[32, 48\] by the configuration, got \[16, 48\]"
    ):
        weights.load(changed(tmp_path / "c", "vit", config={"hidden_size": 32}), "vit")
    with pytest.raises(ValueError, match=r"`hidden_act` must be one of gelu, .*, got 'relu'"):
        weights.load(changed(tmp_path / "d", "vit", config={"hidden_act": "relu"}), "vit")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights.load("nowhere", "vit"), "there is no nowhere; a name on the hub is 'owner/model'"),
        (lambda: weights.load(FOLDER / "vit", "vit", revision="main"), "`revision` must be None for a path, .*'main'"),
        (lambda: weights.load(FOLDER / "vit", "bert"), "`family` must be one of 'timm', .*, got 'bert'"),
        (lambda: weights.load(FOLDER, "vit"), "must hold one safetensors file, got none"),
        (lambda: loaded("clip", eps=1e-3), "`eps` stands in the configuration of clip, for each tower"),
        (lambda: loaded("vivit", image=LARGE), r"`image` must be \(12, 12\): ViViT's positions cannot be stretched"),
        (lambda: weights.load(FOLDER / "vit", "clip"), "vit holds no tower of clip: its arrays are classifier.bias"),
        (lambda: weights.load(FOLDER / "clip", "vit"), "is not what its family and configuration say: it lacks enc"),
        (lambda: loaded("vit", image=(14, 12)), r"`patch` must divide the input's sides \(14, 12\), got \(4, 4\)"),
    ],
)
def test_what_cannot_be_loaded_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_damaged_files_and_other_kinds_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        weights.load(tmp_path, "vit")
    other = json.loads((FOLDER / "open_clip" / "open_clip_config.json").read_text())
    other["model_cfg"]["vision_cfg"]["pool_type"] = "avg"
    with pytest.raises(ValueError, match="`pool_type` must be as in OpenAI's CLIP, got 'avg'"):
        weights.load(changed(tmp_path / "a", "open_clip", config=other), "open_clip")
    pooler = {"pooler.query_tokens": np.zeros((1, 1, 16), np.float32)}
    with pytest.raises(ValueError, match="holds V-JEPA 2's attentive classifier, which is not read"):
        weights.load(changed(tmp_path / "b", "vjepa2", pooler), "vjepa2")


def test_half_precision_and_files_in_parts_are_read(tmp_path):
    whole = load_file(FOLDER / "vit" / "model.safetensors")
    shutil.copy(FOLDER / "vit" / "config.json", tmp_path)
    names = sorted(whole)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, of in parts.items():
        save_file({name: whole[name].astype(jnp.bfloat16) for name in of}, tmp_path / file)
    index = {"weight_map": {name: file for file, of in parts.items() for name in of}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = weights.load(tmp_path, "vit")
    want = whole["classifier.weight"].astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(model.head.weight, want)
    assert model.head.weight.dtype == jnp.float32


def test_a_folder_with_the_names_of_two_libraries_is_read_by_the_familys(tmp_path):
    for name in ("open_clip", "clip"):
        for path in (FOLDER / name).iterdir():
            shutil.copy(path, tmp_path)
    for name in ("open_clip", "clip"):
        for one, other in zip(*map(jax.tree.leaves, (weights.load(tmp_path, name), loaded(name))), strict=True):
            np.testing.assert_array_equal(one, other)
    shutil.copy(tmp_path / "open_clip_model.safetensors", tmp_path / "open_clip_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"must hold one safetensors file, got open_clip_model.*, open_clip_pytorch"):
        weights.load(tmp_path, "open_clip")


def test_names_are_fetched_from_the_hub_or_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^this needs huggingface_hub: pip install 'cetsim\[hub\]'"):
        weights.load("google/vit", "vit")
    asked = []
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, revision, **_: asked.append((name, revision)) or str(FOLDER / "vit")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = weights.load("google/vit", "vit")
    weights.load("google/vit", "vit", revision="refs/pr/1")
    assert asked == [("google/vit", None), ("google/vit", "refs/pr/1")]
    np.testing.assert_array_equal(model.head.weight, loaded("vit").head.weight)


def test_a_configuration_can_be_overruled():
    model = loaded("vit", eps=0.5, mlp="quick_gelu", heads=4)
    assert (model.norm.eps, model.blocks[1].norm2.eps, model.blocks[0].attention.heads) == (0.5, 0.5, 4)
    x = np.load(FOLDER / "vit" / "seen.npz")["x"][0]
    assert np.abs(model(x) - loaded("vit")(x)).max() > 1e-3


def test_a_table_on_its_own_grid_stays_and_one_of_other_size_is_refused():
    table = np.random.default_rng(0).normal(size=(6, 3))
    assert resampled(table, (2, 3), (2, 3), "bicubic") is table
    constant = resampled(np.ones((6, 3)), (2, 3), (5, 4), "dino")
    np.testing.assert_allclose(constant, np.ones((20, 3)), rtol=1e-12)
    with pytest.raises(ValueError, match=r"positions \(6, 3\) of a grid \(2, 2\) cannot be stretched"):
        resampled(table, (2, 2), (4, 4), "bicubic")
