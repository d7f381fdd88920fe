"""The command line: experiments are the files beside this folder, options their dataclass `Options`."""

import importlib
import pkgutil
import shlex
import sys
import textwrap
from types import ModuleType

import experiments
from experiments.common import tables
from experiments.common.options import Files
from experiments.common.units import UserError

USAGE = "python -m experiments NAME [options]"


def names() -> list[str]:
    """The experiments, found by listing their folder."""
    found = pkgutil.iter_modules(experiments.__path__)
    return sorted(m.name.replace("_", "-") for m in found if not m.ispkg and not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The file of an experiment: its `Options`, `PRESETS`, `run(options)` and `report(rows, options)`."""
    return importlib.import_module(f"experiments.{name.replace('-', '_')}")


def main(arguments: list[str]) -> int:
    """Runs the command line and returns its exit status: 0, 1 if no run ended well, 2 for a user's error, 130, 143."""
    if not arguments or arguments[0] in ("-h", "--help", "list"):
        print(listing())
        return 0
    name, *rest = arguments
    if name not in names():
        return fail(f"unknown experiment {name!r}: choose from {', '.join(names())}")
    experiment = load(name)
    options = parse(name, experiment, rest)
    try:
        options.check()
        return draw(experiment, options) if options.plot_only else run(experiment, options)
    except UserError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error}\nwhat was finished before is kept in {options.folder}")
    except SystemExit as stop:  # a sweep that was interrupted has said how to go on
        return stop.code
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "experiments", *(a for a in arguments if a != "--fresh")])
        print(f"\ninterrupted; what was done is kept in {options.folder}\nto go on: {command}", file=sys.stderr)
        return 130


def run(experiment: ModuleType, options: Files) -> int:
    """Trains what is not finished and reports, unless another shard does."""
    tables.require_writable(options.folder)
    rows = experiment.run(options)
    if rows is not None:
        report(experiment, rows, options)
    return 0


def draw(experiment: ModuleType, options: Files) -> int:
    """Reports again from the table alone."""
    rows = tables.read(options.folder / "results.csv")
    tables.require_writable(options.folder)
    report(experiment, tables.of_options(rows, options), options)
    return 0


def report(experiment: ModuleType, rows, options: Files) -> None:
    """Prints the tables, draws the figures and says where they are."""
    paths = experiment.report(rows, options)
    print(f"\nresults: {options.folder / 'results.csv'}")
    print("\n".join(f"figure:  {path}" for path in paths))


def parse(name: str, experiment: ModuleType, arguments: list[str]) -> Files:
    """Options given, over those of the preset they name; exits with status 2 if they can't be read."""
    import tyro

    presets = experiment.PRESETS
    return tyro.cli(
        experiment.Options,
        args=arguments,
        default=presets.get(named_preset(arguments)) or next(iter(presets.values()), None),
        prog=f"python -m experiments {name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def named_preset(arguments: list[str]) -> str | None:
    """The value given to `--preset`, the last if there are several."""
    named = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument == "--preset":
            named = following
        elif argument.startswith("--preset="):
            named = argument.removeprefix("--preset=")
    return named


def listing() -> str:
    """The experiments, a line each, with their presets."""
    lines = [f"usage: {USAGE}", "", "experiments:"]
    for name in names():
        experiment = load(name)
        about = experiment.Options.__doc__.splitlines()[0]
        line = f"{about} Presets: {', '.join(experiment.PRESETS) or 'none'}."
        lines += textwrap.wrap(line, 110, initial_indent=f"  {name:<20}", subsequent_indent=" " * 22)
    return "\n".join([*lines, "", "options of one: python -m experiments NAME --help"])


def fail(message: str) -> int:
    """Prints a user's error and returns its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2
