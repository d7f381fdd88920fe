"""Options that all experiments on images share."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from experiments.options.common import STRETCH, require, require_each, require_run_flags


@dataclass(frozen=True)
class Vision:
    """Training on images seen one after the other, 0.2 s each, from credit that comes late."""

    name: ClassVar[str] = "vision"
    warmup: ClassVar[float] = 0.1  # share of a run in which the learning rate rises
    stretch: ClassVar[int] = STRETCH

    preset: str = "demo"
    """Values of the options that are not given."""
    out: Path = Path("results")
    """Output folder; files go to a folder of the experiment's name in it."""
    data_dir: Path | None = None
    """Folder with the dataset's files as published; by default they are downloaded (digits needs none)."""
    dataset: Literal["digits", "mnist", "cifar10", "tinyimagenet"] = "digits"
    """Images to learn: scikit-learn's 8x8 digits, MNIST, CIFAR-10 or TinyImageNet."""
    network: Literal["mlp", "cnn", "resnet20"] = "mlp"
    """mlp: fully connected; cnn: three convolutions and two linear layers; resnet20 (with form preactivation)."""
    hidden: tuple[int, ...] = (128, 128)
    """Sizes of the hidden layers of an mlp."""
    form: Literal["activation", "preactivation", "authors_linear", "authors"] = "activation"
    """Form of the three-factor rule; authors: authors_linear in linear layers, activation in convolutions."""
    mode: Literal["reset", "carry"] = "reset"
    """reset: every stretch of 128 images starts with empty traces and loses the signals still under way;
    carry: traces and signals go on without end, and weights change every --update-every images."""
    update_every: int = STRETCH
    """Images between two updates in the mode carry; divides the images of a run, 128 a step."""
    run_length: int = 1
    """Images of one class in a row; 1 shuffles all images."""
    interpolation: int = 1
    """Steps of 0.2 s from one image to the next, blended in between; 1 shows each image once."""
    seeds: int = 3
    """Number of runs of each condition; they differ in initial weights and the order of images."""
    steps: int = 1000
    """Length of a run, in stretches of 128 images."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Peak learning rates to choose from, per condition, on held-out training images (one: no choice)."""
    selection_steps: int = 1000
    """Length of a run that only serves to choose the learning rate; far fewer than steps favour high rates."""
    selection_delay: float | None = None
    """Choose each trace's learning rate at this delay alone, in seconds, for all delays; by default at each."""
    validation: float = 0.2
    """Fraction of the training set that is held out for that choice."""
    selection_seed: int = 1000
    """Seed of the runs that choose the learning rate, and of the split; not one of the seeds reported."""
    batch_conditions: int = 16
    """Conditions trained at once: many for small networks, 1 where one fills the processor."""
    shard: str = "1/1"
    """i/n: be the i-th of n processes that share work and output folder; the first waits for all and reports."""
    plot_only: bool = False
    """Redraw the figure from results.csv; run nothing."""
    fresh: bool = False
    """Start over: remove what this experiment wrote to its folder before."""

    @property
    def folder(self) -> Path:
        """Where this experiment writes."""
        return self.out / self.name

    def check(self) -> None:
        """Raises ValueError for an option outside its range."""
        require_run_flags(self.plot_only, self.fresh, self.shard)
        counts = (
            "seeds",
            "steps",
            "selection_steps",
            "batch_conditions",
            "update_every",
            "run_length",
            "interpolation",
        )
        for name in counts:
            require(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        require_each("hidden", self.hidden, lambda v: v >= 1, "at least 1", distinct=False)
        require_each("learning_rates", self.learning_rates, lambda v: v > 0, "above 0")
        require("validation", 0 < self.validation < 1, "between 0 and 1", self.validation)
        apart = not 0 <= self.selection_seed < self.seeds
        require("selection_seed", apart, f"outside the {self.seeds} seeds reported", self.selection_seed)
        require("selection_seed", self.selection_seed >= 0, "at least 0", self.selection_seed)
        self._check_stream()
        self._check_network()

    def _check_stream(self) -> None:
        if self.mode == "reset":
            whole = f"{self.stretch} with --mode reset, where a stretch is an update"
            require("update_every", self.update_every == self.stretch, whole, self.update_every)
        for steps in (self.steps, self.selection_steps):
            images = steps * self.stretch
            divides = images % self.update_every == 0
            require("update_every", divides, f"a divisor of the {images} images of a run", self.update_every)

    def _check_network(self) -> None:
        images = {"cnn": ("cifar10", "tinyimagenet"), "resnet20": ("cifar10", "tinyimagenet")}.get(self.network)
        if images is not None:
            require("dataset", self.dataset in images, f"{' or '.join(images)} for a {self.network}", self.dataset)
        if self.network == "resnet20":
            why = "preactivation for a resnet20, whose batch norm stands between layer and activation"
            require("form", self.form == "preactivation", why, self.form)
