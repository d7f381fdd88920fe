"""Where a result came from: versions, git revision, device."""

import contextlib
import functools
import importlib.metadata
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


def revisions(records: list[dict]) -> list[str]:
    """Short names of the different states of the code that made the records."""
    states = [record.get("git") or {"revision": "unknown", "dirty": False} for record in records]
    return list(dict.fromkeys(s["revision"][:10] + (" with changes" if s["dirty"] else "") for s in states))


@functools.cache
def versions() -> dict[str, str | None]:
    """Of Python and of the packages that numbers depend on; None for one that runs without being installed."""
    found: dict[str, str | None] = {"python": platform.python_version()} | dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_revision() -> dict | None:
    """Commit of the checkout that the program comes from, and whether its tracked files have changes (`dirty`).

    The program is the script or package that was started, in a console the current folder. None outside a checkout, or
    for one that git does not track.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    program = Path(main).resolve() if main else Path.cwd()

    def git(*arguments: str) -> str:
        options = {"cwd": program.parent if main else program, "capture_output": True, "text": True, "check": True}
        return subprocess.run(["git", *arguments], **options).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(program))
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None
