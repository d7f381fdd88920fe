"""Coders written down again in NumPy, in float64, from the definitions: losses and their gradients by hand."""

import numpy as np


def arrays(coder):
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    found = {name: np.asarray(getattr(coder, name), float) for name in names}
    return found | {name: np.asarray(value, float) for name, value in coder.learned.items()}


def kept_of_rows(scores, k):
    """The k largest of each row by sorting; scores are distinct."""
    mask = np.zeros(scores.shape, bool)
    for row, own in enumerate(scores):
        mask[row, np.argsort(-own)[:k]] = True
    return mask & (scores > 0)


def kept_of_all(scores, k):
    flat = np.zeros(scores.size, bool)
    flat[np.argsort(-scores.ravel())[: k * len(scores)]] = True
    return flat.reshape(scores.shape) & (scores > 0)


def loss_and_gradients(kind, w, x, *, l=0.0, k=0, bandwidth=0.0, dead=None, aux=0.0):
    """The loss of an SAE (mean over the batch) and its gradients, by name, by the chain rule written out."""
    B = len(x)
    h = (x - w["b_dec"]) @ w["W_enc"]
    z = h + w["b_enc"]
    f, active = latents(kind, w, h, z, k)
    error = x - f @ w["W_dec"] - w["b_dec"]
    dŷ = -2 * error / B
    df = dŷ @ w["W_dec"].T
    g = {name: np.zeros_like(value) for name, value in w.items()}
    g["W_dec"], g["b_dec"] = f.T @ dŷ, dŷ.sum(0)
    loss, dz, dh = by_kind(kind, w, x, h, z, active, df, g, l, bandwidth)
    loss += (error**2).sum() / B
    if dead is not None and dead.any():
        aux_loss, dz_aux = aux_k(w, z, error, dead, aux, g)
        loss, dz = loss + aux_loss, dz + dz_aux
    dh = dh + dz
    g["b_enc"] += dz.sum(0)
    g["W_enc"] += (x - w["b_dec"]).T @ dh
    g["b_dec"] -= (dh @ w["W_enc"].T).sum(0)
    return loss, g


def latents(kind, w, h, z, k):
    """f, and which of them are active."""
    if kind == "Gated":
        m = h * np.exp(w["r"]) + w["b_mag"]
        active = (z > 0) & (m > 0)
        return np.where(active, m, 0), active
    if kind == "TopK":
        active = kept_of_rows(np.maximum(z, 0), k)
    elif kind == "BatchTopK":
        active = kept_of_all(np.maximum(z, 0), k)
    else:
        active = z > (np.exp(w["log_threshold"]) if kind == "JumpReLU" else 0)
    return np.where(active, z, 0), active


def by_kind(kind, w, x, h, z, active, df, g, l, bandwidth):
    """What a kind adds to the loss, and the derivatives by z and by h alone; those of its own go into `g`."""
    B, relu = len(x), np.maximum(z, 0)
    through, none = np.where(active, df, 0), np.zeros_like(z)
    if kind == "ReLU":
        return l * relu.sum() / B, through + l * (z > 0) / B, none
    if kind == "JumpReLU":
        θ = np.exp(w["log_threshold"])
        boxcar = np.abs((z - θ) / bandwidth) < 0.5
        dθ = (df * -(θ / bandwidth) * boxcar).sum(0) - l * (boxcar / bandwidth).sum(0) / B
        g["log_threshold"] = dθ * θ
        return l * active.sum() / B, through, none
    if kind == "Gated":
        g["r"], g["b_mag"] = (through * h * np.exp(w["r"])).sum(0), through.sum(0)
        gate_error = x - relu @ w["W_dec"] - w["b_dec"]  # the decoder held fixed, the input not centred
        dz = np.where(z > 0, (-2 * gate_error / B) @ w["W_dec"].T, 0) + l * (z > 0) / B
        return l * relu.sum() / B + (gate_error**2).sum() / B, dz, through * np.exp(w["r"])
    return 0.0, through, none


def aux_k(w, z, error, dead, aux, g):
    """The loss of the dead latents that predict what is left over, and its derivative by z; by W_dec into `g`."""
    mask = kept_of_rows(np.maximum(z, 0) * dead, min(error.shape[1] // 2, z.shape[1]))
    f = np.where(mask, z, 0)
    centred = ((error - error.mean(0)) ** 2).sum()
    left = error - f @ w["W_dec"]
    d = -2 * aux * left / centred
    g["W_dec"] += f.T @ d
    return aux * (left**2).sum() / centred, np.where(mask, d @ w["W_dec"].T, 0)


def loss_of_two(kind, coder, x, sparsity):
    """The loss of a transcoder (rows of norm 1) or of a crosscoder, of vectors of two sites, without aux-k."""
    number = lambda tree: np.asarray(tree, float)  # noqa: E731
    if isinstance(coder.W_dec, tuple):
        z = sum((v - number(b)) @ number(w) for v, b, w in zip(x, coder.b_dec, coder.W_enc, strict=True))
        norms = sum(np.linalg.norm(number(w), axis=1) for w in coder.W_dec)
        writes, targets = list(zip(map(number, coder.W_dec), map(number, coder.b_dec), strict=True)), x
    else:
        z, norms = (x[0] - number(coder.b_in)) @ number(coder.W_enc), 1.0
        writes, targets = [(number(coder.W_dec), number(coder.b_dec) + x[0] @ number(coder.W_skip))], x[1:]
    relu = np.maximum(z + number(coder.b_enc), 0)
    kept = {"TopK": kept_of_rows, "BatchTopK": kept_of_all}
    f = relu * kept[kind](relu * norms, int(sparsity.k)) if kind in kept else relu
    error = sum(((target - f @ w - b) ** 2).sum() for target, (w, b) in zip(targets, writes, strict=True))
    penalty = float(sparsity.l1) * (f * norms).sum() if kind == "ReLU" else 0.0
    return (error + penalty) / len(f) / sum(target.shape[1] for target in targets)
