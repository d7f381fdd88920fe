"""Options that experiments share, and their checks: a dataclass of them is an experiment's command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.common import checks
from experiments.common.checks import SEGMENT, UserError

# Of many presets. The paper's MNIST numbers are of its authors' linear layers, hence their form of the rule.
MNIST = dict(dataset="mnist", hidden=(512, 512), form="authors_linear", batch_conditions=1)
CIFAR10 = dict(dataset="cifar10", network="cnn", form="authors", batch_conditions=1)


@dataclass(frozen=True)
class Files:
    """Where an experiment writes. It is named after the file that its options are in."""

    out: Path = Path("results")
    """Output folder; files go to a folder of the experiment's name in it."""
    plot_only: bool = False
    """Redraw the figures from results.csv; run nothing."""
    fresh: bool = False
    """Start over: remove what this experiment wrote to its folder before."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def folder(self) -> Path:
        """Where this experiment writes."""
        return self.out / self.name

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        checks.rules(self)
        if self.plot_only and self.fresh:
            raise UserError("--plot-only redraws what --fresh would remove: give one of them")


@dataclass(frozen=True)
class Coders(Files):
    """Networks that are looked into, and sparse coders of what their hidden layers say."""

    data_dir: Path | None = None
    """Folder with the dataset's files as published; by default they are downloaded (digits needs none)."""
    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Images that the networks learn."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (128, 128)
    """Sizes of the hidden layers of an MLP."""
    network_steps: Annotated[int, checks.COUNT] = 400
    """Batches of 128 images that a network is trained on."""
    examples: Annotated[int, checks.COUNT] = 20_000
    """Training images whose activations are recorded, and validation and test images used, at most."""
    latents: Annotated[int, checks.COUNT] = 256
    """Latents of a coder."""
    k: Annotated[int, checks.COUNT] = 8
    """Active latents of a vector (BatchTopK)."""
    steps: Annotated[int, checks.COUNT] = 400
    """Steps of a coder."""
    batch: Annotated[int, checks.COUNT] = 128
    """Vectors of a step."""
    seeds: Annotated[int, checks.COUNT] = 3
    """Number of networks, with data and coders of their own."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        if isinstance(self.k, int):
            checks.require("k", self.k <= self.latents, f"at most the {self.latents} latents", self.k)


@dataclass(frozen=True)
class Sweep(Files):
    """Many runs, chosen, shared among processes and repeated."""

    preset: str = "demo"
    """Values of the options that are not given."""
    seeds: Annotated[int, checks.COUNT] = 3
    """Number of runs of each condition; they differ in all that is random."""
    learning_rates: Annotated[tuple[float, ...], checks.ABOVE_ZERO] = (1e-3,)
    """Learning rates to choose from, per condition (one: no choice)."""
    selection_seed: Annotated[int, checks.NOT_NEGATIVE] = 1000
    """Seed of the runs that choose; not one of the seeds reported."""
    batch_conditions: Annotated[int, checks.COUNT] = 1
    """Conditions trained at once at most."""
    shard: str = "1/1"
    """i/n: be the i-th of n processes that share work and output folder; the first waits for all and reports."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        apart = self.selection_seed >= self.seeds
        checks.require("selection_seed", apart, f"outside the {self.seeds} seeds reported", self.selection_seed)


@dataclass(frozen=True)
class Vision(Sweep):
    """Training on images seen one after the other, 0.2 s each, from credit that comes late."""

    warmup = 0.1  # share of a run in which the learning rate rises
    unit = SEGMENT  # images of a step of --steps

    data_dir: Path | None = None
    """Folder with the dataset's files as published; by default they are downloaded (digits needs none)."""
    dataset: Literal["digits", "mnist", "cifar10", "tinyimagenet"] = "digits"
    """Images to learn: scikit-learn's 8x8 digits, MNIST, CIFAR-10 or TinyImageNet."""
    network: Literal["mlp", "cnn", "resnet20", "vit"] = "mlp"
    """mlp: fully connected; cnn: three convolutions and two linear layers; resnet20, and vit, a vision transformer of
    two blocks of 32 (both with form preactivation)."""
    hidden: Annotated[tuple[int, ...], checks.SIZES] = (128, 128)
    """Sizes of the hidden layers of an mlp."""
    form: Literal["activation", "preactivation", "authors_linear", "authors"] = "activation"
    """Form of the three-factor rule; authors: authors_linear in linear layers, activation in convolutions."""
    steps: Annotated[int, checks.COUNT] = 1000
    """Length of a run, in segments of 128 images."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Peak learning rates to choose from, per condition, on held-out training images (one: no choice)."""
    selection_steps: Annotated[int, checks.COUNT] = 1000
    """Length of a run that only serves to choose the learning rate; far fewer than steps favour high rates."""
    validation: Annotated[float, checks.INSIDE] = 0.2
    """Fraction of the training set that is held out for that choice."""
    batch_conditions: int = 16
    """Conditions trained at once: many for small networks, 1 where one fills the processor."""

    def check(self) -> None:
        """Raises UserError for an option outside its range."""
        super().check()
        if self.network in ("cnn", "resnet20"):
            large, why = ("cifar10", "tinyimagenet"), f"cifar10 or tinyimagenet for a {self.network}"
            checks.require("dataset", self.dataset in large, why, self.dataset)
        between = {
            "resnet20": "a resnet20, whose batch norm stands between layer and activation",
            "vit": "a vit, whose activations cannot be seen from outside",
        }
        if self.network in between:
            why = f"preactivation for {between[self.network]}"
            checks.require("form", self.form == "preactivation", why, self.form)


@dataclass(frozen=True)
class Stream:
    """How images come, where that is one for all runs; mixed into options on images."""

    boundary: Literal["reset", "carry"] = "reset"
    """reset: every segment of 128 images starts with empty traces and loses the signals still under way;
    carry: traces and signals go on without end, and weights change every --segment images."""
    segment: Annotated[int, checks.COUNT, checks.segment] = SEGMENT
    """Images between two updates with the boundary carry; divides the images of a run, 128 a step."""
    run_length: Annotated[int, checks.COUNT] = 1
    """Images of one class in a row; 1 shuffles all images."""
    interpolation: Annotated[int, checks.COUNT] = 1
    """Steps of 0.2 s from one image to the next, blended in between; 1 shows each image once."""


@dataclass(frozen=True)
class Orders:
    """Orders of cascades; mixed into other options, as those below."""

    orders: Annotated[tuple[int, ...], checks.ORDERS] = (2, 6, 10)
    """Orders of the cascading traces, 2 to 64."""
    balanced: Annotated[tuple[int, ...], checks.BALANCED] = ()
    """Orders of cascades with a balanced readout of all stages, 3 to 64."""
    sharp: Annotated[tuple[int, ...], checks.BALANCED] = ()
    """Orders of cascades read as sharply as signs can, whatever their weights sum to (balanced readouts of ρ = 0),
    3 to 64."""
    contrasts: Annotated[tuple[int, ...], checks.ORDER] = ()
    """Orders of cascades from which the exponential trace is taken away, areas alike, 2 to 64."""

    @property
    def delayed_traces(self) -> list[tuple[str, int]]:
        """The traces compared, by kind and order, the delay line last."""
        kinds = {"CET": self.orders, **self.signed}
        return [("ET", 1), *((kind, order) for kind, orders in kinds.items() for order in orders), ("delay line", 0)]

    @property
    def signed(self) -> dict[str, tuple[int, ...]]:
        """Orders of the cascades whose stages are read with signs, by kind."""
        return {"balanced": self.balanced, "sharp": self.sharp, "CET - ET": self.contrasts}


@dataclass(frozen=True)
class Gate:
    """One error gate for all runs."""

    error_gate: Annotated[float, checks.NOT_NEGATIVE] = 1e-8
    """Squared error norm at or below which a layer's activity leaves no trace; 0 turns the gate off."""


@dataclass(frozen=True)
class Delays(Stream):
    """Delays of credit, and how images come meanwhile."""

    delays: Annotated[tuple[float, ...], checks.delays] = (2.0, 6.0)
    """Delays of the learning signal in seconds, multiples of 0.2 s, below 25.6 s unless carried."""


@dataclass(frozen=True)
class SelectionDelay:
    """One delay at which learning rates are chosen."""

    selection_delay: Annotated[float | None, checks.delays] = None
    """Choose each trace's learning rate at this delay alone, in seconds, for all delays; by default at each."""
