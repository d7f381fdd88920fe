"""Where a result came from: versions, git revision, device."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "cetsim")  # that numbers may depend on


def describe() -> dict:
    """Versions, git revision and device, as plain JSON values."""
    device = jax.devices()[0]
    kind = {"platform": device.platform, "kind": device.device_kind, "count": jax.local_device_count()}
    return {"versions": versions(), "git": git_revision(), "device": kind | {"cpus": os.cpu_count()}}


def now() -> str:
    """This moment in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that numbers depend on; None for one that has not been imported."""
    packages = {name: getattr(sys.modules.get(name), "__version__", None) for name in PACKAGES}
    return {"python": platform.python_version()} | packages


def git_revision() -> dict | None:
    """Commit of the checkout that the program comes from, and whether its tracked files have changes (`dirty`).

    The program is the script or package that was started, in a console the current folder. None outside a checkout, or
    for one that git does not track.
    """
    program = Path(getattr(sys.modules.get("__main__"), "__file__", None) or Path.cwd()).resolve()
    where = {"cwd": program.parent if program.is_file() else program, "text": True, "stderr": subprocess.DEVNULL}
    git = lambda *arguments: subprocess.check_output(["git", *arguments], **where)  # noqa: E731
    try:
        git("ls-files", "--error-unmatch", str(program))
        revision, _, dirty = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip().partition("-")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision, "dirty": bool(dirty)}
