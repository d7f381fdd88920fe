"""Ends the build of the site where a public name has no description, or does not stand on an API page."""

import re
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError

PAGES = Path(__file__).with_name("api")


def on_post_build(config):
    """Looks for every public name of every module that an API page describes, and of `cetsim` itself."""
    package = griffe.load("cetsim", search_paths=[PAGES.parents[1]], resolve_aliases=True)
    faults, everywhere = [], set()
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        built = Path(config.site_dir, "api", page.name).with_suffix(".html").read_text()
        shown = {name.rpartition(".")[2] for name in re.findall(r'id="(cetsim\.[\w.]+)"', built)}
        shown |= set(re.findall(r"`([A-Z]+)`", text))  # constants, described by hand
        everywhere |= shown
        for path in re.findall(r"^::: cetsim\.([\w.]+)", text, re.MULTILINE):
            if package[path].is_module:
                faults += [f"cetsim.{path}.{name}" for name in public(package[path]) if name not in shown]
    faults += [f"cetsim.{name}" for name in package.exports if name not in everywhere and name not in package.modules]
    if faults:
        raise PluginError(f"public names without a description in the API pages: {', '.join(faults)}")


def public(module) -> list[str]:
    """Names of a module's `__all__`, or of what it defines; modules have pages of their own."""
    if module.exports is None:
        return [name for name, member in module.members.items() if is_own(name, member)]
    kept = {str(name): module.members[str(name)] for name in module.exports}
    return [name for name, member in kept.items() if not member.is_module or name in member.members]


def is_own(name: str, member) -> bool:
    """Whether a public function or class is defined where it was found."""
    return not name.startswith("_") and not member.is_alias and (member.is_function or member.is_class)
