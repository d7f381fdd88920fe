"""The list of slow tests names tests that are there, each once and in order."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
NAMES = [line for line in (TESTS / "slow.txt").read_text().splitlines() if not line.startswith("#")]


def functions(path):
    """Names of the tests in a file, of those in classes too."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_name_is_that_of_a_test():
    assert sorted(set(NAMES)) == NAMES
    for name in NAMES:
        file, *_, test = name.split("[")[0].split("::")
        assert test in functions(TESTS.parent / file), f"tests/slow.txt names {name}, which is not there"
