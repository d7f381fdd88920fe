"""Coders on disk: our own files, and those of SAELens and Prisma."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cetsim import checks
from cetsim.extras import require
from cetsim.files import write_atomic
from cetsim.interpret import torch_file
from cetsim.interpret.coder import Coder, with_fields
from cetsim.interpret.crosscoder import Crosscoder
from cetsim.interpret.sparsity import SPARSITIES, AbstractSparsity, Gated, JumpReLU, ReLU, TopK

SCHEMA = 1
_PER_SITE = ("W_enc", "W_dec", "b_dec", "scales")  # of a crosscoder


def save_coder(path, coder: Coder | Crosscoder) -> None:
    """Writes a coder to a safetensors file, in one step; needs `pip install 'cetsim[interpret]'`.

    **Raises:** ValueError for what is no coder. OSError where the file cannot be written.
    """
    checks.require_instance("coder", coder, Coder | Crosscoder, "a Coder or a Crosscoder")
    arrays = {f"learned.{name}": np.asarray(value) for name, value in coder.learned.items()}
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "b_in", "W_skip", "threshold", "scales"):
        value = getattr(coder, name, None)
        if isinstance(value, tuple):
            arrays |= {f"{name}.{i}": np.asarray(part) for i, part in enumerate(value)}
        elif value is not None:
            arrays[name] = np.asarray(value)
    numbers = {name: np.asarray(value).item() for name, value in vars(coder.sparsity).items()}
    about = {"schema": SCHEMA, "kind": type(coder).__name__, "sites": coder.sites}
    about["sparsity"] = {"kind": type(coder.sparsity).__name__} | numbers
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    packed = require("safetensors.numpy", extra="interpret").save(arrays, {"cetsim": json.dumps(about)})
    write_atomic(Path(path), packed)


def load_coder(path) -> Coder | Crosscoder:
    """The coder that `save_coder` wrote.

    **Raises:** ValueError for any other file, a damaged one, and arrays that are missing, too many or of other shapes.
    """
    arrays, about = _safetensors(Path(path))
    try:
        about = json.loads(about["cetsim"])
        numbers = dict(about["sparsity"])
        kinds = {kind.__name__: kind for kind in SPARSITIES}
        sparsity, joint, sites = kinds[numbers.pop("kind")](**numbers), about["kind"] == "Crosscoder", about["sites"]
        if about["schema"] != SCHEMA:
            raise ValueError(f"it has the schema {about['schema']}, this version reads {SCHEMA}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} was not written by cetsim's save_coder: {error}") from error
    of_kind = [name for name in arrays if name.startswith("learned.")]
    learned = {name.removeprefix("learned."): arrays.pop(name) for name in of_kind}
    if joint:
        count = sum(name.startswith("b_dec.") for name in arrays)
        wanted = [f"{name}.{i}" for name in _PER_SITE for i in range(count)] + ["b_enc", "threshold"]
        _require(path, arrays, wanted)
        parts = {name: tuple(arrays[f"{name}.{i}"] for i in range(count)) for name in _PER_SITE}
        fields = parts | {"b_enc": arrays["b_enc"], "threshold": arrays["threshold"]}
        widths, latents = [len(b) for b in parts["b_dec"]], len(arrays["b_enc"])
        like = Crosscoder(widths, latents, sparsity, key=jax.random.key(0), sites=sites)
    else:
        _require(path, arrays, ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"], ["b_in", "W_skip"])
        fields, (latents, width) = arrays, _matrix(path, arrays["W_dec"])
        inputs = _matrix(path, arrays["W_enc"])[0]
        like = _coder(path, inputs, width, latents, sparsity, arrays, sites)
    return _filled(path, like, fields | {"learned": learned})


def load_saelens(folder) -> Coder:
    """A coder of SAELens (6 and later): a folder with `cfg.json` and `sae_weights.safetensors`.

    Architectures `standard`, `topk`, `jumprelu` (also what BatchTopK is saved as), `gated`, `transcoder`,
    `skip_transcoder`, `jumprelu_transcoder` and `jumprelu_skip_transcoder`.

    **Raises:** ValueError for any other architecture, for activations that are normalised or reshaped at run time, and
    for arrays that are missing, too many or of other shapes.
    """
    folder = Path(folder)
    config, (arrays, _) = _json(folder / "cfg.json"), _safetensors(folder / "sae_weights.safetensors")
    kind = config.get("architecture", "standard")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise ValueError(f"{folder}: `{name}` must be 'none', folded into the weights, got {config[name]!r}")
    known = ("standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder",
             "jumprelu_skip_transcoder")  # fmt: skip
    if kind not in known:
        raise ValueError(f"{folder}: `architecture` must be one of {', '.join(known)}, got {kind!r}")
    return _like_saelens(folder, kind, config, arrays)


def load_prisma(folder) -> Coder:
    """A coder of Prisma: a folder with `config.json` and `weights.pt`, of which only the arrays are read.

    **Raises:** ValueError for activations other than ReLU and top-k, or normalised at run time, for a transcoder, and
    for arrays that are missing, too many or of other shapes.
    """
    folder = Path(folder)
    config, saved = _json(folder / "config.json"), torch_file.read(folder / "weights.pt")
    for name in ("autoencoder", "state_dict"):
        saved = saved.get(name, saved) if isinstance(saved, dict) else saved
    arrays = {n: a for n, a in saved.items() if isinstance(a, np.ndarray)} if isinstance(saved, dict) else {}
    if config.get("normalize_activations") not in (None, "none"):
        got = config["normalize_activations"]
        raise ValueError(f"{folder}: `normalize_activations` must be None, it cannot be folded away, got {got!r}")
    if config.get("is_transcoder"):
        raise ValueError(f"{folder}: `is_transcoder` must be false: no file of a transcoder of Prisma is known")
    kind, activation = config.get("architecture", "standard"), config.get("activation_fn_str", "relu")
    if kind not in ("standard", "vanilla", "gated") or activation not in ("relu", "topk"):
        raise ValueError(
            f"{folder}: a coder must be standard or gated, with relu or topk, got {kind!r}, {activation!r}"
        )
    kind = "topk" if activation == "topk" else kind.replace("vanilla", "standard")
    config = config | {"k": (config.get("activation_fn_kwargs") or {}).get("k")}
    return _like_saelens(folder, kind, config, arrays)


def _like_saelens(folder: Path, kind: str, config: dict, arrays: dict) -> Coder:
    """A coder of arrays by SAELens's names."""
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    transcodes, skips = "transcoder" in kind, "skip" in kind
    biases = {"gated": ["b_gate", "b_mag", "r_mag"], "jumprelu": ["b_enc", "threshold"]}
    wanted = ["W_enc", "W_dec", "b_dec", *biases.get(kind.partition("_")[0], ["b_enc"]), *(["W_skip"] if skips else [])]
    _require(folder, arrays, wanted, ["scaling_factor", *(["b_enc"] if kind == "gated" else [])])
    (inputs, latents), width = _matrix(folder, arrays["W_enc"]), _matrix(folder, arrays["W_dec"])[1]
    sparsity, learned = _sparsity(folder, kind, config, arrays, latents)
    fields = {name: arrays[name] for name in ("W_enc", "W_dec", "b_dec")} | {"learned": learned}
    fields["b_enc"] = arrays["b_gate" if kind == "gated" else "b_enc"]
    if skips:
        fields["W_skip"] = arrays["W_skip"].T
    if transcodes or not config.get("apply_b_dec_to_input", True):
        # Inputs are not centred; a transcoder's would be by a bias of another width.
        if transcodes and config.get("apply_b_dec_to_input", False):
            if inputs != width:
                raise ValueError(f"{folder}: `apply_b_dec_to_input` of a transcoder needs sites of one width")
            fields["b_in"] = arrays["b_dec"]
        else:
            fields["b_in"] = np.zeros(inputs, np.float32)
    coder = _filled(folder, _coder(folder, inputs, width, latents, sparsity, fields, None), fields)
    return coder.unit() if config.get("rescale_acts_by_decoder_norm") else coder


def _sparsity(folder: Path, kind: str, config: dict, arrays: dict, latents: int) -> tuple[AbstractSparsity, dict]:
    """The sparsity of a coder of SAELens, and what it has learned."""
    if kind == "topk":
        k = config.get("k")
        if not isinstance(k, int) or not 1 <= k <= latents:
            raise ValueError(f"{folder}: `k` must be a whole number from 1 to the {latents} latents, got {k!r}")
        return TopK(k), {}
    if kind == "gated":
        return Gated(), {"r": arrays["r_mag"], "b_mag": arrays["b_mag"]}
    if kind.startswith("jumprelu"):
        if (lowest := arrays["threshold"].min()) < 0:
            raise ValueError(f"{folder}: thresholds must be at least 0, got {lowest:g}")
        with np.errstate(divide="ignore"):
            return JumpReLU(), {"log_threshold": np.log(arrays["threshold"])}
    return ReLU(), {}


def _coder(path, inputs: int, width: int, latents: int, sparsity, fields: dict, sites) -> Coder:
    """A coder of these sizes, its weights random."""
    transcodes = "b_in" in fields
    if not transcodes and inputs != width:
        raise ValueError(f"{path}: an SAE must read and write one width, got {inputs} and {width}")
    size = (inputs, width if transcodes else None, latents)
    return Coder(*size, sparsity, "W_skip" in fields, key=jax.random.key(0), sites=sites)


def _filled(path, like, fields: dict):
    """The coder with other arrays, of the same shapes."""
    old = {name: getattr(like, name) for name in fields}
    for (where, held), (_, new) in zip(_leaves(old), _leaves(fields), strict=False):
        if held.shape != new.shape:
            raise ValueError(f"{path}: {where} must have shape {list(held.shape)}, got {list(new.shape)}")
    if [where for where, _ in _leaves(old)] != [where for where, _ in _leaves(fields)]:
        found = [where for where, _ in _leaves(fields)]
        raise ValueError(f"{path} must hold {', '.join(where for where, _ in _leaves(old))}, got {', '.join(found)}")
    for where, new in _leaves(fields):
        if not jnp.issubdtype(new.dtype, jnp.floating) or np.isnan(new).any():
            got = "nan" if jnp.issubdtype(new.dtype, jnp.floating) else str(new.dtype)
            raise ValueError(f"{path}: {where} must be floating point numbers, got {got}")
    return with_fields(like, **jax.tree.map(jnp.asarray, fields))


def _leaves(tree) -> list:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _matrix(path, array) -> tuple[int, int]:
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{path}: weights must be matrices, got shape {list(array.shape)}")
    return array.shape


def _require(path, arrays: dict, wanted: list, allowed: list | tuple = ()) -> None:
    """Raises ValueError that names the arrays that are missing and those that are too many."""
    missing = [name for name in wanted if name not in arrays]
    more = [name for name in arrays if name not in wanted and name not in allowed]
    if missing or more:
        said = [f"{what} {', '.join(names)}" for what, names in (("lacks", missing), ("has besides", more)) if names]
        raise ValueError(f"{path} must hold {', '.join(wanted)}: it {' and '.join(said)}")


def _json(path: Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be a configuration in JSON: {error}") from error
    checks.require_instance(str(path), config, dict, "a dict")
    return config


def _safetensors(path: Path) -> tuple[dict, dict]:
    """Arrays and what is said about them."""
    package = require("safetensors", extra="interpret")
    try:
        with package.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, package.SafetensorError, TypeError) as error:
        raise ValueError(f"{path} must be a safetensors file: {error}") from error
