"""The architecture, read from the imports: they point down only, and importing does nothing else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cetsim"

# From the bottom up. A module imports from rows before its own only, not from siblings in its row. The files
# of a package such as nn count as one module. The top-level __init__ gathers public names from all.
LAYERS = (
    ("checks", "extras", "files"),
    ("steps",),
    ("display",),
    ("kernels", "datasets", "metrics", "events"),
    ("state_space", "gates"),
    ("traces",),
    ("delays",),
    ("credit",),
    ("streams",),
    ("nn",),
    ("supervised", "spiking"),
    ("rl",),
    ("interpret",),
    ("sweep", "runs"),
    ("__init__",),
    ("__main__",),
)
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} | set(RANK)
# What may be imported by an import statement. Optional packages are imported by extras.require, where they are used.
REQUIRED = {"jax", "equinox", "optax", "numpy", "scipy", "jaxtyping", "wadler_lindig"}


def module_of(path: Path) -> str:
    """The module of a file under cetsim/, its package if it lies in one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str, path: Path) -> set[str]:
    """Dotted names of everything that the source of `path` imports, wherever in it."""
    package = ("cetsim", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def violations(source: str, path: Path) -> list[str]:
    """Imports in the source of `path` that do not point down."""
    own = module_of(path)
    wrong = []
    for name in sorted(imported(source, path)):
        top, *rest = name.split(".")
        if top not in REQUIRED | {"cetsim"} | sys.stdlib_module_names:
            wrong.append(f"{own} imports {top}, which the library must do without")
        if top != "cetsim":
            continue
        # `from cetsim import CascadingTrace` goes through the top-level __init__.
        target = rest[0] if rest and rest[0] in MODULES else "__init__"
        if target != own and RANK.get(target, 0) >= RANK[own]:
            wrong.append(f"{own} imports {target}, which is not below it")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert module_of(path) in RANK, f"give {module_of(path)} its place in LAYERS"
    assert violations(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("credit.py", "from cetsim import kernels, traces\nfrom cetsim.delays import FixedDelay", 0),
        ("credit.py", "def f():\n    import cetsim.nn.linear", 1),
        ("credit.py", "from cetsim import CascadingTrace", 1),
        ("credit.py", "from .nn import attach", 1),
        ("supervised.py", "from cetsim import rl", 1),
        ("supervised.py", "from cetsim.supervised import other", 0),
        ("nn/linear.py", "from . import conv\nfrom .conv import Conv\nfrom ..credit import adjoint", 0),
        ("nn/linear.py", "from ..supervised import run", 1),
        ("metrics.py", "import matplotlib.pyplot as plt\nfrom rich import print", 2),
        ("sweep/progress.py", "def f():\n    import rich, tyro", 2),
        ("__init__.py", "from cetsim import supervised, sweep", 0),
    ],
)
def test_violations_are_seen(module, source, wrong):
    assert len(violations(source, PACKAGE / module)) == wrong


def run_python(code: str, **env: str) -> None:
    """Runs code in an interpreter of its own, where it must succeed without a word."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_starts_no_backend():
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in FILES]
    names = [".".join(part for part in p if part != "__init__") for p in parts]
    # No platform has this name, so that starting a backend raises.
    lazily = "\nimport sys; assert 'rich' not in sys.modules"
    run_python(f"import {', '.join(names)}{lazily}", JAX_PLATFORMS="none_such")


def test_import_changes_no_configuration():
    code = """
import logging, random, warnings
import equinox, jax, numpy, optax, scipy.special
def settings():
    yield dict(jax.config.values)
    yield repr(numpy.random.get_state()), random.getstate()
    yield numpy.geterr(), repr(numpy.get_printoptions())
    yield logging.getLogger().level, list(logging.getLogger().handlers), list(warnings.filters)
before = list(settings())
import cetsim, cetsim.datasets
assert list(settings()) == before
"""
    run_python(code)


MOST_IMPORTS = 12  # of a file, from this repository
SOURCES = [path for folder in ("cetsim", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    """Dotted name of a file of this repository."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """The files that each file imports, wherever in it; of a package its `__init__` unless a file in it is named."""
    known, graph = {name_of(path) for path in SOURCES}, {}
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[:-1]
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else ()
                base = ".".join([*base, *([node.module] if node.module else [])])
                found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
        graph[name_of(path)] = (found & known) - {name_of(path)}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports; empty if there is none."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (follow(other, [*path, name]) for other in sorted(graph.get(name, ())))), [])
        done.add(name)
        return found

    return next(filter(None, (follow(name, []) for name in sorted(graph))), [])


def test_no_file_imports_in_a_circle():
    """Nor where the import stands in a function."""
    assert circle(import_graph()) == []


def test_each_file_of_experiments_imports_few_others():
    graph = {name: others for name, others in import_graph().items() if name.startswith("experiments")}
    assert {name: len(others) for name, others in graph.items() if len(others) > MOST_IMPORTS} == {}


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_experiments_do_not_import_each_other():
    graph = import_graph()
    wrong = {
        name: sorted(other for other in others if other.count(".") == 1 and other.startswith("experiments."))
        for name, others in graph.items()
        if name.startswith("experiments.") and name.count(".") == 1
    }
    allowed = {"experiments.common", "experiments.__main__"}
    assert {name: others for name, others in wrong.items() if set(others) - allowed} == {}
