"""The transformer of `inside_networks` in NumPy, line by line, with a hook at every site."""

import numpy as np


def forward(model, image, edit=lambda name, value: value):
    """Logits; `edit(name, value)` is what a site says in the value's place."""

    def linear(name, layer, x):
        return edit(name, x @ np.asarray(layer.weight).T + (0 if layer.bias is None else np.asarray(layer.bias)))

    def norm(name, layer, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
        return edit(name, scaled * np.asarray(layer.weight) + np.asarray(layer.bias))

    def attention(name, layer, x):
        q, k, v = (
            linear(f"{name}.{part}_proj", getattr(layer, f"{part}_proj"), x).reshape(len(x), layer.num_heads, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = edit(f"{name}.dropout", weights / weights.sum(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return edit(name, linear(f"{name}.output_proj", layer.output_proj, mixed))

    def mlp(name, layers, x):
        hidden = edit(f"{name}.layers.1", np.tanh(linear(f"{name}.layers.0", layers.layers[0], x)))
        return edit(name, linear(f"{name}.layers.2", layers.layers[2], hidden))

    image = np.asarray(image)
    patches = np.stack([image[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2)])
    x = np.concatenate([np.asarray(model.cls)[None], linear("embed", model.embed, patches)])
    x = x + np.asarray(model.positions)
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        x = x + attention(f"{name}.attention", block.attention, norm(f"{name}.norms.0", block.norms[0], x))
        x = edit(name, x + mlp(f"{name}.mlp", block.mlp, norm(f"{name}.norms.1", block.norms[1], x)))
    return linear("head", model.head, norm("norm", model.norm, x[0]))


def values_of(model, image):
    """What every site says."""
    values = {}
    forward(model, image, lambda name, value: values.setdefault(name, value))
    return values
