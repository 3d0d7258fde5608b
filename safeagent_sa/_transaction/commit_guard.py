"""Refuses any COMMIT that would store work without its receipt, at the last step before the server.

That step is SQLAlchemy's `dialect.do_commit(connection)`: after every flush and every hook, inside SQLAlchemy's handling of
errors and lost connections, on every driver, sync and async. The first claim on an engine puts a `CommitGuard` in front of
it (`guarded_engine`), and of the statements that may end a transaction or a savepoint as text. What a transaction must prove
before it may commit lies with the driver's connection (`PoolProxiedConnection.info`):

    claim      the row is inserted; the transaction now needs its completion
    block end  the completion is known, and kept back
    COMMIT     every completion is sent, with the token and the transaction's id; each must change its one row
    ROLLBACK   forgets it all

So it also finds a transaction that was ended on the driver's own connection, whenever that was. Nothing here keeps a session
or a connection alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Connection
from sqlalchemy.engine.default import DefaultDialect

from .._dialects.drivers import is_closed, is_open, note_deallocation, note_local_commits, note_rollback
from .._dialects.steps import FIRST_LETTERS, Verb, may_hold_another, step_of
from .guarded_transaction import KEY, GuardedTransaction, transaction_of
from .open_claim import OpenClaim, aborted, durability_unknown, known_durability


if TYPE_CHECKING:
    from .._dialects.postgresql.fast_path import PipelinedCompletion


# In `PoolProxiedConnection.info`: the claims that are prepared and wait for their COMMIT PREPARED.
_PREPARED = "safeagent_sa.prepared"
# Twophase is never pipelined, and do_executemany and do_execute_no_params are not asked for what is.
_SEEN_BY_TOOLS = {"do_commit", "do_execute"}
_DEALLOCATING = {Verb.ROLLBACK, Verb.ROLLBACK_TO, Verb.DISCARD}


class CommitGuard:
    """The steps of SQLAlchemy that may end a transaction or a savepoint, on the dialect of one engine."""

    def __init__(self) -> None:
        self._do_commit = self._do_rollback = self._do_prepare_twophase = _not_yet
        self._do_commit_twophase = self._do_rollback_twophase = _not_yet
        self._do_execute = self._do_executemany = self._do_execute_no_params = _not_yet
        self._wrapped: set[str] = set()
        self._dialect: Any = None
        self._driver_error: type[Exception] = Exception
        self._ended: WeakSet[GuardedTransaction] = WeakSet()  # each lives as long as its driver's connection

    def stand_before(self, dialect: Any, steps: Iterable[str]) -> None:
        """Put this guard in front of some of a dialect's steps, and of the wrappers that other tools have put there."""
        self._dialect, self._driver_error = dialect, dialect.loaded_dbapi.Error
        for name in steps:
            step = getattr(dialect, name)
            is_sqlalchemy_s = getattr(step, "__func__", None) is getattr(DefaultDialect, name, None)
            (self._wrapped.discard if is_sqlalchemy_s else self._wrapped.add)(name)
            setattr(self, f"_{name}", step)
            setattr(dialect, name, getattr(self, name))

    def stands_alone(self) -> bool:
        """Return whether nothing else must see each statement and each COMMIT: no wrapper of a tool, no step of a dialect.

        A wrapper around our own `do_commit` sees it in each case.
        """
        is_first = getattr(self._dialect.do_execute, "__self__", None) is self
        return is_first and self._wrapped.isdisjoint(_SEEN_BY_TOOLS)

    def do_commit(self, pooled: Any) -> None:
        """Prove the claims of the transaction, then commit it; roll it back where that fails.

        What must be proved is forgotten when the transaction has ended, not before. So an interruption (a signal's exception,
        between any two instructions) leaves nothing open that the next user of the connection could commit.
        """
        claims: list[OpenClaim] = []
        noted: list[str] = []
        is_sent, stop = False, _nothing
        try:
            claims, travelling = self._proven(pooled)
            if claims:
                noted, stop = note_local_commits(pooled)
            is_sent = True
            self.send(pooled, travelling)
        except BaseException as error:
            if not is_sent or (claims and pooled.is_valid and is_open(pooled)):
                self._end(pooled)
            self._replace_closed(pooled, error)
            self._forget(pooled)
            raise
        finally:
            stop()
        self._forget(pooled)
        if noted:
            raise durability_unknown(claims)

    def _proven(self, pooled: Any) -> tuple[list[OpenClaim], list[PipelinedCompletion]]:
        """Return the claims of the transaction, all of them proved, and the completions that travel with the COMMIT."""
        held: GuardedTransaction | None = pooled.info.get(KEY)
        if held is None or not (held.claims or held.watches):
            return [], []
        may_pipeline = self.stands_alone()
        travelling = held.prove(held.owner(), may_pipeline=may_pipeline)
        return list(held.claims.values()), travelling

    def send(self, pooled: Any, travelling: Sequence[PipelinedCompletion] = ()) -> None:
        """Send the COMMIT, in one batch with the completions that travel with it."""
        if travelling:
            pipeline = travelling[0].pipeline  # that of the one connection
            if not pipeline.commit(travelling):
                raise aborted()
        else:
            self._do_commit(pooled)

    def _end(self, pooled: Any) -> None:
        # SQLAlchemy believes that a transaction whose COMMIT has raised has ended, and sends nothing more; the pool would hand
        # the open transaction, with half of the work in it, to the next user.
        try:
            if pooled.is_valid:
                note_rollback(pooled)
                self._do_rollback(pooled)
        except Exception:  # noqa: BLE001 - the error of the COMMIT is the one to see
            driver = pooled.dbapi_connection
            with suppress(Exception):
                driver.close()

    def _replace_closed(self, pooled: Any, error: BaseException) -> None:
        # Behind an error of the driver's SQLAlchemy itself looks for a connection that is closed, and must find one.
        if pooled.is_valid and is_closed(pooled) and not isinstance(error, self._driver_error):
            pooled.invalidate()

    def do_rollback(self, pooled: Any) -> None:
        """Roll back; the session of the claims learns of it, since another Connection may have ended the transaction."""
        held = self._forget(pooled)
        if held is not None:
            held.lose()
        note_rollback(pooled)
        self._do_rollback(pooled)

    def _forget(self, holder: Any) -> GuardedTransaction | None:
        try:
            held: GuardedTransaction | None = holder.info.pop(KEY, None)
        except NotImplementedError:  # SQLAlchemy's first connection to a new database, which is in no pool
            return None
        if held is not None:
            self._ended.discard(held)
        return held

    def do_prepare_twophase(self, connection: Connection, xid: Any) -> None:
        """Prove the claims of the transaction, then prepare it."""
        held = transaction_of(connection)
        claims = []
        if held is not None:
            held.prove(connection, may_pipeline=False)
            claims = list(held.claims.values())
            self._forget(connection)
        with known_durability(claims, connection.connection):
            self._do_prepare_twophase(connection, xid)
        if claims:
            connection.info[_PREPARED] = claims

    def do_commit_twophase(self, connection: Connection, xid: Any, *args: Any, **kwargs: Any) -> None:
        """Commit the prepared transaction; raise where only this server has stored it."""
        with known_durability(connection.info.pop(_PREPARED, ()), connection.connection):
            self._do_commit_twophase(connection, xid, *args, **kwargs)

    def do_rollback_twophase(self, connection: Connection, xid: Any, *args: Any, **kwargs: Any) -> None:
        """Roll back the transaction, prepared or not."""
        connection.info.pop(_PREPARED, None)
        held = self._forget(connection)
        if held is not None:
            held.lose()
        self._do_rollback_twophase(connection, xid, *args, **kwargs)

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute a statement, or refuse it."""
        # Every statement passes here.
        if statement[:1] not in FIRST_LETTERS and ";" not in statement and not self._ended:
            self._do_execute(cursor, statement, parameters, context)
        else:
            execute = partial(self._do_execute, cursor, statement, parameters, context)
            self._execute(statement, context, execute)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute a statement with many sets of parameters, or refuse it."""
        execute = partial(self._do_executemany, cursor, statement, parameters, context)
        self._execute(statement, context, execute)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        """Execute a statement without parameters, or refuse it."""
        self._execute(statement, context, partial(self._do_execute_no_params, cursor, statement, context))

    def _execute(self, statement: str, context: Any, execute: Callable[[], None]) -> None:
        step, holds_more = step_of(statement), may_hold_another(statement)
        if context is None or not (step or holds_more or self._ended):
            execute()
            return
        connection: Connection = context.root_connection
        held = transaction_of(connection)
        if held is not None:
            held.refuse_ended_as_text()
        if holds_more or (step is not None and step.verb in _DEALLOCATING):
            note_deallocation(connection.connection)
        if held is None or step is None:
            execute()
        elif step.verb is Verb.COMMIT:
            self._commit_as_text(held, connection, execute)
        else:
            execute()
            held.follow(step, connection)
        if held is not None and held.is_ended:
            self._ended.add(held)

    def _commit_as_text(self, held: GuardedTransaction, connection: Connection, execute: Callable[[], None]) -> None:
        held.prove(connection, may_pipeline=False)
        claims = list(held.claims.values())
        held.lose()  # until the server has answered
        self._ended.add(held)
        with known_durability(claims, connection.connection):
            execute()
            held.keep()


def _nothing() -> None:
    pass


def _not_yet(*_: Any, **__: Any) -> Any:
    raise AssertionError("the guard stands before no dialect")
