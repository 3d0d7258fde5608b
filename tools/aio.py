"""Writes the signatures and docstrings of async verbs from those of their sync twins: `make aio`.

The body of an async verb is written by hand, where it stands; everything above the body is written here, so that each
text has one source. With `--check`, nothing is written, and an async verb that is not up to date is an error.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


PACKAGE = Path(__file__).resolve().parents[1] / "safeagent_sa"


class Door(NamedTuple):
    """A class or a function, and its async twin."""

    source: str
    name: str
    target: str
    twin: str
    prefix: str
    """What stands before a call of it in an example."""


DOORS = (
    Door("guard.py", "ExecutionGuard", "aio.py", "AsyncExecutionGuard", "guard."),
    Door("retention.py", "purge", "retention.py", "purge_async", ""),
)

# Everywhere, as whole words.
NAMES = {
    "AbstractContextManager": "AbstractAsyncContextManager",
    "Batch": "AsyncBatch",
    "Effect": "AsyncEffect",
    "EffectContext": "AsyncEffectContext",
    "Relay": "AsyncRelay",
    "Session": "AsyncSession",
    "SessionFactory": "AsyncSessionFactory",
    "SessionLocal": "AsyncSessionLocal",
    "scoped_session": "async_scoped_session",
    "sessionmaker": "async_sessionmaker",
}

# In docstrings, before the names.
PHRASES = {
    "A context manager.": "An async context manager.",
    "The function to run,": "The coroutine function to run,",
    "`fn` is a coroutine function,": "`fn` does not return an awaitable,",
    "a synchronous Session": "an AsyncSession",
    "function `handler(": "coroutine function `handler(",
    "function `on_success(": "function or coroutine function `on_success(",
    "such as Flask-SQLAlchemy's `db.session`": "such as an `async_scoped_session`",
    "function `probe(": "function or coroutine function `probe(",
    "between threads": "between tasks",
}

# What examples await besides the verbs themselves.
AWAITED = ("charge.execute", "ingest", "relay.run")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def verbs_of(source: str, name: str) -> dict[str, list[Function]]:
    """Return the public functions of a class, or the one function of this name; the overloads of each come first."""
    named = [each for each in ast.parse(source).body if getattr(each, "name", None) == name]
    found: dict[str, list[Function]] = {}
    for each in named[0].body if isinstance(named[0], ast.ClassDef) else named:
        if isinstance(each, Function) and not each.name.startswith("_"):
            found.setdefault(each.name, []).append(each)
    return found


def lines_of(verb: list[Function]) -> slice:
    """Return the lines above the body: overloads, signature and docstring."""
    first, body = verb[0], verb[-1].body
    start = min(each.lineno for each in (first, *first.decorator_list))
    return slice(start - 1, body[0].end_lineno if ast.get_docstring(verb[-1]) else body[0].lineno - 1)


def translated(text: str, awaited: list[str], *, is_coroutine: bool) -> str:
    """Return the signature and the docstring of an async verb."""
    signature, quotes, docstring = text.partition('"""')
    signature = renamed(signature)
    signature = re.sub(
        r"Callable\[Concatenate\[AsyncSession, \.\.\.\], (\w+)\]",
        r"Callable[Concatenate[AsyncSession, ...], Awaitable[\1]]",
        signature,
    )
    if is_coroutine:
        signature = re.sub(r"^( *)def ", r"\1async def ", signature, flags=re.MULTILINE)
    for phrase, other in PHRASES.items():
        docstring = docstring.replace(phrase, other)
    calls = "|".join(map(re.escape, awaited))

    def example(found: re.Match[str]) -> str:
        code = re.sub(r"^( *)(with|def) ", r"\1async \2 ", found.group(), flags=re.MULTILINE)
        return re.sub(rf"(?<![\w.])((?:{calls})\()", r"await \1", code)

    docstring = re.sub(r"```python\n.*?```", example, renamed(docstring), flags=re.DOTALL)
    return signature + quotes + docstring


def renamed(text: str) -> str:
    """Return a text with the names of the async classes."""
    return re.sub(rf"\b({'|'.join(NAMES)})\b", lambda found: NAMES[found.group()], text)


def rewritten(source: str, target: str, door: Door) -> str:
    """Return the target with everything above the bodies as the source says it."""
    verbs, twins = verbs_of(source, door.name), verbs_of(target, door.twin)
    if [door.twin if name == door.name else name for name in verbs] != list(twins):
        sys.exit(f"{door.twin} has {list(twins)}, not {list(verbs)}: give each verb a body, in this order")
    coroutines = [name for name, twin in twins.items() if isinstance(twin[-1], ast.AsyncFunctionDef)]
    awaited = [*AWAITED, *(door.prefix + name for name in coroutines)]
    lines, new = source.splitlines(keepends=True), target.splitlines(keepends=True)
    for (name, verb), (twin_name, twin) in reversed(list(zip(verbs.items(), twins.items(), strict=True))):
        text = re.sub(rf"\b{name}\(", f"{twin_name}(", "".join(lines[lines_of(verb)]))
        new[lines_of(twin)] = [translated(text, awaited, is_coroutine=twin_name in coroutines)]
    return formatted("".join(new), door.target)


def formatted(text: str, name: str) -> str:
    """Return a text as the formatter leaves it."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PACKAGE / name), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Write every target, or say which one is not up to date."""
    sources = "".join((PACKAGE / door.source).read_text() for door in DOORS)
    if unused := [phrase for phrase in PHRASES if phrase not in sources]:
        sys.exit(f"no docstring has these phrases any more; take them out of {Path(__file__).name}: {unused}")
    for door in DOORS:
        path = PACKAGE / door.target
        before = path.read_text()
        after = rewritten((PACKAGE / door.source).read_text(), before, door)
        if before != after and "--check" in sys.argv:
            sys.exit(f"{door.target} does not say what {door.source} says: run `make aio`")
        path.write_text(after)


if __name__ == "__main__":
    main()
