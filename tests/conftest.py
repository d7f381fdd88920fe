"""Set-up of all tests: float64, shapes and types checked at every call, the same examples in every run."""

import contextlib
import functools
import gc
import os
import platform
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most of the tests' time is XLA compiling. These options more than halve it, and must stand before jax is imported.
os.environ["XLA_FLAGS"] = " ".join((
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    # From jaxlib 0.12 on there is one way of making kernels, and no flag: XLA ends a process that names an unknown one.
    "--xla_cpu_use_fusion_emitters=false" if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12) else "",
    os.environ.get("XLA_FLAGS", ""),
))  # fmt: skip
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are drawn to files, also where there is a screen
jax.config.update("jax_enable_x64", True)
# Processes that tests start share what they compile. This one and its workers do not: each of thousands of programs
# would be looked up. A cache of the user's own is used by all.
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cetsim-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
OURS = "cetsim-tests-" in os.environ["JAX_COMPILATION_CACHE_DIR"]  # of this process, or of the one it works for
if OURS:
    jax.config.update("jax_enable_compilation_cache", False)
# Must come before the first import of cetsim: pytest imports this module before those of the tests.
install_import_hook("cetsim", "beartype.beartype")
# A program's compilation begins with a context of MLIR of its own, which takes as long as all the rest for a small one:
# here they share one. It is no part of jax's interface, and where it is missing nothing is lost but time. Not with a
# cache of the user's own, in which a program that is compiled while another is lowered could not be looked up.
if OURS:
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src.interpreters import mlir

        mlir.make_ir_context = functools.cache(mlir.make_ir_context)
gc.set_threshold(20_000, 20, 20)  # tracing makes so many objects that looking for cycles takes one twelfth of its time
# No deadline, since the first example of a test compiles.
hypothesis.settings.register_profile("same every time", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same every time")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell, where it would stay ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure():
    """Removes what this session compiled."""
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Marks as `slow` the tests that slow.txt names, and skips those marked `gpu` where jax has no GPU."""
    slow = set(Path(__file__).with_name("slow.txt").read_text().splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and all(device.platform != "gpu" for device in jax.devices()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"jax has no GPU here, only {jax.devices()[0].platform}"))


def pytest_terminal_summary(terminalreporter):
    """Says last what the tests ran on, and how many did not run."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"Python {platform.python_version()}, jax {jax.__version__}: {skipped} skipped")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_freed():
    """Frees compiled programs before they pass Linux's limit of 65,530 memory maps in a process, and not sooner."""
    yield
    from cetsim.sweep.runner import free_programs  # after the hook above

    free_programs()
