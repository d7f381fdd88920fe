"""Published weights into our transformers, and which can be."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from cetsim import checks
from cetsim.extras import require
from cetsim.interpret import hugging_face, tensors, timm_names, towers
from cetsim.interpret.clip import Clip, TextTransformer
from cetsim.interpret.families import Read
from cetsim.interpret.tensors import Tensors
from cetsim.interpret.vit import VisionTransformer
from cetsim.nn.block import path_name


class Family(NamedTuple):
    """A family of published transformers.

    **Fields:** `loads`: which models. `verified`: against what, to 1e-5 in float32. `unverified`: what was not.
    """

    loads: str
    verified: str
    unverified: str
    read: Callable | None = None


HUB = "trained weights from a hub"
FAMILIES = {
    "timm": Family(
        "vision transformers of timm, also DINOv2's and SigLIP's in its names",
        "timm 1.0.31: plain; registers, LayerScale, mean pool; attention pool; SwiGLU, first norm; other image sizes",
        f"{HUB}; activations and norms that timm's configuration does not name",
        timm_names.timm,
    ),
    "vit": Family(
        "ViT of transformers, with classifier, pooler or neither",
        "transformers 5.24.0: classifier, pooler, another image size",
        HUB,
        hugging_face.vit,
    ),
    "dino": Family(
        "DINO's ViTs by their own names",
        "timm 1.0.31, whose network and names are the same; another image size by PyTorch called as DINO does",
        f"{HUB}; DINO's own code, which is in no package",
        timm_names.dino,
    ),
    "dinov2": Family(
        "DINOv2 of transformers, with registers or without, with classifier or without",
        "transformers 5.24.0: plain, SwiGLU with classifier, registers; other image sizes",
        HUB,
        hugging_face.dinov2,
    ),
    "clip": Family(
        "CLIP of transformers, both towers or one",
        "transformers 5.24.0: both towers and logits, the vision tower alone, another image size",
        HUB,
        towers.clip,
    ),
    "siglip": Family(
        "SigLIP of transformers, both towers or one",
        "transformers 5.24.0: both towers and logits, another image size",
        HUB,
        towers.siglip,
    ),
    "open_clip": Family(
        "CLIP of open_clip with a ViT of its own, not of timm's or another kind",
        "open_clip 3.3.0: both towers and logits, another image size",
        f"{HUB}; LayerScale",
        towers.open_clip,
    ),
    "vivit": Family(
        "ViViT of transformers, with classifier, pooler or neither",
        "transformers 5.24.0: classifier",
        f"{HUB}; other image sizes, which the library itself cannot do",
        hugging_face.vivit,
    ),
    "vjepa2": Family(
        "the encoder of V-JEPA 2 of transformers, without predictor and attentive classifier",
        "transformers 5.24.0: encoder",
        f"{HUB}; other image sizes",
        hugging_face.vjepa2,
    ),
}


class Families(dict):
    """Families by name, shown as a table."""

    def __repr__(self) -> str:
        """The table."""
        lines = []
        for name, family in self.items():
            lines += [f"{name}: {family.loads}", f"    verified: {family.verified}", f"    not: {family.unverified}"]
        return "\n".join(lines)


def models() -> Families:
    """What `load` can read: a dict of `Family` by name, with what of each was verified and what was not."""
    return Families(FAMILIES)


def load(
    path_or_name,
    family: str,
    *,
    image=None,
    heads: int | None = None,
    eps: float | None = None,
    mlp=None,
    revision: str | None = None,
):
    """A published transformer, in float32: its arrays from safetensors, its shape from the configuration beside them.

    **Arguments:**

    - `path_or_name`: of a safetensors file, or of a folder with one and its `config.json`; or a name on the Hugging
      Face hub, `"owner/model"`, which needs `pip install 'cetsim[hub]'`.
    - `family`: by whose names the arrays are called: a key of `models()`.
    - `image`: height and width, where they are not the model's own: learned positions are then stretched, as the
      original library does it.
    - `heads`, `eps`, `mlp`: instead of what the configuration says, as of `VisionTransformer`. Without a configuration,
      `"timm"` and `"dino"` take 64 numbers a head and an eps of 1e-6.
    - `revision`: of a name on the hub, a branch, tag or commit.

    **Returns:** a `VisionTransformer`; of `"clip"`, `"siglip"` and `"open_clip"` a `Clip`, or the one tower that the
    file holds.

    **Raises:** ValueError for arrays that are missing or too many, all of them named, or of other shapes; for another
    family; where nothing can be read. ImportError where the hub is asked without the package that asks it.
    """
    checks.require_in("family", family, tuple(FAMILIES))
    path = _found(path_or_name, revision)
    arrays, config = tensors.read(path, family)
    source = Tensors(path, arrays)
    parts = FAMILIES[family].read(source, config, image)
    changes = {name: value for name, value in (("heads", heads), ("eps", eps), ("mlp", mlp)) if value is not None}
    if isinstance(parts, Read):
        source.require_all()
        return _filled(path, VisionTransformer, Read(parts.made | changes, parts.arrays))
    if changes:
        raise ValueError(f"`{next(iter(changes))}` stands in the configuration of {family}, for each tower")
    if not parts:
        raise ValueError(f"{path} holds no tower of {family}: its arrays are {', '.join(sorted(arrays)[:3])}, ...")
    source.require_all()
    kinds = {"vision": VisionTransformer, "text": TextTransformer}
    made = {name: _filled(path, kinds[name], part) for name, part in parts.items() if name in kinds}
    if len(made) == 1:
        return next(iter(made.values()))
    numbers = (parts.get(name) for name in ("logit_scale", "logit_bias"))
    return Clip(**made, **dict(zip(("log_scale", "bias"), map(_scalar, numbers), strict=True)))


def _scalar(array):
    return None if array is None else jnp.asarray(array.reshape(()))


def _found(path_or_name, revision: str | None = None) -> Path:
    """Where the file or folder is, fetched from the hub if it is a name there.

    **Raises:** ValueError for what is neither a path nor such a name.
    """
    path, name = Path(path_or_name), str(path_or_name)
    if path.exists():
        if revision is not None:
            raise ValueError(f"`revision` must be None for a path, it is of a name on the hub, got {revision!r}")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith((".safetensors", "/")):
        raise ValueError(f"there is no {name}; a name on the hub is 'owner/model'")
    hub = require("huggingface_hub", extra="hub")
    wanted = ["*.safetensors", "*.safetensors.index.json", "*config.json"]
    return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted))


def _filled(path, kind: type, read: Read):
    """A model of a class with the arrays of a file.

    **Raises:** ValueError where the file's arrays are of other shapes than the configuration says.
    """
    like = eqx.filter_eval_shape(lambda key: kind(**read.made, key=key), jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {path_name(place): leaf for place, leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)}
    if wanted.keys() != read.arrays.keys():
        differ = ", ".join(sorted(wanted.keys() ^ read.arrays.keys()))
        raise ValueError(f"{path} and its configuration do not go together: {differ}")
    for name, leaf in wanted.items():
        if leaf.shape != read.arrays[name].shape:
            said = f"must have shape {list(leaf.shape)} by the configuration, got {list(read.arrays[name].shape)}"
            raise ValueError(f"{path}: {name} {said}")
    arrays = {name: jnp.asarray(read.arrays[name]) for name in wanted}
    return jax.tree.unflatten(structure, [arrays.get(path_name(place), leaf) for place, leaf in leaves])
