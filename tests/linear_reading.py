"""How well one thing can be read from another, linearly."""

import numpy as np


def told(held, targets):
    """R² of each of the targets `[steps, targets]`, read from what is held `[steps, units]`.

    Fitted to the first half of the steps, judged on the second.
    """
    held, targets = np.c_[np.asarray(held, float), np.ones(len(held))], np.asarray(targets, float)
    half = len(held) // 2
    weights = np.linalg.lstsq(held[:half], targets[:half], rcond=1e-6)[0]
    error = targets[half:] - held[half:] @ weights
    return 1 - np.square(error).mean(axis=0) / targets[half:].var(axis=0)
