"""Finds the schema step that an app's Alembic history reaches, from the text of its revisions; runs none of them.

The revisions have explicit step numbers, so no database is needed, and the answer is the same on every machine.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory

from .. import schema as safeagent
from ..models import TABLE_NAME
from ._console import Stop


# upgrade() has a default for `to` as well, but it changes with the version.
_REACHED_BY_DEFAULT: dict[str, dict[str, Any]] = {"upgrade": {}, "downgrade": {"to": 0}, "adopt_safeagent": {"to": 1}}


@dataclass(frozen=True, slots=True)
class Move:
    """A call of `safeagent_sa.schema` in a revision's upgrade, which moves the table to a step."""

    line: int
    table: tuple[str, str | None] | None
    """Name and schema; None if they are not literals."""
    to: int | None
    """The schema step that it reaches; None if it is not a literal."""


def reached_step(script: ScriptDirectory, table_name: str, schema: str | None) -> int:
    """Return the schema step that the app's revisions bring the table to; 0 if they do not create it.

    Raises:
        Stop: The text of a revision does not show its step; the message asks for `--from`.
    """
    for revision in script.walk_revisions():  # newest first
        path = Path(revision.path)
        if path.suffix != ".py":  # Alembic's option `sourceless`
            continue
        source = path.read_text(encoding="utf-8")
        for move in reversed(moves_in(source)):
            if move.table is None or (move.table == (table_name, schema) and move.to is None):
                raise Stop(
                    f"line {move.line} of {path.name} calls safeagent_sa.schema with values that are not literals, so its "
                    "text does not show which step it reaches. Pass the step as --from."
                )
            if move.table == (table_name, schema) and move.to is not None:
                return move.to
        if _creates(source, table_name, schema):
            raise Stop(
                f"{path.name} creates the table {table_name} without safeagent_sa.schema, as autogenerate does: continue with "
                "`alembic revision --autogenerate`. To continue with steps from here, pass the step as --from."
            )
    return 0


def moves_in(source: str) -> list[Move]:
    """Return the moves in a revision's upgrade, under any name that `safeagent_sa.schema` is imported as."""
    tree = ast.parse(source)
    names = dict(_imported_names(tree))
    moves = []
    for call in _calls_of_upgrade(tree):
        module, _, verb = _dotted(call.func, names).rpartition(".")
        if module == "safeagent_sa.schema" and verb in _REACHED_BY_DEFAULT:
            given = _arguments(call, verb)
            is_named = {"table_name", "schema"} <= given.keys()
            to = given.get("to")
            table = (given["table_name"], given["schema"]) if is_named else None
            moves.append(Move(call.lineno, table, to if isinstance(to, int) else None))
    return moves


def _arguments(call: ast.Call, verb: str) -> dict[str, Any]:
    """Return the arguments with literal values, and the defaults; none if arguments are unpacked."""
    if any(isinstance(node, ast.Starred) for node in call.args) or any(word.arg is None for word in call.keywords):
        return {}
    words = {word.arg: word.value for word in call.keywords if word.arg}
    given = inspect.signature(getattr(safeagent, verb)).bind_partial(*call.args, **words).arguments
    readable = {name: value for name, node in given.items() for value in _literal(node)}
    defaults = {"table_name": TABLE_NAME, "schema": None} | _REACHED_BY_DEFAULT[verb]
    return readable | {name: value for name, value in defaults.items() if name not in given}


def _creates(source: str, table_name: str, schema: str | None) -> bool:
    for call in _calls_of_upgrade(ast.parse(source)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "create_table" and call.args:
            schemas = [value for word in call.keywords if word.arg == "schema" for value in _literal(word.value)]
            if list(_literal(call.args[0])) == [table_name] and (schemas or [None]) == [schema]:
                return True
    return False


def _calls_of_upgrade(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls in upgrade(), and in the functions of the revision that it calls, as in advanced-alchemy's template."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    # also upgrade_engine1(), which the template `multidb` finds by its name
    open_ = [name for name in functions if name.startswith("upgrade")]
    while open_:
        function = functions.pop(open_.pop(0), None)
        for node in ast.walk(function) if function else ():
            if isinstance(node, ast.Call):
                yield node
                if isinstance(node.func, ast.Name):
                    open_.append(node.func.id)


def _imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each name that an import binds, and what it refers to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (root, root)


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _literal(node: ast.expr) -> Iterator[Any]:
    """Yield the value of a literal, or nothing."""
    try:
        yield ast.literal_eval(node)
    except ValueError:
        return
