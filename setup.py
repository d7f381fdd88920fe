"""The README as an index page can show it, where none of the repository's files lie; all else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = ""  # such as "https://example.org/us/cetsim" once there is an address: then pictures show there too


def page(readme: str, repository: str) -> str:
    """The README with its relative links and pictures made absolute, or, without an address, told in words."""

    def absolute(link: re.Match) -> str:
        picture, text, path = link.groups()
        if repository:
            return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{path})"
        return f"*{text} ({path} in the repository).*" if picture else f"{text} (in the repository)"

    return re.sub(r"(?<!\w)(!?)\[([^]]*)\]\((?!\w+:|#)([^)]*)\)", absolute, readme)


setup(
    long_description=page(Path(__file__).with_name("README.md").read_text(encoding="utf-8"), REPOSITORY),
    long_description_content_type="text/markdown",
)
