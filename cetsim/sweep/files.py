"""What records, checkpoints and tables share: their schema, names of configs, and errors that say what failed."""

import contextlib
import hashlib
import json

SCHEMA = 2  # of all that is written; in 1 all records of a sweep were one file


@contextlib.contextmanager
def explained(what: str):
    """Turns an OSError into one of the same kind and number that says `what` failed, and why."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # has been explained
            raise
        clearer = type(error)(f"{what}: {error.strerror or error}")
        clearer.errno = error.errno
        raise clearer from error


def digest(config: dict) -> str:
    """16 digits of the SHA-256 of `config` as JSON (sorted keys, no spaces): equal configs, equal digests."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(config: dict, prefix: str = "") -> dict:
    """Values of nested dicts by dotted name."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
