"""Coders written down again in NumPy, in float64, from the definitions: losses and their gradients by hand."""

import numpy as np


def arrays(coder):
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    found = {name: np.asarray(getattr(coder, name), float) for name in names}
    return found | {name: np.asarray(value, float) for name, value in coder.own.items()}


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
    relu = np.maximum(z, 0)
    penalty, dz_penalty, own = 0.0, np.zeros_like(z), {}
    if kind == "Gated":
        m = h * np.exp(w["r"]) + w["b_mag"]
        active = (z > 0) & (m > 0)
        f = np.where(active, m, 0)
    else:
        if kind == "ReLU":
            active = z > 0
        elif kind == "TopK":
            active = kept_of_rows(relu, k)
        elif kind == "BatchTopK":
            active = kept_of_all(relu, k)
        else:
            θ = np.exp(w["log_threshold"])
            active = z > θ
        f = np.where(active, z, 0)
    error = x - f @ w["W_dec"] - w["b_dec"]
    loss = (error**2).sum() / B
    dŷ = -2 * error / B
    g = {name: np.zeros_like(value) for name, value in w.items()}
    g["W_dec"] += f.T @ dŷ
    g["b_dec"] += dŷ.sum(0)
    df = dŷ @ w["W_dec"].T
    dz = np.where(active, df, 0)
    if kind in ("ReLU", "Gated"):
        penalty = l * relu.sum() / B
        dz_penalty = l * (z > 0) / B
    if kind == "JumpReLU":
        boxcar = np.abs((z - θ) / bandwidth) < 0.5
        penalty = l * active.sum() / B
        dθ = (df * -(θ / bandwidth) * boxcar).sum(0) - l * (boxcar / bandwidth).sum(0) / B
        own["log_threshold"] = dθ * θ
    if kind == "Gated":
        dm = dz
        own["r"], own["b_mag"] = (dm * h * np.exp(w["r"])).sum(0), dm.sum(0)
        dh, dz = dm * np.exp(w["r"]), np.zeros_like(z)
        gate_error = x - relu @ w["W_dec"] - w["b_dec"]  # the decoder held fixed, the input not centred
        loss += (gate_error**2).sum() / B
        dz = np.where(z > 0, (-2 * gate_error / B) @ w["W_dec"].T, 0)
    else:
        dh = np.zeros_like(z)
    if dead is not None and dead.any():
        count = min(x.shape[1] // 2, f.shape[1])
        mask = kept_of_rows(relu * dead, count)
        f_aux = np.where(mask, relu, 0)
        centred = ((error - error.mean(0)) ** 2).sum()
        left = error - f_aux @ w["W_dec"]
        loss += aux * (left**2).sum() / centred
        d = -2 * aux * left / centred
        g["W_dec"] += f_aux.T @ d
        dz = dz + np.where(mask, d @ w["W_dec"].T, 0)
    dz = dz + dz_penalty
    dh = dh + dz
    g["b_enc"] += dz.sum(0)
    g["W_enc"] += (x - w["b_dec"]).T @ dh
    g["b_dec"] -= (dh @ w["W_enc"].T).sum(0)
    return loss + penalty, g | own
