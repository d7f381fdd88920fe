"""Where a result came from: versions, git revision, device."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "cetsim")


def describe() -> dict:
    """Versions, git revision and device, as plain JSON values."""
    import jax

    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "git": git_revision(),
        "device": {"platform": device.platform, "kind": device.device_kind, "cpus": os.cpu_count()},
    }


def now() -> str:
    """This moment in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def revisions(records: list[dict]) -> list[str]:
    """Short names of the different states of the code that made the records."""
    states = [record.get("git") or {"revision": "unknown", "dirty": False} for record in records]
    names = (state["revision"][:10] + (" with changes" if state["dirty"] else "") for state in states)
    return list(dict.fromkeys(names))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


def git_revision() -> dict | None:
    """Commit of this checkout, and whether its tracked files have changes (`dirty`); None outside one."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed somewhere inside another project's checkout
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
