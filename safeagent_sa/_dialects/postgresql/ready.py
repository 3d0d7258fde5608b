"""Sends a statement whose text is known: on the driver's cursor where nothing listens, else through SQLAlchemy.

SQLAlchemy builds a context and a result for each statement, and that takes longer than sending the statement. A claim and a
completion need neither: they read one row, or count rows. What must see every statement still sees it: where events of the engine,
its dialect or the connection have listeners, or statements are logged, they go the whole way. `do_execute` is called in each case, with the
wrappers that tools have put there, and an error takes SQLAlchemy's own way: it is wrapped, and a lost connection is replaced.

Only attributes that are not public show whether anything listens; if they are missing, every statement goes through SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, methodcaller
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, CursorResult, Dialect

from ..drivers import is_closed


_ON_CONNECTIONS = ("before_cursor_execute", "after_cursor_execute")
_ON_DIALECTS = ("do_execute", "handle_error")
"""The events of a statement that is sent as text, with one set of parameters."""

# What is read from a cursor.
_FIRST, _ROWCOUNT = methodcaller("fetchone"), attrgetter("rowcount")


class Ready:
    """A statement, and its text for each dialect: looking up a compiled statement costs SQLAlchemy as much as sending it."""

    def __init__(self, statement: Any, *, is_plain: bool) -> None:
        """Take the statement.

        Args:
            statement: A Core statement whose parameters have no values yet.
            is_plain: Whether the driver's values are those of the columns, so that SQLAlchemy need not convert them.
        """
        self._statement, self._is_plain = statement, is_plain
        self._texts: WeakKeyDictionary[Dialect, tuple[str, list[str] | None]] = WeakKeyDictionary()

    def run(self, connection: Connection, parameters: dict[str, Any]) -> CursorResult[Any]:
        """Execute the statement through SQLAlchemy."""
        if not self._is_plain or is_translated(connection):
            return connection.execute(self._statement, parameters)
        return connection.exec_driver_sql(*self._sent(connection, parameters))

    def first(self, connection: Connection, parameters: dict[str, Any]) -> Any:
        """Execute the statement, and return its first row or None."""
        if not self._is_plain or not is_unheard(connection) or is_translated(connection):
            return self.run(connection, parameters).first()
        return self._on_cursor(connection, parameters, _FIRST)

    def rowcount(self, connection: Connection, parameters: dict[str, Any]) -> int:
        """Execute the statement, and return the number of rows that it has written."""
        if not self._is_plain or not is_unheard(connection) or is_translated(connection):
            return self.run(connection, parameters).rowcount
        count: int = self._on_cursor(connection, parameters, _ROWCOUNT)
        return count

    def _on_cursor(self, connection: Connection, parameters: dict[str, Any], read: Callable[[Any], Any]) -> Any:
        sql, values = self._sent(connection, parameters)
        dialect = connection.dialect
        cursor: Any = None
        try:
            cursor = connection.connection.cursor()
            dialect.do_execute(cursor, sql, values)
            found = read(cursor)
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - an interruption, too
            raise_as_sqlalchemy(connection, error, sql, values, cursor)
        return found

    def _sent(self, connection: Connection, parameters: dict[str, Any]) -> tuple[str, Any]:
        dialect = connection.dialect
        found = self._texts.get(dialect)
        if found is None:
            compiled: Any = self._statement.compile(dialect=dialect)
            found = self._texts[dialect] = compiled.string, compiled.positiontup
        sql, names = found
        return sql, parameters if names is None else tuple([parameters[name] for name in names])


def raise_as_sqlalchemy(
    connection: Connection, error: BaseException, sql: str, values: Any = None, cursor: Any = None
) -> NoReturn:
    """Raise what a statement has raised as SQLAlchemy would.

    An error of the driver's is wrapped, and no other one. A connection that is lost is replaced, and so is one whose statement
    was interrupted: a cancelled task, or a signal, leaves answers on their way that the next user would read.
    """
    handle: Any = connection._handle_dbapi_exception  # noqa: SLF001 - see above
    statement = sql if isinstance(error, connection.dialect.loaded_dbapi.Error) else None
    if statement is None and is_closed(connection.connection):
        connection.invalidate()  # SQLAlchemy does so behind an error of the driver's only
    handle(error, statement, values, cursor, None)
    raise error


def is_unheard(connection: Connection) -> bool:
    """Return whether no listener and no log is to see a statement, and nothing but the driver could refuse it."""
    heard: Any = connection
    try:
        transaction, savepoint = heard._transaction, heard._nested_transaction  # noqa: SLF001 - see above
        unheard = not (
            ((heard._has_events or heard.engine._has_events) and _has_any(heard, _ON_CONNECTIONS))  # noqa: SLF001
            or (heard.dialect._has_events and _has_any(heard.dialect, _ON_DIALECTS))  # noqa: SLF001
            or heard._echo  # noqa: SLF001
            or transaction is None
            or not transaction.is_active
            or (savepoint is not None and not savepoint.is_active)
            or (heard._trans_context_manager or transaction) is not transaction  # noqa: SLF001 - `with begin_nested():`
            or heard._handle_dbapi_exception is None  # noqa: SLF001
        )
    except AttributeError:
        return False
    return unheard


def _has_any(target: Any, events: Sequence[str]) -> bool:
    # Other events have listeners, too: SQLAlchemy's own set what the options of an engine ask for.
    return any(getattr(target.dispatch, name) for name in events)


def is_translated(connection: Connection) -> bool:
    """Return whether SQLAlchemy puts another schema into each statement."""
    return "schema_translate_map" in connection.get_execution_options()
