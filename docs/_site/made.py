"""What the site says and no page has to repeat: tables that are made from the code, where a page has a comment with their name."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable
from typer.main import get_command

from safeagent_sa import errors, events, models
from safeagent_sa.cli._app import app as command_line
from safeagent_sa.integrations.http import HttpPolicy
from safeagent_sa.integrations.messages import _DISPOSITIONS, _KINDS, Disposition


ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"^<!-- made when the site is built: (\w+) -->$", re.MULTILINE)


def first_sentence(thing: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    cells = [head, ("---",) * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def reference(cls: type) -> str:
    """Return a class as a link to its place in the reference."""
    return f"{{py:obj}}`~{cls.__module__}.{cls.__name__}`"


def all_errors() -> str:
    """Return every error with its first sentence, its HTTP answer and its queue's answer."""
    rows = [
        (reference(cls), first_sentence(cls), *(("", "") if cls in _BASES else (_http(cls), _queue(cls))))
        for cls in _classes(errors.SafeAgentError)
    ]
    return table(("error", "what it means", "HTTP", "queue"), rows)


_BASES = (errors.SafeAgentError, errors.OutcomeError, errors.SetupError)


def _http(cls: type) -> str:
    policy = HttpPolicy()
    if cls is errors.RequestRefusedError:
        return str(policy.refused_status)
    if cls in policy._answers:  # noqa: SLF001
        return str(policy._answers[cls][0])  # noqa: SLF001
    said = re.search(r"HTTP APIs answer (\d+)", first_sentence(cls))
    return said[1] if said else "raised"


def _queue(cls: type) -> str:
    kind = next((kind for each, kind in _KINDS if issubclass(cls, each)), None)
    return _DISPOSITIONS.get(kind, Disposition.DEAD_LETTER).replace("_", " ") if kind else "raised"


def _classes(cls: type) -> Iterator[type]:
    yield cls
    for each in cls.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _classes(each)


def all_events() -> str:
    """Return every event with the values that it carries."""
    base = [field.name for field in fields(events.Event)]
    classes = [cls for cls in vars(events).values() if isinstance(cls, type) and issubclass(cls, events.Event)]
    rows = [
        (reference(cls), ", ".join(f"`{field.name}`" for field in fields(cls) if field.name not in base))
        for cls in classes
        if cls is not events.Event
    ]
    shared = ", ".join(f"`{name}`" for name in base)
    return f"## What each event carries\n\nAll have {shared}, and besides:\n\n" + table(("event", "values"), rows)


def the_table() -> str:
    """Return the DDL on PostgreSQL."""
    made = models.ExecutionRequest.__table__
    dialect = postgresql.dialect()
    statements = [CreateTable(made), *map(CreateIndex, made.indexes)]
    text = ";\n".join(str(each.compile(dialect=dialect)).strip().replace("\t", "  ") for each in statements)
    return f"```sql\n{text};\n```"


def all_commands() -> str:
    """Return every command with its help, its arguments and its options."""
    group = get_command(command_line)
    return "\n\n".join(_command(name, each) for name, each in group.commands.items())


def _command(name: str, command: Any) -> str:
    with command.context_class(command, info_name=f"safeagent-sa {name}") as context:
        usage = " ".join([f"safeagent-sa {name}", *command.collect_usage_pieces(context)])
        rows = [_parameter(each, context) for each in command.get_params(context) if each.name != "help"]
    text = inspect.cleandoc(command.help or "")
    options = table(("option", "what it does", "default"), rows) if rows else ""
    return f"## {name}\n\n```text\n{usage}\n```\n\n{_escaped(text)}\n\n{options}"


def _parameter(parameter: Any, context: Any) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    names = names if parameter.param_type_name == "option" else f"`{(parameter.name or '').upper()}`"
    default = parameter.get_default(context, call=False)
    shown = (
        "" if default in (None, False, "", (), []) or callable(default) else f"`{getattr(default, 'value', default)}`"
    )
    variables = parameter.envvar if isinstance(parameter.envvar, (list, tuple)) else [parameter.envvar]
    named = ", ".join(f"`{name}`" for name in variables if name)
    said = _escaped(getattr(parameter, "help", None) or "")
    return names, f"{said} Or the environment: {named}." if named else said, shown


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def from_file(name: str) -> str:
    """Return a file of the repository without its title, with links as a page in docs/ has them."""
    text = (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", r"](../\1)", text)


MADE: dict[str, Callable[[], str]] = {
    "errors": all_errors,
    "events": all_events,
    "table": the_table,
    "commands": all_commands,
    "changelog": lambda: from_file("CHANGELOG.md"),
    "contributing": lambda: from_file("CONTRIBUTING.md"),
}


def fill(_app: object, _docname: str, source: list[str]) -> None:
    """Put what is made in the place of each mark."""
    source[0] = _MARK.sub(lambda found: MADE[found[1]](), source[0])


def setup(app: object) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", fill, priority=400)
    return {"parallel_read_safe": True}
