"""The table of contents: the links of an index page are its entries, in their order.

So that each index is an ordinary list on GitHub too, no page has a toctree. An index is one of the parts, or the README.md of
a folder.
"""

import re
from pathlib import Path


PARTS = ("index", "start", "how-to", "reference", "understand")
_ENTRY = re.compile(r"^\* \[([^\]]+)\]\(([\w/.-]+)\.md\)", re.MULTILINE)
_NEIGHBOUR = re.compile(r"\[([^\]]+)\]\((?!README)([\w-]+)\.md\)")


def entries(docname: str, text: str) -> dict[str, str]:
    """Return the pages that an index page lists, relative to it, each with its short title; nothing for any other page."""
    pattern = _ENTRY if docname in PARTS else _NEIGHBOUR if Path(docname).name == "README" else None
    found = reversed(pattern.findall(text)) if pattern else ()
    return dict(reversed({name: title for title, name in found}.items()))


def in_no_index(docs: Path) -> list[str]:
    """Return the pages that no index leads to, starting at the first one."""
    found, ahead = {"index"}, ["index"]
    while ahead:
        docname = ahead.pop()
        folder = Path(docname).parent
        for entry in entries(docname, (docs / f"{docname}.md").read_text(encoding="utf-8")):
            name = (folder / entry).as_posix()
            if name not in found and (docs / f"{name}.md").exists():
                found.add(name)
                ahead.append(name)
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")}
    return sorted(pages - found)


def add_toctree(_app: object, docname: str, source: list[str]) -> None:
    """Put a hidden toctree behind an index page."""
    if found := entries(docname, source[0]):
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(map(_line, found.items())) + "\n```\n"


def _line(entry: tuple[str, str]) -> str:
    name, title = entry
    return f"{title} <{name}>"


def setup(app: object) -> dict[str, bool]:
    """Connect to Sphinx, after what is made."""
    app.connect("source-read", add_toctree, priority=600)
    return {"parallel_read_safe": True}
