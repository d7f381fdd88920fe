"""A forward pass of a ViT-S/14 with every block's output kept, beside PyTorch's on the same cores.

    python -m benchmarks.vit time --other OTHER/python   both in turn, several times: medians and their ratio

224 x 224 pixels, batches of 8, float32, LayerScale as DINOv2 has it. OTHER is an environment with torch and
timm. Each side runs in a process of its own, so that their threads do not meet.
"""

import argparse
import statistics
import subprocess
import sys
import time

BATCH, SIZE, DEPTH, PASSES, TURNS = 8, 224, 12, 5, 3


def ours():
    """A function that makes one pass, compiled."""
    import jax

    from cetsim import interpret

    sizes = dict(patch=14, width=384, depth=DEPTH, heads=6, layer_scale=1.0)
    model = interpret.VisionTransformer((3, SIZE, SIZE), **sizes, key=jax.random.key(0))
    names = [f"blocks.{i}" for i in range(DEPTH)]
    look = jax.jit(lambda x: jax.vmap(interpret.capture(model, names))(x))
    x = jax.random.normal(jax.random.key(1), (BATCH, 3, SIZE, SIZE))
    return lambda: jax.block_until_ready(look(x))


def theirs():
    """A function that makes one pass by hooks, as caches of PyTorch do."""
    import timm
    import torch

    model = timm.create_model("vit_small_patch14_dinov2", img_size=SIZE, num_classes=0).eval()
    seen, x = {}, torch.randn(BATCH, 3, SIZE, SIZE)
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, inputs, output, i=i: seen.__setitem__(i, output))

    def once():
        with torch.no_grad():
            model(x)

    return once


def seconds(once) -> list[float]:
    """Of several passes, after a first one that is not counted."""
    once()
    found = []
    for _ in range(PASSES):
        start = time.perf_counter()
        once()
        found.append(time.perf_counter() - start)
    return found


def compare(other: str) -> None:
    """Prints medians of both, run in turn, and their ratio."""
    commands = {"cetsim": [sys.executable, "-m", "benchmarks.vit", "ours"], "PyTorch": [other, __file__, "theirs"]}
    found = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] += map(float, done.stdout.split())
    for name, times in found.items():
        print(f"{name:8} {statistics.median(times):.3f} s (fastest {min(times):.3f} s)")
    medians = [statistics.median(times) for times in found.values()]
    print(f"ratio    {medians[0] / medians[1]:.2f} (fastest {min(found['cetsim']) / min(found['PyTorch']):.2f})")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "ours", "theirs"))
    parser.add_argument("--other", help="python of the environment with torch and timm")
    given = parser.parse_args()
    if given.what == "time":
        compare(given.other or parser.error("time needs --other"))
    else:
        print(*seconds({"ours": ours, "theirs": theirs}[given.what]()))


if __name__ == "__main__":
    main()
