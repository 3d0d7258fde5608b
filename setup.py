"""The README as the package index shows it, where relative links lead nowhere; everything else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parent


def with_absolute_links(readme: str, repository: str | None) -> str:
    """Return the README with links into the repository: pages below blob/HEAD, pictures below raw/HEAD.

    The address is `Repository` in `[project.urls]`, its one place. Without it the links stay as they are.
    """
    if repository is None:
        return readme
    kinds = {"": "blob", "!": "raw"}

    def absolute(found: re.Match[str]) -> str:
        mark, text, path = found.groups()
        return f"{mark}[{text}]({repository.rstrip('/')}/{kinds[mark]}/HEAD/{path})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)", absolute, readme)


if __name__ == "__main__":
    from setuptools import setup  # tests read this file where it is not installed

    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    setup(
        long_description=with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), urls.get("Repository")),
        long_description_content_type="text/markdown",
    )
