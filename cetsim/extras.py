"""Optional packages: imported where they are used, or refused with the name of the extra that installs them."""

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """A module of an optional package, imported now.

    - `module`: dotted name, such as `"sklearn.datasets"`.
    - `extra`: the extra of cetsim that installs its package, such as `"data"`.

    **Raises:** ImportError that says what to install, if the package or one that it needs itself is missing or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"this needs {package}: pip install 'cetsim[{extra}]' ({error})", name=package) from error
