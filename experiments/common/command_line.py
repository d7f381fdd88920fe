"""The command line: experiments are the files beside this folder, options their dataclass `Options`."""

import importlib
import pkgutil
import shlex
import sys
import tempfile
import textwrap
from itertools import pairwise
from types import ModuleType

import experiments
from experiments.common import tables
from experiments.common.checks import UserError
from experiments.common.options import Files


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
    options = parse(name, experiment := load(name), rest)
    try:
        options.check()
        return report(experiment, options)
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


def report(experiment: ModuleType, options: Files) -> int:
    """Trains what is not finished, or reads the table, prints what came of it and draws the figures."""
    if options.plot_only:
        rows = tables.of_options(tables.read(options.folder / "results.csv"), options)
    try:  # so that an unwritable folder is found before any training
        options.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.folder).close()
    except OSError as error:
        raise UserError(f"the output folder {options.folder} cannot be written: {error.strerror or error}") from error
    rows = rows if options.plot_only else experiment.run(options)
    if rows is not None:  # another shard reports
        figures = [f"figure:  {path}" for path in experiment.report(rows, options)]
        print(f"\nresults: {options.folder / 'results.csv'}", *figures, sep="\n")
    return 0


def parse(name: str, experiment: ModuleType, arguments: list[str]) -> Files:
    """Options given, over those of the preset they name; exits with status 2 if they can't be read."""
    import tyro

    presets, words = experiment.PRESETS, " ".join(arguments).replace("--preset=", "--preset ").split()
    named = [following for word, following in pairwise(words) if word == "--preset"]
    default = presets.get(named[-1] if named else None) or next(iter(presets.values()), None)
    shown = dict(prog=f"python -m experiments {name}", config=(tyro.conf.FlagCreatePairsOff,))
    return tyro.cli(experiment.Options, args=arguments, default=default, **shown)


def listing() -> str:
    """The experiments, a line each, with their presets."""
    lines = ["usage: python -m experiments NAME [options]", "", "experiments:"]
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
