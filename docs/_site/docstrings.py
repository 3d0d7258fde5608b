"""Docstrings are Markdown in Google's form: their fences become code blocks of reStructuredText before napoleon reads them."""

import re
import textwrap


_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"^(?:\|.*\|\n)+", re.MULTILINE)
# What stands in four spaces behind a paragraph: a drawing, or a list in columns. A section of Google's form is no paragraph.
_DRAWING = re.compile(r"^(?!\w+:$)(\S[^\n]*)\n\n((?: {4}[^\n]+\n|\n(?= {4}))+)", re.MULTILINE)


def to_code_block(found: re.Match[str]) -> str:
    """Return a fence as a directive."""
    indent, language, code = found.groups()
    body = textwrap.indent(textwrap.dedent(code), indent + "   ")
    return f"{indent}.. code-block:: {language}\n\n{body}\n"


def to_list_table(found: re.Match[str]) -> str:
    """Return a Markdown table as a directive."""
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in found.group().splitlines())
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        lines += [f"   {'* ' if number == 0 else '  '}- {cell}" for number, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def converted(text: str) -> str:
    """Return a docstring with fences, tables and drawings as reStructuredText has them."""
    text = _FENCE.sub(to_code_block, text)
    text = _TABLE.sub(to_list_table, text)
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", text)
    return _DRAWING.sub(r"\1\n\n.. code-block:: text\n\n\2", text)


def process(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Convert the lines of one docstring in place."""
    lines[:] = converted("\n".join(lines) + "\n").splitlines()


def setup(app: object) -> dict[str, bool]:
    """Connect to Sphinx, before napoleon."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True}
