"""Networks that go by a shortcut, and what becomes of each group where latents of one layer are switched off."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cetsim import interpret
from experiments.common import checks, inside

DRAWS = 3  # of random sets, over which accuracies are averaged


def check_counts(options) -> None:
    """Raises UserError for numbers of latents that cannot be switched off."""
    half = options.latents // 2
    checks.each("counts", options.counts, lambda m: 0 <= m <= half, "from 0 to half of the latents")
    from_none = options.counts[0] == 0 and tuple(sorted(options.counts)) == options.counts
    checks.require("counts", from_none, "ascending from 0", " ".join(map(str, options.counts)))


class Part(NamedTuple):
    """Images with labels, what they are ranked by, and what groups are made of."""

    x: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray
    kinds: np.ndarray


class Task(NamedTuple):
    """A network that goes by a shortcut, and images to find out by."""

    network: inside.Network
    train_x: np.ndarray
    validation: Part
    test: Part


def measure(options, task: Task, run) -> list[dict]:
    """Rows of one layer of one network: accuracies by the number of latents, of every kind of set."""
    network, sites = task.network, list(task.network.sites)
    site, rng = sites[int(run.site.split()[1]) - 1], np.random.default_rng(run.seed)
    axis, call = network.sites[site], (network.model, site)
    store = inside.recorded(options.folder / "activations", network, site, task.train_x)
    coder = inside.train_coder(store, site, options.latents, options.k, options.steps, options.batch, run.seed)
    before = inside.outputs(network, task.test.x).argmax(1)
    rows = [{"metric": "accuracy", "value": float((before == task.test.labels).mean())}]
    if site == sites[-1]:
        rows += of_last_layer(task, before)
    for kind, own in (("latents", coder), ("neurons", interpret.Neurons(store.widths[site]))):
        mean, frequency = interpret.mean_activations(*call, own, task.validation.x, *network.state, axis=axis)
        order = np.argsort(-interpret.group_differences(mean, task.validation.labels, task.validation.attributes))
        counts = [m for m in options.counts if m <= len(order) // 2]
        sets = {kind: [order[: max(counts)]]}
        which = dict(
            kind=kind, part="validation", metric="switched_off"
        )  # the i-th of them is the latent of this number
        rows += [which | {"suppressed": i + 1, "value": float(one)} for i, one in enumerate(sets[kind][0])]
        if kind == "latents":
            others = np.flatnonzero(frequency > 0)
            draws = range(DRAWS)
            sets["random"] = [padded(rng.permutation(others), order)[: max(counts)] for _ in draws]
            sets["matched"] = [interpret.frequency_matched(order[: max(counts)], frequency, rng) for _ in draws]
        for name, orders in sets.items():
            masks = np.concatenate([interpret.first_of(one, counts, len(order)) for one in orders])
            for part in ("validation", "test") if name == kind else ("test",):
                images = getattr(task, part)
                said = interpret.suppress(
                    *call, own, masks, images.x, *network.state, readout=interpret.Readout(scale=1.0), axis=axis,
                    batch=64 if axis is not None else 512,
                )  # fmt: skip
                columns = dict(kind=name, part=part)
                rows += accuracies(images, said, said[0], columns, counts * len(orders))
    return rows


def of_last_layer(task: Task, before) -> list[dict]:
    """Rows of the network with its last layer retrained on validation images, every group weighing the same."""
    network, own = task.network, task.validation
    features = inside.captured(network, list(network.sites)[-1], own.x)
    layer = f"layers.{len(network.model.layers) - 1}"
    mended = interpret.retrained(network.model, layer, features, own.labels, own.kinds)
    said = inside.outputs(network._replace(model=mended), task.test.x).argmax(1)
    return accuracies(task.test, said[None], before, dict(kind="last layer", part="test"), [0])


def padded(some: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Some latents, and behind them all others."""
    return np.concatenate([some, np.setdiff1d(every, some)])


def accuracies(part: Part, said, before, columns: dict, counts) -> list[dict]:
    """Rows of sets of suppressed latents, a mean over those of one size."""
    found = interpret.group_accuracy(said, part.labels, part.kinds, before)
    numbers = {"worst": found.worst, "average": found.average, "collateral": found.collateral}
    numbers["balanced"] = found.by_group.mean(-1)
    if set(part.kinds) == {0, 1, 2} and part.attributes.min() < 0:  # words
        words = part.kinds == 1
        numbers["success"] = (said[:, words] == part.attributes[words]).mean(-1)
        for name, kind in (("clean", 0), ("attacked", 1), ("neutral", 2)):
            numbers[name] = (said == part.labels)[:, part.kinds == kind].mean(-1)
    rows, counts = [], np.array(counts)
    for m in sorted(set(counts.tolist())):
        means = {name: float(values[counts == m].mean()) for name, values in numbers.items()}
        rows += [{"metric": name, "value": value, "suppressed": m} | columns for name, value in means.items()]
    return rows


def chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """Test rows of each run and kind at the number of latents with the best worst group on validation images."""
    validation = rows[(rows["part"] == "validation") & (rows["metric"] == "worst")]
    best = validation.loc[validation.groupby(["run", "kind"])["value"].idxmax()][["run", "kind", "suppressed"]]
    return rows[rows["part"] == "test"].merge(best, on=["run", "kind", "suppressed"])
