"""Command line: `python -m experiments` lists the experiments, `python -m experiments NAME` runs one."""

import sys

from experiments.common.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
