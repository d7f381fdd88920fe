"""Sparse coders beside those of `dictionary_learning` 0.1.0: the same activations, batches and steps.

    python -m benchmarks.coders train FOLDER --data-dir DIR       two networks, their activations, our coders
    OTHER/python benchmarks/coders.py theirs FOLDER               theirs, in an environment of its own
    python -m benchmarks.coders compare FOLDER --data-dir DIR     all by our evaluation: a table
    python -m benchmarks.coders time FOLDER --other OTHER/python  a step at 512 x 2,048 with batches of 4,096, in turn

`--networks mnist` keeps to one network. What is in FOLDER already is not made again. OTHER is an environment of Python
3.11 with `pip install dictionary_learning==0.1.0`. Theirs get the learning rate, warm-up, decay and time to death of
ours, and a running mean of the threshold that fits so short a run; activations are normalised in their own way, to a
mean squared norm of 1.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

KINDS, KS, SEEDS = ("TopK", "BatchTopK"), (8, 16, 32, 64), (0, 1, 2)
SETTINGS = dict(steps=600, batch=512, warmup=60, decay=0.2, dead_after=100_000)
HORIZON = 60
TIMED = dict(width=512, latents=2048, batch=4096, k=32)
# MNIST: the second hidden layer. CIFAR-10: the last convolution, whose 64 pixels are vectors.
NETWORKS = {
    "mnist": dict(site="layers.3", axis=None, width=512, latents=1024, examples=60_000, steps=2000, tested=10_000),
    "cifar10": dict(site="layers.10", axis=-1, width=128, latents=512, examples=5_000, steps=1170, tested=2_000),
}


def rate(network: str) -> float:
    """Learning rate of the coders of a network."""
    return 2e-4 / (NETWORKS[network]["latents"] / 2**14) ** 0.5


def network_of(name: str):
    """How a network is made."""
    from cetsim import nn

    if name == "mnist":
        return lambda key: nn.mlp((784, 512, 512, 10), key=key)
    return lambda key: nn.cnn(layout="channels_last", key=key)


def images_of(name: str, data_dir: str | None):
    """Training and test images of a network, and their labels."""
    from cetsim import datasets

    images = datasets.load(name, data_dir)
    flat = (lambda x: x.reshape(len(x), -1)) if name == "mnist" else (lambda x: x)
    return (flat(images.train_x), images.train_y), (flat(images.test_x), images.test_y)


def trained_network(folder: Path, name: str, train_set, test_set):
    """A network trained by backprop, in inference mode, and its state; read from the folder if it is there."""
    import equinox as eqx
    import jax

    from cetsim import load, save, supervised

    make, (x, labels), path = network_of(name), train_set, folder / "model.eqx"
    model, buffers = eqx.nn.make_with_state(make)(jax.random.key(0))
    if path.exists():
        model, buffers = load(path, (model, buffers))
    else:
        steps = NETWORKS[name]["steps"]
        run = supervised.SupervisedRun(make, x, labels, supervised.Settings(steps=steps))
        state, advance = run.init(supervised.backprop(1e-3), jax.random.key(0)), eqx.filter_jit(run.advance)
        looped = name == "mnist"  # networks with convolutions are slow in a loop on CPU
        for part in [steps] if looped else [5] * (steps // 5):
            state, _ = advance(state, part, not looped)
        print({name: float(value) for name, value in run.evaluate(state, *test_set).items()}, flush=True)
        model = eqx.combine(state.params, eqx.filter(model, eqx.is_inexact_array, inverse=True))
        buffers = buffers if looped else state.buffers
        save(path, (model, buffers))
    return eqx.nn.inference_mode(model), () if name == "mnist" else (buffers,)


def train(folder: Path, name: str, data_dir: str | None) -> None:
    """Trains a network by backprop, records what one of its layers says, and trains our coders."""
    import equinox as eqx
    import jax

    from cetsim import interpret as si

    folder.mkdir(parents=True, exist_ok=True)
    size, (train_set, test_set) = NETWORKS[name], images_of(name, data_dir)
    model, state = trained_network(folder, name, train_set, test_set)
    for part, x in (("train", train_set[0][: size["examples"]]), ("test", test_set[0][: size["tested"]])):
        si.record(folder / part, model, size["site"], x, *state, axis=size["axis"])
    store = si.Activations(folder / "train")
    np.save(folder / "activations.npy", store.array(size["site"]))
    settings = si.Settings(**SETTINGS, latents=size["latents"])
    runs = {kind: si.CoderRun(store, getattr(si, kind)(8), settings, inputs=size["site"]) for kind in KINDS}
    advances = {kind: eqx.filter_jit(run.advance) for kind, run in runs.items()}
    for seed, k, kind in itertools.product(SEEDS, KS, KINDS):
        if (folder / f"ours-{kind}-{k}-{seed}.npz").exists():
            continue
        coder_state = runs[kind].init(si.Hyperparameters(rate(name), getattr(si, kind)(k)), jax.random.key(seed))
        keep_rows(folder, seed, coder_state.order, store.rows(size["site"]))
        start = time.perf_counter()
        coder = runs[kind].coder(advances[kind](coder_state, settings.steps)[0])
        keep(folder, "ours", kind, k, seed, coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec, coder.threshold)
        print(name, kind, k, seed, f"{time.perf_counter() - start:.1f} s", flush=True)


def keep_rows(folder: Path, seed: int, order, rows: int) -> None:
    """Keeps which vectors each step of a seed has, for theirs."""
    import jax
    import jax.numpy as jnp

    from cetsim.interpret.order import batch_rows

    if not (folder / f"rows-{seed}.npy").exists():
        of_step = lambda step: batch_rows(order, step, SETTINGS["batch"], rows)  # noqa: E731
        np.save(folder / f"rows-{seed}.npy", jax.jit(jax.vmap(of_step))(jnp.arange(SETTINGS["steps"])))


def theirs(folder: Path, name: str) -> None:
    """Trains their coders on the same batches."""
    import torch
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    x = torch.tensor(np.load(folder / "activations.npy"))
    scale = float(x.pow(2).sum(1).mean().sqrt())
    trainers = dict(zip(KINDS, (TopKTrainer, BatchTopKTrainer), strict=True))
    for seed, k, kind in itertools.product(SEEDS, KS, KINDS):  # seed by seed: a part of them compares too
        if (folder / f"theirs-{kind}-{k}-{seed}.npz").exists():
            continue
        rows = torch.tensor(np.load(folder / f"rows-{seed}.npy").astype(np.int64))
        steps, start = SETTINGS["steps"], time.perf_counter()
        one = trainers[kind](
            steps=steps, activation_dim=x.shape[1], dict_size=NETWORKS[name]["latents"], k=k, layer=0, lm_name="-",
            lr=rate(name), warmup_steps=SETTINGS["warmup"], decay_start=round((1 - SETTINGS["decay"]) * steps),
            threshold_beta=1 - 1 / HORIZON, threshold_start_step=HORIZON, seed=seed, device="cpu",
        )  # fmt: skip
        one.dead_feature_threshold = SETTINGS["dead_after"]
        for step in range(steps):
            one.update(step, x[rows[step]] / scale)
        one.ae.scale_biases(scale)
        keep_theirs(folder, kind, k, seed, one.ae)
        print(name, kind, k, seed, f"{time.perf_counter() - start:.1f} s", flush=True)


def keep_theirs(folder: Path, kind: str, k: int, seed: int, ae) -> None:
    """Keeps the weights of one of their coders."""
    number = lambda tensor: tensor.detach().numpy()  # noqa: E731
    weights = number(ae.encoder.weight).T, number(ae.encoder.bias), number(ae.decoder.weight).T, number(ae.b_dec)
    keep(folder, "theirs", kind, k, seed, *weights, float(ae.threshold))


def keep(folder: Path, whose: str, kind: str, k: int, seed: int, W_enc, b_enc, W_dec, b_dec, threshold) -> None:
    """Keeps the weights of a coder."""
    arrays = dict(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, threshold=threshold)
    np.savez(folder / f"{whose}-{kind}-{k}-{seed}.npz", **{name: np.asarray(value) for name, value in arrays.items()})


def compare(folders: dict[str, Path], data_dir: str | None, out: Path) -> None:
    """Evaluates all coders by our evaluation; writes a table of every run and prints the means."""
    import pandas as pd

    rows = [row for name, folder in folders.items() for row in evaluated(folder, name, data_dir)]
    table = pd.DataFrame(rows).sort_values(["network", "sparsity", "k", "whose", "seed"])
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "quality.csv", index=False, float_format="%.6g")
    shown = ["explained_variance", "l0", "dead", "loss_recovered"]
    print(table.groupby(["network", "sparsity", "k", "whose"])[shown].mean().round(4).to_string())


def evaluated(folder: Path, name: str, data_dir: str | None) -> list[dict]:
    """What our evaluation says of every coder of a network; programs are compiled once a kind."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from cetsim import interpret as si
    from cetsim.interpret.coder import with_fields

    size, (train_set, (x, labels)) = NETWORKS[name], images_of(name, data_dir)
    model, state = trained_network(folder, name, train_set, (x, labels))
    site, store, count = size["site"], si.Activations(folder / "test"), size["tested"]
    vectors, mean = jnp.asarray(store.array(site)), jnp.asarray(store.mean(site))
    quality, rows, plain = eqx.filter_jit(si.quality), [], {}

    @eqx.filter_jit
    def loss(coder, name, x, labels):  # what other losses need is not computed
        return si.cross_entropies(coder, model, x, labels, mean, *state, axis=size["axis"])[name]

    def mean_loss(coder, name):
        parts = [slice(i, i + 500) for i in range(0, count, 500)]
        return sum(float(loss(coder, name, jnp.asarray(x[part]), labels[part])) for part in parts) / count

    for path in sorted(folder.glob("*-*-*-*.npz")):
        whose, kind, k, seed = path.stem.split("-")
        start = si.Coder(size["width"], None, size["latents"], getattr(si, kind)(int(k)), key=jax.random.key(0),
                         sites=(site, site))  # fmt: skip
        coder = with_fields(start, **{field: jnp.asarray(array) for field, array in np.load(path).items()})
        values = {field: float(value) for field, value in quality(coder, vectors).items()}
        plain = plain or {field: mean_loss(coder, field) for field in ("clean", "zero", "mean")}
        every = plain | {"spliced": mean_loss(coder, "spliced")}
        values |= {f"loss_{field}": every[field] for field in ("clean", "spliced", "zero", "mean")}
        gap = values["loss_zero"] - values["loss_clean"]
        values["loss_recovered"] = (values["loss_zero"] - values["loss_spliced"]) / gap
        rows.append({"network": name, "whose": whose, "sparsity": kind, "k": int(k), "seed": int(seed)} | values)
        print(path.stem, values["explained_variance"], values["dead"], flush=True)
    return rows


def step_server(whose: str) -> None:
    """Makes one training step for each line of the input, and says how long it took."""
    x = np.random.default_rng(0).standard_normal((TIMED["batch"], TIMED["width"])).astype(np.float32)
    steppers = {kind: (our_step if whose == "ours" else their_step)(kind, x) for kind in KINDS}
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        steppers[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def our_step(kind: str, x):
    """A training step of ours."""
    import equinox as eqx
    import jax

    from cetsim import interpret as si

    store = si.Activations.of_arrays({"x": x})
    settings = si.Settings(steps=5000, latents=TIMED["latents"], batch=TIMED["batch"], dead_after=10**9)
    run = si.CoderRun(store, getattr(si, kind)(TIMED["k"]), settings, inputs="x")
    state = run.init(si.Hyperparameters(1e-4), jax.random.key(0))
    step = eqx.filter_jit(lambda run, state: run.advance(state, 1)[0])
    held = [jax.block_until_ready(step(run, state))]

    def once():
        held[0] = jax.block_until_ready(step(run, held[0]))

    once()
    return once


def their_step(kind: str, x):
    """A training step of theirs."""
    import torch
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = {"TopK": TopKTrainer, "BatchTopK": BatchTopKTrainer}[kind]
    size = dict(activation_dim=TIMED["width"], dict_size=TIMED["latents"], k=TIMED["k"])
    one, x = trainer(steps=5000, layer=0, lm_name="-", seed=0, device="cpu", **size), torch.tensor(x)
    held = [2000]  # the threshold is averaged from step 1,000 on

    def once():
        held[0] += 1
        one.update(held[0], x)

    once()
    return once


def timed(other: str, rounds: int, out: Path) -> None:
    """Medians of the time of a step, ours and theirs in turn."""
    programs = {"ours": [sys.executable, "-m", "benchmarks.coders"], "theirs": [other, __file__]}
    servers = {
        whose: subprocess.Popen([*start, "server", whose], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for whose, start in programs.items()
    }
    for server in servers.values():
        while server.stdout.readline().strip() != "ready":
            assert server.poll() is None
    found = {kind: {whose: [] for whose in servers} for kind in KINDS}
    for kind in KINDS * rounds:
        for whose, server in servers.items():
            print(kind, file=server.stdin, flush=True)
            found[kind][whose].append(float(server.stdout.readline()))
    for server in servers.values():
        server.communicate()
    medians = {kind: {whose: statistics.median(seconds) for whose, seconds in of.items()} for kind, of in found.items()}
    for times in medians.values():
        times["ratio"] = times["ours"] / times["theirs"]
    print(json.dumps(medians, indent=1))
    out.mkdir(parents=True, exist_ok=True)
    (out / "time.json").write_text(json.dumps({"settings": TIMED, "rounds": rounds, "seconds": medians}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "theirs", "compare", "time", "server"))
    parser.add_argument("folder")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("figures/coders"))
    parser.add_argument("--other", default="python3")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    given = parser.parse_args()
    folders = {name: Path(given.folder) / name for name in given.networks}
    if given.part == "time":
        timed(given.other, given.rounds, given.out)
    elif given.part == "server":
        step_server(given.folder)
    elif given.part == "compare":
        compare(folders, given.data_dir, given.out)
    else:
        for name, folder in folders.items():
            train(folder, name, given.data_dir) if given.part == "train" else theirs(folder, name)
