"""A training step of the CIFAR-10 CNN and of ResNet-20 beside PyTorch's on the same cores.

    python -m benchmarks.convolutions time --other OTHER/python   both in turn, several times: medians and ratios

Batches of 128, float32, AdamW with a clipped gradient, ours by backprop and with CET(10), PyTorch's by backprop with
channels last. OTHER is an environment of Python 3.11 with torch's CPU build. Each side runs in a process of its own.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time

BATCH, STEPS, TURNS = 128, 6, 3


def ours() -> dict:
    """Functions that make one step, compiled, by network and kind."""
    import equinox as eqx
    import jax

    import cetsim
    from benchmarks import programs
    from benchmarks.measure import compiled

    resnet = programs.Network(lambda key: cetsim.nn.resnet20(10, key=key), (3, 32, 32), "preactivation")
    found = {}
    for name, network in (("CNN", programs.CNN), ("ResNet-20", resnet)):
        late = programs.traced(10, error_gate=1e-8, form=network.form)
        for kind, gradient in (("backprop", programs.backprop), ("CET(10)", late)):
            step = compiled(programs.step_with(gradient, network), *programs.inputs(network)).call
            found[f"{name}, {kind}"] = eqx.Partial(lambda step: jax.block_until_ready(step()), step)
    return found


def theirs() -> dict:
    """The same networks in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """Two convolutions and the input beside them, which a wider block takes every other pixel of."""

        def __init__(self, before, after):
            super().__init__()
            stride = 1 if before == after else 2
            self.main = nn.Sequential(
                *(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
                *(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)),
            )
            shortcut = (nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            self.beside = nn.Identity() if stride == 1 else nn.Sequential(*shortcut)

        def forward(self, x):
            return torch.relu(self.main(x) + self.beside(x))

    layers = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        layers += [nn.BatchNorm2d(after, affine=False)]
    cnn = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 10))
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = [Block(before, after) for before, after in itertools.pairwise(widths)]
    stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    resnet = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return {"CNN, PyTorch": stepper(torch, cnn), "ResNet-20, PyTorch": stepper(torch, resnet)}


def stepper(torch, model):
    """A function that trains the model by one step."""
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    x = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    return step


def seconds(steps: dict) -> None:
    """Prints times of several steps each, after a first one that is not counted."""
    for name, step in steps.items():
        step()
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            print(f"{name}: {time.perf_counter() - start}")


def compare(other: str) -> None:
    """Prints medians of all, run in turn, and what ours take of PyTorch's."""
    commands = [[sys.executable, "-m", "benchmarks.convolutions", "ours"], [other, __file__, "theirs"]]
    found = {}
    for _ in range(TURNS):
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for name, _, value in (line.partition(": ") for line in done.stdout.splitlines()):
                found.setdefault(name, []).append(1e3 * float(value))
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, value in sorted(medians.items()):
        ratio = value / medians[f"{name.partition(',')[0]}, PyTorch"]
        print(f"{name:22} {value:6.0f} ms  {ratio:.2f} of PyTorch (fastest {min(found[name]):.0f} ms)")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "ours", "theirs"))
    parser.add_argument("--other", help="python of the environment with torch")
    given = parser.parse_args()
    if given.what == "time":
        compare(given.other or parser.error("time needs --other"))
    else:
        seconds({"ours": ours, "theirs": theirs}[given.what]())


if __name__ == "__main__":
    main()
