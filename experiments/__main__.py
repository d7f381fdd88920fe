"""Command line: `python -m experiments` lists the experiments, `python -m experiments NAME` runs one."""

import importlib.util
import sys

NEEDED = ("tyro", "matplotlib", "pandas", "filelock")


def main(arguments: list[str]) -> int:
    """Runs the command line, if what it needs is installed; returns its exit status."""
    if missing := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        what = f"the experiments need {', '.join(missing)}"
        print(f"error: {what}: pip install 'cetsim[experiments]'", file=sys.stderr)
        return 2
    from experiments.common import command_line

    return command_line.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
