"""Every program of README and docs/ is complete, and prints what the page says; links and pictures resolve."""

import importlib
import inspect
import itertools
import re
import runpy
from pathlib import Path

import jax
import pytest
from pages import GOES_ON, NOTEBOOKS, PAGES, ROOT, cells, programs, prose, require_printed

# These have tests of their own, which look at more than what is printed.
ELSEWHERE = {
    "docs/guides/adding-an-experiment.md": "test_adding_an_experiment.py",
    "docs/guides/agents.md": "test_agents_docs.py",
    "docs/guides/interpret.md": "test_interpret_docs.py",
    "docs/guides/interpret-coders.md": "test_coder_docs.py",
    "docs/guides/robust.md": "test_inside_docs.py",
    "docs/guides/published-vits.md": "test_vit_docs.py",
    "docs/guides/spiking.md": "test_spiking_docs.py",
    "docs/guides/steer.md": "test_inside_docs.py",
    "docs/guides/sweeps.md": "test_sweep_docs.py",
}
PROGRAMS = [program for path in PAGES for program in programs(path)]
HERE = [program for program in PROGRAMS if program.page not in ELSEWHERE]
# Long training is cut short here: what it prints is then of the same form, with other numbers.
SHORTER = {"docs/index.md:0": ("300", "30"), "docs/guides/own-model.md:0": (" 201", " 101")}
TINY = repr(str(ROOT / "tests" / "golden" / "vit" / "dinov2"))
SHORTER_NOTEBOOKS = {
    "agent": {"updates = 1000": "updates = 10"},
    "own-model": {"300": "60"},
    "published-vit": {'"facebook/dinov2-small"': TINY, "image=224": "image=16"},
    "steer": {"steps = 400": "steps = 50"},
    "robust": {", 400": ", 50"},
    "late-credit": {
        ", 800, ": ", 100, ",
        "list(values)[1:]": "list(values)[1:2]",
        "for name in rules:": "for name in ['ET']:",
    },
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("program", HERE, ids=lambda program: program.name)
def test_a_program_prints_what_the_page_says(program, capsys):
    assert not program.before, f"{program.name} must be complete as printed"
    assert program.printed, f"{program.name} must be followed by what it prints"
    short = SHORTER.get(program.name)
    if short:
        assert short[0] in program.source
    with jax.enable_x64(False):  # as on a reader's machine
        exec(compile(program.source.replace(*short or ("", "")), program.name, "exec"), {"__name__": "__main__"})
    require_printed(capsys.readouterr().out, program.printed, numbers=short is None)


def test_pages_with_tests_of_their_own():
    folder = Path(__file__).parent
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (folder / test).read_text()
    assert len(PROGRAMS) > len(HERE) > 15
    assert {match for path in PAGES for match in re.findall(r"```python title=\"(.*?)\"", path.read_text())} == {
        GOES_ON
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, capsys):
    names, sources = {"__name__": "__main__"}, cells(notebook)
    for long, short in SHORTER_NOTEBOOKS.get(notebook.stem, {}).items():
        assert any(long in source for source in sources)
        sources = [source.replace(long, short) for source in sources]
    with jax.enable_x64(False):
        for number, source in enumerate(sources):
            exec(compile(source, f"{notebook.name}:{number}", "exec"), names)
    assert capsys.readouterr().out.strip()


def test_the_notebooks():
    inside = {"late-credit", "published-vit", "robust", "steer"}
    assert {path.stem for path in NOTEBOOKS} == {"agent", "own-model", "spiking", "sweep", "traces"} | inside


def test_links_and_pictures_resolve():
    broken = []
    for path in PAGES:
        text = re.sub(r"`[^`]*`", "", prose(path))
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"src=\"([^\"]+)\"", text):
            place, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            found = (path.parent / place) if place else path
            if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """What headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w]+", "-", heading.lower()).strip("-") for heading in headings}


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r"[\w./-]+\.(?:md|ipynb)", (ROOT / "mkdocs.yml").read_text().partition("nav:\n  -")[2])
    on_disk = [*PAGES[1:], *NOTEBOOKS]
    assert sorted(navigation) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in on_disk)


def test_every_public_name_is_described_on_an_api_page():
    """`make docs` looks at the built pages besides (docs/hooks.py)."""
    text = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
    modules = [
        "cetsim.rl",
        "cetsim.traces",
        *(f"cetsim.rl.{name}" for name in ("environments", "policies", "actor_trace")),
    ]
    package = importlib.import_module("cetsim")
    modules += [f"cetsim.{name}" for name in package.__all__ if inspect.ismodule(getattr(package, name))]
    assert sorted(set(modules) - shown) == []
    for module in map(importlib.import_module, modules):
        for name in getattr(module, "__all__", own_names(module)):
            member = getattr(module, name)
            described = inspect.getdoc(member) if callable(member) else f"`{name}`" in text
            assert described or inspect.ismodule(member), f"{module.__name__}.{name}"
    homes = {getattr(getattr(package, name), "__module__", None) for name in package.__all__} - {None}
    assert all(any(home.startswith(name) for name in shown) for home in homes)


def own_names(module) -> list[str]:
    """Public functions and classes that a module defines."""
    kinds = itertools.chain(inspect.getmembers(module, inspect.isclass), inspect.getmembers(module, inspect.isfunction))
    return [name for name, member in kinds if not name.startswith("_") and member.__module__ == module.__name__]


def test_the_drawing_of_the_rule_can_be_made_again(tmp_path):
    runpy.run_path(str(ROOT / "docs" / "assets" / "rule.py"))["draw"](tmp_path / "rule.svg")
    ours, committed = (path.read_text() for path in (tmp_path / "rule.svg", ROOT / "docs" / "assets" / "rule.svg"))
    assert "<svg" in committed
    assert ours.count("<g id=") == committed.count("<g id=")


def test_every_committed_figure_is_in_the_gallery_with_its_command():
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    pictures = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "figures").rglob("*.png"))
    assert sorted(re.findall(r"!\[.+?\]\((figures/.*?\.png)\)", gallery)) == pictures
    commands = re.findall(r"`(python -m experiments .*?)`", (ROOT / "figures" / "README.md").read_text())
    assert [command for command in commands if command not in gallery] == []
