"""Finds the words that the style page rules out: `make words`, a part of `make check`.

With paths, only those: `python tools/words.py docs README.md`. A word that stands alone between quotes or backticks is a name
and not prose. To rule out one more word, add it to `WORDS`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]

_ACTOR = "name the actor: another transaction, another process, the caller, a person"
_ACTION = "say what happens: returns, raises, reports, shows"
_NOT_A_PERSON = "it, they, or the caller"

WORDS = {
    "anew": "again",
    "anybody": _ACTOR,
    "as ever": "as usual",
    "by itself": "alone, automatically",
    "dearer": "more expensive",
    "everybody": _ACTOR,
    "he": _NOT_A_PERSON,
    "him": _NOT_A_PERSON,
    "his": _NOT_A_PERSON,
    "nobody": _ACTOR,
    "of its own": "its own, separate, new",
    "somebody": _ACTOR,
    "tell whether": "Return whether",
    "tells": _ACTION,
    "told": _ACTION,
    "whoever": _ACTOR,
}
"""What is ruled out, and what to write instead."""

PLACES = (
    *("safeagent_sa", "docs", "tests", "benchmarks", "examples", "migrations", "tools", "changelog.d"),
    *(
        "README.md",
        "CHANGELOG.md",
        "CODE_OF_CONDUCT.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        ".github",
        "Makefile",
        ".ci/run",
        "pyproject.toml",
        "pytest_safeagent_sa.py",
        "setup.py",
    ),
)
SUFFIXES = {".ini", ".mako", ".md", ".pml", ".py", ".sql", ".yml"}

# The space in a phrase may be the end of a line, with the mark of a comment in the next one.
_SPACE = r"[\s#*]+"
_PHRASES = "|".join(word.replace(" ", _SPACE) for word in WORDS)
# Not \b: an underscore joins the words of a name, and these count as well.
_RULED_OUT = re.compile(rf"(?<![a-z])(?:{_PHRASES})(?![a-z])", re.IGNORECASE)


def offenders(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the word of each use of a word that is ruled out."""
    for found in _RULED_OUT.finditer(text):
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        if not (before == after and before in {'"', "'", "`"}):
            yield text.count("\n", 0, found.start()) + 1, re.sub(_SPACE, " ", found[0].lower())


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files, and those in the folders that may contain prose."""
    for path in paths:
        inside = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
        yield from inside if path.is_dir() else [path]


def main(arguments: list[str]) -> str | None:
    """Print each use with its file and line; return how many there are, or None."""
    count = 0
    for path in files([Path(name) for name in arguments or PLACES]):
        for line, word in offenders(path.read_text(encoding="utf-8")):
            count += 1
            sys.stdout.write(f"{path}:{line}: {word!r}; write instead: {WORDS[word]}\n")
    return f"{count} use(s) of words that CONTRIBUTING.md rules out" if count else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
