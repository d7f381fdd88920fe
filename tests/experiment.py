"""What tests of experiments share: the command line in this process, and rows of runs that never were."""

import io
from contextlib import redirect_stdout

import pandas as pd

from experiments.common import command_line, selection, tables


def output_of(*arguments: str) -> str:
    """What an experiment that ends well prints."""
    with redirect_stdout(io.StringIO()) as out:
        assert command_line.main([*map(str, arguments)]) == 0
    return out.getvalue()


def error_of(capsys, *arguments: str) -> str:
    """What the command line says on stderr, having exited with status 2."""
    try:
        status = command_line.main([*map(str, arguments)])
    except SystemExit as stop:  # what can't even be parsed
        status = stop.code
    assert status == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def tidy(rows: list[dict]) -> pd.DataFrame:
    """Rows as experiments read them."""
    return tables.tidy(pd.DataFrame(rows))


def copied(folder, to):
    """A folder of the same experiment that holds its table alone."""
    new = to / folder.name
    new.mkdir(parents=True)
    (new / "results.csv").write_bytes((folder / "results.csv").read_bytes())
    return new


def require_same_pictures(folder, other) -> list[str]:
    """The names of the figures in two folders, which must be equal."""
    names = sorted(path.name for path in folder.glob("*.p*"))
    assert names == sorted(path.name for path in other.glob("*.p*"))
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    return names


def trained(course, conditions, folder, batch=1):
    """The table of runs of one course, trained here."""
    return selection.train(course, conditions, folder, batch=batch)
