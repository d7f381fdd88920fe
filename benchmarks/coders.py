"""Sparse coders beside those of `dictionary_learning` 0.1.0: the same activations, batches and steps.

    python -m benchmarks.coders train FOLDER --data-dir DIR       a network, its activations, our coders
    OTHER/python benchmarks/coders.py theirs FOLDER               theirs, in an environment of its own
    python -m benchmarks.coders compare FOLDER                    all by our evaluation: table and figure
    python -m benchmarks.coders time FOLDER --other OTHER/python  a step at 512 x 2,048 with batches of 4,096, in turn

OTHER is an environment of Python 3.11 with `pip install dictionary_learning==0.1.0`. Theirs get the learning rate,
warm-up, decay, running mean and time to death of ours; activations are normalised in their own way, to a mean squared
norm of 1.
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
SITE, WIDTH = "layers.3", 512
SETTINGS = dict(steps=600, latents=1024, batch=512, warmup=60, decay=0.2, dead_after=100_000)
RATE = 2e-4 / (SETTINGS["latents"] / 2**14) ** 0.5
HORIZON = 60
TIMED = dict(width=512, latents=2048, batch=4096, k=32)


def train(folder: Path, data_dir: str | None) -> None:
    """Trains the MNIST network by backprop, records what its second hidden layer says, and trains our coders."""
    import equinox as eqx
    import jax

    from cetsim import datasets, load, nn, save, supervised
    from cetsim import interpret as si
    from cetsim.interpret.order import batch_rows

    folder.mkdir(parents=True, exist_ok=True)
    images = datasets.load("mnist", data_dir)
    x, test_x = (part.reshape(len(part), -1) for part in (images.train_x, images.test_x))
    make = lambda key: nn.mlp((784, 512, 512, 10), key=key)  # noqa: E731
    if (folder / "model.eqx").exists():
        model = load(folder / "model.eqx", make(jax.random.key(0)))
    else:
        run = supervised.SupervisedRun(make, x, images.train_y, supervised.Settings(steps=2000))
        state, _ = eqx.filter_jit(run.advance)(run.init(supervised.backprop(1e-3), jax.random.key(0)), 2000)
        print({name: float(value) for name, value in run.evaluate(state, test_x, images.test_y).items()})
        model = eqx.combine(state.params, make(jax.random.key(0)))
        save(folder / "model.eqx", model)
    stores = {name: si.record(folder / name, model, SITE, own) for name, own in (("train", x), ("test", test_x))}
    np.save(folder / "activations.npy", stores["train"].array(SITE))
    settings = si.Settings(**SETTINGS, horizon=HORIZON)
    orders = jax.jit(
        lambda key: jax.vmap(lambda step: batch_rows(key, step, settings.batch, len(x)))(
            jax.numpy.arange(settings.steps)
        )
    )
    runs = {kind: si.CoderRun(stores["train"], getattr(si, kind)(8), settings, inputs=SITE) for kind in KINDS}
    advances = {kind: eqx.filter_jit(run.advance) for kind, run in runs.items()}
    for seed, k, kind in itertools.product(SEEDS, KS, KINDS):
        state = runs[kind].init(si.Hyperparameters(RATE, getattr(si, kind)(k)), jax.random.key(seed))
        np.save(folder / f"rows-{seed}.npy", orders(state.order))
        start = time.perf_counter()
        coder = runs[kind].coder(advances[kind](state, settings.steps)[0])
        keep(folder, "ours", kind, k, seed, coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec, coder.threshold)
        print(kind, k, seed, f"{time.perf_counter() - start:.1f} s", flush=True)


def theirs(folder: Path) -> None:
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
            steps=steps, activation_dim=x.shape[1], dict_size=SETTINGS["latents"], k=k, layer=0, lm_name="-",
            lr=RATE, warmup_steps=SETTINGS["warmup"], decay_start=round((1 - SETTINGS["decay"]) * steps),
            threshold_beta=1 - 1 / HORIZON, threshold_start_step=HORIZON, seed=seed, device="cpu",
        )  # fmt: skip
        one.dead_feature_threshold = SETTINGS["dead_after"]
        for step in range(steps):
            one.update(step, x[rows[step]] / scale)
        one.ae.scale_biases(scale)
        keep_theirs(folder, kind, k, seed, one.ae)
        print(kind, k, seed, f"{time.perf_counter() - start:.1f} s", flush=True)


def keep_theirs(folder: Path, kind: str, k: int, seed: int, ae) -> None:
    """Keeps the weights of one of their coders."""
    number = lambda tensor: tensor.detach().numpy()  # noqa: E731
    weights = number(ae.encoder.weight).T, number(ae.encoder.bias), number(ae.decoder.weight).T, number(ae.b_dec)
    keep(folder, "theirs", kind, k, seed, *weights, float(ae.threshold))


def keep(folder: Path, whose: str, kind: str, k: int, seed: int, W_enc, b_enc, W_dec, b_dec, threshold) -> None:
    """Keeps the weights of a coder."""
    arrays = dict(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, threshold=threshold)
    np.savez(folder / f"{whose}-{kind}-{k}-{seed}.npz", **{name: np.asarray(value) for name, value in arrays.items()})


def compare(folder: Path, data_dir: str | None, out: Path) -> None:
    """Evaluates all coders by our evaluation; writes a table of every run and prints the means."""
    import jax
    import jax.numpy as jnp
    import pandas as pd

    from cetsim import datasets, load, nn
    from cetsim import interpret as si
    from cetsim.interpret.coder import with_fields

    images = datasets.load("mnist", data_dir)
    x = jnp.asarray(images.test_x.reshape(len(images.test_x), -1))
    model = load(folder / "model.eqx", nn.mlp((784, 512, 512, 10), key=jax.random.key(0)))
    store, rows = si.Activations(folder / "test"), []
    for path in sorted(folder.glob("*-*-*-*.npz")):
        whose, kind, k, seed = path.stem.split("-")
        coder = si.Coder(WIDTH, None, SETTINGS["latents"], getattr(si, kind)(int(k)), key=jax.random.key(0),
                         sites=(SITE, SITE))  # fmt: skip
        coder = with_fields(coder, **{name: jnp.asarray(array) for name, array in np.load(path).items()})
        values = si.evaluate(coder, store, model, x, images.test_y, batch=1000).values
        rows.append({"whose": whose, "sparsity": kind, "k": int(k), "seed": int(seed)} | values)
    table = pd.DataFrame(rows).sort_values(["sparsity", "k", "whose", "seed"])
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "quality.csv", index=False, float_format="%.6g")
    shown = ["explained_variance", "l0", "dead", "loss_recovered"]
    print(table.groupby(["sparsity", "k", "whose"])[shown].mean().round(4).to_string())


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
    medians = {kind: {whose: statistics.median(own) for whose, own in of.items()} for kind, of in found.items()}
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
    given = parser.parse_args()
    if given.part == "train":
        train(Path(given.folder), given.data_dir)
    elif given.part == "theirs":
        theirs(Path(given.folder))
    elif given.part == "compare":
        compare(Path(given.folder), given.data_dir, given.out)
    elif given.part == "time":
        timed(given.other, given.rounds, given.out)
    else:
        step_server(given.folder)
