"""The programs that README and the pages of docs/ print, and what they say that these print."""

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "figures" not in path.parts)]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
GOES_ON = "goes on from the program above"
FENCE = re.compile(r"^```python(?: title=\"(.*?)\")?\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


class Program(NamedTuple):
    """A block of code with all that stands before it where it goes on, and what the page says that it prints."""

    page: str
    number: int
    source: str
    before: str
    printed: str | None

    @property
    def name(self) -> str:
        """Page and number of the block."""
        return f"{self.page}:{self.number}"


def programs(path: Path) -> list[Program]:
    """The blocks of a page; one that is titled so goes on from those before it."""
    found, before = [], ""
    for number, (title, source, printed) in enumerate(FENCE.findall(path.read_text())):
        before = before if title == GOES_ON else ""
        found.append(Program(path.relative_to(ROOT).as_posix(), number, source, before, printed or None))
        before += source
    return found


def words(text: str) -> list[str]:
    """Words, with every number as #."""
    return NUMBER.sub("#", text).split()


def require_printed(out: str, printed: str, numbers: bool) -> None:
    """The same words and, up to rounding, the same numbers; without `numbers`, of a run cut short, the first words."""
    assert out.strip()
    if not numbers:
        assert words(out) == words(printed)[: len(words(out))]
        return
    assert words(out) == words(printed)
    for ours, theirs in zip(NUMBER.findall(out), NUMBER.findall(printed), strict=True):
        mantissa, _, exponent = theirs.partition("e")
        last_digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        assert abs(float(ours) - float(theirs)) <= max(1.01 * last_digit, 0.03 * abs(float(theirs))), (ours, theirs)


def run_guide(name: str, capsys, replaced=lambda source: source) -> tuple[dict, str]:
    """Runs a guide's programs one after the other; what they leave behind, and all that they printed.

    Each prints the words that the page says, with numbers in the same places. `replaced`: of a source, what is run.
    """
    names, printed = {"__name__": "__main__"}, ""
    for program in programs(ROOT / "docs" / "guides" / name):
        exec(compile(replaced(program.source), name, "exec"), names)
        out = capsys.readouterr().out
        assert program.printed is None or words(out) == words(program.printed)
        printed += out
    return names, printed


def page(name: str) -> list[str]:
    """Sources of a page's blocks, such as of `guides/agents.md`."""
    return [program.source for program in programs(ROOT / "docs" / name)]


def cells(path: Path) -> list[str]:
    """Sources of a notebook's code cells."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
