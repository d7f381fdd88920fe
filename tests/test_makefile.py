"""The Makefile's environment: made again when what it is made with differs, and no failed installation passes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Stands for an interpreter: told apart by its version, it makes environments of itself and notes what pip is asked for.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-c "*) echo "/base VERSION"; exit STATUS;;
    "-m venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo made VERSION >> log;;
    "-m pip") echo "$@" >> log; ! echo "$@" | grep -q "$(cat fails)";;
    *) echo Python VERSION;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder with stand-ins for Python, and gives its exit status, errors and what they noted."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    for version, status in (("3.10.1", 1), ("3.11.7", 0), ("3.13.0", 0)):
        path = tmp_path / f"python{version}"
        path.write_text(PYTHON.replace("VERSION", version).replace("STATUS", str(status)))
        path.chmod(0o755)

    def run(*arguments, fails="nothing at all"):
        (tmp_path / "log").write_text("")
        (tmp_path / "fails").write_text(fails)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(["make", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stderr, (tmp_path / "log").read_text().splitlines()

    return run


def test_the_environment_is_made_again_when_python_or_jax_differ(make):
    assert make("install", "PYTHON=./python3.11.7")[2][0] == "made 3.11.7"
    assert make("install", "PYTHON=./python3.11.7") == (0, "", [])
    for differs in (["PYTHON=./python3.13.0"], ["PYTHON=./python3.13.0", "JAX=jax==0.11.*"]):
        status, _, (made, pip) = make("install", *differs)
        assert (status, made) == (0, "made 3.13.0")
        assert pip.endswith(differs[1].removeprefix("JAX=") if len(differs) > 1 else " jax")
        assert make("install", *differs) == (0, "", [])


def test_old_and_missing_interpreters_are_refused_and_leave_the_environment(make):
    make("install", "PYTHON=./python3.11.7")
    for name, told in (("./python3.10.1", "Python 3.10.1"), ("./no-python", "not found")):
        status, error, log = make("install", f"PYTHON={name}")
        assert (status, log) == (2, [])
        assert f"cetsim needs Python 3.11 or newer, got {name}" in error
        assert told in error
        assert "make install PYTHON=" in error
    assert make("install", "PYTHON=./python3.11.7") == (0, "", [])


@pytest.mark.parametrize("fails", ["experiments", "test", "gymnax"])
def test_a_failed_installation_ends_it_and_is_taken_up_again(make, fails):
    arguments = (".venv/installed-test", "PYTHON=./python3.13.0")
    status, _, log = make(*arguments, fails=fails)
    assert status == 2
    assert fails in log[-1]
    again = make(*arguments)
    assert again[0] == 0
    assert any(fails in line for line in again[2])
    assert make(*arguments) == (0, "", [])
